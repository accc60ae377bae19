"""Sessions at the same time (nox -j): a signal to nox ends all of them, and lets them clean up."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from tests.build.conftest import REPO

if TYPE_CHECKING:
    from pathlib import Path

#: Two sessions, each with a program; it takes longer to end than nox itself would wait.
NOXFILE = """
import subprocess
import sys

import nox

sys.path.insert(0, {repo!r})
from ptrack_build.run import terminate_politely
from ptrack_build.sessions import end_together

end_together()


@nox.session(python=False, allow_parallel=True)
@nox.parametrize("name", ["one", "two"])
def works(session, name):
    terminate_politely()
    with subprocess.Popen(["sleep", "60"], start_new_session=True) as program:
        open(name + ".pid", "w").write(str(program.pid))
        try:
            program.wait()
        finally:
            subprocess.run(["sleep", "3"])
            program.kill()
            open(name + ".ended", "w").close()
"""


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_ends_sessions_that_run_together(tmp_path: Path, signum: int) -> None:
    (tmp_path / "noxfile.py").write_text(NOXFILE.format(repo=str(REPO)))
    pids = [tmp_path / f"{name}.pid" for name in ("one", "two")]
    words = [sys.executable, "-m", "nox", "-j", "2"]
    with subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.DEVNULL) as program:
        deadline = time.monotonic() + 60
        while not all(pid.exists() and pid.read_text() for pid in pids):
            assert program.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        program.send_signal(signum)
        assert program.wait(30) == 130
    for pid in pids:
        assert pid.with_suffix(".ended").exists()
        with pytest.raises(ProcessLookupError):
            os.kill(int(pid.read_text()), 0)
