"""Numbers out of noisy times: rounds in which every arm has its turn, medians, and their spread.

Single times on a shared machine drift by more than what is looked for. So all arms are timed in
each round, in an order that turns round with every round (A B B A); what is compared is compared
within a round, and what is told is the median over the rounds with the interval that holds the true
median with 95 % probability (by ranks, whatever the distribution).
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

K = TypeVar("K")
V = TypeVar("V")


@dataclass(frozen=True, kw_only=True)
class Spread:
    """A median, and the interval that holds the true one with 95 % probability.

    Of fewer than six values no such interval can be told: then it is from the least to the
    greatest.
    """

    median: float
    low: float
    high: float
    samples: int


def spread(values: Sequence[float]) -> Spread:
    """Raises ValueError without values."""
    ordered = sorted(values)
    n = len(ordered)
    if n == 0:
        what = "nothing was measured"
        raise ValueError(what)
    cut = 0
    # both tails of the binomial distribution of how many values lie below the median
    while cut < n // 2 and 2 * sum(math.comb(n, k) for k in range(cut + 1)) <= 0.05 * 2**n:
        cut += 1
    low = ordered[max(0, cut - 1)]
    high = ordered[min(n - 1, n - cut)]
    return Spread(median=statistics.median(ordered), low=low, high=high, samples=n)


def rounds(arms: Sequence[K], count: int, measure: Callable[[K, int], V]) -> dict[K, list[V]]:
    """Measure every arm in each of count rounds, there and back again; the values by arm."""
    found: dict[K, list[V]] = {arm: [] for arm in arms}
    for number in range(count):
        for arm in arms if number % 2 == 0 else reversed(arms):
            found[arm].append(measure(arm, number))
    return found


def ratio(one: Sequence[float], other: Sequence[float]) -> Spread:
    """One over the other, round by round."""
    return spread([a / b for a, b in zip(one, other, strict=True)])


def difference(one: Sequence[float], other: Sequence[float]) -> Spread:
    """One less the other, round by round."""
    return spread([a - b for a, b in zip(one, other, strict=True)])


def mean(one: Sequence[float], other: Sequence[float]) -> list[float]:
    """The mean of two series, round by round."""
    return [(a + b) / 2 for a, b in zip(one, other, strict=True)]
