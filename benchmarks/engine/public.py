"""ptrack 2.4 beside it: PostgreSQL of the same source with the public core patch and extension.

Both come from a checkout that the caller names, are compiled as everything else is, and land in the
cache under keys of their own.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from typing import TYPE_CHECKING

from ptrack_build import cache
from ptrack_build import compile as compiling
from ptrack_build.errors import UsageError
from ptrack_build.patch import PatchedTree
from ptrack_build.progress import step
from ptrack_build.run import call
from ptrack_build.source import fetch
from ptrack_build.source.mirror import export

if TYPE_CHECKING:
    from pathlib import Path

    from ptrack_build.matrix import Major

VARIANT = replace(compiling.RELEASE, name="public")


def check(checkout: Path) -> None:
    """Raise UsageError for a directory that is no checkout of the public ptrack."""
    if not (checkout / "ptrack.control").is_file():
        what = f"{checkout} is no checkout of ptrack 2.x: it lacks ptrack.control"
        raise UsageError(what, hint="clone it, and name the directory")


def prefix(major: Major, checkout: Path, *, locked: bool = False) -> compiling.Prefix:
    """The prefix of a major with what is in the checkout.

    Raises UsageError where that has no patch, and what compiling raises.
    """
    names = (f"{major.branch}-ptrack-core.diff", "master-ptrack-core.diff")
    diffs = [path for name in names if (path := checkout / "patches" / name).is_file()]
    check(checkout)
    if not diffs:
        what = f"{checkout} has no patch for {major.branch}: it lacks patches/{names[-1]}"
        raise UsageError(what, hint="check out the branch or tag of ptrack that has it")
    source = fetch(major, locked=locked)
    place = cache.directory("build", "public")
    with cache.lock("the public ptrack"):
        tree, extension = place / "tree", place / "extension"
        try:
            for path in (tree, extension):
                cache.remove(path)
            tree.mkdir()
            with step(f"{diffs[0].name} onto PostgreSQL {source.version}"):
                export(source.mirror, source.commit, tree)
                env = {"GIT_CEILING_DIRECTORIES": str(place)}  # the tree is in no repository
                call(["git", "apply", diffs[0].absolute()], cwd=tree, env=env, quiet=True)
            shutil.copytree(checkout, extension, ignore=shutil.ignore_patterns(".git*", "patches"))
            makefile = extension / "Makefile"
            makefile.write_text("USE_PGXS = 1\n" + makefile.read_text())
            patched = PatchedTree(
                source=source, path=tree, key="", patch_digest=cache.digest(diffs[0]),
                how="applied",
            )  # fmt: skip
            return compiling.build(patched, VARIANT, extension=extension)
        finally:
            for path in (tree, extension):
                cache.remove(path)
