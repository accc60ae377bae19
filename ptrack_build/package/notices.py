"""Who else holds what PostgreSQL is made of, and on which terms: as the source itself says.

    a source tree ── found ──▶ [Part] ── copyright_file ──▶ paragraphs of a debian/copyright

Most files are the PostgreSQL Global Development Group's. Some came from elsewhere with a notice
that binaries have to reproduce: the regular expressions, parts of pgcrypto, much of src/port. They
are read off the files of the very tree that is packaged, so that each major names what it has.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from ptrack_build.package import PackageError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

OWN: Final = "PostgreSQL"
GROUP: Final = "PostgreSQL Global Development Group"
SUFFIXES: Final = (".c", ".h", ".l", ".y")
#: In no package: tests, tools of developers, what is for another system.
NOT_PACKAGED: Final = re.compile(r"^src/(test|tools)/|^src/interfaces/ecpg/test/|win32")
#: Directories that came as a whole, where not each file has the notice.
WHOLE: Final = ("src/backend/regex", "src/include/regex")
_LONGEST: Final = 5000
#: Words of which each notice that is KNOWN has some: other files are not looked at any closer.
_TELLING: Final = re.compile(
    rb"Redistribution and|Permission |was funded|copyrighted by|is copyright|free software|"
    rb"Rights are|public domain|may be used under|held by Dr"
)


@dataclass(frozen=True, kw_only=True)
class Terms:
    """A notice, from its first words to its last ones. holder: where the notice names none.

    last: with | between what it may be; more: what has to be said with it.
    """

    name: str
    first: str
    last: str
    holder: str = ""
    more: str = ""

    def pattern(self) -> re.Pattern[str]:
        """Words are apart by any white space; the last ones are the nearest."""
        first, *lasts = (
            r"\s+".join(map(re.escape, each.split()))
            for each in (self.first, *self.last.split("|"))
        )
        last = f"(?P<last>{'|'.join(lasts)})"
        return re.compile(f"{first}(?:.{{0,{_LONGEST}}}?{last})?", re.DOTALL | re.IGNORECASE)


NOBODY: Final = "none: in the public domain"
PERL: Final = """\
Perl may be used under the GNU General Public License, version 1 or later, or the Artistic
License: /usr/share/common-licenses/GPL-1 and /usr/share/common-licenses/Artistic on Debian."""

#: What is within one that is listed before counts as part of that.
KNOWN: Final = (
    Terms(
        name="Spencer",
        first="Development of this software was funded, in part, by Cray Research",
        last="POSSIBILITY OF SUCH DAMAGE.",
    ),
    Terms(
        name="Tcl",
        first="This software is copyrighted by the Regents of the University of California, Sun",
        last="terms specified in this license.",
    ),
    Terms(
        name="Whitley",
        first="Permission is hereby granted to copy all or any part of this program",
        last="must be included in any copy.",
    ),
    Terms(name="MIT", first="PuTTY is copyright", last="DEALINGS IN THE SOFTWARE."),
    Terms(
        name="MIT",
        first="Permission is hereby granted, free of charge, to any person",
        last="IN THE SOFTWARE.",
    ),
    Terms(
        name="ISC",
        first="Permission to use, copy, modify, and distribute this software for any purpose with",
        last="OR PERFORMANCE OF THIS SOFTWARE.",
    ),
    Terms(
        name="BSD",
        first="Redistribution and use in source and binary forms, with or without modification,",
        last="POSSIBILITY OF SUCH DAMAGE.|POSSIBILITY OF",  # getopt.c of majors up to 14 ends so
    ),
    Terms(
        name="PostgreSQL-like",
        first="Permission to use, copy, modify, and distribute this software and its documentation"
        " for any purpose, without fee, and without a written agreement is hereby granted",
        last="OR MODIFICATIONS.",
    ),
    Terms(
        name="Perl",
        first="This module is free software; you may redistribute it and/or modify it under the",
        last="same terms as Perl itself.",
        more=PERL,
    ),
    Terms(
        name="Perl",
        first="This program is free software; you can redistribute it and/or modify it under the",
        last="same terms as Perl itself.",
        more=PERL,
    ),
    Terms(
        name="Warner",
        first="Rights are granted to use this software in any way",
        last="from its use.|fix any related bug.",
    ),
    Terms(
        name="Boost-or-Apache",
        first="The contents of this file may be used under the terms of the Apache License",
        last="KIND, either express or implied.",
    ),
    Terms(
        name="Gladman",
        first="Copyright in this implementation is held by Dr B R Gladman",
        last="place on its exploitation.",
        holder="Dr B R Gladman",
    ),
    Terms(
        name="public-domain",
        first="This file is in the public domain, so clarified as of",
        last="Olson.",
        holder=NOBODY,
    ),
    Terms(
        name="public-domain",
        first="Written by Solar Designer and placed in the public domain.",
        last="for more information.",
        holder=NOBODY,
    ),
    Terms(
        name="public-domain",
        first="Written by Solar Designer",
        last="under a license of your choice.",
        holder=NOBODY,
    ),
)

#: The stemmers' own files, generated by Snowball, have no notice: this is that of the project.
SNOWBALL: Final = ("src/backend/snowball/libstemmer", "src/include/snowball/libstemmer")
SNOWBALL_HOLDERS: Final = (
    "2001 Dr Martin Porter", "2004, 2005 Richard Boulton", "2013 Yoshiki Shibukawa",
    "2006-2025 Olly Betts",
)  # fmt: skip
SNOWBALL_TERMS: Final = """\
Redistribution and use in source and binary forms, with or without
modification, are permitted provided that the following conditions
are met:

1. Redistributions of source code must retain the above copyright notice,
this list of conditions and the following disclaimer.
2. Redistributions in binary form must reproduce the above copyright notice,
this list of conditions and the following disclaimer in the documentation
and/or other materials provided with the distribution.
3. Neither the name of the Snowball project nor the names of its contributors
may be used to endorse or promote products derived from this software
without specific prior written permission.

THIS SOFTWARE IS PROVIDED BY THE COPYRIGHT HOLDERS AND CONTRIBUTORS "AS IS" AND
ANY EXPRESS OR IMPLIED WARRANTIES, INCLUDING, BUT NOT LIMITED TO, THE IMPLIED
WARRANTIES OF MERCHANTABILITY AND FITNESS FOR A PARTICULAR PURPOSE ARE
DISCLAIMED. IN NO EVENT SHALL THE COPYRIGHT OWNER OR CONTRIBUTORS BE LIABLE FOR
ANY DIRECT, INDIRECT, INCIDENTAL, SPECIAL, EXEMPLARY, OR CONSEQUENTIAL DAMAGES
(INCLUDING, BUT NOT LIMITED TO, PROCUREMENT OF SUBSTITUTE GOODS OR SERVICES;
LOSS OF USE, DATA, OR PROFITS; OR BUSINESS INTERRUPTION) HOWEVER CAUSED AND ON
ANY THEORY OF LIABILITY, WHETHER IN CONTRACT, STRICT LIABILITY, OR TORT
(INCLUDING NEGLIGENCE OR OTHERWISE) ARISING IN ANY WAY OUT OF THE USE OF THIS
SOFTWARE, EVEN IF ADVISED OF THE POSSIBILITY OF SUCH DAMAGE."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """Files with the same terms. terms: name and text of each; own: whether PostgreSQL's, too."""

    files: tuple[str, ...]
    holders: tuple[str, ...]
    terms: tuple[tuple[str, str], ...]
    own: bool


def found(tree: Path) -> list[Part]:
    """The parts of a source that others hold, too; none where it has none.

    Raises PackageError where a notice begins and does not end as it is known to.
    """
    files: dict[str, tuple[set[str], dict[tuple[str, str], None], bool]] = {}
    for name, text in _texts(tree):
        terms, holders = _terms(name, text)
        if not terms:
            continue
        whole = name.rpartition("/")[0]
        key = f"{whole}/*" if whole in WHOLE else name
        holders |= _holders(text)
        before = files.get(key, (set(), {}, False))
        own = before[2] or GROUP in text
        files[key] = (before[0] | holders, before[1] | dict.fromkeys(terms), own)
    parts: dict[tuple[tuple[tuple[str, str], ...], bool], tuple[list[str], set[str]]] = {}
    for name, (holders, each, own) in files.items():
        same = parts.setdefault((tuple(sorted(each)), own), ([], set()))
        same[0].append(name)
        same[1].update(holders)
    made = [
        Part(files=tuple(names), holders=tuple(sorted(holders)), terms=terms, own=own)
        for (terms, own), (names, holders) in parts.items()
    ]
    stemmers = tuple(f"{name}/*" for name in SNOWBALL if (tree / name).is_dir())
    if stemmers:
        only = (("BSD-3-clause", SNOWBALL_TERMS),)
        made.append(Part(files=stemmers, holders=SNOWBALL_HOLDERS, terms=only, own=False))
    return sorted(made, key=lambda part: part.files)


def _texts(tree: Path) -> Iterator[tuple[str, str]]:
    """Files that may have a notice, in order, each with its words freed of comment signs."""
    for top in ("contrib", "src"):
        for path in sorted((tree / top).rglob("*")):
            name = path.relative_to(tree).as_posix()
            wanted = path.suffix in SUFFIXES or path.name == "COPYRIGHT"
            if not wanted or NOT_PACKAGED.search(name) or not path.is_file():
                continue
            raw = path.read_bytes()
            if _TELLING.search(raw):
                yield name, _bare(raw.decode("utf-8", "replace"))


def _bare(text: str) -> str:
    """Without the signs of comments; white space is one blank."""
    lines = []
    for line in text.splitlines():
        inner = re.sub(r"^\s*(?:/\*+|\*+(?!/))|\*+/\s*$", "", line)
        lines.append(" ".join(inner.split()))
    return "\n".join(lines)


def _terms(name: str, text: str) -> tuple[list[tuple[str, str]], set[str]]:
    """Names and texts of the notices in a file; who holds it where a notice does not say."""
    taken: list[tuple[int, int]] = []
    terms, holders = [], set()
    for known in KNOWN:
        for match in known.pattern().finditer(text):
            if any(start <= match.start() < end for start, end in taken):
                continue
            if match["last"] is None:
                what = f"{name}: the notice that begins with {known.first!r} does not end with"
                what += f" {known.last!r}"
                raise PackageError(what, hint="correct KNOWN in ptrack_build/package/notices.py")
            taken.append(match.span())
            body = re.sub(r"\n{3,}", "\n\n", match[0].strip())
            terms.append((_called(known, body), f"{body}\n\n{known.more}" if known.more else body))
            if known.holder:
                holders.add(known.holder)
    return terms, holders


def _called(known: Terms, body: str) -> str:
    """BSD's licenses are called after the number of their clauses."""
    if known.name != "BSD":
        return known.name
    numbers = re.findall(r"^([1-4])\. ", body, re.MULTILINE)
    return f"BSD-{max(numbers, default='2')}-clause"


def _holders(text: str) -> set[str]:
    """Whom a file names, with years, but for those who hold all of PostgreSQL."""
    holders = set()
    lines = text.splitlines()
    for at, line in enumerate(lines):
        said = re.search(r"\bcopyright\b\W*(?:\(c\)\s*)?(\d{4}.*)", line, re.IGNORECASE)
        if said is None:
            continue
        who = said[1].strip()
        if not re.search(r"[A-Za-z]{2}", who) and at + 1 < len(lines):
            who = f"{who.rstrip(',')} {lines[at + 1]}"
        who = re.sub(r"\s*All rights reserved\.?|[.,;*\s]+$", "", who, flags=re.IGNORECASE)
        who = " ".join(who.split()).rstrip(".,")
        if GROUP not in who and not re.match(r"1994,? (The )?Regents", who):
            holders.add(who)
    return holders


def copyright_file(parts: list[Part]) -> str:
    """Paragraphs for a debian/copyright, each with a blank line before it.

    Terms of one name that differ in their words are numbered.
    """
    names: dict[str, str] = {}  # by the words, without what is white space
    texts: dict[str, str] = {}

    def called(term: tuple[str, str]) -> str:
        words = " ".join(term[1].split()).lower()
        if words not in names:
            alike = [name for name in texts if name == term[0] or name.startswith(f"{term[0]}~")]
            names[words] = f"{term[0]}~{len(alike) + 1}" if alike else term[0]
            texts[names[words]] = term[1]
        return names[words]

    made = []
    for part in parts:
        licenses = list(dict.fromkeys(map(called, part.terms)))
        holders = [*([GROUP] if part.own else []), *part.holders]
        made.append(
            f"Files: {_listed(part.files)}\nCopyright: {_listed(holders or ['see the file'])}\n"
            f"License: {' and '.join([*([OWN] if part.own else []), *licenses])}\n"
        )
    for name, text in sorted(texts.items()):
        lines = [f" {line}" if line else " ." for line in text.splitlines()]
        made.append(f"License: {name}\n" + "\n".join(lines) + "\n")
    return "".join(f"\n{each}" for each in made)


def _listed(each: tuple[str, ...] | list[str]) -> str:
    return "\n ".join(each)
