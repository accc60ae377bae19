"""What became of each session: read from pytest's own records, shown as a table, kept as JSON."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal

from ptrack_build import cache
from ptrack_build.errors import BadSource, SourceError
from ptrack_build.progress import duration, say

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from ptrack_build.errors import PtrackError

Status = Literal["passed", "failed", "unreachable", "not run"]


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

    A source that is nowhere to be had is no failure; one that is not right is.
    """
    say(str(error))
    if isinstance(error, SourceError) and not isinstance(error, BadSource):
        return Outcome(session=name, status="unreachable", note=error.what)
    return Outcome(session=name, status="failed", note=str(error))


def close(
    outcomes: Sequence[Outcome], path: Path, failure: type[PtrackError], nothing: PtrackError | None
) -> None:
    """Keep the outcomes in path and show them as a table.

    Raises failure with the sessions that failed, and nothing where that is given.
    """
    keep(outcomes, path)
    say("\n" + table(outcomes))
    failed = [each.session for each in outcomes if each.status == "failed"]
    if failed:
        what = f"failed: {', '.join(failed)}"
        raise failure(what, hint=f"./nox -s {failed[-1]} shows it alone")
    if nothing is not None:
        raise nothing


def without_source(done: str) -> SourceError:
    """No major's source could be had, so nothing was done."""
    what = f"no major's source could be had, so nothing was {done}"
    return SourceError(what, hint="set PTRACK_PG_GIT to a PostgreSQL repository")


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
    """The outcomes as lines: those that were not run come last, each with its reason."""
    lines = []
    for each in sorted(outcomes, key=lambda o: o.status in {"unreachable", "not run"}):
        if each.status in {"unreachable", "not run"}:
            first, *rest = each.note.splitlines() or [""]
            lines.append(f"{each.session:<12} {each.status:<11} {first}")
            lines += [f"{'':<12} {'':<11} {line}" for line in rest]
            continue
        passed = each.tests - each.failures - each.skipped
        counts = f"{passed} passed, {each.failures} failed, {each.skipped} skipped"
        times = f"built in {duration(each.build_seconds)}, " if each.build_seconds else ""
        times += f"tested in {duration(each.test_seconds)}"
        head = f"{each.session:<12} {each.status:<11} {each.version:<9}"
        lines.append(f"{head} {counts}; {times}" if each.tests else head.rstrip())
        lines += [f"{'':<24} {line}" for line in each.note.splitlines()]
    return "\n".join(lines)


def keep(outcomes: Sequence[Outcome], path: Path) -> None:
    """Write the outcomes as JSON, a list of objects."""
    cache.write(path, json.dumps([asdict(each) for each in outcomes], indent=1) + "\n")
