"""ptrack 2.4 beside it: PostgreSQL of the same source with the public core patch and extension.

Both come from a checkout that the caller names, are compiled as everything else is, and land in the
cache under keys of their own.
"""

from __future__ import annotations

import contextlib
import shutil
from dataclasses import replace
from typing import TYPE_CHECKING

from ptrack_build import cache
from ptrack_build import compile as compiling
from ptrack_build.errors import CommandFailed, UsageError
from ptrack_build.patch import PatchedTree
from ptrack_build.progress import step
from ptrack_build.run import call
from ptrack_build.source.mirror import export

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from ptrack_build.matrix import Major
    from ptrack_build.source import SourceTree

VARIANT = replace(compiling.RELEASE, name="public")


def diff(major: Major, checkout: Path) -> Path:
    """The core patch that a checkout has for a major.

    Raises UsageError for what is no checkout of the public ptrack, or has none.
    """
    if not (checkout / "ptrack.control").is_file():
        bare = (checkout / "HEAD").is_file() and (checkout / "objects").is_dir()
        what = f"{checkout} is no checkout of ptrack 2.x: it lacks ptrack.control"
        hint = f"git clone {checkout} DIRECTORY, and name that" if bare else "clone it, and name it"
        raise UsageError(what, hint=hint)
    names = (f"{major.branch}-ptrack-core.diff", "master-ptrack-core.diff")
    for name in names:
        if (path := checkout / "patches" / name).is_file():
            return path.absolute()
    what = f"{checkout} has no patch for {major.branch}: it lacks patches/{names[-1]}"
    raise UsageError(what, hint="check out the branch or tag of ptrack that has it")


@contextlib.contextmanager
def exported(source: SourceTree, name: str) -> Iterator[Path]:
    """The files of a source, to be changed and compiled; removed at the end.

    They lie in <cache>/build/<name>/tree, which is in no repository for git run there.
    """
    place = cache.directory("build", name)
    tree = place / "tree"
    with cache.lock(f"the {name} PostgreSQL"):
        try:
            cache.remove(tree)
            tree.mkdir()
            export(source.mirror, source.commit, tree)
            yield tree
        finally:
            cache.remove(tree)


def prefix(source: SourceTree, checkout: Path) -> compiling.Prefix:
    """The prefix of a source with what is in the checkout.

    Raises UsageError where that has no patch or one that does not fit, and what compiling raises.
    """
    patch = diff(source.major, checkout)
    with exported(source, "public") as tree:
        extension = tree.parent / "extension"
        try:
            cache.remove(extension)
            with step(f"{patch.name} onto PostgreSQL {source.version}"):
                _apply(patch, tree, source)
            shutil.copytree(checkout, extension, ignore=shutil.ignore_patterns(".git*", "patches"))
            makefile = extension / "Makefile"
            makefile.write_text("USE_PGXS = 1\n" + makefile.read_text())
            patched = PatchedTree(
                source=source, path=tree, key="", patch_digest=cache.digest(patch), how="applied"
            )
            return compiling.build(patched, VARIANT, extension=extension)
        finally:
            cache.remove(extension)


def _apply(patch: Path, tree: Path, source: SourceTree) -> None:
    env = {"GIT_CEILING_DIRECTORIES": str(tree.parent)}  # the tree is in no repository
    try:
        call(["git", "apply", patch], cwd=tree, env=env, quiet=True)
    except CommandFailed as error:
        what = f"{patch} does not fit PostgreSQL {source.version}:\n{error.tail}"
        hint = "measure a major that this checkout is for, or check out another branch"
        raise UsageError(what, hint=hint) from error
