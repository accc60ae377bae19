"""Fixtures of the tests of sources: an empty cache, no network, no settings of the caller."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from ptrack_build import cache
from ptrack_build.source import git, net, tarball
from tests.build._sources import Server, serving

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NOWHERE = "http://127.0.0.1:9"  # the port "discard": refused at once


@pytest.fixture(autouse=True)
def cache_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache of this test."""
    for name in list(os.environ):
        if name.startswith(("PTRACK_", "GIT_")) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    root = tmp_path / "cache"
    monkeypatch.setenv("PTRACK_CACHE", str(root))
    monkeypatch.setenv("PTRACK_PG_TARBALLS", NOWHERE)
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setattr(git, "SERVERS", (f"{NOWHERE}/postgresql.git",))
    monkeypatch.setattr(net, "CONNECT_SECONDS", 2.0)
    monkeypatch.setattr(tarball, "STALL_SECONDS", 0.4)
    monkeypatch.setattr(tarball, "PAUSE_SECONDS", 0.01)
    return cache.root()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A download server, and the one that is asked."""
    with serving() as running:
        monkeypatch.setenv("PTRACK_PG_TARBALLS", running.url)
        yield running
