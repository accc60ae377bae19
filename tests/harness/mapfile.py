"""The map's file from outside: a page with the header, and pages of slots.

The layout is that of ``MapHeader`` in ``extension/src/mapformat.h``; numbers are the machine's.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

#: Bytes of a page; the header has the first one.
PAGE = 4096

#: Fields of the header: offset and size, bytes.
FIELDS = {
    "magic": (0, 4),
    "format": (4, 4),
    "init_lsn": (8, 8),
    "sysid": (16, 8),
    "redo": (24, 8),
    "whole_lsn": (32, 8),
    "tli": (40, 4),
    "flags": (44, 4),
    "nlines": (48, 4),
    "used": (52, 4),
    "blcksz": (56, 4),
    "segment_blocks": (60, 4),
    "reset": (64, 4),
    "crc": (68, 4),
    "reset_time": (72, 8),
    "known_redo": (80, 8),
    "label": (88, 4),
}

#: Where the header ends; the rest of its page is zeros, and under its checksum.
HEADER = 92


def at(page: int) -> slice:
    """Where a page is."""
    return slice(page * PAGE, (page + 1) * PAGE)


def field(content: bytes | bytearray, name: str) -> int:
    """What the header says."""
    offset, size = FIELDS[name]
    return int.from_bytes(content[offset : offset + size], sys.byteorder)


def put(content: bytearray, name: str, value: int) -> None:
    """Change what the header says, and not its checksum."""
    offset, size = FIELDS[name]
    content[offset : offset + size] = value.to_bytes(size, sys.byteorder)


def crc(content: bytes | bytearray) -> int:
    """The checksum that fits the header: CRC-32C of its page, with the field itself zero."""
    header = bytearray(content[at(0)])
    put(header, "crc", 0)
    found = 0xFFFFFFFF
    for byte in header:
        found ^= byte
        for _ in range(8):
            found = found >> 1 ^ (0x82F63B78 if found & 1 else 0)
    return found ^ 0xFFFFFFFF


def in_use(content: bytes | bytearray) -> list[int]:
    """Pages with marks, by number; the first one has number 1."""
    return [page for page in range(1, len(content) // PAGE) if any(content[at(page)])]


def first_mark(content: bytes | bytearray) -> int:
    """Offset of a byte within the first slot that is in use."""
    return next(offset for offset in range(PAGE, len(content)) if content[offset])


def edit(path: Path, change: Callable[[bytearray], object]) -> None:
    """Change a map's file of a cluster at rest."""
    content = bytearray(path.read_bytes())
    change(content)
    path.write_bytes(content)


def lay(path: Path, pages: Iterable[int], source: bytes | None = None) -> None:
    """Write pages in place: as ``source`` has them, or zeros."""
    with path.open("r+b") as file:
        for page in pages:
            file.seek(page * PAGE)
            file.write(bytes(PAGE) if source is None else source[at(page)])
