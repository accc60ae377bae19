"""What the harness does to processes."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

from tests.harness import system

if TYPE_CHECKING:
    from tests.harness.factory import Factory

WRITER = """
import os, sys
fd = os.open(sys.argv[1], os.O_CREAT | os.O_RDWR)
texts = [bytes([c]) * (16 << 20) for c in b"ab"]
while True:
    for text in texts:
        os.pwrite(fd, text, 0)
        os.write(1, b".")
"""


def test_a_kill_leaves_no_half_written_page(session_factory: Factory) -> None:
    path = session_factory.root / "written"
    for _ in range(5):
        argv = [sys.executable, "-c", WRITER, str(path)]
        with subprocess.Popen(argv, stdout=subprocess.PIPE) as writer:
            assert writer.stdout
            assert writer.stdout.read(3) == b"..."
            system.kill(writer.pid)
        assert len(set(path.read_bytes())) == 1
    path.unlink()
