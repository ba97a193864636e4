"""The state of the simulated MMUs: flat int64 arrays, made once, grown by doubling.

Every jitted function of ``replay.mmu`` takes the whole state ``m`` (class Mmu).  Objects are rows
and refer to each other by row number; column numbers are the constants below.  A *sptep* is one
number, ``sp * 512 + index``: the address of an SPTE, as in the kernel.

Nothing grows inside jitted code: :func:`has_room` is asked before each event and before each split,
and Python doubles what is short (:func:`grow`).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from replay.jit import jit, kernel
from replay.memory import new_memory

# -- shadow pages (struct kvm_mmu_page): a row is 64 bytes, in two tables; row 0 is no page --------
# Mmu.sp
SP_GFN = 0
SP_KEY = 1  # role (schema.Role) | variant << 32 | vm << 40; TDP_KEY set for tables of the TDP MMU
SP_BASE = 2  # UNIFORM: SPTE 0, the others follow from it
SP_PARENTS = 3  # parent_ptes, encoded as an rmap head
SP_PAGE = 4  # page frame of the table (set_spte "at" >> 12), 0 unknown
SP_COLUMNS = 5
# Mmu.sp32
SP32_NEXT = 0  # next page in the hash chain, or in the free list
SP32_PAGE_NEXT = 1
SP32_FLAGS = 2
SP32_SPT = 3  # row of Mmu.spt with the 512 SPTEs; NO_TABLE none is present; UNIFORM all are, see SP_BASE
SP32_TRANSLATION = 4  # row of Mmu.spt with shadowed_translation (gfn << 4 | access), else NO_TABLE
SP32_BIRTH = 5
SP32_COLUMNS = 6

FLAG_LIVE = 1
FLAG_UNSYNC = 2
FLAG_INVALID = 4  # role.invalid: zapped while it is a root in use
FLAG_ROOT = 8
FLAG_ADOPTED = 16  # older than the trace, or its creation was lost
FLAG_SPLIT = 32  # made by a simulated split; SP32_TRANSLATION marks the SPTEs that faults have set since
FLAG_RECORDED = 64  # of those: the recording has the page, too
FLAG_CLEARED = 256  # UNIFORM: FLAG_CLEARED << n is set where SPTEs 64 * n to 64 * n + 63 are write-protected
ALL_CLEARED = 255 * FLAG_CLEARED

NO_TABLE = -1
UNIFORM = -2
TDP_KEY = 1 << 60
KEY_VARIANT_SHIFT = 32
KEY_VM_SHIFT = 40

# -- rmap regions of 2 MiB, Mmu.region (512 rows for each touched GiB) ---------------------------
REGION_HEAD = 0  # rmap head of the 2M level
REGION_BLOCK = 1  # row of Mmu.block with the 512 4K heads; NO_TABLE all empty; UNIFORM one page maps all
REGION_SP = 2  # that shadow page
REGION_HOST = 3  # largest level at which the host was seen to map this region
REGION_TABLES = 4  # indirect shadow pages whose gfn lies here (disallow_lpage)
REGION_COLUMNS = 5

# -- GiB of guest memory, Mmu.gib ----------------------------------------------------------------
GIB_KEY = 0  # (gfn >> 18) << 16 | vm, -1 a free row
GIB_HEAD = 1  # rmap head of the 1G level
GIB_REGION = 2  # first of its 512 rows in Mmu.region
GIB_HOST = 3
GIB_TABLES = 4
GIB_COLUMNS = 5

# -- pte_list_desc, Mmu.desc ---------------------------------------------------------------------
PTE_LIST_EXT = 14
DESC_COUNT = 14
DESC_MORE = 15  # next descriptor or -1; also the free list
DESC_COLUMNS = 16

# -- memslots, Mmu.slot --------------------------------------------------------------------------
SLOT_VM = 0
SLOT_ID = 1
SLOT_BASE = 2
SLOT_NPAGES = 3
SLOT_FLAGS = 4
SLOT_HVA = 5
SLOT_LIVE = 6
SLOT_BITMAP = 7  # first word of its dirty bitmap in Mmu.bitmap + 1, 0 none was needed yet
SLOT_BITMAP_WORDS = 8
SLOT_COLUMNS = 9
SLOT_DIRTY_LOG = 1
SLOT_READONLY = 2

# -- virtual machines, Mmu.vm --------------------------------------------------------------------
VM_USED = 0  # n_used_mmu_pages
VM_MAX = 1  # n_max_mmu_pages
VM_MAX_KNOWN = 2  # set by a limit in the trace or by the caller, no longer derived from the memslots
MAX_GIVEN = 1  # by the caller
MAX_REQUESTED = 2  # by KVM_SET_NR_MMU_PAGES
VM_GOAL_TASK = 3  # task + 1 whose change_mmu_pages still zaps
VM_HAS_TDP = 4
VM_EPT = 5
VM_GEN = 6
VM_MANUAL = 7  # KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2 argument
VM_PROBES = 8  # PROBES_* bits: which control probes the trace has of this VM
VM_RESCHED = 9  # need_resched is raised
VM_DESC = 10  # objects in split_desc_cache
VM_HEADERS = 11  # objects in split_page_header_cache
VM_PAGES = 12  # objects in split_shadow_page_cache
VM_PEAK = 13
VM_WINDOW = 14  # number of the open window, -1 none
VM_ROOT_NEXT = 15
VM_ROOTS = 16  # the indirect roots got last, sp + 1, a ring of ROOTS
ROOTS = 32
VM_BY_CONTROL = VM_ROOTS + ROOTS  # windows are opened by probes and markers
VM_BY_RECORD = VM_BY_CONTROL + 1  # windows are opened by recorded split lines
VM_SPLIT_DUE = VM_BY_RECORD + 1  # all of its memory is to be split at CTL_SPLIT_TIME
VM_HAS_FAULTS = VM_SPLIT_DUE + 1  # kvm_page_fault lines tell the access of its faults
VM_SEEN = VM_HAS_FAULTS + 1  # the census has counted its rmaps
VM_END = VM_SEEN + 1  # no gfn from here on was ever mapped, whatever the memslots say
VM_COLUMNS = VM_END + 1
PROBES_REGION = 1  # set_region and commit_region: memslot markers are not needed
PROBES_SPLIT = 2  # the split functions: windows open and close by them
PROBES_LIMIT = 4  # change_mmu_pages
PROBES_PROTECT = 8  # slot_remove_write_access
PROBES_COLLAPSE = 16  # zap_collapsible or recover_huge
UNLIMITED = 1 << 40

# -- tasks, Mmu.task -----------------------------------------------------------------------------
TASK_PID = 0  # pid + 1, 0 a free row
TASK_ROOT = 1  # indirect root in use, -1
TASK_DIRECT_ROOT = 2
TASK_VARIANT = 3  # what the printed role does not tell of the indirect root
TASK_FAULT_ADDR = 4
TASK_FAULT_CODE = 5
TASK_STATE = 6
TASK_WALK_ADDR = 7
TASK_WALK_CODE = 8
TASK_WALK_TOP = 9  # level of the first guest entry read, 0 no walk
TASK_WALK_LEAF = 10
TASK_PTE = 11  # guest entries by level: TASK_PTE + level
TASK_REQ_GFN = 17
TASK_REQ_LEVEL = 18
TASK_CHAIN = 19  # shadow page by level in this fault: TASK_CHAIN + level, -2 not looked up
TASK_TDP_OLD = 25  # the last kvm_tdp_mmu_spte_changed, if it was the last kvmmmu event
TASK_TDP_NEW = 26
TASK_TDP_GFN = 27
TASK_TDP_LEVEL = 28
TASK_REGION = 29  # slot of the set_region that is not committed yet: slot id + 1
TASK_REGION_BASE = 30
TASK_REGION_NPAGES = 31
TASK_REGION_FLAGS = 32
TASK_REGION_HVA = 33
TASK_SLOT = 34  # row of the slot last committed + 1
TASK_LEAF_ACCESS = 35  # walk.leaf_access of the walk + 1, 0 not worked out yet
TASK_LINKED = 36  # this fault had to link a table into the tree
TASK_COLUMNS = 37

STATE_IDLE = 0
STATE_FAULT = 1  # kvm_page_fault or pagetable_walk seen
STATE_REQUESTED = 2  # spte_requested seen
STATE_DONE = 3  # the fault set its SPTE

# -- one number each, Mmu.ctl ----------------------------------------------------------------------
CTL_SP_FREE = 0  # free list of shadow pages, -1 end
CTL_SP_TOP = 1
CTL_SPT_FREE = 2
CTL_SPT_TOP = 3
CTL_BLOCK_FREE = 4
CTL_BLOCK_TOP = 5
CTL_DESC_FREE = 6
CTL_DESC_TOP = 7
CTL_GIB_TOP = 8
CTL_REGION_TOP = 9
CTL_OUT_TOP = 10
CTL_FLUSH_TOP = 11
CTL_WINDOW_TOP = 12
CTL_BIRTH = 13
CTL_SLOT_TOP = 14
CTL_TASKS = 15
CTL_BITMAP_TOP = 16
CTL_LAST_GIB = 17  # row of the GiB found last
CTL_ROW = 18  # where an interrupted run of the event loop goes on
CTL_TS = 19
CTL_LINE = 20
CTL_ATTEMPTS_SEEN = 21  # attempts since the start: --resched every=N
CTL_RNG = 22
CTL_LAST_TDP = 23  # TDP table found last
CTL_DESC_USED = 24  # descriptors in use by rmaps
CTL_RUN = 25  # window + 1 that runs through without recorded lines
CTL_HAS_RECORDED = 26  # the trace holds recorded outcomes to compare with
CTL_BITMAP_WANT = 27  # words of a dirty bitmap that is to be made
CTL_LAST_TASK = 30  # row of the task found last
CTL_HAS_GET_PAGE = 29  # get_page lines are among the events
CTL_LAST_BOUND = 150  # shadow page found last by the page frame of its table
CTL_SPLIT_TIME = 28  # ns at which all guest memory is split where VM_SPLIT_DUE
CTL_ROOM = 31  # events for which rows were found to suffice
CTL_SCANNED = 151  # shadow pages that the census looked at
CTL_SOURCE_TOP = 152
CTL_COUNTERS = 32  # the counters of class Counter begin here
CTL_SIZE = 160


class Mmu(NamedTuple):
    """All state of a replay; row layouts as above.  int64 but for what is marked otherwise."""

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
    ctl: np.ndarray  # [CTL_SIZE]


# Rows that one event, or one split attempt, can use up at most.
_ROOM_SP = 8
_ROOM_SPT = 16
_ROOM_BLOCK = 4
_ROOM_DESC = 1100
_ROOM_REGION = 4 * 512
_ROOM_OUT = 4
_ROOM_SOURCE = 8
_ROOM_FLUSH = 4
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
        and ctl[CTL_WINDOW_TOP] + n * _ROOM_WINDOW < m.window.shape[0]
        and ctl[CTL_SLOT_TOP] + n * _ROOM_SLOT < m.slot.shape[0]
        and ctl[CTL_BITMAP_TOP] + ctl[CTL_BITMAP_WANT] <= m.bitmap.shape[0]
    )


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
        spt=_mapped(1024, 512, np.int64),
        sp32=np.zeros((pages, SP32_COLUMNS), np.int32),
        hash=np.zeros(pages, np.int32),
        pages=np.zeros(pages, np.int32),
        block=_mapped(512, 512, np.int64),
        region=_mapped(256 * 512, REGION_COLUMNS, np.int64),
        gib=np.full((512, GIB_COLUMNS), -1, np.int64),
        desc=_mapped(1 << 16, DESC_COLUMNS, np.int64),
        slot=np.zeros((128, SLOT_COLUMNS), np.int64),
        vm=np.zeros((max(vms, 1), VM_COLUMNS), np.int64),
        task=np.zeros((256, TASK_COLUMNS), np.int64),
        bitmap=np.zeros(0, np.int64),
        window=np.zeros((128, window_columns), np.int64),
        out=_mapped(1 << 16, out_columns[0], np.int64),
        out32=_mapped(1 << 16, out_columns[1], np.int32),
        out16=_mapped(1 << 16, out_columns[2], np.int16),
        source=_mapped(1 << 14, source_columns, np.int64),
        flush=_mapped(1 << 14, flush_columns, np.int64),
        ctl=np.zeros(CTL_SIZE, np.int64),
    )
    for free_list in (CTL_SP_FREE, CTL_SPT_FREE, CTL_BLOCK_FREE, CTL_DESC_FREE, CTL_LAST_GIB, CTL_LAST_TDP):
        m.ctl[free_list] = -1
    m.ctl[CTL_SP_TOP] = 1
    m.vm[:, VM_WINDOW] = -1
    m.vm[:, VM_MAX] = UNLIMITED
    return m


def _mapped(count: int, columns: int, dtype: Any, reserve: bool = False) -> np.ndarray:
    """Zeroed rows in memory that is taken as they are used; ``reserve`` as in ``new_memory``."""
    size = count * columns * np.dtype(dtype).itemsize
    memory = new_memory(size, large_pages=reserve, reserve=reserve)
    return memory[:size].view(dtype).reshape(count, columns)


def _larger(rows: np.ndarray, top: int) -> np.ndarray:
    """Zeroed rows, at least twice as many, the first ``top`` of them those of ``rows``.

    Addresses are reserved for some GB, which few guests need: nothing is copied again.
    """
    columns = rows.shape[1]
    count = max(2 * len(rows), RESERVED_BYTES // (rows.itemsize * columns))
    while True:
        try:
            larger = _mapped(count, columns, rows.dtype, reserve=True)
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
    extend_memory(m, vm, ((gfn >> 18) + 1) << 18)
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
