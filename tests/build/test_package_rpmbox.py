"""Rpms in containers of their distribution, with an engine that is none: what is asked of it."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from ptrack_build.container import NoEngine, Reference, engine
from ptrack_build.errors import HostError
from ptrack_build.package import MANIFEST, PackageError, rpmbox, rpmroot, verify
from tests.build import _packages
from tests.build._engine import FakeEngine, FakeImage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

BLOCK = rpmroot.BLOCK
EMPTY = {"depends": "", "provides": "", "architecture": "x86_64"}


def put(dist: Path, distribution: str = "fedora", release: str = "43") -> Path:
    """A directory of dist/ with rpms, which hold nothing."""
    folder = dist / f"{distribution}-{release}-x86_64" / "postgresql-17"
    folder.mkdir(parents=True)
    packages = [
        EMPTY | {"file": "postgresql17pt-server-17.4-1ptrack3.0.0.fc43.x86_64.rpm",
                 "provides": "postgresql17pt-server = 17.4-1, postgresql17-ptrack-abi = 3",
                 "depends": "libc.so.6()(64bit), glibc >= 2.34, (a if b), /usr/bin/sh"},
        EMPTY | {"file": "ptrack_17-3.0.0-1.pg17.4.fc43.x86_64.rpm",
                 "depends": "postgresql17-ptrack-abi = 3"},
        EMPTY | {"file": "ptrack_17-3.0.0-1.pg17.4.fc43.src.rpm", "architecture": "src"},
    ]  # fmt: skip
    said = {
        "kind": "rpm", "major": "17", "native": "", "packages": packages,
        "system": {"distribution": distribution, "codename": "", "release": release},
        "postgresql": {"version": "17.4"},
    }  # fmt: skip
    for each in packages:
        (folder / each["file"]).write_text("")
    (folder / MANIFEST).write_text(json.dumps(said))
    return folder


@pytest.fixture
def fake(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> FakeEngine:
    """An engine with an image of Fedora's, in whose containers all goes well."""
    del own_cache
    made = FakeEngine(held={"fedora:43": FakeImage("sha256:f")})
    made.answers["dnf"] = (0, "")

    def work() -> Path:
        (mount,) = (
            each["Target"] for each in made.created[-1].wanted["mounts"] if not each["ReadOnly"]
        )
        return Path(mount)

    def answer(argv: list[str]) -> tuple[int, str] | None:
        if argv[0] != "sh":
            return None
        blocks = {"track": ("before", "after"), "crash": ("crashed",), "upgrade": ("upgraded",)}
        for place in blocks.get(argv[-1], ()):
            (work() / place / "base").mkdir(parents=True)
            (work() / place / "base/1").write_text(place[0] * BLOCK)
            answers = {"after": "map", "crashed": "crashed.map", "upgraded": "upgraded.map"}
            if place in answers:
                (work() / answers[place]).write_text("base/1 01\n")
        return 0, ""

    made.on_exec = answer

    @contextlib.contextmanager
    def running() -> Iterator[FakeEngine]:
        yield made

    monkeypatch.setattr(engine, "running", running)
    return made


def steps(fake: FakeEngine) -> list[str]:
    """Those that were taken."""
    return [argv[-1] for argv in fake.commands if argv[0] == "sh"]


@pytest.mark.parametrize(
    ("distribution", "release", "expected"),
    [
        ("fedora", "43", "fedora:43"), ("rocky", "9.6", "rockylinux:9"),
        ("almalinux", "9.6", "almalinux:9"), ("centos", "10", "quay.io/centos/centos:stream10"),
        ("ol", "8.10", "oraclelinux:8"), ("mageia", "9", "mageia:9"),
        ("rhel", "9.6", "registry.access.redhat.com/ubi9/ubi:latest"),
    ],
)  # fmt: skip
def test_each_distribution_has_its_image(distribution: str, release: str, expected: str) -> None:
    about = {"distribution": distribution, "release": release, "codename": ""}
    assert rpmbox.image(about) == expected
    assert Reference.parse(expected).name


def test_all_steps_are_taken_in_one_container_without_a_network(
    fake: FakeEngine, tmp_path: Path, own_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = put(tmp_path)
    tried = rpmbox.verify(folder)
    assert steps(fake) == ["install", "track", "crash", "remove"]
    assert (tried.changed, tried.reported, len(tried.steps)) == (2, 2, 4)
    # what they depend on is there before, by the network; of themselves nothing
    (installed,) = [argv[3:] for argv in fake.commands if argv[:3] == ["dnf", "install", "-y"]]
    assert installed == sorted({*rpmbox.TOOLS, "/usr/bin/sh", "glibc", "libc.so.6()(64bit)"})
    where = zip(fake.commands, fake.networks, strict=True)
    assert {(argv[0], network) for argv, network in where} == {("dnf", "host"), ("sh", "none")}
    mounts = {each["Target"]: each["ReadOnly"] for each in fake.created[-1].wanted["mounts"]}
    work = own_cache / "build" / "verify-rpm-fedora-43-x86_64-17"
    assert mounts == {str(folder): True, str(work): False}
    assert not work.exists()
    assert not fake.there
    assert "in containers of fedora:43 (there)" in capsys.readouterr().out


def test_nothing_is_installed_that_conflicts_with_what_images_have() -> None:
    assert not [name for name in rpmbox.TOOLS if name.startswith("coreutils")]


def test_an_earlier_release_is_upgraded(fake: FakeEngine, tmp_path: Path) -> None:
    folder, old = put(tmp_path), tmp_path / "old"
    old.mkdir()
    (old / "ptrack_17-2.9.0-1.pg17.2.fc43.x86_64.rpm").write_text("")
    told: list[dict[str, Any]] = []
    real = fake.exec_create

    def created(word: str, argv: list[str], **wanted: Any) -> dict[str, str]:  # noqa: ANN401
        told.append(wanted["environment"])
        return real(word, argv, **wanted)

    fake.exec_create = created  # type: ignore[method-assign]
    tried = rpmbox.verify(folder, old)
    assert steps(fake) == ["install", "track", "crash", "upgrade", "remove"]
    assert tried.changed == 3
    assert told[-1]["BEFORE"] == str(old / "ptrack_17-2.9.0-1.pg17.2.fc43.x86_64.rpm")
    assert told[-1]["MAJOR"] == "17"
    assert len(told[-1]["PACKAGES"].split()) == 2  # without the source


def test_a_step_that_fails_is_told_and_ends_it(fake: FakeEngine, tmp_path: Path) -> None:
    fake.ends("sh", "crash", "noise\nFAILED: the map was not kept at a restart\n")
    what = r"failed in a container of fedora:43: the map was not kept at a restart"
    with pytest.raises(PackageError, match=what) as caught:
        rpmbox.verify(put(tmp_path))
    assert steps(fake) == ["install", "track", "crash"]
    assert caught.value.log is not None
    assert "FAILED: the map" in caught.value.log.read_text()
    assert not fake.there


def test_a_lost_block_is_told(fake: FakeEngine, tmp_path: Path) -> None:
    before = fake.on_exec

    def forgets(argv: list[str]) -> tuple[int | None, str] | None:
        found = before(argv)
        if argv[-1] == "crash":
            mounts = fake.created[-1].wanted["mounts"]
            (work,) = (each["Target"] for each in mounts if not each["ReadOnly"])
            (Path(work) / "crashed.map").write_text("base/1 00\n")
        return found

    fake.on_exec = forgets
    with pytest.raises(PackageError, match=r"lost 1 changed blocks \(crashed\): base/1:0"):
        rpmbox.verify(put(tmp_path))


def test_what_they_depend_on_and_dnf_has_not_is_told(fake: FakeEngine, tmp_path: Path) -> None:
    fake.answers["dnf"] = (1, "Error: Unable to find a match: glibc\n")
    with pytest.raises(PackageError, match="Unable to find a match: glibc"):
        rpmbox.verify(put(tmp_path))
    assert steps(fake) == []


def test_an_image_that_cannot_be_had_is_what_the_machine_lacks(
    fake: FakeEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.held.clear()
    with pytest.raises(HostError, match="fedora:43 can neither be pulled nor bootstrapped"):
        rpmbox.verify(put(tmp_path))

    def running() -> None:
        what = "no engine here"
        raise NoEngine(what, hint="start one")

    monkeypatch.setattr(engine, "running", running)
    with pytest.raises(HostError, match="no engine here") as caught:
        rpmbox.verify(tmp_path / "fedora-43-x86_64/postgresql-17")
    assert caught.value.hint == "start one"


@pytest.mark.parametrize("native", ["", "built natively on Debian"])
def test_native_rpms_are_tried_on_their_system_and_others_in_containers(
    native: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.build.test_package_verify import put as put_any

    folder = put_any(tmp_path, "17", kind="rpm")
    each = verify.published(tmp_path)[0]
    assert each.native  # where nothing is said of it
    called: list[str] = []
    tried = rpmroot.Tried(steps=("it starts",), changed=1, reported=1)

    def by(name: str) -> Callable[..., rpmroot.Tried]:
        def verified(*_: object) -> rpmroot.Tried:
            called.append(name)
            return tried

        return verified

    said = json.loads((folder / MANIFEST).read_text()) | {"native": native}
    monkeypatch.setattr(verify, "read", lambda _folder, how: how(said))
    monkeypatch.setattr(verify, "results", lambda: tmp_path)
    monkeypatch.setattr(rpmroot, "lint", lambda _dist: True)
    monkeypatch.setattr("ptrack_build.package.rpmrepo.verify", lambda _dist: ())
    monkeypatch.setattr(rpmroot, "verify", by("root"))
    monkeypatch.setattr(rpmbox, "verify", by("box"))
    verify.verify(dist=tmp_path)
    assert called == ["root" if native else "box"]


def shell(script: str, *functions: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a script that knows these functions of the steps' script."""
    text = rpmbox.SCRIPT.read_text()
    defined = [
        text[text.index(f"\n{name}()\n") : text.index("\n}\n", text.index(f"\n{name}()\n")) + 3]
        for name in functions
    ]
    return subprocess.run(
        ["sh", "-euc", "\n".join([*defined, script])], env={"PATH": os.environ["PATH"], **env},
        text=True, capture_output=True, check=False,
    )  # fmt: skip


#: Answers of packages what the names of their files say: NAME-EPOCH:VERSION-RELEASE.ARCH.rpm.
ASKED = r"""
rpm()
{
	[ "$1" = -qp ] || { command rpm "$@"; return; }
	for last; do :; done
	file=${last##*/}
	head=${file%-*-*} rest=${file%.*.rpm}
	rest=${rest#"$head"-}
	version=${rest%-*}
	case $4 in
	'%{NAME}\n') echo "$head" ;;
	'%{EPOCHNUM} %{VERSION} %{RELEASE}') echo "${version%:*} ${version#*:} ${rest#*-}" ;;
	*) exit 9 ;;
	esac
}
"""


@_packages.with_rpmbuild
@pytest.mark.parametrize(
    ("version", "earlier"),
    [
        ("0:17.2-1.fc43", True), ("0:17.4-0.fc43", True), ("0:17.4~rc1-9.fc43", True),
        ("0:17.4-1.fc43", False), ("0:17.10-1.fc43", False), ("0:17.4-10.fc43", False),
        ("1:17.2-1.fc43", False), ("0:17.4.1-1.fc43", False),
    ],
)  # fmt: skip
def test_what_is_upgraded_from_is_earlier_indeed(version: str, earlier: bool) -> None:
    done = shell(
        f"{ASKED}\nolder", "fail", "names", "order", "older",
        BEFORE=f"/old/a-b-{version}.x86_64.rpm",
        PACKAGES="/dist/new-0:17.4-1.fc43.x86_64.rpm /dist/a-b-0:17.4-1.fc43.x86_64.rpm",
    )  # fmt: skip
    why = f"FAILED: a-b-{version}.x86_64.rpm is not earlier than a-b-0:17.4-1.fc43.x86_64.rpm\n"
    assert (done.returncode, done.stderr) == ((0, "") if earlier else (1, why))


def test_that_is_seen_to_before_anything_is_installed() -> None:
    text = rpmbox.SCRIPT.read_text()
    first = text[text.index("\ninstall)\n") :].splitlines()[2]
    assert first == "\tolder"
    assert shell("older", "older", BEFORE="", PACKAGES="/dist/a.rpm").returncode == 0


def test_names_are_those_of_the_packages() -> None:
    files = ["/a/b-c-0:1-2.x86_64.rpm", "/a/d-0:1-2.noarch.rpm"]
    assert shell(f"{ASKED}\nnames {' '.join(files)}", "names").stdout == "b-c\nd\n"
    broken = shell("rpm() { false; }\nnames /a/b.rpm", "names")
    assert (broken.returncode, broken.stdout) == (1, "")


#: The packages a and b of version 2 are installed, and c of version 1 is.
THERE = r"""
rpm()
{
	case "$*" in
	'-qp --nosignature --qf %{NAME}-%{VERSION}-%{RELEASE}.%{ARCH} '*)
		for last; do :; done
		basename "$last" .rpm
		;;
	'-q a-2-1.x86_64' | '-q b-2-1.noarch' | '-q c-1-1.x86_64') echo "$2" ;;
	*) return 1 ;;
	esac
}
"""


@pytest.mark.parametrize(
    ("files", "why"),
    [
        ("/d/a-2-1.x86_64.rpm /d/b-2-1.noarch.rpm", ""),
        ("/d/a-2-1.x86_64.rpm /d/c-2-1.x86_64.rpm", "c-2-1.x86_64.rpm was not installed"),
        ("/d/none-2-1.x86_64.rpm /d/a-2-1.x86_64.rpm", "none-2-1.x86_64.rpm was not installed"),
    ],
)  # fmt: skip
def test_what_is_not_there_in_its_version_was_not_installed(files: str, why: str) -> None:
    done = shell(f"{THERE}\ninstalled {files}", "fail", "installed")
    assert (done.returncode, done.stderr) == ((1, f"FAILED: {why}\n") if why else (0, ""))


def test_a_listing_has_all_but_what_any_system_writes(tmp_path: Path) -> None:
    """With find as it is, of a root that is none: / is a directory here."""
    kept = ("etc/postgres", "usr/pgsql-17/bin/psql", "var/lib/pgsql/17/log", "var/lib/dnfx")
    left_out = (
        "proc/1", "sys/a", "dev/null", "run/a", "tmp/a", "var/tmp/a", "var/log/dnf.log",
        "var/cache/dnf/a", "var/lib/dnf/a", "var/lib/rpm/a", "usr/lib/sysimage/rpm/a", "root/a",
        "etc/ld.so.cache", "etc/.pwd.lock", "etc/passwd-", "etc/gshadow-", "etc/group-", "work/a",
    )  # fmt: skip
    for name in (*kept, *left_out):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
        (tmp_path / name).chmod(0o640)
    (tmp_path / "etc/link").symlink_to("postgres")
    # what begins with / does so below tmp_path
    find = """find()
{
	for each; do
		shift
		case $each in */*) [ "${each#/}" = "$each" ] || each=$BELOW${each%/} ;; esac
		set -- "$@" "$each"
	done
	command find "$@"
}
"""
    done = shell(f"{find}\nlisting", "listing", BELOW=str(tmp_path), WORK="/work")
    rows = [line.removeprefix(str(tmp_path)).split(" ") for line in done.stdout.splitlines()]
    owner = f"{tmp_path.owner()}:{tmp_path.group()}"
    listed = {row[0]: row[1:] for row in rows}
    for name in kept:
        assert listed[f"/{name}"] == ["f", "640", owner, ""]
    assert listed["/etc/link"] == ["l", "777", owner, "postgres"]
    assert listed["/var/lib/pgsql"][0] == "d"
    assert not {f"/{name}" for name in left_out} & listed.keys()
    assert done.stdout.splitlines() == sorted(done.stdout.splitlines())
    assert (done.returncode, done.stderr) == (0, "")


def test_the_script_is_shell() -> None:
    subprocess.run(["sh", "-n", str(rpmbox.SCRIPT)], check=True)


def test_the_script_knows_each_step() -> None:
    text = rpmbox.SCRIPT.read_text()
    assert all(f"\n{name})\n" in text for name in rpmbox.ORDER)
