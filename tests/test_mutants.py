"""Each protection, taken out, makes the test fail that is there for it.

And what takes a server or a program of other objects: lives of a cluster, and pg_checksums, without
the core patch.

Slow: it links a server or a program for each mutant of the core. `./nox -s mutants-NN` runs it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ptrack_build import cache, matrix, mutants, patch, suite
from ptrack_build import compile as compiling
from ptrack_build.patch import committed
from tests.harness import machine, oracle, workload
from tests.harness.cluster import PTRACK
from tests.harness.install import Install
from tests.harness.parent import CHANGE, TABLE, before, refused

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ptrack_build.matrix import Major
    from ptrack_build.mutants import Laboratory, Mutant
    from tests.harness.cluster import Cluster
    from tests.harness.factory import Factory

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def major() -> Major:
    return matrix.load().major(os.environ.get("PTRACK_MUTANTS_MAJOR", "17"))


@pytest.fixture(scope="module")
def laboratories(major: Major) -> Iterator[Callable[[str], Laboratory]]:
    """By a variant's name: it is set up when it is first asked for."""
    directory = cache.directory("mutants", major.name)
    with contextlib.ExitStack() as stack:
        stack.callback(cache.remove, directory)

        @functools.cache
        def laboratory(variant: str) -> Laboratory:
            prefix = suite.prefix(major, compiling.VARIANTS[variant])
            bench = stack.enter_context(compiling.workbench(prefix))
            return mutants.Laboratory(prefix=prefix, bench=bench, directory=directory)

        yield laboratory


@pytest.fixture(scope="module")
def laboratory(laboratories: Callable[[str], Laboratory]) -> Laboratory:
    return laboratories(compiling.TEST.name)


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
def test_caught(
    laboratories: Callable[[str], Laboratory], major: Major, mutant: Mutant, tmp_path: Path
) -> None:
    """By an assertion or the oracle: what else goes wrong shows nothing about the protection.

    Where both are changed, the core's part makes the other's needed: alone it goes unnoticed.
    """
    if mutant not in mutants.of(major):
        pytest.skip(f"not for PostgreSQL {major.name}")
    laboratory = laboratories(mutant.variant)
    if mutant.part is mutants.Part.BOTH:
        place = laboratory.make(mutant.core_alone())
        try:
            done = _run(place, mutant.tests)
            assert done.returncode == 0, f"without the other part: {done.stdout[-4000:]}"
        finally:
            cache.remove(place)
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


def _taken_out(diff: str, place: str) -> list[mutants.Change]:
    """What makes a program of the core patch PostgreSQL's own: no line that it adds is left.

    place: where the program's sources are.
    """
    changes = []
    for part in f"\n{diff}".split("\ndiff --git ")[1:]:
        file = part.partition(" b/")[0].removeprefix("a/")
        runs = Counter(re.findall(r"(?:^\+(?!\+\+ ).*\n)+", part, re.MULTILINE))
        for run in sorted(runs, key=len, reverse=True):
            lines = re.escape(re.sub(r"^\+", "", run, flags=re.MULTILINE))
            changes.append(mutants.Change(file=file, old=f"^{lines}", times=runs[run]))
    return [change for change in changes if change.file.startswith(f"{place}/")]


@contextlib.contextmanager
def _plain(laboratory: Laboratory, program: str, place: str) -> Iterator[Install]:
    """The same with a program that is without the core patch; place: of its sources."""
    diff = committed.read(laboratory.prefix.tree.source.major, patch.PATCHES)
    made = laboratory.make(
        mutants.Mutant(
            name=f"{program} without the core patch", part=mutants.Part.CORE, rule="", tests=[],
            changes=_taken_out(diff.body, place),
        )
    )  # fmt: skip
    try:
        yield Install.at(made)
    finally:
        cache.remove(made)


@pytest.fixture(scope="module")
def unpatched(laboratory: Laboratory) -> Iterator[Install]:
    """The same with a server that is without the core patch."""
    with _plain(laboratory, "server", "src/backend") as made:
        assert b"changetrack" not in made.program("postgres").read_bytes()
        yield made


@contextlib.contextmanager
def _life(cluster: Cluster, install: Install, *, standing_alone: bool = False) -> Iterator[None]:
    """A life of a cluster under another installation's server, without the library.

    The body ends it. Then the cluster is as it was before, and not started.
    """
    own = cluster.install
    cluster.install = install
    cluster.configure(shared_preload_libraries="")
    if not standing_alone:
        cluster.start()
    yield
    assert not cluster.running
    cluster.install = own
    cluster.configure(PTRACK)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_server_without_the_core_patch(factory: Factory, unpatched: Install) -> None:
    """It does not start with the library, says why, and leaves the map as it was."""
    cluster = factory.create(checksums=True)
    snapshot = before(cluster)
    cluster.stop()
    with _life(cluster, unpatched, standing_alone=True):
        cluster.configure(PTRACK)
        log = cluster.start_fails()
    assert "ptrack needs a PostgreSQL server with the ptrack core patch" in log
    cluster.start()
    cluster.sql(CHANGE)
    oracle.check(snapshot, cluster, changed=20)


def _stops(cluster: Cluster) -> None:
    cluster.stop()


def _is_killed(cluster: Cluster) -> None:
    cluster.kill_all()


def _is_killed_after_a_checkpoint(cluster: Cluster) -> None:
    cluster.checkpoint()
    cluster.kill_all()


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("end", [_stops, _is_killed, _is_killed_after_a_checkpoint])
@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_life_without_the_core_patch(
    factory: Factory, unpatched: Install, mode: str, end: Callable[[Cluster], None]
) -> None:
    """The map is refused, or all that the life has written is replayed, and reported."""
    cluster = factory.create(checksums=True, full_page_writes=False)
    workload.prepare(cluster)
    scenarios = [one for one in workload.available(cluster) if not one.checkpoints]
    workload.set_up(cluster, scenarios)
    table = before(cluster)
    snapshot = oracle.take(cluster)
    cluster.sql(CHANGE)
    cluster.stop(mode)
    with _life(cluster, unpatched):
        redo = cluster.redo()
        workload.change(cluster, scenarios)
        oracle.evict(snapshot, cluster, changed=501)
        assert cluster.redo() == redo, "a checkpoint"
        end(cluster)
    cluster.start()
    if mode == "fast" and end is _is_killed:
        assert cluster.init_lsn() <= snapshot.lsn, "the map was refused"
        oracle.check(snapshot, cluster, changed=500)
    else:
        refused(table, cluster)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("killed", [False, True], ids=["ends", "is killed"])
def test_stand_alone_without_the_core_patch(
    factory: Factory, unpatched: Install, *, killed: bool
) -> None:
    cluster = factory.create(checksums=True, full_page_writes=False)
    snapshot = before(cluster)
    cluster.stop()
    with _life(cluster, unpatched, standing_alone=True):
        evict = "SELECT sum(pg_prewarm('filler')) FROM generate_series(1, 6)"
        cluster.single_user(CHANGE, evict, killed=killed)
    assert oracle.compare(snapshot, cluster.files(), []).changed >= 20
    cluster.start()
    if killed:
        assert cluster.init_lsn() <= snapshot.lsn, "the map was refused"
        oracle.check(snapshot, cluster, changed=20)
    else:
        refused(snapshot, cluster)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("restartpoint", [False, True], ids=["", "restartpoint"])
@pytest.mark.parametrize("end", [_stops, _is_killed])
def test_standby_without_the_core_patch(
    factory: Factory, unpatched: Install, end: Callable[[Cluster], None], *, restartpoint: bool
) -> None:
    primary = factory.create(checksums=True, full_page_writes=False)
    primary.sql(TABLE)
    primary.sql("VACUUM (FREEZE) t")
    standby = factory.standby(primary)
    snapshot = oracle.take(standby, primary=primary)
    standby.stop()
    with _life(standby, unpatched):
        primary.sql(CHANGE)
        standby.catch_up(primary)
        if restartpoint:
            standby.restartpoint(primary)
        oracle.evict(snapshot, standby, changed=20)
        end(standby)
    standby.start()
    standby.catch_up(primary)
    if restartpoint:
        assert not 0 < standby.init_lsn() <= snapshot.lsn
        again = oracle.take(standby, primary=primary)
        primary.sql(CHANGE)
        standby.restartpoint(primary)
        oracle.check(again, standby, changed=20)
    else:
        assert 0 < standby.init_lsn() <= snapshot.lsn, "the map was refused"
        oracle.look(snapshot, standby)
        standby.restartpoint(primary)
        oracle.check(snapshot, standby, changed=20)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_machine_without_the_core_patch(
    factory: Factory, unpatched: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All lives without the library that the state machine draws are under such a server."""
    monkeypatch.setattr(machine, "TALLY", machine.Tally())
    for seed in range(4):
        machine.run(factory, seed=seed, examples=20, shrink_seconds=60, plain=unpatched)
    assert machine.TALLY.counts["lives under another server"] >= 12


def _checksum_alone(one: oracle.Lost) -> bool:
    """Whether nothing but the checksum of a shared catalog's page differs."""
    old, new = (page[:8] + page[10:] for page in (one.before, one.after))
    return one.path.startswith("global/") and old == new


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_checksums_without_the_core_patch(factory: Factory, laboratory: Laboratory) -> None:
    """It ends at the map's file; pages of global/ that it came to before have a checksum then.

    Nobody looks at those while checksums are off, and no later run leaves them: that is all that
    may be missed. Where the map was removed before, it rewrites every page, and a new map begins.
    """
    cluster = factory.create()
    snapshot = before(cluster)
    cluster.stop()
    stopped = dataclasses.replace(snapshot, content=cluster.files())
    with _plain(laboratory, "pg_checksums", "src/bin/pg_checksums") as plain:
        assert b"ptrack.map" not in plain.program("pg_checksums").read_bytes()
        enable = ("pg_checksums", "--enable", "-D", cluster.data, "--no-sync")
        with _life(cluster, plain, standing_alone=True):
            done = cluster.run(*enable, check=False)
        assert done.returncode != 0
        assert re.search(r"invalid segment number 0 .*/global/ptrack\.map", done.stdout)
        assert cluster.control()["Data page checksum version"] == "0"
        assert all(map(_checksum_alone, oracle.compare(stopped, cluster.files(), []).lost))
        cluster.start()
        assert cluster.init_lsn() <= snapshot.lsn, "the map was refused"
        cluster.sql(CHANGE)
        cluster.checkpoint()
        found = oracle.compare(snapshot, cluster.files(), cluster.pagemapset(snapshot.lsn))
        assert found.changed >= 20
        assert all(map(_checksum_alone, found.lost)), found
        cluster.stop()
        aside = cluster.map.rename(cluster.root / cluster.map.name)
        with _life(cluster, plain, standing_alone=True):
            cluster.run(*enable)
        aside.rename(cluster.map)
        cluster.start()
        found = oracle.compare(snapshot, cluster.files(), cluster.pagemapset(snapshot.lsn))
        assert not all(map(_checksum_alone, found.lost)), "put back it knows better than is said"
        cluster.stop()
        cluster.map.unlink()
        with _life(cluster, plain, standing_alone=True):
            cluster.run("pg_checksums", "--disable", *enable[2:])
            cluster.run(*enable)
    cluster.start()
    refused(snapshot, cluster)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_server_of_another_core_patch(factory: Factory, laboratory: Laboratory) -> None:
    """It does not start with the library, and says why."""
    old = r"^const int\tchangetrack_abi = CHANGETRACK_ABI;$"
    new = "const int changetrack_abi = CHANGETRACK_ABI + 1;"
    place = laboratory.make(
        mutants.Mutant(
            name="server of another core patch", part=mutants.Part.CORE, rule="", tests=[],
            changes=[mutants.Change(file="src/backend/storage/smgr/md.c", old=old, new=new)],
        )
    )  # fmt: skip
    try:
        cluster = factory.create(start=False)
        with _life(cluster, Install.at(place)):
            cluster.stop()
            cluster.configure(PTRACK)
            log = cluster.start_fails()
        said = r"built for version (\d+) of the ptrack core patch, and .* version (?!\1)\d"
        assert re.search(said, log)
    finally:
        cache.remove(place)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("variant", sorted({mutant.variant for mutant in mutants.load()}))
def test_unchanged_passes(major: Major, variant: str) -> None:
    """What the mutants fail on passes without them."""
    fail = [mutant.tests for mutant in mutants.of(major) if mutant.variant == variant]
    tests = sorted(set(itertools.chain.from_iterable(fail)))
    if not tests:
        pytest.skip(f"no mutant of {variant} is for PostgreSQL {major.name}")
    done = _run(suite.prefix(major, compiling.VARIANTS[variant]).path, tests)
    assert done.returncode == 0, done.stdout[-4000:]
