"""Room in the state for what is to come: nothing grows inside jitted code.

:func:`has_room` is asked before each event and each split, and Python doubles what is short (:func:`grow`).
"""

from __future__ import annotations

import numpy as np

from replay.jit import jit, kernel
from replay.mmu.layout import (
    CTL_BITMAP_TOP,
    CTL_BITMAP_WANT,
    CTL_BLOCK_TOP,
    CTL_DESC_TOP,
    CTL_FLUSH_TOP,
    CTL_GIB_TOP,
    CTL_LAST_GIB,
    CTL_LAST_TASK,
    CTL_OUT_TOP,
    CTL_REGION_TOP,
    CTL_ROOM,
    CTL_SLOT_TOP,
    CTL_SOURCE_TOP,
    CTL_SP_TOP,
    CTL_SPT_TOP,
    CTL_TASKS,
    CTL_TRUTH_TOP,
    CTL_WINDOW_TOP,
    GIB_COLUMNS,
    SP32_FLAGS,
    SP32_NEXT,
    SP32_PAGE_NEXT,
    SP_GFN,
    SP_KEY,
    SP_PAGE,
    TASK_COLUMNS,
)
from replay.mmu.state import Mmu, frame_bucket, mapped_rows, mix, page_bucket

# what functions return that may run short of rows
OK = 0
NO_ROOM = 1

# Rows that one event, or one split attempt, can use up at most.
_ROOM_SP = 8
_ROOM_SPT = 16
_ROOM_BLOCK = 4
_ROOM_DESC = 1100
_ROOM_REGION = 4 * 512
_ROOM_OUT = 4
_ROOM_SOURCE = 8
_ROOM_FLUSH = 4
_ROOM_TRUTH = 528  # a line for each SPTE that a split leaves non-present, and those around it
_ROOM_GIB = _ROOM_REGION // 512
_ROOM_TASK = 2
_ROOM_WINDOW = 2
_ROOM_SLOT = 2
MANY = 32

RESERVED_BYTES = 2 << 30


@jit
def has_room(m: Mmu) -> bool:
    """True if one more event and one more split attempt cannot run out of rows."""
    m.ctl[CTL_ROOM] = 0  # whoever asks uses up what :func:`has_room_for_next` found for those to come
    return has_rows(m, 1)


@jit
def has_room_for_next(m: Mmu) -> bool:
    """As :func:`has_room`, for the next of many events or attempts: looked at once for MANY of them."""
    if m.ctl[CTL_ROOM] == 0:
        if not has_rows(m, MANY):
            return False
        m.ctl[CTL_ROOM] = MANY
    m.ctl[CTL_ROOM] -= 1
    return True


@jit
def has_rows(m: Mmu, n: int) -> bool:
    """True if ``n`` events, each with a split attempt, cannot run out of rows."""
    ctl = m.ctl
    return (
        ctl[CTL_SP_TOP] + n * _ROOM_SP < m.sp.shape[0]
        and ctl[CTL_SP_TOP] + n * _ROOM_SP < m.sp32.shape[0]
        and ctl[CTL_SP_TOP] + n * _ROOM_SP < m.hash.shape[0]
        and ctl[CTL_SPT_TOP] + n * _ROOM_SPT < m.spt.shape[0]
        and ctl[CTL_BLOCK_TOP] + n * _ROOM_BLOCK < m.block.shape[0]
        and ctl[CTL_DESC_TOP] + n * _ROOM_DESC < m.desc.shape[0]
        and ctl[CTL_REGION_TOP] + n * _ROOM_REGION < m.region.shape[0]
        and 2 * (ctl[CTL_GIB_TOP] + n * _ROOM_GIB) < m.gib.shape[0]
        and 2 * (ctl[CTL_TASKS] + n * _ROOM_TASK) < m.task.shape[0]
        and ctl[CTL_OUT_TOP] + n * _ROOM_OUT < m.out.shape[0]
        and ctl[CTL_OUT_TOP] + n * _ROOM_OUT < m.out32.shape[0]
        and ctl[CTL_OUT_TOP] + n * _ROOM_OUT < m.out16.shape[0]
        and ctl[CTL_SOURCE_TOP] + n * _ROOM_SOURCE < m.source.shape[0]
        and ctl[CTL_FLUSH_TOP] + n * _ROOM_FLUSH < m.flush.shape[0]
        and ctl[CTL_TRUTH_TOP] + n * _ROOM_TRUTH < m.truth.shape[0]
        and ctl[CTL_WINDOW_TOP] + n * _ROOM_WINDOW < m.window.shape[0]
        and ctl[CTL_SLOT_TOP] + n * _ROOM_SLOT < m.slot.shape[0]
        and ctl[CTL_BITMAP_TOP] + ctl[CTL_BITMAP_WANT] <= m.bitmap.shape[0]
    )


def _larger(rows: np.ndarray, top: int) -> np.ndarray:
    """Zeroed rows, at least twice as many, the first ``top`` of them those of ``rows``.

    Addresses are reserved for some GB, which few guests need: nothing is copied again.
    """
    columns = rows.shape[1]
    count = max(2 * len(rows), RESERVED_BYTES // (rows.itemsize * columns))
    while True:
        try:
            larger = mapped_rows(count, columns, rows.dtype, reserve=True)
            break
        except MemoryError:  # a limit on the process, or a system that promises no more than it has
            if count == 2 * len(rows):
                raise
            count = max(2 * len(rows), count // 8)
    larger[:top] = rows[:top]
    return larger


def grow(m: Mmu) -> Mmu:
    """The same state with every array at least doubled that :func:`has_room_for_next` finds short."""
    ctl = m.ctl
    new = {}
    for name, top, room in (
        ("sp", CTL_SP_TOP, _ROOM_SP),
        ("sp32", CTL_SP_TOP, _ROOM_SP),
        ("spt", CTL_SPT_TOP, _ROOM_SPT),
        ("block", CTL_BLOCK_TOP, _ROOM_BLOCK),
        ("desc", CTL_DESC_TOP, _ROOM_DESC),
        ("region", CTL_REGION_TOP, _ROOM_REGION),
        ("out", CTL_OUT_TOP, _ROOM_OUT),
        ("out32", CTL_OUT_TOP, _ROOM_OUT),
        ("out16", CTL_OUT_TOP, _ROOM_OUT),
        ("source", CTL_SOURCE_TOP, _ROOM_SOURCE),
        ("flush", CTL_FLUSH_TOP, _ROOM_FLUSH),
        ("truth", CTL_TRUTH_TOP, _ROOM_TRUTH),
        ("window", CTL_WINDOW_TOP, _ROOM_WINDOW),
        ("slot", CTL_SLOT_TOP, _ROOM_SLOT),
    ):
        if ctl[top] + MANY * room >= getattr(m, name).shape[0]:
            new[name] = _larger(getattr(m, name), ctl[top])
    if ctl[CTL_SP_TOP] + MANY * _ROOM_SP >= m.hash.shape[0]:
        # few tables are soon many: those that are found anew at each growth cost more than room
        buckets = m.hash.shape[0] * (4 if m.hash.shape[0] < 1 << 20 else 2)
        new["hash"] = np.zeros(buckets, np.int32)
        new["pages"] = np.zeros(buckets, np.int32)
        sp, sp32 = new.get("sp", m.sp), new.get("sp32", m.sp32)
        _rehash_pages(sp, sp32, ctl[CTL_SP_TOP], new["hash"], new["pages"])
    if 2 * (ctl[CTL_GIB_TOP] + MANY * _ROOM_GIB) >= m.gib.shape[0]:
        new["gib"] = np.full((2 * m.gib.shape[0], GIB_COLUMNS), -1, np.int64)
        _rehash_rows(m.gib, new["gib"])
        ctl[CTL_LAST_GIB] = -1
    words = int(ctl[CTL_BITMAP_TOP] + ctl[CTL_BITMAP_WANT])
    if words > m.bitmap.shape[0]:
        new["bitmap"] = np.zeros(max(words, 2 * m.bitmap.shape[0]), np.int64)
        new["bitmap"][: m.bitmap.shape[0]] = m.bitmap
    if 2 * (ctl[CTL_TASKS] + MANY * _ROOM_TASK) >= m.task.shape[0]:
        new["task"] = np.zeros((2 * m.task.shape[0], TASK_COLUMNS), np.int64)
        _rehash_rows(m.task, new["task"])
        ctl[CTL_LAST_TASK] = 0
    return m._replace(**new)


def without_pages(m: Mmu) -> Mmu:
    """The same state without shadow pages and rmaps: their memory is free for what is made of the rest."""
    tables = ("sp", "sp32", "spt", "hash", "pages", "block", "region", "desc")
    return m._replace(**{name: getattr(m, name)[:0].copy() for name in tables})


@kernel
def _rehash_pages(sp: np.ndarray, sp32: np.ndarray, top: int, buckets: np.ndarray, pages: np.ndarray) -> None:
    for i in range(1, top):
        if sp32[i, SP32_FLAGS] == 0:
            continue
        b = page_bucket(sp[i, SP_GFN], sp[i, SP_KEY], buckets.shape[0])
        sp32[i, SP32_NEXT] = buckets[b]
        buckets[b] = i
        if sp[i, SP_PAGE]:
            b = frame_bucket(sp[i, SP_PAGE], pages.shape[0])
            sp32[i, SP32_PAGE_NEXT] = pages[b]
            pages[b] = i


@kernel
def _rehash_rows(old: np.ndarray, new: np.ndarray) -> None:
    """Move the rows in use to ``new``, an empty table of open addressing.

    Column 0 is the key; in a free row it is what no key is, as in every row of ``new``.
    """
    free = new[0, 0]
    for i in range(old.shape[0]):
        if old[i, 0] != free:
            h = mix(old[i, 0]) & (new.shape[0] - 1)
            while new[h, 0] != free:
                h = (h + 1) & (new.shape[0] - 1)
            for column in range(old.shape[1]):
                new[h, column] = old[i, column]
