"""matrix.toml: which majors there are, and what differs between them."""

from __future__ import annotations

import difflib
import functools
import re
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec

from ptrack_build import REPO
from ptrack_build.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

State = Literal["eol", "stable", "beta", "devel"]
Library = Literal["zlib", "readline", "icu", "openssl", "lz4", "zstd"]

STATES: tuple[str, ...] = ("eol", "stable", "beta", "devel")
#: Debian's: codenames of those with a PostgreSQL of ours, and names that go from one to another.
SUITES: tuple[str, ...] = (
    "buster", "bullseye", "bookworm", "trixie", "forky", "duke", "sid", "rc-buggy",
    "oldoldstable", "oldstable", "stable", "testing", "unstable", "experimental",
)  # fmt: skip
LIBRARIES: tuple[str, ...] = ("zlib", "readline", "icu", "openssl", "lz4", "zstd")


class Major(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A major of PostgreSQL: a row of matrix.toml, whose head says what each field holds."""

    name: Annotated[str, msgspec.Meta(pattern="^([1-9][0-9]|devel)$")]
    number: Annotated[int, msgspec.Meta(ge=12)]
    branch: Annotated[str, msgspec.Meta(min_length=1)]
    state: State
    suites: tuple[str, ...] = ()
    libraries: tuple[Library, ...] = ()
    cflags: tuple[str, ...] = ()


class Matrix(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All majors, in the order of their numbers."""

    majors: tuple[Major, ...] = msgspec.field(name="major")

    @property
    def names(self) -> tuple[str, ...]:
        """12, 13, ... devel"""
        return tuple(major.name for major in self.majors)

    def major(self, name: str) -> Major:
        """The major of that name. Raises UsageError with the names that there are."""
        for major in self.majors:
            if major.name == name:
                return major
        what = f"there is no PostgreSQL major {name!r} in matrix.toml"
        raise UsageError(what, hint=f"take one of {', '.join(self.names)}")


@functools.cache
def load(path: Path = REPO / "matrix.toml") -> Matrix:
    """Read the matrix. Raises UsageError naming the row, the key and the nearest valid one."""
    try:
        text = path.read_bytes()
    except OSError as error:
        what = f"{path.name} cannot be read: {error.strerror}"
        raise UsageError(what, hint="git checkout -- matrix.toml") from error
    try:
        matrix = msgspec.toml.decode(text, type=Matrix)
    except UnicodeDecodeError as error:
        what = f"{path.name} is not UTF-8 at byte {error.start}"
        raise UsageError(what, hint="git diff matrix.toml") from error
    except msgspec.DecodeError as error:
        raise _explained(path, text, str(error)) from error
    _check_order(path, matrix.majors)
    for major in matrix.majors:
        _check_names(path, major)
    return matrix


def _check_order(path: Path, majors: tuple[Major, ...]) -> None:
    """Raise UsageError for a row that has another's name or number, or is not in its place."""
    for row, major in enumerate(majors, 1):
        where = f"{path.name}, row {row} (name {major.name!r})"
        if major.name != "devel" and int(major.name) != major.number:
            what = f"{where} has number {major.number}"
            raise UsageError(what, hint="make name and number agree")
        for above, other in enumerate(majors[: row - 1], 1):
            same = "name" if major.name == other.name else "number"
            if getattr(major, same) == getattr(other, same):
                what = f"{where}: row {above} has that {same}, too"
                hint = "a major has one row, with a name and a number of its own"
                raise UsageError(what, hint=hint)
        if row > 1 and major.number < majors[row - 2].number:
            what = f"{where}: its number is below that of row {row - 1}"
            raise UsageError(what, hint="sort the rows by number")


def _check_names(path: Path, major: Major) -> None:
    """Raise UsageError for a branch or a suite that there is not."""
    where = f"{path.name}, major {major.name}"
    branch = "master" if major.name == "devel" else f"REL_{major.number}_STABLE"
    if major.branch != branch:
        what = f"{where}: its branch is {branch!r}, not {major.branch!r}"
        raise UsageError(what, hint=f"write branch = {branch!r}")
    if (major.name == "devel") != (major.state == "devel"):
        what = f"{where}: its state cannot be {major.state!r}"
        raise UsageError(what, hint="the row devel has state 'devel', and no other row has")
    for suite in major.suites:
        if suite not in SUITES:
            near = difflib.get_close_matches(suite, SUITES, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}? " if near else ""
            hint += f"the suites are {', '.join(SUITES)}; a newer one goes to matrix.py, too"
            what = f"{where}: Debian has no suite {suite!r}"
            raise UsageError(what, hint=hint)


def _explained(path: Path, text: bytes, message: str) -> UsageError:
    """Name the row and the nearest valid word for what msgspec found."""
    row = re.search(r"major\[(\d+)\]", message)
    where = f"row {int(row[1]) + 1}" if row else "the file"
    if row:
        there = msgspec.toml.decode(text)["major"][int(row[1])]  # its TOML is right
        keys = [key for key in Major.__struct_fields__ if isinstance(there, dict) and key in there]
        if keys:
            where += f" ({keys[0]} {there[keys[0]]!r})"
    plain, _, place = message.partition(" - at ")
    if key := re.search(r"\]\.(\w+)", place):  # which an unknown key or value has in its words
        plain = f"{key[1]}: {plain}"
    hint = "compare with the head of matrix.toml"
    if found := re.search(r"unknown field `(.*?)`|Invalid enum value '(.*?)'", plain):
        field, value = found[1], found[2]
        if field is not None:
            known: tuple[str, ...] = ("major",) if not row else Major.__struct_fields__
            hint = f"the keys are {', '.join(known)}"
        else:
            key = re.search(r"\.(\w+)(?:\[[^\]]*\])?`?$", message)
            known = LIBRARIES if key and key[1] == "libraries" else STATES
            hint = f"the values are {', '.join(known)}"
        near = difflib.get_close_matches(field or value, known, n=1, cutoff=0.5)
        if near:
            hint = f"did you mean {near[0]!r}? {hint}"
    return UsageError(f"{path.name}, {where}: {plain}", hint=hint)
