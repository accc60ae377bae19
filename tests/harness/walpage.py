"""WAL that ends where one of its pages does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import psycopg

PAGE = 8192  # of WAL
#: Of a page's header and of a segment's first one: positions are shown past them.
HEADERS = (24, 40)


def fill(connection: psycopg.Connection[tuple[Any, ...]]) -> int:
    """Append records up to the end of a page; where the next record will begin.

    Raises:
        AssertionError: WAL ends elsewhere.
    """

    def emit(size: int) -> int:
        """Append a record; where WAL goes on then."""
        row = connection.execute(
            "SELECT pg_logical_emit_message(false, '', repeat('x', %s)), "
            "(pg_current_wal_insert_lsn() - '0/0')::bigint",
            (size,),
        ).fetchone()
        assert row is not None
        return int(row[1])

    position = emit(16)
    start = left = -position % PAGE
    for _ in range(20):
        position = emit(16)
        left = -position % PAGE
        if 0 < start - left < 200:
            break
        start = left
    record = start - left  # with 16 bytes in it
    for _ in range(2000):
        if PAGE - left in HEADERS:
            break
        # short records on the way: the last one ends where the page does
        position = emit(left - record + 16 if record <= left < 240 else 16)
        left = -position % PAGE
    assert PAGE - left in HEADERS, left
    return position
