"""Workers of a deep run agree on the seeds, which are drawn anew for each."""

from __future__ import annotations

import os
import subprocess
import sys

from ptrack_build import REPO


def test_workers_have_the_same_seeds() -> None:
    env = {name: value for name, value in os.environ.items() if name != "PTRACK_PREFIX"}
    words = ("-n", "2", "--deep=1", "-p", "no:cacheprovider", "tests/test_machine.py")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *words],
        cwd=REPO, env=env, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert "Different tests were collected" not in done.stdout
    assert "set PTRACK_PREFIX to a PostgreSQL" in done.stdout, "there was no server to test"
