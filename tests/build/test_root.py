"""Fresh roots: what is entered knows nothing of this machine, and leaves nothing."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ptrack_build import REPO, cache, host, run
from ptrack_build.container import NoImage, Reference, box, left, root
from ptrack_build.container import image as images
from ptrack_build.container.base import ContainerError
from ptrack_build.errors import CommandFailed, HostError

if TYPE_CHECKING:
    from collections.abc import Sequence

BOOKWORM = Reference.parse("debian:bookworm")
pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture
def _may(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "ensure", lambda _needs: None)
    try:
        root.check()
    except HostError as error:
        pytest.skip(error.what)


def system(place: Path) -> list[box.Mount]:
    """A system of this machine's programs: what to mount there."""
    for name in ("bin", "lib", "lib64", "sbin"):
        (place / name).symlink_to(f"usr/{name}")
    for name in ("dev", "etc", "proc", "sys", "tmp", "usr"):
        (place / name).mkdir(parents=True, exist_ok=True)
    return [box.Mount(path=Path("/usr"))]


@pytest.fixture
def tree(monkeypatch: pytest.MonkeyPatch) -> root.Tree:
    """One that takes no time to make."""

    def bootstrap(_reference: Reference, target: Path) -> None:
        before = os.umask(0o022)  # as mmdebstrap has it
        system(target)
        os.umask(before)

    monkeypatch.setattr(images, "bootstrap", bootstrap)
    return root.base(BOOKWORM)


# ---- what runs


@pytest.mark.usefixtures("_may")
@pytest.mark.skipif(not Path("/usr/bin/sh").exists(), reason="needs a merged /usr")
def test_commands_are_run_there_and_nowhere_else(
    tree: root.Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "of the caller")
    seen, wanted = tmp_path / "seen", tmp_path / "wanted"
    seen.mkdir()
    wanted.mkdir()
    (seen / "file").write_text("there")
    mounts = [box.Mount(path=Path("/usr")), box.Mount(path=seen)]
    mounts.append(box.Mount(path=wanted, writable=True))
    with root.opened(tree, mounts=mounts) as entered:

        def said(script: str, **how: str) -> str:
            argv = ["sh", "-c", script]
            return entered.call(argv, capture=True, check=False, env=how).stdout

        assert "work" not in said("ls /")
        assert said(f"cat {seen}/file; echo new > {wanted}/file; echo $SECRET$WORD", WORD="w") == (
            "therew\n"
        )
        assert (wanted / "file").read_text() == "new\n"
        assert said(f"echo new > {seen}/file || echo refused") == "refused\n"
        assert said("echo 1 > /proc/sys/kernel/sysrq || echo refused") == "refused\n"
        assert said("ls /sys/class/net") == "lo\n"
        assert said("echo x > /etc/new; cat /etc/new; id -u; echo $PATH") == f"x\n0\n{box.PATH}\n"
        where = entered.call(["pwd"], cwd=Path("/etc"), capture=True).stdout
        assert where == "/etc\n"
        with pytest.raises(CommandFailed, match="ended with status 3"):
            entered.call(["sh", "-c", "exit 3"])
    assert not (tree.path / "etc/new").exists()
    assert not list((cache.root() / "build").glob(".root.*"))


CONNECTS = """use IO::Socket::INET;
my $server = IO::Socket::INET->new(LocalAddr => '127.0.0.1', Listen => 1) or die $@;
my %to = (PeerAddr => '127.0.0.1', PeerPort => $server->sockport);
print 'connected' if IO::Socket::INET->new(%to);
"""


@pytest.mark.usefixtures("_may")
@pytest.mark.parametrize("network", [False, True])
def test_its_network_is_a_loopback_of_its_own_unless_it_has_the_machine_s(
    network: bool, tree: root.Tree
) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as here,
        root.opened(tree, network=network, mounts=[box.Mount(path=Path("/usr"))]) as entered,
    ):
        port = here.getsockname()[1]
        argv = ["bash", "-c", f": < /dev/tcp/127.0.0.1/{port}"]
        assert (entered.call(argv, check=False, capture=True).returncode == 0) is network
        assert entered.call(["perl", "-e", CONNECTS], capture=True).stdout == "connected"


@pytest.mark.usefixtures("_may")
@pytest.mark.parametrize("error", [KeyboardInterrupt, CommandFailed])
def test_what_was_started_there_ends_with_it(
    error: type[BaseException], tree: root.Tree, tmp_path: Path
) -> None:
    """Also a daemon; and one that ends before is taken leave of."""
    mounts = [box.Mount(path=Path("/usr")), box.Mount(path=tmp_path, writable=True)]
    daemon = f"(setsid sh -c 'while sleep 0.05; do date +%N > {tmp_path}/beat; done' &) > /dev/null"

    def used() -> None:
        with root.opened(tree, mounts=mounts) as entered:
            entered.call(["sh", "-c", daemon])
            entered.call(["sh", "-c", "(setsid true &)"])
            time.sleep(0.3)
            # the daemon's children come and go meanwhile
            shown = ["sh", "-c", "cat /proc/[0-9]*/stat 2> /dev/null || :"]
            states = entered.call(shown, capture=True).stdout
            assert "1 (perl) S 0 " in states
            assert ") Z 1 " not in states
            assert (tmp_path / "beat").exists()
            raise KeyboardInterrupt if error is KeyboardInterrupt else CommandFailed(["x"], 1)

    with pytest.raises(error):
        used()
    beat = (tmp_path / "beat").read_text()
    time.sleep(0.3)
    assert (tmp_path / "beat").read_text() == beat
    assert str(cache.root() / "build") not in Path("/proc/mounts").read_text()
    assert not list((cache.root() / "build").glob(".root.*"))


@pytest.mark.usefixtures("_may")
def test_its_end_is_waited_for(tree: root.Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its first process is gone only after all others, which may be writing."""
    ended: list[bool] = []
    monkeypatch.setattr(
        subprocess.Popen, "kill", lambda process: ended.append(process.returncode is not None)
    )
    with root.opened(tree, mounts=[box.Mount(path=Path("/usr"))]) as entered:
        pid = entered.pid
    assert ended == [True]
    assert not Path(f"/proc/{pid}").exists()


#: Opens a tree and waits for its end.
OPENS = """import sys, time
from pathlib import Path
from ptrack_build.container import Reference, box, root
tree = root.Tree(reference=Reference.parse("debian:bookworm"), id=sys.argv[1], how="")
with root.opened(tree, mounts=[box.Mount(path=Path("/usr"))]) as entered:
    entered.call(["sh", "-c", "(setsid sleep 300 &) > /dev/null"])
    print(entered.pid, flush=True)
    time.sleep(300)
"""


@pytest.mark.usefixtures("_may")
def test_it_ends_with_a_session_that_is_killed_and_the_next_one_removes_its_files(
    tree: root.Tree,
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", OPENS, tree.id], cwd=REPO, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PTRACK_CACHE": str(cache.root())},
    )  # fmt: skip
    assert process.stdout is not None
    pid = int(process.stdout.readline())
    try:
        process.kill()
        process.communicate()
        until = time.monotonic() + 20
        while Path(f"/proc/{pid}").exists() and time.monotonic() < until:
            time.sleep(0.05)
        assert not Path(f"/proc/{pid}").exists()
    finally:
        if Path(f"/proc/{pid}").exists():
            os.kill(pid, signal.SIGKILL)
    half = tree.path.with_name(f".{tree.id}.4711.part")
    half.mkdir()
    past = time.time() - cache.STALE_SECONDS - 1
    os.utime(half, (past, past))
    (old,) = (cache.root() / "build").glob(".root.*")
    assert cache.SCRATCH.fullmatch(old.name)
    with root.opened(tree, mounts=[box.Mount(path=Path("/usr"))]):
        (new,) = (cache.root() / "build").glob(".root.*")
        assert new != old
        left.sweep(new.parent, root.KIND)
        assert new.exists()
    assert not half.exists()


def test_scratch_of_others_is_swept_when_it_is_a_day_old_and_ours_when_its_owner_is_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Numbers of processes say nothing of those in another PID namespace, or on another machine."""
    folder = cache.directory("build")
    gone = box.owner().split()
    gone[3] = "1"  # it had our number before us
    for whose in (gone, ["elsewhere", *gone[1:]], [gone[0], "pid:[1]", *gone[2:]]):
        with monkeypatch.context() as patched:
            patched.setattr(box, "owner", lambda whose=whose: " ".join(whose))
            (folder / left.name("root")).mkdir()
    left.sweep(folder, "root")
    others = [*folder.iterdir()]
    assert len(others) == 2
    past = time.time() - cache.STALE_SECONDS - 1
    os.utime(others[0], (past, past))
    left.sweep(folder, "root")
    assert [*folder.iterdir()] == others[1:]


def test_a_tree_that_a_killed_session_left_half_made_is_swept(tree: root.Tree) -> None:
    half = tree.path.with_name(f".{tree.id}.4711.part")
    half.mkdir()
    past = time.time() - cache.STALE_SECONDS - 1
    os.utime(half, (past, past))
    os.utime(tree.path, (0, 0))
    root.base(BOOKWORM)
    assert [path.name for path in half.parent.iterdir()] == [tree.id]


@pytest.mark.usefixtures("_may")
def test_a_system_that_cannot_be_entered_says_why(tree: root.Tree) -> None:
    (tree.path / "proc").rmdir()
    with (
        pytest.raises(ContainerError, match=r"cannot be entered: mount: .*/proc"),
        root.opened(tree),
    ):
        pytest.fail("entered")


@pytest.mark.usefixtures("_may")
def test_nobody_but_root_gets_at_its_programs_from_outside_and_all_do_inside(
    request: pytest.FixtureRequest,
) -> None:
    """A program that makes anybody root is in every system, and is not kept up to date here."""
    before = os.umask(0o077)
    try:
        tree: root.Tree = request.getfixturevalue("tree")
        mounts = [box.Mount(path=Path("/usr"))]
        with root.opened(tree, network=True, mounts=mounts) as entered:
            (place,) = (cache.root() / "build").glob(".root.*")
            assert place.stat().st_mode & 0o777 == 0o700
            argv = ["setpriv", "--reuid=65534", "--clear-groups", "cat", "/etc/hosts"]
            assert "localhost" in entered.call(argv, capture=True).stdout
            names = place / "system/etc"
            assert (names / "hosts").stat().st_mode & 0o777 == 0o644
            assert (names / "resolv.conf").stat().st_mode & 0o777 == 0o644
            assert entered.call(["sh", "-c", "umask"], capture=True).stdout == "0022\n"
            made = "mkdir /made; stat -c %a /made /dev/shm /dev/null"
            assert entered.call(["sh", "-c", made], capture=True).stdout == "755\n1777\n666\n"
            assert "Umask:\t0022\n" in Path(f"/proc/{entered.pid}/status").read_text()
    finally:
        os.umask(before)
    assert tree.path.parent.stat().st_mode & 0o777 == 0o700


# ---- what it takes


def test_only_root_makes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(HostError, match="only root can make a fresh system") as caught:
        root.check()
    assert caught.value.hint


def test_where_there_are_no_namespaces_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(root, "PROGRAMS", ())
    refusal = ["sh", "-c", "echo unshare: Operation not permitted; exit 1"]
    monkeypatch.setattr(root, "call", lambda _argv, **how: run.call(refusal, **how))
    with pytest.raises(HostError, match=r"nobody have namespaces .*: unshare: Operation not perm"):
        root.check()


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(root, "PROGRAMS", ("sh", "no-such-program"))
    with pytest.raises(HostError, match="there is no no-such-program"):
        root.check()


# ---- what is kept


def test_a_tree_is_made_once_and_anew_after_two_weeks(
    tree: root.Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (tree.path / "etc/hosts").read_text().startswith("127.0.0.1 localhost\n")
    monkeypatch.setattr(images, "bootstrap", lambda *_: pytest.fail("made again"))
    assert root.base(BOOKWORM).id == tree.id
    past = time.time() - images.RENEW_SECONDS - 1
    os.utime(tree.path, (past, past))
    monkeypatch.setattr(images, "bootstrap", lambda _reference, place: system(place))
    root.base(BOOKWORM)
    assert tree.path.stat().st_mtime > past


def test_a_suite_that_cannot_be_had_is_what_the_machine_lacks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuses(_reference: Reference, place: Path) -> None:
        (place / "half").mkdir()
        what = "no such suite"
        raise NoImage(what, hint="another")

    monkeypatch.setattr(images, "bootstrap", refuses)
    with pytest.raises(HostError, match="no such suite") as caught:
        root.base(BOOKWORM)
    assert caught.value.hint == "another"
    assert list((cache.root() / "root").iterdir()) == []


class Recorded:
    """Stands for a system that runs: what it was asked."""

    def __init__(self) -> None:
        self.commands: list[list[str]] = []
        self.fails = ""

    def call(self, argv: Sequence[str], **_how: object) -> None:
        self.commands.append([*argv])
        if self.fails in argv:
            raise CommandFailed(argv, 100)


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> Recorded:
    """No process is started."""
    made = Recorded()

    class Running:
        def __init__(self, *_: object, **how: object) -> None:
            assert how["network"] is True

        def __enter__(self) -> Recorded:
            return made

        def __exit__(self, *_: object) -> None:
            pass

    monkeypatch.setattr(root, "_running", Running)
    return made


def test_packages_are_installed_into_a_copy_once_for_each_list(
    tree: root.Tree, recorded: Recorded
) -> None:
    more = root.with_packages(tree, ["b", "a"], kept=["p=1"], folder="/var/cache/p")
    assert recorded.commands == [
        ["apt-get", "update"],
        ["sh", "-c", 'mkdir -p "$0" && cd "$0" && apt-get download "$@"', "/var/cache/p", "p=1"],
        ["apt-get", "install", "-y", "--no-install-recommends", "a", "b"],
        ["apt-get", "clean"],
    ]
    assert more.path != tree.path
    assert (more.path / "etc/hosts").is_file()
    assert root.with_packages(tree, ["a", "b"], kept=["p=1"], folder="/var/cache/p") == more
    assert len(recorded.commands) == 4
    later = time.time() + 60
    os.utime(tree.path, (later, later))  # made anew: what was made of the one before is old
    root.with_packages(tree, ["a", "b"], kept=["p=1"], folder="/var/cache/p")
    assert len(recorded.commands) == 8


def test_what_cannot_be_installed_is_not_kept(tree: root.Tree, recorded: Recorded) -> None:
    recorded.fails = "a"
    with pytest.raises(CommandFailed):
        root.with_packages(tree, ["a"])
    assert [path.name for path in (cache.root() / "root").iterdir()] == [tree.id]
