"""The times of the build line, measured on this machine: `./nox -s bench-build`.

Cold builds happen in a cache of their own, with an empty ccache; the bare one is configure, make
and make install of the very same tree with the same flags and number of jobs (PTRACK_JOBS), and no
more. Results go to benchmarks/build-line.json and .md.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shutil
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


@contextlib.contextmanager
def _cache_of_its_own() -> Iterator[Path]:
    """An empty cache on the file system of the usual one; removed at the end."""
    cache.sweep(cache.root())
    path = cache.root() / f".bench.{os.getpid()}.part"
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


def _bare(tree: PatchedTree, variant: compiling.Variant, place: Path) -> tuple[float, float]:
    """Seconds of a plain configure, make and make install of the tree: of the clock, of cores."""
    flags = compiling.flags(tree, variant)
    obj, log = place / "bare", place / "bare.log"
    obj.mkdir()
    env = {"LC_ALL": "C", "MAKEFLAGS": "", "CCACHE_DISABLE": "1"}
    world = "world-bin" in (tree.path / "GNUmakefile.in").read_text()
    began, used = time.monotonic(), _processor()
    with step("bare configure, make, make install"):
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
    seconds, used = time.monotonic() - began, _processor() - used
    cache.remove(obj)
    cache.remove(place / "dest")
    return seconds, used


def _build(tree: PatchedTree, variant: compiling.Variant, extension: Path) -> float:
    began = time.monotonic()
    compiling.build(tree, variant, extension=extension)
    return time.monotonic() - began


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


def measure(major: Major, *, write: bool, tests: bool = True) -> list[Row]:
    """Measure every row on one major, print them, and write them unless told not to."""
    host.jobs()
    host.ensure((*host.TOOLS, *host.EXTRAS))
    tree = patch.apply(source.fetch(major))
    name, variant = major.name, compiling.RELEASE
    rows = []

    with _cache_of_its_own() as place:
        bare, bare_cores = _bare(tree, variant, place)
        used = _processor()
        cold = _build(tree, variant, compiling.EXTENSION)
        cores = _processor() - used
        rows.append(
            Row(
                what=f"cold build-{name} against bare configure, make and install",
                value=cold / bare,
                unit="x",
                limit=1.05,
                detail=f"{duration(cold)} against {duration(bare)}",
            )
        )
        rows.append(
            Row(
                what="the same in processor time, which other work on the machine does not change",
                value=cores / bare_cores,
                unit="x",
                limit=1.05,
                detail=f"{duration(cores)} against {duration(bare_cores)}",
            )
        )
        extension = _edited(
            compiling.EXTENSION, "src/ptrack.c", '#include "postgres.h"',
            '#include "postgres.h"\n/* an edit */', place,
        )  # fmt: skip
        seconds = _build(tree, variant, extension)
        what = f"build-{name} after an edit in extension/"
        rows.append(Row(what=what, value=seconds, unit="s", limit=5.0))

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
        "`./nox -s bench-build` measures them again. The bare build and the cold one are made once",
        "each, in this order: the latter finds the sources in the system's file cache.",
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
