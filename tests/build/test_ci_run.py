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
    "$SLEEPS") trap "$ON_TERM" TERM; echo $$ >"$0.pid"; while :; do sleep 60 & wait; done ;;
    "-s test") [ -z "$RESULTS" ] || printf '%s' "$RESULTS" >results/test.json ;;
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


def written(pid: Path) -> None:
    """Wait until the launcher is at what it does not come to the end of."""
    deadline = time.monotonic() + 20
    while not (pid.exists() and pid.read_text().endswith("\n")):
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_a_signal_ends_ci_with_what_it_runs(tmp_path: Path, signum: int, status: int) -> None:
    place = checkout(tmp_path)
    env = os.environ | {"SLEEPS": "-s model", "ON_TERM": "exit 1", "RESULTS": "[]"}
    pid = place / "nox.pid"
    with subprocess.Popen([place / ".ci/run"], env=env, stdout=subprocess.DEVNULL) as script:
        written(pid)
        script.send_signal(signum)
        assert script.wait(20) == status
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)
    assert ran(place) == ["-s lint", "-s patches -- --check", "-s model"]


def test_a_second_signal_does_not_wait(tmp_path: Path) -> None:
    place = checkout(tmp_path)
    pid = place / "nox.pid"
    env = os.environ | {
        "SLEEPS": "-s lint",
        "ON_TERM": "rm -f $0.pid; echo >$0.told",
        "RESULTS": "",
    }
    with subprocess.Popen([place / ".ci/run"], env=env, stdout=subprocess.DEVNULL) as script:
        written(pid)
        number = int(pid.read_text())
        script.send_signal(signal.SIGINT)
        written(place / "nox.told")
        assert script.poll() is None
        script.send_signal(signal.SIGINT)
        assert script.wait(20) == 130
    with pytest.raises(ProcessLookupError):
        os.kill(number, 0)


@pytest.mark.parametrize(
    ("status", "shown"), [("unreachable", False), ("failed", True), (None, True)]
)
def test_ci_shows_17_where_its_source_can_be_had(
    tmp_path: Path, status: report.Status | None, *, shown: bool
) -> None:
    place = checkout(tmp_path)
    of_another_run = place / "results/test.json"
    report.keep([report.Outcome(session="test-17", status="unreachable")], of_another_run)
    results = ""  # as of a suite that has ended before it looked for a source
    if status is not None:
        kept = tmp_path / "outcomes.json"
        others = report.Outcome(session="test-16", status="unreachable")
        report.keep([others, report.Outcome(session="test-17", status=status)], kept)
        results = kept.read_text()
    env = os.environ | {"SLEEPS": "", "RESULTS": results}
    done = subprocess.run([place / ".ci/run"], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert ("-s demo-17" in ran(place)) is shown
    assert ("skipped: ./nox -s demo-17" in done.stdout) is not shown
