"""The provider `distro`: apt's lists read right, and an archive of our own, signed and not."""

from __future__ import annotations

import gzip
import hashlib
import os
import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from email.utils import formatdate
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ptrack_build import cache, source
from ptrack_build.errors import BadSource, SourceError
from ptrack_build.source.archive import imported
from ptrack_build.source.base import Want, version_key
from ptrack_build.source.distro import POCKETS, DistroProvider, Entry, entries, parse_uploads
from ptrack_build.source.mirror import open_mirror
from ptrack_build.source.tarball import TarballProvider
from tests.build._source_fixtures import NOWHERE, cache_root
from tests.build._sources import SUITE, Server, major, serving, tarball, tree

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["cache_root"]

needs_apt = pytest.mark.skipif(
    not all(map(shutil.which, ("apt-get", "apt-cache", "gpg", "gpgv"))),
    reason="needs apt, gpg and gpgv",
)

# ---- reading the host's configuration

_INDEXES = ("Sources", "Sources.gz")


def test_both_formats_of_sources(tmp_path: Path) -> None:
    parts = tmp_path / "sources.list.d"
    parts.mkdir()
    (tmp_path / "sources.list").write_text(
        "# comment\n"
        "deb http://a.example/debian bookworm main contrib # more\n"
        "deb [ arch=amd64 signed-by=/k/a.gpg,/k/b.gpg trusted=yes ] http://b.example trixie main\n"
        "#deb http://off.example/debian bookworm main\n"
        "deb broken\n"
    )
    (parts / "off.list.disabled").write_text("deb http://off.example/debian bookworm main\n")
    (parts / "c.sources").write_text(
        "Types: deb\nURIs: http://c.example/debian\nSuites: sid\n experimental\n"
        "Components: main\nSigned-By:\n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n x\n\n"
        "Types: deb\nURIs: http://off.example/debian\nSuites: sid\nEnabled: no\n\n"
        "# a comment\nTypes: deb deb-src\nuris: http://d.example/\nsuites: ./\nTrusted: yes\n"
        "check-valid-until: no\n"
    )
    block = "\n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n x"
    assert entries(tmp_path) == [
        Entry(
            uris=("http://a.example/debian",), suites=("bookworm",), components=("main", "contrib")
        ),
        Entry(
            uris=("http://b.example",),
            suites=("trixie",),
            components=("main",),
            fields=(("Signed-By", "/k/a.gpg /k/b.gpg"),),
        ),
        Entry(
            uris=("http://c.example/debian",),
            suites=("sid", "experimental"),
            components=("main",),
            fields=(("Signed-By", block),),
        ),
        Entry(
            uris=("http://d.example/",),
            suites=("./",),
            components=(),
            fields=(("Check-Valid-Until", "no"),),
        ),
    ]


def test_a_host_without_sources(tmp_path: Path) -> None:
    assert entries(tmp_path / "nothing") == []


def host(tmp_path: Path, lists: str, release: str) -> DistroProvider:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/sources.list").write_text(lists)
    (tmp_path / "os-release").write_text(release)
    return DistroProvider(etc=tmp_path / "etc", release=tmp_path / "os-release")


def stages(provider: DistroProvider, suites: tuple[str, ...]) -> list[tuple[list[str], str]]:
    want = Want(major=major("17", suites=suites), mirror=open_mirror())
    return provider._stages(want)


def test_the_suite_of_the_major_in_the_archives_of_the_host(tmp_path: Path) -> None:
    provider = host(
        tmp_path,
        "deb http://m.example/debian bookworm main contrib\n"
        "deb http://m.example/debian bookworm-updates main\n"
        "deb http://s.example/security bookworm-security main\n"
        "deb http://other.example/node nodistro main\n",
        'ID=debian\nVERSION_CODENAME=bookworm\nPRETTY_NAME="Debian 12"\n',
    )
    (first, label), (second, _) = stages(provider, ("trixie",))
    assert label == "trixie"
    assert first == [
        (
            "Types: deb-src\nURIs: http://m.example/debian\n"
            "Suites: trixie trixie-updates trixie-proposed-updates trixie-backports\n"
            "Components: main\n"
        ),
        (
            "Types: deb-src\nURIs: http://s.example/security\n"
            "Suites: trixie-security\nComponents: main\n"
        ),
    ]
    assert [stanza.splitlines()[2] for stanza in second] == [
        "Suites: bookworm",
        "Suites: bookworm-updates",
        "Suites: bookworm-security",
    ]


def test_sid_has_no_pockets(tmp_path: Path) -> None:
    lists = (
        "deb http://m.example/debian bookworm main\ndeb http://s.example/s bookworm-security main\n"
    )
    provider = host(tmp_path, lists, "ID=debian\nVERSION_CODENAME=bookworm\n")
    ((first, _), _) = stages(provider, ("sid",))
    assert [stanza.splitlines()[2] for stanza in first] == ["Suites: sid"]


def test_another_distribution_and_the_apt_repository_of_postgresql(tmp_path: Path) -> None:
    lists = (
        "deb http://u.example/ubuntu noble main universe\n"
        "deb http://u.example/ubuntu noble-security main universe\n"
        "deb [signed-by=/k/p.asc] https://p.example/pub noble-pgdg main 17\n"
    )
    provider = host(tmp_path, lists, "ID=ubuntu\nVERSION_CODENAME=noble\n")
    ((only, label),) = stages(provider, ("trixie",))
    assert label == "noble"
    assert [stanza.splitlines()[2] for stanza in only] == [
        "Suites: noble",
        "Suites: noble-security",
        "Suites: noble-pgdg",
    ]
    assert "Signed-By: /k/p.asc" in only[2]


def test_reading_what_apt_lists() -> None:
    text = (
        "Package: postgresql-19\nVersion: 19~beta2-1\nChecksums-Sha256:\n"
        " aa 10 postgresql-19_19~beta2-1.dsc\n bb 20 postgresql-19_19~beta2.orig.tar.bz2\n"
        " cc 30 postgresql-19_19~beta2-1.debian.tar.xz\n\n"
        "Package: postgresql-19\nVersion: 1:19.1-1.pgdg12+1\nFiles:\n"
        " dd 20 postgresql-19_19.1.orig.tar.gz\nChecksums-Sha256:\n"
        " ee 20 postgresql-19_19.1.orig.tar.gz\n\n"
        "Package: postgresql-190\nVersion: 1-1\nChecksums-Sha256:\n ff 1 x_1.orig.tar.gz\n"
    )
    found = parse_uploads(text, "postgresql-19")
    assert [(u.upstream, u.sha256, u.size) for u in found] == [
        ("19beta2", "bb", 20),
        ("19.1", "ee", 20),
    ]


def test_order_of_versions() -> None:
    ordered = ["", "9", "18.6", "19devel", "19beta1", "19~beta2", "19rc1", "19", "19.1", "19.10"]
    assert sorted(set(ordered), key=version_key) == ordered


def test_not_an_apt_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bin").mkdir()
    git = shutil.which("git")
    assert git is not None
    (tmp_path / "bin/git").symlink_to(git)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(SourceError, match="not an apt host"):
        source.fetch(major(), spec="distro")


# ---- an archive


@dataclass
class Archive:
    """An archive with one suite, signed by a key that the host trusts."""

    server: Server
    home: Path
    keyring: Path
    uploads: dict[str, tuple[str, bytes]] = field(default_factory=dict)

    def upload(
        self, version: str, data: bytes, *, there: bool = True, folder: str = "pool"
    ) -> None:
        """Add an upload to the index; without `there` its files have not arrived."""
        self.uploads[version] = (folder, data)
        upstream = version.rpartition("-")[0]
        if there:
            self.server.put(f"/{folder}/postgresql-17_{upstream}.orig.tar.gz", data)

    def publish(
        self, suite: str = SUITE, *, sign: bool = True, package: str = "postgresql-17"
    ) -> None:
        """Write a suite's index, and the release that vouches for it."""
        index = ""
        for version, (folder, data) in self.uploads.items():
            file = f"postgresql-17_{version.rpartition('-')[0]}.orig.tar.gz"
            dsc = f"postgresql-17_{version}.dsc"
            index += (
                f"Package: {package}\nBinary: {package}\nVersion: {version}\n"
                f"Maintainer: x <x@example.org>\nArchitecture: any\nFormat: 3.0 (quilt)\n"
                f"Directory: {folder}\nChecksums-Sha256:\n"
                f" {hashlib.sha256(b'dsc').hexdigest()} 3 {dsc}\n"
                f" {hashlib.sha256(data).hexdigest()} {len(data)} {file}\n\n"
            )
        contents = {
            "main/source/Sources": index.encode(),
            "main/source/Sources.gz": gzip.compress(index.encode(), mtime=0),
        }
        text = (
            f"Origin: trial\nLabel: trial\nSuite: {suite}\nCodename: {suite}\n"
            f"Date: {formatdate(time.time() - 60, usegmt=True)}\nArchitectures: amd64\n"
            "Components: main\nSHA256:\n"
        )
        for name, data in contents.items():
            text += f" {hashlib.sha256(data).hexdigest()} {len(data)} {name}\n"
            self.server.put(f"/dists/{suite}/{name}", data)
        signed = self._gpg("--clearsign", stdin=text) if sign else text
        self.server.put(f"/dists/{suite}/InRelease", signed.encode())

    def _gpg(self, *arguments: str, stdin: str = "") -> str:
        argv = [
            "gpg",
            "--homedir",
            str(self.home),
            "--batch",
            "--yes",
            "--quiet",
            "--pinentry-mode",
        ]
        argv += ["loopback", "--passphrase", "", *arguments]
        done = subprocess.run(argv, input=stdin, capture_output=True, text=True, check=True)
        return done.stdout

    def create_key(self) -> None:
        """A throw-away key and the keyring that the host would have."""
        self._gpg("--quick-generate-key", "trial <t@example.org>", "rsa2048", "sign", "never")
        self._gpg("--output", str(self.keyring), "--export")

    def provider(self, tmp_path: Path) -> DistroProvider:
        """The provider of a host that uses this archive."""
        etc = tmp_path / "apt"
        (etc / "sources.list.d").mkdir(parents=True, exist_ok=True)
        (etc / "sources.list.d/trial.sources").write_text(
            f"Types: deb\nURIs: {self.server.url}\nSuites: {SUITE}\nComponents: main\n"
            f"Signed-By: {self.keyring}\n"
        )
        release = tmp_path / "os-release"
        release.write_text(f"ID=debian\nVERSION_CODENAME={SUITE}\n")
        # pytest's directories are closed to the user that apt would run its methods as
        options = ["-o", "APT::Sandbox::User=root"] if os.geteuid() == 0 else []
        options += ["-o", "Acquire::http::Proxy=DIRECT", "-o", "Acquire::Retries=0"]
        return DistroProvider(etc=etc, release=release, options=tuple(options))


def test_images_get_to_the_mirror_as_the_host_does_and_want_its_signatures() -> None:
    settings = {
        "Acquire::http::Proxy": "http://p.example:3128",
        "Acquire::https::Proxy::a.example": "DIRECT",
        "Acquire::Check-Valid-Until": "false",
        "Acquire::Max-ValidTime": "86400",
        "Acquire::AllowInsecureRepositories": "true",
        "APT::Get::AllowUnauthenticated": "true",
        "Acquire::Retries": "0",
    }
    options = [word for name, value in settings.items() for word in ("-o", f"{name}={value}")]
    taken = DistroProvider(options=("-c", "/dev/null", *options)).transport()
    for name, value in list(settings.items())[:4]:
        assert f'{name} "{value}";' in taken
    assert not [line for line in taken if "Allow" in line or "Retries" in line]


@pytest.fixture
def archive(tmp_path: Path) -> Iterator[Archive]:
    """An archive without uploads yet."""
    # gpg's agent needs a short path for its socket
    with tempfile.TemporaryDirectory(prefix="ptrack-gpg-") as home, serving() as server:
        made = Archive(server=server, home=Path(home), keyring=tmp_path / "keyring.gpg")
        made.create_key()
        try:
            yield made
        finally:
            subprocess.run(
                ["gpgconf", "--homedir", home, "--kill", "all"], check=False, capture_output=True
            )


@pytest.fixture
def fetch(archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fetch:
    """Fetch 17 from that archive alone."""
    provider = archive.provider(tmp_path)
    monkeypatch.setattr(source, "providers", lambda: (provider,))
    return Fetch()


class Fetch:
    def __call__(
        self, spec: str = "distro", *, refresh: bool = False, suites: tuple[str, ...] = (SUITE,)
    ) -> source.SourceTree:
        return source.fetch(major(suites=suites), spec=spec, refresh=refresh)


def release(version: str) -> bytes:
    return tarball(tree(version), top=f"postgresql-{version}")


@needs_apt
def test_the_orig_tarball_of_the_newest_upload(archive: Archive, fetch: Fetch) -> None:
    archive.upload("17.1-1", release("17.1"))
    archive.upload("17.2-0+deb13u1", release("17.2"))
    archive.publish()
    found = fetch()
    assert (found.version, found.provider) == ("17.2", "distro")
    assert found.origin == f"postgresql-17 17.2-0+deb13u1 of {SUITE}"
    assert found.sha256 == hashlib.sha256(release("17.2")).hexdigest()


@needs_apt
def test_the_newest_upload_has_not_arrived(
    archive: Archive, fetch: Fetch, capsys: pytest.CaptureFixture[str]
) -> None:
    archive.upload("17.1-1", release("17.1"))
    archive.upload("17.2-1", release("17.2"), there=False)
    archive.publish()
    assert fetch().version == "17.1"
    out = capsys.readouterr().out
    assert "postgresql-17 17.2-1 is listed but cannot be had (404 Not Found): next one" in out


@needs_apt
@pytest.mark.parametrize("missing", ["-1", "-2"])
def test_a_tarball_that_one_of_two_pockets_has(
    archive: Archive, fetch: Fetch, missing: str
) -> None:
    """Two uploads of one tarball, as a release and its security pocket have them."""
    for revision, folder in (("-1", "pool/main"), ("-2", "pool/updates")):
        archive.upload(f"17.2{revision}", release("17.2"), there=revision != missing, folder=folder)
    archive.publish()
    assert fetch().version == "17.2"


@needs_apt
def test_the_next_suite_when_nothing_of_the_first_has_arrived(
    archive: Archive, fetch: Fetch
) -> None:
    archive.upload("17.2-1", release("17.2"), there=False)
    archive.publish()
    archive.uploads.clear()
    archive.upload("17.1-1", release("17.1"))
    archive.publish("older")
    found = fetch(suites=(SUITE, "absent", "older"))
    assert found.origin == "postgresql-17 17.1-1 of older"


@needs_apt
def test_no_upload_has_arrived(archive: Archive, fetch: Fetch) -> None:
    archive.upload("17.1-1", release("17.1"), there=False)
    archive.upload("17.2-1", release("17.2"), there=False)
    archive.publish()
    with pytest.raises(SourceError, match=r"17\.2-1 \(404 Not Found\), 17\.1-1 \(404 Not Found\)"):
        fetch()


@needs_apt
def test_one_version(archive: Archive, fetch: Fetch) -> None:
    archive.upload("17.1-1", release("17.1"))
    archive.upload("17.2-1", release("17.2"))
    archive.publish()
    assert fetch("distro:17.1").version == "17.1"
    with pytest.raises(SourceError, match=r"lists no postgresql-17 17\.0"):
        fetch("distro:17.0")


@needs_apt
def test_a_new_upload_is_seen_on_refresh(archive: Archive, fetch: Fetch) -> None:
    archive.upload("17.1-1", release("17.1"))
    archive.publish()
    assert fetch().version == "17.1"
    archive.upload("17.2-1", release("17.2"))
    archive.publish()
    assert fetch().version == "17.1"
    assert fetch(refresh=True).version == "17.2"


@needs_apt
def test_an_unsigned_archive_is_refused(archive: Archive, fetch: Fetch) -> None:
    archive.upload("17.2-1", release("17.2"))
    archive.publish(sign=False)
    with pytest.raises(SourceError, match=r"(?i)not signed|clearsigned|signature"):
        fetch()


@needs_apt
def test_a_key_that_is_not_trusted(archive: Archive, fetch: Fetch, tmp_path: Path) -> None:
    archive.upload("17.2-1", release("17.2"))
    archive.publish()
    other = Archive(server=archive.server, home=tmp_path / "g", keyring=archive.keyring)
    with tempfile.TemporaryDirectory(prefix="ptrack-gpg-") as home:
        other.home = Path(home)
        archive.keyring.unlink()
        other.create_key()
        subprocess.run(
            ["gpgconf", "--homedir", home, "--kill", "all"], check=False, capture_output=True
        )
    with pytest.raises(SourceError, match=r"(?i)NO_PUBKEY|public key|not signed"):
        fetch()


@needs_apt
def test_a_tarball_that_was_tampered_with(archive: Archive, fetch: Fetch) -> None:
    archive.upload("17.2-1", release("17.2"))
    archive.publish()
    evil = bytearray(release("17.2"))
    evil[100] ^= 1
    archive.server.put("/pool/postgresql-17_17.2.orig.tar.gz", bytes(evil))
    with pytest.raises(SourceError, match=r"(?i)hash sum mismatch"):
        fetch()
    for data in (bytes(evil), release("17.2")):
        assert not imported(open_mirror(), hashlib.sha256(data).hexdigest())


def with_an_older_suite(archive: Archive) -> None:
    """17.2 here, and 17.1 in a suite that could be taken instead."""
    archive.upload("17.1-1", release("17.1"))
    archive.publish("older")
    archive.upload("17.2-1", release("17.2"))
    archive.publish()


@needs_apt
def test_what_was_tampered_with_is_not_passed_over(archive: Archive, fetch: Fetch) -> None:
    """Neither an older upload nor the next suite is taken instead."""
    with_an_older_suite(archive)
    archive.server.put("/pool/postgresql-17_17.2.orig.tar.gz", release("17.2")[:-1] + b"x")
    with pytest.raises(BadSource, match=r"(?i)17\.2-1: hash sum mismatch") as caught:
        fetch(suites=(SUITE, "older"))
    assert "PTRACK_SOURCE" in (caught.value.hint or "")


@pytest.fixture
def auto(archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """17.1 and 17.2 at the archive, and 17.2 where tarballs are asked for next."""
    with_an_older_suite(archive)
    archive.server.release("17.2", release("17.2"))
    providers = (archive.provider(tmp_path), TarballProvider())
    monkeypatch.setattr(source, "providers", lambda: providers)
    monkeypatch.setenv("PTRACK_PG_TARBALLS", archive.server.url)


@needs_apt
@pytest.mark.usefixtures("auto")
def test_what_was_tampered_with_is_taken_from_nowhere_else(archive: Archive) -> None:
    archive.server.put("/pool/postgresql-17_17.2.orig.tar.gz", release("17.2")[:-1] + b"x")
    with pytest.raises(BadSource, match=r"(?i)17\.2-1: hash sum mismatch"):
        source.fetch(major(), spec="auto")


@needs_apt
@pytest.mark.usefixtures("auto")
def test_a_mirror_that_is_being_renewed_is_passed_over(
    archive: Archive, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its index is not yet, or no more, the one that was signed for."""
    archive.uploads.clear()
    for pocket in POCKETS[1:]:
        archive.publish(SUITE + pocket)
    for name in _INDEXES:
        index = archive.server.files[f"/dists/{SUITE}/main/source/{name}"]
        index.data = index.data[:-1] + b"x"
    assert source.fetch(major(), spec="auto").provider == "tarball"
    assert "(distro: Hash Sum mismatch)" in capsys.readouterr().out


@needs_apt
@pytest.mark.parametrize("listed", [False, True], ids=["alone", "beside another index"])
def test_a_mirror_that_is_being_renewed_leaves_the_cache(
    archive: Archive, fetch: Fetch, capsys: pytest.CaptureFixture[str], *, listed: bool
) -> None:
    with_an_older_suite(archive)
    version = fetch(suites=(SUITE,)).version
    indexes = [archive.server.files[f"/dists/{SUITE}/main/source/{n}"] for n in _INDEXES]
    right = [index.data for index in indexes]
    if listed:
        for pocket in POCKETS[1:]:
            archive.publish(SUITE + pocket, package="other")
    for index in indexes:
        index.data = index.data[:-1] + b"x"
    for path in cache.root().glob("source/apt/*/state/lists/*_Sources*"):
        path.unlink()
    assert fetch(suites=(SUITE,), refresh=True).version == version
    out = capsys.readouterr().out
    assert "from the cache" in out
    assert "Hash Sum mismatch" in out
    for index, data in zip(indexes, right, strict=True):
        index.data = data
    assert fetch(suites=(SUITE,)).version == version
    assert "from the cache" not in capsys.readouterr().out, "it is asked again at once"


@needs_apt
def test_an_index_that_was_tampered_with_is_not_passed_over(archive: Archive, fetch: Fetch) -> None:
    with_an_older_suite(archive)
    signed = archive.server.files[f"/dists/{SUITE}/InRelease"]
    signed.data = signed.data.replace(b"Label: trial", b"Label: other")
    with pytest.raises(BadSource, match=r"(?i)signature|BADSIG"):
        fetch(suites=(SUITE, "older"))


@needs_apt
def test_a_download_that_fails_is_shown_as_such(
    archive: Archive, fetch: Fetch, capsys: pytest.CaptureFixture[str]
) -> None:
    archive.upload("17.2-1", release("17.2"), there=False)
    archive.publish()
    archive.uploads.clear()
    archive.upload("17.1-1", release("17.1"))
    archive.publish("older")
    assert fetch(suites=(SUITE, "absent", "older")).version == "17.1"
    out = capsys.readouterr().out
    assert "postgresql-17_17.2.orig.tar.gz, 0 MB: failed after" in out
    assert "postgresql-17_17.2.orig.tar.gz, 0 MB: done" not in out
    assert f"distro: {SUITE} lists 17.2-1 (404 Not Found): none can be downloaded: next" in out
    assert "distro: the archive has no suite absent: next" in out, "Ign: is no reason"


@needs_apt
def test_what_was_there_of_another_file_is_dropped(
    archive: Archive, fetch: Fetch, cache_root: Path
) -> None:
    archive.upload("17.2-1", release("17.2"), there=False)
    archive.publish()
    with pytest.raises(SourceError):
        fetch()
    (folder,) = (cache_root / "source/apt").glob("*/download")
    (folder / "postgresql-17_17.2.orig.tar.gz").write_bytes(b"x" * 100)
    archive.upload("17.2-1", release("17.2"))
    assert fetch().version == "17.2"
    assert list(folder.iterdir()) == []


@needs_apt
def test_nothing_of_the_host_is_changed(archive: Archive, fetch: Fetch) -> None:
    watched = [Path("/var/lib/apt/lists"), Path("/var/cache/apt"), Path("/etc/apt")]
    before = {path: path.stat().st_mtime_ns for path in watched if path.exists()}
    archive.upload("17.2-1", release("17.2"))
    archive.publish()
    fetch()
    assert before == {path: path.stat().st_mtime_ns for path in watched if path.exists()}


@needs_apt
def test_the_archive_is_out_of_reach(
    archive: Archive, fetch: Fetch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    archive.upload("17.2-1", release("17.2"))
    archive.publish()
    fetch()
    capsys.readouterr()
    sources = tmp_path / "apt/sources.list.d/trial.sources"
    sources.write_text(sources.read_text().replace(archive.server.url, NOWHERE))
    assert fetch().version == "17.2"
    out = capsys.readouterr().out
    assert "as of 0 min ago, from the cache (distro: 127.0.0.1: connection refused)" in out


@needs_apt
@pytest.mark.parametrize(
    "path", [f"/dists/{SUITE}/InRelease", f"/dists/{SUITE}/main/source/Sources.gz", "tarball"]
)
def test_apt_itself_cuts_off_what_has_no_end(archive: Archive, fetch: Fetch, path: str) -> None:
    """It knows how large each file is, and of a release how large it may be."""
    archive.upload("17.1-1", release("17.1"))
    archive.publish()
    path = "/pool/postgresql-17_17.1.orig.tar.gz" if path == "tarball" else path
    for name in _INDEXES if "Sources" in path else ():
        archive.server.files[f"/dists/{SUITE}/main/source/{name}"].endless = True
    archive.server.files[path].endless = True
    with pytest.raises(SourceError):
        fetch()
    assert 0 < archive.server.files[path].poured < 50_000_000
