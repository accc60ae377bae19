"""matrix.toml: what it says, and what a mistake in it is told."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from ptrack_build import matrix
from ptrack_build.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

ROW = """[[major]]
name = "17"
number = 17
branch = "REL_17_STABLE"
state = "stable"
suites = ["trixie"]
libraries = ["icu"]
"""


def load(tmp_path: Path, text: str) -> matrix.Matrix:
    path = tmp_path / "matrix.toml"
    path.write_text(text)
    return matrix.load(path)


def test_the_matrix_has_nine_majors_in_order() -> None:
    loaded = matrix.load()
    assert loaded.names == ("12", "13", "14", "15", "16", "17", "18", "19", "devel")
    assert loaded.major("devel").branch == "master"
    assert loaded.major("13").suites == ("bullseye", "oldoldstable")


def test_an_unknown_major_is_told_the_known_ones() -> None:
    with pytest.raises(UsageError, match="'20'") as caught:
        matrix.load().major("20")
    assert "12, 13" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("old", "new", "what", "hint"),
    [
        ('state = "stable"', 'stats = "stable"', "stats", "did you mean 'state'"),
        ('"stable"', '"stabel"', "stabel", "did you mean 'stable'"),
        ('["icu"]', '["icv"]', "icv", "did you mean 'icu'"),
        ('name = "17"\n', "", "name", ""),
        ("number = 17", 'number = "17"', "number: Expected `int`", ""),
        ("number = 17", "number = 16", "number 16", ""),
        ("[[major]]", "[[mayor]]", "mayor", "did you mean 'major'"),
        ("= 17", "17", "matrix.toml", ""),
        ("REL_17_STABLE", "REL_17_STABEL", "REL_17_STABEL", "REL_17_STABLE"),
        ("REL_17_STABLE", "REL_16_STABLE", "REL_16_STABLE", "REL_17_STABLE"),
        ("REL_17_STABLE", "master", "master", "REL_17_STABLE"),
        ('["trixie"]', '["trxie"]', "trxie", "did you mean 'trixie'"),
        ('["trixie"]', '["trixie", "whezy"]', "whezy", "the suites are"),
    ],
)
def test_a_typo_is_named_with_its_row_and_the_nearest_word(
    tmp_path: Path, old: str, new: str, what: str, hint: str
) -> None:
    with pytest.raises(UsageError, match=what) as caught:
        load(tmp_path, ROW.replace(old, new))
    assert "matrix.toml" in caught.value.what
    assert hint in (caught.value.hint or "")


def test_the_row_of_a_typo_is_named(tmp_path: Path) -> None:
    second = ROW.replace("17", "18").replace("suites", "suits")
    with pytest.raises(UsageError, match=r"row 2 \(name '18'\).*suits") as caught:
        load(tmp_path, ROW + second)
    assert "'suites'" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("", r"row 2 \(number 18\): .*`name`"),
        ("nime = '18'\n", r"row 2 \(number 18\): .*`nime`"),
        ("name = 18\n", r"row 2 \(name 18\): .*`str`"),
        ('name = """18"""\nstats = ""\n', r"row 2 \(name '18'\): .*`stats`"),
        ('"name" = "18"\nstats = ""\n', r"row 2 \(name '18'\): .*`stats`"),
    ],
)
def test_a_row_is_named_by_what_it_has(tmp_path: Path, name: str, row: str) -> None:
    """And not by what the row after it has."""
    third = ROW.replace("17", "19")
    second = ROW.replace("17", "18").replace('name = "18"\n', name)
    with pytest.raises(UsageError, match=row):
        load(tmp_path, ROW + second + third)


def test_a_row_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="row 1: Expected `object`"):
        load(tmp_path, "major = [17]\n")


@pytest.mark.parametrize(
    ("third", "what", "hint"),
    [
        (("18", "18"), r"row 3 \(name '18'\): row 2 has that name, too", "name and a number"),
        (("18", "19"), r"row 3 \(name '18'\) has number 19", "name and number agree"),
        (("devel", "18"), r"row 3 \(name 'devel'\): row 2 has that number, too", "a number of"),
        (("16", "16"), r"row 3 \(name '16'\): its number is below that of row 2", "sort the rows"),
    ],
)
def test_majors_twice_or_out_of_order_are_named(
    tmp_path: Path, third: tuple[str, str], what: str, hint: str
) -> None:
    name, number = third
    row = ROW.replace('"17"', f'"{name}"').replace("number = 17", f"number = {number}")
    with pytest.raises(UsageError, match=what) as caught:
        load(tmp_path, ROW + ROW.replace("17", "18") + row)
    assert "matrix.toml" in caught.value.what
    assert hint in (caught.value.hint or "")


@pytest.mark.parametrize(("name", "state"), [("17", "devel"), ("devel", "stable")])
def test_only_the_development_branch_is_in_development(
    tmp_path: Path, name: str, state: str
) -> None:
    row = ROW.replace('"17"', f'"{name}"').replace('state = "stable"', f'state = "{state}"')
    if name == "devel":
        row = row.replace("REL_17_STABLE", "master")
    with pytest.raises(UsageError, match=f"major {name}: its state cannot be '{state}'") as caught:
        load(tmp_path, row)
    assert "'devel'" in (caught.value.hint or "")


def test_no_matrix_at_all(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        matrix.load(tmp_path / "none.toml")
