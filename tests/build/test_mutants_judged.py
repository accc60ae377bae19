"""Mutants: what a test may fail of to have caught one."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from ptrack_build import mutants
from tests.build.conftest import REPO

if TYPE_CHECKING:
    from pathlib import Path

HEAD = """
import pytest, time
from tests.harness.cluster import NotInTime, StartFailed
from tests.harness.oracle import LostBlocks
LostBlocks.__init__ = lambda self, *_: AssertionError.__init__(self, "3 lost")
"""


def record(tmp_path: Path, body: str) -> Path:
    """The record of pytest's run of a test."""
    (tmp_path / "test_it.py").write_text(f"{HEAD}\n{body}\n")
    junit = tmp_path / "it.xml"
    subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--rootdir={tmp_path}",
         f"--junitxml={junit}", "--timeout=1", str(tmp_path / "test_it.py")],
        cwd=REPO, check=False, capture_output=True,
    )  # fmt: skip
    return junit


@pytest.mark.parametrize(
    "body",
    [
        "def test_it(): assert 1 == 2",
        "def test_it(): assert 1 == 2, 'the parent is taken'",
        "def test_it(): raise LostBlocks(None, '')",
        "def test_it():\n    with pytest.raises(ValueError): pass",
        "@pytest.mark.parametrize('x', [1, 2])\ndef test_it(x): assert x == 1",
    ],
    ids=["assert", "with words", "oracle", "no exception", "one of several"],
)
def test_an_assertion_has_caught_it(tmp_path: Path, body: str) -> None:
    assert mutants.caught(record(tmp_path, body)) == ""


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("def test_it(): pass", "did not fail"),
        ("def test_it(): pytest.skip('no')", "did not fail"),
        ("def test_it(): raise StartFailed('one', 'log')", "something else: .*did not start"),
        ("def test_it(): time.sleep(9)", "something else: .*Timeout"),
        ("def test_it(): raise NotInTime('one: waited 60 s for it')", "something else: .*waited"),
        ("def test_it(): raise ConnectionError('closed')", "something else: .*closed"),
        ("@pytest.fixture\ndef x(): assert 0\ndef test_it(x): pass", "could not run"),
        ("import no_such_module", "could not run"),
    ],
)
def test_anything_else_has_not(tmp_path: Path, body: str, said: str) -> None:
    assert re.search(said, mutants.caught(record(tmp_path, body)))


def test_no_record_at_all(tmp_path: Path) -> None:
    assert mutants.caught(tmp_path / "none.xml") == "left no record"


@pytest.mark.parametrize(
    ("file", "directory"),
    [
        ("src/backend/backup/basebackup.c", "backend"),
        ("src/bin/pg_rewind/filemap.c", "bin/pg_rewind"),
    ],
)
def test_program_of_a_file(file: str, directory: str) -> None:
    assert mutants.program_of(file) == directory


def test_all_that_is_to_fail_is_a_test() -> None:
    named = sorted({test for mutant in mutants.load() for test in mutant.tests})
    collected = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n0", "--collect-only",
         *sorted({test.partition("::")[0] for test in named})],
        cwd=REPO, check=True, capture_output=True, text=True,
    ).stdout.splitlines()  # fmt: skip
    there = {*collected, *(test.partition("[")[0] for test in collected)}
    assert [test for test in named if test not in there] == []


EXTENSION = [mutant for mutant in mutants.load() if mutant.part is mutants.Part.EXTENSION]


@pytest.mark.parametrize("mutant", EXTENSION, ids=lambda mutant: mutant.name)
def test_a_mutant_of_the_extension_changes_it(mutant: mutants.Mutant) -> None:
    """The core's are tried where its source is."""
    texts: dict[str, str] = {}
    for change in mutant.changes:
        before = texts.get(change.file) or (REPO / "extension" / change.file).read_text()
        texts[change.file] = mutants.applied(before, change)
        assert texts[change.file] != before
