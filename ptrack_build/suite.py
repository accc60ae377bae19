"""The suite: pytest on a prefix, for one major or for all that can be had."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ptrack_build import REPO, cache, host, matrix, report
from ptrack_build import compile as compiling
from ptrack_build.errors import CommandFailed, PtrackError, UsageError
from ptrack_build.progress import say
from ptrack_build.run import PATIENCE, call, deaf_to_hangup

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ptrack_build.compile import Prefix, Variant
    from ptrack_build.matrix import Major

LOCK = REPO / "requirements" / "lock.txt"

#: Where the tests of the build line are; all others need a server.
OWN = "tests/build"
#: The session that runs those alone.
SELFTEST = "selftest"
#: What the whole suite leaves to sessions of its own, which a CI has at night.
LEFT_OUT = (
    "left out, as they take long: each protection taken out (./nox -s mutants-17), hours of the "
    "state machine\n(test-17 -- --deep), other sizes of blocks (test-17 -- --variant blocks-1k)"
)
#: Bytes of a path below which the suite's servers have their sockets, of which 107 are possible.
LONGEST_TEST_DIR = 60
#: What the clusters of some tests take, in megabytes.
SOME_MB = 500
#: Pytest's status where no test matches.
NOTHING = 5


class SuiteFailed(PtrackError):
    """Tests failed; pytest has said which."""


@dataclass(frozen=True, kw_only=True)
class Ended:
    """A pytest that ran to its end."""

    returncode: int
    tests: int
    failures: int
    skipped: int
    seconds: float


@functools.cache
def results() -> Path:
    """Where records of runs go: results/ of the checkout.

    Where the checkout cannot be written it is results/ of the cache, which is said, once.
    """
    usual = REPO / "results"
    if os.access(usual if usual.is_dir() else REPO, os.W_OK | os.X_OK):
        usual.mkdir(exist_ok=True)
        return usual
    other = cache.directory("results")
    say(f"results go to {other}, as {REPO} cannot be written")
    return other


def tools() -> Path:
    """A Python that has the locked tools: this one where it is the lock's, else that of .venv.

    Raises UsageError when .venv cannot be made.
    """
    venv = Path(os.environ.get("PTRACK_VENV", REPO / ".venv"))
    text = LOCK.read_text()
    for prefix in (Path(sys.prefix), venv):
        with contextlib.suppress(OSError):
            if (prefix / ".lock").read_text() == text:
                return prefix / "bin" / "python"
    done = call([REPO / "nox"], env={"PTRACK_TOOLS_ONLY": "1"}, check=False, quiet=True)
    if done.returncode != 0:
        what = f"the tools of requirements/lock.txt could not be had in {venv}"
        raise UsageError(what, hint="./nox -l shows why")
    return venv / "bin" / "python"


def prefix(major: Major, variant: Variant, *, locked: bool = False) -> Prefix:
    """Fetch, patch and compile a major.

    Raises what these do; first of all UsageError for a wrong PTRACK_JOBS, and HostError.
    """
    from ptrack_build import patch, source

    # all before anything is fetched, which takes long
    host.jobs()
    host.ensure(host.TOOLS, besides=(*host.EXTRAS, *major.libraries))
    compiling.check_first(major)
    return compiling.build(patch.apply(source.fetch(major, locked=locked)), variant)


def pytest(
    name: str,
    paths: Sequence[str],
    args: Sequence[str],
    *,
    built: Prefix | None = None,
    workers: str | None = None,
    **settings: str,
) -> Ended:
    """Run pytest on some of tests/; its record goes to <name>.xml in results().

    workers: how many tests at once, where it is not for the caller to say; settings: of its
    environment.
    It has a name of its own until it is whole: another run of the same name may be under way.
    """
    final = results() / f"{name}.xml"
    final.unlink(missing_ok=True)
    junit = final.with_name(f".{name}.{os.getpid()}.xml")
    env = os.environ | settings
    memory = []
    if not os.access(REPO, os.W_OK):  # what these remember between runs would go there
        memory = ["-o", f"cache_dir={cache.directory('results', 'pytest')}"]
        env["HYPOTHESIS_STORAGE_DIRECTORY"] = str(cache.directory("results", "hypothesis"))
    words = [
        str(tools()), "-m", "pytest", f"--junitxml={junit}", "-n", workers or _workers(), "--dist",
        "worksteal", *memory, *_chosen(paths, args),
    ]  # fmt: skip
    if built is not None:
        host.check_reachable(built.path, host.server_user())
        env["PTRACK_PREFIX"] = str(built.path)
    print("+ python " + shlex.join(words[1:]), flush=True)
    began = time.monotonic()
    try:
        returncode = patiently(words, env)
        tests, failures, skipped = report.counted(junit)
        with contextlib.suppress(FileNotFoundError):
            junit.replace(final)
    finally:
        junit.unlink(missing_ok=True)
    return Ended(
        returncode=returncode,
        tests=tests,
        failures=failures,
        skipped=skipped,
        seconds=time.monotonic() - began,
    )


def _workers() -> str:
    """How many tests run at once. Raises UsageError for a setting that is no number.

    More than there are cores: a test waits for its servers a part of the time.
    """
    cpus = host.cpus()
    named = os.environ.get("PTRACK_TEST_WORKERS") or str(min(max(2, cpus + cpus // 2), 8))
    if not named.isdecimal():
        what = f"PTRACK_TEST_WORKERS={named} is no number of tests to run at once"
        raise UsageError(what, hint="0 runs them in pytest itself, 2 two at once")
    return named


def check_places(args: Sequence[str] = ()) -> None:
    """Raise what keeps the servers from their places, before anything is built, which takes long.

    args: pytest's; some tests alone take less room than all of them.

    HostError for rights and room, UsageError for a wrong PTRACK_TEST_DIR.
    """
    user = host.server_user()
    host.check_reachable(cache.root(), user)
    place = host.suite_place()
    wrong = ""
    if not place.is_dir():
        wrong = "is no directory"
    elif not os.access(place, os.W_OK | os.X_OK):
        wrong = "cannot be written"
    elif len(os.fsencode(place)) > LONGEST_TEST_DIR:
        wrong = f"is too long for the sockets of servers: at most {LONGEST_TEST_DIR} bytes"
    if wrong:
        what = f"{place}, where the suite's servers are to be, {wrong}"
        raise UsageError(what, hint="let PTRACK_TEST_DIR name a directory with some GB of space")
    host.check_reachable(place, user, "PTRACK_TEST_DIR")
    megabytes = host.SUITE_MB if not args else SOME_MB
    host.check_room(place, megabytes, "the suite", host.elsewhere("PTRACK_TEST_DIR"))


def _named(args: Sequence[str]) -> list[str]:
    """The words that are paths of tests; what is not tests/... is the value of an option."""
    return [arg for arg in args if re.match(r"tests(/|$)", arg)]


def _chosen(paths: Sequence[str], args: Sequence[str]) -> list[str]:
    """Pytest's words: its own paths where none are named."""
    options = [path for path in paths if path.startswith("-")]
    return [*(options if _named(args) else paths), *args]


def _share(args: Sequence[str], *, own: bool) -> list[str] | None:
    """The words without the paths of the other part; None where they name only such."""
    named = _named(args)
    other = [arg for arg in named if (arg.rstrip("/") + "/").startswith(f"{OWN}/") is not own]
    if named and len(other) == len(named):
        return None
    return [arg for arg in args if arg not in other]


def _matched(paths: Sequence[str], args: Sequence[str]) -> bool:
    """Whether any test is meant by these words. Quick: before anything is built.

    Raises UsageError with what pytest has to say for words that it does not know.
    """
    _workers()
    if not args:
        return True
    words = [str(tools()), "-m", "pytest", "-qq", "--collect-only", "-n0", *_chosen(paths, args)]
    try:
        call(words, cwd=REPO, quiet=True, capture=True)
    except CommandFailed as error:
        if error.returncode == NOTHING:
            return False
        lines = [line for line in error.tail.splitlines() if line.strip()]
        said = "\n".join(f"    {line}" for line in lines[-6:])
        what = f"pytest cannot make anything of `{shlex.join(args)}`:\n{said}"
        hint = "what stands after -- is the session's (--help says) or pytest's"
        raise UsageError(what, hint=hint) from error
    return True


def _nothing(args: Sequence[str]) -> UsageError:
    return UsageError(
        f"no test is meant by `{shlex.join(args)}`", hint="./nox -s selftest -- --collect-only -q"
    )


def patiently(words: Sequence[str], env: Mapping[str, str] | None = None) -> int:
    """Run a program of this repository that runs servers; its status.

    What ends this early gives it the time to stop them. A terminal that is closed ends it by us.
    """
    with deaf_to_hangup():
        process = subprocess.Popen(words, cwd=REPO, env=env, stdin=subprocess.DEVNULL)
    try:
        return process.wait()
    except BaseException as error:
        # The terminal's ctrl-C reached it as well; it is given time to stop its servers.
        if isinstance(error, KeyboardInterrupt):
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(PATIENCE / 3)
        if process.poll() is None:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(PATIENCE)
        process.kill()
        raise


def judged(name: str, ended: Ended, version: str, build_seconds: float) -> report.Outcome:
    """Pytest's end as an outcome."""
    note = ""
    if ended.returncode != 0 and not ended.failures:
        note = f"pytest ended with status {ended.returncode}"
    return report.Outcome(
        session=name,
        status="passed" if ended.returncode == 0 else "failed",
        version=version,
        tests=ended.tests,
        failures=ended.failures,
        skipped=ended.skipped,
        build_seconds=build_seconds,
        test_seconds=ended.seconds,
        note=note,
    )


def one(
    major: Major,
    args: Sequence[str],
    *,
    locked: bool = False,
    record: bool = False,
    deep: float | None = None,
    variant: str = compiling.TEST.name,
) -> report.Outcome:
    """Build a variant of a major and run the shared suite on it. Tests that fail do not raise.

    record writes the source to matrix.lock when the whole suite has passed on it. deep runs the
    state machine alone, for so many minutes on each worker. Raises UsageError, before anything is
    built, for words that pytest does not know or no test matches.
    """
    if record and (args or deep is not None or variant != compiling.TEST.name):
        what = "--record is for the whole suite on the variant that it is usually run on"
        raise UsageError(what, hint=f"./nox -s test-{major.name} -- --record")
    if deep is not None:
        args = ["tests/test_machine.py", f"--deep={deep:g}", *args]
    name = f"test-{major.name}" + ("" if variant == compiling.TEST.name else f"-{variant}")
    paths = ["tests", f"--ignore={OWN}"]
    if not _matched(paths, args):
        raise _nothing(args)
    check_places(args)
    began = time.monotonic()
    built = prefix(major, compiling.VARIANTS[variant], locked=locked)
    seconds = time.monotonic() - began
    say(f"testing {built.path}")
    ended = pytest(name, paths, args, built=built)
    outcome = judged(name, ended, built.version, seconds)
    if record and outcome.status == "passed":
        from ptrack_build import source

        source.write_lock([built.tree.source])
        say(f"recorded in matrix.lock: PostgreSQL {built.version}")
    return outcome


def mutants(major: Major, args: Sequence[str], *, locked: bool = False) -> report.Outcome:
    """Take each protection out in turn and see its test fail. Slow; one at a time.

    Raises UsageError, before anything is built, for words that mean no mutant.
    """
    from ptrack_build import mutants as catalogue

    paths = ["tests/test_mutants.py"]
    slow = ["-m", "slow", *args]
    if args and not _matched(paths, slow):
        raise _nothing(args)
    check_places(["one at a time"])
    built = prefix(major, compiling.TEST, locked=locked)
    if not args:
        for variant in sorted({mutant.variant for mutant in catalogue.of(major)}):
            prefix(major, compiling.VARIANTS[variant], locked=locked)
    name = f"mutants-{major.name}"
    settings = {"PTRACK_MUTANTS_MAJOR": major.name, **({"PTRACK_LOCKED": "1"} if locked else {})}
    return judged(
        name, pytest(name, paths, slow, built=built, workers="0", **settings), built.version, 0.0
    )


def own(args: Sequence[str]) -> report.Outcome:
    """The build line's own tests, which need no server."""
    if not _matched([OWN], args):
        raise _nothing(args)
    return judged(SELFTEST, pytest("build-line", [OWN], args), "", 0.0)


def ready() -> None:
    """Raise now what would keep every major from its end.

    UsageError for a setting, HostError for what the machine lacks.
    """
    from ptrack_build import source

    _workers()
    host.jobs()
    source.check_settings()
    libraries = (each for major in matrix.load().majors for each in major.libraries)
    host.ensure(host.TOOLS, besides=(*host.EXTRAS, *libraries))


def every(
    majors: Sequence[Major], args: Sequence[str], *, locked: bool = False, record: bool = False
) -> None:
    """The build line's tests, then the suite for all majors whose source can be had.

    Ends with a table that also says which majors could not be had, and why. Words may choose tests
    of one part only. Raises SuiteFailed if anything that ran failed, and when no major could be had
    at all; what holds for every major, before anything is run.
    """
    if record and args:
        what = "--record is for the whole suite"
        raise UsageError(what, hint="./nox -s test -- --record")
    outcomes: list[report.Outcome] = []
    mine, theirs = _share(args, own=True), _share(args, own=False)
    if mine is not None and not _matched([OWN], mine):
        mine = None
    if theirs is not None and not _matched(["tests", f"--ignore={OWN}"], theirs):
        theirs = None
    if mine is None and theirs is None:
        raise _nothing(args)
    if theirs is not None:
        ready()
        check_places(args)
    if mine is not None and any((REPO / OWN).glob("test_*.py")):
        outcomes.append(own(mine))

    def test(major: Major) -> report.Outcome:
        say(f"\n==== PostgreSQL {major.name} ====")
        return one(major, theirs or (), locked=locked, record=record)

    if theirs is not None:
        sessions = [(f"test-{each.name}", functools.partial(test, each)) for each in majors]
        report.through(sessions, outcomes)
    tested = theirs is None or any(each.status == "passed" and each.version for each in outcomes)
    nothing = None if tested else report.without_source("tested")
    long = LEFT_OUT if tested and not args else ""
    report.close(outcomes, results() / "test.json", SuiteFailed, nothing, long)


def built_all(majors: Sequence[Major], variant: Variant, *, locked: bool = False) -> None:
    """Build all majors whose source can be had; ends like `every`."""
    outcomes: list[report.Outcome] = []

    def build(major: Major) -> report.Outcome:
        began = time.monotonic()
        made = prefix(major, variant, locked=locked)
        note = f"{made.path} in {time.monotonic() - began:.1f} s"
        name = f"build-{major.name}"
        return report.Outcome(session=name, status="passed", version=made.version, note=note)

    ready()
    sessions = [(f"build-{each.name}", functools.partial(build, each)) for each in majors]
    report.through(sessions, outcomes)
    built = any(each.status == "passed" for each in outcomes)
    nothing = None if built else report.without_source("built")
    report.close(outcomes, results() / "build.json", SuiteFailed, nothing)
