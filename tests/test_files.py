"""The reader of relation files: what it remembers is what there is."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import pytest

from tests.harness import files

if TYPE_CHECKING:
    from tests.harness.factory import Factory


@pytest.mark.parametrize("grain", [1, 10**7, 10**9], ids=["1 ns", "10 ms", "1 s"])
def test_reader_sees_every_change(
    session_factory: Factory, monkeypatch: pytest.MonkeyPatch, grain: int
) -> None:
    """What it takes for unchanged is, however fast and however small the change was.

    The kernel's times are made as coarse as those of another one, or of another file system.
    """
    real = files.state_of

    def coarse(name: str, place: int) -> files.State:
        *which, mtime, ctime = real(name, place)
        device, inode, size = which
        return device, inode, size, mtime // grain * grain, ctime // grain * grain

    data = session_factory.root / f"reader{grain}"
    for name in ("global", "base", "pg_tblspc"):
        (data / name).mkdir(parents=True)
    path = data / "global" / "1234"
    other = data / "global" / "1235"
    other.write_bytes(b"old")
    os.utime(other, (1, 1))
    reader = files.Reader()
    first = reader.read_all(data)
    monkeypatch.setattr(files, "state_of", coarse)
    for round_ in range(120):
        with path.open("wb" if round_ % 7 == 0 else "r+b") as file:
            file.write(round_.to_bytes(8))
        assert reader.read_all(data)["global/1234"] == round_.to_bytes(8)
        time.sleep(0.002 if round_ % 40 else 0.2)
    # times of 10 ms may be whole seconds, and are taken for those of a file system that counts them
    time.sleep(0.2 if grain == 1 else 2.2)
    again = reader.read_all(data)
    assert reader.read_all(data)["global/1235"] is again["global/1235"], "nothing is remembered"
    assert first["global/1235"] == b"old"
