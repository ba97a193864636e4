"""Guest page tables: what a guest (or L1, for L2) has written into its memory before it is traced.

Tables are given their frames in the order in which walks first meet them, from one range of
frames a VM; every entry is present, accessed and, but for mappings that begin clean, dirty, as if the
guest had used it before.
"""

from __future__ import annotations

from replay.jit import jit
from replay.synth.kvm.events import DIRTY_BIT, ELEMENT, UNLOCKED, print_event
from replay.synth.kvm.memory import gfn_to_memslot
from replay.synth.kvm.spte import (
    ACC_CAN_READ,
    ACC_EXEC,
    ACC_USER,
    ACC_WRITE,
    EPT,
    NESTED,
    PAGE_SHIFT,
    pages,
)
from replay.synth.kvm.state import (
    FRAME,
    NONE,
    ROOT_LEVEL,
    WRITTEN,
    Model,
    find,
    find_chunk,
    insert,
    make_chunk,
)

PT_WRITABLE, PT_USER, PT_PAGE_SIZE, PT_NX = 1 << 1, 1 << 2, 1 << 7, -(1 << 63)
PT_DIRTY = 1 << 6
PT_TABLE = 0x67  # present, writable, user, accessed, dirty
EPT_RWX, EPT_WRITE_BACK, EPT_ACCESSED, EPT_DIRTY = 7, 6 << 3, 1 << 8, 1 << 9


@jit
def _key(root: int, level: int, addr: int) -> int:
    """The key of the guest table at ``level`` below ``root`` that translates ``addr``."""
    return root << 33 | level << 30 | addr >> (PAGE_SHIFT + 9 * level)


@jit
def find_table(m: Model, root: int, level: int, addr: int) -> int:
    """The table at ``level`` that translates ``addr``, or -1 if no walk has met it."""
    return find(m.table, m.table_heads, _key(root, level, addr))


@jit
def make_table(m: Model, vm: int, root: int, level: int, addr: int) -> int:
    """The same, given a frame if need be; -1 where the frames reach beyond every slot."""
    table = find_table(m, root, level, addr)
    if table >= 0:
        return table
    gfn = m.vm[vm].table_gfn + m.vm[vm].tables
    if gfn_to_memslot(m, vm, gfn) < 0:
        m.ctl.detail = gfn
        return NONE
    m.vm[vm].tables += 1
    table = m.ctl.table_top
    m.ctl.table_top += 1
    insert(m.table, m.table_heads, table, _key(root, level, addr))
    shift = PAGE_SHIFT + 9 * level
    m.table[table].gfn = gfn
    m.table[table].level = level
    m.table[table].addr = addr >> shift << shift
    m.table[table].shadow = NONE
    m.chunk[make_chunk(m, FRAME, vm, gfn)].value = table
    return table


@jit
def shadow_of(m: Model, vm: int, gfn: int) -> int:
    """The page that shadows the guest page table in ``gfn``, or -1."""
    number = gfn - m.vm[vm].table_gfn
    if number < 0 or number >= m.vm[vm].tables:
        return NONE
    return m.table[m.chunk[find_chunk(m, FRAME, vm, gfn)].value].shadow


@jit
def find_mapping(m: Model, root: int, addr: int) -> int:
    """The mapping that covers ``addr``, or -1."""
    low, high = m.root[root].map, m.root[root].map_end
    while low < high:
        middle = (low + high) >> 1
        if m.mapping[middle].addr > addr:
            high = middle
        elif m.mapping[middle].addr + m.mapping[middle].length <= addr:
            low = middle + 1
        else:
            return middle
    return NONE


@jit
def mapped_gfn(m: Model, mapping: int, addr: int) -> int:
    """The gfn to which the guest's mapping takes ``addr``."""
    return m.mapping[mapping].gfn + ((addr - m.mapping[mapping].addr) >> PAGE_SHIFT)


@jit
def walk_access(m: Model, root: int, mapping: int, addr: int, write: bool) -> int:
    """Access that the whole walk grants: upper entries grant everything, a clean leaf only writes W."""
    access = m.mapping[mapping].access
    if not m.root[root].user:
        access &= ~ACC_USER
    if not write and is_clean(m, root, mapping, addr):
        access &= ~ACC_WRITE
    return access


@jit
def permits_walk(m: Model, granted: int, write: bool, fetch: bool) -> bool:
    """Whether a walk that grants so much lets an access through."""
    if write:
        return granted & ACC_WRITE != 0
    if fetch:
        return granted & ACC_EXEC != 0
    return granted & m.layout[ACC_CAN_READ] == m.layout[ACC_CAN_READ]


@jit
def is_clean(m: Model, root: int, mapping: int, addr: int) -> bool:
    """Whether the D bit of the leaf entry for ``addr`` is clear."""
    if not m.mapping[mapping].clean:
        return False
    number = addr >> PAGE_SHIFT + 9 * (m.mapping[mapping].level - 1)
    chunk = find_chunk(m, WRITTEN, root, number >> 9)
    return chunk < 0 or m.chunk[chunk].words[number >> 5 & 15] >> (number & 31) & 1 == 0


@jit
def set_dirty_bit(m: Model, task: int, root: int, mapping: int, addr: int) -> None:
    """FNAME(update_accessed_dirty_bits)() of a walk that writes."""
    level = m.mapping[mapping].level
    number = addr >> PAGE_SHIFT + 9 * (level - 1)
    chunk = make_chunk(m, WRITTEN, root, number >> 9)
    m.chunk[chunk].words[number >> 5 & 15] |= 1 << (number & 31)
    table = m.table[find_table(m, root, level, addr)].gfn << PAGE_SHIFT
    print_event(m, task, UNLOCKED, DIRTY_BIT, table + 8 * (number & 511), 0, 0, 0, 0, 0, 0)


@jit
def print_elements(m: Model, task: int, root: int, mapping: int, addr: int) -> None:
    """The entries that a walk for ``addr`` reads, the leaf last."""
    leaf_level = m.mapping[mapping].level
    for level in range(ROOT_LEVEL, leaf_level, -1):
        table = m.table[find_table(m, root, level - 1, addr)].gfn << PAGE_SHIFT
        if m.layout[EPT]:
            table |= EPT_RWX | (EPT_ACCESSED if m.root[root].mode == NESTED else 0)
        else:
            table |= PT_TABLE
        _print_element(m, task, table, level)
    pte = (mapped_gfn(m, mapping, addr) & -pages(leaf_level)) << PAGE_SHIFT
    clean = is_clean(m, root, mapping, addr)
    pte |= _ept_leaf(m, root, mapping, clean) if m.layout[EPT] else _legacy_leaf(m, root, mapping, clean)
    if leaf_level > 1:
        pte |= PT_PAGE_SIZE
    _print_element(m, task, pte, leaf_level)


@jit
def _legacy_leaf(m: Model, root: int, mapping: int, clean: bool) -> int:
    """The guest's leaf entry in the format of legacy paging and NPT, without its frame."""
    access = m.mapping[mapping].access
    pte = PT_TABLE & ~(PT_WRITABLE | PT_USER)
    if clean:
        pte &= ~PT_DIRTY
    if access & ACC_WRITE:
        pte |= PT_WRITABLE
    if m.root[root].user:
        pte |= PT_USER
    return pte if access & ACC_EXEC else pte | PT_NX


@jit
def _ept_leaf(m: Model, root: int, mapping: int, clean: bool) -> int:
    """An entry of L1's EPT; bit 2 is X there, bit 0 R."""
    access = m.mapping[mapping].access
    pte = EPT_WRITE_BACK
    if access & m.layout[ACC_CAN_READ]:
        pte |= 1
    if access & ACC_WRITE:
        pte |= PT_WRITABLE
    if access & ACC_EXEC:
        pte |= 4
    if m.root[root].mode == NESTED:
        pte |= EPT_ACCESSED | (0 if clean else EPT_DIRTY)
    return pte


@jit
def _print_element(m: Model, task: int, pte: int, level: int) -> None:
    """A kvm_mmu_paging_element line: one guest entry that a walk reads."""
    print_event(m, task, UNLOCKED, ELEMENT, pte, level, 0, 0, 0, 0, 0)
