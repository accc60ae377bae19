"""The models of the protocol in model/, checked by spin: docs/model.md says what they stand for.

Each model is searched exhaustively with every rule on, which must find nothing, and once more for
each of its rules with that rule off, which must find what the rule is there for.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ptrack_build import REPO, cache, host
from ptrack_build.errors import PtrackError, UsageError
from ptrack_build.progress import duration, say
from ptrack_build.run import beside, call

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from concurrent.futures import Executor

MODELS = REPO / "model"
MEMORY_MB = 4000
DEPTH = 100_000

#: lost: a changed block is not reported; refused: a sound map is thrown away, or a sound parent is
#: not served.
Finding = Literal["nothing", "lost", "refused"]


class ModelFailed(PtrackError):
    """A model found what it must not, or did not find what it must."""


@dataclass(frozen=True, kw_only=True)
class Rule:
    """A rule of the protocol, as a comment of a model states it.

    Defining NO_<name> turns it off, which stands for that mutation of the C function; where says
    in which file of extension/src the function is, or which hook is called from a function of
    PostgreSQL's.
    """

    model: str
    name: str
    function: str
    where: str
    mutation: str


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a search found. states: those stored; complete: all there are; seconds: of the search.

    rule is None with every rule on.
    """

    model: str
    rule: Rule | None
    found: Finding
    expected: Finding
    states: int
    complete: bool
    seconds: float

    @property
    def right(self) -> bool:
        """Whether it is what has to be found."""
        return self.found == self.expected and (self.complete or self.found != "nothing")


#: In order of the protocol; common.pml is included by all.
NAMES = (
    "dirty", "buffered", "unbuffered", "grown", "truncate", "labelled", "flush", "through", "load",
    "basebackup", "anew",
)  # fmt: skip

#: Rules that keep a map or a parent from being refused for nothing; without any other a block is
#: lost.
COSTS = {
    ("load", "CONTROL_LAST"),
    ("basebackup", "LABEL"),
    ("anew", "STARTED"),
    ("truncate", "RECOVERY_NOTED"),
    ("truncate", "RECOVERY_KEPT"),
}

_RULE = re.compile(r"/\* RULE (\w+) (\w+) \((\w+(?:\.c)?)\): ([^*]+) \*/")
_STATES = re.compile(r"^\s*(\d+) states, stored", re.MULTILINE)


def rules(model: str) -> list[Rule]:
    """The rules that a model can do without, in the order of its text."""
    text = (MODELS / f"{model}.pml").read_text()
    return [
        Rule(model=model, name=name, function=function, where=where, mutation=mutation)
        for name, function, where, mutation in _RULE.findall(text)
    ]


def check(selected: Sequence[str] = ()) -> list[Verdict]:
    """Search the models, or those named, with every rule on and with each off; prints a table.

    Raises UsageError for a name that is no model's, HostError where spin or gcc is missing and
    cannot be installed, ModelFailed when a verdict is not the right one.
    """
    for name in selected:
        if name not in NAMES:
            what = f"there is no model {name!r}"
            raise UsageError(what, hint=f"models: {', '.join(NAMES)}")
    host.ensure(["spin", "cc"])
    began = time.monotonic()
    verdicts = []
    with (
        tempfile.TemporaryDirectory(prefix="ptrack-model-") as folder,
        beside(_at_once()) as pool,
    ):
        for verdict in _searches(pool, selected or NAMES, Path(folder)):
            say(line(verdict))
            verdicts.append(verdict)
    wrong = [verdict for verdict in verdicts if not verdict.right]
    say(f"{len(verdicts)} searches in {duration(time.monotonic() - began)}, {len(wrong)} wrong")
    if wrong:
        what = "\n".join(line(verdict) for verdict in wrong)
        raise ModelFailed(what, hint="docs/model.md: How to read a counterexample")
    return verdicts


def line(verdict: Verdict) -> str:
    """A row of the table."""
    rule = verdict.rule
    off = f"without {rule.name}" if rule else "all rules"
    extent = "" if verdict.complete or verdict.found != "nothing" else ", not all searched"
    mark = "" if verdict.right else f"  WRONG: must be {verdict.expected}"
    what = f"{verdict.found}{extent}"
    row = f"{verdict.model:<11} {off:<28} {what:<9} {verdict.states:>10,} states"
    return f"{row} {verdict.seconds:6.1f} s{mark}"


def expected(rule: Rule | None) -> Finding:
    """What a search must find with this rule off."""
    if rule is None:
        return "nothing"
    return "refused" if (rule.model, rule.name) in COSTS else "lost"


def _searches(pool: Executor, names: Sequence[str], folder: Path) -> Iterator[Verdict]:
    """Search with every rule on and with each off, some beside each other; told in order."""
    variants = [(name, rule) for name in names for rule in (None, *rules(name))]
    store = _store()

    def one(variant: tuple[str, Rule | None]) -> Verdict:
        program = verifier(*variant, folder, store)
        try:
            return search(*variant, program)
        finally:
            shutil.rmtree(program.parent)

    return pool.map(one, variants)


def _at_once() -> int:
    """How many searches at once: one a core, as far as each may have all the memory it can ask."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2**20
    return max(1, min(host.cpus(), memory // MEMORY_MB))


def _store() -> Path | None:
    """Where ccache keeps what it compiled, or None without ccache."""
    if shutil.which("ccache") and not os.environ.get("CCACHE_DISABLE"):
        return cache.directory("ccache")
    return None


def verifier(model: str, rule: Rule | None, folder: Path, store: Path | None) -> Path:
    """Have spin make the verifier of a model with a rule off, and compile it."""
    place = folder / model / (rule.name if rule else "all")
    place.mkdir(parents=True)
    define = [f"-DNO_{rule.name}"] if rule else []
    # spin writes the model's path into the verifier: the same one, wherever the models are.
    (place / "model").symlink_to(MODELS)
    source = f"model/{model}.pml"
    call(["spin", *define, "-a", source], cwd=place, capture=True, quiet=True)
    optimize = "-O1" if rule else "-O2"
    flags = [optimize, "-w", "-DSAFETY", "-DNOREDUCE", f"-DMEMLIM={MEMORY_MB}"]
    compiler = host.compiler()
    # Where there is ccache, it knows what the same spin, model and compiler made before.
    first = ["ccache"] if store else []
    env = {"CCACHE_DIR": str(store)} if store else None
    compiled = [*first, *compiler, *flags, "-c", "pan.c"]
    call(compiled, cwd=place, env=env, capture=True, quiet=True)
    call([*compiler, "-o", "pan", "pan.o"], cwd=place, capture=True, quiet=True)
    return place / "pan"


def search(model: str, rule: Rule | None, program: Path) -> Verdict:
    """Run a verifier to its end, or to the first error."""
    began = time.monotonic()
    output = call(
        ["nice", "-n", "15", program, f"-m{DEPTH}", "-w22", "-n"],
        cwd=program.parent, capture=True, quiet=True,
    ).stdout  # fmt: skip
    seconds = time.monotonic() - began
    if "errors: 0" in output:
        found: Finding = "nothing"
    elif "assertion violated" in output and (kind := _kind(model, program.parent)):
        found = kind
    else:
        what = f"the search of {model} ended otherwise than it can:\n{output.strip()}"
        raise ModelFailed(what)
    states = _STATES.search(output)
    return Verdict(
        model=model,
        rule=rule,
        found=found,
        expected=expected(rule),
        states=int(states[1]) if states else 0,
        complete="Search not completed" not in output and "max search depth" not in output,
        seconds=seconds,
    )


def _kind(model: str, place: Path) -> Finding | None:
    """Which macro of common.pml the violated assertion came from."""
    name = place.name
    define = [] if name == "all" else [f"-DNO_{name}"]
    trail = place / f"{model}.pml.trail"
    replay = ["spin", *define, "-t", "-k", str(trail), str(MODELS / f"{model}.pml")]
    output = call(replay, cwd=place, capture=True, check=False, quiet=True).stdout
    where = re.search(r"spin: \S*?(\w+\.pml):(\d+), Error: assertion violated", output)
    if where is None:
        return None
    text = (MODELS / where[1]).read_text().splitlines()[int(where[2]) - 1]
    return "refused" if "refused(" in text else "lost" if "lost(" in text else None
