"""The state of the simulated MMUs: tables of records.

Every jitted function of ``replay.mmu`` takes the whole state ``m`` (class Mmu).  Here it is made, and
its rows are found, taken from free lists and given back; room.py makes it larger.
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

import numpy as np

from replay.jit import RecordArray, jit, new_records
from replay.memory import new_memory
from replay.mmu.state.counters import Counter
from replay.mmu.state.records import (
    ATTEMPT,
    ATTEMPT_CENSUS,
    CONTROL,
    DESCRIPTOR,
    FLUSH,
    GIB,
    KEY_OF_HOST,
    KEY_VM_SHIFT,
    LINE,
    MEMSLOT,
    NO_TABLE,
    REGION,
    SHADOW_PAGE,
    SOURCE,
    SWAP,
    SWAPS,
    TASK,
    TDP_KEY,
    UNLIMITED,
    VM,
    WINDOW,
    WINDOW_CENSUS,
)

Records: TypeAlias = Any
"""A table of records, np.recarray: the type checker does not know the fields of a dtype."""
Record: TypeAlias = Any
"""One of them, np.record."""


class Mmu(NamedTuple):
    """All state of a replay: tables of records, see records.py; other numbers are int64 but where marked."""

    sp: Records  # [pages] SHADOW_PAGE
    spt: np.ndarray  # [tables, 512] SPTE values; a non-leaf SPTE holds the child's row as its pfn
    hash: np.ndarray  # [2**n] first shadow page of the chain, 0 none, int32
    frames: np.ndarray  # [2**n] the same by page frame of the table, int32
    block: np.ndarray  # [blocks, 512] rmap heads of the 4K level
    region: Records  # [512 * GiB] REGION
    gib: Records  # [2**n] GIB, open addressing by ``key``
    desc: Records  # [descriptors] DESCRIPTOR
    slot: Records  # [slots] MEMSLOT
    vm: Records  # [VMs] VM
    task: Records  # [2**n] TASK, open addressing by ``pid``
    bitmap: np.ndarray  # [words] dirty bitmaps of slots, 64 pages a word
    window: Records  # [windows] WINDOW
    window_census: Records  # [windows] WINDOW_CENSUS, one row if there is no census
    attempt: Records  # [attempts] ATTEMPT
    attempt_census: Records  # [attempts] ATTEMPT_CENSUS, one row if there is no census
    source: Records  # [trace lines] SOURCE
    flush: Records  # [flushes] FLUSH
    truth: Records  # [lines] LINE
    swap: Records  # [SWAPS] SWAP
    counter: np.ndarray  # [len(Counter)]
    ctl: Record  # CONTROL


def make(vms: int, census: bool = False) -> Mmu:
    """A state without pages or memslots for ``vms`` virtual machines; ``census``: note what attempts find.

    Rows that are not used yet take no memory: zeroed pages are mapped when they are first written.
    """
    pages = 4096
    m = Mmu(
        sp=new_records(pages, SHADOW_PAGE),
        spt=mapped_rows(1024, 512),
        hash=np.zeros(pages, np.int32),
        frames=np.zeros(pages, np.int32),
        block=mapped_rows(512, 512),
        region=mapped_records(256 * 512, REGION),
        gib=free_gibs(512),
        desc=mapped_records(1 << 16, DESCRIPTOR),
        slot=new_records(128, MEMSLOT),
        vm=new_records(max(vms, 1), VM),
        task=new_records(256, TASK),
        bitmap=np.zeros(0, np.int64),
        window=new_records(128, WINDOW),
        window_census=new_records(128 if census else 1, WINDOW_CENSUS),
        attempt=mapped_records(1 << 16, ATTEMPT),
        attempt_census=mapped_records(1 << 16 if census else 1, ATTEMPT_CENSUS),
        source=mapped_records(1 << 14, SOURCE),
        flush=mapped_records(1 << 14, FLUSH),
        truth=mapped_records(1 << 15, LINE),
        swap=new_records(SWAPS, SWAP),
        counter=np.zeros(len(Counter), np.int64),
        ctl=new_records(1, CONTROL)[0],
    )
    m.ctl.sp_free = m.ctl.spt_free = m.ctl.block_free = m.ctl.desc_free = -1
    m.ctl.last_gib = m.ctl.last_tdp = -1
    m.ctl.sp_top = 1
    m.ctl.has_census = census
    m.vm.window = -1
    m.vm.n_max_mmu_pages = UNLIMITED
    return m


def free_gibs(count: int) -> np.recarray:
    """``count`` free rows of ``Mmu.gib``."""
    rows = new_records(count, GIB)
    rows.key = -1
    return rows


def mapped_rows(count: int, columns: int, reserve: bool = False) -> np.ndarray:
    """Zeroed rows of int64 in memory that is taken as they are used; ``reserve`` as in ``new_memory``."""
    size = count * columns * 8
    return new_memory(size, reserve=reserve)[:size].view(np.int64).reshape(count, columns)


def mapped_records(count: int, dtype: np.dtype, reserve: bool = False) -> np.recarray:
    """As :func:`mapped_rows`, of records."""
    size = count * dtype.itemsize
    return new_memory(size, reserve=reserve)[:size].view(dtype).view(RecordArray)


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
    """Set the first ``columns`` numbers of a row to 0."""
    for i in range(columns):
        row[i] = 0


@jit
def find_task(m: Mmu, pid: int) -> int:
    """Row of the task ``pid`` in ``m.task``; made if new."""
    last = m.ctl.last_task
    if m.task[last].pid == pid + 1:
        return last
    h = mix(pid + 1) & (m.task.shape[0] - 1)
    while m.task[h].pid:
        if m.task[h].pid == pid + 1:
            m.ctl.last_task = h
            return h
        h = (h + 1) & (m.task.shape[0] - 1)
    m.task[h].pid = pid + 1
    m.task[h].root = -1
    m.task[h].direct_root = -1
    m.ctl.tasks += 1
    return h


@jit
def alloc_table(m: Mmu) -> int:
    """A row of ``m.spt`` with 512 non-present SPTEs."""
    i = m.ctl.spt_free
    if i >= 0:
        m.ctl.spt_free = m.spt[i, 0]
        clear_row(m.spt[i], 512)
    else:
        i = m.ctl.spt_top
        m.ctl.spt_top += 1
    return i


@jit
def free_table(m: Mmu, i: int) -> None:
    """Give row ``i`` of ``m.spt`` back."""
    m.spt[i, 0] = m.ctl.spt_free
    m.ctl.spt_free = i


@jit
def alloc_block(m: Mmu) -> int:
    """A row of ``m.block`` with 512 empty rmap heads."""
    i = m.ctl.block_free
    if i >= 0:
        m.ctl.block_free = m.block[i, 0]
        clear_row(m.block[i], 512)
    else:
        i = m.ctl.block_top
        m.ctl.block_top += 1
    return i


@jit
def free_block(m: Mmu, i: int) -> None:
    """Give row ``i`` of ``m.block`` back."""
    m.block[i, 0] = m.ctl.block_free
    m.ctl.block_free = i


@jit
def find_gib(m: Mmu, vm: int, gfn: int, create: bool) -> int:
    """Row of ``m.gib`` for the GiB around ``gfn``, or -1 if nothing in it was ever mapped."""
    key = ((gfn >> 18) << 16) | vm
    last = m.ctl.last_gib
    if last >= 0 and m.gib[last].key == key:
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
    """Row of ``m.gib`` with this key, or -1."""
    h = mix(key) & (m.gib.shape[0] - 1)
    while m.gib[h].key >= 0:
        if m.gib[h].key == key:
            m.ctl.last_gib = h
            return h
        h = (h + 1) & (m.gib.shape[0] - 1)
    if not create:
        return -1
    m.ctl.gib_top += 1
    m.ctl.last_gib = h
    m.gib[h].key = key
    m.gib[h].head = 0
    m.gib[h].host = 0
    m.gib[h].tables = 0
    first = m.ctl.region_top
    m.gib[h].region = first
    m.ctl.region_top += 512
    for r in range(first, first + 512):
        m.region[r].block = NO_TABLE
    return h


@jit
def extend_memory(m: Mmu, vm: int, end: int) -> None:
    """Guest memory of ``vm`` up to gfn ``end`` may be mapped."""
    m.vm[vm].end = max(m.vm[vm].end, end)


@jit
def find_region(m: Mmu, vm: int, gfn: int, create: bool) -> int:
    """Row of ``m.region`` for the 2 MiB around ``gfn``, or -1."""
    g = find_gib(m, vm, gfn, create)
    if g < 0:
        return -1
    return m.gib[g].region + ((gfn >> 9) & 511)
