"""verify-packages: what is chosen, what is said of what, and that its oracle finds what is lost."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import socket
import subprocess
import time
from typing import TYPE_CHECKING

import pytest

from ptrack_build import host, matrix, report
from ptrack_build.container import NoEngine, Reference, engine, root
from ptrack_build.errors import HostError, UsageError
from ptrack_build.package import (
    MANIFEST,
    SUMS,
    PackageError,
    booted,
    deb,
    earlier,
    ground,
    making,
    repo,
    rpmrepo,
    rpmroot,
    signing,
    verify,
)
from tests.build._engine import FakeEngine, FakeImage

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

# ---- what is there


def put(
    dist: Path,
    major: str,
    codename: str = "bookworm",
    kind: str = "deb",
    more: Sequence[str] = (),
) -> Path:
    """A directory of dist/ with packages of a major, which hold nothing."""
    number = 21 if major == "devel" else int(major)
    folder = dist / f"debian-{codename}-amd64" / f"postgresql-{major}"
    folder.mkdir(parents=True)
    names = [f"postgresql-{number}pt", f"postgresql-server-dev-{number}pt", "x-dbgsym", *more]
    files = {f"{name}_1_amd64.{kind}": name for name in names}
    files |= {f"x_1.{end}": "" for end in ("dsc", "orig.tar.gz")} if kind == "deb" else {}
    said = {
        "kind": kind,
        "major": major,
        "system": {"distribution": "debian", "codename": codename, "release": ""},
        "postgresql": {"version": f"{number}devel" if major == "devel" else f"{number}.1"},
        "packages": [{"file": file} for file in files],
    }
    for file, text in (*files.items(), (MANIFEST, json.dumps(said))):
        (folder / file).write_text(text)
    sums = [
        f"{hashlib.sha256((folder / file).read_bytes()).hexdigest()}  {file}\n"
        for file in (*files, MANIFEST)
    ]
    (folder / SUMS).write_text("".join(sums))
    return folder


def test_what_is_verified_can_be_chosen(tmp_path: Path) -> None:
    for major, codename in (("17", "bookworm"), ("devel", "bookworm"), ("17", "sid")):
        put(tmp_path, major, codename)
    every = verify.published(tmp_path)
    assert [each.name for each in every] == [
        "debian-bookworm-amd64 17", "debian-bookworm-amd64 devel", "debian-sid-amd64 17",
    ]  # fmt: skip
    assert [each.image for each in every] == ["debian:bookworm", "debian:bookworm", "debian:sid"]
    assert [file.name for file in every[0].packages()] == ["postgresql-17pt_1_amd64.deb"]
    assert [file.name for file in every[0].development()] == [
        "postgresql-server-dev-17pt_1_amd64.deb", "x-dbgsym_1_amd64.deb",
    ]  # fmt: skip
    assert every[0].tarball() == every[0].folder / "x_1.orig.tar.gz"
    assert [each.number for each in every] == [17, 21, 17]
    assert [each.system for each in verify.published(tmp_path, ["sid"])] == ["debian-sid-amd64"]
    assert [each.major for each in verify.published(tmp_path, [], ["devel"])] == ["devel"]


@pytest.mark.parametrize(
    ("systems", "majors", "asked", "there"),
    [
        ([], [], "", ""),
        (["trixie"], ["12"], "of trixie 12", "; there are debian-bookworm-amd64 17"),
    ],
)
def test_nothing_to_verify_is_an_error(
    systems: list[str], majors: list[str], asked: str, there: str, tmp_path: Path
) -> None:
    if systems:
        put(tmp_path, "17")
    with pytest.raises(UsageError, match=f"has no packages {asked}".strip()) as caught:
        verify.published(tmp_path, systems, majors)
    assert caught.value.hint == f"./nox -s deb-17 makes some, and rpm-17{there}"


def test_nothing_to_verify_may_be_skipped_where_that_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path, "17")
    assert verify.verify(["sid"], dist=tmp_path, may_skip=True) == []
    assert f"SKIPPED verify-packages, as it may be: {tmp_path} has no" in capsys.readouterr().out
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    assert verify.verify(["sid"], dist=tmp_path, may_skip=True) == []
    assert "\n::warning::SKIPPED verify-packages" in capsys.readouterr().out


def test_a_damaged_package_is_not_verified(tmp_path: Path) -> None:
    folder = put(tmp_path, "17")
    (folder / "postgresql-17pt_1_amd64.deb").write_text("something else")
    with pytest.raises(PackageError, match=r"is damaged: postgresql-17pt_1_amd64\.deb is not what"):
        verify.published(tmp_path)


@pytest.mark.parametrize("text", [None, "{", "{}", "[]"], ids=["none", "cut", "empty", "list"])
def test_a_directory_without_a_sound_manifest_is_an_error(tmp_path: Path, text: str | None) -> None:
    folder = put(tmp_path, "17")
    if text is None:
        (folder / MANIFEST).unlink()
    else:
        was = hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest()
        (folder / MANIFEST).write_text(text)
        sums = (folder / SUMS).read_text()
        (folder / SUMS).write_text(sums.replace(was, hashlib.sha256(text.encode()).hexdigest()))
    with pytest.raises(PackageError, match="is damaged"):
        verify.published(tmp_path)


def test_the_previous_major_is_the_nearest_of_the_same_system(tmp_path: Path) -> None:
    for major, codename in (
        ("13", "bookworm"),
        ("15", "bookworm"),
        ("16", "sid"),
        ("17", "bookworm"),
    ):
        put(tmp_path, major, codename)
    every = verify.published(tmp_path)
    by_name = {each.name: each for each in every}
    before = verify.previous(by_name["debian-bookworm-amd64 17"], every)
    assert before is not None
    assert before.name == "debian-bookworm-amd64 15"
    assert verify.previous(by_name["debian-sid-amd64 16"], every) is None


@pytest.mark.parametrize(("codename", "before"), [("bookworm", "15"), ("trixie", "17")])
def test_the_previous_major_is_one_that_the_system_can_upgrade_from(
    codename: str, before: str, tmp_path: Path
) -> None:
    for major in ("15", "17", "18"):
        put(tmp_path, major, codename)
    every = verify.published(tmp_path)
    found = verify.previous(every[-1], every)
    assert found is not None
    assert found.major == before


# ---- what is said


OURS = "Inst postgresql-17pt [1~before] (1 Debian [amd64])\n"
PLAIN_17 = "Inst libpq5 (1 Debian [amd64])\nInst postgresql-17 (17.1-0 Debian [amd64])\n"
MADISON = """postgresql-17 | 17.2-0+deb12u1 | http://mirror.example security/main amd64 Packages
postgresql-17 | 17.1-0+deb12u1 | http://mirror.example bookworm/main amd64 Packages
postgresql-17 | 17~rc1-1 | http://mirror.example bookworm/main Sources
"""


@pytest.fixture
def fake(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> FakeEngine:
    """An engine in whose containers all steps go well."""
    made = FakeEngine(held={"debian:bookworm": FakeImage("sha256:b")})
    made.answers = dict.fromkeys(("sh", "bash", "dpkg-query", "lintian"), (0, ""))

    def apt(argv: list[str]) -> tuple[int, str] | None:
        match argv:
            case ["apt-cache", "madison", "postgresql-17"]:
                return 0, MADISON
            case ["apt-cache", "madison", "postgresql-doc-17"]:
                return 0, MADISON.replace("postgresql-17", "postgresql-doc-17")
            case ["apt-get", "install", "-s", *more] if "postgresql-doc-17" in more:
                return 0, "Inst libx (1)\nInst make (4)\nInst postgresql-doc-17 (17.2)\n" + OURS
            case ["apt-get", *_, "postgresql-17=17.1-0+deb12u1"]:
                return 0, PLAIN_17
            case ["apt-get", "install", "-s", *more] if "make" in more:
                return 0, "Inst libx (1 Debian)\nInst make (4 Debian)\n" + OURS
            case ["apt-get", *_]:
                return 0, "Inst libx (1 Debian)\n" + OURS
            case ["apt-cache", *_]:
                return 0, ""
            case _:
                return None

    made.on_exec = apt

    @contextlib.contextmanager
    def running() -> Iterator[FakeEngine]:
        yield made

    def boots(root: Path, argv: list[str], **how: object) -> booted.Ended:
        assert root.is_dir()
        made.commands.append(argv)
        made.networks.append("none")
        status, said = made.on_exec(argv) or (0, "")
        return booted.Ended(well=status == 0, said=f"{said}{how['env']}")

    monkeypatch.setattr(booted, "check", lambda _systemd: None)
    monkeypatch.setattr(booted, "run", boots)
    monkeypatch.setattr(engine, "running", running)
    monkeypatch.setattr(verify, "results", lambda: own_cache)
    monkeypatch.setattr(host, "ensure", lambda _needs: None)
    monkeypatch.setattr(signing, "throwaway", contextlib.nullcontext)
    monkeypatch.setattr(repo, "trial", lambda *_: "a source")
    return made


def steps(fake: FakeEngine) -> list[str]:
    """The steps that were run."""
    run = [argv for argv in fake.commands if argv[0] in {"sh", "lintian"} and argv[1] != "-c"]
    return ["lint" if argv[0] == "lintian" else argv[-1] for argv in run]


def test_all_steps_are_run_and_a_skip_says_why(
    tmp_path: Path, fake: FakeEngine, own_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put(tmp_path, "15")
    put(tmp_path, "17")
    (own_cache / "build/verify-debian-bookworm-amd64-17-boot/root/usr").mkdir(parents=True)
    first, second = verify.verify(dist=tmp_path)
    assert (first.status, first.tests, first.skipped) == ("incomplete", len(verify.ORDER), 2)
    assert "skipped upgradecluster: no earlier major's packages" in first.note
    assert "skipped swap: debian:bookworm has no postgresql-15" in first.note
    assert "develop: debian:bookworm has no postgresql-doc-15, which ours were not" in first.note
    assert (second.status, second.skipped, second.note) == ("passed", 0, "")
    assert steps(fake) == [
        *(name for name in verify.ORDER if name not in {"upgradecluster", "swap"}),
        *verify.ORDER,
    ]
    said = capsys.readouterr().out
    assert "skipped upgradecluster" in said
    assert "not verified as a whole: debian-bookworm-amd64 15 (-- --strict" in said
    kept = json.loads((own_cache / "verify-packages.json").read_text())
    assert [row["status"] for row in kept] == ["incomplete", "passed"]
    assert "skipped swap: debian:bookworm has no postgresql-15" in kept[0]["note"]
    # of a source package lintian alone is told
    told = [argv for argv in fake.commands if any(word.endswith(".dsc") for word in argv)]
    assert {argv[0] for argv in told} == {"lintian"}
    assert not [argv for argv in fake.commands if any(".tar." in word for word in argv)]
    # what the packages depend on is installed, of themselves nothing; no step has a network
    installed = [argv[4:] for argv in fake.commands if argv[:3] == ["apt-get", "install", "-y"]]
    system = list(booted.NEEDS)
    tools = ["libx", "make"]
    assert installed[1:] == [
        ["lintian"], [*tools, "postgresql-17pt"], system, ["libx"], tools, system, ["libpq5"], [],
    ]  # fmt: skip
    downloads = [argv[3:] for argv in fake.commands if argv[:2] == ["sh", "-c"]]
    assert downloads == [
        [verify.DOCUMENTATION, "postgresql-doc-17"],
        [verify.PLAIN, "postgresql-17=17.1-0+deb12u1"],
        [verify.BESIDE, "postgresql-server-dev-17=17.1-0+deb12u1"],
    ]
    networks = {
        network
        for argv, network in zip(fake.commands, fake.networks, strict=True)
        if argv[0] == "sh" and argv[1] != "-c"
    }
    assert networks == {"none"}
    assert not fake.there
    assert not list((own_cache / "build").glob("verify-*"))


# ---- from an earlier release


def then(folder: Path, *files: str) -> Path:
    """Packages that somebody has kept."""
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text("")
    return folder


NOW = (
    "postgresql-17pt_17.4-1+ptrack3.0.0+deb12_amd64.deb",
    "postgresql-17-ptrack_3.0.0+pg17.4-1+deb12_amd64.deb",
)
RPMS = (
    "postgresql17pt-libs-17.4-1ptrack3.0.0.fc43.x86_64.rpm",
    "ptrack_17-3.0.0-1.pg17.4.fc43.x86_64.rpm",
    "ptrack_17-3.0.0-1.pg17.4.fc43.src.rpm",
)


@pytest.mark.parametrize("place", [".", "debian-bookworm-amd64/postgresql-17"])
def test_packages_of_then_are_those_of_the_same_system(place: str, tmp_path: Path) -> None:
    wanted = [
        f"{place}/postgresql-17-ptrack_3.0.0+pg17.2-1+deb12_amd64.deb",
        f"{place}/postgresql-17pt_17.2-1+ptrack3.0.0+deb12_amd64.deb",
        f"{place}/ptrack_17-3.0.0-1.pg17.2.fc43.x86_64.rpm",
    ]
    others = (
        "postgresql-17pt_17.2-1+ptrack3.0.0+deb13_amd64.deb",
        "postgresql-17pt_17.2-1+ptrack3.0.0+deb12_arm64.deb",
        "postgresql-16pt_16.6-1+ptrack3.0.0+deb12_amd64.deb",
        "postgresql-17pt-dbgsym_17.2-1+ptrack3.0.0+deb12_amd64.deb", "manifest.json",
        "ptrack_17-3.0.0-1.pg17.2.el9.x86_64.rpm", "ptrack_17-3.0.0-1.pg17.2.fc43.src.rpm",
        "ptrack_17-3.0.0-1.pg17.2.deb12.x86_64.rpm",
    )  # fmt: skip
    folder = then(tmp_path, *wanted, *others)
    debs = earlier.chosen(folder, [tmp_path / name for name in NOW])
    assert sorted(debs) == sorted(folder / name for name in wanted[:2])
    assert earlier.chosen(folder, [tmp_path / name for name in RPMS]) == (folder / wanted[2],)


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ([NOW[0]], "is of the version that is to be verified"),
        (
            [NOW[0].replace("17.4", "17.2"), NOW[0].replace("17.4", "17.3")],
            "several versions of postgresql-17pt: ",
        ),
    ],
)
def test_packages_of_then_that_cannot_be_meant_are_refused(
    files: list[str], said: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        earlier.chosen(then(tmp_path, *files), [tmp_path / name for name in NOW])
    assert caught.value.hint


def test_each_system_s_packages_come_from_their_own_of_then(
    tmp_path: Path, fake: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their dependencies are there, and the steps are told of them."""
    put(tmp_path / "dist", "15")
    put(tmp_path / "dist", "17")
    old = then(tmp_path / "old", "sub/postgresql-17pt_0_amd64.deb")
    told: list[dict[str, str]] = []
    real = fake.exec_create

    def created(word: str, argv: list[str], **wanted: dict[str, str]) -> dict[str, str]:
        if argv[-1] == "upgrade":
            told.append(wanted["environment"])
            seen = {each["Target"] for each in fake.found(word).wanted["mounts"]}
            assert (str(old / "sub") in seen) is bool(told[-1]["BEFORE"])
        return real(word, argv, **wanted)

    monkeypatch.setattr(fake, "exec_create", created)
    one, other = verify.verify(dist=tmp_path / "dist", before=old)
    assert "upgrade: from an earlier version made of these, as no earlier packages" in one.note
    assert "upgrade" not in other.note
    assert [each["BEFORE"] for each in told] == ["", f"{old}/sub/postgresql-17pt_0_amd64.deb"]
    simulated = [argv[-1] for argv in fake.commands if argv[:3] == ["apt-get", "install", "-s"]]
    assert f"{old}/sub/postgresql-17pt_0_amd64.deb" in simulated


@pytest.mark.usefixtures("fake")
def test_where_nothing_is_of_then_that_is_said_first(tmp_path: Path) -> None:
    put(tmp_path / "dist", "17")
    then(tmp_path / "old", "postgresql-16pt_0_amd64.deb")
    with pytest.raises(
        UsageError, match=r"old has no earlier packages of debian-bookworm-amd64 17"
    ):
        verify.verify(dist=tmp_path / "dist", before=tmp_path / "old")


@pytest.mark.usefixtures("fake")
def test_rpms_are_upgraded_from_those_of_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dist, old = tmp_path / "dist", tmp_path / "old"
    for major in ("16", "17"):
        folder = put(dist, major, kind="rpm")
        said = json.loads((folder / MANIFEST).read_text())
        name = f"ptrack_{major}-3.0.0-1.fc43.x86_64.rpm"
        (folder / name).write_text("")
        said["packages"].append({"file": name})
        (folder / MANIFEST).write_text(json.dumps(said))
        files = [file for file in folder.iterdir() if file.name != SUMS]
        sums = [f"{hashlib.sha256(f.read_bytes()).hexdigest()}  {f.name}\n" for f in files]
        (folder / SUMS).write_text("".join(sums))
    then(old, "ptrack_17-2.9.0-1.fc43.x86_64.rpm")
    given: list[Path | None] = []

    def tried(_dist: Path, before: Path | None) -> rpmroot.Tried:
        given.append(before)
        return rpmroot.Tried(steps=("it starts",), changed=1, reported=1)

    monkeypatch.setattr(rpmroot, "lint", lambda _dist: True)
    monkeypatch.setattr(rpmroot, "verify", tried)
    one, other = verify.verify(dist=dist, before=old)
    assert given == [None, old]
    assert (one.status, other.status) == ("incomplete", "passed")
    assert "skipped upgrade: no earlier packages" in one.note


@pytest.mark.skipif(not shutil.which("dpkg"), reason="needs dpkg")
@pytest.mark.parametrize(
    ("version", "why"), [("17.2-1", ""), ("17.10-1", "FAILED: a_17.10-1_amd64.deb is not earlier")]
)
def test_what_is_upgraded_from_is_earlier_indeed(version: str, why: str, tmp_path: Path) -> None:
    text = verify.STEPS.read_text()
    functions = [
        text[text.index(f"{name}() {{") : text.index("\n}\n", text.index(f"{name}() {{")) + 3]
        for name in ("fail", "older")
    ]
    field = '"$(echo "${2##*/}" | cut -d _ -f "$([ "$3" = Package ] && echo 1 || echo 2)")"'
    then(tmp_path, f"a_{version}_amd64.deb")
    script = [f"state={tmp_path}", f"dpkg-deb() {{ echo {field}; }}", *functions, "older"]
    env = {"BEFORE": f"{tmp_path}/a_{version}_amd64.deb", "PATH": os.environ["PATH"],
           "PACKAGES": "/dist/a_17.4-1_amd64.deb /dist/new_17.4-1_amd64.deb"}  # fmt: skip
    done = subprocess.run(
        ["bash", "-euc", "\n".join(script)], env=env, text=True, capture_output=True, check=False
    )
    assert complaint(done).startswith(why)
    assert bool(complaint(done)) is bool(why)
    assert [path.name for path in (tmp_path / "older").iterdir()] == [f"a_{version}_amd64.deb"]


# ---- without an engine


@pytest.fixture
def _without_engine(fake: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """No engine, but roots, which are in truth that of the fixture."""

    def running() -> None:
        what = "no container engine runs here\nthat this user may use"
        raise NoEngine(what, hint="start docker")

    there = ground.Containers(client=fake)
    monkeypatch.setattr(engine, "running", running)
    monkeypatch.setattr(root, "check", lambda: None)
    monkeypatch.setattr(root, "base", there.image)
    monkeypatch.setattr(
        root, "with_packages", lambda image, names, **how: there.with_packages(
            image, "apt", names, **how)
    )  # fmt: skip
    monkeypatch.setattr(root, "opened", there.opened)


@pytest.mark.usefixtures("_without_engine")
def test_without_an_engine_the_same_is_done_in_fresh_roots_and_that_is_said(
    tmp_path: Path, fake: FakeEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    put(tmp_path, "15")
    put(tmp_path, "17")
    (row,) = verify.verify((), ["17"], tmp_path)
    assert row.status == "passed"
    assert steps(fake) == [*verify.ORDER]
    said = capsys.readouterr().out
    assert "no container engine runs here: packages are verified in fresh roots" in said
    assert "verifying debian-bookworm-amd64 17 in fresh roots of debian:bookworm" in said


def test_in_containers_that_is_said(
    tmp_path: Path, fake: FakeEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    del fake
    put(tmp_path, "17")
    verify.verify(dist=tmp_path)
    said = capsys.readouterr().out
    assert "verifying debian-bookworm-amd64 17 in containers of debian:bookworm (there)" in said


@pytest.mark.usefixtures("_without_engine")
def test_where_neither_can_be_had_each_row_says_why_and_the_end_what_to_do(
    tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses() -> None:
        what = "only root can"
        raise HostError(what, hint="be root")

    put(tmp_path, "15")
    put(tmp_path, "17")
    monkeypatch.setattr(root, "check", refuses)
    with pytest.raises(verify.VerifyFailed, match="nothing could be verified") as caught:
        verify.verify(dist=tmp_path)
    assert caught.value.hint == "start docker; or be root"
    rows = json.loads((own_cache / "verify-packages.json").read_text())
    assert [row["status"] for row in rows] == ["not run", "not run"]
    assert all("no container engine runs here; only root can" in row["note"] for row in rows)


@pytest.mark.usefixtures("_without_engine")
def test_a_suite_that_no_root_can_have_is_not_run_and_others_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = root.base

    def base(reference: Reference) -> object:
        if reference.tag == "sid":
            what = "the mirror has no sid"
            raise HostError(what)
        return real(reference)

    put(tmp_path, "17")
    put(tmp_path, "17", "sid")
    monkeypatch.setattr(root, "base", base)
    one, other = verify.verify(dist=tmp_path)
    assert (one.status, other.status) == ("incomplete", "not run")
    assert "the mirror has no sid" in other.note
    with pytest.raises(verify.VerifyFailed, match="as a whole"):
        verify.verify(dist=tmp_path, strict=True)


def test_what_was_skipped_is_a_failure_where_that_is_asked(
    tmp_path: Path, fake: FakeEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    del fake
    for major in ("15", "17"):
        put(tmp_path, major)
    with pytest.raises(verify.VerifyFailed, match="as a whole: debian-bookworm-amd64 15\n"):
        verify.verify(dist=tmp_path, strict=True)
    assert "skipped swap: debian:bookworm has no postgresql-15" in capsys.readouterr().out
    (row,) = verify.verify((), ["17"], tmp_path, strict=True)
    assert row.status == "passed"


def test_what_was_not_run_beside_what_passed_is_a_failure_where_that_is_asked(
    tmp_path: Path, fake: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(*_: object) -> None:
        what = "only root can"
        raise HostError(what)

    del fake
    put(tmp_path, "15")
    put(tmp_path, "17")
    put(tmp_path, "17", "sid", kind="rpm")
    monkeypatch.setattr(rpmroot, "lint", lambda _dist: True)
    monkeypatch.setattr(rpmroot, "verify", refuses)
    *_, row = verify.verify((), ["17"], tmp_path)
    assert row.status == "not run"
    with pytest.raises(verify.VerifyFailed, match="as a whole: debian-sid-amd64 17 rpm\n"):
        verify.verify((), ["17"], tmp_path, strict=True)


def test_a_step_that_fails_fails_the_session_and_ends_its_row(
    tmp_path: Path, fake: FakeEngine, own_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put(tmp_path, "17")
    fake.ends("sh", "upgrade", "noise\nFAILED: the map did not survive\nmore noise\n")
    with pytest.raises(verify.VerifyFailed, match="debian-bookworm-amd64 17"):
        verify.verify(dist=tmp_path)
    assert steps(fake) == [
        "lint", "install", "track", "upgrade", "repo", "develop", "boot", "swap",
    ]  # fmt: skip
    said = capsys.readouterr().out
    assert "upgrade failed: the map did not survive" in said
    assert "skipped purge: upgrade failed" in said
    (row,) = json.loads((own_cache / "verify-packages.json").read_text())
    assert (row["status"], row["failures"], row["skipped"]) == ("failed", 1, 4)
    assert not fake.there


def test_what_lintian_finds_fails_and_keeps_nothing_else_from_being_tried(
    tmp_path: Path, fake: FakeEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    put(tmp_path, "17")
    fake.ends("lintian", "", "N: a note\nW: postgresql-17pt: no-manual-page\nW: more\n")
    with pytest.raises(verify.VerifyFailed, match="debian-bookworm-amd64 17"):
        verify.verify(dist=tmp_path)
    assert "lint failed: W: postgresql-17pt: no-manual-page" in capsys.readouterr().out
    assert steps(fake)[-1] == "swap"


def test_a_machine_that_cannot_make_a_repository_skips_its_step(
    tmp_path: Path, fake: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lacks(_needs: list[str]) -> None:
        what = "this machine lacks gpg"
        raise HostError(what)

    put(tmp_path, "17")
    monkeypatch.setattr(host, "ensure", lacks)
    (row,) = verify.verify(dist=tmp_path)
    assert (row.status, row.failures) == ("incomplete", 0)
    assert "skipped repo: this machine lacks gpg" in row.note
    assert "repo" not in steps(fake)


@pytest.mark.parametrize("at", ["check", "run"])
def test_a_machine_that_cannot_boot_a_system_skips_its_step(
    at: str,
    tmp_path: Path,
    own_cache: Path,
    fake: FakeEngine,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def refuses(*_words: object, **_how: object) -> None:
        what = "no system boots here"
        raise HostError(what)

    put(tmp_path, "17")
    monkeypatch.setattr(booted, at, refuses)
    (row,) = verify.verify(dist=tmp_path)
    assert (row.status, row.failures) == ("incomplete", 0)
    assert "skipped boot: no system boots here" in row.note
    assert "boot" not in steps(fake)
    said = capsys.readouterr().out
    assert re.search(r"17: boot \(.*\): skipped after", said)
    assert "failed" not in said.replace("0 failed", "")
    assert not list((own_cache / "build").glob("verify-*"))


def test_what_fails_on_a_booted_system_is_said(
    tmp_path: Path, fake: FakeEngine, own_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put(tmp_path, "17")
    fake.ends("sh", "boot", "noise\nFAILED: postgresql@17-main is inactive\n")
    with pytest.raises(verify.VerifyFailed, match="debian-bookworm-amd64 17"):
        verify.verify(dist=tmp_path)
    assert "boot failed: postgresql@17-main is inactive" in capsys.readouterr().out
    assert steps(fake)[-2:] == ["boot", "swap"]
    assert not list((own_cache / "build").glob("verify-*"))


@pytest.mark.parametrize(
    ("listed", "version", "why"),
    [
        (MADISON, "17.1-0+deb12u1", ""),
        (MADISON.replace("17.1", "17~beta2"), "17~beta2-0+deb12u1", ""),
        (MADISON.replace("17.1", "17.11"), "", "postgresql-17 of debian:bookworm is 17.11-0+deb1"),
        (MADISON.replace("Packages", "Sources"), "", "debian:bookworm has no postgresql-17"),
        ("", "", "debian:bookworm has no postgresql-17"),
    ],
)
def test_a_cluster_is_swapped_where_its_minor_may_be(
    listed: str, version: str, why: str, tmp_path: Path
) -> None:
    ours = ("postgresql-client-17pt", "postgresql-plperl-17pt", "postgresql-17-ptrack")
    put(tmp_path, "17", more=ours)
    (each,) = verify.published(tmp_path)
    plain = verify._plain(each, listed)
    assert plain.why.startswith(why)
    names = ("postgresql-17", "postgresql-client-17", "postgresql-plperl-17")
    assert plain.packages == (() if why else tuple(f"{name}={version}" for name in names))
    assert plain.beside == (() if why else (f"postgresql-server-dev-17={version}",))


def test_a_package_that_cannot_be_installed_fails(
    tmp_path: Path, fake: FakeEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    put(tmp_path, "17")
    broken = "E: Unable to correct problems, you have held broken packages\n"
    fake.on_exec = lambda argv: (100, broken) if argv[0].startswith("apt-") else None
    with pytest.raises(verify.VerifyFailed):
        verify.verify(dist=tmp_path)
    assert "held broken packages" in capsys.readouterr().out
    assert steps(fake) == []


@pytest.fixture(autouse=True)
def by_dnf(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is installed by dnf where a test does not say so."""
    monkeypatch.setattr(rpmrepo, "verify", lambda _dist: ())


@pytest.mark.usefixtures("fake")
@pytest.mark.parametrize(
    ("error", "status", "note"),
    [
        (None, "passed", ""),
        (HostError("there is no dnf"), "incomplete", "skipped repo: there is no dnf"),
        (PackageError("dnf refuses: install"), "failed", "dnf refuses: install"),
    ],
)
def test_rpms_are_installed_from_a_repository(
    error: Exception | None,
    status: str,
    note: str,
    tmp_path: Path,
    own_cache: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = put(tmp_path, "17", kind="rpm")

    def installed(dist: Path) -> tuple[str, ...]:
        assert dist == folder
        if error is not None:
            raise error
        return ("by name", "all together")

    tried = rpmroot.Tried(steps=("it starts",), changed=1, reported=1)
    monkeypatch.setattr(rpmroot, "lint", lambda _dist: True)
    monkeypatch.setattr(rpmroot, "verify", lambda *_: tried)
    monkeypatch.setattr(rpmrepo, "verify", installed)
    with contextlib.suppress(verify.VerifyFailed):
        verify.verify(dist=tmp_path)
    (row,) = json.loads((own_cache / "verify-packages.json").read_text())
    assert (row["status"], row["tests"], row["note"]) == (status, 3 if error else 4, note)


def test_rpms_are_tried_on_a_system_of_their_own(
    tmp_path: Path, fake: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = put(tmp_path, "17", kind="rpm")
    tried = rpmroot.Tried(steps=("it starts", "it stops"), changed=1, reported=1)
    asked: list[Path] = []

    def verified(dist: Path, _earlier: Path | None) -> rpmroot.Tried:
        asked.append(dist)
        return tried

    monkeypatch.setattr(rpmroot, "lint", lambda dist: dist == folder)
    monkeypatch.setattr(rpmroot, "verify", verified)
    (row,) = verify.verify(dist=tmp_path)
    assert asked == [folder]
    assert (row.status, row.tests, row.failures, row.skipped) == ("passed", 3, 0, 0)
    monkeypatch.setattr(rpmroot, "lint", lambda _dist: False)
    (row,) = verify.verify(dist=tmp_path)
    assert (row.status, row.tests, row.failures, row.skipped) == ("incomplete", 3, 0, 1)
    assert row.note == "skipped lint: there is no rpmlint"
    assert not fake.commands


@pytest.mark.usefixtures("fake")
@pytest.mark.parametrize("can", [True, False])
def test_what_rpmlint_finds_fails_and_keeps_nothing_else_from_being_tried(
    can: bool,
    tmp_path: Path,
    own_cache: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    put(tmp_path, "17", kind="rpm")
    tried: list[Path] = []

    def found(_dist: Path) -> bool:
        what = "rpmlint is not content"
        raise PackageError(what)

    def verified(dist: Path, _earlier: Path | None) -> rpmroot.Tried:
        tried.append(dist)
        if not can:
            what = "only root can"
            raise HostError(what)
        return rpmroot.Tried(steps=("it starts",), changed=1, reported=1)

    monkeypatch.setattr(rpmroot, "lint", found)
    monkeypatch.setattr(rpmroot, "verify", verified)
    with pytest.raises(verify.VerifyFailed, match="debian-bookworm-amd64 17 rpm"):
        verify.verify(dist=tmp_path)
    assert len(tried) == 1
    (row,) = json.loads((own_cache / "verify-packages.json").read_text())
    assert (row["status"], row["tests"], row["failures"]) == ("failed", 1 + can, 1)
    assert row["note"] == "rpmlint is not content" + ("" if can else "\nonly root can")


@pytest.mark.parametrize(
    ("error", "says", "row"),
    [
        (HostError("only root can"), "nothing could be verified", "not run     only root can"),
        (PackageError("lost 2 blocks"), "failed: debian-bookworm-amd64 17 rpm", "lost 2 blocks"),
    ],
)
def test_rpms_that_were_not_tried_or_failed_are_no_success(
    error: Exception,
    says: str,
    row: str,
    tmp_path: Path,
    fake: FakeEngine,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fails(*_: object) -> None:
        raise error

    put(tmp_path, "17", kind="rpm")
    monkeypatch.setattr(rpmroot, "lint", lambda _dist: True)
    monkeypatch.setattr(rpmroot, "verify", fails)
    with pytest.raises(verify.VerifyFailed, match=says):
        verify.verify(dist=tmp_path)
    assert row in capsys.readouterr().out
    assert not fake.commands


def test_an_interruption_removes_the_container(tmp_path: Path, fake: FakeEngine) -> None:
    put(tmp_path, "17")

    def interrupt(argv: list[str]) -> tuple[int, str]:
        if argv[0] == "sh":
            raise KeyboardInterrupt
        return 0, ""

    fake.on_exec = interrupt
    with pytest.raises(KeyboardInterrupt):
        verify.verify(dist=tmp_path)
    assert not fake.there


def test_each_step_is_one_that_the_script_knows(tmp_path: Path) -> None:
    script = verify.STEPS.read_text()
    known = {
        line.removesuffix(")")
        for line in script.splitlines()
        if line[:1].isalpha() and line.endswith(")")
    }
    assert known == set(verify.ORDER) - {"lint"}
    env = {**os.environ, "MAJOR": "17"}
    done = subprocess.run(
        ["sh", str(verify.STEPS), "nosuch"], env=env, cwd=tmp_path, text=True, capture_output=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "FAILED: what is nosuch?" in done.stderr


# ---- steps, below a directory with programs that stand in for the system's


def below(root: Path, text: str) -> str:
    """A script whose paths begin at root."""
    text = re.sub(r"(?<![\w$}*/.])/(?=(?:usr|etc|var|proc|sys|dev|run|tmp)\b)", f"{root}/", text)
    return text.replace(f"{root}/dev/null", "/dev/null").replace("find / ", f"find {root} ")


def listed(root: Path) -> list[str]:
    """What steps.sh lists of a system."""
    text = verify.STEPS.read_text()
    function = text[text.index("listing() {") : text.index("\n}\n", text.index("listing() {"))]
    script = below(root, f"state=/var/tmp/verify\n{function}\n}}\nlisting\n")
    done = subprocess.run(["sh", "-euc", script], text=True, capture_output=True, check=True)
    return done.stdout.splitlines()


def test_a_change_of_any_kind_is_listed_and_what_changes_anyway_is_not(tmp_path: Path) -> None:
    """Names and contents that purging has to bring back."""
    legitimate = (
        "etc/ld.so.cache", "var/lib/dpkg/status-old", "var/lib/dpkg/triggers/File",
        "var/log/wtmp", "var/cache/x", "proc/x", "var/tmp/verify/before",
    )  # fmt: skip
    for name in ("etc/a conf", "etc/apt/apt.conf.d/02", "usr/bin/x", *legitimate):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("before")
    link = tmp_path / "etc/alternative"
    link.symlink_to("/one")
    seen = [listed(tmp_path)]

    def changed() -> list[str]:
        seen.append(listed(tmp_path))
        differing = set(seen[-1]) ^ set(seen[-2])
        names = ("etc/a conf", "apt.conf.d/02", "usr/bin/x", "alternative", *legitimate)
        return [name for name in names if any(f"/{name}" in line for line in differing)]

    for name in legitimate:
        (tmp_path / name).write_text("after")
    assert changed() == []
    (tmp_path / "etc/a conf").write_text("After.")
    assert changed() == ["etc/a conf"]
    (tmp_path / "etc/apt/apt.conf.d/02").chmod(0o600)
    assert changed() == ["apt.conf.d/02"]
    link.unlink()
    link.symlink_to("/other")
    assert changed() == ["alternative"]
    (tmp_path / "usr/bin/x").unlink()
    assert changed() == ["usr/bin/x"]


#: Programs of a system on which servers can be swapped. Which one is installed is in `server`,
#: whose configuration is left in `left`, that of the plain one in `unpurged`, how many rows there
#: are in `rows`. What is unpacked without its server is in `broken`: apt takes no files then.
SWAP = {
    "apt-get": """case "$*" in
*--assume-no*)
    printf 'The following packages will be REMOVED:\n  postgresql-17\n0 upgraded\n'
    exit 1 ;;
*--fix-broken*) rm -f broken ;;
*plain.list*update*) ;;
*plain.list*install*\\ postgresql-17\\ postgresql-client-17 | *install*plain/*)
    [ ! -e server ] || [ "$(cat server)" = plain ] || echo postgresql-17pt > left
    echo plain > server
    rm -f unpurged ;;
*update*)
    cd etc/apt/sources.list.d
    at=$(sed -n 's/^URIs: //p' ptrack.sources)/dists/$(sed -n 's/^Suites: //p' ptrack.sources)
    ../../../usr/lib/apt/apt-helper - "$at/InRelease" ../../../updated ;;
*install*--purge*)
    rm server
    [ "${SPOILT:-}" != drops ] || rm -r etc/postgresql/17
    echo 'error: postgresql-17 is to be purged in the same run, and'
    [ "${SPOILT:-}" = no-way-out ] || echo '  apt --fix-broken install'
    [ "${SPOILT:-}" != not-refused ] || exit 0
    touch broken
    exit 1 ;;
*install*)
    [ ! -e broken ] || exit 100
    echo "$@" 'note: do not purge postgresql-17 now: its script'
    echo "which are this server's; see $PWD/usr/share/doc/postgresql-17pt/README.Debian"
    rm -f left
    [ ! -e server ] || [ "$(cat server)" = ours ] || touch unpurged
    echo ours > server ;;
*purge*postgresql-17pt*)
    [ "$(cat server)" = plain ] || rm server
    rm -f left
    keeps=$({ cat answers; [ "$SPOILT" = forgets-plain ] || ls unpurged; } 2>&1)
    if [ "$SPOILT" = spares-nothing ] || [ ! -e server ] &&
        ! echo "$keeps" | grep -Eq 'boolean false|^unpurged'
    then
        rm -rf etc/postgresql/17 rows
    fi ;;
*) exit 9 ;;
esac""",
    "debconf-set-selections": 'if [ -z "${SPOILT:-}" ]; then cat > answers; else : > answers; fi',
    "dpkg": """case "$*" in
*--purge*) [ ! -e var/lib/dpkg/info/postgresql-17.postrm ] && rm unpurged ;;
*) echo postgresql-17pt conflicts with postgresql-17 ;;
esac""",
    "dpkg-deb": """case "$*" in
--fsys-tarfile\\ *beside/*) echo "$([ "$SPOILT" != overlaps ] || echo own)file" | tar -c -T - ;;
--fsys-tarfile*) echo ownfile | tar -c -T - ;;
*) echo postgresql-17pt ;;
esac""",
    "dpkg-query": """case "$*" in
*Status}\\ postgresql-client-17pt)
    [ "$(cat server)" = plain ] && [ "${SPOILT:-}" != client-stays ] || printf installed ;;
*Status}\\ postgresql-17pt) [ "${SPOILT:-}" = no-server ] || printf installed ;;
*Status}\\ postgresql-*) printf installed ;;
-L*) echo "$PWD/usr/share/doc/postgresql-17pt/README.Debian$([ "$SPOILT" != gz ] || echo .gz)" ;;
*) echo installed base; [ ! -e left ] || echo config-files "$(cat left)" ;;
esac""",
    "pg_conftool": "",
    "pg_ctlcluster": "",
    "pg_lsclusters": "[ ! -e server ] || [ ! -e rows ] || echo 17 main 5432 online",
    "runuser": """case "$*" in
*server_version*) [ "$(cat server)" = plain ] && echo 17.1 || echo '17.1 (17.1-1+ptrack3)' ;;
*count*) cat rows ;;
*data_directory*) echo "$PWD/var/lib/postgresql/17/main" ;;
*'(1, 1000)'*) echo 1000 > rows ;;
*'(1001, 2000)'*) echo 2000 > rows ;;
*pg_lsn* | *'<>'*) echo t ;;
*) echo 0/1 ;;
esac""",
}


#: apt-helper download-file URL FILE
FETCH = """#!/usr/bin/perl
use HTTP::Tiny;
my $got = HTTP::Tiny->new(proxy => undef, http_proxy => undef)->mirror(@ARGV[1, 2]);
exit !$got->{success};
"""
SOURCE = "etc/apt/sources.list.d/ptrack.sources"


#: And of one where the packages for developers are installed.
DEVELOP = {
    "apt-get": """case "$*" in
*install*documentation/postgresql-doc-17.deb*) touch documented ;;
*install*ours.deb*dev.deb*)
    [ -e documented ] || [ "$SPOILT" = no-documentation ] || exit 9
    mkdir -p usr/lib/postgresql/17/bin usr/lib/postgresql/17/lib usr/lib/debug/.build-id/ab
    echo packaged | tee usr/lib/postgresql/17/bin/postgres usr/lib/postgresql/17/bin/psql \
        > usr/lib/postgresql/17/lib/ptrack.so
    echo 'case $1 in --includedir) echo include ;; --libdir) echo lib ;; esac' \
        > usr/lib/postgresql/17/bin/pg_config
    chmod 755 usr/lib/postgresql/17/bin/pg_config
    [ "$SPOILT" = no-symbols ] || touch usr/lib/debug/.build-id/ab/cdef.debug ;;
*remove*)
    rm -r usr/lib/postgresql usr/lib/debug
    [ "$SPOILT" != left-behind ] || touch usr/left ;;
*purge*) ;;
*) exit 9 ;;
esac""",
    "dpkg-shlibdeps": """case "$SPOILT" in
no-shlibs) exit 2 ;;
other-package) echo 'shlibs:Depends=libc6 (>= 2.34), libpq5 (>= 17.1)' ;;
*) echo 'shlibs:Depends=libc6 (>= 2.34), postgresql-client-17pt (>= 17.1)' ;;
esac""",
    "gcc": """case "$*" in
*client.c\\ -Iinclude\\ -Llib*-rpath,lib\\ -lpq) ;;
*) exit 9 ;;
esac
echo '[ "$SPOILT" != other-libpq ]' > var/tmp/verify/client/client
chmod 755 var/tmp/verify/client/client""",
    "make": r"""case "$*" in
*source\ PG_CONFIG=*/17/bin/pg_config*) [ -e var/tmp/verify/source/Makefile ] ;;
*) exit 9 ;;
esac
case "$SPOILT$*" in
not-installed*) ;;
*install*) echo compiled > usr/lib/postgresql/17/lib/ptrack.so ;;
esac""",
    "readelf": """case "$SPOILT $*" in
*-S*) [ "$SPOILT" = stripped ] || echo '  [28] .debug_info  PROGBITS' ;;
no-id*) ;;
other-build*.debug) echo '    Build ID: 012345' ;;
*) echo '    Build ID: abcdef' ;;
esac""",
}


def taken(root: Path, name: str, **env: str) -> subprocess.CompletedProcess[str]:
    """A step with those programs."""
    programs = SWAP | {"develop": DEVELOP, "upgradecluster": UPGRADECLUSTER}.get(name, {})
    if env.get("KNOWS"):
        programs |= {"pg_upgradecluster": f"{programs['pg_upgradecluster']} # --no-data-checksums"}
    undocumented = env.get("SPOILT") == "no-documentation"
    files = {
        "etc/postgresql/17/main/postgresql.conf": "",
        "etc/apt/apt.conf.d/x": "",
        "etc/apt/sources.list.d/x": "",
        "usr/sbin/x": "",
        "usr/lib/apt/apt-helper": FETCH,
        "plain/postgresql-17.deb": "",
        "beside/postgresql-server-dev-17.deb": "",
        "file": "",
        "ownfile": "",
        **({"documentation/postgresql-doc-17.deb": ""} if not undocumented else {}),
        "var/lib/postgresql/17/main/PG_VERSION": "17",
        "var/lib/postgresql/17/main/global/ptrack.map": "",
        "var/log/postgresql/postgresql-17-main.log": (
            "ptrack init: map file x does not know all that has happened"
        ),
        "var/lib/dpkg/info/postgresql-17.postrm": "",
        "var/tmp/x": "",
        "steps": below(root, verify.STEPS.read_text()).replace("cd /\n", f"cd {root}\n"),
        **{f"bin/{name}": f"#!/bin/sh\ncd {root}\n{text}\n" for name, text in programs.items()},
    }
    for path, text in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    for program in (*(root / "bin").iterdir(), root / "usr/lib/apt/apt-helper"):
        program.chmod(0o755)
    env = {"MAJOR": "17", "PACKAGES": "ours.deb"} | env
    env |= {"PATH": f"{root}/bin:{os.environ['PATH']}"}
    env |= {"PREVIOUS_PACKAGES": "", "PLAIN": f"{root}/plain"}
    env |= {"DOCUMENTATION": f"{root}/documentation", "BESIDE": f"{root}/beside"}
    return subprocess.run(
        ["sh", str(root / "steps"), name], env=env, text=True, capture_output=True, check=False
    )


def complaint(done: subprocess.CompletedProcess[str]) -> str:
    """What a step says of its failure."""
    said = [line for line in done.stderr.splitlines() if line.startswith("FAILED: ")]
    assert done.returncode == len(said), done.stdout + done.stderr
    return "".join(said)


@pytest.mark.parametrize(
    ("spoilt", "why"),
    [
        ("", ""),
        ("overlaps", "FAILED: ours.deb and postgresql-server-dev-17.deb have ownfile"),
        ("client-stays", "FAILED: our client stays with the plain server"),
        ("not-refused", "FAILED: --purge is not refused"),
        ("drops", "FAILED: --purge was refused, and 17/main is gone"),
        ("no-way-out", "FAILED: nothing is said of what is unpacked"),
        ("gz", "FAILED: there is no {root}/usr/share/doc/postgresql-17pt/README.Debian"),
        ("spares-nothing", "FAILED: 17/main does not run on plain"),
        (
            "forgets-plain",
            "main/postgresql.conf was not kept, though postgresql-17 has not been purged",
        ),
        ("answers-are-lost", "main/postgresql.conf was not kept, though that was answered"),
    ],
)
def test_a_swap_ends_with_a_cluster_that_purging_has_spared(
    spoilt: str, why: str, tmp_path: Path
) -> None:
    said = complaint(taken(tmp_path, "swap", SPOILT=spoilt))
    assert said.endswith(why.format(root=tmp_path))
    assert bool(said) is bool(why)


@pytest.mark.parametrize(
    ("spoilt", "why"),
    [
        ("", ""),
        ("no-documentation", ""),
        ("no-id", "usr/lib/postgresql/17/bin/postgres has no build-id"),
        (
            "no-symbols",
            "the symbols of {root}/usr/lib/postgresql/17/bin/postgres are not installed",
        ),
        ("other-build", ".build-id/ab/cdef.debug are those of another build"),
        ("stripped", ".build-id/ab/cdef.debug has no symbols"),
        (
            "not-installed",
            "what was compiled was not installed in {root}/usr/lib/postgresql/17/lib",
        ),
        ("other-libpq", "what was compiled finds another libpq"),
        ("no-shlibs", "dpkg-shlibdeps knows no package of libpq"),
        ("other-package", "a program of libpq depends on another one"),
        ("left-behind", "FAILED: files are not as before"),
    ],
)
def test_what_developers_install_is_used_and_goes(spoilt: str, why: str, tmp_path: Path) -> None:
    tarball = tmp_path / "x.orig.tar.gz"
    (tmp_path / "ptrack-3").mkdir()
    (tmp_path / "ptrack-3" / "Makefile").touch()
    making.tarball(tmp_path / "ptrack-3", tarball, "ptrack-3", 1)
    (tmp_path / "rows").write_text("0")
    done = taken(
        tmp_path, "develop", SPOILT=spoilt, DEVELOPMENT="dev.deb", TARBALL=str(tarball)
    )  # fmt: skip
    said = complaint(done)
    assert said.endswith(why.format(root=tmp_path))
    assert bool(said) is bool(why), said


#: What is called where clusters of 15 go to the major: the log has how the old ones are made.
UPGRADECLUSTER = {
    "apt-get": "",
    "pg_createcluster": 'echo "$@" >> created',
    "pg_dropcluster": "",
    "pg_lsclusters": 'for each in dump upgrade; do echo "$MAJOR from${each}checked 1 online"\n'
    'echo "$MAJOR from${each}default 1 online"; done',
    "pg_upgradecluster": 'echo "$@" >> upgraded',
    "runuser": "case \"$*\" in *sum*) echo 500500 ;; *'<>'*) echo t ;; esac",
}
CHECKED = "15 from{}checked -- --data-checksums"
DEFAULT = "15 from{}default"


@pytest.mark.parametrize(
    ("major", "knows", "left_out"), [("17", False, False), ("18", False, True), ("18", True, False)]
)
def test_clusters_as_initdb_makes_them_are_upgraded_where_that_can_be(
    major: str, knows: bool, left_out: bool, tmp_path: Path
) -> None:
    """Also without checksums, unless postgresql-common is too old to make the new one so."""
    done = taken(tmp_path, "upgradecluster", MAJOR=major, PREVIOUS="15", KNOWS="y" * knows)
    assert complaint(done) == ""
    created = (tmp_path / "created").read_text().splitlines()
    expected = [line.format(way) for way in ("dump", "upgrade") for line in (CHECKED, DEFAULT)]
    assert created == (expected[:-1] if left_out else expected)
    upgraded = (tmp_path / "upgraded").read_text().splitlines()
    assert len(upgraded) == len(created)
    assert upgraded[0] == f"-v {major} -m dump 15 fromdumpchecked"
    assert ("left out: -m upgrade of a cluster without checksums" in done.stdout) is left_out


#: A system of apt's with our packages alone, whatever the machine has.
APT_CONFIG = """Dir "{root}/apt";
Dir::Etc::main "none";
Dir::Etc::parts "none";
Dir::State::status "{root}/status";
APT::Architecture "amd64";
APT::Architectures {{ "amd64"; }};
APT::Sandbox::User "";
Debug::NoLocking "1";
"""


def stays(
    root: Path, control: str, packages: Iterable[str], version: str
) -> subprocess.CompletedProcess[str]:
    """The step `stay` with the machine's own apt, where packages of a control file are installed.

    They depend on nothing but each other. packages: what those in dist/ are called.
    """
    from tests.build.test_package_deb import stanzas

    (root / "bin").mkdir()
    installed = []
    for name, fields in stanzas(control.replace("${binary:Version}", version)).items():
        if name == "source" or "-server-dev-" in name:
            continue
        depends = [each for each in fields["Depends"].split(", ") if "17pt (" in each]
        rows = [f"Package: {name}", "Status: install ok installed", f"Version: {version}",
                "Architecture: amd64", "Maintainer: A", "Description: a"]  # fmt: skip
        rows += [f"{key}: {fields[key]}" for key in ("Provides", "Conflicts", "Replaces")
                 if fields.get(key)]  # fmt: skip
        rows += [f"Depends: {', '.join(depends)}"] if depends else []
        installed.append("\n".join(rows))
    (root / "status").write_text("\n\n".join(installed) + "\n")
    (root / "bin/dpkg-deb").write_text('#!/bin/sh\nbasename "$2" .deb\n')
    (root / "bin/dpkg-deb").chmod(0o755)
    for name in ("etc/apt", "var/lib/apt/lists/partial", "var/cache/apt/archives/partial"):
        (root / "apt" / name).mkdir(parents=True)
    (root / "apt.conf").write_text(APT_CONFIG.format(root=root))
    (root / "steps").write_text(
        below(root, verify.STEPS.read_text()).replace("cd /\n", f"cd {root}\n")
    )
    env = {"PATH": f"{root}/bin:{os.environ['PATH']}", "MAJOR": "17", "HOME": str(root),
           "PACKAGES": " ".join(f"/dist/{name}.deb" for name in packages),
           "APT_CONFIG": str(root / "apt.conf")}  # fmt: skip
    return subprocess.run(
        ["sh", str(root / "steps"), "stay"], env=env, text=True, capture_output=True, check=False
    )


@pytest.mark.skipif(not shutil.which("apt-get"), reason="needs apt")
@pytest.mark.parametrize(
    ("version", "was", "now", "why"),
    [
        ("17.3-1", "", "", ""),
        ("17~~devel+git1-1", "", "", ""),
        # a package of the plain one's name, as others patch servers
        ("17.3-1", "17pt", "17", "apt-get upgrade swaps servers: Inst postgresql-17"),
        # nothing stands in for the plain server
        ("17.3-1", "Provides:", "X-Provides:", "install wants-postgresql-17 cannot be done"),
    ],
)
def test_apt_s_upgrades_bring_no_plain_server(
    version: str, was: str, now: str, why: str, tmp_path: Path
) -> None:
    from tests.build.test_package_deb import facts_of

    control = deb.render("server", facts_of(matrix.load().major("17")))["control"][0]
    packages = ["postgresql-17pt", "postgresql-client-17pt", "postgresql-plperl-17pt"]
    done = stays(tmp_path, control.replace(was, now) if was else control, packages, version)
    said = complaint(done)
    assert why in said
    assert bool(said) is bool(why), said


def refused(port: int) -> bool:
    """Whether nobody listens there, soon: who was told to end does so after a moment."""
    for _ in range(200):
        try:
            socket.create_connection(("127.0.0.1", port), timeout=30).close()
        except ConnectionRefusedError:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize(
    ("spoilt", "why"), [("", ""), ("no-server", "FAILED: postgresql-17pt was not installed")]
)
def test_a_repository_is_served_and_used_as_it_is_said(
    spoilt: str, why: str, tmp_path: Path
) -> None:
    for name in ("ptrack.asc", "apt/dists/bookworm/InRelease"):
        (tmp_path / "repository" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "repository" / name).write_text(f"of {name}")
    sources = tmp_path / "said"
    sources.write_text(repo.source("bookworm", unsigned=False))
    (tmp_path / "rows").write_text("0")
    serve, place = str(verify.SERVE), str(tmp_path / "repository")
    done = taken(tmp_path, "repo", SERVE=serve, REPOSITORY=place, SOURCES=str(sources),
                 SPOILT=spoilt)  # fmt: skip
    assert complaint(done) == why
    assert (tmp_path / "etc/apt/keyrings/ptrack.asc").read_text() == "of ptrack.asc"
    assert (tmp_path / "updated").read_text() == "of apt/dists/bookworm/InRelease"
    assert "install -y --no-install-recommends postgresql-17-ptrack" in done.stdout
    port = re.findall(r"127\.0\.0\.1:(\d+)/apt", (tmp_path / SOURCE).read_text())[0]
    assert refused(int(port)), "the server is there after the step"


# ---- the oracle that packages bring along

BLOCK = 8192
PSQL = r"""#!/bin/sh
case "$*" in
*data_directory*) echo "$DATA" ;;
*data_checksums*) echo on ;;
*'<='*) echo "${VALID:-t}" ;;
*redo_lsn*) echo 0/100 ;;
*pagemapset*) cat "$DATA/../reported" ;;
*' -c '*) ;;
*) cat > /dev/null; cp -r "$DATA/../changed/." "$DATA/" ;;
esac
"""


def blocks(count: int, letter: str, changed: range = range(0)) -> bytes:
    """A file of blocks; one byte in each of those in changed is another."""
    data = bytearray(letter.encode() * (count * BLOCK))
    for number in changed:
        data[number * BLOCK + 17] = 0
    return bytes(data)


@pytest.fixture
def tracked(tmp_path: Path) -> Path:
    """Servers' files before and after a workload, programs that stand in for those of a cluster."""
    (tmp_path / "bin").mkdir()
    for name in ("pg_createcluster", "pg_conftool", "pg_ctlcluster", "pg_dropcluster"):
        (tmp_path / "bin" / name).write_text("#!/bin/sh\n")
    (tmp_path / "bin" / "runuser").write_text(PSQL)
    text = making.rendered(verify.TRACKING, {"major": 17}, "deb.Facts")
    (tmp_path / "bin" / "tracking").write_text(text)
    for program in (tmp_path / "bin").iterdir():
        program.chmod(0o755)
    files = {
        "data/base/5/100": blocks(100, "a"),
        "data/base/5/100.1": blocks(100, "b"),
        "data/base/5/PG_VERSION": b"17\n",
        "data/global/1": blocks(100, "c"),
        "changed/base/5/100": blocks(103, "a", range(60)),
        "changed/base/5/100.1": blocks(50, "b", range(49, 50)),
        "changed/base/5/PG_VERSION": b"18\n",
        "changed/base/5/200_fsm": blocks(2, "d"),
    }
    for name, data in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    return tmp_path


def all_changed() -> list[str]:
    """What the workload above changes."""
    numbers = [*range(60), 100, 101, 102]
    return [
        *(f"base/5/100 {n}" for n in numbers),
        "base/5/100.1 49", "base/5/200_fsm 0", "base/5/200_fsm 1",
    ]  # fmt: skip


def track(folder: Path, reported: list[str], **env: str) -> subprocess.CompletedProcess[str]:
    (folder / "reported").write_text("".join(f"{line}\n" for line in sorted(reported)))
    return subprocess.run(
        [str(folder / "bin" / "tracking"), "track"], text=True, capture_output=True, check=False,
        env={**os.environ, "PATH": f"{folder}/bin:{os.environ['PATH']}",
             "DATA": str(folder / "data"), **env},
    )  # fmt: skip


def test_the_oracle_is_content_with_just_what_changed(tracked: Path) -> None:
    done = track(tracked, all_changed())
    assert done.returncode == 0, done.stderr
    assert "66 blocks of 255 changed, 66 are reported, none is lost" in done.stdout


@pytest.mark.parametrize(
    "lost",
    ["base/5/100 0", "base/5/100 31", "base/5/100 102", "base/5/100.1 49", "base/5/200_fsm 1"],
)
def test_the_oracle_names_a_block_that_is_lost(tracked: Path, lost: str) -> None:
    done = track(tracked, [line for line in all_changed() if line != lost])
    assert done.returncode == 1
    assert f"FAILED: not reported, though changed: {lost};" in done.stderr


def test_the_oracle_is_not_content_with_everything(tracked: Path) -> None:
    every = [f"base/5/100 {n}" for n in range(103)] + [f"global/1 {n}" for n in range(100)]
    done = track(tracked, sorted({*every, *all_changed()}))
    assert done.returncode == 1
    assert "nearly all of 255 blocks are reported" in done.stderr


def test_the_oracle_is_not_content_with_nothing(tracked: Path) -> None:
    (tracked / "changed" / "base/5/100").write_bytes(blocks(100, "a"))
    done = track(tracked, all_changed())
    assert done.returncode == 1
    assert "changed next to nothing" in done.stderr


def test_the_oracle_wants_a_valid_map(tracked: Path) -> None:
    done = track(tracked, all_changed(), VALID="f")
    assert done.returncode == 1
    assert "the map is not valid since 0/100" in done.stderr


def test_packages_bring_their_test_along() -> None:
    from tests.build.test_package_deb import facts_of

    made = deb.render("extension", facts_of(matrix.load().major("17")))
    control, executable = made["tests/control"]
    assert not executable
    assert "Tests: tracking\n" in control
    assert "Depends: postgresql-17-ptrack, postgresql-17pt\n" in control
    text, executable = made["tests/tracking"]
    assert executable
    assert "\nmajor=17\n" in text


def test_outcomes_are_rows_of_one_table() -> None:
    row = report.Outcome(session="debian-sid-amd64 17", status="passed", tests=6, skipped=1)
    assert "5 passed, 0 failed, 1 skipped" in report.table([row])
