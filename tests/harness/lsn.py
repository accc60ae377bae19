"""WAL positions as integers."""

from __future__ import annotations


def parse(text: str) -> int:
    """``16/B374D848`` as an integer."""
    high, _, low = text.partition("/")
    return int(high, 16) << 32 | int(low, 16)


def show(lsn: int) -> str:
    """An integer as PostgreSQL prints it."""
    return f"{lsn >> 32:X}/{lsn & 0xFFFFFFFF:X}"
