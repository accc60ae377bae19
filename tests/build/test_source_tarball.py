"""The provider `tarball`, against a server that truncates, lies and stalls."""

from __future__ import annotations

import hashlib
import io
import os
import signal
import subprocess
import sys
import tarfile
import time
from typing import TYPE_CHECKING

import pytest

from ptrack_build import REPO, source
from ptrack_build.errors import BadSource, HostError, SourceError
from ptrack_build.source import tarball as tarball_provider
from ptrack_build.source.archive import imported
from ptrack_build.source.mirror import open_mirror
from tests.build._source_fixtures import cache_root, server
from tests.build._sources import Server, major, tarball, tree

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["cache_root", "server"]

SIZE = 300_000


@pytest.fixture
def release() -> bytes:
    """The tarball of 17.2."""
    return tarball(tree("17.2", bulk=SIZE), top="postgresql-17.2")


def fetch(spec: str = "tarball") -> source.SourceTree:
    return source.fetch(major("17"), spec=spec)


def left() -> list[str]:
    """What downloads have left."""
    root = open_mirror().path.parent / "source/download"
    return sorted(path.name for path in root.iterdir()) if root.is_dir() else []


def nothing_taken(data: bytes) -> bool:
    return not imported(open_mirror(), hashlib.sha256(data).hexdigest())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ALL_PROXY", "socks5h://127.0.0.1:9"),
        ("ALL_PROXY", "socks4://127.0.0.1:9"),
        ("NO_PROXY", "localhost,fd00::/8"),
        ("SSL_CERT_FILE", "/nonexistent/certificates"),
    ],
)
def test_a_proxy_that_cannot_be_used(
    server: Server, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    """It is a reason why this provider has nothing, and none to end everything."""
    del server
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv(name, value)
    with pytest.raises(SourceError, match="proxy or certificates as set here cannot be used"):
        fetch()


def test_takes_the_newest_release(server: Server, release: bytes) -> None:
    server.release("17.1", b"not asked for")
    server.release("17.2", release)
    server.release("17beta3", b"not asked for")
    server.release("18.0", b"not asked for")
    found = fetch()
    assert (found.version, found.provider) == ("17.2", "tarball")
    assert found.sha256 == hashlib.sha256(release).hexdigest()
    assert source.read_file(found, "ignored") == b"in the tree all the same\n"
    assert left() == []


def test_the_commit_depends_on_the_contents_alone(
    server: Server, release: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.release("17.2", release)
    first = fetch()
    monkeypatch.setenv("PTRACK_CACHE", str(tmp_path / "second"))
    files = dict(sorted(tree("17.2", bulk=SIZE).items(), reverse=True))
    path = tmp_path / "again.tar.gz"
    path.write_bytes(tarball(files, top="other"))
    second = fetch(str(path))
    assert (first.commit, first.digest) == (second.commit, second.digest)
    assert first.mirror != second.mirror


def test_one_version(server: Server, release: bytes) -> None:
    server.release("17.2", release)
    server.release("17.3", tarball(tree("17.3")))
    assert fetch("tarball:17.2").version == "17.2"


def test_listed_but_not_there_yet(
    server: Server, release: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    server.release("17.2", release)
    server.release("17.3", b"")
    del server.files["/v17.3/postgresql-17.3.tar.gz.sha256"]
    assert fetch().version == "17.2"
    assert "17.3 is listed but not there yet" in capsys.readouterr().out


def test_nothing_listed(server: Server) -> None:
    server.release("16.1", b"")
    with pytest.raises(SourceError, match=r"lists no PostgreSQL 17"):
        fetch()


def test_cut_short_goes_on_where_it_broke_off(server: Server, release: bytes) -> None:
    server.release("17.2", release).cut = [100_000, 50_000]
    assert fetch().version == "17.2"
    assert server.asked(".tar.gz") == ["", "bytes=100000-", "bytes=150000-"]


def test_cut_short_without_ranges_begins_anew(server: Server, release: bytes) -> None:
    behaviour = server.release("17.2", release)
    behaviour.cut, behaviour.ranges = [100_000], False
    assert fetch().version == "17.2"


def test_always_cut_short(server: Server, release: bytes) -> None:
    behaviour = server.release("17.2", release)
    behaviour.cut, behaviour.ranges = [1000] * 20, False
    with pytest.raises(SourceError, match="cut short, 4 times") as caught:
        fetch()
    assert "goes on" in (caught.value.hint or "")
    assert nothing_taken(release)
    behaviour.cut, behaviour.ranges = [], True
    assert fetch().version == "17.2"
    assert server.asked(".tar.gz")[-1] == "bytes=1000-"


def test_stalls(server: Server, release: bytes) -> None:
    behaviour = server.release("17.2", release)
    behaviour.cut, behaviour.stall = [1000] * 20, [60.0] * 20
    began = time.monotonic()
    with pytest.raises(SourceError, match=r"stalled for 0\.4 s"):
        fetch()
    assert time.monotonic() - began < 4
    assert nothing_taken(release)


def test_drips(server: Server, release: bytes) -> None:
    """Never long enough without a byte to time out, and never done."""
    behaviour = server.release("17.2", release)
    behaviour.cut, behaviour.drip = [1000] * 20, 0.05
    began = time.monotonic()
    with pytest.raises(SourceError, match=r"stalled for 0\.4 s"):
        fetch()
    assert time.monotonic() - began < 6
    assert nothing_taken(release)


def test_a_list_that_drips(server: Server, release: bytes) -> None:
    server.release("17.2", release)
    server.files["/"].cut, server.files["/"].drip = [0] * 20, 0.05
    server.files["/"].data = b"<!-- nothing -->" * 100
    began = time.monotonic()
    with pytest.raises(SourceError, match=r"stalled for 0\.4 s"):
        fetch()
    assert time.monotonic() - began < 6


def test_stalls_once(server: Server, release: bytes) -> None:
    behaviour = server.release("17.2", release)
    behaviour.cut, behaviour.stall = [1000], [5.0]
    assert fetch().version == "17.2"
    assert server.asked(".tar.gz") == ["", "bytes=1000-"]


def test_a_wrong_checksum_is_never_used(server: Server, release: bytes) -> None:
    server.release("17.2", release, sha256="0" * 64)
    with pytest.raises(SourceError, match=r"has SHA-256 \w+…, not the published 0000"):
        fetch()
    assert left() == []
    assert nothing_taken(release)
    assert not imported(open_mirror(), "0" * 64)


def test_no_checksum_in_the_file(server: Server, release: bytes) -> None:
    server.release("17.2", release)
    server.put("/v17.2/postgresql-17.2.tar.gz.sha256", b"<html>Sign in to the hotel</html>")
    with pytest.raises(SourceError, match="holds no SHA-256"):
        fetch()


def test_what_was_there_of_another_file_is_dropped(
    server: Server, release: bytes, cache_root: Path
) -> None:
    server.release("17.2", release)
    digest = hashlib.sha256(release).hexdigest()
    part = cache_root / f"source/download/{digest[:16]}-postgresql-17.2.tar.gz.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"x" * 1000)
    assert fetch().version == "17.2"
    assert server.asked(".tar.gz") == ["bytes=1000-", ""]


def test_more_there_than_the_file_has(server: Server, release: bytes, cache_root: Path) -> None:
    server.release("17.2", release)
    digest = hashlib.sha256(release).hexdigest()
    part = cache_root / f"source/download/{digest[:16]}-postgresql-17.2.tar.gz.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(release + b"x")
    assert fetch().version == "17.2"


def test_the_tarball_is_gone(server: Server, release: bytes) -> None:
    server.release("17.2", release)
    del server.files["/v17.2/postgresql-17.2.tar.gz"]
    with pytest.raises(SourceError, match=r"postgresql-17\.2\.tar\.gz: 404 Not Found"):
        fetch()


def test_a_server_in_trouble(server: Server, release: bytes) -> None:
    server.release("17.2", release).status = [503]
    server.files["/"].status = [502]
    assert fetch().version == "17.2"


def test_disk_full(server: Server, release: bytes, cache_root: Path) -> None:
    server.release("17.2", release)
    digest = hashlib.sha256(release).hexdigest()
    part = cache_root / f"source/download/{digest[:16]}-postgresql-17.2.tar.gz.part"
    part.parent.mkdir(parents=True)
    part.symlink_to("/dev/full")
    with pytest.raises(HostError, match="No space left"):
        fetch()
    assert left() == [], "it would keep the disk full, and nothing else would name it"


@pytest.mark.parametrize("path", ["/", "/v17.2/postgresql-17.2.tar.gz.sha256"])
def test_a_list_or_checksum_without_end(
    server: Server, release: bytes, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tarball_provider, "LIST_BYTES", 200_000)
    server.release("17.2", release)
    server.files[path].endless = True
    with pytest.raises(BadSource, match=r"sends more than 0\.2 MB"):
        fetch()
    assert len(server.asked(path)) == 1


@pytest.mark.parametrize("how", ["endless", "length"])
def test_a_tarball_without_end(
    server: Server, release: bytes, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tarball_provider, "TARBALL_BYTES", 2_000_000)
    behaviour = server.release("17.2", release)
    behaviour.endless, behaviour.length = how == "endless", 10**12
    with pytest.raises(BadSource, match=r"\.tar\.gz sends more than 2 MB"):
        fetch()
    assert left() == []
    assert nothing_taken(release)
    assert len(server.asked(".tar.gz")) == 1
    behaviour.endless, behaviour.length = False, None
    assert fetch().version == "17.2"


def test_another_version_inside(server: Server) -> None:
    server.release("17.5", tarball(tree("17.4")))
    with pytest.raises(SourceError, match=r"holds PostgreSQL 17\.4"):
        fetch()


def test_devel_has_no_release(server: Server) -> None:
    with pytest.raises(SourceError, match="has no release"):
        source.fetch(major("devel"), spec="tarball")
    assert server.requests == []


def member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (member("../evil"), r"must not have a file named '\.\./evil'"),
        (member("postgresql/../../evil"), "must not have a file named"),
        (member("/etc/evil"), "must not have a file named"),
        (member("postgresql/.git/hooks/x"), "must not have a file named"),
        (member("other/file"), "not have all files in one directory"),
        (member("postgresql/l", tarfile.SYMTYPE, "../../etc/passwd"), "leads out of it"),
        (member("postgresql/l", tarfile.SYMTYPE, "/etc/passwd"), "leads out of it"),
        (member("postgresql/l", tarfile.LNKTYPE, "/etc/passwd"), "is no file, directory or link"),
        (member("postgresql/dev", tarfile.CHRTYPE), "is no file, directory or link"),
    ],
    ids=lambda value: value.name if isinstance(value, tarfile.TarInfo) else "",
)
def test_members_that_would_leave_the_tree(
    server: Server, tmp_path: Path, extra: tarfile.TarInfo, message: str
) -> None:
    data = tarball(tree("17.2"), extra=(extra,))
    server.release("17.2", data)
    with pytest.raises(SourceError, match=message):
        fetch()
    assert nothing_taken(data)
    assert not list(tmp_path.rglob("*evil*"))


def test_links_within_the_tree(server: Server) -> None:
    extra = (
        member("postgresql/doc/link", tarfile.SYMTYPE, "../configure"),
        member("postgresql/hard", tarfile.LNKTYPE, "postgresql/configure"),
    )
    server.release("17.2", tarball(tree("17.2"), extra=extra))
    found = fetch()
    assert source.read_file(found, "doc/link") == b"../configure"
    assert source.read_file(found, "hard") == b"#!/bin/sh\n"


@pytest.mark.parametrize("damage", ["half", "garbage", "empty"])
def test_a_published_tarball_that_is_none(server: Server, release: bytes, damage: str) -> None:
    data = {"half": release[: len(release) // 2], "garbage": b"x" * 5000, "empty": b""}[damage]
    server.release("17.2", data)
    with pytest.raises(SourceError, match="no sound tarball"):
        fetch()
    assert nothing_taken(data)


def test_a_tarball_of_something_else(server: Server) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        tar.addfile(member("postgresql/README"))
    server.release("17.2", out.getvalue())
    with pytest.raises(SourceError, match="no PostgreSQL source tree"):
        fetch()


def test_interrupted_in_mid_download(server: Server, release: bytes) -> None:
    behaviour = server.release("17.2", release)
    behaviour.cut, behaviour.stall = [200_000], [30.0]  # more than a buffer
    script = (
        "from tests.build._sources import major; from ptrack_build import source;"
        "source.fetch(major('17'), spec='tarball')"
    )
    deadline = time.monotonic() + 30
    parts = open_mirror().path.parent / "source/download"
    with subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=REPO,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(REPO), *sys.path])},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as run:
        try:
            while not any(part.stat().st_size for part in parts.glob("*.part")):
                assert run.poll() is None, run.communicate()[1]
                assert time.monotonic() < deadline
                time.sleep(0.05)
            run.send_signal(signal.SIGINT)
            _, complaint = run.communicate(timeout=20)
        finally:
            run.kill()
    assert "KeyboardInterrupt" in complaint
    assert run.returncode != 0
    assert nothing_taken(release)
    assert [name.rpartition(".")[2] for name in left()] == ["part"]
    assert fetch().version == "17.2"
    assert server.asked(".tar.gz")[-1].startswith("bytes=")
    assert left() == []
