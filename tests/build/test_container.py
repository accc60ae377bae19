"""Containers, with an engine that is none: images, commands, ends of all kinds."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import stat
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import docker.errors
import pytest

from ptrack_build import cache, container, host
from ptrack_build.container import box, dormant, engine
from ptrack_build.container import image as images
from ptrack_build.container.base import ContainerError, NoEngine, NoImage, Reference
from ptrack_build.errors import CommandFailed, HostError, SourceError, UsageError
from ptrack_build.package.place import HERE
from ptrack_build.run import Completed
from ptrack_build.source import distro
from tests.build._engine import FakeEngine, FakeImage, digest

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

BOOKWORM = {"ID": "debian", "VERSION_ID": "12", "VERSION_CODENAME": "bookworm"}


# ---- names of images


@pytest.mark.parametrize(
    ("text", "name", "tag", "hashed"),
    [
        ("debian:trixie", "debian", "trixie", ""),
        ("debian", "debian", "latest", ""),
        ("registry.example:5000/a/b:1.2", "registry.example:5000/a/b", "1.2", ""),
        (f"debian@{digest('a')}", "debian", "", digest("a")),
        (f"debian:sid@{digest('a')}", "debian", "sid", digest("a")),
        (digest("b"), "", "", digest("b")),
    ],
)
def test_images_are_named_by_tag_and_by_digest(text: str, name: str, tag: str, hashed: str) -> None:
    read = Reference.parse(text)
    assert (read.name, read.tag, read.digest) == (name, tag, hashed)
    assert str(read) == (text if text != "debian" else "debian:latest")


@pytest.mark.parametrize(
    "text", ["debian:", "De bian", "debian@sha256:12", "-x", "debian:a b", "sha256:zz", "x@y"]
)
def test_what_names_no_image_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is no image"):
        Reference.parse(text)


def test_this_system_is_known_by_its_names_and_never_by_a_digest() -> None:
    for text in ("debian:bookworm", "debian:12"):
        assert Reference.parse(text).is_of(BOOKWORM)
    for text in ("debian:trixie", "ubuntu:bookworm", f"debian:bookworm@{digest('a')}", "debian"):
        assert not Reference.parse(text).is_of(BOOKWORM)
    assert not Reference.parse("debian:sid").is_of({"ID": "debian"})


# ---- the engine


def test_without_an_engine_only_this_very_system_is_built_for(
    own_cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    del own_cache

    def none() -> object:
        what = "there is no container engine"
        raise NoEngine(what, hint="install one")

    monkeypatch.setattr(engine, "running", none)
    monkeypatch.setattr(type(HERE), "os_release", lambda _self: BOOKWORM)
    with container.place("debian:bookworm", "deb-17", kept="deb") as where:
        assert where is HERE
    said = capsys.readouterr().out
    assert "there is no container engine: debian:bookworm is this system" in said
    with (
        pytest.raises(NoEngine) as caught,
        container.place("debian:trixie", "deb-17", kept="deb"),
    ):
        pass
    assert caught.value.hint == "install one"


def test_no_image_means_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "running", lambda: pytest.fail("nobody asked for an engine"))
    with container.place("", "deb-17", kept="deb") as where:
        assert where is HERE


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("tcp://192.0.2.1:2375", "is not of this machine"),
        ("ssh://x@y", "is not of this machine"),
        ("unix:///nonexistent/docker.sock", "nothing answers at DOCKER_HOST"),
    ],
)
def test_a_named_engine_is_the_only_one_asked(
    address: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_HOST", address)
    monkeypatch.setattr(engine, "_own", lambda: pytest.fail("another one was started"))
    with pytest.raises(ContainerError, match=says), engine.running():
        pass


def test_a_user_is_told_the_line_that_brings_an_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    monkeypatch.setattr(engine, "SOCKETS", ())
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(host, "manager", lambda: "apt")
    monkeypatch.setattr(host, "missing", lambda _names: ["container engine"])
    with pytest.raises(NoEngine) as caught, engine.running():
        pass
    assert "sudo apt-get install -y docker.io" in (caught.value.hint or "")


DAEMON = """
    import http.server, json, os, socketserver, sys
    from pathlib import Path

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        def do_GET(self):
            body = json.dumps({"ApiVersion": "1.41"}).encode() if "version" in self.path else b"OK"
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
        def address_string(self):
            return "client"
        def log_message(self, *_):
            pass

    given = dict(zip(sys.argv[1::2], sys.argv[2::2]))
    path = given["--host"].removeprefix("unix://")
    Path(os.environ["FAKE_RECORD"]).write_text(json.dumps([os.getpid(), *sys.argv[1:]]))
    socketserver.ThreadingUnixStreamServer(path, Handler).serve_forever()
"""


def fake_daemon(folder: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> Path:
    """A dockerd on the PATH, of which the record of its words is returned; no engine runs."""
    program = folder / "bin" / "dockerd"
    program.parent.mkdir()
    program.write_text(text)
    program.chmod(0o755)
    record = folder / "record"
    monkeypatch.setenv("FAKE_RECORD", str(record))
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("TMPDIR", "/tmp")
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    monkeypatch.setattr(engine, "SOCKETS", ())
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(engine, "_short", lambda: folder)
    return record


def test_an_engine_of_our_own_is_private_and_stopped_again(
    own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import json
    import tempfile

    # a socket's path is short
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        folder = Path(name)
        script = f"#!{sys.executable}\n{textwrap.dedent(DAEMON).lstrip()}"
        record = fake_daemon(folder, monkeypatch, script)
        with engine.running() as client:
            assert client.ping()
            pid, *words = json.loads(record.read_text())
            given = [word for word in words if word.startswith(("unix:", "tcp:"))]
            assert len(given) == 1
            home = Path(given[0].removeprefix("unix://")).parent
            assert stat.S_IMODE(home.stat().st_mode) == 0o700
            assert {"--bridge=none", "--iptables=false", "--ip-forward=false"} <= set(words)
            assert str(own_cache / "engine") in words
        assert not Path(f"/proc/{pid}").exists()
        assert not home.exists()
        with pytest.raises(KeyboardInterrupt), engine.running():
            raise KeyboardInterrupt
        again = json.loads(record.read_text())[0]
        assert again != pid
        assert not Path(f"/proc/{again}").exists()


def test_an_engine_that_does_not_start_says_why(
    own_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_daemon(tmp_path, monkeypatch, "#!/bin/sh\necho 'no overlay, no cgroups'\nexit 1\n")
    with pytest.raises(NoEngine, match="no overlay, no cgroups") as caught, engine.running():
        pass
    assert caught.value.log == own_cache / "log" / "engine.log"
    assert not list(tmp_path.glob("ptrack-engine-*"))


def test_an_engine_that_was_installed_for_this_is_our_own(
    own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even where another one answers by now."""
    del own_cache
    asked: list[bool] = []
    done: list[str] = []
    client = FakeEngine()

    @contextlib.contextmanager
    def kept() -> Iterator[None]:
        done.append("forbidden")
        yield
        done.append("allowed")

    def local() -> object:
        asked.append(True)
        return contextlib.closing(pytest.fail("not ours")) if len(asked) > 1 else None

    monkeypatch.delenv("DOCKER_HOST", raising=False)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(host, "missing", lambda names: list(names))
    monkeypatch.setattr(host, "ensure", lambda _names: done.append("installed"))
    monkeypatch.setattr(dormant, "kept", kept)
    monkeypatch.setattr(engine, "_local", local)
    monkeypatch.setattr(engine, "_own", lambda: contextlib.nullcontext(client))
    with engine.running() as found:
        assert found is client
    assert done == ["forbidden", "installed", "allowed"]


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A root directory of Debian with systemd, of whose units systemctl says what `state` does."""
    for name in ("usr/sbin", "run/systemd/system", "usr/lib/systemd/system", "bin"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("POLICY", "PRESET", "INIT", "BOOTED"):
        monkeypatch.setattr(dormant, name, tmp_path / str(getattr(dormant, name))[1:])
    places = tuple(tmp_path / str(place)[1:] for place in dormant.PLACES)
    monkeypatch.setattr(dormant, "PLACES", places)
    program = tmp_path / "bin" / "systemctl"
    program.write_text(f"#!/bin/sh\ngrep -h \"^$1 $2 \" {tmp_path}/state | cut -d' ' -f3\n")
    program.chmod(0o755)
    (tmp_path / "state").write_text("")
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setattr(host, "manager", lambda: "apt")
    return tmp_path


def unpack_engine(machine: Path) -> None:
    """What dpkg does: the units are there."""
    for unit in dormant.UNITS:
        (machine / "usr/lib/systemd/system" / unit).write_text("")


def answer(*words: str) -> int:
    """What policy-rc.d says."""
    return subprocess.run([dormant.POLICY, *words], check=False).returncode


def test_while_an_engine_is_installed_it_may_neither_start_nor_be_enabled(
    machine: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(machine.rglob("*"))
    with dormant.kept():
        for words in (["docker.service", "start"], ["--quiet", "docker", "start", "2"],
                      ["containerd.service", "restart"]):  # fmt: skip
            assert answer(*words) == 101
        assert answer("ssh.service", "restart") == 0
        rows = dormant.PRESET.read_text().splitlines()[1:]
        assert rows == [f"disable {unit}" for unit in dormant.UNITS]
    assert sorted(machine.rglob("*")) == before
    assert not capsys.readouterr().out  # nothing was installed


def test_the_presets_are_as_systemd_reads_them(machine: Path) -> None:
    systemctl = shutil.which("systemctl", path="/usr/bin:/bin")
    if systemctl is None:
        pytest.skip("needs systemctl")
    for unit in dormant.UNITS:
        (machine / "usr/lib/systemd/system" / unit).write_text("[Install]\nWantedBy=a.target\n")
    argv = [systemctl, f"--root={machine}", "--preset-mode=enable-only", "preset", *dormant.UNITS]
    (machine / "usr/lib/systemd/system/containerd.service").unlink()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(dormant, "PLACES", ())
        with dormant.kept():
            subprocess.run(argv[:-1], check=True, capture_output=True)
            assert not list(machine.glob("etc/systemd/system/*/*"))
    subprocess.run(argv[:-1], check=True, capture_output=True)
    assert len(list(machine.glob("etc/systemd/system/*/*"))) == 2


@pytest.mark.parametrize("end", [KeyboardInterrupt(), HostError("no room")])
def test_however_an_installation_ends_services_may_start_again(
    end: BaseException, machine: Path
) -> None:
    before = sorted(machine.rglob("*"))
    with pytest.raises(type(end)), dormant.kept():
        raise end
    assert sorted(machine.rglob("*")) == before


def test_a_killed_installation_forbids_nothing_and_is_followed_by_another(machine: Path) -> None:
    del machine
    with subprocess.Popen(["sleep", "60"]) as killed:
        dormant.POLICY.write_text(dormant.policy(dormant.UNITS, killed.pid))
        dormant.POLICY.chmod(0o755)
        assert answer("docker", "start") == 101
        killed.kill()
    assert answer("docker", "start") == 0
    with dormant.kept():
        assert answer("docker", "start") == 101
    assert not dormant.POLICY.exists()


def test_a_policy_of_the_machine_s_own_stays(machine: Path) -> None:
    del machine
    dormant.POLICY.write_text("#!/bin/sh\nexit 104\n")
    dormant.POLICY.chmod(0o755)
    with dormant.kept():
        assert answer("docker", "start") == 104
        assert dormant.PRESET.exists()
    assert answer("docker", "start") == 104


def test_what_of_an_engine_was_there_before_is_not_touched(machine: Path) -> None:
    (machine / "usr/lib/systemd/system/containerd.service").write_text("")
    with dormant.kept():
        assert answer("containerd.service", "restart") == 0
        assert answer("docker.service", "start") == 101
        assert "containerd" not in dormant.PRESET.read_text()


@pytest.mark.parametrize(
    ("state", "says"),
    [
        ("", "docker.service, docker.socket, containerd.service: installed, neither enabled nor"),
        ("is-enabled docker.socket enabled\n", "systemctl disable --now docker.socket\n"),
        ("is-active docker.service active\n", "systemctl disable --now docker.service\n"),
    ],
)
def test_what_was_enabled_nevertheless_is_said(
    state: str, says: str, machine: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with dormant.kept():
        unpack_engine(machine)
        (machine / "state").write_text(state)
    assert says in capsys.readouterr().out


# ---- images


@pytest.fixture
def _apt(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Apt set up for Debian, with a mirror that has trixie and sid."""
    del own_cache
    monkeypatch.setattr(host, "ensure", lambda _names: None)

    def sources(_self: object, distribution: str, suite: str) -> list[str]:
        if (distribution, suite) not in {("debian", "trixie"), ("debian", "sid")}:
            what = f"the mirror has no suite {suite}"
            raise SourceError(what)
        return [f"Types: deb\nSuites: {suite}\n"]

    monkeypatch.setattr(distro.DistroProvider, "binary_sources", sources)
    monkeypatch.setattr(distro.DistroProvider, "transport", lambda _self: ['A::Proxy "p";'])


def bootstrapper(made: list[list[str]], **environment: str) -> Any:  # noqa: ANN401
    """In the place of run.call: mmdebstrap."""

    def call(argv: Sequence[str], **options: Any) -> Completed:  # noqa: ANN401
        made.append(list(argv))
        assert environment.items() <= options["env"].items()
        assert Path(argv[-1]).read_text() == f"Types: deb\nSuites: {argv[-3]}\n"
        Path(argv[-2]).write_bytes(b"tar")
        return Completed(argv=tuple(argv), returncode=0, stdout="")

    return call


def test_an_image_that_is_there_is_taken_and_none_pulled() -> None:
    fake = FakeEngine(held={"debian:sid": FakeImage("sha256:1")}, registry={})
    found = images.get(fake, Reference.parse("debian:sid"))
    assert (found.id, found.how, found.rolling) == ("sha256:1", "there", "sid")


def test_an_image_that_is_not_there_is_pulled() -> None:
    fake = FakeEngine(registry={"fedora:41": FakeImage("sha256:2")})
    found = images.get(fake, Reference.parse("fedora:41"))
    assert (found.id, found.how, found.rolling) == ("sha256:2", "pulled", "")


@pytest.mark.usefixtures("_apt")
def test_what_cannot_be_pulled_is_bootstrapped_once_and_labelled(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake, made = FakeEngine(), list[list[str]]()
    monkeypatch.setattr(images, "call", bootstrapper(made))
    first = images.get(fake, Reference.parse("debian:trixie"))
    assert "could not be pulled (not pulled: no such host)" in capsys.readouterr().out
    assert made[0][:2] == ["mmdebstrap", "--variant=minbase"]
    assert '--aptopt=A::Proxy "p";' in made[0]
    (imported,) = fake.imported
    assert imported["bytes"] == b"tar"
    assert imported["repository"] == "ptrack-bootstrapped/debian"
    assert any("ptrack.what" in change for change in imported["changes"])
    assert "debian:trixie" not in fake.held  # the registry's name is the registry's
    assert list(cache.directory("build", "images").iterdir()) == []
    again = images.get(fake, Reference.parse("debian:trixie"))
    assert again.id == first.id
    assert len(made) == 1
    fake.held["ptrack-bootstrapped/debian:trixie"].created = "2020-01-01T00:00:00.1Z"
    images.get(fake, Reference.parse("debian:trixie"))
    assert len(made) == 2


@pytest.mark.usefixtures("_apt")
@pytest.mark.parametrize("name", ["debian:nosuch", "fedora:41"])
def test_an_unknown_image_says_what_was_tried(name: str) -> None:
    with pytest.raises(NoImage) as caught:
        images.get(FakeEngine(), Reference.parse(name))
    assert f"{name} can neither be pulled nor bootstrapped" in caught.value.what
    assert "docker images" in (caught.value.hint or "")


@pytest.mark.usefixtures("_apt")
@pytest.mark.parametrize(
    ("error", "hint"),
    [
        (CommandFailed(["mmdebstrap"], 1, tail="E: tar: No space left on device"), "free some"),
        (OSError(errno.ENOSPC, "No space left on device"), "free some space"),
    ],
)
def test_a_full_disk_leaves_no_half_an_image(
    error: Exception, hint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(argv: Sequence[str], **_: object) -> None:
        Path(argv[-2]).write_bytes(b"half")
        raise error

    monkeypatch.setattr(images, "call", full)
    fake = FakeEngine()
    with pytest.raises(ContainerError, match="No space left") as caught:
        images.get(fake, Reference.parse("debian:trixie"))
    assert hint in (caught.value.hint or "")
    assert not fake.held
    assert list(cache.directory("build", "images").iterdir()) == []


def test_what_a_daemon_leaves_mounted_is_found() -> None:
    rows = (
        "22 1 254:0 / / rw - ext4 /dev/vda rw\n"
        "90 22 0:4 net:[1] /run/e/exec/netns/default rw shared:1 - nsfs nsfs rw\n"
        "91 22 0:4 net:[2] /run/e\\040f/netns/default rw - nsfs nsfs rw\n"
    )
    assert engine.mounted(Path("/run/e"), rows) == [Path("/run/e/exec/netns/default")]
    assert engine.mounted(Path("/run/e f"), rows) == [Path("/run/e f/netns/default")]
    assert engine.mounted(Path("/run/none"), rows) == []


@pytest.mark.usefixtures("_apt")
def test_a_mirror_whose_index_is_long_past_is_told_from_a_broken_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said = (
        "I: running apt-get update...\n"
        "E: Release file for http://mirror.example/dists/sid/InRelease is expired (invalid since "
        "19d 14h 4min 20s). Updates for this repository will not be applied.\n"
        "E: apt-get update --error-on=any failed\nI: removing tempdir\n"
        "E: mmdebstrap failed to run\n"
    )

    def expired(argv: Sequence[str], **_: object) -> None:
        raise CommandFailed(argv, 25, tail=said)

    monkeypatch.setattr(images, "call", expired)
    with pytest.raises(ContainerError, match=r"InRelease is expired \(invalid since 19d") as caught:
        images.get(FakeEngine(), Reference.parse("debian:sid"))
    assert "Acquire::Check-Valid-Until" in (caught.value.hint or "")
    assert not isinstance(caught.value, NoImage)


@pytest.mark.usefixtures("_apt")
@pytest.mark.parametrize(
    ("said", "nowhere"),
    [
        ("E: Unable to correct problems, you have held broken packages.", True),
        ("E: The repository 'http://a.example sid Release' does not have a Release file.", True),
        ("E: You don't have enough free space in /var/cache/apt/archives/.", False),
        ("tar: No space left on device\nE: you have unmet dependencies", False),
        ("unshare: Operation not permitted", False),
    ],
)
def test_a_suite_is_nowhere_only_for_what_the_mirror_has(
    said: str, nowhere: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(argv: Sequence[str], **_: object) -> None:
        raise CommandFailed(argv, 25, tail=said)

    monkeypatch.setattr(images, "call", fails)
    with pytest.raises(ContainerError, match="could not be bootstrapped") as caught:
        images.get(FakeEngine(), Reference.parse("debian:sid"))
    assert isinstance(caught.value, NoImage) is nowhere


@pytest.mark.usefixtures("_apt")
@pytest.mark.parametrize(
    ("refusal", "nowhere"),
    [
        ("manifest for fedora:41 not found: manifest unknown", True),
        ("dial tcp: lookup registry-1.docker.io: no such host", True),
        ("write /var/lib/docker/tmp/x: no space left on device", False),
        ("No such image: fedora:41", False),  # it broke off
    ],
)
def test_an_image_is_nowhere_only_for_what_the_registry_has(refusal: str, nowhere: bool) -> None:
    with pytest.raises(ContainerError, match="neither be pulled nor bootstrapped") as caught:
        images.get(FakeEngine(refusal=refusal), Reference.parse("fedora:41"))
    assert isinstance(caught.value, NoImage) is nowhere


def test_a_digest_is_matched_and_never_bootstrapped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "_bootstrap", lambda *_: pytest.fail("bootstrapped a digest"))
    image = FakeImage("sha256:1", digests=(digest("a"),))
    fake = FakeEngine(held={"debian:sid": image})
    assert images.get(fake, Reference.parse(f"debian@{digest('a')}")).id == "sha256:1"
    with pytest.raises(ContainerError) as caught:
        images.get(fake, Reference.parse(f"debian:sid@{digest('b')}"))
    assert f"debian:sid has not this digest, but sha256:1 and {digest('a')}" in caught.value.what
    with pytest.raises(ContainerError, match="no image with this digest can be had") as caught:
        images.get(fake, Reference.parse(f"debian@{digest('c')}"))
    assert "by its tag alone" in (caught.value.hint or "")
    with pytest.raises(ContainerError, match="no image with this digest"):
        images.get(fake, Reference.parse(digest("d")))


def test_a_registry_that_sends_another_digest_is_not_believed() -> None:
    other = FakeImage("sha256:1", digests=(digest("b"),))
    fake = FakeEngine(registry={f"debian@{digest('a')}": other})
    with pytest.raises(ContainerError, match="no image with this digest"):
        images.get(fake, Reference.parse(f"debian@{digest('a')}"))


def test_packages_are_installed_once_by_root_with_the_network(own_cache: Path) -> None:
    fake = FakeEngine(held={"debian:sid": FakeImage("sha256:1")}, answers={"apt-get": (0, "ok\n")})
    base = images.get(fake, Reference.parse("debian:sid"))
    first = images.with_packages(fake, base, "apt", ["b", "a"])
    assert fake.commands[1] == ["apt-get", "install", "-y", "--no-install-recommends", "a", "b"]
    assert set(fake.users) == {"0:0"}
    assert [each.wanted["network_mode"] for each in fake.created] == ["host"]
    assert images.with_packages(fake, base, "apt", ["a", "b"]).id == first.id
    assert len(fake.created) == 1
    assert images.with_packages(fake, base, "apt", ["a"]).id != first.id
    assert not fake.there
    assert "+ apt-get update\nok\n" in (own_cache / "log" / "images.log").read_text()


@pytest.mark.usefixtures("own_cache")
def test_packages_that_cannot_be_installed_leave_no_image() -> None:
    answers = {"apt-get": (100, "E: Unable to locate package nosuch\n")}
    fake = FakeEngine(held={"debian:sid": FakeImage("sha256:1")}, answers=answers)
    base = images.get(fake, Reference.parse("debian:sid"))
    with pytest.raises(CommandFailed, match="Unable to locate package nosuch"):
        images.with_packages(fake, base, "apt", ["nosuch"])
    assert set(fake.held) == {"debian:sid"}
    assert not fake.there


# ---- one container


def opened(fake: FakeEngine, **options: Any) -> Any:  # noqa: ANN401
    """A container of an image that is there."""
    fake.held["x:1"] = FakeImage("sha256:x")
    return box.opened(fake, "sha256:x", **{"user": "1:1", **options})


def test_output_comes_as_lines_however_it_is_cut(tmp_path: Path) -> None:
    log, lines = tmp_path / "log", list[str]()
    with opened(FakeEngine()) as made:
        script = "printf 'grüße aus\\ndem Behälter\\nohne Ende'; echo wehe >&2; exit 3"
        done = made.call(
            ["sh", "-c", script], log=log, capture=True, check=False, on_line=lines.append
        )
        assert done.returncode == 3
        assert done.stdout.splitlines()[:2] == ["grüße aus", "dem Behälter"]
        assert {"grüße aus", "dem Behälter", "ohne Ende", "wehe"} == set(lines)
        assert "wehe" in log.read_text()
        with pytest.raises(CommandFailed) as caught:
            made.call(["sh", "-c", script], log=log)
        assert caught.value.returncode == 3
        assert "wehe" in caught.value.tail
        assert caught.value.log == log
        # without a log, what is captured is the output alone
        assert "wehe" not in made.call(["sh", "-c", script], capture=True, check=False).stdout


def test_a_sealed_container_has_no_privileges_network_or_writable_root(tmp_path: Path) -> None:
    fake = FakeEngine()
    mounts = [box.Mount(path=tmp_path), box.Mount(path=tmp_path / "w", writable=True)]
    with opened(fake, mounts=mounts, sealed=True):
        wanted = fake.created[0].wanted
    assert wanted["cap_drop"] == ["ALL"]
    assert wanted["security_opt"] == ["no-new-privileges"]
    assert wanted["read_only"] is True
    assert wanted["network_mode"] == "none"
    assert wanted["user"] == "1:1"
    assert [(m["Target"], m["ReadOnly"]) for m in wanted["mounts"]] == [
        (str(tmp_path), True), (str(tmp_path / "w"), False),
    ]  # fmt: skip
    assert not wanted.get("privileged")


@pytest.mark.parametrize("end", [KeyboardInterrupt, SystemExit, CommandFailed])
def test_however_it_ends_the_container_is_removed(end: type[BaseException]) -> None:
    error = CommandFailed(["x"], 1) if end is CommandFailed else end()
    fake = FakeEngine()

    def interrupt(_argv: list[str]) -> tuple[int, str]:
        assert len(fake.there) == 1
        raise error

    fake.on_exec = interrupt
    with pytest.raises(end), opened(fake) as made:
        made.call(["sleep", "1000"])
    assert not fake.there


def test_a_container_that_vanishes_is_no_success(tmp_path: Path) -> None:
    fake = FakeEngine()
    fake.on_exec = lambda _argv: (None, "half a line")
    with (
        opened(fake) as made,
        pytest.raises(ContainerError, match="ended while make ran") as caught,
    ):
        made.call(["make"], log=tmp_path / "log")
    assert caught.value.log == tmp_path / "log"


def test_interrupted_at_the_start_no_container_is_left() -> None:
    fake = FakeEngine()

    def interrupt(_container: object) -> None:
        raise KeyboardInterrupt

    fake.on_start = interrupt
    with pytest.raises(KeyboardInterrupt), opened(fake):
        pytest.fail("it was not started")
    assert not fake.there


def test_an_engine_without_room_says_so() -> None:
    fake = FakeEngine()

    def full(_container: object) -> None:
        status = "500"
        raise docker.errors.APIError(status, explanation="mkdir: no space left on device")

    fake.on_start = full
    with pytest.raises(ContainerError, match="no space left on device") as caught, opened(fake):
        pass
    assert "free some space" in (caught.value.hint or "")
    assert not fake.there


def test_a_name_that_is_in_use_costs_nobody_a_container() -> None:
    """As where two jobs, each in a PID namespace of its own, share an engine."""
    fake, names = FakeEngine(), list[str]()

    def taken(name: str) -> None:
        names.append(name)
        if len(names) == 1:
            fake.containers.create("sha256:x", name=name, labels={})

    fake.on_create = taken
    with pytest.raises(ContainerError, match="the name is in use"), opened(fake):
        pytest.fail("it was not created")
    assert [each.name for each in fake.there.values()] == [names[0]]


def test_names_are_not_made_of_the_pid_alone() -> None:
    names = []
    for _ in range(2):
        fake = FakeEngine()
        with opened(fake):
            names.append(fake.created[0].name)
    first, second = (name.removeprefix(f"ptrack-{os.getpid()}-") for name in names)
    assert first != second
    assert len(first) == len(second) == 16


def test_ctrl_c_waits_until_what_is_created_is_known() -> None:
    fake = FakeEngine()

    def interrupted(_name: str) -> None:
        signal.raise_signal(signal.SIGINT)

    fake.on_create = interrupted
    with pytest.raises(KeyboardInterrupt), opened(fake):
        pytest.fail("it was not started")
    assert len(fake.created) == 1
    assert not fake.there


def test_what_killed_runs_of_this_machine_left_is_swept(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeEngine()
    with subprocess.Popen(["true"]) as ended:
        pass
    here = box.owner()
    boot, space, me, started = here.split()
    owners = {
        "killed": f"{boot} {space} {ended.pid} 1",
        "another process of that number": f"{boot} {space} {me} 1",
        "ours": here,
        "another namespace's": f"{boot} pid:[1] {ended.pid} 1",
        "of a host of the same name": f"another-boot {space} {ended.pid} 1",
        "ended with another boot": f"another-boot {space} {me} {started}",
        "hidden": f"{boot} {space} 1 1",
        "not like ours": "x",
    }
    fake.held["x:1"] = FakeImage("sha256:x")
    for name, owner in owners.items():
        made = fake.containers.create("x:1", name=name, labels={box.OWNER: owner})
        made.status = "exited" if name.startswith("ended") else "running"
    fake.containers.create("x:1", name="somebody's", labels={})
    real = box._owner

    def visible(pid: int) -> str:
        if pid == 1:
            raise FileNotFoundError
        return real(pid)

    monkeypatch.setattr(box, "_owner", visible)
    box.sweep(fake)
    assert {each.name for each in fake.there.values()} == {
        "ours", "another namespace's", "of a host of the same name", "hidden", "not like ours",
        "somebody's",
    }  # fmt: skip


# ---- the host's mirror


@pytest.fixture
def provider(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> distro.DistroProvider:
    """Apt of a bookworm host, whose mirror has what the files below `mirror` say."""
    etc = tmp_path / "etc"
    (etc / "sources.list.d").mkdir(parents=True)
    (etc / "sources.list.d" / "debian.sources").write_text(
        f"Types: deb\nURIs: file:{tmp_path}/mirror/debian\nSuites: bookworm bookworm-updates\n"
        "Components: main\nSigned-By: /nonexistent/debian.gpg\n\n"
        f"Types: deb\nURIs: file:{tmp_path}/mirror/security\nSuites: bookworm-security\n"
        "Components: main\n"
    )
    release = tmp_path / "os-release"
    release.write_text("ID=debian\nVERSION_CODENAME=bookworm\n")
    for name in ("debian/dists/trixie", "debian/dists/trixie-updates", "debian/dists/sid",
                 "debian/dists/bullseye", "security/dists/trixie-security"):  # fmt: skip
        (tmp_path / "mirror" / name).mkdir(parents=True)
        (tmp_path / "mirror" / name / "InRelease").write_text("signed")
    helper = tmp_path / "helper"
    helper.write_text('#!/bin/sh\ncp "${2#file:}" "$3"\n')
    helper.chmod(0o755)
    monkeypatch.setattr(distro, "APT_HELPER", helper)
    monkeypatch.setattr(shutil, "which", lambda name, **_: str(helper) if "/" in name else name)
    return distro.DistroProvider(etc=etc, release=release)


def test_sources_are_those_of_the_host_s_mirror_for_another_suite(
    provider: distro.DistroProvider,
) -> None:
    main, security = provider.binary_sources("debian", "trixie")
    assert "Types: deb\n" in main
    assert "Suites: trixie trixie-updates\n" in main
    assert "/mirror/debian\n" in main
    assert "Signed-By: /nonexistent/debian.gpg" in main
    assert "Suites: trixie-security\n" in security
    (sid,) = provider.binary_sources("debian", "sid")
    assert "Suites: sid\n" in sid
    (bullseye,) = provider.binary_sources("debian", "bullseye")  # neither updates nor security
    assert "Suites: bullseye\n" in bullseye


@pytest.mark.parametrize(
    ("distribution", "suite", "says"),
    [("debian", "potato", "has no suite potato"), ("ubuntu", "noble", "not for ubuntu")],
)
def test_what_the_mirror_lacks_is_said(
    provider: distro.DistroProvider, distribution: str, suite: str, says: str
) -> None:
    with pytest.raises(SourceError, match=says):
        provider.binary_sources(distribution, suite)
