"""Mutants: the server, one of its programs or the extension with one protection taken out.

`tests/mutants.toml` lists them, each with the tests that have to fail on it. A mutant of the core
is compiled in the objects of the server that is under test, and the server or the program linked
anew, one of the extension is compiled alone; either becomes a prefix made of links, with the one
file replaced.
"""

from __future__ import annotations

import os
import re
import shutil
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

import msgspec

from ptrack_build import REPO, cache, host
from ptrack_build import compile as compiling
from ptrack_build.errors import UsageError
from ptrack_build.run import call

if TYPE_CHECKING:
    from pathlib import Path

    from ptrack_build.compile import Prefix, Workbench
    from ptrack_build.matrix import Major

CATALOGUE = REPO / "tests" / "mutants.toml"


class Part(Enum):
    """What a mutant changes. In both, a file that the extension has is the extension's."""

    CORE = "core"
    EXTENSION = "extension"
    BOTH = "both"


class Change(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One place of a file: `old` becomes `new`.

    old: a regular expression over lines, `.` matching no line end. function: where to look, the
    whole file if empty. It must match at least once, and exactly `times`.
    """

    file: str
    old: str
    new: str = ""
    function: str = ""
    times: int = 1


class Mutant(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One protection less.

    rule: what is taken out, in words; since, until: majors it is for; variant: how the server is
    compiled that shows it; tests: node ids in tests/ of which each has to fail.
    """

    name: str
    part: Part
    rule: str
    changes: list[Change]
    tests: list[str]
    since: int = 12
    until: int = 99
    variant: str = compiling.TEST.name

    def split(self) -> tuple[list[Change], list[Change]]:
        """Its changes of the core, and of the extension."""
        if self.part is Part.CORE:
            return self.changes, []
        if self.part is Part.EXTENSION:
            return [], self.changes
        own = [change for change in self.changes if (compiling.EXTENSION / change.file).exists()]
        return [change for change in self.changes if change not in own], own

    def core_alone(self) -> Mutant:
        """Of one that changes both: what it makes of the core."""
        return msgspec.structs.replace(
            self, name=f"{self.name}, core alone", part=Part.CORE, changes=self.split()[0]
        )


class _Catalogue(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    mutant: list[Mutant]


def load(path: Path = CATALOGUE) -> list[Mutant]:
    """The catalogue, in its order. Raises UsageError for what is not as it should be."""
    try:
        mutants = msgspec.toml.decode(path.read_bytes(), type=_Catalogue).mutant
    except (msgspec.DecodeError, UnicodeDecodeError, OSError) as error:
        what = f"{path}: {error}"
        raise UsageError(what) from error
    names = [mutant.name for mutant in mutants]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        what = f"{path}: more than one mutant is called {', '.join(twice)}"
        raise UsageError(what)
    for mutant in mutants:
        if mutant.variant not in compiling.VARIANTS:
            what = f"{path}: {mutant.name}: there is no variant {mutant.variant}"
            raise UsageError(what, hint=f"the variants are {', '.join(compiling.VARIANTS)}")
    return mutants


def of(major: Major) -> list[Mutant]:
    """Those for a major. Raises as :func:`load`."""
    return [mutant for mutant in load() if mutant.since <= major.number <= mutant.until]


def applied(text: str, change: Change) -> str:
    """The file's text with the change. Raises UsageError if it does not match as said."""
    start, end = 0, len(text)
    if change.function:
        found = re.search(rf"^{re.escape(change.function)}\(.*?^}}", text, re.MULTILINE | re.DOTALL)
        if found is None:
            what = f"{change.file} has no function {change.function}"
            raise UsageError(what, hint=f"adapt {CATALOGUE.name}")
        start, end = found.span()
    body, count = re.subn(change.old, change.new, text[start:end], flags=re.MULTILINE)
    if count != change.times:
        place = change.function or "the file"
        what = f"{change.file}: {change.old!r} is {count} times in {place}, not {change.times}"
        raise UsageError(what, hint=f"adapt {CATALOGUE.name}")
    return text[:start] + body + text[end:]


def program_of(file: str) -> str:
    """The directory of src/ that has the program a file of PostgreSQL is compiled into."""
    parts = file.split("/")
    return "/".join(parts[1:3]) if parts[1] == "bin" else "backend"


#: How pytest records what failed by a comparison: an assertion, or an exception that did not come.
_ASSERTED = re.compile(r"(\w+\.)*(AssertionError|LostBlocks|Refused)\b|assert\b|Failed: DID NOT ")


def caught(junit: Path) -> str:
    """Why a run of a mutant's test does not count as having caught it; "" where it does.

    junit: its record. It has caught the mutant where a test failed by an assertion or the oracle,
    not for a server that does not start, time that is up, or an error around the test.
    """
    try:
        cases = list(ET.parse(junit).getroot().iter("testcase"))
    except (OSError, ET.ParseError):
        return "left no record"
    if errors := [message for case in cases for message in _messages(case, "error")]:
        return f"could not run: {errors[0]}"
    failures = [message for case in cases for message in _messages(case, "failure")]
    if not failures:
        return "did not fail"
    if any(map(_ASSERTED.match, failures)):
        return ""
    return f"failed of something else: {failures[0]}"


def _messages(case: ET.Element, kind: str) -> list[str]:
    found = [each.get("message", "") for each in case.findall(kind)]
    return [message.splitlines()[0] if message else "" for message in found]


@dataclass(frozen=True, kw_only=True)
class Laboratory:
    """Makes mutants of one prefix. bench: the objects of its server; directory: for the mutants."""

    prefix: Prefix
    bench: Workbench
    directory: Path

    def make(self, mutant: Mutant) -> Path:
        """A prefix with this mutant; the caller removes it. Raises CommandFailed, UsageError."""
        place = self.directory / re.sub(r"\W+", "-", mutant.name)
        cache.remove(place)
        compiling.link_tree(self.prefix.path, place)
        core, own = mutant.split()
        if core:
            self._core(core, place)
        if own:
            self._extension(own, place)
        return place

    def _core(self, changes: list[Change], place: Path) -> None:
        touched = [self.bench.source / change.file for change in changes]
        kept = {path: path.read_text() for path in touched}
        try:
            for change in changes:
                path = self.bench.source / change.file
                _replace(path, applied(path.read_text(), change))
            for directory in sorted({program_of(change.file) for change in changes}):
                made = self.bench.program(directory)
                _replace_file(place / "bin" / made.name, made)
        finally:
            for path, text in kept.items():
                _replace(path, text)

    def _extension(self, changes: list[Change], place: Path) -> None:
        work = self.directory / "extension"
        cache.remove(work)
        ignore = shutil.ignore_patterns("*.o", "*.so", "*.bc")
        shutil.copytree(compiling.EXTENSION, work, ignore=ignore)
        for change in changes:
            path = work / change.file
            path.write_text(applied(path.read_text(), change))
        config = f"PG_CONFIG={place / 'bin' / 'pg_config'}"
        make = ["make", "-s", "-C", str(work), config, f"-j{host.cpus()}"]
        library = next(place.glob("lib/**/ptrack.so"))
        call([*make, "all"], env=self.bench.env, log=self.bench.log, quiet=True)
        _replace_file(library, work / "ptrack.so")


def _replace(path: Path, text: str) -> None:
    """Write a new file: the old one may be a link to somebody else's."""
    path.unlink()
    path.write_text(text)


def _replace_file(path: Path, other: Path) -> None:
    mode = path.stat().st_mode
    path.unlink()
    shutil.copyfile(other, path)
    os.chmod(path, mode & 0o7777)  # noqa: PTH101 - of a path that may be a link's target
