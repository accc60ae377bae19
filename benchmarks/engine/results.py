"""What was measured, against what it has to be: JSON for machines, a table for people."""

from __future__ import annotations

import contextlib
import json
import os
import platform
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from benchmarks.engine.sampling import Spread


@dataclass(frozen=True, kw_only=True)
class Row:
    """One measured number.

    spread: in unit; limit: what the median may be at most (at_least: at least), None where none is
    set; before: the same of ptrack 2.4, as a text; medians: of the single arms, in what the arms
    are measured in; note: what has to be known to read it.
    """

    what: str
    spread: Spread
    unit: str
    limit: float | None = None
    at_least: bool = False
    before: str = ""
    medians: Mapping[str, float] = field(default_factory=dict)
    note: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the median is within the limit; None where there is none."""
        if self.limit is None:
            return None
        return (
            self.spread.median >= self.limit
            if self.at_least
            else (self.spread.median <= self.limit)
        )

    @property
    def sure(self) -> bool:
        """Whether the limit lies outside the interval of the median."""
        return self.limit is None or not self.spread.low < self.limit < self.spread.high

    def data(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self) | {"met": self.met, "sure": self.sure}


@dataclass(frozen=True, kw_only=True)
class Family:
    """Rows that were measured together, and the single values behind them.

    series: title to arm to values, in the order of the rounds.
    """

    name: str
    about: str
    rows: Sequence[Row]
    series: Mapping[str, Mapping[str, Sequence[float]]] = field(default_factory=dict)


def machine() -> dict[str, Any]:
    """What of the machine has to be known to judge times, and nothing else."""
    model = platform.machine()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "cores": len(os.sched_getaffinity(0)),
        "processor": model,
        "memory_gb": round(pages / 2**30),
        "kernel": platform.release().split("-")[0],
    }


def stored(file: Path) -> dict[str, Any]:
    """The results of an earlier run, empty where there is none."""
    with contextlib.suppress(OSError, ValueError):
        data = json.loads(file.read_text())
        if isinstance(data, dict):
            return data
    return {}


def merged(earlier: dict[str, Any], about: Mapping[str, Any], families: Sequence[Family],
           tested: Mapping[str, Any]) -> dict[str, Any]:  # fmt: skip
    """The new families, and those of an earlier run on the same machine that were not repeated."""
    kept = earlier.get("families", {}) if earlier.get("about") == about else {}
    fresh = {
        family.name: {
            "about": family.about,
            **tested,
            "rows": [row.data() for row in family.rows],
            "series": {
                title: {arm: [round(v, 6) for v in values] for arm, values in arms.items()}
                for title, arms in family.series.items()
            },
        }
        for family in families
    }
    return {"about": dict(about), "families": {**kept, **fresh}}


def number(value: float) -> str:
    """Three digits that count, no more."""
    if value == 0:
        return "0"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def _shown(value: float, unit: str) -> str:
    return f"{value:.3f}" if unit == "x" else number(value)


def verdict(row: Mapping[str, Any]) -> str:
    """met, missed, or neither; with a word where the noise could turn it."""
    if row["met"] is None:
        return ""
    word = "met" if row["met"] else "**missed**"
    return word if row["sure"] else f"{word}, within the noise"


def table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Rows as Markdown."""
    lines = [
        "| | measured | 95 % of the median | limit | | ptrack 2.4 | medians |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        unit, spread = row["unit"], row["spread"]
        limit = ""
        if row["limit"] is not None:
            limit = f"{'≥' if row['at_least'] else '≤'} {row['limit']:g} {unit}"
        medians = ", ".join(f"{arm} {number(value)}" for arm, value in row["medians"].items())
        note = f" ({row['note']})" if row["note"] else ""
        low, high = _shown(spread["low"], unit), _shown(spread["high"], unit)
        lines.append(
            f"| {row['what']}{note} | {_shown(spread['median'], unit)} {unit} "
            f"| {low} … {high}, n = {spread['samples']} | {limit} | {verdict(row)} "
            f"| {row['before']} | {medians} |"
        )
    return lines


def markdown(
    data: Mapping[str, Any], session: str, plots: Sequence[str], absent: Sequence[str] = ()
) -> str:
    """The page of results. absent: families that have none."""
    about = data["about"]
    families = data["families"]
    rows = [row for family in families.values() for row in family["rows"]]
    judged = [row for row in rows if row["met"] is not None]
    missed = [row["what"] for row in judged if not row["met"]]
    lines = [
        "# What tracking costs",
        "",
        (
            f"PostgreSQL {about['postgresql']}, {about['cores']} cores ({about['processor']}), "
            f"{about['memory_gb']} GB, Linux {about['kernel']}. `./nox -s {session}` measures it "
            "again; docs/benchmarks.md says how."
        ),
        "",
        f"{len(judged)} rows have a limit: {len(judged) - len(missed)} met, {len(missed)} missed"
        + (f" ({'; '.join(missed)})." if missed else "."),
    ]
    if absent:
        lines += ["", f"Not measured yet: {', '.join(absent)}."]
    for name in plots:
        lines += ["", f"![{Path(name).stem}]({name})"]
    for family in families.values():
        lines += ["", f"## {family['about'].partition('.')[0]}", ""]
        rest = family["about"].partition(".")[2].strip()
        # what else ran is in the times
        load = f"Load average before it: {family.get('load_before', 0):g}."
        if "minutes" in family:
            load += f" It took {family['minutes']:g} minutes."
        lines += [f"{rest} {load}".strip(), ""]
        lines += table(family["rows"])
    return "\n".join(lines) + "\n"
