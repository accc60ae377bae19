"""The session: a prefix, the measuring in a process that has the locked tools, the plots."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.engine import public, results, unpatched
from ptrack_build import REPO, cache, host, suite
from ptrack_build import compile as compiling
from ptrack_build.errors import CommandFailed, PtrackError, UsageError
from ptrack_build.progress import say, step
from ptrack_build.run import call

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ptrack_build.matrix import Major

FAMILIES = ("checkpoint", "query", "write", "disabled", "start", "extra", "mark", "growth")
HERE = Path(__file__).parents[1]
LOCK = REPO / "requirements" / "bench.txt"


class BenchFailed(PtrackError):
    """A benchmark could not be measured."""


def files(major: str) -> tuple[Path, Path]:
    """The JSON and the page of a major's results."""
    return HERE / f"engine-{major}.json", HERE / f"engine-{major}.md"


def measure(
    major: Major, families: Sequence[str], *, quick: bool = False, write: bool = True,
    plots: bool = True, locked: bool = False, public_checkout: Path | None = None,
) -> None:  # fmt: skip
    """Measure some families of rows, or all, on a major's release build, and write the results.

    quick takes a fifth of the rounds, and writes nothing; nor is anything written where ptrack 2.4
    is measured beside, from its public_checkout. Raises UsageError and BenchFailed.
    """
    unknown = [name for name in families if name not in FAMILIES]
    if unknown:
        what = f"there is no family of rows named {unknown[0]!r}"
        raise UsageError(what, hint=f"one or more of: {', '.join(FAMILIES)}")
    if public_checkout is not None:
        public.diff(major, public_checkout)
    built = suite.prefix(major, compiling.RELEASE, locked=locked)
    host.check_reachable(built.path, host.server_user())
    write = write and not quick and public_checkout is None
    others: list[str] = []
    if public_checkout is not None:
        others.append(f"--public={public.prefix(built.tree.source, public_checkout).path}")
    if not families or "disabled" in families:
        others.append(f"--unpatched={unpatched.server(built.tree.source)}")
    words = [
        str(suite.tools()), "-m", "benchmarks.engine", f"--prefix={built.path}",
        f"--major={major.name}", f"--version={built.version}", f"--extension={built.key[:16]}",
        *others, *(["--quick"] if quick else []), *([] if write else ["--no-write"]), *families,
    ]  # fmt: skip
    status = suite.patiently(words)
    if write and (status == 0 or results.stored(files(major.name)[0])):
        publish(major, plots=plots)  # what there is, for it has taken long
    if status != 0:
        what = f"the benchmarks ended with status {status}"
        raise BenchFailed(what, hint="the lines above say why")


def publish(major: Major, *, plots: bool = True) -> None:
    """The plots and the page of the results that there are. Raises BenchFailed without any."""
    data, page = files(major.name)
    stored = results.stored(data)
    if not stored:
        what = f"there are no results in {data}"
        raise BenchFailed(what, hint=f"./nox -s bench-{major.name}")
    if plots:
        _plot(data)
    drawn = sorted(file.name for file in HERE.glob(f"{data.stem}-*.svg"))
    absent = [name for name in FAMILIES if name not in stored["families"]]
    page.write_text(results.markdown(stored, f"bench-{major.name}", drawn, absent))
    say(f"results: {data}, {page}")


def _plot(data: Path) -> None:
    """Draw the results beside their JSON; says why where that cannot be done."""
    try:
        python = _matplotlib()
    except CommandFailed as error:
        say(f"plots are skipped, for matplotlib could not be installed: {error}")
        return
    env = {"MPLCONFIGDIR": str(cache.directory("memo", "matplotlib"))}
    try:
        with step("plots"):
            call([python, HERE / "engine" / "plots.py", data], env=env, quiet=True)
    except CommandFailed as error:
        say(f"plots could not be drawn: {error}")


def _matplotlib() -> Path:
    """A Python that has requirements/bench.txt, made if need be. Raises CommandFailed."""
    venv = REPO / ".nox" / "bench"
    text = LOCK.read_text()
    stamp = venv / ".lock"
    if stamp.is_file() and stamp.read_text() == text:
        return venv / "bin" / "python"
    log, own = cache.directory("log") / "bench-venv.log", suite.tools()
    log.unlink(missing_ok=True)
    with step("an environment with matplotlib"):
        cache.remove(venv)
        call([own, "-m", "venv", "--without-pip", venv], log=log, quiet=True)
        call(
            [own, "-m", "pip", "--python", venv / "bin" / "python", "install",
             "--no-input", "--disable-pip-version-check", "--root-user-action=ignore",
             "--only-binary=:all:", "--require-hashes", "--no-deps", "-r", LOCK],
            log=log, quiet=True,
        )  # fmt: skip
    stamp.write_text(text)
    return venv / "bin" / "python"
