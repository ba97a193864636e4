"""The state of all VMs as arrays, one row per thing, and the tables that find rows by key.

There are no rmaps: which SPTEs map a gfn follows from the mappings of the guests and from the shadow
pages that live (:mod:`replay.synth.kvm.reach`).  An SPTE takes 8 bytes, as in the kernel.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from replay.jit import jit
from replay.mmu.state import mix
from replay.synth.kvm.spte import PAGE_SHIFT, child_of, is_child

TABLE_SHIFT = 9
TABLE_SPTES = 1 << TABLE_SHIFT
ROOT_LEVEL = 4
NONE = -1
KVM_MIN_ALLOC_MMU_PAGES = 64

# -- what all tables of keyed rows have ------------------------------------------------------------
KEY = 0
NEXT = 1  # next row of the hash chain, -1 end

# -- shadow pages, Model.sp ------------------------------------------------------------------------
SP_GFN = 2
SP_LEVEL = 3
SP_DIRECT = 4
SP_ACCESS = 5
SP_GUEST_MODE = 6  # whose memory it maps, see spte.py
SP_TDP = 7
SP_GEN = 8
SP_SPT = 9  # physical address of the table
SP_UNSYNC = 10
SP_INVALID = 11
SP_ROOT_COUNT = 12
SP_OLDER = 13  # list of active pages; SP_NEWER also links invalid roots and free rows
SP_NEWER = 14
SP_PARENTS = 15  # first row of Model.link
SP_TABLE = 16  # guest page table that an indirect page shadows
SP_ROOT = 17  # root that it was loaded for
SP_VM = 18
SP_COLUMNS = 19

# -- parents, Model.link ---------------------------------------------------------------------------
LINK_PLACE = 0  # parent << 9 | index
LINK_NEXT = 1
LINK_COLUMNS = 2

# -- guest page tables, Model.table; key: root, level, address -------------------------------------
TABLE_GFN = 2
TABLE_LEVEL = 3
TABLE_ADDR = 4  # first address that it translates
TABLE_SHADOW = 5  # its shadow page
TABLE_COLUMNS = 6

# -- sparse facts about memory, Model.chunk; key: kind, owner, number ------------------------------
RESIDENT = 1 << 60  # of a slot: 512 host pages; CHUNK_VALUE: row of Model.moved + 1
DIRTY = 2 << 60  # of a slot: 512 gfns; CHUNK_VALUE: which filling of the bitmap it belongs to
FRAME = 3 << 60  # of a VM: the guest page table in a gfn
DISALLOW = 4 << 60  # of a VM: shadowed guest page tables in a huge page (lpage_info)
WRITTEN = 6 << 60  # of a root: 512 leaf entries of the guest that were clean and became dirty
SMALL = 5 << 60  # of a VM: direct shadow pages of level 1 in a GiB, and in which 2 MiB there were any
CHUNK_VALUE = 2
CHUNK_WORDS = 3  # 512 bits, 32 a word
CHUNK_COLUMNS = 19
OWNER_SHIFT = 40

# -- VMs, Model.vm ---------------------------------------------------------------------------------
VM_TASK = 0  # text of the lines of the VMM's thread; those of the vCPUs follow
VM_VCPUS = 1
VM_SLOT = 2  # its rows of Model.slot, of Model.root
VM_SLOT_END = 3
VM_ROOT = 4
VM_ROOT_END = 5
VM_LAST_SLOT = 6
VM_TABLE_GFN = 7
VM_TABLES = 8  # guest page tables so far
VM_GEN = 9
VM_USED = 10
VM_MAX = 11
VM_REQUESTED = 12
VM_ALL_SET = 13
VM_OLDEST = 14
VM_NEWEST = 15
VM_INVALID_ROOT = 16  # list of invalid roots
VM_LAST_INVALID_ROOT = 17
VM_UNSYNC = 18  # unsync pages
VM_ROLES = 19  # bit n: a direct page of role n was made
VM_TDP = 20  # root of the TDP MMU
VM_COLUMNS = 21

# -- memslots, Model.slot --------------------------------------------------------------------------
SLOT_BASE = 0
SLOT_END = 1
SLOT_BACKING = 2
SLOT_READONLY = 3
SLOT_PFN = 4
SLOT_LIVE = 5
SLOT_DIRTY_LOG = 6
SLOT_FILLING = 7  # how often the dirty bitmap was filled with ones
SLOT_CHUNK = 8  # chunk found last
SLOT_COLUMNS = 9

# -- root page tables, Model.root; their mappings, Model.mapping, by address -----------------------
ROOT_KIND = 0
ROOT_USER = 1  # walks grant ACC_USER
ROOT_MAP = 2
ROOT_MAP_END = 3
ROOT_SP = 4
ROOT_MODE = 5  # SP_GUEST_MODE of its pages
ROOT_COLUMNS = 6
KIND_TDP, KIND_DIRECT, KIND_NESTED, KIND_SHADOW = 0, 1, 2, 3
MAP_ADDR = 0
MAP_GFN = 1
MAP_SIZE = 2
MAP_LEVEL = 3
MAP_ACCESS = 4
MAP_CLEAN = 5  # leaf entries begin without D
MAP_COLUMNS = 6

# -- one number each, Model.ctl --------------------------------------------------------------------
CTL_CLOCK = 0  # microseconds
CTL_OUT = 2  # bytes in Model.out
CTL_LINES = 3
CTL_LINE_MAX = 4
CTL_FD = 5
CTL_ERRNO = 6
CTL_BUDGET = 7
CTL_NEXT_TABLE = 8  # frames of the host
CTL_NEXT_DATA = 9
CTL_SP_TOP = 10
CTL_SP_FREE = 11
CTL_LINK_TOP = 12
CTL_LINK_FREE = 13
CTL_TABLE_TOP = 14
CTL_CHUNK_TOP = 15
CTL_MOVED_TOP = 16
CTL_WANT_CHUNKS = 17  # rows that the next step can use up, beside those of a fault
CTL_WANT_MOVED = 18
CTL_PC = 19
CTL_NUMBER = 20  # next access of a touch, -1 not begun
CTL_DETAIL = 21  # gfn or address that an error names
CTL_GREW = 22
CTL_ACCESS = 24  # the access that an error names
CTL_FOUND = 25
CTL_STACK = 26  # shadow page, then index, at each level of a walk
CTL_ARGS = 36  # values of the line at hand
CTL_SIZE = 43


class Model(NamedTuple):
    """All state; row layouts as above.  int64 but for text."""

    ctl: np.ndarray  # [CTL_SIZE]
    layout: np.ndarray  # [LAYOUT_SIZE] of SPTEs, see spte.py
    vm: np.ndarray  # [VMs, VM_COLUMNS]
    slot: np.ndarray  # [slots, SLOT_COLUMNS]
    root: np.ndarray  # [roots, ROOT_COLUMNS]
    mapping: np.ndarray  # [mappings, MAP_COLUMNS]
    loaded: np.ndarray  # [roots, vCPUs] 1: the vCPU holds the root
    sp: np.ndarray  # [pages, SP_COLUMNS]
    spte: np.ndarray  # [pages, 512] leaf SPTE, link to a child, or 0: see spte.py
    page_heads: np.ndarray  # [2**n] first row of the chain, -1 none
    link: np.ndarray  # [parents, LINK_COLUMNS]
    table: np.ndarray  # [guest page tables, TABLE_COLUMNS]
    table_heads: np.ndarray
    chunk: np.ndarray  # [chunks, CHUNK_COLUMNS]
    chunk_heads: np.ndarray
    moved: np.ndarray  # [blocks, 512] first pfn of host pages that came back elsewhere, 0 not moved
    program: np.ndarray  # [instructions, PROGRAM_COLUMNS] see play.py
    rounds: np.ndarray  # [depth] round of each repeat around the instruction
    order: np.ndarray  # [addresses] of a touch in random order
    twister: np.ndarray  # [625] state of the Mersenne Twister
    text: np.ndarray  # [1, bytes] uint8, see lines.py
    words: np.ndarray  # [words] places in ``text``
    out: np.ndarray  # [1, bytes] uint8


# Rows that one access can use up at most.
_ROOM = 32


@jit
def has_room(m: Model) -> bool:
    """True if an access, or the step at hand, cannot run out of rows."""
    ctl = m.ctl
    return (
        ctl[CTL_SP_TOP] + _ROOM <= m.sp.shape[0]
        and ctl[CTL_LINK_TOP] + _ROOM <= m.link.shape[0]
        and ctl[CTL_TABLE_TOP] + _ROOM <= m.table.shape[0]
        and ctl[CTL_CHUNK_TOP] + ctl[CTL_WANT_CHUNKS] + _ROOM <= m.chunk.shape[0]
        and ctl[CTL_MOVED_TOP] + ctl[CTL_WANT_MOVED] <= m.moved.shape[0]
    )


def grow(m: Model) -> Model:
    """The same state with every array at least doubled that :func:`has_room` finds short."""
    ctl = m.ctl
    new: dict[str, np.ndarray] = {}
    for name, heads, top, room in (
        ("sp", "page_heads", CTL_SP_TOP, _ROOM),
        ("link", "", CTL_LINK_TOP, _ROOM),
        ("table", "table_heads", CTL_TABLE_TOP, _ROOM),
        ("chunk", "chunk_heads", CTL_CHUNK_TOP, _ROOM + int(ctl[CTL_WANT_CHUNKS])),
        ("moved", "", CTL_MOVED_TOP, int(ctl[CTL_WANT_MOVED])),
    ):
        rows, needed = getattr(m, name), int(ctl[top]) + room
        if needed > len(rows):
            count = 1 << (max(needed, 2 * len(rows)) - 1).bit_length()
            new[name] = _longer(rows, int(ctl[top]), count)
            if heads:
                new[heads] = np.full(count, NONE, np.int64)
                ctl[CTL_GREW] = 1
            if name == "sp":
                new["spte"] = _longer(m.spte, int(ctl[top]), count)
    return m._replace(**new)


def _longer(rows: np.ndarray, top: int, count: int) -> np.ndarray:
    """``count`` zeroed rows, the first ``top`` of them those of ``rows``."""
    longer = np.zeros((count, rows.shape[1]), np.int64)
    longer[:top] = rows[:top]
    return longer


@jit
def rehash(rows: np.ndarray, heads: np.ndarray, top: int) -> None:
    """Fill the table of heads anew, which :func:`grow` emptied."""
    for i in range(heads.shape[0]):
        heads[i] = NONE
    for i in range(top):
        if rows[i, KEY] != NONE:
            insert(rows, heads, i, rows[i, KEY])


# -- rows by key -----------------------------------------------------------------------------------


@jit
def find(rows: np.ndarray, heads: np.ndarray, key: int) -> int:
    """The row with this key, or -1."""
    i = heads[mix(key) & (heads.shape[0] - 1)]
    while i >= 0 and rows[i, KEY] != key:
        i = rows[i, NEXT]
    return i


@jit
def insert(rows: np.ndarray, heads: np.ndarray, i: int, key: int) -> None:
    """Row ``i`` gets this key."""
    h = mix(key) & (heads.shape[0] - 1)
    rows[i, KEY] = key
    rows[i, NEXT] = heads[h]
    heads[h] = i


@jit
def remove(rows: np.ndarray, heads: np.ndarray, i: int) -> None:
    """Row ``i`` is no longer found by its key."""
    h = mix(rows[i, KEY]) & (heads.shape[0] - 1)
    if heads[h] == i:
        heads[h] = rows[i, NEXT]
    else:
        before = heads[h]
        while rows[before, NEXT] != i:
            before = rows[before, NEXT]
        rows[before, NEXT] = rows[i, NEXT]
    rows[i, KEY] = NONE


@jit
def page_key(vm: int, gfn: int, level: int, role: int) -> int:
    """Key of a direct shadow page, see :func:`direct_role`.  Others have none: -1."""
    return vm << 49 | gfn << 9 | level << 6 | role


@jit
def direct_role(mode: int, access: int) -> int:
    """What tells direct pages of one gfn and level apart."""
    return mode << 4 | access


@jit
def find_chunk(m: Model, kind: int, owner: int, number: int) -> int:
    """The chunk, or -1."""
    return find(m.chunk, m.chunk_heads, kind | owner << OWNER_SHIFT | number)


@jit
def make_chunk(m: Model, kind: int, owner: int, number: int) -> int:
    """The chunk, made if there is none."""
    key = kind | owner << OWNER_SHIFT | number
    i = find(m.chunk, m.chunk_heads, key)
    if i < 0:
        i = m.ctl[CTL_CHUNK_TOP]
        m.ctl[CTL_CHUNK_TOP] += 1
        insert(m.chunk, m.chunk_heads, i, key)
    return i


# -- walks -----------------------------------------------------------------------------------------


@jit
def spte_index(m: Model, sp: int, addr: int) -> int:
    """Index of the SPTE in ``sp`` that a hardware walk for ``addr`` reads."""
    return addr >> (PAGE_SHIFT + 9 * (m.sp[sp, SP_LEVEL] - 1)) & 511


@jit
def leaf_page(m: Model, sp: int, addr: int) -> int:
    """The page at which a hardware walk for ``addr`` from ``sp`` ends."""
    spte = m.spte[sp, spte_index(m, sp, addr)]
    while is_child(spte):
        sp = child_of(spte)
        spte = m.spte[sp, spte_index(m, sp, addr)]
    return sp
