"""Packages made in a container: the same code, with an engine that runs commands here."""

from __future__ import annotations

import contextlib
import os
import shutil
from typing import TYPE_CHECKING

import pytest

from ptrack_build import cache, container, host
from ptrack_build.container import Reference, engine
from ptrack_build.container import image as images
from ptrack_build.container.workshop import Workshop
from ptrack_build.errors import HostError
from ptrack_build.package import PackageError, Release, deb, reproduce, rpm
from ptrack_build.package.place import HERE, Unobtainable, environment
from tests.build import _packages
from tests.build._engine import FakeEngine, FakeImage

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.build._packages import Line

#: The tool that makes packages of a kind.
TOOLS = {"deb": "dpkg-buildpackage", "rpm": "rpmbuild"}
either = pytest.mark.parametrize(
    "kind",
    [
        pytest.param("deb", marks=_packages.with_dpkg),
        pytest.param("rpm", marks=_packages.with_rpmbuild),
    ],
)


@pytest.fixture
def kind() -> str:
    """Where a test does not say."""
    return "deb"


@pytest.fixture
def line(kind: str, tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Line:
    """The build line of a kind."""
    del own_cache
    return _packages.line(kind, tmp_path, monkeypatch)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeEngine:
    """An engine with an image of sid, whose system is this one."""
    made = FakeEngine(held={"debian:sid": FakeImage("sha256:sid")})
    made.answers["cat"] = (0, "ID=debian\nVERSION_CODENAME=forky\n")
    made.answers["apt-get"] = (0, "")
    made.answers["dpkg-query"] = (0, "base-files 14.1 installed\n")

    @contextlib.contextmanager
    def running() -> Iterator[FakeEngine]:
        yield made

    monkeypatch.setattr(engine, "running", running)
    monkeypatch.setattr(host, "install", lambda _names: pytest.fail("installed on this machine"))
    return made


def built(line: Line) -> Release:
    """Both packages, in the container."""
    build = {"deb": deb.build, "rpm": rpm.build}[line.kind]
    with container.place("debian:sid", f"{line.kind}-17", kept=line.kind) as where:
        return build(line.tree, without=["llvmjit"], extension=line.extension, where=where)


@_packages.with_dpkg
def test_packages_of_a_container_are_of_its_system(line: Line, fake: FakeEngine) -> None:
    made = built(line)
    assert (made.system.codename, made.system.tag) == ("sid", "deb14~sid")
    assert made.system.name.startswith("debian-sid-")
    assert {package.name for package in made.packages} == {"server", "extension"}
    assert all(package.version.endswith("+deb14~sid") for package in made.packages)
    assert ["dpkg-buildpackage", "-b", "-us", "-uc"] in fake.commands
    assert not fake.there
    # by root, with the network, only packages are installed; the rest is sealed
    networked = zip(fake.commands, fake.users, fake.networks, strict=True)
    assert {(argv[0], user) for argv, user, network in networked if network != "none"} == {
        ("apt-get", "0:0")
    }
    sealed = [each.wanted for each in fake.created if each.wanted["network_mode"] == "none"]
    assert sealed
    assert all(each["read_only"] and each["cap_drop"] == ["ALL"] for each in sealed)
    assert all(each["user"] == f"{os.geteuid()}:{os.getegid()}" for each in sealed)
    writable = {m["Target"] for each in sealed for m in each["mounts"] if not m["ReadOnly"]}
    assert writable == {str(cache.root() / "build" / "deb-17"), str(cache.root() / "ccache")}


@either
def test_an_interrupted_container_leaves_nothing(line: Line, fake: FakeEngine) -> None:
    def interrupt(argv: list[str]) -> None:
        if argv[0] == TOOLS[line.kind]:
            place = cache.root() / "build" / f"{line.kind}-17" / "server"
            (place / f"server_1_all.{line.kind}").write_text("half")
            raise KeyboardInterrupt

    fake.on_exec = interrupt
    with pytest.raises(KeyboardInterrupt):
        built(line)
    assert not fake.there
    assert line.left() == []


@either
def test_a_failure_in_a_container_tells_why(line: Line, fake: FakeEngine) -> None:
    fake.answers[TOOLS[line.kind]] = (2, "x.c:1: error: No space left on device\n")
    with pytest.raises(PackageError, match="No space left") as caught:
        built(line)
    assert "free some space" in (caught.value.hint or "")
    assert caught.value.log is not None
    assert "No space left" in caught.value.log.read_text()
    assert line.left() == []
    assert not fake.there


def test_an_image_without_dpkg_makes_no_debian_packages(line: Line, fake: FakeEngine) -> None:
    fake.answers["sh"] = (1, "")  # `command -v` finds nothing
    with pytest.raises(HostError, match="which debian:sid is not"):
        built(line)
    assert not fake.there


@_packages.with_dpkg
def test_a_build_dependency_with_another_name_is_installed_by_that(
    line: Line, fake: FakeEngine
) -> None:
    """As in an older release."""
    unmet = ["dpkg-checkbuilddeps: error: Unmet build dependencies: debhelper-compat (= 13) a | b"]

    def answer(argv: list[str]) -> tuple[int, str] | None:
        match argv:
            case ["dpkg-checkbuilddeps", *_] if unmet:
                return 1, unmet[0]
            case ["apt-get", "install", *_, "a", "debhelper"]:
                return 100, "E: Unable to locate package a"
            case ["apt-get", "install", *_, "b", "debhelper"]:
                unmet.clear()
            case _:
                pass
        return None

    fake.on_exec = answer
    assert built(line).packages
    assert not unmet


@_packages.with_dpkg
def test_build_dependencies_that_the_image_cannot_have_are_named(
    line: Line, fake: FakeEngine
) -> None:
    fake.answers["dpkg-checkbuilddeps"] = (
        1, "dpkg-checkbuilddeps: error: Unmet build dependencies: no-such-thing (>= 3)\n",
    )  # fmt: skip
    with pytest.raises(Unobtainable, match="debian:sid lacks no-such-thing") as caught:
        built(line)
    # what could be pasted here would be installed here
    hint = "name an image with no-such-thing, or one whose repositories have that"
    assert caught.value.hint == hint
    installed = [argv[4:] for argv in fake.commands if argv[:2] == ["apt-get", "install"]]
    assert ["no-such-thing"] in installed
    assert shutil.which("no-such-thing") is None


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("E: Unable to correct problems, you have held broken packages.\n", Unobtainable),
        ("Error: Unable to find a match: no-such-thing\n", Unobtainable),
        ("E: Failed to fetch http://mirror.example/a.deb\nE: unmet dependencies\n", HostError),
        ("dpkg: error: failed to write status database: No space left on device\n", HostError),
    ],
)
@pytest.mark.parametrize("asked", ["dpkg-dev", "no-such-thing"])
@_packages.with_dpkg
def test_what_an_archive_has_not_is_told_from_what_ails_the_machine(
    line: Line, fake: FakeEngine, said: str, asked: str, expected: type[HostError]
) -> None:
    """Whether tools or build dependencies are what cannot be installed."""
    unmet = "dpkg-checkbuilddeps: error: Unmet build dependencies: no-such-thing (>= 3)\n"
    fake.answers["dpkg-checkbuilddeps"] = (1, unmet)

    def answer(argv: list[str]) -> tuple[int, str] | None:
        return (100, said) if argv[:2] == ["apt-get", "install"] and asked in argv else None

    fake.on_exec = answer
    with pytest.raises(HostError, match="could not install") as caught:
        built(line)
    assert type(caught.value) is expected


@pytest.mark.usefixtures("own_cache")
@pytest.mark.parametrize("there", [True, False])
def test_without_ccache_packages_are_made_nevertheless(
    there: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """EL has it in EPEL alone."""
    fake = FakeEngine(held={"almalinux:9": FakeImage("sha256:el")})
    installed: list[list[str]] = []

    def answer(argv: list[str]) -> tuple[int, str] | None:
        match argv:
            case ["sh", "-c", _, "sh", "dnf"]:
                return 0, "/usr/bin/dnf\n"
            case ["sh", "-c", _, "sh", _]:
                return 1, ""
            case ["dnf", "install", "-y", *names]:
                installed.append(names)
                if "ccache" in names and not there:
                    return 1, "Error: Unable to find a match: ccache\n"
                return 0, ""
            case ["dnf", "clean", "all"]:
                return 0, ""
            case _:
                pytest.fail(f"{argv}")

    fake.on_exec = answer
    image = images.get(fake, Reference.parse("almalinux:9"))
    where = Workshop(fake, image, [])
    where.ensure(["rpm-build"])
    where.ensure(["make"])
    where.close()
    needed = sorted(host.NEEDS["rpm-build"].dnf)
    assert installed == [needed, ["ccache"], ["make"]]
    # where it is no package of its own, rpm-build has it or brings it
    assert "debugedit" not in needed
    assert ("without ccache" in capsys.readouterr().out) is not there
    assert fake.held.keys() == {"almalinux:9", *(tag for tag in fake.held if "derived" in tag)}


# ---- what commands know of who calls

#: What a caller may have set, and what would change what is compiled or written.
MISLEADING = {
    **reproduce.MISLEADING,
    "BASH_ENV": "/nonexistent", "CCACHE_COMPILER": "false", "CPPFLAGS": "-DX", "CXX": "false",
    "DEB_BUILD_MAINT_OPTIONS": "hardening=-all", "DEB_BUILD_PROFILES": "nodoc", "LANG": "tr_TR",
    "LC_CTYPE": "tr_TR.UTF-8", "LD_LIBRARY_PATH": "/nonexistent", "LD_PRELOAD": "/nonexistent.so",
    "PKG_CONFIG_PATH": "/nonexistent", "PYTHONPATH": "/nonexistent", "TAR_OPTIONS": "--wrong",
    "TMPDIR": "/nonexistent",
}  # fmt: skip


def test_commands_know_nothing_of_the_caller_but_ways_to_the_network_and_ccache() -> None:
    kept = {"https_proxy": "http://proxy.example", "CCACHE_DISABLE": "1"}
    known = environment({**MISLEADING, **kept, "HOME": "/root", "PATH": "/opt/bin:/usr/bin"})
    assert known == {
        **kept, "HOME": "/nonexistent", "LC_ALL": "C.UTF-8",
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
    }  # fmt: skip


def test_another_clock_is_handed_on_and_nothing_else_that_is_preloaded() -> None:
    known = environment({"FAKETIME": "+1d", "LD_PRELOAD": "/a/libfaketime.so.1:/a/other.so"})
    assert (known["FAKETIME"], known["LD_PRELOAD"]) == ("+1d", "/a/libfaketime.so.1")


def test_a_command_of_this_machine_is_run_so(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in MISLEADING.items():
        monkeypatch.setenv(name, value)
    said = HERE.call(["env"], capture=True, quiet=True, env={"CFLAGS": "-O2"}).stdout
    names = {line.partition("=")[0]: line for line in said.splitlines()}
    assert names["CFLAGS"] == "CFLAGS=-O2"
    assert not names.keys() & (MISLEADING.keys() - {"CFLAGS"})


@pytest.mark.parametrize("name", ["no-such-thing", "sh"])
def test_programs_are_those_of_the_distribution(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / name
    program.write_text("#!/bin/sh\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    found = HERE.which(name)
    assert found == (None if name == "no-such-thing" else shutil.which("sh", path=HERE.path()))


@either
def test_packages_are_the_same_whatever_the_caller_has_set(
    line: Line, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also what is written down of the build."""
    script = tmp_path / "build"
    script.write_text(f"env >> {tmp_path}/known\n")
    monkeypatch.setenv("FAKE_BUILD", f"sh {script}")
    first = line.built()
    known = (tmp_path / "known").read_text()
    monkeypatch.setenv("PTRACK_CACHE", str(tmp_path / "another"))
    for name, value in MISLEADING.items():
        monkeypatch.setenv(name, value)
    second = line.built()
    assert second.files != first.files
    assert second.manifest(buildinfo=False) == first.manifest(buildinfo=False)
    again = (tmp_path / "known").read_text().removeprefix(known)
    assert "=/nonexistent\n" not in again
    assert "false" not in again
