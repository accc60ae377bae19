"""Hypothesis draws workloads, ends, standbys, restores, lapses: see tests/harness/machine.py.

What fails is shrunk, and printed as the steps that lead there and as the words that repeat it:
`--seed=N:EXAMPLES`, with `--blob=...` for the smallest example alone. By default the seeds are
always the same, and so is what they draw and where it crashes: what is red is red again. `--deep`
draws new ones until its minutes are over, on each worker.
"""

from __future__ import annotations

import os
import re
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from tests.harness import fault, machine, oracle
from tests.harness.cluster import Cluster

if TYPE_CHECKING:
    from tests.harness.factory import Factory

pytestmark = pytest.mark.skipif(fault.compiler() is None, reason="needs a C compiler")

#: On 17, which has all of them, each rule runs in these; another rule makes them draw otherwise.
SEEDS = (8, 14)
EXAMPLES = 10
SHRINK_SECONDS = 60

DEEP_EXAMPLES = 20
DEEP_SHRINK_SECONDS = 900


@dataclass(frozen=True, kw_only=True)
class Rounds:
    """What one test runs: seeds first, first + stride, ... for some minutes; 0 is one of them."""

    first: int
    examples: int
    stride: int = 1
    minutes: float = 0
    shrink_seconds: int = SHRINK_SECONDS


def _rounds(config: pytest.Config) -> list[Rounds]:
    minutes: float | None = config.option.deep
    seed, _, examples = (config.option.seed or "").partition(":")
    if minutes is None:
        seeds = [int(seed)] if seed else SEEDS
        return [Rounds(first=first, examples=int(examples or EXAMPLES)) for first in seeds]
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    return [
        Rounds(
            first=int(seed) + worker,
            stride=workers,
            examples=int(examples or DEEP_EXAMPLES),
            minutes=minutes,
            shrink_seconds=DEEP_SHRINK_SECONDS,
        )
        for worker in range(workers)
    ]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "rounds" not in metafunc.fixturenames:
        return
    rounds = _rounds(metafunc.config)
    asked = metafunc.config.option.deep or metafunc.config.option.seed
    marks = [pytest.mark.timeout(0)] if asked else []  # as long as it was asked for
    metafunc.parametrize(
        "rounds", [pytest.param(one, id=f"seed{one.first}", marks=marks) for one in rounds]
    )


def test_nothing_is_lost(
    factory: Factory, rounds: Rounds, pytestconfig: pytest.Config, capfd: pytest.CaptureFixture[str]
) -> None:
    end = time.monotonic() + rounds.minutes * 60
    over = factory.shared / "machine.failed"  # nothing is shown before all workers are done
    seed = rounds.first
    while True:
        began = time.monotonic()
        before = machine.TALLY.counts.copy()
        try:
            machine.run(
                factory,
                seed=seed,
                examples=rounds.examples,
                shrink_seconds=rounds.shrink_seconds,
                blob=pytestconfig.option.blob,
            )
        except Exception as error:
            words = f"tests/test_machine.py --seed={seed}:{rounds.examples}"
            over.touch()
            error.add_note(f"again: {words}\nthe smallest example alone: {words} --blob=...")
            raise
        ran = machine.TALLY.counts - before
        # an excuse must not become the rule
        assert ran["crashes PostgreSQL does not recover from"] * 2 <= ran["examples"] + 1
        now = time.monotonic()
        if now >= end or over.exists():
            break
        with capfd.disabled():
            left = (end - now) / 60
            print(f"seed {seed}: {now - began:.0f} s; {left:.0f} min left", file=sys.stderr)
        seed += rounds.stride


def test_a_hole_is_found(factory: Factory, monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine can fail: with a table's rows kept from it, it does, and does so again."""
    honest = Cluster.pagemapset

    def with_hole(self: Cluster, since: int) -> list[oracle.PageMap]:
        path = self.path_of("a")
        return [row for row in honest(self, since) if not row.path.startswith(path)]

    monkeypatch.setattr(Cluster, "pagemapset", with_hole)
    monkeypatch.setattr(machine, "TALLY", machine.Tally())  # none of the suite's
    before = len(machine.FAILURES)
    with pytest.raises(oracle.LostBlocks) as caught:
        # `begin` and one step: nothing hangs on when a process of the server dies
        machine.run(factory, seed=1, examples=300, steps=2, shrink_seconds=1)
    first = machine.FAILURES[before]
    assert re.search(r"LostBlocks: .* lost$", first, re.MULTILINE), first
    assert re.search(r" postgres: a$", first, re.MULTILINE), first
    notes = "\n".join(caught.value.__notes__)
    assert first in notes
    assert "state = Machine()\nstate.begin(" in notes
    words = re.search(r"reproduce_failure\(.*\)", notes)
    assert words, notes
    with pytest.raises(oracle.LostBlocks):
        machine.run(factory, seed=1, examples=1, blob=words[0])
