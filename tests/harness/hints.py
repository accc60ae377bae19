"""Telling hint bits, and nothing else, on a page of the main fork.

Without data checksums and without ``wal_log_hints`` a page may be written with nothing but
hint bits changed and no WAL; after a crash no one can know. The promise exempts these bits.
They are named here one by one, so that any other change of such a page is still seen.

=============  =======================================================================
page header    ``PD_HAS_FREE_LINES``, ``PD_PAGE_FULL``, ``pd_prune_xid``;
               ``PD_ALL_VISIBLE`` that is set
heap tuple     ``HEAP_XMIN_COMMITTED/INVALID``, ``HEAP_XMAX_COMMITTED/INVALID``
index item     ``LP_DEAD`` on an item that still has storage
index page     ``BTP_HAS_GARBAGE``, ``LH_PAGE_HAS_DEAD_TUPLES``, ``F_HAS_GARBAGE``;
               ``BRIN_EVACUATE_PAGE`` that is set, ``btpo_cycleid`` that is cleared
=============  =======================================================================

The last of each row are hints in the one direction, and logged in the other.
``PD_ALL_VISIBLE`` is logged when it is set, too, but only with checksums or ``wal_log_hints``
does the page get the record's LSN: without, it may be written before the record is.
"""

from __future__ import annotations

import struct
from enum import Enum

_HEADER = 24
_PD_FLAGS = 10
_PD_PRUNE_XID = 20
_PD_HINTS = 0x0001 | 0x0002  # PD_HAS_FREE_LINES, PD_PAGE_FULL
_PD_ALL_VISIBLE = 0x0004

_LP_NORMAL = 1
_LP_DEAD = 3

_T_INFOMASK = 20
_HEAP_HINTS = 0x0100 | 0x0200 | 0x0400 | 0x0800

_BTP_META = 1 << 3
_BTP_HAS_GARBAGE = 1 << 6
_LH_BITMAP_PAGE = 1 << 2
_LH_META_PAGE = 1 << 3
_LH_PAGE_HAS_DEAD_TUPLES = 1 << 7
_F_HAS_GARBAGE = 1 << 4
_HASH_PAGE_ID = 0xFF80
_GIST_PAGE_ID = 0xFF81
_MAX_BT_CYCLE_ID = 0xFF7F
_BRIN_REGULAR = 0xF093
_BRIN_EVACUATE = 1 << 0


class PageKind(Enum):
    """What a page's special space says it belongs to."""

    HEAP = "heap"
    BTREE = "btree"
    HASH = "hash"
    GIST = "gist"
    BRIN = "brin"
    OTHER = "other"


def kind(page: bytes) -> PageKind:
    """Tell a page's access method from its special space."""
    special = struct.unpack_from("=H", page, 16)[0]
    size = len(page) - special
    if size == 0:
        return PageKind.HEAP
    last = struct.unpack_from("=H", page, len(page) - 2)[0]
    if size == 8 and last == _BRIN_REGULAR:
        return PageKind.BRIN
    if size == 16:
        if last == _HASH_PAGE_ID:
            return PageKind.HASH
        if last == _GIST_PAGE_ID:
            return PageKind.GIST
        if last <= _MAX_BT_CYCLE_ID:
            return PageKind.BTREE
    return PageKind.OTHER


def only(before: bytes, after: bytes) -> bool:
    """Whether nothing differs but hint bits."""
    old, new = bytearray(before), bytearray(after)
    end = len(after)
    match kind(after) if kind(before) is kind(after) else PageKind.OTHER:
        case PageKind.HEAP:
            _clear(new, _PD_FLAGS, _PD_ALL_VISIBLE & ~_word(before, _PD_FLAGS))
        case PageKind.BRIN:
            _clear(new, end - 4, _BRIN_EVACUATE & ~_word(before, end - 4))
        case PageKind.BTREE if not _flags(after) & _BTP_META and not _word(after, end - 2):
            _clear(old, end - 2, 0xFFFF)
        case _:
            pass
    return mask(bytes(old)) == mask(bytes(new))


def mask(page: bytes) -> bytes:
    """The page with its hint bits cleared; a page that is empty or broken as it is."""
    lower, upper, special = struct.unpack_from("=HHH", page, 12)
    if not _HEADER <= lower <= upper <= special <= len(page):
        return page
    out = bytearray(page)
    _clear(out, _PD_FLAGS, _PD_HINTS)
    struct.pack_into("=I", out, _PD_PRUNE_XID, 0)
    match kind(page):
        case PageKind.HEAP:
            for offset, flags, length in _items(page, lower):
                if flags == _LP_NORMAL and length > _T_INFOMASK + 2:
                    _clear(out, offset + _T_INFOMASK, _HEAP_HINTS)
        case PageKind.BTREE:
            if not _flags(page) & _BTP_META:
                _mask_index(out, lower)
            _clear(out, len(page) - 4, _BTP_HAS_GARBAGE)
        case PageKind.HASH:
            if not _flags(page) & (_LH_META_PAGE | _LH_BITMAP_PAGE):
                _mask_index(out, lower)
            _clear(out, len(page) - 4, _LH_PAGE_HAS_DEAD_TUPLES)
        case PageKind.GIST:
            _mask_index(out, lower)
            _clear(out, len(page) - 4, _F_HAS_GARBAGE)
        case PageKind.BRIN | PageKind.OTHER:
            pass
    return bytes(out)


def _word(page: bytes | bytearray, offset: int) -> int:
    word: int = struct.unpack_from("=H", page, offset)[0]
    return word


def _flags(page: bytes) -> int:
    """The flags of a btree, hash or gist page."""
    return _word(page, len(page) - 4)


def _clear(page: bytearray, offset: int, bits: int) -> None:
    struct.pack_into("=H", page, offset, _word(page, offset) & ~bits & 0xFFFF)


def _items(page: bytes | bytearray, lower: int) -> list[tuple[int, int, int]]:
    """Line pointers as (offset, flags, length)."""
    count = (lower - _HEADER) // 4
    words = struct.unpack_from(f"={count}I", page, _HEADER)
    items = [(word & 0x7FFF, (word >> 15) & 3, word >> 17) for word in words]
    return [item for item in items if item[0] + item[2] <= len(page)]


def _mask_index(page: bytearray, lower: int) -> None:
    for position in range(_HEADER, lower - 3, 4):
        word = struct.unpack_from("=I", page, position)[0]
        if (word >> 15) & 3 == _LP_DEAD and word >> 17:
            word = word & ~(3 << 15) | (_LP_NORMAL << 15)
            struct.pack_into("=I", page, position, word)
