"""The order of providers, what is remembered, and matrix.lock."""

from __future__ import annotations

import dataclasses
import datetime as dt
import re
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ptrack_build import matrix, source
from ptrack_build.errors import BadSource, HostError, SourceError, UsageError
from ptrack_build.source import base, lock
from ptrack_build.source.distro import DistroProvider, Tampered
from ptrack_build.source.git import GitProvider
from ptrack_build.source.mirror import open_mirror
from ptrack_build.source.tarball import TarballProvider
from tests.build._source_fixtures import NOWHERE, cache_root, server
from tests.build._sources import MD, Server, commit, major, repository, tarball, tree

if TYPE_CHECKING:
    from ptrack_build.source.base import Provider

__all__ = ["cache_root", "server"]


@pytest.fixture(autouse=True)
def bare_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host whose apt has no sources, so that nothing outside is asked."""
    etc = tmp_path / "apt"
    etc.mkdir()

    def all_three() -> tuple[Provider, ...]:
        return (GitProvider(), DistroProvider(etc=etc), TarballProvider())

    monkeypatch.setattr(source, "providers", all_three)
    monkeypatch.setattr(lock, "default", lambda: tmp_path / "matrix.lock")


@pytest.fixture
def repo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = repository(tmp_path / "pg", {"REL_17_STABLE": "17.2"})
    monkeypatch.setenv("PTRACK_PG_GIT", str(path))
    return path


def test_git_comes_first(repo: Path, server: Server) -> None:
    server.release("17.3", tarball(tree("17.3")))
    assert source.fetch(major()).provider == "git"
    assert server.requests == []
    assert repo.is_dir()


def test_the_next_one_when_git_fails(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    server.release("17.3", tarball(tree("17.3")))
    assert source.fetch(major()).provider == "tarball"
    out = capsys.readouterr().out
    assert "PostgreSQL 17.3: tarball, " in out
    assert "(git: 127.0.0.1: connection refused" in out


def test_all_fail() -> None:
    began = time.monotonic()
    with pytest.raises(SourceError) as caught:
        source.fetch(major())
    lines = caught.value.what.splitlines()
    assert lines[0] == "PostgreSQL 17: no source could be had"
    assert [line.split(":")[0] for line in lines[1:]] == ["  git", "  distro", "  tarball"]
    assert "PTRACK_PG_GIT" in (caught.value.hint or "")
    assert time.monotonic() - began < 5


def test_a_reason_that_all_give_is_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PTRACK_OFFLINE", "1")
    with pytest.raises(SourceError) as caught:
        source.fetch(major())
    assert caught.value.what == "PostgreSQL 17: no source could be had: PTRACK_OFFLINE is set"


OTHERS = "unset PTRACK_SOURCE, so that others are asked"
NAMED = "let PTRACK_PG_GIT name a PostgreSQL repository that has the branch"


@pytest.mark.parametrize(
    ("spec", "env", "said", "hints"),
    [
        ("tarball", {}, "tarball: 127.0.0.1: connection refused", [OTHERS]),
        ("git", {"PTRACK_PG_GIT": "/nope"}, "git: /nope: ", [OTHERS, NAMED]),
        ("auto", {"PTRACK_PG_GIT": "/nope"}, "no source could be had", [NAMED]),
        ("auto", {"PTRACK_PG_GIT": ""}, "no source could be had", ["set PTRACK_PG_GIT to a"]),
        ("auto", {"PTRACK_OFFLINE": "1"}, "PTRACK_OFFLINE is set", ["unset PTRACK_OFFLINE"]),
        ("distro", {"PTRACK_OFFLINE": "1"}, "distro: ", ["unset PTRACK_OFFLINE", OTHERS]),
    ],
)
def test_the_next_step_goes_by_what_was_asked_for(
    spec: str,
    env: dict[str, str],
    said: str,
    hints: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    if "" in env.values():
        monkeypatch.setattr(GitProvider, "repositories", lambda _self: [f"{NOWHERE}/x"])
    with pytest.raises(SourceError, match=f"^PostgreSQL 17: .*{re.escape(said)}") as caught:
        source.fetch(major(), spec=spec)
    hint = caught.value.hint or ""
    assert all(each in hint for each in hints)
    assert (OTHERS in hint) == (OTHERS in hints)
    assert "PTRACK_SOURCE to a source directory or tarball" in hint or "set it to a" in hint


def test_remembered(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    server.release("17.3", tarball(tree("17.3")))
    first = source.fetch(major())
    asked = len(server.requests)
    capsys.readouterr()
    began = time.monotonic()
    assert source.fetch(major()) == first
    assert time.monotonic() - began < 0.3
    assert len(server.requests) == asked
    assert "looked up 0 min ago (PTRACK_REFRESH=1 looks again)" in capsys.readouterr().out


@pytest.mark.parametrize("how", ["refresh", "ttl", "old", "settings"])
def test_looked_up_again(server: Server, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    server.release("17.3", tarball(tree("17.3")))
    source.fetch(major())
    server.release("17.4", tarball(tree("17.4")))
    match how:
        case "refresh":
            monkeypatch.setenv("PTRACK_REFRESH", "1")
        case "ttl":
            monkeypatch.setenv("PTRACK_SOURCE_TTL", "0")
        case "old":
            now = time.time()
            monkeypatch.setattr(time, "time", lambda: now + 90_000)
        case _:
            monkeypatch.setenv("PTRACK_PG_TARBALLS", server.url + "/")
            monkeypatch.setenv("PTRACK_SOURCE", "tarball")
    assert source.fetch(major()).version == "17.4"


def test_no_room(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "NEEDED_BYTES", 1 << 62)
    with pytest.raises(HostError, match=r"only \d+ MB are free on the device of"):
        source.fetch(major())
    assert server.requests == []


def test_a_mirror_that_was_removed_is_made_again(server: Server, cache_root: Path) -> None:
    import shutil

    server.release("17.3", tarball(tree("17.3")))
    first = source.fetch(major())
    shutil.rmtree(cache_root / "postgresql.git")
    assert source.fetch(major()) == first


def test_files_that_the_mirror_lost_come_again(server: Server, tmp_path: Path) -> None:
    server.release("17.3", tarball(tree("17.3")))
    first = source.fetch(major())
    mirror = open_mirror()
    packs = [path.read_bytes() for path in (mirror.path / "objects/pack").glob("*.pack")]
    for path in (mirror.path / "objects/pack").iterdir():
        path.unlink()
    for pack in packs:
        mirror.git("unpack-objects", "-q", stdin=pack)
    blob = mirror.git("rev-parse", f"{first.commit}:{MD}").stdout.decode().strip()
    (mirror.path / "objects" / blob[:2] / blob[2:]).unlink()
    again = source.fetch(major())
    assert again == first
    source.export(again, tmp_path / "out")
    assert (tmp_path / "out" / MD).is_file()


def test_offline(
    server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    server.release("17.3", tarball(tree("17.3")))
    source.fetch(major(), spec="tarball")
    monkeypatch.setenv("PTRACK_OFFLINE", "1")
    asked = len(server.requests)
    assert source.fetch(major()).version == "17.3"
    assert "from the cache (" in capsys.readouterr().out
    with pytest.raises(SourceError, match="PTRACK_OFFLINE is set"):
        source.fetch(major("16"))
    assert len(server.requests) == asked


def test_cut_off_from_the_network_the_newest_in_the_cache_will_do(
    server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for version in ("17.9", "17.10"):
        server.release(version, tarball(tree(version)))
        source.fetch(major(), spec=f"tarball:{version}")
    source.fetch(major(), spec="tarball:17.9", refresh=True)
    monkeypatch.setenv("PTRACK_PG_TARBALLS", NOWHERE)
    assert source.fetch(major()).version == "17.10"
    assert "from the cache (git: " in capsys.readouterr().out
    assert source.fetch(major(), spec="tarball:17.9").version == "17.9"


def distro_fails(monkeypatch: pytest.MonkeyPatch, error: SourceError) -> None:
    """The distribution's archive answers with that."""

    def fetch(_self: DistroProvider, _want: base.Want) -> source.SourceTree:
        raise error

    monkeypatch.setattr(DistroProvider, "fetch", fetch)


def test_what_is_not_right_is_not_papered_over_by_the_cache(
    server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Though the others are out of reach, for which alone the cache would do."""
    server.release("17.3", tarball(tree("17.3")))
    source.fetch(major(), spec="tarball")
    monkeypatch.setenv("PTRACK_PG_TARBALLS", NOWHERE)
    distro_fails(monkeypatch, BadSource("it is PostgreSQL 16.1", hint="look at the archive"))
    with pytest.raises(BadSource, match=r"\n  distro: it is PostgreSQL 16\.1\n") as caught:
        source.fetch(major())
    assert caught.value.hint == "look at the archive"
    assert "from the cache" not in capsys.readouterr().out


@pytest.mark.parametrize("locked", [False, True])
def test_what_was_tampered_with_ends_the_search(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *, locked: bool
) -> None:
    server.release("17.3", tarball(tree("17.3")))
    source.write_lock([source.fetch(major())])
    asked = len(server.requests)
    monkeypatch.setenv("PTRACK_CACHE", str(tmp_path / "fresh"))
    distro_fails(monkeypatch, Tampered("17.3-1: hash sum mismatch"))
    with pytest.raises(BadSource, match=r"distro: 17\.3-1: hash sum mismatch"):
        source.fetch(major(), locked=locked)
    assert len(server.requests) == asked


def test_a_wrong_setting_is_not_papered_over(
    repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source.fetch(major(), spec="git")
    monkeypatch.setenv("PTRACK_PG_GIT", str(tmp_path / "typo"))
    with pytest.raises(SourceError, match="typo"):
        source.fetch(major(), spec="git")
    assert repo.is_dir()


@pytest.mark.parametrize("spec", ["auto", "git", "tarball"])
@pytest.mark.parametrize(
    "address", ["http://[::1", "http://host:99999/x", "https://:80/", "http://a\tb/"]
)
def test_an_address_that_is_none(
    server: Server, monkeypatch: pytest.MonkeyPatch, spec: str, address: str
) -> None:
    for name, provider in (("PTRACK_PG_GIT", "git"), ("PTRACK_PG_TARBALLS", "tarball")):
        if spec not in {"auto", provider} or ("\t" in address and provider == "git"):
            continue
        with monkeypatch.context() as patched:
            patched.setenv(name, address)
            with pytest.raises(UsageError, match=f"{name}=.* is no address"):
                source.fetch(major(), spec=spec)
    assert server.requests == []


def test_an_address_without_its_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PTRACK_PG_TARBALLS", "mirror.example.org/pub")
    with pytest.raises(UsageError, match="does not begin with http:// or https://"):
        source.fetch(major(), spec="tarball")


def test_no_number_of_seconds(monkeypatch: pytest.MonkeyPatch, server: Server) -> None:
    monkeypatch.setenv("PTRACK_SOURCE_TTL", "a day")
    server.release("17.3", tarball(tree("17.3")))
    source.fetch(major(), refresh=True)
    with pytest.raises(UsageError, match="no number of seconds"):
        source.fetch(major())


@pytest.mark.parametrize("text", ["", "{", '[{"when": "x"}]', "[]"])
def test_a_damaged_memory_is_forgotten(server: Server, cache_root: Path, text: str) -> None:
    server.release("17.3", tarball(tree("17.3")))
    first = source.fetch(major())
    (cache_root / "source/found-17.json").write_text(text)
    assert source.fetch(major()) == first


# ---- matrix.lock


def test_two_recorders_at_once_lose_no_row(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "matrix.lock"
    trees = []
    for name in ("16", "17"):
        server.release(f"{name}.1", tarball(tree(f"{name}.1")))
        trees.append(source.fetch(major(name), spec="tarball"))
    read = lock.read_lock

    def slowly(path: Path | None = None) -> dict[str, lock.Row]:
        rows = read(path)
        time.sleep(0.3)
        return rows

    monkeypatch.setattr(lock, "read_lock", slowly)
    threads = [threading.Thread(target=source.write_lock, args=([each], path)) for each in trees]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list(read(path)) == ["16", "17"]


def test_locked_is_what_was_proven(server: Server, tmp_path: Path) -> None:
    server.release("17.3", tarball(tree("17.3")))
    proven = source.fetch(major())
    source.write_lock([proven], proven=dt.date(2026, 1, 2))
    row = source.read_lock()["17"]
    assert (row.version, row.tree, row.sha256) == ("17.3", proven.digest, proven.sha256)
    assert row.proven == dt.date(2026, 1, 2)
    source.write_lock([proven])
    assert source.read_lock()["17"].proven > dt.date(2026, 1, 2), "proven once more"
    server.release("17.4", tarball(tree("17.4")))
    assert source.fetch(major(), refresh=True).version == "17.4"
    assert source.fetch(major(), locked=True).commit == proven.commit
    assert str(tmp_path) not in (tmp_path / "matrix.lock").read_text()


def test_locked_on_a_fresh_machine(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.release("17.3", tarball(tree("17.3")))
    proven = source.fetch(major())
    source.write_lock([proven])
    server.release("17.4", tarball(tree("17.4")))
    monkeypatch.setenv("PTRACK_CACHE", str(tmp_path / "fresh"))
    monkeypatch.setenv("PTRACK_LOCKED", "1")
    found = source.fetch(major())
    assert (found.version, found.digest) == ("17.3", proven.digest)


def test_locked_to_a_commit(repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    proven = source.fetch(major())
    source.write_lock([proven])
    assert str(repo) not in (tmp_path / "matrix.lock").read_text()
    said = f"REL_17_STABLE of a local repository at {proven.commit[:12]}"
    assert source.read_lock()["17"].origin == said
    commit(repo, tree("17.3"))
    monkeypatch.setenv("PTRACK_CACHE", str(tmp_path / "fresh"))
    assert source.fetch(major(), locked=True).commit == proven.commit


@pytest.mark.parametrize("repositories", [1, 2])
def test_locked_to_a_commit_of_another_major(
    repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, repositories: int
) -> None:
    """One version that was asked for may be another major's; what is locked for one may not."""
    wrong = dataclasses.replace(source.fetch(major("17")), major=major("16"), version="16.2")
    source.write_lock([wrong])
    monkeypatch.setenv("PTRACK_CACHE", str(tmp_path / "fresh"))
    monkeypatch.setenv("PTRACK_PG_GIT", " ".join([str(repo), f"file://{repo}"][:repositories]))
    with pytest.raises(BadSource, match=r"is PostgreSQL 17\.2, not 16"):
        source.fetch(major("16"), spec="git", locked=True)


def test_the_locked_one_is_gone(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.release("17.3", tarball(tree("17.3")))
    source.write_lock([source.fetch(major())])
    server.files.clear()
    server.release("17.4", tarball(tree("17.4")))
    monkeypatch.setenv("PTRACK_CACHE", str(tmp_path / "fresh"))
    source.fetch(major())
    with pytest.raises(SourceError) as caught:
        source.fetch(major(), locked=True)
    assert "PostgreSQL 17.3, which matrix.lock asks for" in caught.value.what
    assert "in the cache: 17.4" in caught.value.what
    assert "--locked" in (caught.value.hint or "")


def test_locked_and_republished(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.release("17.3", tarball(tree("17.3")))
    source.write_lock([source.fetch(major())])
    server.release("17.3", tarball(tree("17.3") | {"README": b"other\n"}))
    monkeypatch.setenv("PTRACK_CACHE", str(tmp_path / "fresh"))
    with pytest.raises(SourceError, match="is wanted"):
        source.fetch(major(), locked=True)


@pytest.mark.parametrize(
    ("name", "other"), [("version", "17.2"), ("tree", "0123456789abcdef0123456789abcdef01234567")]
)
def test_a_lock_that_was_edited_by_hand(
    name: str, other: str, server: Server, tmp_path: Path
) -> None:
    server.release("17.3", tarball(tree("17.3")))
    source.write_lock([source.fetch(major())])
    path = tmp_path / "matrix.lock"
    text, times = re.subn(
        rf'^{name} = ".*"', f'{name} = "{other}"', path.read_text(), flags=re.MULTILINE
    )
    assert times == 1
    path.write_text(text)
    with pytest.raises(SourceError, match=r"matrix\.lock contradicts itself") as caught:
        source.fetch(major(), locked=True)
    assert other[:12] in caught.value.what


def test_locked_to_nothing() -> None:
    with pytest.raises(SourceError, match=r"matrix\.lock has no PostgreSQL 17"):
        source.fetch(major(), locked=True)


def test_a_directory_is_held_against_the_lock(repo: Path) -> None:
    source.write_lock([source.fetch(major())])
    assert source.fetch(major(), spec=str(repo), locked=True).version == "17.2"
    commit(repo, tree("17.3"))
    with pytest.raises(SourceError, match="is another tree"):
        source.fetch(major(), spec=str(repo), locked=True)


def test_rows_of_others_stay(server: Server, tmp_path: Path) -> None:
    server.release("17.3", tarball(tree("17.3")))
    server.release("9.9", b"")
    server.release("16.1", tarball(tree("16.1")))
    path = tmp_path / "matrix.lock"
    source.write_lock([source.fetch(major("17"))])
    source.write_lock([source.fetch(major("16"))])
    assert list(source.read_lock()) == ["16", "17"]
    before = path.read_text()
    source.write_lock([source.fetch(major("17"))])
    assert path.read_text() == before


def test_no_lock_at_all(tmp_path: Path) -> None:
    (tmp_path / "matrix.lock").write_text("[[major]]\nname = 17\n")
    with pytest.raises(UsageError, match=r"matrix\.lock cannot be read"):
        source.fetch(major(), locked=True)


def test_the_projects_own_lock_can_be_read() -> None:
    path = Path(source.__file__).parents[2] / "matrix.lock"
    rows = source.read_lock(path)
    order = [one.name for one in matrix.load().majors if one.name in rows]
    assert list(rows) == order
