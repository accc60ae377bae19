"""Third parties' notices: read off a tree, and what becomes of them in a debian/copyright."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from ptrack_build.package import PackageError, deb, notices
from tests.build import _packages

if TYPE_CHECKING:
    from pathlib import Path

BSD = """/*
 * Copyright (c) 1990, 1993
 *\tThe Regents of the University of California.  All rights reserved.
 *
 * Redistribution and use in source and binary forms, with or without
 * modification, are permitted provided that the following conditions
 * are met:
 * 1. Redistributions of source code must retain this.
 * 2. Redistributions in binary form must reproduce this.
 *{third}
 * THIS SOFTWARE IS PROVIDED BY {who} ``AS IS'', EVEN IF ADVISED OF THE POSSIBILITY OF
 * SUCH DAMAGE.
 */
int x;
"""
TWO = BSD.format(third="", who="THE AUTHOR")
THREE = BSD.format(third=" 3. No names.\n *", who="THE REGENTS")
OTHER = BSD.format(third=" 3. No names.\n *", who="THE PROJECT")
OWN = " * Portions Copyright (c) 1996-2026, PostgreSQL Global Development Group\n"
WHITLEY = """/****/
/*  Copyright (c) 1990                                       */
/*  Darrell L. Whitley                                       */
/*  Permission is hereby granted to copy all or any part of  */
/*  this program for free distribution.   The author's name  */
/*  and this copyright notice must be included in any copy.  */
/****/
"""
TREE = {
    "src/port/a.c": THREE,
    "src/port/b.c": THREE.replace("1990, 1993", "1983"),
    "src/port/c.c": f"/*\n{OWN} */\n{OTHER}",
    "src/port/d.c": TWO,
    "src/port/e.c": f"/*\n{OWN} */\nint e;\n",
    "src/port/win32x.c": THREE,
    "src/test/x.c": THREE,
    "src/backend/optimizer/geqo/geqo_cx.c": WHITLEY,
    "src/timezone/zic.c": "/*\n * This file is in the public domain, so clarified as of\n"
    " * 2006-07-17 by Arthur David Olson.\n */\n",
    "src/backend/snowball/libstemmer/api.c": "int api;\n",
}


def test_parts_are_what_the_files_of_the_tree_say(tmp_path: Path) -> None:
    _packages.write(tmp_path, TREE)
    parts = {part.files: part for part in notices.found(tmp_path)}
    assert [*parts] == [
        ("src/backend/optimizer/geqo/geqo_cx.c",),
        ("src/backend/snowball/libstemmer/*",),
        ("src/port/a.c", "src/port/b.c"),
        ("src/port/c.c",),
        ("src/port/d.c",),
        ("src/timezone/zic.c",),
    ]
    regents = "The Regents of the University of California"
    assert parts["src/port/a.c", "src/port/b.c"].holders == (
        f"1983 {regents}", f"1990, 1993 {regents}",
    )  # fmt: skip
    assert parts["src/backend/optimizer/geqo/geqo_cx.c",].holders == ("1990 Darrell L. Whitley",)
    assert parts["src/timezone/zic.c",].holders == (notices.NOBODY,)
    assert [name for name, part in parts.items() if part.own] == [("src/port/c.c",)]
    ((called, text),) = parts["src/port/d.c",].terms
    assert called == "BSD-2-clause"
    assert text.startswith("Redistribution and use")
    assert text.endswith("POSSIBILITY OF\nSUCH DAMAGE.")
    assert "*" not in text


def test_each_license_that_is_named_is_given_once(tmp_path: Path) -> None:
    tree = _packages.patched(tmp_path)
    _packages.write(tree.path, TREE)
    known = deb.facts(tree, _packages.system("amd64"), llvm=0)
    text = deb.render("server", known)["copyright"][0]
    paragraphs = [each for each in re.split(r"\n\n", text.strip()) if each]
    assert all(re.match(r"[A-Z][A-Za-z-]*: ", each) for each in paragraphs), text
    named, given = set(), []
    for each in paragraphs:
        (said,) = re.findall(r"^License: (.+)$", each, re.MULTILINE) or [""]
        if each.startswith("License: "):
            given.append(said)
        elif said and not re.search(r"^License: .*\n .", each, re.MULTILINE):
            named.update(said.split(" and "))
    assert sorted(named) == sorted(given)
    assert {"BSD-2-clause", "BSD-3-clause", "BSD-3-clause~2", "BSD-3-clause~3"} <= named
    assert "Files: src/port/c.c\nCopyright: PostgreSQL Global Development Group\n" in text
    # a tree without any
    assert notices.copyright_file(notices.found(tmp_path / "none")) == ""


def test_a_notice_that_ends_otherwise_is_an_error(tmp_path: Path) -> None:
    _packages.write(tmp_path, {"src/port/a.c": THREE.replace("POSSIBILITY", "CHANCE")})
    with pytest.raises(PackageError, match=r"src/port/a\.c: the notice that begins with"):
        notices.found(tmp_path)
