"""The core patch: rendered from templates/core, committed in patches/, applied for every build.

    SourceTree ── render ──▶ Diff ── committed.write ──▶ patches/<branch>-ptrack-core.diff
    SourceTree ── apply ───▶ PatchedTree      the committed diff, or rendered anew if that fails
    SourceTree ── drift ───▶ Drift            what apply would do, without doing it
    Major      ── check ───▶ Checked          whether committed and templates agree

The templates have the last word. A committed diff is used where it says the same: applied to a
source it gives, file by file, what the templates give there. Agreement is judged like this, since
each minor of a branch renders with other line numbers, context and blob ids:

1. The diff adds, per file and in order, exactly the lines that the templates insert, and removes
   none; its head holds the digest of the templates' edits and of its own body. Needs no source.
2. Where the blobs that it was rendered against are at hand, rendering onto those gives the very
   same body.
3. Where a source is reachable, `git apply -3` takes the diff and gives the same files as rendering.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from ptrack_build import REPO, cache
from ptrack_build.errors import PatchError
from ptrack_build.patch import committed, edits
from ptrack_build.patch.committed import HINT, Diff
from ptrack_build.patch.objects import REGULAR, Applied, File, Objects
from ptrack_build.progress import say

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from contextlib import AbstractContextManager

    from ptrack_build.matrix import Major
    from ptrack_build.patch.committed import FileDiff, Hunk
    from ptrack_build.patch.edits import Plan
    from ptrack_build.source import SourceTree

TEMPLATES: Final = REPO / "templates" / "core"
PATCHES: Final = REPO / "patches"
MOST_LINES: Final = 80
LAYOUT: Final = "tree 2"  # of an exported tree; part of its key
WHOLE: Final = ".ptrack-whole"  # written last, so that what somebody's rm has left is no tree

Fitted = Literal["applied", "offset", "rendered"]
How = Literal[Fitted, "unpatched"]
Status = Literal["clean", "offset", "rendered", "conflict"]


@dataclass(frozen=True, kw_only=True)
class PatchedTree:
    """PostgreSQL with the core patch, on disk.

    path: its files, all of one time, read-only by convention (build outside of it); key: equal for
    equal contents; patch_digest: SHA-256 of the patch as it fits this source; how: "applied" as
    committed, "offset" where the source has moved, "rendered" where the committed diff was of no
    use, "unpatched" of a server that is measured beside, without the patch; notes: what a reader of
    the build's output should know.
    """

    source: SourceTree
    path: Path
    key: str
    patch_digest: str
    how: How
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Checked:
    """What check() found about one major.

    proven: of "templates", "blobs" and "source" what could be looked at (see the module's text).
    """

    major: str
    name: str
    proven: tuple[str, ...]
    against: str
    added: int
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Drift:
    """How far a source has moved from the committed diff. files: those touched that changed."""

    major: str
    branch: str
    version: str
    commit: str
    against: str
    status: Status
    files: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


# ---- rendering


def render(source: SourceTree, *, templates: Path = TEMPLATES) -> Diff:
    """Render the templates onto a source.

    Raises PatchError where an edit does not fit or the patch becomes larger than MOST_LINES.
    """
    plans = edits.load(templates, source.major)
    with Objects(source.mirror) as objects:
        old, new = _rendered(objects, source, plans)
        diff = Diff(
            branch=source.major.branch,
            against=f"PostgreSQL {source.version}",
            tree=source.digest,
            edits=edits.digest(plans),
            body=objects.diff(old, new),
        )
    if diff.added > MOST_LINES:
        what = f"the patch of {source.major.name} would add {diff.added} lines"
        raise PatchError(what, hint=f"keep it within {MOST_LINES}: logic belongs to the extension")
    return diff


def write(
    source: SourceTree,
    *,
    templates: Path = TEMPLATES,
    patches: Path = PATCHES,
    anew: bool = False,
) -> Diff:
    """Render onto a source and write the diff to its file, unless that one is as good.

    A committed diff that agrees with the templates and with this source is left alone, so that
    another minor of the same branch changes nothing; `anew` renders it all the same.
    """
    checked = check(source.major, source, templates=templates, patches=patches)
    if not checked.problems and not anew:
        return committed.read(source.major, patches)
    diff = render(source, templates=templates)
    committed.write(diff, patches)
    return diff


def _rendered(
    objects: Objects, source: SourceTree, plans: Sequence[Plan]
) -> tuple[dict[str, File], dict[str, File]]:
    """The files that the plans touch, before and after."""
    old = objects.files(source.commit, [plan.path for plan in plans])
    return old, _performed(objects, old, plans, f"PostgreSQL {source.version}")


def _performed(
    objects: Objects, old: Mapping[str, File], plans: Sequence[Plan], where: str
) -> dict[str, File]:
    """What the plans make of the files. Raises PatchError with all edits that do not fit."""
    texts = objects.texts(file.blob for file in old.values())
    new: dict[str, File] = {}
    wrong: list[PatchError] = []
    for plan in plans:
        before = old.get(plan.path)
        text = texts[before.blob] if before else None
        try:
            after = edits.perform(plan, text, where=where)
        except PatchError as error:
            wrong.append(error)
            continue
        new[plan.path] = File(mode=before.mode if before else REGULAR, blob=objects.add(after))
    if wrong:
        raise PatchError("\n".join(error.what for error in wrong), hint=wrong[0].hint)
    return new


# ---- fitting the committed diff to a source


@dataclass(frozen=True, kw_only=True)
class _Fit:
    """What the committed diff and the templates make of a source.

    new: the files to build; error: why there are none.
    """

    how: Fitted
    old: dict[str, File]
    new: dict[str, File]
    changed: tuple[str, ...]
    notes: tuple[str, ...]
    against: str
    error: PatchError | None = None


def _fit(objects: Objects, source: SourceTree, templates: Path, patches: Path) -> _Fit:
    plans = edits.load(templates, source.major)
    shown = f"patches/{committed.file_name(source.major.branch)}"
    committed.require(source.major, patches)
    old = objects.files(source.commit, [plan.path for plan in plans])
    rendered: dict[str, File] = {}
    error: PatchError | None = None
    try:
        rendered = _performed(objects, old, plans, f"PostgreSQL {source.version}")
    except PatchError as caught:
        error = caught

    def again(reason: str, against: str = "", changed: tuple[str, ...] = ()) -> _Fit:
        if error is None:
            outcome = f"rendered anew from templates/core; commit what `./{HINT}` writes"
        else:
            outcome = "templates/core do not fit that source"
        return _Fit(
            how="rendered",
            old=old,
            new=rendered,
            changed=changed,
            notes=(f"{reason}; {outcome}",),
            against=against,
            error=error,
        )

    try:
        diff = committed.read(source.major, patches)
    except PatchError as caught:
        return again(caught.what)
    if diff.edits != edits.digest(plans):
        what = "has been edited" if not diff.edits else "was rendered from other templates"
        return again(f"{shown} {what}", diff.against)
    changed = tuple(file.path for file in diff.files if _blob(old.get(file.path)) != file.old)
    applied = objects.apply(old, diff.body, merge=True)
    if applied.files is None:
        misfits = _misfits(objects, diff, old, applied)
        reasons = "; ".join(misfit.split("\n")[0].removesuffix(":") for misfit in misfits)
        reason = (
            f"{shown} ({diff.against}) does not apply to PostgreSQL {source.version}: {reasons}"
        )
        return again(reason, diff.against, changed)
    if error is not None:
        # git may find its place for a hunk where the code around it has become another
        reason = f"{shown} ({diff.against}) still applies to PostgreSQL {source.version}"
        return again(reason, diff.against, changed)
    if applied.files != {**old, **rendered}:
        reason = f"{shown} ({diff.against}) puts lines elsewhere in PostgreSQL {source.version}"
        return again(reason, diff.against, changed)
    return _Fit(
        how="offset" if changed else "applied",
        old=old,
        new=rendered,
        changed=changed,
        notes=(),
        against=diff.against,
    )


def _blob(file: File | None) -> str:
    return file.blob if file else ""


def apply(
    source: SourceTree, *, templates: Path = TEMPLATES, patches: Path = PATCHES
) -> PatchedTree:
    """The source with the core patch, exported below the cache.

    What the committed diff is of no use for is rendered anew, and said. Raises PatchError where the
    templates do not fit, with template, edit and the closest places, whether the diff applies or
    not, and where there is no committed diff at all.
    """
    memo = _memo(source, templates, patches)
    with _keeping():
        tree = _remembered(memo, source)
    if tree is None:
        with Objects(source.mirror) as objects:
            fit = _fit(objects, source, templates, patches)
            if fit.error is not None:
                _announce(source, fit.notes)
                raise fit.error
            tree = _patched(objects, source, fit)
            about = {
                "key": tree.key, "patch": tree.patch_digest, "how": tree.how, "notes": tree.notes,
            }  # fmt: skip
            with _keeping():
                cache.write(memo, json.dumps(about))
                _prune()
            _export(objects, tree, fit)
    _announce(source, tree.notes)
    return tree


def _announce(source: SourceTree, notes: Sequence[str]) -> None:
    for note in notes:
        say(f"DRIFT, PostgreSQL {source.major.name}: {note}")


def _patched(objects: Objects, source: SourceTree, fit: _Fit) -> PatchedTree:
    """The tree of a fit, whether it is there or not."""
    diff = objects.diff(fit.old, fit.new)
    patch_digest = cache.digest(diff.encode(errors="surrogateescape"))
    key = tree_key(source.digest, patch_digest)
    return PatchedTree(
        source=source,
        path=cache.directory("tree") / key,
        key=key,
        patch_digest=patch_digest,
        how=fit.how,
        notes=fit.notes,
    )


def tree_key(digest: str, patch_digest: str) -> str:
    """That of a source with a patch: its name below <cache>/tree."""
    return cache.digest(LAYOUT, digest, patch_digest)[:20]


def _export(objects: Objects, tree: PatchedTree, fit: _Fit) -> None:
    """Write the tree of a fit out unless it is there."""
    if _whole(tree.path):
        return
    with cache.lock(f"tree-{tree.key}", f"patches PostgreSQL {tree.source.version}"):
        if not _whole(tree.path):
            if tree.path.is_dir():
                cache.discard(tree.path)
            with cache.building(tree.path, WHOLE) as scratch:
                objects.export(tree.source.commit, fit.new, scratch)
                _seal(scratch)


def _seal(path: Path) -> None:
    """Write down how many files there are, this one included; its time is the tree's."""
    written = path.stat().st_mtime
    mark = path / WHOLE
    mark.touch()
    mark.write_text(f"{_count(path)}\n", encoding="utf-8")
    for each in (mark, path):
        os.utime(each, (written, written))


def _whole(path: Path) -> bool:
    """Whether a tree has all that it had when it was written out."""
    try:
        return int((path / WHOLE).read_text(encoding="utf-8")) == _count(path)
    except (OSError, ValueError):
        return False


def _count(path: Path) -> int:
    return sum(len(files) for _folder, _folders, files in os.walk(path))


def _keeping() -> AbstractContextManager[None]:
    """Hold the lock of what says which trees are wanted: one is asked for, or old ones go."""
    return cache.lock("trees", "removes old trees")


def _prune() -> None:
    """Drop what nobody asked for for two weeks: what was remembered, and trees that nothing names.

    The caller holds the lock.
    """
    limit = time.time() - cache.KEEP_SECONDS
    wanted = set()
    for memo in cache.directory("memo").glob("patch-*.json"):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            if memo.stat().st_mtime < limit:
                memo.unlink()
            else:
                wanted.add(json.loads(memo.read_text(encoding="utf-8"))["key"])
    for path in cache.directory("tree").iterdir():
        if path.name not in wanted and not path.name.startswith("."):
            with contextlib.suppress(OSError):
                cache.discard(path)


def _memo(source: SourceTree, templates: Path, patches: Path) -> Path:
    """Where the outcome of apply() for just these inputs is remembered."""
    diff = patches / committed.file_name(source.major.branch)
    inputs = [
        LAYOUT,
        source.commit,
        str(source.major.number),
        templates,
        diff if diff.is_file() else "none",
        *sorted(Path(__file__).parent.glob("*.py")),
    ]
    return cache.directory("memo") / f"patch-{cache.digest(*inputs)[:20]}.json"


def _remembered(memo: Path, source: SourceTree) -> PatchedTree | None:
    """What an earlier run made of the same inputs, where it is still there; asks for it anew."""
    try:
        about = json.loads(memo.read_text(encoding="utf-8"))
        path = cache.root() / "tree" / about["key"]
        os.utime(memo)
        if not _whole(path):
            return None
        return PatchedTree(
            source=source,
            path=path,
            key=about["key"],
            patch_digest=about["patch"],
            how=about["how"],
            notes=tuple(about["notes"]),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


# ---- drift


def touched(major: Major, *, templates: Path = TEMPLATES) -> tuple[str, ...]:
    """The files that the patch of a major edits or adds."""
    return tuple(plan.path for plan in edits.load(templates, major))


def drift(source: SourceTree, *, templates: Path = TEMPLATES, patches: Path = PATCHES) -> Drift:
    """How the committed diff fits a source; nothing is written."""
    with Objects(source.mirror) as objects:
        fit = _fit(objects, source, templates, patches)
    notes = fit.notes
    status: Status = "clean" if fit.how == "applied" else fit.how
    if fit.error is not None:
        status, notes = "conflict", (*notes, *fit.error.what.splitlines())
    return Drift(
        major=source.major.name,
        branch=source.major.branch,
        version=source.version,
        commit=source.commit,
        against=fit.against,
        status=status,
        files=fit.changed,
        notes=notes,
    )


def drift_table(rows: Sequence[Drift]) -> str:
    """The rows as lines of text, with what was noted below each."""
    lines = [f"{'major':<6} {'status':<9} {'tip':<10} {'commit':<11} rendered against"]
    for row in rows:
        tip = f"{row.version:<10} {row.commit[:10]:<11}"
        lines.append(f"{row.major:<6} {row.status:<9} {tip} {row.against}".rstrip())
        if row.files:
            lines.append(f"       changed since: {', '.join(row.files)}")
        lines += [f"       {line}" for note in row.notes for line in note.splitlines()]
    return "\n".join(lines)


def drift_json(rows: Sequence[Drift]) -> str:
    """The rows as JSON, a list of objects."""
    return json.dumps([asdict(row) for row in rows], indent=2)


# ---- check


def check(
    major: Major,
    source: SourceTree | None,
    *,
    templates: Path = TEMPLATES,
    patches: Path = PATCHES,
    mirror: Path | None = None,
) -> Checked:
    """Whether a major's committed diff agrees with the templates; changes nothing.

    source is None where none is reachable; mirror is then looked into for the blobs that the diff
    was rendered against. What is wrong becomes a problem, each naming file, hunk and the nearest
    candidate. Raises PatchError only where a template itself cannot be read.
    """
    plans = edits.load(templates, major)
    name = f"patches/{committed.file_name(major.branch)}"
    try:
        diff = committed.read(major, patches)
        files = diff.files
    except PatchError as error:
        return Checked(
            major=major.name, name=name, proven=(), against="", added=0, problems=(error.what,)
        )
    problems = _disagreements(name, files, plans)
    proven = ["templates"]
    if not problems and diff.edits != edits.digest(plans):
        what = "its head or body was edited" if not diff.edits else "it comes from other templates"
        problems.append(f"{name}: {what} (line Edits: or Body: of its head)")
    if diff.added > MOST_LINES:
        problems.append(f"{name}: it adds {diff.added} lines, more than {MOST_LINES}")
    store = source.mirror if source is not None else mirror
    if store is not None and store.is_dir():
        with Objects(store) as objects:
            old = {f.path: File(mode=REGULAR, blob=f.old) for f in files if f.old}
            if len(objects.texts(file.blob for file in old.values())) == len(
                {file.blob for file in old.values()}
            ):
                proven.append("blobs")
                if not problems:
                    problems += _onto_own(objects, name, diff, old, plans)
            if source is not None:
                proven.append("source")
                problems += _onto_source(objects, name, diff, source, plans, bool(problems))
    return Checked(
        major=major.name,
        name=name,
        proven=tuple(proven),
        against=diff.against,
        added=diff.added,
        problems=tuple(problems),
    )


def check_table(rows: Sequence[Checked]) -> str:
    """The rows as lines of text: what was proven, and the problems."""
    lines = []
    for row in rows:
        verdict = "differs" if row.problems else "agrees"
        proven = f"proven by {', '.join(row.proven)}" if row.proven else "nothing to prove"
        about = f"{row.added} lines added, rendered against {row.against}, {proven}"
        lines.append(f"{row.major:<6} {verdict:<8} {about if row.against else row.name}")
        lines += [f"       {line}" for text in row.problems for line in text.splitlines()]
    return "\n".join(lines)


def _disagreements(name: str, files: Sequence[FileDiff], plans: Sequence[Plan]) -> list[str]:
    """Where the lines of a diff are not those that the templates insert."""
    problems = []
    touched = {file.path: file for file in files}
    for plan in plans:
        file = touched.pop(plan.path, None)
        if file is None:
            problems.append(f"{name}: nothing is done to {plan.path}, which {plan.template} edits")
            continue
        problems += [
            (
                f"{name}: {file.path}, hunk {number} ({hunk.heading}) removes "
                f"`{hunk.removed[0].strip()}`, and templates never remove"
            )
            for number, hunk in enumerate(file.hunks, 1)
            if hunk.removed
        ]
        if file.added != plan.inserted:
            problems.append(_first_difference(name, file, plan))
        elif not plan.new:
            problems += _misplaced(name, file, plan)
    problems += [f"{name}: {path} is edited, but by no template" for path in touched]
    return problems


def _misplaced(name: str, file: FileDiff, plan: Plan) -> list[str]:
    """What is added beside other lines than its edit names, as far as the hunks show them."""
    added = [
        (number, hunk, at)
        for number, hunk in enumerate(file.hunks, 1)
        for at, line in enumerate(hunk.lines)
        if line.startswith("+")
    ]
    problems = []
    for edit in plan.edits:
        (number, hunk, first), *_ = places = added[: len(edit.text)]
        added = added[len(edit.text) :]
        above, below = (
            [line[1:] for line in lines if not line.startswith("+")]
            for lines in (hunk.lines[:first], hunk.lines[first:])
        )
        whole = [(number, hunk, first + index) for index in range(len(edit.text))]
        if places != whole or not edits.fits(edit, above, below, hunk.heading):
            problems.append(
                f"{name}: {file.path}, hunk {number} ({hunk.heading}) adds elsewhere than "
                f"{plan.template}:{edit.line} says `{edit.text[0].strip()}`"
            )
    return problems


def _first_difference(name: str, file: FileDiff, plan: Plan) -> str:
    """Name the first line that differs: its hunk, and the edit that should be there."""
    theirs = [
        (line, number, hunk) for number, hunk in enumerate(file.hunks, 1) for line in hunk.added
    ]
    ours = [(line, edit) for edit in plan.edits for line in edit.text]
    position = next(
        (
            index
            for index, (their, our) in enumerate(zip(theirs, ours, strict=False))
            if their[0] != our[0]
        ),
        min(len(theirs), len(ours)),
    )
    if position < len(ours):
        line, edit = ours[position]
        should = f"{plan.template}:{edit.line} inserts `{line.strip()}`"
    else:
        should = f"{plan.template} inserts nothing more"
    if position >= len(theirs):
        _, number, hunk = theirs[-1]
        return f"{name}: {file.path} ends with hunk {number} ({hunk.heading}), but {should}"
    line, number, hunk = theirs[position]
    near = edits.nearest([line], [text for text, _ in ours])
    nearest = ""
    if near and near[0][0] != position:
        text, edit = ours[near[0][0]]
        nearest = f"; nearest is `{text.strip()}` of {plan.template}:{edit.line}"
    return (
        f"{name}: {file.path}, hunk {number} ({hunk.heading}) adds `{line.strip()}`, "
        f"but {should}{nearest}"
    )


def _onto_own(
    objects: Objects, name: str, diff: Diff, old: dict[str, File], plans: Sequence[Plan]
) -> list[str]:
    """Whether rendering onto what the diff was rendered against gives the same diff."""
    try:
        new = _performed(objects, old, plans, diff.against)
    except PatchError as error:
        return [f"{name}: {error.what}"]
    body = objects.diff(old, new)
    if body == diff.body:
        return []
    again = {file.path: file for file in committed.parse(body)}
    for file in diff.files:
        hunks = again[file.path].hunks if file.path in again else ()
        for number, hunk in enumerate(file.hunks, 1):
            if hunk not in hunks:
                near = min(hunks, key=lambda each: abs(each.old - hunk.old), default=None)
                should = f"; rendered, it is {near.heading}" if near else ""
                return [f"{name}: {file.path}, hunk {number} ({hunk.heading}) differs{should}"]
    return [f"{name}: differs from what is rendered onto {diff.against}, between the hunks"]


def _onto_source(
    objects: Objects,
    name: str,
    diff: Diff,
    source: SourceTree,
    plans: Sequence[Plan],
    other: bool,
) -> list[str]:
    """Whether the diff applies to a source and gives there what rendering gives."""
    where = f"PostgreSQL {source.version}"
    paths = {*(plan.path for plan in plans), *(file.path for file in diff.files)}
    old = objects.files(source.commit, sorted(paths))
    problems = []
    new: dict[str, File] = {}
    try:
        new = _performed(objects, old, plans, where)
    except PatchError as error:
        problems.append(f"{name}: {error.what}")
    applied = objects.apply(old, diff.body, merge=True)
    if applied.files is None:
        misfits = _misfits(objects, diff, old, applied)
        problems += [f"{name}: does not apply to {where}: {misfit}" for misfit in misfits]
    elif not problems and not other:
        after = {**old, **new}
        problems += [
            f"{name}: applied to {where} it makes another {path} than the templates do"
            for path in sorted({*applied.files, *after})
            if applied.files.get(path) != after.get(path)
        ]
    return problems


def _misfits(objects: Objects, diff: Diff, old: Mapping[str, File], applied: Applied) -> list[str]:
    """The hunks that git could not place, each with the place that is most like it."""
    texts = objects.texts(file.blob for file in old.values())
    misfits = []
    for file in diff.files:
        for number, hunk in enumerate(file.hunks, 1):
            failed = rf"patch failed: {re.escape(file.path)}:{hunk.old}$"
            if re.search(failed, applied.said, re.MULTILINE):
                there = texts[old[file.path].blob] if file.path in old else ""
                misfits.append(_misfit(file, number, hunk, there.splitlines()))
        gone = rf"error: ({re.escape(file.path)}: (?:does not exist|already exists).*)"
        misfits += re.findall(gone, applied.said)
    return misfits or applied.said.strip().splitlines()[-1:]


def _misfit(file: FileDiff, number: int, hunk: Hunk, lines: Sequence[str]) -> str:
    what = [f"{file.path}, hunk {number} ({hunk.heading})"]
    near = edits.nearest(hunk.before, lines)
    if near:
        index, likeness = near[0]
        what.append(f"nearest is line {index + 1} ({likeness:.0%} alike):")
        there = lines[index : index + len(hunk.before)]
        what += [f"    {index + 1 + offset}: {line}" for offset, line in enumerate(there)]
    else:
        what.append("nothing there is like it")
    return "\n".join([", ".join(what[:2]), *what[2:]])
