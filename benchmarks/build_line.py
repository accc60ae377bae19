"""The times of the build line, measured on this machine: `./nox -s bench-build`.

Cold builds happen in a cache of their own, with an empty ccache; the bare ones are configure, make
and make install of the very same tree with the same flags and number of jobs (PTRACK_JOBS), and no
more. Each cold one has a bare one beside it, before or after it by turns, and what counts is the
median of the pairs. Results go to benchmarks/build-line.json and .md.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ptrack_build import REPO, cache, host, patch, source, suite
from ptrack_build import compile as compiling
from ptrack_build.progress import duration, say, step
from ptrack_build.run import call

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ptrack_build.matrix import Major
    from ptrack_build.patch import PatchedTree

HERE = Path(__file__).parent
PAIRS = 3


@dataclass(frozen=True, kw_only=True)
class Row:
    """One measured time against what it has to be; limit in the unit of value."""

    what: str
    value: float
    unit: str
    limit: float
    detail: str = ""

    @property
    def met(self) -> bool:
        """Whether the value is within its limit."""
        return self.value <= self.limit


@dataclass(frozen=True, kw_only=True)
class Took:
    """Seconds of the clock and of the cores that a build took."""

    clock: float
    cores: float


@contextlib.contextmanager
def _cache_of_its_own(number: int) -> Iterator[Path]:
    """An empty cache on the file system of the usual one; removed at the end."""
    cache.sweep(cache.root())
    path = cache.root() / f".bench-{number}.{os.getpid()}.part"
    before = os.environ.get("PTRACK_CACHE")
    os.environ["PTRACK_CACHE"] = str(path)
    try:
        yield cache.root()
    finally:
        if before is None:
            del os.environ["PTRACK_CACHE"]
        else:
            os.environ["PTRACK_CACHE"] = before
        cache.remove(path)


def _processor() -> float:
    """Seconds of processor time that this process and those it waited for have used."""
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


@contextlib.contextmanager
def _timed(into: list[Took]) -> Iterator[None]:
    began, used = time.monotonic(), _processor()
    yield
    into.append(Took(clock=time.monotonic() - began, cores=_processor() - used))


def _bare(tree: PatchedTree, variant: compiling.Variant, place: Path) -> Took:
    """What a plain configure, make and make install of the tree takes."""
    flags = compiling.flags(tree, variant)
    obj, log = place / "bare", place / "bare.log"
    obj.mkdir()
    env = {"LC_ALL": "C", "MAKEFLAGS": "", "CCACHE_DISABLE": "1"}
    world = "world-bin" in (tree.path / "GNUmakefile.in").read_text()
    took: list[Took] = []
    with step("bare configure, make, make install"), _timed(took):
        call([tree.path / "configure", *flags], cwd=obj, env=env, log=log, quiet=True)
        into = f"DESTDIR={place / 'dest'}"
        jobs = f"-j{host.jobs()}"
        for words in (
            (["world-bin"], ["install-world-bin", into])
            if world
            else (["all"], ["-C", "contrib", "all"],
                  ["install", into], ["-C", "contrib", "install", into])
        ):  # fmt: skip
            call(["make", jobs, *words], cwd=obj, env=env, log=log, quiet=True)
    cache.remove(obj)
    cache.remove(place / "dest")
    return took[0]


def _build(tree: PatchedTree, variant: compiling.Variant, extension: Path) -> Took:
    took: list[Took] = []
    with _timed(took):
        compiling.build(tree, variant, extension=extension)
    return took[0]


def _against(name: str, cold: list[Took], bare: list[Took]) -> list[Row]:
    """The rows of cold builds against bare ones, by the clock and in processor time."""

    def row(what: str, ours: list[float], theirs: list[float]) -> Row:
        ratios = [one / other for one, other in zip(ours, theirs, strict=True)]
        usual = [duration(statistics.median(seconds)) for seconds in (ours, theirs)]
        each = ", ".join(f"{ratio:.3f}" for ratio in ratios)
        return Row(
            what=what, value=statistics.median(ratios), unit="x", limit=1.05,
            detail=f"{usual[0]} against {usual[1]}; pairs: {each}",
        )  # fmt: skip

    return [
        row(
            f"cold build-{name} against bare configure, make and install",
            [one.clock for one in cold], [one.clock for one in bare],
        ),
        row(
            "the same in processor time, which other work on the machine changes less",
            [one.cores for one in cold], [one.cores for one in bare],
        ),
    ]  # fmt: skip


def _nox(*words: str) -> float:
    began = time.monotonic()
    subprocess.run(
        [sys.executable, "-m", "nox", "-f", str(REPO / "noxfile.py"), *words],
        check=True, cwd=REPO, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        env={**os.environ, "NOX_SCRIPT_MODE": "none"}, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    return time.monotonic() - began


def _edited(folder: Path, name: str, old: str, new: str, place: Path) -> Path:
    """A copy of a folder with one file changed."""
    copy = place / folder.name
    cache.remove(copy)
    shutil.copytree(folder, copy)
    file = copy / name
    text = file.read_text()
    assert old in text, f"{name} has no {old!r}"
    file.write_text(text.replace(old, new, 1))
    return copy


def _after_edits(tree: PatchedTree, variant: compiling.Variant, place: Path) -> list[Row]:
    """The rows of builds after an edit, in a cache that has the one before it."""
    name = tree.source.major.name
    extension = _edited(
        compiling.EXTENSION, "src/ptrack.c", '#include "postgres.h"',
        '#include "postgres.h"\n/* an edit */', place,
    )  # fmt: skip
    seconds = _build(tree, variant, extension).clock
    what = f"build-{name} after an edit in extension/"
    rows = [Row(what=what, value=seconds, unit="s", limit=5.0)]

    templates = _edited(
        patch.TEMPLATES, "src/backend/storage/smgr/md.c.j2", "insert\n",
        "insert\n/* an edit */\n", place,
    )  # fmt: skip
    began = time.monotonic()
    edited = patch.apply(tree.source, templates=templates)
    _build(edited, variant, compiling.EXTENSION)
    seconds = time.monotonic() - began
    what = f"build-{name} after an edit of one core template"
    rows.append(Row(what=what, value=seconds, unit="s", limit=30.0))
    return rows


def measure(major: Major, *, write: bool, tests: bool = True) -> list[Row]:
    """Measure every row on one major, print them, and write them unless told not to."""
    host.jobs()
    host.ensure((*host.TOOLS, *host.EXTRAS))
    tree = patch.apply(source.fetch(major))
    name, variant = major.name, compiling.RELEASE
    rows: list[Row] = []

    bare: list[Took] = []
    cold: list[Took] = []
    for file in tree.path.rglob("*"):
        if file.is_file():
            file.read_bytes()  # so that none of the builds is the first to read it
    for number in range(PAIRS):
        with _cache_of_its_own(number) as place:
            if number % 2 == 0:
                bare.append(_bare(tree, variant, place))
            cold.append(_build(tree, variant, compiling.EXTENSION))
            if number % 2 == 1:
                bare.append(_bare(tree, variant, place))
            if number == PAIRS - 1:
                rows += _after_edits(tree, variant, place)
    rows[:0] = _against(name, cold, bare)

    with step(f"build-{name} in the usual cache"):
        _nox("-s", f"build-{name}")
    own = min(_nox("-l") for _ in range(5))
    again = min(_nox("-s", f"build-{name}") for _ in range(5))
    rows.append(
        Row(
            what=f"build-{name}, nothing changed, beyond nox's own start",
            value=again - own,
            unit="s",
            limit=1.0,
            detail=f"{again:.2f} s against {own:.2f} s",
        )
    )
    if tests:
        outcome = suite.one(major, [])
        if outcome.status != "passed":
            what = f"test-{name} failed, so its time means nothing"
            raise suite.SuiteFailed(what, hint=f"./nox -s test-{name}")
        rows.append(
            Row(
                what=f"test-{name} on a built prefix",
                value=round(outcome.test_seconds),
                unit="s",
                limit=180.0,
                detail=f"{outcome.tests} tests",
            )
        )
    about = {
        "postgresql": tree.source.version,
        "cores": host.cpus(),
        "machine": platform.machine(),
        "system": _system(),
        "load_at_the_end": round(os.getloadavg()[0], 1),
    }
    text = _markdown(rows, about)
    say("\n" + text)
    if write:
        data = {"about": about, "rows": [asdict(row) | {"met": row.met} for row in rows]}
        (HERE / "build-line.json").write_text(json.dumps(data, indent=1) + "\n")
        (HERE / "build-line.md").write_text(text)
    return rows


def _system() -> str:
    with contextlib.suppress(OSError):
        return platform.freedesktop_os_release().get("PRETTY_NAME", "")
    return platform.system()


def _markdown(rows: list[Row], about: dict[str, object]) -> str:
    where = about["system"]
    lines = [
        "# The build line's times",
        "",
        f"PostgreSQL {about['postgresql']}, {about['cores']} cores, {about['machine']}, {where}.",
        "`./nox -s bench-build` measures them again. Each cold build has a bare one beside",
        f"it, before or after it by turns: the ratio is the median of {PAIRS} pairs.",
        "",
        "| | measured | at most | |",
        "|---|---|---|---|",
    ]
    for row in rows:
        detail = f" ({row.detail})" if row.detail else ""
        verdict = "met" if row.met else "**missed**"
        measured = f"{row.value:.4g} {row.unit}{detail}"
        lines.append(f"| {row.what} | {measured} | {row.limit:g} {row.unit} | {verdict} |")
    return "\n".join(lines) + "\n"
