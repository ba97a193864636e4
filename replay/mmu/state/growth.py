"""Room in the state for what is to come: nothing grows inside jitted code.

:func:`has_room` is asked before each event and each split, and Python doubles what is short (:func:`grow`).
"""

from __future__ import annotations

import numpy as np

from replay.jit import by_reference, jit, kernel, new_records
from replay.mmu.state.mmu import (
    Mmu,
    frame_bucket,
    free_gibs,
    mapped_records,
    mapped_rows,
    mix,
    page_bucket,
)
from replay.mmu.state.records import TASK

# what functions return that may run short of rows
OK = 0
NO_ROOM = 1

# Rows that one event, or one split attempt, can use up at most.
_ROOM_SP = 8
_ROOM_SPT = 16
_ROOM_BLOCK = 4
_ROOM_DESC = 1100
_ROOM_REGION = 4 * 512
_ROOM_ATTEMPT = 4
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
    m.ctl.room = 0  # whoever asks uses up what :func:`has_room_for_next` found for those to come
    return has_rows(m, 1)


@jit
def has_room_for_next(m: Mmu) -> bool:
    """As :func:`has_room`, for the next of many events or attempts: looked at once for MANY of them."""
    if m.ctl.room == 0:
        if not has_rows(m, MANY):
            return False
        m.ctl.room = MANY
    m.ctl.room -= 1
    return True


@jit
def has_rows(m: Mmu, n: int) -> bool:
    """True if ``n`` events, each with a split attempt, cannot run out of rows."""
    ctl = m.ctl
    return (
        ctl.sp_top + n * _ROOM_SP < m.sp.shape[0]
        and ctl.sp_top + n * _ROOM_SP < m.hash.shape[0]
        and ctl.spt_top + n * _ROOM_SPT < m.spt.shape[0]
        and ctl.block_top + n * _ROOM_BLOCK < m.block.shape[0]
        and ctl.desc_top + n * _ROOM_DESC < m.desc.shape[0]
        and ctl.region_top + n * _ROOM_REGION < m.region.shape[0]
        and 2 * (ctl.gib_top + n * _ROOM_GIB) < m.gib.shape[0]
        and 2 * (ctl.tasks + n * _ROOM_TASK) < m.task.shape[0]
        and ctl.attempt_top + n * _ROOM_ATTEMPT < m.attempt.shape[0]
        and ctl.source_top + n * _ROOM_SOURCE < m.source.shape[0]
        and ctl.flush_top + n * _ROOM_FLUSH < m.flush.shape[0]
        and ctl.truth_top + n * _ROOM_TRUTH < m.truth.shape[0]
        and ctl.window_top + n * _ROOM_WINDOW < m.window.shape[0]
        and ctl.slot_top + n * _ROOM_SLOT < m.slot.shape[0]
        and ctl.bitmap_top + ctl.bitmap_want <= m.bitmap.shape[0]
    )


def _larger(rows: np.ndarray, top: int) -> np.ndarray:
    """Zeroed rows, at least twice as many, the first ``top`` of them those of ``rows``.

    Addresses are reserved for some GB, which few guests need: nothing is copied again.
    """
    count = max(2 * len(rows), RESERVED_BYTES // rows[:1].nbytes)
    while True:
        try:
            if rows.dtype.names:
                larger: np.ndarray = mapped_records(count, rows.dtype, reserve=True)
            else:
                larger = mapped_rows(count, rows.shape[1], reserve=True)
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
        ("sp", ctl.sp_top, _ROOM_SP),
        ("spt", ctl.spt_top, _ROOM_SPT),
        ("block", ctl.block_top, _ROOM_BLOCK),
        ("desc", ctl.desc_top, _ROOM_DESC),
        ("region", ctl.region_top, _ROOM_REGION),
        ("attempt", ctl.attempt_top, _ROOM_ATTEMPT),
        ("source", ctl.source_top, _ROOM_SOURCE),
        ("flush", ctl.flush_top, _ROOM_FLUSH),
        ("truth", ctl.truth_top, _ROOM_TRUTH),
        ("window", ctl.window_top, _ROOM_WINDOW),
        ("slot", ctl.slot_top, _ROOM_SLOT),
    ):
        if top + MANY * room >= getattr(m, name).shape[0]:
            new[name] = _larger(getattr(m, name), top)
            census = f"{name}_census"
            if ctl.has_census and census in Mmu._fields:
                new[census] = new_records(len(new[name]), getattr(m, census).dtype)
                new[census][:top] = getattr(m, census)[:top]
    words = int(ctl.bitmap_top + ctl.bitmap_want)
    if words > m.bitmap.shape[0]:
        new["bitmap"] = np.zeros(max(words, 2 * m.bitmap.shape[0]), np.int64)
        new["bitmap"][: m.bitmap.shape[0]] = m.bitmap
    larger = m._replace(**new)
    if ctl.sp_top + MANY * _ROOM_SP >= m.hash.shape[0]:
        # few tables are soon many: those that are found anew at each growth cost more than room
        buckets = m.hash.shape[0] * (4 if m.hash.shape[0] < 1 << 20 else 2)
        larger = larger._replace(hash=np.zeros(buckets, np.int32), frames=np.zeros(buckets, np.int32))
        _rehash_pages(larger)
    if 2 * (ctl.gib_top + MANY * _ROOM_GIB) >= m.gib.shape[0]:
        larger = larger._replace(gib=free_gibs(2 * m.gib.shape[0]))
        _rehash_gibs(m, larger)
        ctl.last_gib = -1
    if 2 * (ctl.tasks + MANY * _ROOM_TASK) >= m.task.shape[0]:
        larger = larger._replace(task=new_records(2 * m.task.shape[0], TASK))
        _rehash_tasks(m, larger)
        ctl.last_task = 0
    return larger


def without_pages(m: Mmu) -> Mmu:
    """The same state without shadow pages and rmaps: their memory is free for what is made of the rest."""
    tables = ("sp", "spt", "hash", "frames", "block", "region", "desc")
    return m._replace(**{name: getattr(m, name)[:0].copy() for name in tables})


@kernel
def _rehash_pages(mmu: Mmu) -> None:
    """Put all pages into empty hash tables."""
    m = by_reference(mmu)
    for i in range(1, m.ctl.sp_top):
        sp = m.sp[i]
        if sp.page_flags == 0:
            continue
        b = page_bucket(sp.gfn, sp.key, m.hash.shape[0])
        sp.next = m.hash[b]
        m.hash[b] = i
        if sp.frame:
            b = frame_bucket(sp.frame, m.frames.shape[0])
            sp.next_in_frame = m.frames[b]
            m.frames[b] = i


@kernel
def _rehash_gibs(smaller: Mmu, larger: Mmu) -> None:
    """Copy the rows in use to the empty table of ``larger``."""
    old, new = by_reference(smaller), by_reference(larger)
    for i in range(old.gib.shape[0]):
        key = old.gib[i].key
        if key >= 0:
            h = mix(key) & (new.gib.shape[0] - 1)
            while new.gib[h].key >= 0:
                h = (h + 1) & (new.gib.shape[0] - 1)
            new.gib[h] = old.gib[i]


@kernel
def _rehash_tasks(smaller: Mmu, larger: Mmu) -> None:
    """As :func:`_rehash_gibs`, of tasks."""
    old, new = by_reference(smaller), by_reference(larger)
    for i in range(old.task.shape[0]):
        pid = old.task[i].pid
        if pid:
            h = mix(pid) & (new.task.shape[0] - 1)
            while new.task[h].pid:
                h = (h + 1) & (new.task.shape[0] - 1)
            new.task[h] = old.task[i]
