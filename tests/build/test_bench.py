"""The arithmetic of the benchmarks: medians, intervals, verdicts, what is kept of earlier runs."""

from __future__ import annotations

import contextlib
import json
import math
import random
import re
import shutil
import sys
from typing import TYPE_CHECKING, Any

import pytest

from benchmarks import build_line
from benchmarks.engine import __main__ as program
from benchmarks.engine import extra, public, results, run, sampling, servers, unpatched
from benchmarks.engine.results import Family, Row
from ptrack_build import REPO, cache, host, matrix
from ptrack_build import compile as compiling
from ptrack_build.errors import UsageError
from tests.harness.install import Install

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tests.build.conftest import Fake


def spread(median: float, low: float, high: float) -> sampling.Spread:
    return sampling.Spread(median=median, low=low, high=high, samples=9)


def install(path: Path) -> Install:
    return Install(prefix=path, bindir=path, sharedir=path, version="17.1", major=17)


def test_each_arm_has_its_turn_and_the_order_turns_round() -> None:
    seen: list[tuple[str, int]] = []

    def measure(arm: str, number: int) -> float:
        seen.append((arm, number))
        return float(len(seen))

    found = sampling.rounds("ab", 2, measure)
    assert seen == [("a", 0), ("b", 0), ("b", 1), ("a", 1)]
    assert found == {"a": [1.0, 4.0], "b": [2.0, 3.0]}


def test_a_drift_over_all_arms_does_not_look_like_a_difference() -> None:
    clock = iter(range(1, 1000))
    found = sampling.rounds("ab", 40, lambda _arm, _number: float(next(clock)))
    assert sampling.difference(found["a"], found["b"]).median == 0


@pytest.mark.parametrize("count", [6, 7, 20, 41])
def test_the_interval_holds_the_median_as_often_as_it_says(count: int) -> None:
    chance = random.Random(count)
    tries = 2000
    hits = 0
    for _ in range(tries):
        told = sampling.spread([chance.expovariate(1.0) for _ in range(count)])
        hits += told.low <= math.log(2) <= told.high
    assert 0.94 <= hits / tries < 0.995


def test_few_values_have_no_interval_but_their_ends() -> None:
    told = sampling.spread([3.0, 1.0, 2.0])
    assert (told.low, told.median, told.high) == (1.0, 2.0, 3.0)
    with pytest.raises(ValueError, match="nothing was measured"):
        sampling.spread([])


def test_ratios_are_taken_round_by_round() -> None:
    assert sampling.ratio([2.0, 20.0, 200.0], [1.0, 10.0, 100.0]).high == 2.0


@pytest.mark.parametrize(
    ("median", "at_least", "met"),
    [(1.0, False, True), (1.1, False, False), (1.0, True, True), (0.9, True, False)],
)
def test_a_row_is_met_at_its_limit(median: float, *, at_least: bool, met: bool) -> None:
    row = Row(what="r", spread=spread(median, 0.8, 0.85), unit="x", limit=1.0, at_least=at_least)
    assert row.met is met
    assert row.sure


def test_a_missed_row_is_written_as_missed() -> None:
    rows = [
        Row(what="slow", spread=spread(3, 2.5, 3.5), unit="ms", limit=2.0),
        Row(what="unclear", spread=spread(3, 1.5, 3.5), unit="ms", limit=2.0),
        Row(what="free", spread=spread(3, 2.5, 3.5), unit="ms"),
    ]
    data = results.merged({}, about(), [Family(name="f", about="A. B.", rows=rows)], {})
    page = results.markdown(data, "bench-17", [])
    assert "2 rows have a limit: 0 met, 2 missed (slow; unclear)." in page
    assert re.search(r"\| slow .*\| \*\*missed\*\* \|", page)
    assert re.search(r"\| unclear .*\*\*missed\*\*, within the noise", page)
    assert re.search(r"\| free \| 3 ms .*\|  \|  \|", page)


def about() -> dict[str, Any]:
    return {"postgresql": "17.1", **results.machine()}


def test_families_of_an_earlier_run_stay_if_the_machine_is_the_same() -> None:
    row = Row(what="r", spread=spread(1, 1, 1), unit="ms")
    one, other = (Family(name=name, about="A.", rows=[row]) for name in ("one", "other"))
    first = results.merged({}, about(), [one], {"extension": "1"})
    both = results.merged(first, about(), [other], {"extension": "2"})
    assert [f["extension"] for f in both["families"].values()] == ["1", "2"]
    elsewhere = results.merged(first, about() | {"cores": 99}, [other], {})
    assert list(elsewhere["families"]) == ["other"]


@pytest.mark.parametrize("public", [True, False])
def test_the_sockets_of_every_arm_are_in_one_directory(tmp_path: Path, *, public: bool) -> None:
    here = install(tmp_path)
    bench = servers.Bench(install=here, place=tmp_path, public=here if public else None)
    arms = bench.tracking(64, 1024)
    assert len(arms) == (4 if public else 2)
    for arm in (servers.OFF, servers.CONTROL, servers.DISABLED, servers.UNPATCHED, *arms):
        assert re.fullmatch(r"[\w.-]+", bench._new(arm.name).root.name)


def test_the_formula_gives_what_the_documentation_says() -> None:
    table = (REPO / "docs" / "operating.md").read_text()
    cells = re.search(r"^\| 1024 \| (\d+) \| (\d+) \| (\d+) \| (\d+) \|$", table, re.MULTILINE)
    assert cells is not None
    slots = 1024 * 2**20 / 8
    shares = (0.01, 0.05, 0.10, 0.20)
    assert [round(extra.expected(share, slots)) for share in shares] == [
        int(cell) for cell in cells.groups()
    ]


def test_what_a_killed_measurement_leaves_is_swept(own_cache: Path) -> None:
    with build_line._cache_of_its_own(2) as place:
        assert place == cache.root() != own_cache
        assert cache.SCRATCH.fullmatch(place.name)
    assert not place.exists()


def test_cold_builds_are_held_against_bare_ones_in_pairs() -> None:
    def took(*seconds: float) -> list[build_line.Took]:
        return [build_line.Took(clock=each, cores=2 * each) for each in seconds]

    clock, cores = build_line._against("17", took(102, 330, 104), took(100, 300, 100))
    assert (round(clock.value, 3), round(cores.value, 3)) == (1.04, 1.04)
    assert clock.met
    assert cores.met
    assert "pairs: 1.020, 1.100, 1.040" in clock.detail


def test_the_bare_build_is_of_the_same_flags_and_jobs(
    fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[tuple[str, ...]] = []

    def call(argv: Sequence[object], **_options: object) -> None:
        ran.append(tuple(map(str, argv)))

    monkeypatch.setattr(build_line, "call", call)
    build_line._bare(fake.tree, compiling.RELEASE, tmp_path)
    configure, *makes = ran
    assert configure[1:] == compiling.flags(fake.tree, compiling.RELEASE)
    assert [words[:2] for words in makes] == [("make", f"-j{host.jobs()}")] * len(makes)


@pytest.mark.skipif(not (shutil.which("gcc") and shutil.which("make")), reason="gcc and make")
def test_the_server_without_the_patch_is_of_the_same_source_and_flags(
    fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host, "ensure", lambda *_args, **_options: None)
    monkeypatch.setattr(
        unpatched, "exported", lambda *_args: contextlib.nullcontext(fake.tree.path)
    )
    ours = compiling.build(fake.tree, compiling.RELEASE, extension=fake.extension)
    theirs = unpatched.server(fake.tree.source)
    one, other = (
        json.loads((path / ".ptrack" / "info.json").read_text()) for path in (ours.path, theirs)
    )
    same = ("version", "source", "configure", "compiler", "libraries")
    assert [one[name] for name in same] == [other[name] for name in same]
    assert (one["patch"]["how"], other["patch"]["how"]) == ("applied", "unpatched")
    assert not (theirs / "lib" / "ptrack.so").exists()
    monkeypatch.setenv("FAKE_CONFIGURE_FAILS", "1")
    assert unpatched.server(fake.tree.source) == theirs


def test_a_checkout_of_the_public_ptrack_is_looked_at_before_anything_is_built(
    tmp_path: Path,
) -> None:
    major = matrix.load().major("15")
    (tmp_path / "HEAD").touch()
    (tmp_path / "objects").mkdir()
    with pytest.raises(UsageError, match=r"lacks ptrack\.control") as bare:
        public.diff(major, tmp_path)
    assert f"git clone {tmp_path}" in str(bare.value.hint)
    (tmp_path / "ptrack.control").touch()
    with pytest.raises(UsageError, match="no patch for REL_15_STABLE"):
        public.diff(major, tmp_path)
    patches = tmp_path / "patches"
    patches.mkdir()
    for name in ("master", "REL_15_STABLE"):
        (patches / f"{name}-ptrack-core.diff").touch()
        assert public.diff(major, tmp_path).name == f"{name}-ptrack-core.diff"


def test_a_family_that_fails_leaves_the_others_their_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "engine.json"

    def failing(_bench: servers.Bench) -> Family:
        what = "no"
        raise AssertionError(what)

    def good(_bench: servers.Bench) -> Family:
        row = Row(what="r", spread=spread(1, 1, 1), unit="ms")
        return Family(name="growth", about="A. B.", rows=[row])

    monkeypatch.setattr(program, "files", lambda _major: (file, file.with_suffix(".md")))
    monkeypatch.setattr(program, "module", lambda *_args: install(tmp_path))
    monkeypatch.setattr(program, "terminate_politely", lambda: None)
    monkeypatch.setattr(program, "MEASURES", {**program.MEASURES, "mark": failing, "growth": good})
    words = ["engine", "--prefix=/", "--major=17", "--version=17.1", "--extension=1"]
    monkeypatch.setattr(sys, "argv", [*words, "mark", "growth"])
    assert program.main() == 1
    stored = results.stored(file)
    assert list(stored["families"]) == ["growth"]
    page = results.markdown(stored, "bench-17", [])
    assert "It took 0 minutes." in page


def test_every_family_of_rows_is_documented() -> None:
    page = (REPO / "docs" / "benchmarks.md").read_text()
    assert tuple(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)) == run.FAMILIES


def test_the_lock_of_the_plots_has_hashes_and_names_no_address() -> None:
    text = (REPO / "requirements" / "bench.txt").read_text()
    assert "://" not in text
    assert not re.search(r"^\s*-{1,2}(i|f|index|extra|find|trusted)", text, re.MULTILINE)
    assert re.search(r"^matplotlib==", text, re.MULTILINE)
    for block in re.split(r"\n(?=[a-z])", text)[1:]:
        assert "--hash=sha256:" in block, block
