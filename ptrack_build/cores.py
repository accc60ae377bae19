"""The core patch of many majors at once: what the sessions `patches` and `drift` do."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ptrack_build import cache, host, patch, source
from ptrack_build.errors import PatchError, SourceError
from ptrack_build.progress import say

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ptrack_build.matrix import Major
    from ptrack_build.source import SourceTree


def _require(lacking: dict[str, str], majors: Sequence[Major], named: Sequence[str]) -> None:
    """Raise SourceError for a major that was asked for by name, or for want of any."""
    absent = [name for name in named if name in lacking]
    if absent or len(lacking) == len(majors):
        which = ", ".join(absent) or "any major"
        what = f"no source of {which} could be had, so nothing was rendered"
        raise SourceError(what, hint="set PTRACK_PG_GIT to a PostgreSQL repository")


def _reachable(
    majors: Sequence[Major], *, spec: str | None = None, refresh: bool = False
) -> tuple[dict[str, SourceTree], dict[str, str]]:
    """The majors' sources, and of those that cannot be had the reason in one line."""
    host.ensure(["git"])
    found, lacking = {}, {}
    for major in majors:
        try:
            found[major.name] = source.fetch(major, spec=spec, refresh=refresh)
        except SourceError as error:
            lacking[major.name] = " ".join(error.what.split())
    return found, lacking


def check(majors: Sequence[Major]) -> None:
    """Compare the committed diffs with the templates. Raises PatchError with what differs."""
    found, lacking = _reachable(majors)
    mirror = cache.root() / "postgresql.git"
    results = [patch.check(major, found.get(major.name), mirror=mirror) for major in majors]
    say(patch.check_table(results))
    _unproven(lacking, "its diff was compared with the templates only")
    patch.require(results)


def write(majors: Sequence[Major], *, anew: bool, named: Sequence[str] = ()) -> None:
    """Render what does not agree, for every major whose source can be had.

    Raises PatchError for a template that does not fit, and SourceError where the source of one of
    the named, or of all, could not be had.
    """
    found, lacking = _reachable(majors)
    problems = []
    for name, tree in found.items():
        try:
            diff = patch.write(tree, anew=anew)
        except PatchError as error:
            problems.append(error)
            say(f"{name:<6} {error}")
        else:
            say(f"{name:<6} {diff.added} lines added, rendered against {diff.against}")
    _unproven(lacking, "not rendered")
    if problems:
        what = "\n".join(error.what for error in problems)
        raise PatchError(what, hint=problems[0].hint)
    _require(lacking, majors, named)


def drift(majors: Sequence[Major], *, json_file: str | None) -> None:
    """Look at the branch tips as they are now. Raises PatchError when a tip conflicts."""
    found, lacking = _reachable(majors, spec="git", refresh=True)
    rows = [patch.drift(tree) for tree in found.values()]
    if rows:
        say(patch.drift_table(rows))
    _unproven(lacking, "not looked at")
    if json_file is not None:
        cache.write(Path(json_file), patch.drift_json(rows) + "\n")
    else:
        say(patch.drift_json(rows))
    conflicts = [row.major for row in rows if row.status == "conflict"]
    if conflicts:
        what = f"the templates do not fit the tip of {', '.join(conflicts)}"
        raise PatchError(what, hint="adapt templates/core, then ./nox -s patches")
    if not rows:
        what = "no branch tip could be had"
        raise SourceError(what, hint="set PTRACK_PG_GIT to a PostgreSQL repository")


def _unproven(lacking: dict[str, str], consequence: str) -> None:
    for name, reason in lacking.items():
        say(f"{name:<6} {consequence}: {reason}")
