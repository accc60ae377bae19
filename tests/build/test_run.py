"""Commands: shown, logged, and never left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from ptrack_build.errors import CommandFailed
from ptrack_build.run import beside, call
from tests.build.conftest import REPO, Script


def gone(pid: int) -> bool:
    """Whether a process has ended, within a few seconds."""
    for _ in range(100):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        state = Path(f"/proc/{pid}/stat")
        if not state.exists() or ") Z" in state.read_text():
            return True
        time.sleep(0.05)
    return False


def test_shows_the_command_and_returns_its_output(capsys: pytest.CaptureFixture[str]) -> None:
    done = call(["echo", "two words"], capture=True)
    assert (done.returncode, done.stdout) == (0, "two words\n")
    assert capsys.readouterr().out == "+ echo 'two words'\n"


def test_quiet_shows_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    call(["true"], quiet=True)
    assert capsys.readouterr().out == ""


def test_log_gets_both_streams_and_is_appended_to(tmp_path: Path) -> None:
    log = tmp_path / "deep" / "x.log"
    for word in ("one", "two"):
        call(["sh", "-c", f"echo {word}; echo err >&2"], log=log, quiet=True)
    text = log.read_text()
    assert text.count("\nerr\n") == 2
    assert text.index("one") < text.index("two")


def test_stdin_environment_and_directory(tmp_path: Path) -> None:
    done = call(
        ["sh", "-c", 'cat; echo "$WORD"; pwd'], stdin="in\n", env={"WORD": "out"}, cwd=tmp_path,
        capture=True, quiet=True,
    )  # fmt: skip
    assert done.stdout == f"in\nout\n{tmp_path}\n"


def test_there_is_no_stdin_unless_given() -> None:
    assert call(["cat"], capture=True, quiet=True, timeout=10).stdout == ""


def test_a_failure_has_the_status_the_log_and_the_last_lines(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    with pytest.raises(CommandFailed) as caught:
        call(["sh", "-c", "seq 100; exit 3"], log=log, quiet=True)
    error = caught.value
    assert error.returncode == 3
    assert error.log == log
    assert error.tail.splitlines()[-1] == "100"
    assert "1\n2\n3\n" not in error.tail
    assert "status 3" in str(error)
    assert str(log) in str(error)


def test_of_a_long_complaint_the_end_is_shown() -> None:
    said = "\n".join(f"error: unable to write file {number}" for number in range(938))
    error = CommandFailed(["git", "checkout-index"], 1, tail=said)
    shown = str(error).splitlines()
    assert len(shown) < 30
    assert shown[1].strip() == "... 913 lines"
    assert shown[-1].endswith(" 937")
    assert error.tail == said


def test_check_off_returns_the_status() -> None:
    assert call(["false"], check=False, quiet=True).returncode == 1


def test_what_does_not_exist_is_named() -> None:
    with pytest.raises(CommandFailed, match="no-such-program: not found"):
        call(["no-such-program"], check=False, quiet=True)


def test_bytes_that_are_no_text_do_no_harm() -> None:
    out = call(["printf", r"a\377b"], capture=True, quiet=True).stdout
    assert out[0] + out[-1] == "ab"


def test_each_line_is_reported_as_it_comes() -> None:
    lines: list[str] = []
    call(["printf", r"a\nb\n"], on_line=lines.append, quiet=True)
    assert lines == ["a", "b"]


def test_timeout_kills_the_whole_group() -> None:
    pids: list[str] = []
    with pytest.raises(CommandFailed, match="killed after"):
        call(["sh", "-c", "sleep 60 & echo $!; wait"], timeout=0.5, on_line=pids.append, quiet=True)
    assert len(pids) == 1, "it did not begin in time"
    assert gone(int(pids[0]))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_interruption_kills_the_whole_group(tmp_path: Path, number: signal.Signals) -> None:
    pid = tmp_path / "pid"
    code = (
        "from ptrack_build.run import call, terminate_politely\n"
        "terminate_politely()\n"
        f"call(['sh', '-c', 'sleep 60 & echo $! > {pid}.part; mv {pid}.part {pid}; wait'])"
    )
    process = Script(code, {}).start()
    for _ in range(200):
        if pid.exists():
            break
        time.sleep(0.05)
    assert pid.exists()
    process.send_signal(number)
    process.communicate(timeout=20)
    assert process.returncode != 0
    assert gone(int(pid.read_text()))


PATIENT = """
import pathlib
from ptrack_build import run
run.terminate_politely()
run.GRACE_SECONDS = 0.2
run.call(["sh", "-c", {program!r}], patience={patience}, cwd=pathlib.Path({place!r}), quiet=True)
"""


def interrupted(place: Path, program: str, patience: float, *, again: bool = False) -> str:
    """What a run says that is interrupted while a program runs that makes the file pid."""
    code = PATIENT.format(program=program, place=str(place), patience=patience)
    process = Script(code, {}).start()
    for _ in range(200):
        if (place / "pid").exists():
            break
        time.sleep(0.05)
    assert (place / "pid").exists()
    process.send_signal(signal.SIGTERM)
    said = ""
    if again:
        assert process.stdout is not None
        while "waiting for sh to end" not in said:
            line = process.stdout.readline()
            assert line, said
            said += line
        process.send_signal(signal.SIGTERM)
    rest, _ = process.communicate(timeout=20)
    assert process.returncode != 0
    return said + rest


def test_what_must_not_be_left_half_done_ends_by_itself(tmp_path: Path) -> None:
    """As apt does, which lets the dpkg that it started come to its end."""
    dpkg = "echo $$ > pid.part; mv pid.part pid; sleep 1; echo done > made"
    said = interrupted(tmp_path, f"trap 'stop=1' INT; sh -c '{dpkg}' & wait; wait", 10)
    assert "waiting for sh to end" in said
    assert (tmp_path / "made").read_text() == "done\n"


@pytest.mark.parametrize(("patience", "again"), [(0.5, False), (60, True)])
def test_what_does_not_end_by_itself_is_forced(
    tmp_path: Path, patience: float, *, again: bool
) -> None:
    program = "trap '' INT TERM; sleep 60 & echo $! > pid.part; mv pid.part pid; wait; wait"
    began = time.monotonic()
    interrupted(tmp_path, program, patience, again=again)
    assert time.monotonic() - began < 15
    assert gone(int((tmp_path / "pid").read_text()))


def test_a_terminal_that_is_closed_leaves_nothing(tmp_path: Path) -> None:
    """Neither the command nor the scratch, whatever is said on the way out."""
    pid = tmp_path / "pid"
    code = (
        "import fcntl, pathlib, termios\n"
        "from ptrack_build import cache\n"
        "from ptrack_build.progress import step\n"
        "from ptrack_build.run import call, terminate_politely\n"
        "fcntl.ioctl(0, termios.TIOCSCTTY, 0)\n"
        "terminate_politely()\n"
        f"with cache.building(pathlib.Path({str(tmp_path / 'made')!r})), step('it'):\n"
        f"    call(['sh', '-c', 'sleep 60 & echo $! > {pid}.part; mv {pid}.part {pid}; wait'])\n"
    )
    ours, theirs = os.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=theirs, stdout=theirs, stderr=theirs, cwd=REPO,
        start_new_session=True, env={**os.environ, "PYTHONPATH": str(REPO), "TERM": "dumb"},
    )  # fmt: skip
    os.close(theirs)
    for _ in range(200):
        if pid.exists():
            break
        time.sleep(0.05)
    os.close(ours)
    assert process.wait(20) == 128 + signal.SIGHUP
    assert gone(int(pid.read_text()))
    assert {path.name for path in tmp_path.iterdir()} == {"pid"}


def test_who_asked_not_to_hear_of_it_goes_on() -> None:
    code = (
        "import os, signal\n"
        "from ptrack_build.run import terminate_politely\n"
        "signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "terminate_politely()\n"
        "os.kill(os.getpid(), signal.SIGHUP)\n"
        "print('on')"
    )
    assert Script(code, {}).start().communicate(timeout=20)[0] == "on\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_as_another_user() -> None:
    nobody = SimpleNamespace(uid=65534, gid=65534)
    done = call(["id", "-u"], user=nobody, capture=True, quiet=True, cwd=Path("/"))
    assert done.stdout == "65534\n"


def test_what_ends_the_main_thread_ends_what_others_run(tmp_path: Path) -> None:
    """An interrupt reaches the main thread alone: nobody may wait for the other threads' work."""

    def work(number: int) -> None:
        pid = tmp_path / f"pid.{number}"
        call(["sh", "-c", f"echo $$ > {pid}.part; mv {pid}.part {pid}; sleep 300"], quiet=True)
        (tmp_path / f"went on.{number}").touch()

    def interrupted() -> None:
        with beside(2) as pool:
            for number in range(4):
                pool.submit(work, number)
            while len(list(tmp_path.glob("pid.[0-9]"))) < 2:
                time.sleep(0.01)
            raise KeyboardInterrupt

    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert time.monotonic() - began < 60
    pids = [int(file.read_text()) for file in tmp_path.glob("pid.[0-9]")]
    assert len(pids) == 2
    assert all(gone(pid) for pid in pids)
    assert not list(tmp_path.glob("went on.*"))


def test_what_starts_after_the_end_is_ended_at_once(tmp_path: Path) -> None:
    """A thread between two commands does not begin the second one's long work."""
    go = tmp_path / "go"

    def work() -> None:
        while not go.exists():
            time.sleep(0.01)
        time.sleep(0.3)
        call(["sleep", "300"], quiet=True)

    def interrupted() -> None:
        with beside(1) as pool:
            pool.submit(work)
            go.touch()
            raise KeyboardInterrupt

    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert time.monotonic() - began < 60
