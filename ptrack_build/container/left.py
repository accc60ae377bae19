"""Scratch whose name says who has it, so that the next run removes what a killed one left.

    name ── mkdir ── SIGKILL ── sweep ──▶ nothing

Who lives can be told of the same boot and PID namespace alone. What others have made is for
cache.sweep, which takes it when it is a day old.
"""

from __future__ import annotations

import re
import secrets
from typing import TYPE_CHECKING

from ptrack_build import cache
from ptrack_build.container import box

if TYPE_CHECKING:
    from pathlib import Path


def name(kind: str) -> str:
    """What nobody else calls scratch of a kind; cache.SCRATCH matches it."""
    boot, namespace, pid, start = box.owner().split()
    return f".{kind}.{_space(boot, namespace)}.{pid}.{start}.{secrets.token_hex(4)}.part"


def sweep(parent: Path, kind: str) -> None:
    """Remove what is there of that kind and has lost its owner, and any scratch of long ago."""
    cache.sweep(parent)
    boot, namespace, *_ = box.owner().split()
    ours = rf"\.{kind}\.{_space(boot, namespace)}\.(\d+)\.(\d+)\.[0-9a-f]{{8}}\.part"
    for path in parent.glob(f".{kind}.*.part"):
        found = re.fullmatch(ours, path.name)
        if found and not box.lives([boot, namespace, *found.groups()]):
            cache.remove(path)


def _space(boot: str, namespace: str) -> str:
    """Where numbers of processes mean the same."""
    return cache.digest(boot, namespace)[:8]
