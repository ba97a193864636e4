"""The state of all VMs as arrays, one row per thing, and the tables that find rows by key.

There are no rmaps: which SPTEs map a gfn follows from the mappings of the guests and from the shadow
pages that live (:mod:`replay.synth.kvm.reach`).  An SPTE takes 8 bytes, as in the kernel.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from replay.jit import jit
from replay.mmu.state.mmu import mix
from replay.synth.kvm.spte import PAGE_SHIFT, child_of, is_child

TABLE_SHIFT = 9
TABLE_SPTES = 1 << TABLE_SHIFT
ROOT_LEVEL = 4
NONE = -1
KVM_MIN_ALLOC_MMU_PAGES = 64

SHADOW_PAGE = np.dtype(
    [
        ("key", np.int64),
        ("next", np.int64),  # next row of the hash chain, -1 end
        ("gfn", np.int64),
        ("level", np.int64),
        ("direct", np.int64),
        ("access", np.int64),
        ("guest_mode", np.int64),  # whose memory it maps, see spte.py
        ("tdp", np.int64),
        ("gen", np.int64),
        ("spt", np.int64),  # physical address of the table
        ("unsync", np.int64),
        ("invalid", np.int64),
        ("root_count", np.int64),
        ("older", np.int64),  # list of active pages; ``newer`` also links invalid roots and free rows
        ("newer", np.int64),
        ("parents", np.int64),  # first row of Model.link
        ("table", np.int64),  # guest page table that an indirect page shadows
        ("root", np.int64),  # root that it was loaded for
        ("vm", np.int64),
    ]
)
"""struct kvm_mmu_page"""

LINK = np.dtype(
    [
        ("place", np.int64),  # parent << 9 | index
        ("next", np.int64),
    ]
)
"""A parent SPTE of a shadow page."""

GUEST_TABLE = np.dtype(
    [
        ("key", np.int64),
        ("next", np.int64),  # next row of the hash chain, -1 end
        ("gfn", np.int64),
        ("level", np.int64),
        ("addr", np.int64),  # first address that it translates
        ("shadow", np.int64),  # its shadow page
    ]
)
"""A page table of a guest; key: root, level, address."""

CHUNK = np.dtype(
    [
        ("key", np.int64),
        ("next", np.int64),  # next row of the hash chain, -1 end
        ("value", np.int64),
        ("words", np.int64, 16),  # 512 bits, 32 a word
    ]
)
"""Sparse facts about memory; key: kind, owner, number."""
RESIDENT = 1 << 60  # of a slot: 512 host pages; ``value``: row of Model.moved + 1
DIRTY = 2 << 60  # of a slot: 512 gfns; ``value``: which filling of the bitmap it belongs to
FRAME = 3 << 60  # of a VM: the guest page table in a gfn
DISALLOW = 4 << 60  # of a VM: shadowed guest page tables in a huge page (lpage_info)
WRITTEN = 6 << 60  # of a root: 512 leaf entries of the guest that were clean and became dirty
SMALL = 5 << 60  # of a VM: direct shadow pages of level 1 in a GiB, and in which 2 MiB there were any
OWNER_SHIFT = 40

VM = np.dtype(
    [
        ("task", np.int64),  # text of the lines of the VMM's thread; those of the vCPUs follow
        ("vcpus", np.int64),
        ("slot", np.int64),  # its rows of Model.slot, of Model.root
        ("slot_end", np.int64),
        ("root", np.int64),
        ("root_end", np.int64),
        ("last_slot", np.int64),
        ("table_gfn", np.int64),
        ("tables", np.int64),  # guest page tables so far
        ("gen", np.int64),
        ("n_used_mmu_pages", np.int64),
        ("n_max_mmu_pages", np.int64),
        ("requested", np.int64),
        ("all_set", np.int64),
        ("oldest", np.int64),
        ("newest", np.int64),
        ("invalid_root", np.int64),  # list of invalid roots
        ("last_invalid_root", np.int64),
        ("unsync", np.int64),  # unsync pages
        ("roles", np.int64),  # bit n: a direct page of role n was made
        ("tdp", np.int64),  # root of the TDP MMU
    ]
)
"""struct kvm"""

MEMSLOT = np.dtype(
    [
        ("base_gfn", np.int64),
        ("end", np.int64),
        ("backing", np.int64),
        ("readonly", np.int64),
        ("pfn", np.int64),
        ("is_live", np.int64),
        ("dirty_log", np.int64),
        ("filling", np.int64),  # how often the dirty bitmap was filled with ones
        ("chunk", np.int64),  # chunk found last
    ]
)
"""struct kvm_memory_slot"""

ROOT = np.dtype(
    [
        ("kind", np.int64),
        ("user", np.int64),  # walks grant ACC_USER
        ("map", np.int64),
        ("map_end", np.int64),
        ("sp", np.int64),
        ("mode", np.int64),  # ``guest_mode`` of its pages
    ]
)
"""A root page table of a guest."""
KIND_TDP, KIND_DIRECT, KIND_NESTED, KIND_SHADOW = 0, 1, 2, 3

MAPPING = np.dtype(
    [
        ("addr", np.int64),
        ("gfn", np.int64),
        ("length", np.int64),
        ("level", np.int64),
        ("access", np.int64),
        ("clean", np.int64),  # leaf entries begin without D
    ]
)
"""What a root maps, by address."""

CONTROL = np.dtype(
    [
        ("clock", np.int64),  # microseconds
        ("out", np.int64),  # bytes in Model.out
        ("lines", np.int64),
        ("line_max", np.int64),
        ("fd", np.int64),
        ("errno", np.int64),
        ("budget", np.int64),
        ("next_table", np.int64),  # frames of the host
        ("next_data", np.int64),
        ("sp_top", np.int64),
        ("sp_free", np.int64),
        ("link_top", np.int64),
        ("link_free", np.int64),
        ("table_top", np.int64),
        ("chunk_top", np.int64),
        ("moved_top", np.int64),
        ("want_chunks", np.int64),  # rows that the next step can use up, beside those of a fault
        ("want_moved", np.int64),
        ("pc", np.int64),
        ("number", np.int64),  # next access of a touch, -1 not begun
        ("detail", np.int64),  # gfn or address that an error names
        ("grew", np.int64),
        ("access", np.int64),  # the access that an error names
        ("found", np.int64),
        ("stack", np.int64, 10),  # shadow page, then index, at each level of a walk
        ("args", np.int64, 7),  # values of the line at hand
    ]
)
"""One number each."""


class Model(NamedTuple):
    """All state: tables of records, other numbers are int64 but for text."""

    ctl: Any  # CONTROL
    layout: np.ndarray  # [LAYOUT_SIZE] of SPTEs, see spte.py
    vm: Any  # [VMs] VM
    slot: Any  # [slots] MEMSLOT
    root: Any  # [roots] ROOT
    mapping: Any  # [mappings] MAPPING
    loaded: np.ndarray  # [roots, vCPUs] 1: the vCPU holds the root
    sp: Any  # [pages] SHADOW_PAGE
    spte: np.ndarray  # [pages, 512] leaf SPTE, link to a child, or 0: see spte.py
    page_heads: np.ndarray  # [2**n] first row of the chain, -1 none
    link: Any  # [parents] LINK
    table: Any  # [guest page tables] GUEST_TABLE
    table_heads: np.ndarray
    chunk: Any  # [chunks] CHUNK
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
        ctl.sp_top + _ROOM <= m.sp.shape[0]
        and ctl.link_top + _ROOM <= m.link.shape[0]
        and ctl.table_top + _ROOM <= m.table.shape[0]
        and ctl.chunk_top + ctl.want_chunks + _ROOM <= m.chunk.shape[0]
        and ctl.moved_top + ctl.want_moved <= m.moved.shape[0]
    )


def grow(m: Model) -> Model:
    """The same state with every array at least doubled that :func:`has_room` finds short."""
    ctl = m.ctl
    new: dict[str, Any] = {}
    for name, heads, top, room in (
        ("sp", "page_heads", ctl.sp_top, _ROOM),
        ("link", "", ctl.link_top, _ROOM),
        ("table", "table_heads", ctl.table_top, _ROOM),
        ("chunk", "chunk_heads", ctl.chunk_top, _ROOM + int(ctl.want_chunks)),
        ("moved", "", ctl.moved_top, int(ctl.want_moved)),
    ):
        rows, needed = getattr(m, name), int(top) + room
        if needed > len(rows):
            count = 1 << (max(needed, 2 * len(rows)) - 1).bit_length()
            new[name] = _longer(rows, int(top), count)
            if heads:
                new[heads] = np.full(count, NONE, np.int64)
                ctl.grew = 1
            if name == "sp":
                new["spte"] = _longer(m.spte, int(top), count)
    return m._replace(**new)


def _longer(rows: np.ndarray, top: int, count: int) -> np.ndarray:
    """``count`` zeroed rows, the first ``top`` of them those of ``rows``."""
    longer = np.zeros((count, *rows.shape[1:]), rows.dtype).view(type(rows))
    longer[:top] = rows[:top]
    return longer


@jit
def rehash(rows: np.ndarray, heads: np.ndarray, top: int) -> None:
    """Fill the table of heads anew, which :func:`grow` emptied."""
    for i in range(heads.shape[0]):
        heads[i] = NONE
    for i in range(top):
        if rows[i].key != NONE:
            insert(rows, heads, i, rows[i].key)


# -- rows by key -----------------------------------------------------------------------------------


@jit
def find(rows: np.ndarray, heads: np.ndarray, key: int) -> int:
    """The row with this key, or -1."""
    i = heads[mix(key) & (heads.shape[0] - 1)]
    while i >= 0 and rows[i].key != key:
        i = rows[i].next
    return i


@jit
def insert(rows: np.ndarray, heads: np.ndarray, i: int, key: int) -> None:
    """Row ``i`` gets this key."""
    h = mix(key) & (heads.shape[0] - 1)
    rows[i].key = key
    rows[i].next = heads[h]
    heads[h] = i


@jit
def remove(rows: np.ndarray, heads: np.ndarray, i: int) -> None:
    """Row ``i`` is no longer found by its key."""
    h = mix(rows[i].key) & (heads.shape[0] - 1)
    if heads[h] == i:
        heads[h] = rows[i].next
    else:
        before = heads[h]
        while rows[before].next != i:
            before = rows[before].next
        rows[before].next = rows[i].next
    rows[i].key = NONE


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
        i = m.ctl.chunk_top
        m.ctl.chunk_top += 1
        insert(m.chunk, m.chunk_heads, i, key)
    return i


# -- walks -----------------------------------------------------------------------------------------


@jit
def spte_index(m: Model, sp: int, addr: int) -> int:
    """Index of the SPTE in ``sp`` that a hardware walk for ``addr`` reads."""
    return addr >> (PAGE_SHIFT + 9 * (m.sp[sp].level - 1)) & 511


@jit
def leaf_page(m: Model, sp: int, addr: int) -> int:
    """The page at which a hardware walk for ``addr`` from ``sp`` ends."""
    spte = m.spte[sp, spte_index(m, sp, addr)]
    while is_child(spte):
        sp = child_of(spte)
        spte = m.spte[sp, spte_index(m, sp, addr)]
    return sp
