"""CI: what there is to run as data, and the workflows generated from it.

ptrack_build/workflows/*.yml.j2 become .github/workflows/*.yml; lint fails where they differ.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ptrack_build import REPO, cache, host
from ptrack_build.errors import PtrackError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from ptrack_build.matrix import Major, Matrix

TEMPLATES = Path(__file__).parent / "workflows"
TARGET = Path(".github") / "workflows"

#: Of the sessions that check something, whatever the major, those that are not run once a push: the
#: night has `drift`, lint looks at the workflows, and `matrix` is what a workflow asks.
NOT_PUSHED = {"drift", "matrix", "workflows"}

#: What makes a session look without writing, as a CI wants it.
WORDS = {"patches": "-- --check", "workflows": "-- --check"}

#: What takes too long for every push, by the name of its job: other sizes of blocks and segments
#: (beyond 4 GiB with large blocks). night() adds to it.
NIGHT = {
    "blocks-1k-17": "test-17 -- --variant blocks-1k",
    "blocks-32k-17": "test-17 -- --variant blocks-32k",
}

#: Packages for other systems than the runner's, in containers of these, by the name of the job; one
#: command after the other. What EL 9 has to run PostgreSQL's TAP tests with is in none of the
#: repositories that its image asks. All are verified in clean containers; sid has days on which it
#: is not to be had.
PACKAGES = {
    "rpm-17-fedora": ("rpm-17 -- --image fedora:43", "verify-packages -- --system fedora"),
    "rpm-17-el": (
        "rpm-17 -- --image almalinux:9 --without taptests",
        "verify-packages -- --system almalinux",
    ),
    **{
        f"deb-{suite}": (
            f"deb-15 deb-17 deb-18 -- --image debian:{suite}{more}",
            f"verify-packages -- --system {suite}{more}",
        )
        for suite, more in (("bookworm", ""), ("trixie", ""), ("sid", " --may-skip"))
    },
}

#: Where the workflows keep the cache, below the checkout: actions refuse paths with `..` in them,
#: and upload-artifact passes over hidden directories.
CACHE = "ptrack-cache"

#: What decides, besides the source, how a server comes out.
SHARED_INPUTS = ("ptrack_build/compile.py", "ptrack_build/host.py", "templates/core")


def matrix(majors: Matrix, sessions: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """What there is to run.

    sessions: names with their tags. `include` is for a CI's matrix: one row a major, with its
    session and the key under which its cache may be kept; `sessions` has, by family, for each
    session what a CI writes after `./nox -s`.
    """
    families: dict[str, list[str]] = {}
    for name, tags in sessions.items():
        # a session over all majors has its family's name for a tag, too
        family = "all" if "all" in tags else tags[0]
        families.setdefault(family, []).append(f"{name} {WORDS[name]}" if name in WORDS else name)
    return {
        "majors": [
            {"name": m.name, "number": m.number, "branch": m.branch, "state": m.state}
            for m in majors.majors
        ],
        "sessions": families,
        "include": [
            {
                "major": m.name,
                "state": m.state,
                "session": f"test-{m.name}",
                "key": content_key(m),
                "experimental": m.state in {"beta", "devel"},
            }
            for m in majors.majors
        ],
    }


def content_key(major: Major) -> str:
    """A hash over what this tree contributes to a major's server, for naming a CI's cache."""
    diff = REPO / "patches" / f"{major.branch}-ptrack-core.diff"
    inputs = [REPO / name for name in SHARED_INPUTS]
    parts = [path for path in (*inputs, diff) if path.exists()]
    return f"pg{major.name}-{cache.digest(repr(major), *parts)[:16]}"


def night(majors: Matrix) -> dict[str, str]:
    """What a night runs, by the names of its jobs: NIGHT, and for every major what takes long.

    The state machine has an hour. Each protection is taken out in turn, and the servers run without
    the core patch: hooks are elsewhere in some majors. The diffs are tried on every release that
    has a tag. The latter two not on devel, whose tip the patch may not fit: `drift` tells that.
    """
    deep = {f"deep-{major.name}": f"test-{major.name} -- --deep=60" for major in majors.majors}
    released = [major.name for major in majors.majors if major.state != "devel"]
    minors = f"patches -- --check --minors {' '.join(released)}"
    names = [f"mutants-{name}" for name in released]
    return deep | {"minors": minors} | NIGHT | {name: name for name in names}


def render(majors: Matrix, sessions: Mapping[str, Sequence[str]]) -> dict[Path, str]:
    """The workflows by their path below the repository. sessions: as for matrix().

    Raises PtrackError where what the night is to run is no session.
    """
    import jinja2

    listed = matrix(majors, sessions)
    checks = [words for words in listed["sessions"]["check"] if words.split()[0] not in NOT_PUSHED]
    jobs = night(majors)
    nightly = [*jobs.values(), *(words for each in PACKAGES.values() for words in each)]
    named = {name for words in nightly for name in words.partition(" -- ")[0].split()}
    unknown = sorted(named - sessions.keys())
    if unknown:
        what = f"the night is to run {', '.join(unknown)}, which is no session"
        raise PtrackError(what, hint="adapt NIGHT and PACKAGES in ptrack_build/ci.py")

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        undefined=jinja2.StrictUndefined,
        # ${{ }} is the workflows' own
        variable_start_string="[[",
        variable_end_string="]]",
        block_start_string="[%",
        block_end_string="%]",
        comment_start_string="[#",
        comment_end_string="#]",
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
    wanted = (*host.TOOLS, *host.EXTRAS, *("zlib", "readline", "icu", "openssl", "lz4", "zstd"))

    def packages(needs: Iterable[str]) -> str:
        return " ".join(dict.fromkeys(name for need in needs for name in host.NEEDS[need].apt))

    return {
        TARGET / source.name.removesuffix(".j2"): environment.get_template(source.name).render(
            rows=listed["include"],
            checks=[(words.split()[0], words) for words in checks],
            night=jobs.items(),
            packaged=PACKAGES.items(),
            cache=CACHE,
            packages=packages(wanted),
            model_packages=packages(("spin", "cc")),
        )
        for source in sorted(TEMPLATES.glob("*.yml.j2"))
    }


def write(majors: Matrix, sessions: Mapping[str, Sequence[str]], repo: Path) -> None:
    """Write the workflows, and remove those that nothing renders any more."""
    rendered = render(majors, sessions)
    (repo / TARGET).mkdir(parents=True, exist_ok=True)
    for path in (repo / TARGET).glob("*.yml"):
        if path.relative_to(repo) not in rendered:
            path.unlink()
    for name, text in rendered.items():
        (repo / name).write_text(text)
        print(f"wrote {name}")


def check(majors: Matrix, sessions: Mapping[str, Sequence[str]], repo: Path) -> None:
    """Raise PtrackError with the first differing lines where a workflow is not what is rendered."""
    rendered = render(majors, sessions)
    present = {p.relative_to(repo): p.read_text() for p in (repo / TARGET).glob("*.yml")}
    problems = []
    for name in sorted({*rendered, *present}):
        old, new = present.get(name), rendered.get(name)
        if old == new:
            continue
        if old is None or new is None:
            problems.append(f"{name} {'is missing' if old is None else 'is rendered by nothing'}")
            continue
        lines = difflib.unified_diff(
            old.splitlines(), new.splitlines(), f"{name} as committed", f"{name} as rendered",
            lineterm="", n=1,
        )  # fmt: skip
        problems.append("\n".join(list(lines)[:14]))
    if problems:
        raise PtrackError("\n".join(problems), hint="./nox -s workflows, and commit what it writes")
