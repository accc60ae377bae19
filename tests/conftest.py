"""Fixtures of the suite. The server under test is the one in ``PTRACK_PREFIX``."""

from __future__ import annotations

import gc
import os
import secrets
import shutil
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

from ptrack_build.host import suite_place, switched_on
from tests.harness import machine, oracle, system
from tests.harness.factory import Factory
from tests.harness.fault import Fault
from tests.harness.install import Install

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator
    from types import FrameType

    from tests.harness.cluster import Cluster

_LOG_TAIL = 12_000
_FACTORY = pytest.StashKey[Factory]()
_HERE = Path(__file__).parent


def _terminated(signum: int, _frame: FrameType | None) -> NoReturn:
    pytest.exit(f"signal {signum}", returncode=128 + signum)


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("ptrack")
    group.addoption(
        "--deep", nargs="?", const=120.0, type=float, metavar="MINUTES",
        help="tests/test_machine.py: draw new examples for so long, on each worker (120)",
    )  # fmt: skip
    group.addoption("--seed", metavar="N[:EXAMPLES]", help="tests/test_machine.py: this one again")
    group.addoption("--blob", help="with --seed: the one example that hypothesis printed so")


def pytest_configure(config: pytest.Config) -> None:
    workerinput = getattr(config, "workerinput", None)
    if workerinput is not None:
        config.option.seed = workerinput["seed"]
    elif config.option.deep and config.option.seed is None:
        config.option.seed = str(secrets.randbelow(10**9))
    config.addinivalue_line("markers", "major(since, until): only for these majors, inclusive")
    signal.signal(signal.SIGTERM, _terminated)


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:  # noqa: ANN401
    """All workers have to draw the same tests."""
    node.workerinput["seed"] = node.config.option.seed


def pytest_report_header() -> list[str]:
    prefix = os.environ.get("PTRACK_PREFIX")
    if prefix is None:
        return []
    return [f"PostgreSQL {Install.at(Path(prefix)).version} in {prefix}"]


@pytest.fixture(scope="session")
def install() -> Install:
    """The installation under test."""
    prefix = os.environ.get("PTRACK_PREFIX")
    if not prefix:
        pytest.fail("set PTRACK_PREFIX to a PostgreSQL with ptrack, as ./nox -s test-NN does")
    return Install.at(Path(prefix))


def _sweep(parent: Path) -> None:
    """Remove what runs that were killed have left, and are not running any more."""
    for root in parent.glob("pt-*"):
        pids = [int(entry.suffix[1:]) for entry in root.glob("pid.*")]
        if pids and not any(map(system.alive, pids)):
            system.forget_shared_memory(root)
            shutil.rmtree(root, ignore_errors=True)


@pytest.fixture(scope="session")
def _shared_root(testrun_uid: str) -> Iterator[Path]:
    """A directory with a short name (sockets) that the workers of this run share."""
    parent = suite_place()
    _sweep(parent)
    root = parent / f"pt-{testrun_uid[:8]}"
    root.mkdir(mode=0o755, exist_ok=True)
    system.own(root)
    me = root / os.environ.get("PYTEST_XDIST_WORKER", "gw")
    me.mkdir(mode=0o755)
    system.own(me)
    (root / f"pid.{os.getpid()}").touch()
    yield root
    if switched_on("PTRACK_KEEP"):
        return
    shutil.rmtree(me, ignore_errors=True)
    (root / f"pid.{os.getpid()}").unlink()
    if not list(root.glob("pid.*")):  # the last one
        shutil.rmtree(root, ignore_errors=True)


@pytest.fixture(scope="session")
def session_factory(
    request: pytest.FixtureRequest, install: Install, _shared_root: Path
) -> Iterator[Factory]:
    """Makes clusters that live until they are destroyed."""
    worker = os.environ.get("PYTEST_XDIST_WORKER", "gw")
    factory = Factory(install, _shared_root, _shared_root / worker)
    request.config.stash[_FACTORY] = factory
    yield factory
    factory.destroy()


@pytest.fixture
def factory(session_factory: Factory) -> Iterator[Factory]:
    """Makes clusters that live as long as the test."""
    before = len(session_factory.made)
    yield session_factory
    session_factory.destroy(since=before, keep=switched_on("PTRACK_KEEP"))


@pytest.fixture
def cluster(factory: Factory) -> Cluster:
    """A fresh running primary with ptrack on, without checksums."""
    return factory.create()


@pytest.fixture
def faulty(factory: Factory) -> Iterator[tuple[Cluster, Fault]]:
    """A primary with fsync, whose system calls can be stopped."""
    cluster = factory.create(checksums=True, fsync=True, start=False)
    with Fault(cluster, factory.shared) as orders:
        cluster.start()
        yield cluster, orders


@pytest.fixture(params=[False, True], ids=["plain", "checksums"])
def checksums(request: pytest.FixtureRequest) -> bool:
    """Both kinds of cluster."""
    return bool(request.param)


@pytest.fixture(autouse=True)
def _only_these_majors(request: pytest.FixtureRequest) -> None:
    marker = request.node.get_closest_marker("major")
    if marker is None:
        return
    install: Install = request.getfixturevalue("install")
    since = marker.kwargs.get("since", 0)
    until = marker.kwargs.get("until", 1000)
    if not since <= install.major <= until:
        pytest.skip(f"not on major {install.major}: {marker.kwargs}")


def pytest_collection_finish() -> None:
    """What was imported and collected stays: no collection of garbage needs to look at it again."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    output: dict[str, object] | None = getattr(session.config, "workeroutput", None)
    if output is not None:  # a worker: the tallies go to the one that prints
        output["tally"] = vars(oracle.TALLY)
        output["machine"] = machine.TALLY.plain()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:  # noqa: ANN401
    output = getattr(node, "workeroutput", {})
    if "tally" in output:
        oracle.TALLY.add(oracle.Tally(**output["tally"]))
        machine.TALLY.add(output["machine"])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if oracle.TALLY.looks:
        terminalreporter.write_line(f"oracle: {oracle.TALLY}")
    for line in machine.TALLY.lines():
        terminalreporter.write_line(line)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    factory = item.config.stash.get(_FACTORY, None)
    if report.failed and factory is not None:
        for cluster in factory.made:
            text = cluster.log_text(max(0, cluster.log_size() - _LOG_TAIL))
            report.sections.append((f"log of {cluster.name} ({cluster.root})", text))
    return report
