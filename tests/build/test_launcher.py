"""./nox: from a machine with nothing to nox with the locked tools."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.build.conftest import REPO

TOOLS = (
    "sh",
    "cat",
    "cp",
    "dirname",
    "id",
    "mktemp",
    "mkdir",
    "rm",
    "tail",
    "env",
    "flock",
    "ls",
    "mv",
)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the launcher, with a lock of its own and a noxfile that only greets."""
    copy = tmp_path / "check out"
    (copy / "requirements").mkdir(parents=True)
    shutil.copy(REPO / "nox", copy)
    (copy / "requirements" / "lock.txt").write_text("locked\n")
    (copy / "noxfile.py").write_text("")
    return copy


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A directory of programs, without any Python."""
    path = tmp_path / "bin"
    path.mkdir()
    for name in TOOLS:
        if found := shutil.which(name):
            (path / name).symlink_to(found)
    return path


def program(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def start(
    checkout: Path, bare: Path, *words: str, cwd: Path | None = None, **env: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["/bin/sh", str(checkout / "nox"), *words],
        cwd=cwd or checkout, text=True, capture_output=True, check=False, timeout=120,
        env={"PATH": str(bare), "TMPDIR": "/tmp", **env}, stdin=subprocess.DEVNULL,
    )  # fmt: skip


def ready(checkout: Path) -> None:
    """A .venv as the launcher leaves it."""
    program(checkout / ".venv/bin/python", 'echo "python: $*"; echo "mode: $NOX_SCRIPT_MODE"')
    program(checkout / ".venv/bin/nox", "")
    (checkout / ".venv/pyvenv.cfg").write_text(f"executable = {checkout}/.venv/bin/python\n")
    shutil.copy(checkout / "requirements" / "lock.txt", checkout / ".venv" / ".lock")


def test_with_everything_there_it_only_starts_nox(
    checkout: Path, bare: Path, tmp_path: Path
) -> None:
    ready(checkout)
    done = start(checkout, bare, "-s", "two words", cwd=tmp_path, PYTHONPATH="/elsewhere")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        f"python: -m nox -f {checkout}/noxfile.py -s two words",
        "mode: none",
    ]
    assert done.stderr == ""


def test_another_lock_makes_the_tools_anew(checkout: Path, bare: Path) -> None:
    ready(checkout)
    (checkout / "requirements" / "lock.txt").write_text("== nothing\n")
    (bare / "python3").symlink_to(sys.executable)
    done = start(checkout, bare)
    assert done.returncode == 1
    assert "could not be installed" in done.stderr
    assert "next:" in done.stderr
    assert not (checkout / ".venv").exists(), "half a .venv must not be taken for whole"


@pytest.mark.parametrize("found", [True, False])
def test_another_python_under_the_same_name_is_asked_for_the_tools(
    checkout: Path, bare: Path, tmp_path: Path, found: bool
) -> None:
    """As after the system's upgrade to another minor, which leaves the old one beside it."""
    ready(checkout)
    system = tmp_path / "usr bin"
    said = 'echo "python: $*"; echo "mode: $NOX_SCRIPT_MODE"'
    asked = f'case "$*" in *find_spec*) exit {0 if found else 1} ;; esac; '
    program(system / "python3.11", f'case "$*" in -c*) exit 99 ;; esac; {said}')
    program(system / "python3.13", asked + said)
    (system / "python3").symlink_to("python3.11")
    place = checkout / ".venv"
    (place / "bin/python").unlink()
    (place / "bin/python").symlink_to(system / "python3")
    (place / "pyvenv.cfg").write_text(
        f"home = {system}\nversion = 3.11.2\nexecutable = {system}/python3.11\n"
    )
    done = start(checkout, bare)
    assert done.stdout.endswith("mode: none\n"), "the one that it was made with is not asked"
    (system / "python3").unlink()
    (system / "python3").symlink_to("python3.13")
    (bare / "python3").symlink_to(sys.executable)
    (checkout / "requirements" / "lock.txt").write_text("== nothing\n")
    shutil.copy(checkout / "requirements" / "lock.txt", place / ".lock")
    done = start(checkout, bare)
    assert ("mode: none" in done.stdout) == found
    assert ("with the locked tools" in done.stderr) != found


@pytest.mark.parametrize("how", ["--symlinks", "--copies"])
def test_what_python_makes_is_ready(checkout: Path, bare: Path, how: str) -> None:
    place = checkout / ".venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", how, place], check=True)
    (tools,) = place.glob("lib/python3*/site-packages")
    (tools / "nox.py").write_text("")
    program(place / "bin/nox", "")
    shutil.copy(checkout / "requirements" / "lock.txt", place / ".lock")
    done = start(checkout, bare, PTRACK_TOOLS_ONLY="1")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_an_old_python_is_not_taken(checkout: Path, bare: Path) -> None:
    program(bare / "python3", "exit 1")
    if Path("/usr/bin/python3").exists():
        script = checkout / "nox"
        script.write_text(script.read_text().replace("/usr/bin/python3", "/nonexistent/python3"))
    done = start(checkout, bare)
    assert done.returncode == 1
    assert "no Python 3.11 or newer" in done.stderr
    assert "Debian's names" in done.stderr


@pytest.mark.parametrize("manager", ["apt-get", "dnf"])
def test_python_without_venv_is_named_in_one_line(checkout: Path, bare: Path, manager: str) -> None:
    program(bare / "python3", 'case "$*" in *venv*|*pip*) exit 1 ;; *print*) echo 3.11 ;; esac')
    program(bare / manager, "exit 0")
    done = start(checkout, bare, PTRACK_NO_INSTALL="1")
    assert done.returncode == 1
    line = done.stderr.splitlines()[-1]
    assert line.startswith(f"next: sudo {manager} ")
    assert ("python3.11-venv" if manager == "apt-get" else "python3-pip") in line


@pytest.mark.skipif(os.geteuid() != 0, reason="only root installs")
def test_root_gets_it_installed(checkout: Path, bare: Path, tmp_path: Path) -> None:
    log = tmp_path / "apt.log"
    program(bare / "python3", 'case "$*" in *venv*|*pip*) exit 1 ;; *print*) echo 3.11 ;; esac')
    # an update that fails, of one archive of many, still may have brought what is asked for
    program(bare / "apt-get", f'echo "apt-get $*" >> {log}; exit 100')
    program(bare / "dpkg", f'echo "dpkg $*" >> {log}; exit 2')  # as where another one runs
    done = start(checkout, bare, PTRACK_NO_INSTALL="0")
    assert done.returncode == 1
    assert log.read_text().splitlines() == [
        "dpkg --configure -a",
        "apt-get -o DPkg::Lock::Timeout=600 update",
        "apt-get -o DPkg::Lock::Timeout=600 install -y python3.11-venv",
    ]
    assert "could not be installed" in done.stderr
    assert done.stderr.endswith("next: apt-get update && apt-get install -y python3.11-venv\n")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root installs")
def test_who_else_fetches_lists_is_waited_for(checkout: Path, bare: Path, tmp_path: Path) -> None:
    """As at a machine's first start. apt waits for dpkg's lock by itself, not for that of lists."""
    log, held = tmp_path / "apt.log", tmp_path / "held"
    held.touch()
    program(bare / "python3", 'case "$*" in *venv*|*pip*) exit 1 ;; *print*) echo 3.11 ;; esac')
    lock = "E: Could not get lock /var/lib/apt/lists/lock. It is held by process 1 (apt-get)"
    says = f'case "$*" in *update) [ ! -e {held} ] || echo "{lock}" ;; esac'
    program(bare / "apt-get", f'echo "$*" >> {log}; {says}; exit 100')
    program(bare / "dpkg", "")
    program(bare / "sleep", f'echo "sleeps" >> {log}; rm {held}')
    done = start(checkout, bare, PTRACK_NO_INSTALL="0")
    told = [line.split()[-1] for line in log.read_text().splitlines()]
    assert told == ["update", "sleeps", "update", "python3.11-venv"]
    assert "could not be installed" in done.stderr


def python_that_fails(bare: Path, at: str, said: str) -> None:
    """A Python that makes environments up to `venv`, `ensurepip` or `pip`, which says this."""
    fails = f"echo '{said}' >&2; exit 1"
    program(bare / "inner", f'[ "$2" != {at} ] || {{ {fails}; }}; [ "$2" != ensurepip ] || exit 0')
    made = f'/bin/mkdir -p "$4/bin"; /bin/cp {shlex.quote(str(bare))}/inner "$4/bin/python"'
    makes = fails if at == "venv" else made
    program(bare / "python3", f'[ "$1 $2" != "-m venv" ] || {{ {makes}; }}')


@pytest.mark.parametrize("at", ["venv", "ensurepip", "pip"])
def test_a_full_disk_is_told_from_a_network_that_is_not_there(
    checkout: Path, bare: Path, at: str
) -> None:
    python_that_fails(bare, at, "OSError: [Errno 28] No space left on device")
    done = start(checkout, bare)
    assert done.returncode == 1
    assert "there is no room for" in done.stderr
    assert "next: free some space" in done.stderr
    assert "package index" not in done.stderr


@pytest.mark.parametrize("at", ["venv", "ensurepip", "pip"])
def test_what_fails_is_shown_with_a_next_step(checkout: Path, bare: Path, at: str) -> None:
    python_that_fails(bare, at, "because")
    done = start(checkout, bare)
    assert done.returncode == 1
    assert "because" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("next: s")
    assert not (checkout / ".venv").exists()


def test_tools_only(checkout: Path, bare: Path) -> None:
    ready(checkout)
    done = start(checkout, bare, PTRACK_TOOLS_ONLY="1")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_place_of_its_own_for_the_tools(checkout: Path, bare: Path, tmp_path: Path) -> None:
    ready(checkout)
    (checkout / ".venv").rename(tmp_path / "tools")
    done = start(checkout, bare, PTRACK_VENV=str(tmp_path / "tools"))
    assert done.returncode == 0, done.stderr
    assert "mode: none" in done.stdout


@pytest.mark.parametrize("lock", ["== nothing\n", ""])
def test_a_place_with_something_else_in_it_is_left_alone(
    checkout: Path, bare: Path, tmp_path: Path, lock: str
) -> None:
    """What is not our making is not removed, whether the tools could be installed or not."""
    (checkout / "requirements" / "lock.txt").write_text(lock)
    (bare / "python3").symlink_to(sys.executable)
    home = tmp_path / "home"
    home.mkdir()
    (home / ".letters").write_text("dear")
    done = start(checkout, bare, PTRACK_TOOLS_ONLY="1", PTRACK_VENV=str(home))
    assert (home / ".letters").read_text() == "dear"
    assert done.returncode == 1
    said, following = done.stderr.splitlines()
    assert said == f"nox: {home} has something in it and is no environment of Python's"
    assert following.startswith("next: ")
    assert "PTRACK_VENV" in following
    assert {path.name for path in tmp_path.iterdir()} == {"bin", "check out", "home"}


def test_half_of_our_own_place_is_made_anew(checkout: Path, bare: Path) -> None:
    """As an interrupted `rm -rf .venv` leaves it: files, and no pyvenv.cfg."""
    (bare / "python3").symlink_to(sys.executable)
    for place in (".venv/lib/python3.11", ".venv.ptrack-old.4711/lib"):
        (checkout / place).mkdir(parents=True)
        (checkout / place / "left.py").write_text("")
    (checkout / "requirements" / "lock.txt").write_text("== nothing\n")
    done = start(checkout, bare, PTRACK_TOOLS_ONLY="1")
    assert "has something in it" not in done.stderr
    assert "could not be installed" in done.stderr
    left = {path.name for path in checkout.iterdir()}
    assert left <= {"nox", "noxfile.py", "requirements", ".venv.lock"}


def test_an_environment_is_put_aside_before_it_is_removed(
    checkout: Path, bare: Path, tmp_path: Path
) -> None:
    """So that an interruption leaves nothing under its name."""
    (checkout / "requirements" / "lock.txt").write_text("== nothing\n")
    (bare / "python3").symlink_to(sys.executable)
    tools = tmp_path / "tools"
    (tools / "lib").mkdir(parents=True)
    (tools / "pyvenv.cfg").write_text("home = /usr/bin\n")
    (tmp_path / "tools.old.2025").mkdir()  # somebody's own
    remove = shutil.which("rm")
    (bare / "rm").unlink()
    ends = f'"-rf {tools}" | "-rf {tools}".ptrack-old.[0-9]*) kill -INT $PPID'
    program(bare / "rm", f'case "$*" in {ends} ;; *) exec {remove} "$@" ;; esac')
    start(checkout, bare, PTRACK_TOOLS_ONLY="1", PTRACK_VENV=str(tools))
    assert not tools.exists()
    assert (tmp_path / "tools.old.2025").is_dir()


def test_an_empty_place_is_taken(checkout: Path, bare: Path, tmp_path: Path) -> None:
    (checkout / "requirements" / "lock.txt").write_text("")
    (bare / "python3").symlink_to(sys.executable)
    (tmp_path / "tools").mkdir()
    done = start(checkout, bare, PTRACK_TOOLS_ONLY="1", PTRACK_VENV=str(tmp_path / "tools"))
    assert "has something in it" not in done.stderr
    assert "with the locked tools" in done.stderr


@pytest.mark.network
def test_the_real_lock_installs(tmp_path: Path) -> None:
    done = subprocess.run(
        [REPO / "nox", "-l"], text=True, capture_output=True, check=False, timeout=600,
        env={**os.environ, "PTRACK_VENV": str(tmp_path / "venv")}, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "demo-17" in done.stdout
