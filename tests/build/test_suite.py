"""Sessions that test: where their results go."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ptrack_build import compile as compiling
from ptrack_build import matrix, report, suite
from ptrack_build.errors import SourceError

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def _asked_anew() -> Iterator[None]:
    suite.results.cache_clear()
    yield
    suite.results.cache_clear()


@pytest.fixture
def closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_cache: Path) -> Path:
    """A checkout that cannot be written, not even by root; the cache that can."""
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    monkeypatch.setattr(suite, "REPO", checkout)
    may = os.access

    def access(path: Path, mode: int, **options: bool) -> bool:
        return may(path, mode, **options) and not (mode & os.W_OK and checkout == Path(path))

    monkeypatch.setattr(os, "access", access)
    return own_cache


def test_results_are_the_checkouts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suite, "REPO", tmp_path)
    assert suite.results() == tmp_path / "results"
    assert (tmp_path / "results").is_dir()


def test_results_are_the_caches_where_the_checkout_cannot_be_written(
    closed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):
        assert suite.results() == closed / "results"
    assert (closed / "results").is_dir()
    said = capsys.readouterr().out
    assert said.count(f"results go to {closed / 'results'}") == 1


def test_what_cannot_be_had_is_recorded_all_the_same(
    closed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*_args: object, **_options: object) -> None:
        what = "no source"
        raise SourceError(what)

    for name in ("one", "prefix"):
        monkeypatch.setattr(suite, name, unreachable)
    majors = [matrix.load().major("17")]
    with pytest.raises(SourceError):
        suite.every(majors, [])
    with pytest.raises(SourceError):
        suite.built_all(majors, compiling.RELEASE)
    for name in ("test.json", "build.json"):
        assert '"unreachable"' in (closed / "results" / name).read_text()


def test_pytest_runs_there_and_its_record_is_read(closed: Path) -> None:
    """Nor do pytest and hypothesis write what they remember below the checkout."""
    checkout = closed.parent / "checkout"
    (checkout / "pytest.ini").write_text("[pytest]\n")
    (checkout / "test_one.py").write_text(
        "from hypothesis import given, strategies as st\n"
        "@given(st.integers())\n"
        "def test_one(number):\n    assert number < 1000\n"
    )
    ended = suite.pytest("one", ["test_one.py"], [])
    assert (ended.returncode, ended.tests, ended.failures) == (1, 1, 1)
    assert report.counted(closed / "results" / "one.xml") == (1, 1, 0)
    left = {path.name for path in checkout.iterdir()} - {"__pycache__"}
    assert left == {"pytest.ini", "test_one.py"}
