"""The state of the simulated MMUs: flat int64 arrays whose rows are laid out in layout.py.

Every jitted function of ``replay.mmu`` takes the whole state ``m`` (class Mmu).  Here it is made, and
its rows are found, taken from free lists and given back; room.py makes it larger.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from replay.jit import jit
from replay.memory import new_memory
from replay.mmu.layout import (
    CTL_BLOCK_FREE,
    CTL_BLOCK_TOP,
    CTL_DESC_FREE,
    CTL_GIB_TOP,
    CTL_LAST_GIB,
    CTL_LAST_TASK,
    CTL_LAST_TDP,
    CTL_REGION_TOP,
    CTL_SIZE,
    CTL_SP_FREE,
    CTL_SP_TOP,
    CTL_SPT_FREE,
    CTL_SPT_TOP,
    CTL_TASKS,
    DESC_COLUMNS,
    GIB_COLUMNS,
    GIB_HEAD,
    GIB_HOST,
    GIB_KEY,
    GIB_REGION,
    GIB_TABLES,
    KEY_OF_HOST,
    KEY_VM_SHIFT,
    NO_TABLE,
    REGION_BLOCK,
    REGION_COLUMNS,
    SLOT_COLUMNS,
    SP32_COLUMNS,
    SP_COLUMNS,
    TASK_COLUMNS,
    TASK_DIRECT_ROOT,
    TASK_PID,
    TASK_ROOT,
    TDP_KEY,
    TRUTH_COLUMNS,
    UNLIMITED,
    VM_COLUMNS,
    VM_END,
    VM_MAX,
    VM_WINDOW,
)


class Mmu(NamedTuple):
    """All state of a replay; int64 but for what is marked otherwise."""

    sp: np.ndarray  # [pages, SP_COLUMNS]
    spt: np.ndarray  # [tables, 512] SPTE values; a non-leaf SPTE holds the child's row as its pfn
    sp32: np.ndarray  # [pages, SP32_COLUMNS] int32
    hash: np.ndarray  # [2**n] first shadow page of the chain, 0 none, int32
    pages: np.ndarray  # [2**n] the same by page frame of the table, int32
    block: np.ndarray  # [blocks, 512] rmap heads of the 4K level
    region: np.ndarray  # [512 * GiB, REGION_COLUMNS]
    gib: np.ndarray  # [2**n, GIB_COLUMNS] open addressing by GIB_KEY
    desc: np.ndarray  # [descriptors, DESC_COLUMNS]
    slot: np.ndarray  # [slots, SLOT_COLUMNS]
    vm: np.ndarray  # [VMs, VM_COLUMNS]
    task: np.ndarray  # [2**n, TASK_COLUMNS] open addressing by TASK_PID
    bitmap: np.ndarray  # [words] dirty bitmaps of slots, 64 pages a word
    window: np.ndarray  # [windows, WIN_COLUMNS] see window.py
    out: np.ndarray  # [attempts, OUT_COLUMNS] see window.py
    out32: np.ndarray  # [attempts, OUT32_COLUMNS] int32
    out16: np.ndarray  # [attempts, OUT16_COLUMNS] int16
    source: np.ndarray  # [trace lines, SOURCE_COLUMNS]
    flush: np.ndarray  # [flushes, FLUSH_COLUMNS]
    truth: np.ndarray  # [lines, TRUTH_COLUMNS] see truth.py
    ctl: np.ndarray  # [CTL_SIZE]


def make(
    vms: int,
    out_columns: tuple[int, int, int],
    source_columns: int,
    flush_columns: int,
    window_columns: int,
) -> Mmu:
    """A state without pages or memslots for ``vms`` virtual machines; columns are those of window.py.

    Rows that are not used yet take no memory: zeroed pages are mapped when they are first written.
    """
    pages = 4096
    m = Mmu(
        sp=np.zeros((pages, SP_COLUMNS), np.int64),
        spt=mapped_rows(1024, 512, np.int64),
        sp32=np.zeros((pages, SP32_COLUMNS), np.int32),
        hash=np.zeros(pages, np.int32),
        pages=np.zeros(pages, np.int32),
        block=mapped_rows(512, 512, np.int64),
        region=mapped_rows(256 * 512, REGION_COLUMNS, np.int64),
        gib=np.full((512, GIB_COLUMNS), -1, np.int64),
        desc=mapped_rows(1 << 16, DESC_COLUMNS, np.int64),
        slot=np.zeros((128, SLOT_COLUMNS), np.int64),
        vm=np.zeros((max(vms, 1), VM_COLUMNS), np.int64),
        task=np.zeros((256, TASK_COLUMNS), np.int64),
        bitmap=np.zeros(0, np.int64),
        window=np.zeros((128, window_columns), np.int64),
        out=mapped_rows(1 << 16, out_columns[0], np.int64),
        out32=mapped_rows(1 << 16, out_columns[1], np.int32),
        out16=mapped_rows(1 << 16, out_columns[2], np.int16),
        source=mapped_rows(1 << 14, source_columns, np.int64),
        flush=mapped_rows(1 << 14, flush_columns, np.int64),
        truth=mapped_rows(1 << 15, TRUTH_COLUMNS, np.int64),
        ctl=np.zeros(CTL_SIZE, np.int64),
    )
    for free_list in (CTL_SP_FREE, CTL_SPT_FREE, CTL_BLOCK_FREE, CTL_DESC_FREE, CTL_LAST_GIB, CTL_LAST_TDP):
        m.ctl[free_list] = -1
    m.ctl[CTL_SP_TOP] = 1
    m.vm[:, VM_WINDOW] = -1
    m.vm[:, VM_MAX] = UNLIMITED
    return m


def mapped_rows(count: int, columns: int, dtype: Any, reserve: bool = False) -> np.ndarray:
    """Zeroed rows in memory that is taken as they are used; ``reserve`` as in ``new_memory``."""
    size = count * columns * np.dtype(dtype).itemsize
    memory = new_memory(size, reserve=reserve)
    return memory[:size].view(dtype).reshape(count, columns)


# -- hashing -----------------------------------------------------------------------------------


@jit
def mix(key: int) -> int:
    """A well-mixed non-negative hash of an int64 (the finalizer of splitmix64)."""
    x = np.uint64(key)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.int64((x ^ (x >> np.uint64(31))) >> np.uint64(1))


@jit
def page_bucket(gfn: int, key: int, size: int) -> int:
    """Bucket of a shadow page: by gfn and VM, so that all roles of a gfn share a chain as in the kernel.

    Tables over neighbouring 2 MiB are neighbours, too: a walk in order of gfns finds them in the cache.
    """
    near = (gfn >> 9) & 511
    rest = gfn - (near << 9)
    rest += key << 20 if key & TDP_KEY else (key >> KEY_VM_SHIFT) << 52
    return (mix(rest) + near) & (size - 1)


@jit
def frame_bucket(page: int, size: int) -> int:
    """Bucket of the table in page frame ``page``; neighbours are neighbours."""
    return (mix(page >> 9) + (page & 511)) & (size - 1)


# -- rows ----------------------------------------------------------------------------------------


@jit
def clear_row(row: np.ndarray, columns: int) -> None:
    for i in range(columns):
        row[i] = 0


@jit
def find_task(m: Mmu, pid: int) -> int:
    """Row of the task ``pid`` in ``m.task``; made if new."""
    last = m.ctl[CTL_LAST_TASK]
    if m.task[last, TASK_PID] == pid + 1:
        return last
    h = mix(pid + 1) & (m.task.shape[0] - 1)
    while m.task[h, TASK_PID]:
        if m.task[h, TASK_PID] == pid + 1:
            m.ctl[CTL_LAST_TASK] = h
            return h
        h = (h + 1) & (m.task.shape[0] - 1)
    m.task[h, TASK_PID] = pid + 1
    m.task[h, TASK_ROOT] = -1
    m.task[h, TASK_DIRECT_ROOT] = -1
    m.ctl[CTL_TASKS] += 1
    return h


@jit
def alloc_table(m: Mmu) -> int:
    """A row of ``m.spt`` with 512 non-present SPTEs."""
    i = m.ctl[CTL_SPT_FREE]
    if i >= 0:
        m.ctl[CTL_SPT_FREE] = m.spt[i, 0]
        clear_row(m.spt[i], 512)
    else:
        i = m.ctl[CTL_SPT_TOP]
        m.ctl[CTL_SPT_TOP] += 1
    return i


@jit
def free_table(m: Mmu, i: int) -> None:
    m.spt[i, 0] = m.ctl[CTL_SPT_FREE]
    m.ctl[CTL_SPT_FREE] = i


@jit
def alloc_block(m: Mmu) -> int:
    """A row of ``m.block`` with 512 empty rmap heads."""
    i = m.ctl[CTL_BLOCK_FREE]
    if i >= 0:
        m.ctl[CTL_BLOCK_FREE] = m.block[i, 0]
        clear_row(m.block[i], 512)
    else:
        i = m.ctl[CTL_BLOCK_TOP]
        m.ctl[CTL_BLOCK_TOP] += 1
    return i


@jit
def free_block(m: Mmu, i: int) -> None:
    m.block[i, 0] = m.ctl[CTL_BLOCK_FREE]
    m.ctl[CTL_BLOCK_FREE] = i


@jit
def find_gib(m: Mmu, vm: int, gfn: int, create: bool) -> int:
    """Row of ``m.gib`` for the GiB around ``gfn``, or -1 if nothing in it was ever mapped."""
    key = ((gfn >> 18) << 16) | vm
    last = m.ctl[CTL_LAST_GIB]
    if last >= 0 and m.gib[last, GIB_KEY] == key:
        return last
    if create:
        extend_memory(m, vm, ((gfn >> 18) + 1) << 18)
    return find_gib_row(m, key, create)


@jit
def find_host_gib(m: Mmu, vm: int, hva_page: int, create: bool) -> int:
    """Row of ``m.gib`` for the GiB of host memory around ``hva_page``, a frame of addresses, or -1."""
    return find_gib_row(m, ((hva_page >> 18) << 16) | KEY_OF_HOST | vm, create)


@jit
def find_gib_row(m: Mmu, key: int, create: bool) -> int:
    """Row of ``m.gib`` with this GIB_KEY, or -1."""
    h = mix(key) & (m.gib.shape[0] - 1)
    while m.gib[h, GIB_KEY] >= 0:
        if m.gib[h, GIB_KEY] == key:
            m.ctl[CTL_LAST_GIB] = h
            return h
        h = (h + 1) & (m.gib.shape[0] - 1)
    if not create:
        return -1
    m.ctl[CTL_GIB_TOP] += 1
    m.ctl[CTL_LAST_GIB] = h
    m.gib[h, GIB_KEY] = key
    m.gib[h, GIB_HEAD] = 0
    m.gib[h, GIB_HOST] = 0
    m.gib[h, GIB_TABLES] = 0
    first = m.ctl[CTL_REGION_TOP]
    m.gib[h, GIB_REGION] = first
    m.ctl[CTL_REGION_TOP] += 512
    for r in range(first, first + 512):
        m.region[r, REGION_BLOCK] = NO_TABLE
    return h


@jit
def extend_memory(m: Mmu, vm: int, end: int) -> None:
    m.vm[vm, VM_END] = max(m.vm[vm, VM_END], end)


@jit
def find_region(m: Mmu, vm: int, gfn: int, create: bool) -> int:
    """Row of ``m.region`` for the 2 MiB around ``gfn``, or -1."""
    g = find_gib(m, vm, gfn, create)
    if g < 0:
        return -1
    return m.gib[g, GIB_REGION] + ((gfn >> 9) & 511)
