"""PostgreSQL of the same source without the core patch: what the patch costs where it is not used.

Compiled as everything else is, by the same compiler with the same flags, and kept in the cache
under a key of its own. There is no extension.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from benchmarks.engine.public import exported
from ptrack_build import compile as compiling
from ptrack_build.patch import PatchedTree

if TYPE_CHECKING:
    from pathlib import Path

    from ptrack_build.source import SourceTree

VARIANT = replace(compiling.RELEASE, name="unpatched")


def server(source: SourceTree) -> Path:
    """Where it is installed. Raises what compiling raises."""
    with exported(source, "unpatched") as tree:
        bare = PatchedTree(source=source, path=tree, key="", patch_digest="", how="unpatched")
        return compiling.server(bare, VARIANT)
