"""Who else holds what PostgreSQL is made of, and on which terms: packaging/third-party.copyright.

    third-party.copyright ── text ──▶ debian/copyright and the rpms' THIRD-PARTY
                          ── terms, parts, expression ──▶ licenses of packages and bills
    a source tree ── lacking ──▶ statements in it that the text knows nothing of

The text is paragraphs of a debian/copyright, written by hand from the sources of all majors. Paths
that a major lacks do no harm. What comes in with a later minor is named when packages are made, and
stops no build: a security release does not wait for words.
"""

from __future__ import annotations

import fnmatch
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from ptrack_build import REPO
from ptrack_build.progress import say

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

TEXT: Final = REPO / "packaging" / "third-party.copyright"
#: What packages are made of. Of config, PGXS installs this alone that is not PostgreSQL's own.
TOPS: Final = ("config/install-sh", "contrib", "src")
#: In no package: what tests alone use, tools of developers, resources for Windows.
NOT_PACKAGED: Final = re.compile(r"^src/(test/(locale|modules)|tools)/|\.rc(\.in)?$")
#: What a statement of a holder, of terms or of an origin has, in small letters; _WORDS are in each.
_TELLING: Final = re.compile(
    rb"copyright\W+(?:\w+\W+){0,4}\d{4}|copyright \(c\)|\(c\) \d{4}|copyrighted|"
    rb"\bcopyright (?:in|is|terms)\b|is copyright\b|all rights reserved|\bpublic domain\b|"
    rb"redistribution and use|free of charge|is free software|spdx-|"
    rb"(?:distributed|licen[cs]ed|released) under|licen[cs]e(?: terms|:|, version)|mit licen|"
    rb"\$(?:free|net|open)bsd|(?:derived|imported|taken) from (?:free|net|open)bsd"
)
_WORDS: Final = (
    b"copyright", b"(c) ", b"rights reserved", b"public domain", b"redistribution", b"of charge",
    b"free software", b"spdx", b"distributed ", b"released ", b"licen", b"bsd",
)  # fmt: skip
#: In which lines it is PostgreSQL's own. (BSD's files have the same Regents, with all rights.)
_OWN: Final = re.compile(
    rb"(?:postgresql global development group|regents of the university of california)"
    rb"(?!.*all rights)|postgresql licen[cs]e"
)

#: The notices of which there are several wordings, as _words gives them.
_NOTICE: Final = re.compile(
    r"redistribution and use in source .{0,4000}?possibility of(?: such damage)?|"
    r"permission (?:is hereby granted|to use copy) .{0,4000}?"
    r"(?:or modifications|any copy|dealings (?:in|with) the software|"
    r"performance of this software)\b"
)

#: What SPDX calls the licenses of the text; what is behind ~ there tells wordings apart which SPDX
#: takes for the same. Those of HPND's kind it does not: none of them has the words of its HPND.
SPDX: Final = {
    "Apache-2.0 with LLVM exception": "Apache-2.0 WITH LLVM-exception",
    "BSD-2-clause": "BSD-2-Clause",
    "BSD-3-clause": "BSD-3-Clause",
    "BSL-1.0": "BSL-1.0",
    "Birgmeier": "Martin-Birgmeier",
    "Expat": "MIT",
    "GPL-3+ with Bison exception": "GPL-3.0-or-later WITH Bison-exception-2.2",
    "ISC": "ISC",
    "NCSA": "NCSA",
    "Perl": "(GPL-1.0-or-later OR Artistic-1.0-Perl)",
    "PostgreSQL": "PostgreSQL",
    "Spencer": "Spencer-99",
    "Tcl": "TCL",
    "X11": "X11",
}


def text() -> str:
    """Paragraphs for a debian/copyright: of files, then of licenses."""
    return TEXT.read_text(encoding="utf-8")


def patterns(said: str) -> list[str]:
    """What the fields Files of a debian/copyright have."""
    fields = re.findall(r"^Files:((?:.*\n)(?:[ \t].*\n)*)", said, re.MULTILINE)
    return [pattern for field in fields for pattern in field.split()]


def terms(said: str) -> dict[str, list[str]]:
    """The licenses of what each pattern of a debian/copyright matches, by their names there."""
    found: dict[str, list[str]] = {}
    for paragraph in said.split("\n\n"):
        if under := re.search(r"^License: (.+)$", paragraph, re.MULTILINE):
            found |= dict.fromkeys(patterns(f"{paragraph}\n"), under[1].split(" and "))
    return found


@dataclass(frozen=True, kw_only=True)
class Part:
    """What others hold: files (patterns of paths), who does, under which licenses of the text."""

    files: tuple[str, ...]
    holders: str
    licenses: tuple[str, ...]

    @property
    def expression(self) -> str:
        """Its licenses as SPDX has them."""
        return " AND ".join(dict.fromkeys(map(spdx, self.licenses)))


def parts(said: str) -> list[Part]:
    """The paragraphs of files of a debian/copyright."""
    found = []
    for paragraph in said.split("\n\n"):
        fields = dict(re.findall(r"^(\S+): ((?:.*)(?:\n[ \t].*)*)", paragraph, re.MULTILINE))
        if "Files" in fields and "License" in fields:
            holders = [line.strip() for line in fields.get("Copyright", "").splitlines()]
            found.append(
                Part(
                    files=tuple(fields["Files"].split()),
                    holders="\n".join(holders),
                    licenses=tuple(fields["License"].splitlines()[0].split(" and ")),
                )
            )
    return found


def texts(said: str) -> dict[str, str]:
    """The words of the licenses of a debian/copyright, by their names there."""
    found = (re.match(r"License: (.+)\n((?: .*\n?)+)", each) for each in said.split("\n\n"))
    return {
        each[1]: "\n".join("" if line == " ." else line[1:] for line in each[2].splitlines())
        for each in found
        if each
    }


def spdx(name: str) -> str:
    """What SPDX calls a license of the text. What has no name there is LicenseRef-..."""
    plain = name.partition("~")[0]
    return SPDX.get(name) or SPDX.get(plain) or f"LicenseRef-{name.replace('~', '-')}"


def expression(licenses: Iterable[str]) -> str:
    """All of these, and PostgreSQL's, as one expression of SPDX's.

    What has no name there is LicenseRef-... with that of the text.
    """
    others = sorted({*map(spdx, licenses)} - {SPDX["PostgreSQL"]}, key=str.casefold)
    return " AND ".join([SPDX["PostgreSQL"], *others])


def lacking(tree: Path, said: str) -> list[str]:
    """What of a source others hold, and a debian/copyright does not say: `file: words of it`.

    Files that no pattern matches and that have a statement; files with a notice in other words.
    """
    listed = re.compile("|".join(map(fnmatch.translate, patterns(said))) or r"(?!)")
    known = _words(said.encode())
    return [
        f"{name}: {found}"
        for name, path in _packaged(tree)
        if (raw := path.read_bytes())
        and (found := _reworded(raw, known) if listed.match(name) else _foreign(raw))
    ]


def warn(tree: Path) -> None:
    """Name what the text lacks, and go on."""
    for each in lacking(tree, text()):
        say(f"WARNING: not in packaging/{TEXT.name}: {each}")


def _packaged(tree: Path) -> Iterator[tuple[str, Path]]:
    for top in TOPS:
        for path in sorted([tree / top, *(tree / top).rglob("*")]):
            name = path.relative_to(tree).as_posix()
            if not NOT_PACKAGED.search(name) and path.is_file():
                yield name, path


def _foreign(raw: bytes) -> str:
    """A line with somebody else's statement, where there is one."""
    small = raw.lower()
    for word in _WORDS:
        at = small.find(word)
        while at >= 0:
            start, end = small.rfind(b"\n", 0, at) + 1, small.find(b"\n", at)
            end = end if end >= 0 else len(small)
            line = small[start:end]
            if _TELLING.search(line) and not _OWN.search(line):
                return " ".join(raw[start:end].decode("utf-8", "replace").split())
            at = small.find(word, end)
    return ""


def _reworded(raw: bytes, known: str) -> str:
    """The beginning of a notice that is not among what is known."""
    if b"ermission" in raw or b"edistribution" in raw:  # in few files, and words take time
        for match in _NOTICE.finditer(_words(raw)):
            if match[0] not in known:
                return f"{match[0][:60]}..."
    return ""


def _words(raw: bytes) -> str:
    """In small letters, without signs, those of comments among them."""
    return " ".join(re.findall(r"[a-z0-9]+", raw.decode("utf-8", "replace").lower()))
