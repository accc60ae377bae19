"""The cache: whole or not there."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ptrack_build import cache, source
from ptrack_build.errors import HostError, UsageError
from ptrack_build.package import signing
from tests.build.conftest import Script

if TYPE_CHECKING:
    from collections.abc import Callable


def test_root_is_tagged_and_open_to_readers(own_cache: Path) -> None:
    assert (own_cache / "CACHEDIR.TAG").read_text().startswith("Signature: 8a477f597d28d172789f")
    assert own_cache.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("mode", [0o1777, 0o2770, 0o700])
def test_a_directory_with_something_in_it_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: int
) -> None:
    """PTRACK_CACHE at somebody's directory, such as /tmp or a home."""
    place = tmp_path / "place"
    place.mkdir()
    (place / ".letters.from-her.part").write_text("dear")
    place.chmod(mode)
    monkeypatch.setenv("PTRACK_CACHE", str(place))
    with pytest.raises(HostError, match="place has something in it and is no cache") as caught:
        cache.root()
    assert "PTRACK_CACHE" in (caught.value.hint or "")
    assert place.stat().st_mode & 0o7777 == mode
    assert [path.name for path in place.iterdir()] == [".letters.from-her.part"]


@pytest.mark.parametrize("mode", [0o1777, 0o2770, 0o700])
def test_a_directory_that_was_there_keeps_its_mode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: int
) -> None:
    (tmp_path / "place" / "lost+found").mkdir(parents=True)
    (tmp_path / "place").chmod(mode)
    monkeypatch.setenv("PTRACK_CACHE", str(tmp_path / "place"))
    assert cache.root() == tmp_path / "place"
    assert cache.root().stat().st_mode & 0o7777 == mode
    assert (cache.root() / "CACHEDIR.TAG").is_file()


def test_two_runs_that_make_the_cache_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other run's tag and its first directory come between two looks of this one."""
    place = tmp_path / "place"
    place.mkdir()
    is_file = Path.is_file

    def and_then_the_other_goes_on(path: Path) -> bool:
        there = is_file(path)
        if path == place / "CACHEDIR.TAG" and not there:
            path.write_text(cache.TAG)
            (place / "log").mkdir()
        return there

    monkeypatch.setattr(Path, "is_file", and_then_the_other_goes_on)
    monkeypatch.setenv("PTRACK_CACHE", str(place))
    assert cache.root() == place


def test_an_empty_directory_that_was_there_is_tagged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PTRACK_CACHE", str(tmp_path))
    assert (cache.root() / "CACHEDIR.TAG").is_file()


def test_a_root_that_cannot_be_is_an_error_with_a_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PTRACK_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(HostError, match="cannot be written") as caught:
        cache.root()
    assert "PTRACK_CACHE" in (caught.value.hint or "")


@pytest.mark.parametrize("name", ["my cache", "a:b", "a$b", "it's", "a,b", "100%"])
def test_a_root_that_make_would_take_apart_is_refused_before_it_is_made(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PTRACK_CACHE", str(tmp_path / name))
    with pytest.raises(HostError, match="cannot be compiled below") as caught:
        cache.root()
    assert "set PTRACK_CACHE" in (caught.value.hint or "")
    assert not (tmp_path / name).exists()


def test_a_root_may_have_letters_of_any_language(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PTRACK_CACHE", str(tmp_path / "Größe-1_2.3+~"))
    assert cache.root().is_dir()


def test_building_appears_at_once_and_leaves_no_scratch(tmp_path: Path) -> None:
    final = tmp_path / "x" / "result"
    with cache.building(final) as scratch:
        assert scratch.parent == final.parent
        (scratch / "file").write_text("whole")
        assert not final.exists()
    assert (final / "file").read_text() == "whole"
    assert [p.name for p in final.parent.iterdir()] == ["result"]
    assert final.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize(
    "error", [ValueError("x"), KeyboardInterrupt(), SystemExit(1), OSError(errno.ENOSPC, "full")]
)
def test_building_that_fails_leaves_nothing(tmp_path: Path, error: BaseException) -> None:
    def failing() -> None:
        with cache.building(tmp_path / "result") as scratch:
            (scratch / "file").write_text("half")
            raise error

    with pytest.raises(type(error)):
        failing()
    assert not list(tmp_path.iterdir())


def test_building_what_is_there_keeps_the_first(tmp_path: Path) -> None:
    final = tmp_path / "result"
    for text in ("first", "second"):
        with cache.building(final) as scratch:
            (scratch / "file").write_text(text)
    assert (final / "file").read_text() == "first"
    assert [p.name for p in tmp_path.iterdir()] == ["result"]


def test_building_replaces_what_is_not_whole(tmp_path: Path) -> None:
    """As somebody's rm leaves it that was ended."""
    final = tmp_path / "result"
    for text in ("first", "second", "third"):
        with cache.building(final, mark="about/info") as scratch:
            (scratch / "about").mkdir()
            (scratch / "about/info").write_text(text)
        if text == "first":
            (final / "about/info").unlink()
    assert (final / "about/info").read_text() == "second"
    assert [p.name for p in tmp_path.iterdir()] == ["result"]


def test_what_is_discarded_is_gone_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However its removal ends: no run takes what is left for whole, and a later one sweeps it."""
    final = tmp_path / "result"
    with cache.building(final) as scratch:
        (scratch / "file").write_text("whole")

    def killed(_path: Path, **_how: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            cache.discard(final)
    (left,) = tmp_path.iterdir()
    assert cache.SCRATCH.fullmatch(left.name)
    os.utime(left, (1, 1))
    with cache.building(final):
        pass
    assert list(tmp_path.iterdir()) == [final]
    assert list(final.iterdir()) == []
    cache.discard(final)
    assert list(tmp_path.iterdir()) == []


def test_scratch_of_a_killed_run_is_swept_after_a_day(tmp_path: Path) -> None:
    names = (".result.a_b8ccxz.part", ".other.4711.part", ".result.b_b8ccxz.part", ".film.mp4.part")
    old, half, new, foreign = (tmp_path / name for name in names)
    for path in (old, new, foreign):
        path.mkdir()
    half.write_text("")
    for path in (old, half, foreign):
        os.utime(path, (1, 1))
    with cache.building(tmp_path / "result"):
        pass
    assert not old.exists()
    assert not half.exists()
    assert new.exists()
    assert foreign.exists(), "it is not of our making"


def test_only_the_cache_without_a_setting_is_the_usual_one(
    own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not cache.usual()
    monkeypatch.setattr(cache, "_root", lambda _named, _uid: own_cache)
    assert cache.usual()


def test_the_lock_makes_the_second_wait_and_say_so(own_cache: Path) -> None:
    code = (
        "from ptrack_build import cache\n"
        "with cache.lock('PostgreSQL 17'):\n    print('mine', flush=True)"
    )
    with cache.lock("PostgreSQL 17"):
        process = Script(code, {"PTRACK_CACHE": str(own_cache)}).start()
        assert process.stdout is not None
        first = process.stdout.readline()
        assert first == "waiting for another run that builds PostgreSQL 17\n"
        assert process.poll() is None
    out, _ = process.communicate(timeout=20)
    assert out == "mine\n"


def test_the_lock_says_what_is_waited_for(
    own_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def wait() -> None:
        with cache.lock("source-15", "looks for PostgreSQL 15"):
            pass

    with cache.lock("source-15"):
        thread = threading.Thread(target=wait)
        thread.start()
        said = ""
        for _ in range(200):
            said += capsys.readouterr().out
            if said:
                break
            time.sleep(0.05)
    thread.join()
    assert said == "waiting for another run that looks for PostgreSQL 15\n"
    assert own_cache.is_dir()


def test_the_lock_ends_with_a_killed_holder(own_cache: Path) -> None:
    code = (
        "from ptrack_build import cache\nimport time\n"
        "with cache.lock('x'):\n    print('mine', flush=True); time.sleep(60)"
    )
    process = Script(code, {"PTRACK_CACHE": str(own_cache)}).start()
    assert process.stdout is not None
    assert process.stdout.readline() == "mine\n"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    done = threading.Event()

    def take() -> None:
        with cache.lock("x"):
            done.set()

    thread = threading.Thread(target=take, daemon=True)
    thread.start()
    assert done.wait(10)
    thread.join()


def test_a_link_is_moved_in_one_step(own_cache: Path) -> None:
    for name in ("a", "b"):
        (own_cache / name).mkdir()
        assert cache.link("pg-17", own_cache / name).resolve() == own_cache / name
    assert (own_cache / "pg-17").readlink() == Path("b")


def test_digest_tells_parts_names_modes_and_contents_apart(tmp_path: Path) -> None:
    def tree(name: str, files: dict[str, str], mode: int = 0o644) -> Path:
        for file, text in files.items():
            path = tmp_path / name / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            path.chmod(mode)
        return tmp_path / name

    digests = [
        cache.digest("ab", "c"),
        cache.digest("a", "bc"),
        cache.digest(b"ab", "c"),
        cache.digest("abc"),
        cache.digest(tree("one", {"a": "1", "b/c": "2"})),
        cache.digest(tree("two", {"a": "1", "b/d": "2"})),
        cache.digest(tree("three", {"a": "1", "b/c": "3"})),
        cache.digest(tree("four", {"a": "1", "b/c": "2"}, 0o755)),
    ]
    assert len(set(digests)) == len(digests)
    assert cache.digest(tree("five", {"b/c": "2", "a": "1"})) == digests[4]


def test_write_replaces_whole_files(tmp_path: Path) -> None:
    for text in ("one", "two"):
        cache.write(tmp_path / "deep" / "file", text)
    assert (tmp_path / "deep" / "file").read_text() == "two"
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["file"]


def test_remove_takes_read_only_directories_and_absent_files(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "c").write_text("")
    (tmp_path / "a" / "b").chmod(0o500)
    cache.remove(tmp_path / "a")
    cache.remove(tmp_path / "a")
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("setting", "named", "use"),
    [
        ("PTRACK_CACHE", "~nosuch/c", cache.root),
        ("PTRACK_SOURCE", "~nosuch/pg", source.check_settings),
        ("PTRACK_PG_GIT", "~nosuch/pg.git", source.check_settings),
        ("PTRACK_PG_GIT", "/nonexistent ~nosuch/pg.git", source.check_settings),
        ("PTRACK_SIGNING_KEY", "~nosuch/key", lambda: signing.key().__enter__()),
    ],
)
def test_a_mistyped_home_is_named_with_its_setting(
    own_cache: Path, monkeypatch: pytest.MonkeyPatch, setting: str, named: str,
    use: Callable[[], object],
) -> None:  # fmt: skip
    del own_cache
    for name in ("PTRACK_SOURCE", "PTRACK_PG_GIT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(setting, named)
    with pytest.raises(UsageError, match=f"{setting} .*~nosuch") as caught:
        use()
    assert "whole path" in (caught.value.hint or "")
