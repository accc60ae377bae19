"""The templates: edits of core files, and how they are made.

A template has the path of the file it edits, plus ".j2". It is rendered by Jinja2 with `major` (12
to 19; 20 for devel) and nothing else, and then holds edits, one after the other, in the file's
order:

    in      mdextend
    after   Assert(seekpos < ... BLCKSZ * RELSEG_SIZE);
    insert
        if (change_begin_hook)
            change_begin_hook(...);
    end

`after` and `before` (one or both, each once or more) name lines of the pristine file. Together, in
the order written, they must occur exactly once as consecutive lines; blank lines between them do
not count, nor does the amount of white space in a line, and `...` stands for anything within a
line. The text goes right behind the last `after` line or, where there is none, in front of the
first `before` line. It is taken as it is, with its tabs.

`in` narrows the search to a function, or with [] behind the name to the initialiser of an array.
`file PATH` at the top says that the file lies elsewhere than the template's path; `new` says that
there is no such file yet, and its one edit has no place.
"""

from __future__ import annotations

import difflib
import hashlib
import itertools
import json
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NoReturn

from ptrack_build.errors import PatchError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from ptrack_build.matrix import Major

SUFFIX: Final = ".j2"
_MARK: Final = "\x1f"  # ends each line of a template before rendering, with the line's number
_KEYWORDS: Final = ("file", "new", "in", "after", "before", "insert", "end")
_NEAREST: Final = 3  # places named in a message
_COMMON: Final = 20  # a line that occurs more often says nothing about a place


@dataclass(frozen=True, kw_only=True)
class Edit:
    """One insertion. text: the lines, without line ends; line: where in the template it begins."""

    line: int
    scope: str
    after: tuple[str, ...]
    before: tuple[str, ...]
    text: tuple[str, ...]

    def shown(self) -> str:
        """The edit's place as the template has it, without what it inserts."""
        lines = [f"in      {self.scope}"] if self.scope else []
        lines += [f"after   {line}" for line in self.after]
        lines += [f"before  {line}" for line in self.before]
        return "\n".join(f"    {line}" for line in lines)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What one template does to one file of one major. template: its name, as messages show it."""

    template: str
    path: str
    new: bool
    edits: tuple[Edit, ...]

    @property
    def inserted(self) -> list[str]:
        """All lines that the plan adds, in the file's order."""
        return [line for edit in self.edits for line in edit.text]


def load(templates: Path, major: Major) -> tuple[Plan, ...]:
    """The plans of a major, sorted by path; a template without an edit for it gives none.

    Raises PatchError with template and line for whatever is wrong in a template.
    """
    files = sorted(p for p in templates.rglob(f"*{SUFFIX}") if p.is_file())
    if not files:
        what = f"there are no templates in {templates}"
        raise PatchError(what, hint="git checkout -- templates")
    plans = [_parse(templates, file, major.number) for file in files]
    seen: dict[str, str] = {}
    for plan in plans:
        if plan.path in seen:
            what = f"{plan.template} and {seen[plan.path]} edit the same file, {plan.path}"
            raise PatchError(what, hint="put all edits of a file into one template")
        seen[plan.path] = plan.template
    return tuple(sorted((p for p in plans if p.edits), key=lambda plan: plan.path))


def digest(plans: Iterable[Plan]) -> str:
    """SHA-256 of what the plans say: files, places and text, but no comment or line number."""
    said = [
        [plan.path, plan.new, [[e.scope, e.after, e.before, e.text] for e in plan.edits]]
        for plan in plans
    ]
    return hashlib.sha256(json.dumps(said, ensure_ascii=True).encode()).hexdigest()


# ---- reading a template


@dataclass(kw_only=True)
class _Draft:
    """The edit being read."""

    line: int = 0
    scope: str = ""
    after: list[str] = field(default_factory=list)
    before: list[str] = field(default_factory=list)


def _parse(templates: Path, file: Path, major: int) -> Plan:
    name = f"{templates.parent.name}/{templates.name}/{file.relative_to(templates).as_posix()}"
    path = file.relative_to(templates).as_posix().removesuffix(SUFFIX)
    new = False
    edits: list[Edit] = []
    draft = _Draft()
    text: list[str] | None = None
    opened = 0

    def wrong(number: int, what: str, hint: str) -> NoReturn:
        what = f"{name}:{number}: {what}"
        raise PatchError(what, hint=hint)

    for number, line in _rendered(name, file, major):
        if text is not None:
            if line.rstrip() != "end":
                text.append(line)
                continue
            if not text:
                wrong(opened, "nothing between insert and end", "write the lines to insert")
            edits.append(
                Edit(
                    line=draft.line,
                    scope=draft.scope,
                    after=tuple(draft.after),
                    before=tuple(draft.before),
                    text=tuple(text),
                )
            )
            draft, text = _Draft(), None
            continue
        if not line.strip():
            continue
        keyword, _, value = line.partition(" ")
        value = value.strip()
        if not draft.line and keyword not in {"file", "new"}:
            draft.line = number
        match keyword:
            case "file" | "new" if edits or draft.line or new:
                wrong(number, f"`{keyword}` belongs to the top", "move it above the first edit")
            case "file" if value:
                path = value
            case "new" if not value:
                new = True
            case "in" if value and not draft.scope and not (draft.after or draft.before):
                draft.scope = value
            case "after" if value and not draft.before:
                draft.after.append(value)
            case "before" if value:
                draft.before.append(value)
            case "insert" if not value:
                if new and (edits or draft.scope or draft.after or draft.before):
                    wrong(number, "a new file has one edit, without a place", "remove the others")
                if not new and not (draft.after or draft.before):
                    wrong(number, "this edit has no place", "say `after` or `before` which line")
                text, opened = [], number
            case _ if keyword in _KEYWORDS:
                hint = "the order is: in, after, before, insert, end"
                wrong(number, f"`{line.strip()}` does not belong here", hint)
            case _:
                near = difflib.get_close_matches(keyword, _KEYWORDS, n=1)
                hint = f"did you mean `{near[0]}`?" if near else f"one of {', '.join(_KEYWORDS)}"
                wrong(number, f"`{keyword}` is no keyword", hint)
    if text is not None:
        wrong(opened, "`insert` without `end`", "close the text with a line `end`")
    if draft.line:
        wrong(draft.line, "an edit without `insert`", "say what to insert, or remove the edit")
    return Plan(template=name, path=path, new=new, edits=tuple(edits))


def _rendered(name: str, file: Path, major: int) -> list[tuple[int, str]]:
    """The template's lines for a major, each with its number in the template."""
    import jinja2

    try:
        source = file.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        at = file.read_bytes()[: error.start].count(b"\n") + 1
        what = f"{name}:{at}: this is not UTF-8"
        raise PatchError(what, hint="save it as UTF-8") from error
    marked = "\n".join(f"{line}{_MARK}{number}" for number, line in enumerate(source, 1))
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, autoescape=False)
    try:
        out = environment.from_string(marked).render(major=major)
    except jinja2.TemplateSyntaxError as error:
        what = f"{name}:{error.lineno}: {(error.message or '').replace(_MARK, 'end of line ')}"
        raise PatchError(what, hint="a tag must not go over the end of a line") from error
    except Exception as error:  # an expression in a tag may raise anything
        what = f"{name}:{_line_of(error)}: {error}"
        raise PatchError(what, hint="`major`, a number, is all there is") from error
    lines = []
    for line in out.split("\n"):
        text, _, number = line.rpartition(_MARK)
        if not number:
            continue
        if not text.strip() and source[int(number) - 1].strip():
            continue  # what is left of a line of tags
        lines.append((int(number), text))
    return lines


def _line_of(error: Exception) -> int:
    """The line of the template where rendering failed."""
    line, trace = 0, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == "<template>":
            line = trace.tb_lineno
        trace = trace.tb_next
    return line


# ---- editing a file


def perform(plan: Plan, text: str | None, *, where: str) -> str:
    """The file's text with all edits made. text is None where there is no such file.

    Raises PatchError where an edit does not match exactly once, with the closest places; `where`
    says whose file it is ("PostgreSQL 17.2").
    """
    if plan.new:
        if text is not None:
            what = f"{plan.template}: {where} already has a file {plan.path}"
            raise PatchError(what, hint="give an unpatched tree")
        return "".join(f"{line}\n" for line in plan.inserted)
    if text is None:
        what = f"{plan.template}: {where} has no file {plan.path}"
        raise PatchError(what, hint="say with `file` in the template where it moved")
    lines = text.splitlines(keepends=True)
    plain = [_plain(line) for line in lines]
    places = [(_place(plan, edit, lines, plain, where), edit) for edit in plan.edits]
    for (above, _), (below, edit) in itertools.pairwise(places):
        if below < above:
            what = (
                f"{plan.template}:{edit.line}: this edit belongs above the one before it: in "
                f"{where} it is made at line {below + 1}, that one at line {above + 1}"
            )
            raise PatchError(what, hint="write the edits in the order of the file")
    out: list[str] = []
    done = 0
    for index, edit in places:
        out += lines[done:index]
        if out and not out[-1].endswith("\n"):
            out.append("\n")
        out += [f"{line}\n" for line in edit.text]
        done = index
    return "".join(out + lines[done:])


def _plain(line: str) -> str:
    return " ".join(line.split())


def _pattern(line: str) -> re.Pattern[str]:
    parts = (re.escape(part) for part in _plain(line).split("..."))
    return re.compile(".*".join(parts))


def _place(plan: Plan, edit: Edit, lines: Sequence[str], plain: Sequence[str], where: str) -> int:
    """The index of the line in front of which the edit's text goes."""
    first, last = _scope(plan, edit, lines, where)
    solid = [index for index in range(first, last) if plain[index]]
    patterns = [_pattern(line) for line in (*edit.after, *edit.before)]
    found = [
        solid[start : start + len(patterns)]
        for start in range(len(solid) - len(patterns) + 1)
        if all(
            pattern.fullmatch(plain[index])
            for pattern, index in zip(patterns, solid[start:], strict=False)
        )
    ]
    if len(found) == 1:
        match = found[0]
        return match[len(edit.after) - 1] + 1 if edit.after else match[0]
    times = "nowhere" if not found else "twice" if len(found) == 2 else f"{len(found)} times"
    within = f", {edit.scope} at lines {first + 1} to {last}" if edit.scope else ""
    what = [
        f"{plan.template}:{edit.line}: this edit matches {times} in {plan.path} of {where}{within}",
        edit.shown(),
    ]
    if found:
        what.append("  the places:")
        what += [_shown(plan.path, match[0], lines) for match in found[: 2 * _NEAREST]]
        hint = "narrow it with `in`, or name the lines around it as well"
    else:
        near = nearest([*edit.after, *edit.before], lines)
        what.append("  the closest places:" if near else "  nothing there is like it")
        for index, _ in near:
            outside = "" if first <= index < last else f"   (outside of {edit.scope})"
            what.append(_shown(plan.path, index, lines) + outside)
        hint = f"look at {plan.path} there and change the edit, for this major alone if need be"
    raise PatchError("\n".join(what), hint=hint)


def fits(edit: Edit, above: Sequence[str], below: Sequence[str], heading: str) -> bool:
    """Whether what a hunk shows around an insertion is what the edit names.

    above, below: the file's own lines around it, of which a hunk has a few; heading: the hunk's.
    """
    lines = (heading.split("@@ ")[-1], *above)
    begun = [line for line in lines if re.match(r"[A-Za-z_$](?!\w*\s*:(?!:))", line)]
    if edit.scope and begun and not _head(edit.scope).match(begun[-1]):
        return False
    sides = ((edit.after[::-1], above[::-1]), (edit.before, below))
    return all(
        _pattern(named).fullmatch(line)
        for wanted, shown in sides
        for named, line in zip(wanted, filter(None, map(_plain, shown)), strict=False)
    )


def _shown(path: str, index: int, lines: Sequence[str]) -> str:
    return f"    {path}:{index + 1}: {lines[index].strip()}"


def nearest(block: Sequence[str], lines: Sequence[str]) -> list[tuple[int, float]]:
    """Where in lines something like the block begins: indices with likenesses (0 to 1), best first.

    Looked at is where a line of the block occurs as it is (unless it is all over the place), and
    where something like its longest line does.
    """
    wanted = [_plain(line) for line in block if line.strip()]
    if not wanted:
        return []
    solid = [(index, _plain(line)) for index, line in enumerate(lines) if line.strip()]
    occurs: dict[str, list[int]] = {}
    for position, (_, line) in enumerate(solid):
        occurs.setdefault(line, []).append(position)
    anchor = max(range(len(wanted)), key=lambda index: len(wanted[index]))
    close = difflib.get_close_matches(wanted[anchor], sorted(occurs), n=2 * _NEAREST, cutoff=0.5)
    begins = {max(position - anchor, 0) for line in close for position in occurs[line]}
    for offset, line in enumerate(wanted):
        if len(line) > 1 and len(occurs.get(line, ())) <= _COMMON:
            begins |= {max(position - offset, 0) for position in occurs.get(line, ())}
    found: list[tuple[int, float]] = []
    for begin in begins:
        there = [text for _, text in solid[begin : begin + len(wanted)]]
        likeness = difflib.SequenceMatcher(None, "\n".join(wanted), "\n".join(there)).ratio()
        found.append((solid[begin][0], likeness))
    found.sort(key=lambda each: (-each[1], each[0]))
    return found[:_NEAREST]


def _head(scope: str) -> re.Pattern[str]:
    """How the first line of an edit's function or array begins."""
    name = re.escape(scope.removesuffix("[]"))
    return re.compile(rf"(?!\s)(?:.*\W)?{name}\[[^\]]*\]\s*=" if "[]" in scope else rf"{name}\(")


def _scope(plan: Plan, edit: Edit, lines: Sequence[str], where: str) -> tuple[int, int]:
    """The lines of the edit's function or array: first, and one behind the last."""
    if not edit.scope:
        return 0, len(lines)
    name = edit.scope.removesuffix("[]")
    array = name != edit.scope
    kind = "array" if array else "function"
    head = _head(edit.scope)
    found = [
        (index, end)
        for index, line in enumerate(lines)
        if head.match(line) and (end := _end(lines, index, array=array))
    ]
    if len(found) == 1:
        return found[0]
    count = f"{len(found)} {kind}s" if found else f"no {kind}"
    what = [
        f"{plan.template}:{edit.line}: {plan.path} of {where} has {count} {name}",
        edit.shown(),
    ]
    if found:
        what += [_shown(plan.path, index, lines) for index, _ in found]
        raise PatchError("\n".join(what), hint="leave `in` away and name more lines")
    known = [
        (match[1], index)
        for index, line in enumerate(lines)
        if (match := re.match(r"(?!\s)(?:.*\W)?(\w+)\[[^\]]*\]\s*=" if array else r"(\w+)\(", line))
    ]
    near = difflib.get_close_matches(name, sorted({each for each, _ in known}), n=_NEAREST)
    what.append("  the closest names:" if near else "  no name there is like it")
    what += [_shown(plan.path, index, lines) for each, index in known if each in near]
    raise PatchError("\n".join(what), hint="change `in`, for this major alone if need be")


def _end(lines: Sequence[str], start: int, *, array: bool) -> int:
    """One behind the last line of the body that begins at or behind start; 0 if none does."""
    opened = False
    for index in range(start, len(lines)):
        line = lines[index].rstrip()
        if opened or (array and index > start):
            if line.startswith("}"):
                return index + 1
        elif line == "{":
            opened = True
        elif not array and line.endswith(";"):
            return 0  # a declaration
    return 0
