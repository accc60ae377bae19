"""Draw the results: `python plots.py engine-17.json`, in an environment that has matplotlib.

Three small SVG files beside the JSON: the rows against their limits and ptrack 2.4; checkpoints and
queries as the cluster grows; marks by writers.
"""

from __future__ import annotations

import json
import re
import statistics
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("svg")
# the same bytes for the same numbers
mpl.rcParams.update(
    {"svg.hashsalt": "ptrack", "svg.fonttype": "none", "font.size": 8, "axes.spines.top": False,
     "axes.spines.right": False, "legend.frameon": False}
)  # fmt: skip
from matplotlib import pyplot as plt  # noqa: E402  after the choice of what draws

OURS, THEIRS, LIMIT = "#1f6f8b", "#b8b8b8", "#c0392b"
COLOURS = ("#1f6f8b", "#e08e45", "#6a994e", "#7b5ea7", "#555555")


def _save(figure: Any, data: Path, name: str) -> None:  # noqa: ANN401  of a library without types
    figure.tight_layout()
    figure.savefig(data.with_name(f"{data.stem}-{name}.svg"), metadata={"Date": None})
    plt.close(figure)


def _leading(text: str) -> float | None:
    found = re.match(r"[0-9.]+", text)
    return float(found[0]) if found else None


def limits(families: dict[str, Any], data: Path) -> None:
    """Each row that has a limit, as a multiple of it."""
    rows = [r for f in families.values() for r in f["rows"] if r["limit"] is not None]
    if not rows:
        return
    figure, axes = plt.subplots(figsize=(7.5, 0.6 + 0.24 * len(rows)))
    for at, row in enumerate(reversed(rows)):
        # what exceeds 1 in a ratio is the cost; elsewhere the value itself
        value, limit = row["spread"]["median"], row["limit"]
        before = _leading(row["before"])
        if row["unit"] == "x":
            value, limit = abs(1 - value) * (1 if _costs(row, value) else -1), abs(1 - limit)
            before = None if before is None else abs(1 - before)
        axes.barh(at, max(value / limit, 0.0), color=OURS, height=0.6)
        if before is not None:
            axes.plot(before / limit, at, "|", color=THEIRS, markersize=9, markeredgewidth=3)
    axes.axvline(1, color=LIMIT, linewidth=1)
    axes.set_yticks(range(len(rows)), [row["what"] for row in reversed(rows)])
    axes.set_xscale("symlog", linthresh=1)
    axes.set_xlabel("multiples of the limit (red); grey: ptrack 2.4")
    _save(figure, data, "limits")


def _costs(row: dict[str, Any], value: float) -> bool:
    return value < 1 if row["at_least"] else value > 1


def growth(families: dict[str, Any], data: Path) -> None:
    """Median times over the size of the cluster, with their quartiles."""
    series = families.get("growth", {}).get("series", {})
    lines = {title: arms for title, arms in series.items() if len(arms) > 1}
    if not lines:
        return
    figure, axes = plt.subplots(figsize=(6, 3.4))
    at: list[int] = []
    for colour, (title, sizes) in zip(COLOURS, lines.items(), strict=False):
        at = [int(size.split()[0]) for size in sizes]
        medians = [statistics.median(values) for values in sizes.values()]
        axes.plot(at, medians, "o-", color=colour, markersize=3, label=title.replace(", ms,", ","))
        quartiles = [statistics.quantiles(values, n=4) for values in sizes.values()]
        axes.fill_between(
            at, [q[0] for q in quartiles], [q[2] for q in quartiles], color=colour, alpha=0.2,
            linewidth=0,
        )  # fmt: skip
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(at, [f"{size} GiB" if size < 1024 else f"{size // 1024} TiB" for size in at])
    axes.set_ylabel("ms")
    axes.set_xlabel("size of the cluster")
    axes.legend(fontsize=7)
    _save(figure, data, "growth")


def writers(families: dict[str, Any], data: Path) -> None:
    """Nanoseconds a mark by the number of writers."""
    series = families.get("mark", {}).get("series", {})
    lines: dict[str, dict[int, float]] = {}
    for title, arms in series.items():
        found = re.match(r"a mark, (\d+) writers, (.*), ns", title)
        if found:
            for arm in [arm for arm in arms if arm.endswith("MB")]:
                label = f"{found[2]}, {arm} map"
                lines.setdefault(label, {})[int(found[1])] = statistics.median(arms[arm])
    if not lines:
        return
    figure, axes = plt.subplots(figsize=(6, 3.2))
    for number, (label, points) in enumerate(lines.items()):
        axes.plot(
            list(points), list(points.values()), "o-" if number % 2 == 0 else "o--",
            color=COLOURS[number // 2 % len(COLOURS)], markersize=3, label=label,
        )  # fmt: skip
    axes.set_xscale("log", base=2)
    ticks = sorted({at for points in lines.values() for at in points})
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.set_ylim(bottom=0)
    axes.set_ylabel("ns on a core")
    axes.set_xlabel("writers")
    axes.legend(fontsize=7)
    _save(figure, data, "marks")


def main() -> None:
    """Draw all there is to draw."""
    data = Path(sys.argv[1])
    families = json.loads(data.read_text())["families"]
    limits(families, data)
    growth(families, data)
    writers(families, data)


if __name__ == "__main__":
    main()
