"""Third parties' notices: whether the text is one, what it lacks of a tree, and what it becomes."""

from __future__ import annotations

import datetime as dt
import json
import re
from dataclasses import replace
from typing import TYPE_CHECKING

import msgspec
import pytest
from cyclonedx import spdx

from ptrack_build import cache, matrix, patch, source
from ptrack_build.package import deb, notices, rpm, terms
from ptrack_build.source import git
from ptrack_build.source.lock import Row
from tests.build import _packages

if TYPE_CHECKING:
    from pathlib import Path

BSD = """/*
 * Redistribution and use in source and binary forms, with or without
 * modification, are permitted provided that {what}.
 * IN NO EVENT, EVEN IF ADVISED OF THE POSSIBILITY OF
 * SUCH DAMAGE.
 */
"""
SAID = f"""Files: src/port/a.c
 contrib/b*
Copyright: 1990 A
License: BSD

License: BSD
 {" ".join(BSD.format(what="this is kept").split())}
"""
PACKAGE_VERSION = re.compile(r"^PACKAGE_VERSION='(.+)'$", re.MULTILINE)
LONG = "/*\n" + " * Words, words.\n" * 2000
#: Files of others, and what is shown of them.
FOREIGN = {
    "src/port/regents.c": "/*\n * Copyright (c) 1990, 1993\n"
    " *\tThe Regents of the University of California.  All rights reserved.\n */\n",
    "src/port/rights.c": "Copyright (c) 1990 Regents of the University of California.\n"
    "All rights reserved.\n",
    "src/port/bare.c": BSD.format(what="this is kept"),
    "src/backend/jit/llvm/A.cpp": "// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception\n",
    "src/backend/jit/llvm/A.LICENSE": "License:\n\nCopyright (c) 2003-2019 University of Illinois",
    "src/include/jit/A.h": "// Part of LLVM, under the Apache License v2.0. See license terms.\n",
    "src/port/long.c": f"{LONG} * All rights reserved.\n */\n",
    "src/port/domain.c": "/* By A, donated to the public domain */\n",
    "src/port/mit.c": "/* Copyright (c) 2026, PostgreSQL Global Development Group */\n"
    "/* MIT licensed */\n",
    "src/port/latin.c": "/* Copyright (C) 1999 M\xfcller */\n",
    "src/bin/x/x.c": " * copyright (c) A <a@b.example>, 2001;\n * license: BSD\n",
    "src/x/big.c": "/* lv is written and copyrighted by B. */\n",
    "src/x/held.h": "/* Copyright in this implementation is held by C */\n",
    "src/x/old.c": " * Copyright A B 2016.\n",
    "src/x/yearless.c": " * Copyright (c) by A\n",
    "src/x/imported.c": " * File imported from FreeBSD, original by A.\n",
    "src/x/x.pl": "# This file is distributed under BSD-style license.\n",
    "contrib/x/x.c": " *\tA copy. Permission is granted, free of charge\n",
    "config/install-sh": "# Copyright (C) 1994 X Consortium\n",
}  # fmt: skip
OWN = {
    "src/own.c": "/*\n * Portions Copyright (c) 1996-2026, PostgreSQL Global Development Group\n"
    " * Portions Copyright (c) 1994-5, Regents of the University of California\n */\n",
    "src/pg.c": " * This code is released under the terms of the PostgreSQL License.\n",
    "src/talk.c": "/* That doesn't license us to lie: all of it was released by \\copyright. */\n",
    "src/test/modules/x/x.c": " * Copyright (c) 1999 A\n",
    "src/tools/x.c": " * Copyright (c) 1999 A\n",
    "src/x.rc": "Copyright (C) 2019",
    "src/port/a.c": f"/* Copyright (c) 1990 A */\n{BSD.format(what='this is kept')}",
    "contrib/b/c/d.c": "/* Copyright (c) 1990 A */\n",
    "config/other.m4": "# Copyright (C) 1994 A\n",
    "LICENSE": "Copyright (c) 1999 A\n",
}


def test_what_others_say_in_files_that_are_not_listed_is_named(tmp_path: Path) -> None:
    _packages.write(tmp_path, OWN | FOREIGN)
    (tmp_path / "src/port/latin.c").write_bytes(FOREIGN["src/port/latin.c"].encode("latin-1"))
    (tmp_path / "src/loop").symlink_to("nowhere")
    named = [each.partition(": ")[0] for each in notices.lacking(tmp_path, SAID)]
    assert sorted(named) == sorted(FOREIGN)
    every = [each.partition(": ")[0] for each in notices.lacking(tmp_path, "")]
    assert sorted(every) == sorted([*FOREIGN, "src/port/a.c", "contrib/b/c/d.c"])
    assert notices.lacking(tmp_path / "none", SAID) == []


def test_a_notice_in_other_words_is_named(tmp_path: Path) -> None:
    _packages.write(tmp_path, {"src/port/a.c": OWN["src/port/a.c"].replace("kept", "told")})
    (named,) = notices.lacking(tmp_path, SAID)
    assert named.startswith("src/port/a.c: redistribution and use in source and binary forms")


def test_it_is_said_and_nothing_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _packages.write(tmp_path, {"src/x/big.c": FOREIGN["src/x/big.c"]})
    notices.warn(tmp_path)
    said = "src/x/big.c: /* lv is written and copyrighted by B. */"
    assert capsys.readouterr().out == f"WARNING: not in packaging/third-party.copyright: {said}\n"


def released() -> dict[str, str]:
    """Sources that are PostgreSQL's own and have a number, by digest: those that were found, and
    matrix.lock's. The repository that git took them from may be anybody's.
    """
    found = {row.tree: row.version for row in source.read_lock().values()}
    for file in (cache.root() / "source").glob("found-*.json"):
        for each in msgspec.json.decode(file.read_bytes(), type=list[source.Record]):
            own = any(f" of {server} at " in each.origin for server in git.SERVERS)
            if "devel" not in each.version and (own or each.provider in {"distro", "tarball"}):
                found[each.digest] = each.version
    return found


def kept() -> tuple[dict[str, Path], list[str]]:
    """The patched trees in the cache that are made of those, one of each; the others' versions."""
    trees = {file.parent.name: file for file in (cache.root() / "tree").glob("*/configure")}
    patches = {
        json.loads(memo.read_text())["patch"] for memo in (cache.root() / "memo").glob("patch-*")
    }
    known = {
        patch.tree_key(digest, each): f"{version} {digest[:12]}"
        for digest, version in released().items()
        for each in patches
    }
    names = trees.keys() & known.keys()
    others = [
        found[1] if (found := PACKAGE_VERSION.search(trees[name].read_text())) else name
        for name in trees.keys() - names
    ]
    return {known[name]: trees[name].parent for name in sorted(names)}, sorted(others)


def test_real_trees_have_nothing_that_the_text_lacks() -> None:
    """Those that sessions have left in the cache. What somebody has changed is theirs to word."""
    trees, others = kept()
    if not trees:
        left_out = f" (left out, as no release is known to be it: {', '.join(others)})"
        pytest.skip(
            "no tree of a release in the cache; build-NN or test-NN leave one"
            + (left_out if others else "")
        )
    lacking = {version: notices.lacking(tree, notices.text()) for version, tree in trees.items()}
    assert lacking == {version: [] for version in trees}


def test_of_the_trees_in_the_cache_only_those_of_releases_count(
    own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = {  # by digest: version, provider, origin
        "a": ("17.4", "distro", "postgresql-17 17.4-1 of stable"),
        "b": ("17.5", "git", f"REL_17_STABLE of {git.SERVERS[1]} at b"),
        "c": ("17.6", "git", "REL_17_STABLE of /home/a/postgres at c"),
        "d": ("20devel", "git", f"master of {git.SERVERS[0]} at d"),
        "e": ("18.1", "path", ""),
        "f": ("19beta1", "git", "REL_19_STABLE of /home/a/postgres at f"),
    }
    records = []
    for digest, (version, provider, origin) in made.items():
        key = patch.tree_key(digest, "p")
        _packages.write(
            own_cache,
            {
                f"tree/{key}/configure": f"#!/bin/sh\nPACKAGE_VERSION='{version}'\n",
                f"tree/{key}/src/x.c": "/* Copyright (c) 1999 A */\n",
                f"memo/patch-{digest}.json": json.dumps({"key": key, "patch": "p"}),
            },
        )
        if origin:  # a path is not remembered
            record = source.Record(
                when=1, key="k", version=version, commit=digest, digest=digest,
                provider=provider, origin=origin,
            )  # fmt: skip
            records.append(record)
    _packages.write(own_cache, {"source/found-17.json": msgspec.json.encode(records).decode()})
    row = Row(
        name="19", version="19beta1", provider="git", commit="f", tree="f", origin="",
        proven=dt.date(2026, 1, 1),
    )  # fmt: skip
    monkeypatch.setattr(source, "read_lock", lambda: {"19": row})
    trees, others = kept()
    assert sorted(trees) == ["17.4 a", "17.5 b", "19beta1 f"]
    assert others == ["17.6", "18.1", "20devel"]
    with pytest.raises(AssertionError, match=r"src/x\.c: .* Copyright \(c\) 1999 A"):
        test_real_trees_have_nothing_that_the_text_lacks()
    for tree in trees.values():
        cache.remove(tree)
    with pytest.raises(pytest.skip.Exception, match=r"left out, .*: 17\.6, 18\.1, 20devel\)"):
        test_real_trees_have_nothing_that_the_text_lacks()


@pytest.mark.parametrize("kind", ["deb", "rpm"])
def test_each_license_that_is_named_is_given_once(kind: str, tmp_path: Path) -> None:
    tree = _packages.patched(tmp_path)
    if kind == "deb":
        known = deb.facts(tree, _packages.system("amd64"), llvm=0)
        text = deb.render("server", known)["copyright"][0]
    else:
        text = rpm.render("server", rpm.facts(tree, "Debian"))["THIRD-PARTY"]
    assert notices.text() in text
    first, *paragraphs = text.rstrip("\n").split("\n\n")
    assert first.startswith("Format: ")
    named, given, listed = set(), [], []
    for each in paragraphs:
        rows = [line for line in each.splitlines() if not line.startswith(" ")]
        fields = {name: value for name, _, value in (row.partition(": ") for row in rows)}
        assert len(fields) == len(rows), each
        if rows[0].startswith("License: "):
            assert len(each.splitlines()) > 1, f"no words of {rows[0]}"
            given.append(fields["License"])
            continue
        assert {*fields} - {"Comment"} == {"Files", "Copyright", "License"}, each
        listed += notices.patterns(f"{each}\n")
        if "\nLicense: PostgreSQL-ptrack\n " not in each:  # which has its words with it
            named.update(fields["License"].split(" and "))
    assert sorted(named) == sorted(given)
    assert len(listed) == len({*listed}), "a pattern in two paragraphs: the last one holds"
    assert not re.search(r"[ \t]$|\t|.{101}", notices.text(), re.MULTILINE)


def tags(text: str) -> dict[str, str]:
    """The License of each package of a spec, by the word behind %package."""
    found = re.findall(
        r"^(?:Name: .*|%package (?P<name>.+))\n(?:[A-Z]\w+: .*\n|#.*\n)*?License: +(?P<terms>.+)$",
        text,
        re.MULTILINE,
    )
    assert len(found) == text.count("\n%package ") + 1, "a package without a License of its own"
    return {name or "client": terms for name, terms in found}


def spec(role: str, folder: Path) -> str:
    """Of 18, which has all packages."""
    tree = _packages.patched(folder)
    tree = replace(tree, source=replace(tree.source, major=matrix.load().major("18")))
    files = rpm.render(role, rpm.facts(tree, "Debian"))
    (text,) = [text for name, text in files.items() if name.endswith(".spec")]
    return text


def test_the_rpms_are_under_all_licenses_of_what_is_in_them(tmp_path: Path) -> None:
    said = tags(spec("server", tmp_path))
    assert said.pop("native") == "PostgreSQL"  # it has no files
    assert {*said} == {*terms.LINKED, *rpm.LANGUAGES, "llvmjit"}
    under = {package: each.split(" AND ") for package, each in said.items()}
    every = {name for names in under.values() for name in names}
    # what the text has is in the tags, unless no package has it
    given_terms = notices.terms(notices.text())
    for pattern, names in given_terms.items():
        for name in names:
            called = notices.expression([name]).removeprefix("PostgreSQL AND ")
            assert called in every or "gettimeofday" in pattern, f"{name} of {pattern}"
    # what is in the tags the text has, and SPDX knows
    given = {name for names in given_terms.values() for name in names}
    references = {f"LicenseRef-{name.replace('~', '-')}" for name in given}
    for package, each in said.items():
        assert "PostgreSQL" in under[package]
        assert {name for name in under[package] if name.startswith("LicenseRef-")} <= references
        assert spdx.is_expression(re.sub(r"LicenseRef-[\w.-]+", "MIT", each)), each
    assert not [name for name in given if spdx.is_supported_id(name) and name not in notices.SPDX]


def test_the_extension_is_all_its_own(tmp_path: Path) -> None:
    terms = re.findall(r"^License: +(.+)$", spec("extension", tmp_path), re.MULTILINE)
    assert terms == ["PostgreSQL"]


def test_a_package_is_under_what_its_sources_are() -> None:
    said = """Files: src/bin/pg_dump/a.c
 src/bin/pg_dump/b.c
License: Warner~custom

Files: src/port/win32gettimeofday.c
License: HPND~author

Files: src/backend/regex/*
 src/include/regex/*
License: PostgreSQL and Spencer

Files: contrib/c.c
License: BSD-3-clause~WIDE and Perl

Files: src/new/d.c
License: Expat~PuTTY

License: Expat~PuTTY
 Words.
"""
    spencer = "PostgreSQL AND MIT AND Spencer-99"
    perl = "(GPL-1.0-or-later OR Artistic-1.0-Perl) AND BSD-3-Clause"
    assert terms.licenses(said) == {
        "client": "PostgreSQL AND LicenseRef-Warner-custom AND MIT",
        "contrib": f"PostgreSQL AND {perl} AND MIT",
        "devel": spencer,
        "libs": "PostgreSQL AND MIT",  # a new place may be linked anywhere
        "libs-oauth": "PostgreSQL AND MIT",
        "server": spencer,
        "plperl": "PostgreSQL",
        "plpython3": "PostgreSQL",
        "pltcl": "PostgreSQL",
        "llvmjit": f"PostgreSQL AND {perl} AND Spencer-99",
    }
