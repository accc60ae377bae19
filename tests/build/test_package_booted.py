"""Booting a system for one task: what the system is told, what is read of it, what is refused."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from ptrack_build import host
from ptrack_build.errors import HostError
from ptrack_build.package import booted
from ptrack_build.run import Completed

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A system without systemd."""
    made = tmp_path / "root"
    (made / "etc/systemd/system").mkdir(parents=True)
    return made


def nspawn(monkeypatch: pytest.MonkeyPatch, root: Path) -> list[list[str]]:
    """In place of systemd-nspawn: run the task with the paths of root. What it was told."""
    told: list[list[str]] = []

    def call(argv: list[str], *, log: Path, **_how: object) -> Completed:
        told.append(argv)
        work = root / booted.WORK.relative_to("/")
        log.touch()
        ended = subprocess.run(["sh", work / "task"], cwd=work, capture_output=True, check=False)
        (work / "log").write_bytes(ended.stdout)
        return Completed(argv=tuple(argv), returncode=ended.returncode, stdout="")

    monkeypatch.setattr(booted, "call", call)
    return told


def test_the_task_is_told_its_environment_and_what_it_says_is_kept(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = nspawn(monkeypatch, root)
    log = tmp_path / "log"
    argv = ["sh", "-c", 'echo "$1: $WORDS in $HOME"', "sh", "it's"]
    env = {"WORDS": "two 'words'"}
    ended = booted.run(root, argv, env=env, seen=[tmp_path / "a"], log=log)
    assert ended == booted.Ended(well=True, said="it's: two 'words' in /root\n")
    assert log.read_text() == ended.said
    (words,) = told
    assert words[0] == "systemd-nspawn"
    assert {"--private-network", f"--bind-ro={tmp_path}/a", f"--directory={root}"} < set(words)
    unit = (root / "etc/systemd/system" / booted.UNIT).read_text()
    assert f"ExecStart=/bin/sh {booted.WORK}/task\n" in unit
    assert words[-1] == f"systemd.unit={booted.UNIT}"


def test_a_task_that_fails_ended_badly(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nspawn(monkeypatch, root)
    ended = booted.run(root, ["sh", "-c", "echo no; exit 3"], log=tmp_path / "log")
    assert ended == booted.Ended(well=False, said="no\n")


@pytest.mark.parametrize(
    ("systemd", "unified", "boots"),
    [
        ("252.39-1~deb12u1", False, True),
        ("257.9-1~deb13u1", False, False),
        ("257.9-1~deb13u1", True, True),
        ("260~rc1-1", False, False),
    ],
)
def test_a_systemd_that_needs_the_second_version_of_cgroups_is_not_booted_without(
    systemd: str,
    unified: bool,
    boots: bool,
    tmp_path: Path,
    own_cache: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert own_cache.is_dir()
    asked: list[list[str]] = []
    monkeypatch.setattr(host, "ensure", asked.append)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(booted, "CGROUPS", tmp_path if unified else tmp_path / "missing")
    if boots:
        booted.check(systemd)
    else:
        with pytest.raises(HostError, match=f"systemd {systemd[:3]} boots only on a host with"):
            booted.check(systemd)
    assert asked == ([["nspawn"]] if boots else [])


def test_only_root_can_boot_a_system(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(HostError, match="only root"):
        booted.check("252")


def test_no_system_is_copied_where_there_is_no_room(
    own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert own_cache.is_dir()
    monkeypatch.setattr(host, "ensure", lambda _needs: None)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(booted, "FREE_MB", 10**9)
    with pytest.raises(HostError, match="a system to boot takes"):
        booted.check("252")
