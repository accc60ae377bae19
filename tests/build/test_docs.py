"""The documentation shows, counts and names what there is."""

from __future__ import annotations

import re

import pytest

from ptrack_build import matrix, patch
from ptrack_build.patch import edits
from ptrack_build.source import read_lock
from tests.build.conftest import REPO

PAGE = (REPO / "docs" / "core-patch.md").read_text()
BLOCKS = re.findall(r"^```\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
MAJORS = matrix.load().majors
#: By template, then by major's number: the lines inserted.
COUNTS: dict[str, dict[int, int]] = {}
for _major in MAJORS:
    for _plan in edits.load(patch.TEMPLATES, _major):
        _name = _plan.template.removeprefix("templates/core/").removesuffix(edits.SUFFIX)
        COUNTS.setdefault(_name, {})[_major.number] = len(_plan.inserted)


def _lines(major: matrix.Major) -> int:
    return sum(count.get(major.number, 0) for count in COUNTS.values())


def test_an_excerpt_is_in_a_template() -> None:
    excerpts = [block for block in BLOCKS if "\ninsert\n" in block]
    assert excerpts
    templates = [path.read_text() for path in patch.TEMPLATES.rglob(f"*{edits.SUFFIX}")]
    for excerpt in excerpts:
        assert any(excerpt in text for text in templates), excerpt


def test_the_message_that_is_shown_is_about_an_edit_that_there_is() -> None:
    messages = [block for block in BLOCKS if "this edit matches" in block]
    assert messages
    plans = edits.load(patch.TEMPLATES, MAJORS[-1])
    for message in messages:
        found = {
            f"{plan.template}:{edit.line}": edit.shown() for plan in plans for edit in plan.edits
        }
        place = message.split(": this edit")[0]
        assert f"{found[place]}\n" in message


def test_the_table_counts_lines_and_files() -> None:
    rows = re.findall(r"^\| ([\w, ]+) \| (\d+) \| (\d+) \|", PAGE, re.MULTILINE)
    said = {name: (int(n), int(m)) for names, n, m in rows for name in names.split(", ")}
    counted = {
        major.name: (
            _lines(major),
            sum(major.number in count for count in COUNTS.values()),
        )
        for major in MAJORS
    }
    assert said == counted


def test_the_results_of_benchmarks_are_named() -> None:
    place = REPO / "benchmarks"
    results = {path.name for path in place.glob("*.md")}
    for program in place.glob("*.py"):
        results |= set(re.findall(r'"([\w-]+\.md)"', program.read_text()))
    assert results
    page = (REPO / "docs" / "architecture.md").read_text()
    (row,) = re.findall(r"^\| `benchmarks/` .*$", page, re.MULTILINE)
    assert results == {name for name in results if f"`{name}`" in row}
    assert results == {path.name for path in place.glob("*.md")}, "named and not there"


def test_the_readme_names_every_session_and_document() -> None:
    readme = (REPO / "README.md").read_text()
    noxfile = (REPO / "noxfile.py").read_text()
    (families,) = re.findall(r"^FAMILIES = \((.*)\)$", noxfile, re.MULTILINE)
    sessions = set(re.findall(r'^@session\("([\w-]+)"', noxfile, re.MULTILINE))
    sessions |= {f"{family}-NN" for family in re.findall(r'"(\w+)"', families)}
    rows = re.findall(r"^\| (`.*?) \|", readme, re.MULTILINE)
    assert {"model", "test-NN"} <= sessions
    assert sessions <= set(re.findall(r"`([\w-]+)[^`]*`", "".join(rows)))
    for document in [*(REPO / "docs").glob("*.md"), REPO / "CONTRIBUTING.md"]:
        named = set(re.findall(r"`(?:\./nox -s )?([a-z]+-NN)\b", document.read_text()))
        assert named <= sessions, document
    documents = {f"docs/{path.name}" for path in (REPO / "docs").glob("*.md")}
    assert documents == set(re.findall(r"^- \[(docs/.*?)\]\(\1\)", readme, re.MULTILINE))


def test_no_merge_was_left_half_done() -> None:
    rooms = ("docs", "extension", "packaging", "patches", "ptrack_build", "templates", "tests")
    files = [path for room in rooms for path in (REPO / room).rglob("*") if path.is_file()]
    files += [path for path in REPO.iterdir() if path.is_file()]
    files = [path for path in files if path.suffix != ".pyc"]  # with what tests of it look for
    assert REPO / "docs" / "architecture.md" in files
    left = re.compile(rb"^(<{7}|>{7})( |$)", re.MULTILINE)
    assert not [path for path in files if left.search(path.read_bytes())]


def test_versions_differ_in_one_header() -> None:
    sources = list((REPO / "extension").rglob("*.[ch]"))
    asking = {path.name for path in sources if "PG_VERSION_NUM" in path.read_text()}
    assert asking == {"compat.h"}
    conditions = re.compile(r"^[ \t]*#[ \t]*(?:el)?if\w*[ \t]+(.*)", re.MULTILINE)
    others = {
        condition
        for path in sources
        if path.name != "compat.h"
        for condition in conditions.findall(path.read_text())
        if not re.fullmatch(r"PTRACK_(?:\w+_)?H", condition)  # against being included twice
    }
    assert others == {"SIZEOF_SIZE_T == 8", "USE_POSIX_FADVISE", "__GNUC__"}


def test_the_readme_counts_the_lines_of_each_core_patch() -> None:
    text = (REPO / "README.md").read_text()
    said = dict(re.findall(r"^\| \w+ \| (\w+) \|.*\| (\d+) lines \|", text, re.MULTILINE))
    added = {major.branch: str(_lines(major)) for major in MAJORS}
    assert said == added
    assert f"at most {patch.MOST_LINES} lines" in text


def test_what_is_proven_is_what_the_lock_records() -> None:
    readme = (REPO / "README.md").read_text()
    rows = re.findall(r"^\| (\w+) \| (?:REL_|master).* \| (\S*)[^|]* \|$", readme, re.MULTILINE)
    assert dict(rows) == {name: row.version for name, row in read_lock().items()}


def test_every_setting_is_documented() -> None:
    text = (REPO / "docs" / "architecture.md").read_text().partition("## Settings")[2]
    table = text.partition("\n## ")[0]
    #: Between a session and what it starts, not for people.
    inner = {"PTRACK_PREFIX", "PTRACK_MUTANTS_MAJOR", "PTRACK_TOOLS_ONLY", "PTRACK_FAULT"}
    used: set[str] = set()
    for place in ("nox", "noxfile.py", "ptrack_build", "tests", "benchmarks"):
        path = REPO / place
        for file in [path] if path.is_file() else path.rglob("*.py"):
            if (REPO / "tests" / "build") not in file.parents:
                used |= set(re.findall(r"PTRACK_[A-Z_]*[A-Z]\b", file.read_text()))
    assert used - inner == set(re.findall(r"PTRACK_[A-Z_]+", table))


@pytest.mark.parametrize("name", sorted(COUNTS))
def test_the_heading_of_a_file_counts_its_lines(name: str) -> None:
    heading = re.search(rf"^### `{re.escape(name)}` \((?:new, )?(.*)\)$", PAGE, re.MULTILINE)
    assert heading
    parts = re.fullmatch(
        r"(\d+) lines?(?: up to (\d+), (\d+) from \d+)?(?:; (\d+) up to (\d+))?", heading[1]
    )
    assert parts
    lines, until, lines_after, lines_before, until_before = (int(n or 0) for n in parts.groups())
    for number, count in COUNTS[name].items():
        early = number <= until_before
        assert count == (lines_before if early else lines_after if 0 < until < number else lines)
