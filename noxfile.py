#!/usr/bin/env -S uv run --script
# /// script
# requires-python = ">=3.11"
# dependencies = [
#     "cyclonedx-python-lib>=11",
#     "docker>=7.1",
#     "filelock>=3.16",
#     "httpx>=0.27",
#     "jinja2>=3.1.4",
#     "msgspec>=0.19",
#     "nox>=2026.8.10",
#     "packageurl-python>=0.16",
#     "packaging>=24",
#     "platformdirs>=4.3",
#     "rich>=13.9",
#     "unidiff>=0.7.5",
# ]
# ///
"""ptrack: PostgreSQL with changed-block tracking, from a major's number to a tested server.

NN is 12 to 19 or devel. `./nox -s build-17 test-17`, `./nox -t pg17`, `./nox -t demo`, `-j 2`.
After `--`: --debug (show tracebacks), --locked (build what matrix.lock records), and what the
session itself takes; test-NN hands the rest to pytest.
"""

from __future__ import annotations

import argparse
import errno
import functools
import itertools
import json
import logging
import os
import re
import select
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import nox

sys.path.insert(0, str(Path(__file__).resolve().parent))  # nox as a program has its own place there

from ptrack_build import REPO, matrix
from ptrack_build.errors import PtrackError, UsageError
from ptrack_build.run import terminate_politely

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from ptrack_build.matrix import Major
    from ptrack_build.package.making import Wanted

nox.needs_version = ">=2026.8.10"
nox.options.default_venv_backend = "none"
nox.options.error_on_external_run = True
nox.options.stop_on_first_error = False


def _worth_telling(record: logging.LogRecord) -> bool:
    """Drop what does not matter here, and give a mistyped session's name a next step."""
    if record.name.partition(".")[0] != "nox":  # which shows whatever any library logs
        return record.levelno >= logging.WARNING
    if str(record.msg).startswith("Sessions not found"):
        record.msg = f"{record.msg}\nnext: ./nox -l lists the sessions"
    # No session has an environment of nox's, so that there is no uv is nothing to tell.
    return "uv binary" not in str(record.msg)


for _handler in logging.getLogger().handlers:
    _handler.addFilter(_worth_telling)

try:
    MATRIX = matrix.load()
except UsageError as _error:
    sys.exit(f"nox: {_error}")

FAMILIES = ("build", "test", "demo", "mutants", "bench", "deb", "rpm", "reproduce")

# nox names no neighbours of a session that does not exist; what stands after -- is the session's
for _word in itertools.takewhile(lambda word: word != "--", sys.argv[1:]):
    _asked = re.fullmatch(rf"({'|'.join(FAMILIES)})-([\w.]+)", _word)
    if _asked and _asked[2] not in MATRIX.names and _word != "bench-build":
        try:
            MATRIX.major(_asked[2])
        except UsageError as _error:
            sys.exit(f"nox: {_error}")


class Options(argparse.ArgumentParser):
    """What stands after `--`; a mistake there is an error like any other."""

    def __init__(self, session: nox.Session) -> None:
        super().__init__(prog=f"./nox -s {session.name} --", add_help=True, allow_abbrev=False)
        self.add_argument("--debug", action="store_true", help="show tracebacks")
        self.session = session

    def error(self, message: str) -> None:  # type: ignore[override]
        """Raise what is reported without a traceback."""
        raise UsageError(message, hint=f"./nox -s {self.session.name} -- --help")

    def read(self) -> argparse.Namespace:
        """All words must be known."""
        return self.parse_args(self.session.posargs)

    def read_some(self) -> tuple[argparse.Namespace, list[str]]:
        """Unknown words are somebody else's."""
        return self.parse_known_args(self.session.posargs)


def minutes(text: str) -> float:
    """A length of time as the options take it."""
    number = float(text) if re.fullmatch(r"\d+(\.\d+)?", text) else 0.0
    if number <= 0:
        what = f"{text!r} is no number of minutes above 0"
        raise argparse.ArgumentTypeError(what)
    return number


#: Settings that may be a path; one that is relative is so to where nox was called from.
PLACES = (
    "PTRACK_CACHE", "PTRACK_SOURCE", "PTRACK_PG_GIT", "PTRACK_SIGNING_KEY", "PTRACK_TEST_DIR",
    "PTRACK_VENV",
)  # fmt: skip


def from_where_nox_was_called(session: nox.Session) -> None:
    """Make relative paths in settings absolute: a session runs in the checkout."""

    def placed(name: str, word: str) -> str:
        path = Path(session.invoked_from) / word
        # the others may be the name of a provider, an address, or a fingerprint
        sure = name in {"PTRACK_CACHE", "PTRACK_TEST_DIR", "PTRACK_VENV"}
        return str(path) if not word.startswith(("/", "~")) and (sure or path.exists()) else word

    for name in PLACES:
        if value := os.environ.get(name):
            # repositories to be asked in turn
            words = value.split() if name == "PTRACK_PG_GIT" else [value]
            os.environ[name] = " ".join(placed(name, word) for word in words)


def stopped(session: nox.Session, message: str) -> NoReturn:
    """End a session with a message, whose last line is the next step and may be pasted.

    It is not nox's reason for the end: behind that nox writes a full stop, and how long it took.
    """
    logging.getLogger("nox").error("%s", message)
    session.error()


def nobody_reads() -> bool:
    """Whether who read our output has gone, as `head` has when it has enough."""
    output = select.poll()
    output.register(1, 0)
    return any(events & select.POLLERR for _, events in output.poll(0))


def reported(function: Callable[[nox.Session], None]) -> Callable[[nox.Session], None]:
    """Turn what went wrong into one message; --debug and PTRACK_DEBUG=1 show where."""

    @functools.wraps(function)
    def wrapper(session: nox.Session) -> None:
        terminate_politely()
        from_where_nox_was_called(session)
        debug = "--debug" in session.posargs or os.environ.get("PTRACK_DEBUG", "") not in {"", "0"}
        try:
            function(session)
        except PtrackError as error:
            if debug:
                raise
            stopped(session, str(error))
        except OSError as error:
            if isinstance(error, BrokenPipeError) and nobody_reads():
                os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is still to be flushed
                sys.exit(128 + signal.SIGPIPE)
            if debug:
                raise
            hint = "-- --debug shows where"
            if error.errno in {errno.ENOSPC, errno.EDQUOT}:
                hint = "free some space, or set PTRACK_CACHE to where there is more"
            stopped(session, f"{error}\nnext: {hint}")

    return wrapper


#: All sessions with their tags, in the order in which nox lists them.
REGISTERED: dict[str, tuple[str, ...]] = {}


def session(
    name: str, *tags: str
) -> Callable[[Callable[[nox.Session], None]], Callable[[nox.Session], None]]:
    """Register a session that runs in nox's own Python and may run beside others."""

    def register(function: Callable[[nox.Session], None]) -> Callable[[nox.Session], None]:
        guarded = reported(function)
        registered = nox.session(
            name=name, python=False, tags=list(tags), default=False, allow_parallel=True
        )
        registered(guarded)
        REGISTERED[name] = tags
        return guarded

    return register


def packages_options(session: nox.Session, features: Collection[str]) -> Options:
    """What all sessions take that make packages. features: what they can do without."""
    from ptrack_build.package.making import JIT

    options = Options(session)
    options.add_argument("--locked", action="store_true", help="what matrix.lock records")
    what = "leave it out of the server"
    options.add_argument(
        "--without", action="append", default=[], choices=sorted(features), help=what
    )
    what = f"the same as --without {JIT}"
    options.add_argument("--no-jit", dest="without", action="append_const", const=JIT, help=what)
    return options


def packages_wanted(session: nox.Session, features: Collection[str]) -> Wanted:
    """What is asked of a session whose packages are published, here or in a container."""
    from ptrack_build.package.making import Wanted

    options = packages_options(session, features)
    what = "in a container of it: debian:trixie, fedora:43"
    options.add_argument("--image", default="", help=what)
    given = options.read()
    return Wanted(locked=given.locked, without=tuple(sorted(set(given.without))), image=given.image)


def major_sessions(major: Major) -> None:
    """build-NN, test-NN, demo-NN, mutants-NN, bench-NN, deb-NN, rpm-NN, reproduce-NN"""
    label = "the development branch" if major.state == "devel" else f"PostgreSQL {major.name}"
    eol = " (end of life)" if major.state == "eol" else ""

    def build(session: nox.Session) -> None:
        from ptrack_build import compile as compiling
        from ptrack_build import suite

        options = Options(session)
        options.add_argument("--locked", action="store_true", help="what matrix.lock records")
        options.add_argument("--variant", choices=compiling.VARIANTS, default="release")
        given = options.read()
        made = suite.prefix(major, compiling.VARIANTS[given.variant], locked=given.locked)
        print(made.path)

    def test(session: nox.Session) -> None:
        from ptrack_build import compile as compiling
        from ptrack_build import report, suite

        options = Options(session)
        options.add_argument("--locked", action="store_true", help="what matrix.lock records")
        options.add_argument("--record", action="store_true", help="in matrix.lock, if green")
        options.add_argument(
            "--deep", nargs="?", const=120.0, type=minutes, metavar="MINUTES",
            help="the state machine alone, with new seeds, for 120 minutes or so many",
        )  # fmt: skip
        options.add_argument(
            "--variant", choices=compiling.VARIANTS, default=compiling.TEST.name,
            help="how the server is compiled: other block and segment sizes",
        )  # fmt: skip
        given, rest = options.read_some()
        outcome = suite.one(
            major, rest, locked=given.locked, record=given.record, deep=given.deep,
            variant=given.variant,
        )  # fmt: skip
        print(report.table([outcome]), flush=True)
        if outcome.status != "passed":
            what = f"{outcome.failures} of {outcome.tests} tests failed"
            raise suite.SuiteFailed(outcome.note or what, hint="pytest's output above says which")

    def demo(session: nox.Session) -> None:
        from ptrack_build import compile as compiling
        from ptrack_build import demo, suite

        options = Options(session)
        options.add_argument("--locked", action="store_true", help="what matrix.lock records")
        options.add_argument("--stay", action="store_true", help="leave the server running")
        given = options.read()
        made = suite.prefix(major, compiling.RELEASE, locked=given.locked)
        demo.show(made, stay=given.stay)

    def mutants(session: nox.Session) -> None:
        from ptrack_build import report, suite

        options = Options(session)
        options.add_argument("--locked", action="store_true", help="what matrix.lock records")
        given, rest = options.read_some()
        outcome = suite.mutants(major, rest, locked=given.locked)
        print(report.table([outcome]), flush=True)
        if outcome.status != "passed":
            what = f"{outcome.failures} of {outcome.tests} mutants got away"
            raise suite.SuiteFailed(outcome.note or what, hint="pytest's output above says which")

    def bench(session: nox.Session) -> None:
        from benchmarks.engine import run as engine

        options = Options(session)
        options.add_argument("--locked", action="store_true", help="what matrix.lock records")
        options.add_argument("--quick", action="store_true", help="fewer rounds, nothing written")
        options.add_argument("--no-write", action="store_true", help="print only")
        options.add_argument("--no-plots", action="store_true", help="leave matplotlib out")
        options.add_argument("--page", action="store_true", help="write page and plots anew only")
        options.add_argument("--public", type=Path, metavar="CHECKOUT", help="ptrack 2.4 beside it")
        options.add_argument("families", nargs="*", help=", ".join(engine.FAMILIES))
        given = options.read()
        if given.page:
            engine.publish(major, plots=not given.no_plots)
            return
        engine.measure(
            major, given.families, quick=given.quick, write=not given.no_write,
            plots=not given.no_plots, locked=given.locked, public_checkout=given.public,
        )  # fmt: skip

    def deb(session: nox.Session) -> None:
        from ptrack_build.package import deb, making

        making.one("deb", deb.build, major, packages_wanted(session, deb.OPTIONAL))

    def rpm(session: nox.Session) -> None:
        from ptrack_build.package import making, rpm

        making.one("rpm", rpm.build, major, packages_wanted(session, rpm.OPTIONAL))

    def reproduce(session: nox.Session) -> None:
        from ptrack_build.package import reproduce

        features = {kind: set(module.OPTIONAL) for kind, module in reproduce.KINDS.items()}
        options = packages_options(session, set().union(*features.values()))
        options.add_argument("--kind", choices=sorted(features), default="deb", help="of packages")
        given = options.read()
        without = sorted(set(given.without))
        if unknown := [name for name in without if name not in features[given.kind]]:
            options.error(f"a {given.kind} is never without {', '.join(unknown)}")
        reproduce.one(major, kind=given.kind, locked=given.locked, without=tuple(without))

    build.__doc__ = f"{label}{eol} with ptrack: fetch, patch, compile, install; prints where"
    test.__doc__ = f"{label}{eol}: the shared suite on a build with assertions and tiny segments"
    demo.__doc__ = f"{label}{eol}: what an incremental backup would read against a full one"
    mutants.__doc__ = f"{label}{eol}: each protection taken out in turn makes its test fail"
    bench.__doc__ = f"{label}{eol}: what tracking costs, beside the server without it"
    deb.__doc__ = f"{label}{eol}: Debian packages of server and extension, for this system"
    rpm.__doc__ = f"{label}{eol}: RPM packages of server and extension; on Debian, for trying"
    reproduce.__doc__ = f"{label}{eol}: packages (--kind deb, rpm) made twice: the same bytes"
    each = (
        ("build", build), ("test", test), ("demo", demo), ("mutants", mutants), ("bench", bench),
        ("deb", deb), ("rpm", rpm), ("reproduce", reproduce),
    )  # fmt: skip
    for family, function in each:
        BY_FAMILY[family].append((f"{family}-{major.name}", (family, f"pg{major.name}"), function))


BY_FAMILY: dict[str, list[tuple[str, tuple[str, ...], Callable[[nox.Session], None]]]] = {
    family: [] for family in FAMILIES
}
for _major in MATRIX.majors:
    major_sessions(_major)


@session("build", "all")
def build_all(session: nox.Session) -> None:
    """Build every major whose source can be had; says which could not, and why."""
    from ptrack_build import compile as compiling
    from ptrack_build import suite

    options = Options(session)
    options.add_argument("--locked", action="store_true", help="what matrix.lock records")
    options.add_argument("--variant", choices=compiling.VARIANTS, default="release")
    given = options.read()
    suite.built_all(MATRIX.majors, compiling.VARIANTS[given.variant], locked=given.locked)


@session("test", "all")
def test_all(session: nox.Session) -> None:
    """Test the build line and every major whose source can be had; says which could not, why."""
    from ptrack_build import suite

    options = Options(session)
    options.add_argument("--locked", action="store_true", help="what matrix.lock records")
    options.add_argument("--record", action="store_true", help="in matrix.lock what is green")
    given, rest = options.read_some()
    suite.every(MATRIX.majors, rest, locked=given.locked, record=given.record)


@session("deb", "all")
def deb_all(session: nox.Session) -> None:
    """Debian packages of every major whose source can be had; says which could not, and why."""
    from ptrack_build.package import deb, making

    making.every("deb", deb.build, MATRIX.majors, packages_wanted(session, deb.OPTIONAL))


@session("rpm", "all")
def rpm_all(session: nox.Session) -> None:
    """RPM packages of every major whose source can be had; says which could not, and why."""
    from ptrack_build.package import making, rpm

    making.every("rpm", rpm.build, MATRIX.majors, packages_wanted(session, rpm.OPTIONAL))


@session("verify-packages", "package")
def verify_packages(session: nox.Session) -> None:
    """Install what is in dist/ in clean containers, and use, upgrade, remove and purge it."""
    from ptrack_build.package import verify

    options = Options(session)
    options.add_argument(
        "--system", action="append", default=[], metavar="NAME",
        help="these systems only: debian-bookworm-amd64, or a word of it; may be repeated",
    )  # fmt: skip
    options.add_argument("majors", nargs="*", metavar="NN", help="these majors only")
    given = options.read()
    for name in given.majors:
        MATRIX.major(name)
    verify.verify(given.system, given.majors)


@session("repo", "package")
def repo(session: nox.Session) -> None:
    """An apt and a yum repository of what is in dist/, signed with PTRACK_SIGNING_KEY."""
    from ptrack_build.package import repo

    options = Options(session)
    options.add_argument("--unsigned", action="store_true", help="without signatures, for trying")
    repo.one(unsigned=options.read().unsigned)


@session("selftest", "check")
def selftest(session: nox.Session) -> None:
    """The build line's own tests, which need no server."""
    from ptrack_build import report, suite

    _, rest = Options(session).read_some()
    outcome = suite.own(rest)
    print(report.table([outcome]), flush=True)
    if outcome.status != "passed":
        what = f"{outcome.failures} of {outcome.tests} tests failed"
        raise suite.SuiteFailed(outcome.note or what)


@session("patches", "check")
def patches(session: nox.Session) -> None:
    """Render every major's core patch from the templates; -- --check only compares."""
    from ptrack_build import cores

    options = Options(session)
    options.add_argument("--check", action="store_true", help="change nothing; fail on differences")
    options.add_argument("--anew", action="store_true", help="render even where the diff agrees")
    options.add_argument("majors", nargs="*", metavar="NN", help="these majors only")
    given = options.read()
    majors = [MATRIX.major(name) for name in given.majors] or list(MATRIX.majors)
    if given.check:
        cores.check(majors)
    else:
        cores.write(majors, anew=given.anew, named=given.majors)


@session("drift", "check")
def drift(session: nox.Session) -> None:
    """How far the branch tips are from the core patch: clean, offset, re-rendered, conflict."""
    from ptrack_build import cores

    options = Options(session)
    options.add_argument("--json", metavar="FILE", help="write the table there as JSON, too")
    options.add_argument("majors", nargs="*", metavar="NN", help="these majors only")
    given = options.read()
    majors = [MATRIX.major(name) for name in given.majors] or list(MATRIX.majors)
    cores.drift(majors, json_file=given.json)


@session("lint", "check")
def lint(session: nox.Session) -> None:
    """Style and types of the Python, and whether the generated workflows are up to date."""
    from ptrack_build import ci, suite

    options = Options(session)
    options.add_argument("--fix", action="store_true", help="format, and fix what can be")
    given = options.read()
    python = str(suite.tools())
    fix = ["--fix"] if given.fix else []
    check = [] if given.fix else ["--check"]
    session.run(python, "-m", "ruff", "check", *fix, ".", external=True)
    session.run(python, "-m", "ruff", "format", *check, ".", external=True)
    session.run(python, "-m", "mypy", external=True)
    ci.check(MATRIX, REGISTERED, REPO)


@session("workflows", "check")
def workflows(session: nox.Session) -> None:
    """Write .github/workflows from the list of sessions; -- --check only compares."""
    from ptrack_build import ci

    options = Options(session)
    options.add_argument("--check", action="store_true", help="change nothing; fail on differences")
    if options.read().check:
        ci.check(MATRIX, REGISTERED, REPO)
    else:
        ci.write(MATRIX, REGISTERED, REPO)


@session("matrix", "check")
def print_matrix(session: nox.Session) -> None:
    """What there is to run, as JSON for CI."""
    from ptrack_build import ci

    Options(session).read()
    print(json.dumps(ci.matrix(MATRIX, REGISTERED), indent=1), flush=True)


@session("model", "check")
def model(session: nox.Session) -> None:
    """Search the models of the map's protocol with spin; each rule off has to lose a block."""
    from ptrack_build import model

    _, rest = Options(session).read_some()
    model.check(rest)


@session("bench-build", "bench")
def bench_build(session: nox.Session) -> None:
    """Time the build line: cold against bare make, unchanged, after edits; into benchmarks/."""
    from benchmarks import build_line

    options = Options(session)
    options.add_argument("--major", default="17", choices=MATRIX.names)
    options.add_argument("--no-write", action="store_true", help="print only")
    options.add_argument("--no-tests", action="store_true", help="leave test-NN out")
    given = options.read()
    major = MATRIX.major(given.major)
    build_line.measure(major, write=not given.no_write, tests=not given.no_tests)


# After those above: `nox -l` begins with what there is one of.
for _rows in BY_FAMILY.values():
    for _name, _tags, _function in _rows:
        session(_name, *_tags)(_function)


if __name__ == "__main__":
    nox.main()
