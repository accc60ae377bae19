"""Repositories: apt really takes packages from one, and nothing that was tampered with.

The keys are real, throw-away ones; the packages are real and empty; servers are on the loopback.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import textwrap
import threading
import time
import urllib.error
import urllib.request
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ptrack_build.errors import UsageError
from ptrack_build.package import (
    LOCK,
    MANIFEST,
    SUMS,
    Package,
    PackageError,
    Release,
    System,
    deb,
    leaflet,
    publish,
    repo,
    rpm,
    signing,
    verify,
)
from ptrack_build.package import described as described_deb
from ptrack_build.package.rpmrepo import served
from tests.build.test_package import MADE_OF, SYSTEM

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.skipif(
    not all(map(shutil.which, ("dpkg-deb", "apt-ftparchive", "gpg"))),
    reason="needs dpkg-deb, apt-ftparchive (apt-utils) and gpg",
)
rpm_tools = pytest.mark.skipif(
    not all(map(shutil.which, ("rpmbuild", "rpmsign", "createrepo_c"))),
    reason="needs rpmbuild, rpmsign and createrepo_c",
)


def run(*words: str | Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a program that may fail; both streams are its stdout."""
    return subprocess.run(
        [str(word) for word in words], env={**os.environ, "LC_ALL": "C.UTF-8", **env}, text=True,
        check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
    )  # fmt: skip


@pytest.fixture(scope="module")
def gnupg(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A GNUPGHOME with one key for signing; its agent ends with the tests."""
    del tmp_path_factory  # its paths are too long for an agent's socket
    home = Path(run("mktemp", "-d", "-t", "ptrack-test-XXXXXX").stdout.strip())
    try:
        made = generate(home, "A <a@ptrack.example>", "2y")
        assert made.returncode == 0, made.stdout
        yield home
    finally:
        run("gpgconf", "--homedir", home, "--kill", "all")
        shutil.rmtree(home, ignore_errors=True)


def generate(
    home: Path, name: str, expires: str, *more: str, passphrase: str = ""
) -> subprocess.CompletedProcess[str]:
    """Make a key for signing."""
    return run(
        "gpg", "--homedir", home, "--batch", "--pinentry-mode", "loopback", "--passphrase",
        passphrase, *more, "--quick-generate-key", name, "rsa3072", "sign", expires,
    )  # fmt: skip


@pytest.fixture
def key(gnupg: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The key that repositories are signed with here; its address."""
    del own_cache
    monkeypatch.setenv("GNUPGHOME", str(gnupg))
    monkeypatch.setenv(signing.SETTING, "a@ptrack.example")
    return "a@ptrack.example"


def debs(folder: Path, dist: Path, version: str = "17.2-1", epoch: int = 1_700_000_000) -> Path:
    """Publish a release of one real, empty package, named greeting."""
    root = folder / f"root-{version}"
    (root / "DEBIAN").mkdir(parents=True)
    (root / "DEBIAN" / "control").write_text(
        f"Package: greeting\nVersion: {version}\nArchitecture: amd64\nMaintainer: A <a@b.example>\n"
        "Description: greets\n"
    )
    file = folder / f"greeting_{version}_amd64.deb"
    env = {"SOURCE_DATE_EPOCH": str(epoch)}
    assert run("dpkg-deb", "--root-owner-group", "-b", root, file, **env).returncode == 0
    return publish(
        Release(
            kind="deb", system=SYSTEM, major="17", files=(file,),
            made_of={**MADE_OF, "source_date_epoch": epoch},
            packages=(described_deb(file, deb.fields(file)),),
        ),
        dist,
    )  # fmt: skip


def content(place: Path, *, without: tuple[str, ...] = ()) -> dict[str, str]:
    """The digests of all files below a place by path, but for those of some names."""
    return {
        path.relative_to(place).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(place.rglob("*"))
        if path.is_file() and path.name not in without
    }


# ---- apt


@dataclass(frozen=True)
class Apt:
    """An apt with a configuration of its own, which knows one source and no other."""

    root: Path

    def __call__(self, *words: str) -> subprocess.CompletedProcess[str]:
        work = self.root / "work"
        work.mkdir(exist_ok=True)
        config = self.root / "apt.conf"
        return subprocess.run(
            ["apt-get", "-q", *words], cwd=work, text=True, check=False,
            env={"PATH": os.environ["PATH"], "APT_CONFIG": str(config), "LC_ALL": "C.UTF-8"},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
        )  # fmt: skip


def apt(root: Path, source: str) -> Apt:
    """Write its configuration and its one source."""
    for name in ("state/lists/partial", "cache/archives/partial", "etc/sources.list.d",
                 "etc/preferences.d", "etc/trusted.gpg.d", "etc/apt.conf.d", "log"):  # fmt: skip
        (root / name).mkdir(parents=True)
    (root / "status").write_text("")
    (root / "etc" / "sources.list.d" / "ptrack.sources").write_text(source)
    (root / "apt.conf").write_text(
        f'Dir::State "{root}/state";\nDir::State::status "{root}/status";\n'
        f'Dir::Cache "{root}/cache";\nDir::Etc "{root}/etc";\nDir::Log "{root}/log";\n'
        'APT::Architecture "amd64";\nAPT::Architectures { "amd64"; };\n'
        'APT::Sandbox::User "root";\nDebug::NoLocking "true";\nAcquire::http::Proxy "DIRECT";\n'
        'Acquire::Languages "none";\n'
    )
    return Apt(root)


def source(place: Path, address: str, key_file: Path | None) -> str:
    """What repo.usage says, with the address and the key's file put in."""
    text = repo.usage(place, unsigned=key_file is None).partition(".sources:\n")[2]
    rows = [line.strip() for line in text.splitlines() if line.startswith("    ")]
    deb822 = "\n".join(rows).replace("URL", address) + "\n"
    return deb822.replace("/etc/apt/keyrings/ptrack.asc", str(key_file))


def test_apt_installs_from_it_and_refuses_what_was_altered(tmp_path: Path, key: str) -> None:
    del key
    debs(tmp_path, tmp_path / "dist")
    place = repo.make(tmp_path / "dist")
    with served(place) as address:
        system = apt(tmp_path / "apt", source(place, address, place / repo.KEY_FILE))
        done = system("update")
        assert done.returncode == 0, done.stdout
        assert "W:" not in done.stdout
        done = system("install", "-s", "greeting")
        assert "Inst greeting (17.2-1 ptrack:bookworm [amd64])" in done.stdout
        done = system("download", "greeting")
        assert done.returncode == 0, done.stdout
        (file,) = (system.root / "work").glob("greeting_*.deb")
        original = next((place / "apt" / "pool").rglob("*.deb"))
        assert file.read_bytes() == original.read_bytes()

        for listing in (*place.rglob("Packages*"), *place.glob("**/by-hash/*/*")):
            listing.write_bytes(listing.read_bytes().replace(b"greets", b"greet5") + b"\n")
        fresh = apt(tmp_path / "fresh", source(place, address, place / repo.KEY_FILE))
        done = fresh("update")
        assert done.returncode != 0
        assert "mismatch" in done.stdout or "unexpected size" in done.stdout


def test_sources_are_listed_with_what_they_are_made_of(tmp_path: Path, key: str) -> None:
    del key
    dist = tmp_path / "dist"
    release = debs(tmp_path, dist)
    assert not (repo.make(dist) / "apt/dists/bookworm/main/source").exists()
    tree = tmp_path / "tree"
    (tree / "debian/source").mkdir(parents=True)
    (tree / "debian/source/format").write_text("3.0 (native)\n")
    (tree / "debian/changelog").write_text(
        "greeting (1) unstable; urgency=low\n\n  * A.\n\n"
        " -- A <a@b.example>  Thu, 01 Jan 2026 00:00:00 +0000\n"
    )
    (tree / "debian/control").write_text(
        "Source: greeting\nMaintainer: A <a@b.example>\n\n"
        "Package: greeting\nArchitecture: any\nDescription: greets\n"
    )
    argv = ["dpkg-source", "-Zgzip", "--build", "tree"]
    subprocess.run(argv, cwd=tmp_path, check=True, capture_output=True)
    said = json.loads((release / MANIFEST).read_text())
    for file in (tmp_path / "greeting_1.dsc", tmp_path / "greeting_1.tar.gz"):
        shutil.copy(file, release)
        said["packages"].append({"file": file.name})
    (release / MANIFEST).write_text(json.dumps(said))
    sums = [
        f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n"
        for file in sorted(release.iterdir())
        if file.name != SUMS
    ]
    (release / SUMS).write_text("".join(sums))
    place = repo.make(dist) / "apt"
    listed = (place / "dists/bookworm/main/source/Sources").read_text()
    assert "Package: greeting\n" in listed
    assert "greeting_1.tar.gz" in listed
    assert " main/source/Sources.xz\n" in (place / "dists/bookworm/Release").read_text()
    assert (place / "pool/bookworm/greeting_1.tar.gz").is_file()


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("greeting_1.orig.tar.gz", ""),
        ("greeting_1.orig.tar.gz", "the same sources"),  # a number of ours is not in its name
        ("greeting_1-1.debian.tar.xz", "PTRACK_REVISION=2"),
        ("greeting_1-1.dsc", "PTRACK_REVISION=2"),
    ],
)
def test_architectures_share_a_source_package_if_it_is_the_same(
    name: str, hint: str, tmp_path: Path, key: str
) -> None:
    del key
    same = not hint
    dist = tmp_path / "dist"
    for architecture, text in (("amd64", "one"), ("arm64", "one" if same else "other")):
        file = tmp_path / architecture / name
        file.parent.mkdir()
        file.write_text(text)
        package = Package(
            file=file.name, name="greeting", version="1", architecture="source",
            size=len(text), installed_kb=0, sha256=hashlib.sha256(text.encode()).hexdigest(),
        )  # fmt: skip
        publish(
            Release(
                kind="deb", system=dataclasses.replace(SYSTEM, architecture=architecture),
                major="17", files=(file,), packages=(package,),
                made_of={**MADE_OF, "source_date_epoch": 1_700_000_000},
            ),
            dist,
        )  # fmt: skip
    if same:
        assert (repo.make(dist) / "apt/pool/bookworm" / name).read_text() == "one"
        return
    what = r"bookworm-amd64/\S+/greeting_1\S+ and \S+bookworm-arm64/\S+ differ"
    with pytest.raises(PackageError, match=what) as caught:
        repo.make(dist)
    assert hint in (caught.value.hint or "")
    assert ("PTRACK_REVISION" in (caught.value.hint or "")) == ("orig" not in name)
    assert not (dist / "repo").exists()


def test_what_verify_packages_serves_is_what_apt_takes(tmp_path: Path, own_cache: Path) -> None:
    """A repository of one directory, a key for the trial, a server of a few lines."""
    del own_cache
    dist = debs(tmp_path, tmp_path / "dist", "17.2-1+a~b")
    place = tmp_path / "repository"
    with signing.throwaway() as key:
        said = repo.trial(dist, place, key)
    assert not (key.home or place).exists()
    process = ""
    try:
        port, process = run("perl", verify.SERVE, place).stdout.split()
        address = f"http://127.0.0.1:{port}"
        here = said.replace("URL", address)
        here = here.replace("/etc/apt/keyrings/ptrack.asc", str(place / repo.KEY_FILE))
        system = apt(tmp_path / "apt", here)
        done = system("update", "-o", f"Dir::Etc::sourcelist={tmp_path}/apt/etc/sources.list.d/"
                      "ptrack.sources", "-o", "Dir::Etc::sourceparts=-",
                      "-o", "APT::Get::List-Cleanup=false")  # fmt: skip
        assert done.returncode == 0, done.stdout
        assert "W:" not in done.stdout
        done = system("download", "greeting")
        assert done.returncode == 0, done.stdout
        (file,) = (system.root / "work").glob("greeting_*.deb")
        assert file.read_bytes() == next((place / "apt" / "pool").rglob("*.deb")).read_bytes()
        for path in ("/nothing", "/apt", "/../repository/ptrack.asc"):
            with pytest.raises(urllib.error.HTTPError, match="404"):
                urllib.request.urlopen(f"{address}{path}", timeout=30)
    finally:
        if process:
            os.kill(int(process), signal.SIGTERM)


def test_apt_refuses_another_key_and_an_altered_release(
    tmp_path: Path, key: str, gnupg: Path
) -> None:
    del key
    debs(tmp_path, tmp_path / "dist")
    place = repo.make(tmp_path / "dist")
    stranger = tmp_path / "stranger.asc"
    assert generate(gnupg, "S <s@ptrack.example>", "2y").returncode == 0
    stranger.write_text(run("gpg", "--homedir", gnupg, "--armor", "--export", "s@p").stdout)
    with served(place) as address:
        done = apt(tmp_path / "apt", source(place, address, stranger))("update")
        assert done.returncode != 0
        assert "NO_PUBKEY" in done.stdout
        for name in ("InRelease", "Release"):
            file = place / "apt" / "dists" / "bookworm" / name
            file.write_text(file.read_text().replace("Origin: ptrack", "Origin: other!"))
        done = apt(tmp_path / "two", source(place, address, place / repo.KEY_FILE))("update")
        assert done.returncode != 0
        assert "BADSIG" in done.stdout


def test_without_a_signature_only_where_it_is_asked_for(
    tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    del own_cache
    monkeypatch.delenv(signing.SETTING, raising=False)
    debs(tmp_path, tmp_path / "dist")
    with pytest.raises(UsageError, match=signing.SETTING) as caught:
        repo.make(tmp_path / "dist")
    assert "--quick-generate-key" in (caught.value.hint or "")
    assert {path.name for path in (tmp_path / "dist").iterdir()} == {SYSTEM.name, LOCK}
    place = repo.make(tmp_path / "dist", unsigned=True)
    assert not list(place.rglob("InRelease"))
    assert "Trusted: yes" in repo.usage(place, unsigned=True)
    with served(place) as address:
        done = apt(tmp_path / "apt", source(place, address, None))("update")
        assert done.returncode == 0, done.stdout


def test_the_same_packages_give_the_same_bytes(tmp_path: Path, key: str) -> None:
    del key
    for version, epoch in (("17.2-1", 1_700_000_000), ("17.3-1", 1_710_000_000)):
        debs(tmp_path, tmp_path / "dist", version, epoch)
        place = repo.make(tmp_path / "dist")
        release = place / "apt" / "dists" / "bookworm" / "Release"
        day = time.strftime("%a, %d %b %Y", time.gmtime(epoch))
        assert f"\nDate: {day}" in release.read_text()
        signatures = ("InRelease", "Release.gpg")
        before = content(place, without=signatures)
        (file,) = (tmp_path / "dist").glob("*/*/*.deb")
        os.utime(file)
        assert content(repo.make(tmp_path / "dist"), without=signatures) == before


def test_listings_are_there_by_their_digests_and_apt_asks_for_them_so(
    tmp_path: Path, key: str
) -> None:
    del key
    debs(tmp_path, tmp_path / "dist")
    place = repo.make(tmp_path / "dist")
    suite = place / "apt" / "dists" / "bookworm"
    release = (suite / "Release").read_text()
    assert "Acquire-By-Hash: yes" in release.splitlines()
    listed = re.findall(r"^ ([0-9a-f]{64,}) +\d+ (\S+)$", release, re.MULTILINE)
    assert len(listed) == 4
    assert {name for _, name in listed} == {
        "main/binary-amd64/Packages", "main/binary-amd64/Packages.xz",
    }  # fmt: skip
    for digest, name in listed:
        kind = "SHA256" if len(digest) == 64 else "SHA512"
        named = (suite / name).parent / "by-hash" / kind / digest
        assert hashlib.new(kind, named.read_bytes()).hexdigest() == digest
    for _, name in listed:
        (suite / name).write_text("what a cache on the way has kept of another day")
    with served(place) as address:
        done = apt(tmp_path / "apt", source(place, address, place / repo.KEY_FILE))("update")
        assert done.returncode == 0, done.stdout


def test_a_day_on_which_listings_end_is_for_apt_to_heed(tmp_path: Path, key: str) -> None:
    """None is named by itself: nobody may be there to make them anew."""
    del key
    debs(tmp_path, tmp_path / "dist")
    release = repo.make(tmp_path / "dist") / "apt/dists/bookworm/Release"
    assert "Valid-Until" not in release.read_text()
    with pytest.raises(UsageError, match="valid until 2026-01-31, and no machine would"):
        repo.make(tmp_path / "dist", until=date(2026, 1, 31))
    assert "Valid-Until" not in release.read_text()
    place = repo.make(tmp_path / "dist", until=date(2199, 1, 31))
    said = release.read_text()
    assert "\nDate: Tue, 14 Nov 2023 22:13:20 UTC\n" in said
    assert "\nValid-Until: Thu, 31 Jan 2199 00:00:00 UTC\n" in said
    with served(place) as address:
        system = apt(tmp_path / "apt", source(place, address, place / repo.KEY_FILE))
        done = system("update")
        assert done.returncode == 0, done.stdout
        assert "W:" not in done.stdout
        done = system("update", "-o", "Acquire::Max-ValidTime=86400")  # of the day that it says
        assert "expired" in done.stdout


def test_the_environment_changes_no_listing(
    tmp_path: Path, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    del key
    debs(tmp_path, tmp_path / "dist")
    signatures = ("InRelease", "Release.gpg")
    before = content(repo.make(tmp_path / "dist"), without=signatures)
    (tmp_path / "apt.conf").write_text('APT::FTPArchive::SHA512 "false";\n')
    monkeypatch.setenv("APT_CONFIG", str(tmp_path / "apt.conf"))
    assert content(repo.make(tmp_path / "dist"), without=signatures) == before


@pytest.mark.parametrize("unsigned", [False, True])
def test_an_administrator_finds_what_to_do_beside_it(
    unsigned: bool, tmp_path: Path, key: str, gnupg: Path
) -> None:
    debs(tmp_path, tmp_path / "dist")
    place = repo.make(tmp_path / "dist", unsigned=unsigned)
    said = (place / leaflet.FILE).read_text()
    assert repo.usage(place, unsigned=unsigned) in said
    shown = run("gpg", "--homedir", gnupg, "--with-fingerprint", "--list-keys", key).stdout
    assert (re.search(r"[0-9A-F]{4}( +[0-9A-F]{4}){9}", said) is None) is unsigned
    assert (said.partition("UNSIGNED: ")[1] != "") is unsigned
    if not unsigned:
        words = re.findall(r"[0-9A-F]{4}(?: +[0-9A-F]{4}){9}", said)
        assert words[0] in shown
        assert f"curl -fsS URL/{repo.KEY_FILE} | gpg --show-keys" in said


def test_what_installs_is_named_once_for_each_major() -> None:
    files = [
        "postgresql-17-ptrack_3.0.0+pg17.4-1+deb12_amd64.deb", "postgresql-17pt_17.4_amd64.deb",
        "postgresql-17-ptrack_3.0.0+pg17.4-1+deb13_amd64.deb", "postgresql-17-ptrack_3.dsc",
        "postgresql-17-ptrack-dbgsym_3_amd64.deb", "postgresql-9-ptrack_3_amd64.deb",
        "ptrack_18-3.0.0-1.pg18.1.fc43.x86_64.rpm", "ptrack_18-llvmjit-3.0.0-1.x86_64.rpm",
    ]  # fmt: skip
    assert leaflet.commands(files) == [
        "apt-get update && apt-get install postgresql-9-ptrack",
        "apt-get update && apt-get install postgresql-17-ptrack",
        "dnf install ptrack_18",
    ]


def test_anybody_may_read_it_whatever_the_umask(tmp_path: Path, key: str) -> None:
    del key
    debs(tmp_path, tmp_path / "dist")
    before = os.umask(0o077)
    try:
        place = repo.make(tmp_path / "dist")
        assert os.umask(0o077) == 0o077
    finally:
        os.umask(before)
    modes = {path.relative_to(place): path.stat().st_mode & 0o777 for path in place.rglob("*")}
    assert {path: mode for path, mode in modes.items() if mode not in {0o755, 0o644}} == {}


def test_what_is_published_meanwhile_gets_in_whole_or_not(
    tmp_path: Path, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No release is replaced between the look at its sums and the copying."""
    del key
    dist = tmp_path / "dist"
    debs(tmp_path, dist)
    real, threads = repo.releases, []

    def looked(dist: Path) -> list[repo.Made]:
        found = real(dist)
        threads.append(threading.Thread(target=debs, args=(tmp_path, dist, "17.3-1")))
        threads[0].start()
        threads[0].join(1.0)
        return found

    monkeypatch.setattr(repo, "releases", looked)
    place = repo.make(dist)
    threads[0].join(60)
    assert [path.name for path in place.rglob("*.deb")] == ["greeting_17.2-1_amd64.deb"]
    assert [path.name for path in dist.glob("*/*/*.deb")] == ["greeting_17.3-1_amd64.deb"]


# ---- dist/ and keys that are not as they should be


@pytest.mark.parametrize("damage", ["altered", "missing", "more", "no manifest"])
def test_a_damaged_dist_is_refused(tmp_path: Path, key: str, damage: str) -> None:
    del key
    dist = tmp_path / "dist"
    release = debs(tmp_path, dist)
    repo.make(dist)
    before = content(dist / "repo")
    (package,) = release.glob("*.deb")
    match damage:
        case "altered":
            package.write_bytes(package.read_bytes() + b"\n")
        case "missing":
            package.unlink()
        case "more":
            (release / "more.deb").write_bytes(b"")
        case _:
            (release / MANIFEST).unlink()
    with pytest.raises(PackageError, match="is damaged"):
        repo.make(dist)
    assert content(dist / "repo") == before


def test_nothing_in_dist_is_said(tmp_path: Path, key: str) -> None:
    del key
    with pytest.raises(PackageError, match="no packages"):
        repo.make(tmp_path / "dist")


def test_keys_that_cannot_sign(
    tmp_path: Path, key: str, gnupg: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    del key
    dist = tmp_path / "dist"
    debs(tmp_path, dist)
    past = ("--faked-system-time", "20200101T000000")
    assert generate(gnupg, "E <expired@ptrack.example>", "1d", *past).returncode == 0
    locked = generate(gnupg, "L <locked@ptrack.example>", "2y", passphrase="secret")
    assert locked.returncode == 0
    run("gpgconf", "--homedir", gnupg, "--kill", "gpg-agent")  # forgets passphrases
    public = tmp_path / "public.asc"
    public.write_text(run("gpg", "--homedir", gnupg, "--armor", "--export", "a@p").stdout)
    for named, message in (
        ("expired@ptrack.example", "has expired"),
        ("locked@ptrack.example", "has a passphrase"),
        ("nobody@ptrack.example", "gpg has no key"),
        (str(public), "has no secret key"),
    ):
        monkeypatch.setenv(signing.SETTING, named)
        with pytest.raises(signing.SigningError, match=message):
            repo.make(dist)
    monkeypatch.setenv(signing.SETTING, str(tmp_path / "none.asc"))
    with pytest.raises(UsageError, match="there is no file"):
        repo.make(dist)
    assert {path.name for path in dist.iterdir()} == {SYSTEM.name, LOCK}


def test_a_key_in_a_file_signs(
    tmp_path: Path, key: str, gnupg: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "secret.asc"
    file.write_text(
        run("gpg", "--homedir", gnupg, "--batch", "--armor", "--export-secret-keys", key).stdout
    )
    monkeypatch.setenv(signing.SETTING, str(file))
    monkeypatch.setenv("GNUPGHOME", str(tmp_path / "none"))
    debs(tmp_path, tmp_path / "dist")
    place = repo.make(tmp_path / "dist")
    assert verified(tmp_path, place, place / "apt/dists/bookworm/Release.gpg", "Release")


def verified(tmp_path: Path, place: Path, signature: Path, name: str) -> bool:
    """Whether gpgv takes a signature as of the exported key."""
    ring = tmp_path / "ring.gpg"
    ring.unlink(missing_ok=True)
    run("gpg", "--batch", "--dearmor", "-o", ring, place / repo.KEY_FILE)
    done = run("gpgv", "--keyring", ring, signature, signature.with_name(name))
    return done.returncode == 0


# ---- yum

SPEC = """Name: greeting
Version: 17.2
Release: 1
Summary: greets
License: PostgreSQL
BuildArch: noarch
%description
Greets.
%files
"""


@rpm_tools
def test_yum_listing_and_packages_are_signed_and_dist_is_left_alone(
    tmp_path: Path, key: str
) -> None:
    del key
    (tmp_path / "greeting.spec").write_text(SPEC)
    built = run(
        "rpmbuild", "-bb", "--define", f"_topdir {tmp_path}/top", tmp_path / "greeting.spec"
    )
    assert built.returncode == 0, built.stdout
    (file,) = (tmp_path / "top").rglob("greeting*.rpm")
    system = System(
        distribution="fedora", release="42", codename="", architecture="x86_64", tag="fc42"
    )
    made = Release(
        kind="rpm", system=system, major="17", made_of=MADE_OF, files=(file,),
        packages=(rpm.described(file),),
    )  # fmt: skip
    kept = publish(made, tmp_path / "dist")
    before = content(kept)
    place = repo.make(tmp_path / "dist")
    assert content(kept) == before
    yum = place / "yum" / system.name
    assert verified(tmp_path, place, yum / "repodata" / "repomd.xml.asc", "repomd.xml")
    listing = ET.parse(yum / "repodata" / "repomd.xml")
    space = {"r": "http://linux.duke.edu/metadata/repo"}
    data = {each.get("type"): each for each in listing.findall("r:data", space)}
    assert {"primary", "filelists", "other"} <= data.keys()
    for each in data.values():
        location, checksum = each.find("r:location", space), each.find("r:checksum", space)
        assert location is not None
        assert checksum is not None
        digest = hashlib.sha256((yum / location.attrib["href"]).read_bytes()).hexdigest()
        assert digest == checksum.text
        assert location.attrib["href"] == f"repodata/{digest}-{each.get('type')}.xml.gz"
        stamp = each.find("r:timestamp", space)
        assert stamp is not None
        assert stamp.text == str(MADE_OF["source_date_epoch"])
    revision = listing.find("r:revision", space)
    assert revision is not None
    assert revision.text == str(MADE_OF["source_date_epoch"])
    database = tmp_path / "rpmdb"
    rpmkeys = ["rpmkeys", "--define", f"_dbpath {database}"]
    assert run(*rpmkeys, "--import", place / repo.KEY_FILE).returncode == 0
    checked = run(*rpmkeys, "-Kv", yum / file.name).stdout
    assert "Signature, key ID" in checked
    assert "NOKEY" not in checked
    assert "BAD" not in checked
    unsigned = run(*rpmkeys, "-Kv", kept / file.name).stdout
    assert "Signature, key ID" not in unsigned
    assert SUMS in before
    assert json.loads((kept / MANIFEST).read_text())["kind"] == "rpm"
    if shutil.which("dnf") is None:
        pytest.skip("all but dnf itself was tried: this machine has none")
    if os.geteuid() != 0:
        pytest.skip("all but dnf itself was tried: it installs for root alone")
    dnf_installs_from_it_and_refuses_what_was_altered(tmp_path, place, yum / file.name)


def dnf_installs_from_it_and_refuses_what_was_altered(
    tmp_path: Path, place: Path, package: Path
) -> None:
    """What a machine is told to write into its .repo file is what dnf is given."""
    with served(place) as address:
        told = repo.usage(place, unsigned=False).partition(".repo:\n")[2].replace("URL", address)
        (tmp_path / "repos").mkdir()
        (tmp_path / "repos" / "ptrack.repo").write_text(textwrap.dedent(told) + "\n")

        def dnf(root: str, *words: str) -> subprocess.CompletedProcess[str]:
            """One that knows this repository and no other, of a system that is empty."""
            done = run(
                "dnf", "-y", "--installroot", tmp_path / root, "--releasever", "42", "--setopt",
                f"reposdir={tmp_path}/repos", "--setopt", f"cachedir={tmp_path}/{root}-cache",
                *words, no_proxy="127.0.0.1",
            )  # fmt: skip
            for home in tmp_path.glob(f"{root}-cache/*/pubring"):  # its agent stays otherwise
                run("gpgconf", "--homedir", home, "--kill", "all")
            return done

        done = dnf("one", "install", "greeting")
        assert done.returncode == 0, done.stdout
        assert "greeting-17.2-1" in run("rpm", "--root", tmp_path / "one", "-qa").stdout
        data = bytearray(package.read_bytes())
        data[-1] ^= 1
        package.write_bytes(data)
        done = dnf("two", "install", "greeting")
        assert done.returncode != 0
        listing = package.parent / "repodata" / "repomd.xml"
        listing.write_text(listing.read_text().replace("<revision>", "<revision>1"))
        done = dnf("three", "install", "greeting")
        assert done.returncode != 0
        assert "signature" in done.stdout.lower()
