"""Hypothesis draws workloads, ends, standbys, restores, lapses: see tests/harness/machine.py.

What fails is shrunk, and printed as the steps that lead there and as the words that repeat it:
`--seed=N:EXAMPLES`, with `--blob=...` for the smallest example alone. By default the seeds are
always the same. `--deep` draws new ones until its minutes are over, on each worker.
"""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.harness import machine

if TYPE_CHECKING:
    import pytest

    from tests.harness.factory import Factory

#: Always the same, so that what is red is red again.
SEEDS = (1, 2, 3, 4)
EXAMPLES = 5
SHRINK_SECONDS = 60

DEEP_EXAMPLES = 12
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
        if seed:
            return [Rounds(first=int(seed), examples=int(examples or EXAMPLES))]
        return [Rounds(first=first, examples=EXAMPLES) for first in SEEDS]
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
    rounds = _rounds(metafunc.config)
    metafunc.parametrize("rounds", rounds, ids=[f"seed{one.first}" for one in rounds])


def test_nothing_is_lost(
    factory: Factory, rounds: Rounds, pytestconfig: pytest.Config, capfd: pytest.CaptureFixture[str]
) -> None:
    end = time.monotonic() + rounds.minutes * 60
    over = factory.shared / "machine.failed"  # nothing is shown before all workers are done
    seed = rounds.first
    while True:
        began = time.monotonic()
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
        now = time.monotonic()
        if now >= end or over.exists():
            break
        with capfd.disabled():
            left = (end - now) / 60
            print(f"seed {seed}: {now - began:.0f} s; {left:.0f} min left", file=sys.stderr)
        seed += rounds.stride
