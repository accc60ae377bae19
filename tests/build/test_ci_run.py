"""The script that a CI runs: what it goes on with, what it leaves out, how it ends."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from typing import TYPE_CHECKING

import pytest

from ptrack_build import report
from tests.build.conftest import REPO

if TYPE_CHECKING:
    from pathlib import Path

STUB = """#!/bin/sh
echo "$@" >>"$0.ran"
case "$*" in
    "$SLEEPS") echo $$ >"$0.pid"; sleep 60 & wait ;;
    "-s test") mkdir -p results; printf '%s' "$RESULTS" >results/test.json ;;
esac
"""


def checkout(tmp_path: Path) -> Path:
    """A tree with .ci/run, and a launcher that notes what it is asked."""
    (tmp_path / ".ci").mkdir()
    shutil.copy(REPO / ".ci/run", tmp_path / ".ci/run")
    stub = tmp_path / "nox"
    stub.write_text(STUB)
    stub.chmod(0o755)
    return tmp_path


def ran(place: Path) -> list[str]:
    return (place / "nox.ran").read_text().splitlines()


@pytest.mark.parametrize(
    ("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_a_signal_ends_ci_with_what_it_runs(tmp_path: Path, signum: int, status: int) -> None:
    place = checkout(tmp_path)
    env = os.environ | {"SLEEPS": "-s model", "RESULTS": "[]"}
    with subprocess.Popen([place / ".ci/run"], env=env, stdout=subprocess.DEVNULL) as script:
        pid = place / "nox.pid"
        deadline = time.monotonic() + 20
        while not (pid.exists() and pid.read_text().endswith("\n")):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        script.send_signal(signum)
        assert script.wait(20) == status
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)
    assert ran(place) == ["-s lint", "-s patches -- --check", "-s model"]


@pytest.mark.parametrize(("status", "shown"), [("unreachable", False), ("failed", True)])
def test_ci_shows_17_where_its_source_can_be_had(
    tmp_path: Path, status: report.Status, *, shown: bool
) -> None:
    place = checkout(tmp_path)
    report.keep(
        [
            report.Outcome(session="test-16", status="unreachable"),
            report.Outcome(session="test-17", status=status),
        ],
        tmp_path / "outcomes.json",
    )
    env = os.environ | {"SLEEPS": "", "RESULTS": (tmp_path / "outcomes.json").read_text()}
    done = subprocess.run([place / ".ci/run"], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert ("-s demo-17" in ran(place)) is shown
    assert ("skipped: ./nox -s demo-17" in done.stdout) is not shown
