"""What became of each session: read from pytest's own records, shown as a table, kept as JSON."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal

from ptrack_build import cache
from ptrack_build.errors import BadSource, HostError, PtrackError, SourceError, UsageError
from ptrack_build.progress import duration, say

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

#: incomplete: what was tried passed, and something that should have been tried was not.
Status = Literal["passed", "incomplete", "failed", "unreachable", "not run"]
NOT_RUN: tuple[Status, ...] = ("unreachable", "not run")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One session's end.

    build_seconds: to the finished prefix; test_seconds: in pytest; note: why it is not green.
    """

    session: str
    status: Status
    version: str = ""
    tests: int = 0
    failures: int = 0
    skipped: int = 0
    build_seconds: float = 0.0
    test_seconds: float = 0.0
    note: str = ""


def stopped(name: str, error: PtrackError | OSError) -> Outcome:
    """What kept a major from its end, said and as an outcome.

    A source that is nowhere to be had is no failure, and its reasons are for the end, where those
    of all majors stand together; one that is not right is.
    """
    if isinstance(error, SourceError) and not isinstance(error, BadSource):
        say(f"{name}: {_plain(error.what).splitlines()[0]}")
        return Outcome(session=name, status="unreachable", note=error.what)
    say(str(error))
    return Outcome(session=name, status="failed", note=str(error))


def through(sessions: Sequence[tuple[str, Callable[[], Outcome]]], ended: list[Outcome]) -> None:
    """Run the sessions in turn and add each one's end to those that have ended.

    What keeps one of them from its end is an outcome. But a mistake of the caller's, or what the
    machine lacks, is not about one: it is raised at once, or, where something has ended by then,
    leaves the rest not run.
    """
    for number, (name, session) in enumerate(sessions):
        try:
            ended.append(session())
        except (UsageError, HostError) as error:
            if not ended:
                raise
            ended.append(stopped(name, error))
            note = f"{name} could not be, for a reason that holds for all"
            ended += [
                Outcome(session=rest, status="not run", note=note)
                for rest, _ in sessions[number + 1 :]
            ]
            return
        except (PtrackError, OSError) as error:
            ended.append(stopped(name, error))


def folded(reasons: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Names with a reason each, equal reasons once; a reason does not begin with its major.

    The names of a family are shortened: "test-12, 13".
    """
    groups: dict[str, list[str]] = {}
    for name, reason in reasons:
        groups.setdefault(_plain(reason), []).append(name)
    rows = []
    for reason, names in groups.items():
        family = f"{names[0].partition('-')[0]}-"
        short = [name.removeprefix(family) for name in names[1:]]
        rows.append((", ".join([names[0], *short]), reason))
    return rows


def _plain(reason: str) -> str:
    return re.sub(r"^PostgreSQL \w+( \([^)]*\))?: ", "", reason)


def close(
    outcomes: Sequence[Outcome],
    path: Path,
    failure: type[PtrackError],
    nothing: PtrackError | None,
    left_out: str = "",
) -> None:
    """Keep the outcomes in path and show them as a table, and what was left out on purpose.

    Raises failure with the sessions that failed, and nothing where that is given. One of which
    tests failed is worth to be looked at by itself; of another the table has all there is to say.
    """
    keep(outcomes, path)
    say("\n" + table(outcomes))
    if left_out:
        say(left_out)
    failed = [each for each in outcomes if each.status == "failed"]
    if failed:
        what = f"failed: {', '.join(each.session for each in failed)}"
        telling = [each.session for each in failed if each.tests and len(outcomes) > 1]
        raise failure(what, hint=f"./nox -s {telling[-1]} shows it alone" if telling else None)
    if nothing is not None:
        raise nothing
    if any(each.status == "unreachable" for each in outcomes):
        say(f"for those that are unreachable: {_ways_out()}")


def without_source(done: str) -> SourceError:
    """No major's source could be had, so nothing was done."""
    what = f"no major's source could be had, so nothing was {done}"
    return SourceError(what, hint=_ways_out())


def _ways_out() -> str:
    from ptrack_build import source  # which reports nothing here

    return source.ways_out()


def counted(junit: Path) -> tuple[int, int, int]:
    """Tests, failures (errors too) and skips that a junit file records; zeros where it is not."""
    try:
        root = ET.parse(junit).getroot()
    except (OSError, ET.ParseError):
        return 0, 0, 0
    suites = [root] if root.tag == "testsuite" else root.findall("testsuite")
    numbers = [
        (
            int(suite.get("tests", 0)),
            int(suite.get("failures", 0)) + int(suite.get("errors", 0)),
            int(suite.get("skipped", 0)),
        )
        for suite in suites
    ]
    return (
        sum(n[0] for n in numbers),
        sum(n[1] for n in numbers),
        sum(n[2] for n in numbers),
    )


def table(outcomes: Sequence[Outcome]) -> str:
    """The outcomes as lines: those that were not run come last, with their reasons, each once."""
    lines = []
    for each in outcomes:
        if each.status in NOT_RUN:
            continue
        passed = each.tests - each.failures - each.skipped
        counts = f"{passed} passed, {each.failures} failed, {each.skipped} skipped"
        times = f"built in {duration(each.build_seconds)}, " if each.build_seconds else ""
        times += f"tested in {duration(each.test_seconds)}"
        head = f"{each.session:<12} {each.status:<11} {each.version:<9}"
        lines.append(f"{head} {counts}; {times}" if each.tests else head.rstrip())
        lines += [f"{'':<24} {line}" for line in each.note.splitlines()]
    for status in NOT_RUN:
        rows = folded((each.session, each.note) for each in outcomes if each.status == status)
        for names, reason in rows:
            first, *rest = reason.splitlines() or [""]
            many = ", " in names
            lines.append(f"{names}: {status}" if many else f"{names:<12} {status:<11} {first}")
            lines += [f"{'':<24} {line}" for line in ([first, *rest] if many else rest)]
    return "\n".join(lines)


def keep(outcomes: Sequence[Outcome], path: Path) -> None:
    """Write the outcomes as JSON, a list of objects."""
    cache.write(path, json.dumps([asdict(each) for each in outcomes], indent=1) + "\n")
