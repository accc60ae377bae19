"""Each protection, taken out, makes the test fail that is there for it.

Slow: it links a server or a program for each mutant of the core. `./nox -s mutants-NN` runs it.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ptrack_build import cache, mutants
from tests.harness.cluster import PTRACK, Cluster
from tests.harness.install import Install

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ptrack_build.mutants import Laboratory, Mutant

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def laboratory() -> Iterator[Laboratory]:
    from ptrack_build import compile as compiling
    from ptrack_build import matrix, suite

    major = os.environ.get("PTRACK_MUTANTS_MAJOR", "17")
    prefix = suite.prefix(matrix.load().major(major), compiling.TEST)
    with compiling.workbench(prefix) as bench:
        directory = cache.directory("mutants", major)
        try:
            yield mutants.Laboratory(prefix=prefix, bench=bench, directory=directory)
        finally:
            cache.remove(directory)


def _run(
    prefix: Path, tests: list[str], junit: Path | None = None
) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PTRACK_PREFIX": str(prefix)}
    for name in ("PYTEST_XDIST_WORKER", "PYTEST_XDIST_WORKER_COUNT", "PYTEST_CURRENT_TEST"):
        env.pop(name, None)
    argv = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    argv += ["--timeout=300", "--tb=line", *tests]
    if junit is not None:
        argv.append(f"--junitxml={junit}")
    return subprocess.run(argv, cwd=ROOT, env=env, capture_output=True, text=True, check=False)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("mutant", mutants.load(), ids=lambda mutant: mutant.name)
def test_caught(laboratory: Laboratory, mutant: Mutant, tmp_path: Path) -> None:
    """By an assertion or the oracle: what else goes wrong shows nothing about the protection."""
    if mutant not in list(laboratory.mutants()):
        pytest.skip(f"not for PostgreSQL {laboratory.prefix.tree.source.major.name}")
    place = laboratory.make(mutant)
    try:
        for test in mutant.tests:
            junit = tmp_path / "record.xml"
            junit.unlink(missing_ok=True)
            done = _run(place, [test], junit)
            last = done.stdout.strip().splitlines()[-1] if done.stdout.strip() else done.stderr
            assert done.returncode in {0, 1}, (
                f"{mutant.rule}: {test} ended with {done.returncode}: {last}"
            )
            reason = mutants.caught(junit)
            assert not reason, f"{mutant.rule}: {test} {reason}"
    finally:
        cache.remove(place)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("", "ptrack needs a PostgreSQL server with the ptrack core patch"),
        (
            "const int changetrack_abi = CHANGETRACK_ABI + 1;",
            r"built for version (\d+) of the ptrack core patch, and .* version (?!\1)\d",
        ),
    ],
    ids=["no core patch", "another one"],
)
def test_server_that_the_library_is_not_for(laboratory: Laboratory, line: str, said: str) -> None:
    """It does not start with the library, and says why; without it, it does."""
    old = r"^const int\tchangetrack_abi = CHANGETRACK_ABI;$"
    place = laboratory.make(
        mutants.Mutant(
            name="server of something else", part=mutants.Part.CORE, rule="", tests=[],
            changes=[mutants.Change(file="src/backend/storage/smgr/md.c", old=old, new=line)],
        )
    )  # fmt: skip
    home = Path(tempfile.mkdtemp(prefix="pt-", dir="/tmp"))
    home.chmod(0o755)
    cluster = Cluster(Install.at(place), home / "it", "other")
    try:
        cluster.init(checksums=False)
        cluster.adopt()
        cluster.start()
        cluster.stop()
        cluster.configure(PTRACK)
        assert re.search(said, cluster.start_fails())
    finally:
        cluster.destroy()
        cache.remove(home)
        cache.remove(place)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_unchanged_passes(laboratory: Laboratory) -> None:
    """What the mutants fail on passes without them."""
    tests = sorted({test for mutant in laboratory.mutants() for test in mutant.tests})
    done = _run(laboratory.prefix.path, tests)
    assert done.returncode == 0, done.stdout[-4000:]
