"""The demonstration of ``./nox -s demo-NN``: its story is told, and what it says is so."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ptrack_build import cache, demo, matrix
from ptrack_build import compile as compiling
from ptrack_build.errors import CompileError
from ptrack_build.patch import PatchedTree
from ptrack_build.source import SourceTree

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.harness.install import Install

#: Enough that the untouched table stands out, few enough for a second.
ROWS = 60_000


@pytest.fixture
def prefix(install: Install) -> compiling.Prefix:
    """The installation under test, as a build would hand it over."""
    (major,) = (each for each in matrix.load().majors if each.number == install.major)
    nowhere = Path("/nonexistent")
    source = SourceTree(
        major=major, version=install.version, commit="", mirror=nowhere, digest="",
        provider="path", origin="a test",
    )  # fmt: skip
    tree = PatchedTree(source=source, path=nowhere, key="", patch_digest="", how="applied")
    return compiling.Prefix(
        path=install.prefix, key="", server_key="", tree=tree, variant=compiling.TEST,
        version=install.version, log=nowhere,
    )  # fmt: skip


@pytest.fixture(autouse=True)
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the demonstration makes its server, and nothing else is; with a cache of its own."""
    with tempfile.TemporaryDirectory(prefix="pt-", dir="/tmp") as name:  # short, for a socket
        path = Path(name)
        path.chmod(0o755)
        monkeypatch.setattr(tempfile, "tempdir", name)
        monkeypatch.setenv("PTRACK_CACHE", f"{name}/cache")
        yield path


def homes(place: Path) -> list[Path]:
    """The directories of servers that are there."""
    return list(place.glob("ptrack-demo-*"))


def number(text: str) -> int:
    return int(text.replace(",", ""))


def found(pattern: str, text: str) -> re.Match[str]:
    match = re.search(pattern, text, re.MULTILINE)
    assert match, f"no {pattern} in:\n{text}"
    return match


def told(story: str) -> dict[str, tuple[int, int]]:
    """By relation: its blocks, and those that changed."""
    rows = re.findall(r"^ *(\w+) +([\d,]+) +([\d,]+) +[\d.]+% *$", story, re.MULTILINE)
    return {name: (number(blocks), number(changed)) for name, blocks, changed in rows}


def test_the_story(
    prefix: compiling.Prefix, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    demo.show(prefix, rows=ROWS)
    story = capsys.readouterr().out
    lsn = found(r"a full backup is taken here, at LSN ([0-9A-F]+/[0-9A-F]+)$", story)[1]
    assert lsn != "0/0"
    assert f"Changed since {lsn}, PostgreSQL {prefix.version}" in story
    tables = told(story)
    assert set(tables) == {"customers", "customers_pkey", "orders", "orders_pkey", "archive"}
    blocks, changed = tables.pop("archive")
    assert blocks > 50
    assert changed == 0, "nobody touched it"
    for name, (blocks, changed) in tables.items():
        assert 0 < changed <= blocks, name
    catalogs = number(found(r"^ *catalogs and the rest +([\d,]+) *$", story)[1])
    full = found(r"^A full backup reads +([\d.]+) MB  in ([\d,]+) blocks$", story)
    incremental = found(r"^An incremental one reads +([\d.]+) MB  in ([\d,]+) blocks$", story)
    assert number(incremental[2]) == catalogs + sum(changed for _, changed in tables.values())
    assert number(incremental[2]) < number(full[2])
    assert float(incremental[1]) < float(full[1])
    share = float(found(r"^ +([\d.]+)%  of the full one$", story)[1])
    assert share == pytest.approx(100 * number(incremental[2]) / number(full[2]), abs=0.1)
    name = prefix.tree.source.major.name
    assert f"./nox -s demo-{name} -- --stay\n" in story
    assert f"./nox -s test-{name}\n" in story
    assert not homes(place), "the server is gone, as the story says"


def test_one_that_stays_is_left_by_the_commands_that_are_shown(
    prefix: compiling.Prefix, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache.link(f"pg-{prefix.tree.source.major.name}", prefix.path)
    demo.show(prefix, stay=True, rows=ROWS)
    assert len(homes(place)) == 1
    story = capsys.readouterr().out

    def run(command: str, *more: str) -> str:
        line = " ".join([command, *map(shlex.quote, more)])
        return subprocess.run(
            ["/bin/sh", "-c", line], check=True, capture_output=True, text=True, cwd="/",
            env={**os.environ, "PGOPTIONS": "", "PGPORT": "5432"}, timeout=60,
        ).stdout.strip()  # fmt: skip

    try:
        psql = found(r"^ +(\S+/bin/psql .*)$", story)[1]
        queries = re.findall(r"^ +(SELECT .*;)$", story, re.MULTILINE)
        assert len(queries) == 2
        for query in queries:
            assert run(psql, "-XAtc", query), query
    finally:
        run(found(r"^ +(.*/bin/pg_ctl stop .*)$", story)[1])
    assert not homes(place)


def test_what_fails_has_the_servers_log(
    prefix: compiling.Prefix, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "SETTINGS", demo.SETTINGS + "shared_buffers = 'none'\n")
    with pytest.raises(CompileError, match="the demonstration failed") as caught:
        demo.show(prefix, rows=ROWS)
    assert caught.value.log
    assert "shared_buffers" in caught.value.log.read_text()
    assert not homes(place)
