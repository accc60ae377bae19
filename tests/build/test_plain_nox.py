"""A nox from elsewhere, with nothing of ours beside it, works like ./nox."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import venv
from importlib import metadata
from typing import TYPE_CHECKING

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from ptrack_build import matrix
from tests.build.conftest import REPO

if TYPE_CHECKING:
    from pathlib import Path

#: What would lead nox back to the tools that are ours, by the beginning of its name.
OURS = ("NOX_", "PYTHON", "VIRTUAL_ENV")


def needed(name: str) -> set[str]:
    """A package, and what it needs on this Python, by the names that the lock has."""
    found: set[str] = set()
    waiting = [name]
    while waiting:
        each = canonicalize_name(waiting.pop())
        if each not in found:
            found.add(each)
            wanted = map(Requirement, metadata.requires(each) or ())
            waiting += [
                r.name for r in wanted if r.marker is None or r.marker.evaluate({"extra": ""})
            ]
    return found


def locked(names: set[str]) -> str:
    """The lines of the lock for these packages, with their hashes."""
    text = (REPO / "requirements" / "lock.txt").read_text()
    blocks = re.findall(r"^[a-z0-9][^\n]*(?:\n {4}[^\n]*)*", text, re.MULTILINE)
    return "\n".join(block for block in blocks if re.split("[=[ ]", block)[0] in names) + "\n"


@pytest.fixture(scope="module")
def nox(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A nox in an environment that has nothing else. Skips where no package index answers."""
    place = tmp_path_factory.mktemp("elsewhere")
    venv.create(place / "venv", with_pip=False, symlinks=True)
    wanted = place / "nox.txt"
    wanted.write_text(locked(needed("nox")))
    python = place / "venv" / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "--disable-pip-version-check"]
    install = ["install", "--require-hashes", "--no-deps", "--retries=1", "--timeout=10"]
    done = subprocess.run(
        [*pip, *install, "-q", "-r", str(wanted)], check=False, capture_output=True, text=True,
        timeout=240, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    if done.returncode != 0:
        last = done.stderr.strip().splitlines()[-1:] or ["pip said nothing"]
        pytest.skip(f"nox could not be installed: {last[0]}")
    return python.with_name("nox")


@pytest.mark.network
def test_a_nox_from_elsewhere_gets_itself_what_the_noxfile_needs(nox: Path, tmp_path: Path) -> None:
    """By the head of the noxfile, which no other test reads: all that is installed is nox."""
    python = nox.with_name("python")
    asked = subprocess.run([python, "-c", "import msgspec"], check=False, capture_output=True)
    assert asked.returncode != 0, "the environment has more than nox"
    env = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
    env["PATH"] = f"{nox.parent}:{env.get('PATH', os.defpath)}"

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        # Its environment for the noxfile goes to --envdir, not to the checkout; made once.
        done = subprocess.run(
            [nox, "-f", str(REPO / "noxfile.py"), "--envdir", str(tmp_path / "envs"), *words],
            check=False, capture_output=True, text=True, timeout=280, cwd=tmp_path, env=env,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done

    listed = run("-s", "matrix").stdout
    rows = json.loads(listed[listed.index("{") :])["include"]
    assert [row["major"] for row in rows] == list(matrix.load().names)
    assert (tmp_path / "envs" / "_nox_script_mode").is_dir(), "the head of the noxfile was read"
    collected = run("-s", "selftest", "--", "--collect-only", "-q", "tests/build/test_matrix.py")
    assert "tests/build/test_matrix.py" in collected.stdout
    assert "Session selftest was successful" in collected.stderr


def test_the_lock_has_all_of_nox() -> None:
    """What the test above installs, without a network."""
    names = needed("nox")
    assert {"nox", "virtualenv", "packaging"} <= names
    found = re.findall(r"^([a-z0-9.-]+)==", locked(names), re.MULTILINE)
    assert set(found) == names
    assert "msgspec" not in names
