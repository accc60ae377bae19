"""Sessions that test: where their results go."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import time
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, NoReturn

import pytest

from ptrack_build import cache, host, matrix, report, source, suite
from ptrack_build import compile as compiling
from ptrack_build.errors import BadSource, HostError, SourceError, UsageError
from ptrack_build.run import PATIENCE
from tests.build.conftest import Script

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
    monkeypatch.setattr(host, "server_user", lambda: None)
    for name in ("PTRACK_SOURCE", "PTRACK_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    may = os.access

    def access(path: Path, mode: int, **options: bool) -> bool:
        return may(path, mode, **options) and not (mode & os.W_OK and checkout == Path(path))

    monkeypatch.setattr(os, "access", access)
    return own_cache


def test_a_first_build_without_room_fetches_nothing(
    own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Room for the compile alone is not enough: source and tree come before it."""

    class Fetched(Exception):
        pass

    def fetch(*_args: object, **_options: object) -> NoReturn:
        raise Fetched

    free = (compiling.FREE_MB + 100) * 1_000_000
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    monkeypatch.setattr(host, "ensure", lambda *_args, **_options: None)
    monkeypatch.setattr(source, "fetch", fetch)
    major = matrix.load().major("17")
    with pytest.raises(HostError, match=r"has 800 MB free; a first build takes 1000 MB"):
        suite.prefix(major, compiling.TEST)
    cache.link("pg-17", own_cache / "prefix")
    with pytest.raises(Fetched):
        suite.prefix(major, compiling.TEST)


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
    monkeypatch.setenv("PTRACK_SOURCE", "tarball")
    with pytest.raises(SourceError) as caught:
        suite.built_all(majors, compiling.RELEASE)
    assert "unset PTRACK_SOURCE" in (caught.value.hint or "")
    for name in ("test.json", "build.json"):
        assert '"unreachable"' in (closed / "results" / name).read_text()


@pytest.mark.parametrize(
    "error",
    [BadSource("a tarball with another digest"), OSError(28, "No space left on device")],
    ids=["bad source", "full disk"],
)
def test_what_is_not_right_fails_and_the_other_majors_go_on(
    closed: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def one(major: matrix.Major, *_args: object, **_options: object) -> report.Outcome:
        if major.name == "15":
            raise error
        return report.Outcome(session=f"test-{major.name}", status="passed", version="1", tests=1)

    monkeypatch.setattr(suite, "one", one)
    majors = [matrix.load().major(name) for name in ("15", "17")]
    with pytest.raises(suite.SuiteFailed, match="failed: test-15"):
        suite.every(majors, [])
    kept = json.loads((closed / "results" / "test.json").read_text())
    assert [(each["session"], each["status"]) for each in kept] == [
        ("test-15", "failed"), ("test-17", "passed"),
    ]  # fmt: skip
    assert str(error) in kept[0]["note"]


@pytest.mark.parametrize(
    ("words", "own", "server"),
    [
        ([], [], []),
        (["-k", "model"], ["-k", "model"], ["-k", "model"]),
        (["tests/test_crash.py", "-x"], None, ["tests/test_crash.py", "-x"]),
        (["tests/build/test_run.py"], ["tests/build/test_run.py"], None),
        (["tests/build", "tests/test_map.py"], ["tests/build"], ["tests/test_map.py"]),
    ],
)
def test_words_go_to_the_tests_that_they_are_for(
    words: list[str], own: list[str] | None, server: list[str] | None
) -> None:
    assert suite._share(words, own=True) == own
    assert suite._share(words, own=False) == server


def test_words_for_one_part_leave_the_other_out(
    closed: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    place = closed.parent / "checkout" / "tests"
    (place / "build").mkdir(parents=True)
    (place / "build" / "test_one.py").write_text("def test_here(): pass\n")
    (place / "test_two.py").write_text("def test_there(): pass\n")
    (place.parent / "pytest.ini").write_text("[pytest]\n")
    ran: list[str] = []

    def one(major: matrix.Major, *_args: object, **_options: object) -> report.Outcome:
        ran.append(major.name)
        return report.Outcome(session=f"test-{major.name}", status="passed", version="1", tests=1)

    monkeypatch.setattr(suite, "one", one)
    majors = [matrix.load().major("17")]
    for words, parts, servers in (
        (["-k", "test_here"], ["selftest"], []),
        (["-k", "test_there"], ["test-17"], ["17"]),
        (["tests/build"], ["selftest"], []),
    ):
        ran.clear()
        capsys.readouterr()
        suite.every(majors, words)
        assert "left out" not in capsys.readouterr().out, "what was named is what was wanted"
        kept = json.loads((closed / "results" / "test.json").read_text())
        assert ([each["session"] for each in kept], ran) == (parts, servers)
    with pytest.raises(UsageError, match="no test is meant by"):
        suite.every(majors, ["-k", "nowhere"])
    suite.every(majors, [])
    assert "left out, as they take long: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("PTRACK_SOURCE", "foo"),
        ("PTRACK_SOURCE", "/does/not/exist"),
        ("PTRACK_PG_GIT", "http://[::1"),
        ("PTRACK_JOBS", "many"),
        ("CC", "/nonexistent"),
    ],
)
@pytest.mark.parametrize("session", ["test", "build"])
def test_a_mistake_about_all_majors_is_told_once_and_at_once(
    closed: Path, monkeypatch: pytest.MonkeyPatch, session: str, setting: str, value: str
) -> None:
    def run(*_args: object, **_options: object) -> NoReturn:
        pytest.fail("something was run")

    for name in ("one", "own", "prefix"):
        monkeypatch.setattr(suite, name, run)
    monkeypatch.setenv(setting, value)
    majors = matrix.load().majors
    start = {
        "test": lambda: suite.every(majors, []),
        "build": lambda: suite.built_all(majors, compiling.RELEASE),
    }
    with pytest.raises((UsageError, HostError), match=re.escape(value)):
        start[session]()
    assert not (closed / "results").exists()


def test_what_turns_up_later_for_all_majors_leaves_the_rest_not_run(
    closed: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def one(major: matrix.Major, *_args: object, **_options: object) -> report.Outcome:
        if major.name == "15":
            what = "the disk is full"
            raise HostError(what, hint="free some space")
        return report.Outcome(session=f"test-{major.name}", status="passed", version="1", tests=1)

    monkeypatch.setattr(suite, "one", one)
    majors = [matrix.load().major(name) for name in ("14", "15", "16", "17")]
    with pytest.raises(suite.SuiteFailed) as caught:
        suite.every(majors, [])
    assert caught.value.hint is None, "alone it would say the same"
    kept = json.loads((closed / "results" / "test.json").read_text())
    assert [each["status"] for each in kept] == ["passed", "failed", "not run", "not run"]
    out = capsys.readouterr().out
    assert out.count("test-15 could not be") == 1
    assert "test-16, 17: not run\n" in out


def test_equal_reasons_stand_in_the_table_once() -> None:
    outcomes = [
        report.Outcome(
            session=f"test-{name}", status="unreachable",
            note=f"PostgreSQL {name}: no source could be had{'' if name == '15' else ': offline'}",
        )
        for name in ("12", "14", "15", "devel")
    ]  # fmt: skip
    assert report.table(outcomes).splitlines() == [
        "test-12, 14, devel: unreachable",
        f"{'':<24} no source could be had: offline",
        f"{'test-15':<12} {'unreachable':<11} no source could be had",
    ]


def test_a_session_is_named_where_it_shows_more(tmp_path: Path, own_cache: Path) -> None:
    def closed(*outcomes: report.Outcome) -> str | None:
        with pytest.raises(suite.SuiteFailed) as caught:
            report.close(outcomes, tmp_path / "x.json", suite.SuiteFailed, None)
        return caught.value.hint

    passed = report.Outcome(session="test-16", status="passed", tests=3)
    broken = report.Outcome(session="test-17", status="failed", note="it did not compile")
    tests = report.Outcome(session="selftest", status="failed", tests=3, failures=1)
    assert closed(passed, broken) is None
    assert closed(tests) is None
    assert closed(tests, passed, broken) == "./nox -s selftest shows it alone"
    assert own_cache.is_dir()


def test_a_record_gets_its_name_when_it_is_whole(
    closed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two runs of one session in one checkout do not write the same file."""
    final = closed / "results" / "one.xml"

    def run(words: list[str], _env: object) -> int:
        (name,) = [word.partition("=")[2] for word in words if word.startswith("--junitxml=")]
        assert str(os.getpid()) in name
        Path(name).write_text('<testsuite tests="3" failures="1"/>')
        assert not final.exists()
        return 1

    monkeypatch.setattr(suite, "patiently", run)
    ended = suite.pytest("one", ["x"], [])
    assert (ended.tests, ended.failures) == (3, 1)
    assert [path.name for path in final.parent.glob("*.xml")] == ["one.xml"]
    assert [path.name for path in final.parent.glob(".*.xml")] == []


def test_what_mutants_are_run_with_is_theirs_alone(
    closed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: dict[str, str] = {}

    def run(words: list[str], env: dict[str, str]) -> int:
        said.update(env, workers=words[words.index("-n") + 1])
        return 0

    built = SimpleNamespace(path=closed, version="17.2")
    monkeypatch.setattr(suite, "patiently", run)
    monkeypatch.setattr(suite, "prefix", lambda *_args, **_options: built)
    before = dict(os.environ)
    suite.mutants(matrix.load().major("17"), [], locked=True)
    assert (said["workers"], said["PTRACK_MUTANTS_MAJOR"], said["PTRACK_LOCKED"]) == (
        "0",
        "17",
        "1",
    )
    assert dict(os.environ) == before


@pytest.mark.parametrize(
    ("there", "wrong"),
    [
        ("", "is no directory"),
        ("file", "is no directory"),
        ("x" * 60, "is too long for the sockets of servers: at most 60 bytes"),
    ],
)
def test_a_place_for_servers_that_is_none_is_said_before_anything_is_built(
    tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch, there: str, wrong: str
) -> None:
    del own_cache
    monkeypatch.setattr(host, "server_user", lambda: None)
    monkeypatch.setattr(suite, "prefix", lambda *_args, **_options: pytest.fail("it was built"))
    place = tmp_path / (there or "nowhere")
    if there == "file":
        place.touch()
    elif there:
        place.mkdir()
    monkeypatch.setenv("PTRACK_TEST_DIR", str(place))
    for session in (suite.one, suite.mutants):
        with pytest.raises(UsageError, match=f"^{re.escape(str(place))}, .*, {re.escape(wrong)}"):
            session(matrix.load().major("17"), [])
    with pytest.raises(UsageError, match=re.escape(wrong)):
        suite.every([matrix.load().major("17")], ["tests/test_map.py"])


@pytest.mark.parametrize("named", ["abc", "-1", "1.5"])
def test_a_number_of_workers_that_is_none(monkeypatch: pytest.MonkeyPatch, named: str) -> None:
    monkeypatch.setenv("PTRACK_TEST_WORKERS", named)
    with pytest.raises(UsageError, match="PTRACK_TEST_WORKERS"):
        suite.own([])


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


def test_what_runs_servers_is_given_time_to_stop_them(tmp_path: Path) -> None:
    """A closed terminal tells all of its processes; those of the suite hear of it from us."""
    said = tmp_path / "said"
    child = (
        "import pathlib, signal, sys, time\n"
        f"said = pathlib.Path({str(said)!r})\n"
        "def end(*_): said.write_text('stopped'); sys.exit()\n"
        "signal.signal(signal.SIGTERM, end)\n"
        "said.write_text('started'); time.sleep(60)\n"
    )
    code = (
        "import sys\n"
        "from ptrack_build import suite\n"
        "from ptrack_build.run import terminate_politely\n"
        "terminate_politely()\n"
        f"suite.patiently([sys.executable, '-c', {child!r}])\n"
    )
    process = Script(code, {}).start(start_new_session=True)
    for _ in range(400):
        if said.exists() and said.read_text() == "started":
            break
        time.sleep(0.05)
    began = time.monotonic()
    os.killpg(process.pid, signal.SIGHUP)
    process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGHUP
    assert said.read_text() == "stopped"
    assert time.monotonic() - began < PATIENCE / 3
