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

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import nox

sys.path.insert(0, str(Path(__file__).resolve().parent))  # nox as a program has its own place there

from ptrack_build import REPO, matrix
from ptrack_build.errors import UsageError
from ptrack_build.sessions import (
    REGISTERED,
    Options,
    check_majors,
    day,
    end_together,
    filter_log,
    leave_quietly,
    minutes,
    packages_options,
    packages_wanted,
    session,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from ptrack_build.matrix import Major

nox.needs_version = ">=2026.8.10"
nox.options.default_venv_backend = "none"
nox.options.error_on_external_run = True
nox.options.stop_on_first_error = False

FAMILIES = ("build", "test", "demo", "mutants", "bench", "deb", "rpm", "reproduce")

filter_log()
leave_quietly()
end_together()
try:
    MATRIX = matrix.load()
    check_majors(sys.argv[1:], FAMILIES, MATRIX)
except UsageError as _error:
    sys.exit(f"nox: {_error}")


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
        demo.check_places()
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
        options.add_argument(
            "--public", type=options.path, metavar="CHECKOUT", help="ptrack 2.4 beside it"
        )
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
    options.add_argument("--strict", action="store_true", help="fail where a step was skipped")
    what = "end well where dist/ has no packages of what is asked for"
    options.add_argument("--may-skip", action="store_true", help=what)
    options.add_argument(
        "--before", type=options.path, metavar="DIR",
        help="upgrade from packages of an earlier release, which are there",
    )  # fmt: skip
    options.add_argument("majors", nargs="*", metavar="NN", help="these majors only")
    given = options.read()
    for name in given.majors:
        MATRIX.major(name)
    if given.before is not None and not given.before.is_dir():
        options.error(f"--before {given.before}: there is no such directory")
    verify.verify(
        given.system, given.majors, strict=given.strict, may_skip=given.may_skip,
        before=given.before,
    )  # fmt: skip


@session("repo", "package")
def repo(session: nox.Session) -> None:
    """An apt and a yum repository of what is in dist/, signed with PTRACK_SIGNING_KEY."""
    from ptrack_build.package import repo

    options = Options(session)
    options.add_argument("--unsigned", action="store_true", help="without signatures, for trying")
    options.add_argument(
        "--valid-until", type=day, metavar="YYYY-MM-DD", help="the day apt refuses it from"
    )
    given = options.read()
    repo.one(unsigned=given.unsigned, until=given.valid_until)


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
    options.add_argument(
        "--minors", action="store_true", help="with --check: try each release that git has a tag of"
    )  # fmt: skip
    options.add_argument("--anew", action="store_true", help="render even where the diff agrees")
    options.add_argument("majors", nargs="*", metavar="NN", help="these majors only")
    given = options.read()
    majors = [MATRIX.major(name) for name in given.majors] or list(MATRIX.majors)
    if given.minors and not given.check:
        options.error("--minors changes nothing: it goes with --check")
    if given.check:
        cores.check(majors, minors=given.minors)
    else:
        cores.write(majors, anew=given.anew, named=given.majors)


@session("drift", "check")
def drift(session: nox.Session) -> None:
    """How far the branch tips are from the core patch: clean, offset, re-rendered, conflict."""
    from ptrack_build import cores

    options = Options(session)
    options.add_argument("--json", type=options.path, metavar="FILE", help="write the table there")
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
