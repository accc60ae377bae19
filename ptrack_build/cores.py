"""The core patch of many majors at once: what the sessions `patches` and `drift` do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ptrack_build import cache, host, patch, report, source
from ptrack_build.errors import BadSource, PatchError, SourceError
from ptrack_build.patch import committed
from ptrack_build.progress import say, step
from ptrack_build.source.base import first_line

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from ptrack_build.matrix import Major
    from ptrack_build.source import SourceTree


@dataclass(frozen=True, kw_only=True)
class _Sources:
    """The majors' sources: those found, those nowhere to be had, and those that are not right."""

    found: dict[str, SourceTree]
    lacking: dict[str, SourceError]
    wrong: dict[str, BadSource]

    def tell(self, consequence: str) -> None:
        """Say what could not be had or is not right, and why; equal reasons once."""
        for reasons, word in ((self.lacking, consequence), (self.wrong, "its source is not right")):
            told = [(name, error.what) for name, error in reasons.items()]
            for names, reason in report.folded(told):
                first, *rest = reason.splitlines()
                say("\n".join([f"{names:<6} {word}: {first}", *(f"{'':<6} {x}" for x in rest)]))

    def refuse(self) -> None:
        """Raise BadSource where one is not right: what was proven without it is not enough."""
        if self.wrong:
            which = ", ".join(self.wrong)
            what = f"the source of {which} is not what it has to be, see above"
            raise BadSource(what, hint=next(iter(self.wrong.values())).hint)


def _require(
    lacking: dict[str, SourceError], majors: Sequence[Major], named: Sequence[str]
) -> None:
    """Raise SourceError for a major that was asked for by name, or for want of any."""
    absent = [name for name in named if name in lacking]
    if absent or len(lacking) == len(majors):
        which = ", ".join(absent) or "any major"
        what = f"no source of {which} could be had, so nothing was rendered"
        raise SourceError(what, hint=source.ways_out())


def _reachable(
    majors: Sequence[Major], *, spec: str | None = None, refresh: bool = False
) -> _Sources:
    host.ensure(["git"])
    sources = _Sources(found={}, lacking={}, wrong={})
    for major in majors:
        try:
            sources.found[major.name] = source.fetch(major, spec=spec, refresh=refresh)
        except BadSource as error:
            sources.wrong[major.name] = error
        except SourceError as error:
            sources.lacking[major.name] = error
    return sources


def check(majors: Sequence[Major], *, minors: bool = False) -> None:
    """Compare the committed diffs with the templates; with minors, try them on all releases.

    Raises PatchError with what differs or does not apply, and BadSource where a source is not
    right.
    """
    sources = _reachable(majors)
    mirror = cache.root() / "postgresql.git"
    results = [patch.check(each, sources.found.get(each.name), mirror=mirror) for each in majors]
    say(patch.check_table(results))
    sources.tell("its diff was compared with the templates only")
    refused = _tried(_with_diff(majors), sources.found) if minors else []
    differing = [each for each, row in zip(majors, results, strict=True) if row.problems]
    if differing:
        which = ", ".join(each.name for each in differing)
        what = f"the committed diff of {which} does not agree, see above"
        raise PatchError(what, hint=_mending(differing, sources.found))
    sources.refuse()
    if refused:
        what = f"the committed diff does not apply to {', '.join(refused)}, see above"
        hint = (
            "let the edits in templates/core name lines that all minors have, then "
            f"./{committed.HINT} -- --anew"
        )
        raise PatchError(what, hint=hint)


def _with_diff(majors: Sequence[Major]) -> list[Major]:
    """Those that have a diff; the others are problems already."""
    return [each for each in majors if (patch.PATCHES / committed.file_name(each.branch)).is_file()]


def _tried(majors: Sequence[Major], found: dict[str, SourceTree]) -> list[str]:
    """Try the committed diffs on each version that has a tag, and on the source at hand.

    Tells in one line a major, and why below it; returns the releases that one does not apply to.
    That what was no release yet may lack what the branch has is no failure.
    """
    trees, notes = {}, {}
    for major in majors:
        trees[major.name], notes[major.name] = _versions(major, found.get(major.name))
    with step(f"applying the diffs to {sum(map(len, trees.values()))} versions"):
        rows = {name: [patch.drift(tree) for tree in each] for name, each in trees.items()}
    refused = []
    for name, tried in rows.items():
        failed = [row for row in tried if row.status in {"rendered", "conflict"}]
        releases = [row for row in failed if _released(row)]
        counts = []
        for kind, is_release in (("releases", True), ("betas and the like", False)):
            if of_kind := [row for row in tried if _released(row) is is_release]:
                misfits = ", ".join(row.version for row in of_kind if row in failed)
                fits = sum(row not in failed for row in of_kind)
                but = f", not to {misfits}" if misfits else ""
                counts.append(f"{fits} of {len(of_kind)} {kind}{but}")
        lines = [f"{name:<6} applies to {'; '.join(counts) or 'nothing'} ({notes[name]})"]
        lines += [f"{'':<6} {row.version}: {row.notes[0]}" for row in releases]
        say("\n".join(lines))
        refused += [row.version for row in releases]
    return refused


def _versions(major: Major, at_hand: SourceTree | None) -> tuple[list[SourceTree], str]:
    """What there is to try a diff on, and where it is from."""
    try:
        trees = source.releases(major, patch.touched(major))
        where = trees[0].origin
    except SourceError as error:
        trees, where = [], first_line(error.what)
    if at_hand is not None and at_hand.version not in {tree.version for tree in trees}:
        trees.append(at_hand)
        where = f"the source at hand; {where}"
    return trees, where


def _released(row: patch.Drift) -> bool:
    return row.version.partition(".")[2].isdecimal()


def _mending(majors: Sequence[Major], found: dict[str, SourceTree]) -> str | None:
    """The next step where diffs do not agree: rendering, or what keeps that from its end."""
    try:
        for major in majors:
            committed.require(major, patch.PATCHES)
            if major.name in found:
                patch.render(found[major.name])
    except PatchError as error:
        return error.hint
    return f"./{committed.HINT}, then look at git diff patches"


def write(majors: Sequence[Major], *, anew: bool, named: Sequence[str] = ()) -> None:
    """Render what does not agree, for every major whose source can be had.

    Raises PatchError for a template that does not fit, BadSource where a source is not right, and
    SourceError where that of one of the named, or of all, could not be had.
    """
    sources = _reachable(majors)
    problems: dict[str, PatchError] = {}
    for name, tree in sources.found.items():
        try:
            diff = patch.write(tree, anew=anew)
        except PatchError as error:
            problems[name] = error
            say(f"{name:<6} {error}")
        else:
            say(f"{name:<6} {diff.added} lines added, rendered against {diff.against}")
    sources.tell("not rendered")
    if problems:
        what = f"the templates do not fit {', '.join(problems)}, see above"
        raise PatchError(what, hint=next(iter(problems.values())).hint)
    sources.refuse()
    _require(sources.lacking, majors, named)


def drift(majors: Sequence[Major], *, json_file: Path | None) -> None:
    """Look at the branch tips as they are now. Raises PatchError when a tip conflicts."""
    sources = _reachable(majors, spec="git", refresh=True)
    rows = [patch.drift(tree) for tree in sources.found.values()]
    if rows:
        say(patch.drift_table(rows))
    sources.tell("not looked at")
    if json_file is None:
        say(patch.drift_json(rows))
    elif rows:
        cache.write(json_file, patch.drift_json(rows) + "\n")
    conflicts = [row.major for row in rows if row.status == "conflict"]
    if conflicts:
        what = f"the templates do not fit the tip of {', '.join(conflicts)}"
        raise PatchError(what, hint="adapt templates/core, then ./nox -s patches")
    sources.refuse()
    if not rows:
        what = "no branch tip could be had"
        raise SourceError(what, hint="set PTRACK_PG_GIT to a PostgreSQL repository")
