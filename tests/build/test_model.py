"""The models of the protocol: what they say of the C code is there, and spin agrees with them."""

from __future__ import annotations

import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from ptrack_build import REPO, host, model, mutants
from ptrack_build.errors import UsageError
from ptrack_build.run import Completed

if TYPE_CHECKING:
    from pathlib import Path

RULES = [rule for name in model.NAMES for rule in model.rules(name)]


def text(name: str) -> str:
    return (model.MODELS / f"{name}.pml").read_text()


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{rule.model}-{rule.name}")
def test_function_is_there(rule: model.Rule) -> None:
    """The function that obeys the rule exists: in the extension, or in an edit of the core."""
    if rule.where.endswith(".c"):
        source = (REPO / "extension/src" / rule.where).read_text()
        assert re.search(rf"^{rule.function}\(", source, re.MULTILINE)
        return
    edits = [path.read_text() for path in (REPO / "templates/core").rglob("*.j2")]
    assert any(
        re.search(rf"^in +{rule.function}$", e, re.MULTILINE) and rule.where in e for e in edits
    )


@pytest.mark.parametrize("name", model.NAMES)
def test_every_switch_is_explained(name: str) -> None:
    """Each NO_<rule> that a model tests has its comment, and the other way round."""
    switches = set(re.findall(r"\bNO_(\w+)", text(name)))
    stated = {rule.name for rule in model.rules(name)}
    assert stated
    assert stated == switches


def test_table_in_docs() -> None:
    """docs/model.md lists exactly the rules there are."""
    listed = re.findall(
        r"^\| `(\w+)` \| (\w+) \| `(\w+)` \|", (REPO / "docs/model.md").read_text(), re.MULTILINE
    )
    assert sorted(listed) == sorted((r.name, r.model, r.function) for r in RULES)


def test_mutants_in_docs() -> None:
    """Each rule has a mutant in docs/model.md that there is, or stands among those without one."""
    docs = (REPO / "docs/model.md").read_text()
    listed = re.findall(r"^\| `(\w+)` \| (\w+) \| ([^|`]+) \|$", docs, re.MULTILINE)
    without = re.findall(r"^- `([A-Z_]+)`: ", docs, re.MULTILINE)
    assert {(name, where) for name, where, _ in listed} <= {(r.name, r.model) for r in RULES}
    assert {mutant for _, _, mutant in listed} <= {mutant.name for mutant in mutants.load()}
    seen = {name for name, _, _ in listed}
    assert not seen & set(without)
    assert seen | set(without) == {rule.name for rule in RULES}


def test_unknown_model() -> None:
    with pytest.raises(UsageError, match="no model 'bufered'"):
        model.check(["bufered"])


@pytest.mark.parametrize("kept", [True, False], ids=["ccache", "no-ccache"])
def test_a_search(
    kept: object, own_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """How spin, the compiler and the verifier are called, and what is made of their output."""
    del own_cache
    calls: list[list[str]] = []
    stores: list[str | None] = []

    def call(argv: list[object], *, env: dict[str, str] | None = None, **_: object) -> Completed:
        calls.append([str(word) for word in argv])
        stores.append((env or {}).get("CCACHE_DIR"))
        output = " 12 states, stored\nState-vector 8 byte, depth reached 3, errors: 0\n"
        return Completed(argv=(), returncode=0, stdout=output)

    monkeypatch.setattr(model, "call", call)
    monkeypatch.setattr(host, "compiler", lambda: ["gcc"])
    store = tmp_path / "kept" if kept else None
    rule = next(rule for rule in RULES if rule.name == "CLEAR_FIRST")
    program = model.verifier("dirty", rule, tmp_path, store)
    verdict = model.search("dirty", rule, program)
    assert calls[0][:3] == ["spin", "-DNO_CLEAR_FIRST", "-a"]
    assert "-DNOREDUCE" in calls[1]
    assert calls[0][3:] == ["model/dirty.pml"]
    assert (program.parent / "model/dirty.pml").read_text() == text("dirty")
    first = ["ccache"] if store else []
    assert calls[1][: len(first) + 2] == [*first, "gcc", "-O1"]
    assert calls[1][-2:] == ["-c", "pan.c"]
    assert calls[2] == ["gcc", "-o", "pan", "pan.o"]
    assert stores == [None, str(store) if store else None, None, None]
    assert str(program) in calls[3]
    assert (verdict.found, verdict.expected, verdict.states) == ("nothing", "lost", 12)
    assert not verdict.right
    assert "WRONG: must be lost" in model.line(verdict)


@pytest.mark.parametrize(
    ("there", "disabled", "kept"), [(True, "", True), (True, "0", False), (False, "", False)]
)
def test_ccache_where_there_is_one(
    there: object, disabled: str, kept: object, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is used and its store made; without it, or where it is turned off, neither."""
    monkeypatch.setattr(shutil, "which", lambda name: name if there else None)
    monkeypatch.setenv("CCACHE_DISABLE", disabled)
    store = own_cache / "ccache"
    assert not store.exists()
    assert model._store() == (store if kept else None)
    assert store.is_dir() == bool(kept)


def test_searches_share_the_store(
    own_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each verifier of a run is compiled by way of the same store, below a folder of its own."""
    asked: list[tuple[str, str, Path | None]] = []

    def verifier(name: str, rule: model.Rule | None, folder: Path, store: Path | None) -> Path:
        asked.append((name, rule.name if rule else "all", store))
        place = folder / name / asked[-1][1]
        place.mkdir(parents=True)
        return place / "pan"

    def search(name: str, rule: model.Rule | None, program: Path) -> model.Verdict:
        # A verifier is large; it goes as soon as its search is over.
        assert list((tmp_path / "folder").glob("*/*")) == [program.parent]
        return model.Verdict(
            model=name, rule=rule, found=model.expected(rule), expected=model.expected(rule),
            states=1, complete=True, seconds=0.0,
        )  # fmt: skip

    monkeypatch.setattr(shutil, "which", lambda name: name)
    monkeypatch.delenv("CCACHE_DISABLE", raising=False)
    monkeypatch.setattr(model, "verifier", verifier)
    monkeypatch.setattr(model, "search", search)
    with ThreadPoolExecutor(1) as pool:
        verdicts = list(model._searches(pool, ["dirty", "load"], tmp_path / "folder"))
    names = [(name, rule) for name, rule, _ in asked]
    assert names == [(v.model, v.rule.name if v.rule else "all") for v in verdicts]
    assert {store for _, _, store in asked} == {own_cache / "ccache"}
    assert not list((tmp_path / "folder").glob("*/*"))


@pytest.mark.skipif(shutil.which("spin") is None, reason="spin is not installed")
@pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed")
def test_smallest_model(own_cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One model from the beginning to the end; the session `model` does them all."""
    del own_cache
    verdicts = model.check(["dirty"])
    assert all(verdict.right for verdict in verdicts)
    assert len(verdicts) == 1 + len(model.rules("dirty"))
    assert "all rules" in capsys.readouterr().out
