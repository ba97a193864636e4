"""Guest page tables: what a guest (or L1, for L2) has written into its memory before it is traced.

Tables are given their frames in the order in which walks first meet them, from one range of
frames a VM; every entry is present, accessed and dirty, as if the guest had used it before.
"""

from __future__ import annotations

from replay.jit import jit
from replay.synth.kvm.events import ELEMENT, UNLOCKED, print_event
from replay.synth.kvm.memory import gfn_to_memslot
from replay.synth.kvm.spte import pages
from replay.synth.kvm.state import (
    CHUNK_VALUE,
    CTL_DETAIL,
    CTL_TABLE_TOP,
    FRAME,
    MAP_ACCESS,
    MAP_ADDR,
    MAP_GFN,
    MAP_LEVEL,
    MAP_SIZE,
    NONE,
    PAGE_SHIFT,
    ROOT_LEVEL,
    ROOT_MAP,
    ROOT_MAP_END,
    ROOT_USER,
    TABLE_ADDR,
    TABLE_GFN,
    TABLE_LEVEL,
    TABLE_SHADOW,
    VM_TABLE_GFN,
    VM_TABLES,
    Model,
    find,
    find_chunk,
    insert,
    make_chunk,
)

PT_WRITABLE, PT_USER, PT_PAGE_SIZE, PT_NX = 1 << 1, 1 << 2, 1 << 7, -(1 << 63)
PT_TABLE = 0x67  # present, writable, user, accessed, dirty
ACC_EXEC, ACC_WRITE, ACC_USER, ACC_ALL = 1, 2, 4, 7


@jit
def _key(root: int, level: int, addr: int) -> int:
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
    gfn = m.vm[vm, VM_TABLE_GFN] + m.vm[vm, VM_TABLES]
    if gfn_to_memslot(m, vm, gfn) < 0:
        m.ctl[CTL_DETAIL] = gfn
        return NONE
    m.vm[vm, VM_TABLES] += 1
    table = m.ctl[CTL_TABLE_TOP]
    m.ctl[CTL_TABLE_TOP] += 1
    insert(m.table, m.table_heads, table, _key(root, level, addr))
    shift = PAGE_SHIFT + 9 * level
    m.table[table, TABLE_GFN] = gfn
    m.table[table, TABLE_LEVEL] = level
    m.table[table, TABLE_ADDR] = addr >> shift << shift
    m.table[table, TABLE_SHADOW] = NONE
    m.chunk[make_chunk(m, FRAME, vm, gfn), CHUNK_VALUE] = table
    return table


@jit
def shadow_of(m: Model, vm: int, gfn: int) -> int:
    """The page that shadows the guest page table in ``gfn``, or -1."""
    number = gfn - m.vm[vm, VM_TABLE_GFN]
    if number < 0 or number >= m.vm[vm, VM_TABLES]:
        return NONE
    return m.table[m.chunk[find_chunk(m, FRAME, vm, gfn), CHUNK_VALUE], TABLE_SHADOW]


@jit
def find_mapping(m: Model, root: int, addr: int) -> int:
    """The mapping that covers ``addr``, or -1."""
    low, high = m.root[root, ROOT_MAP], m.root[root, ROOT_MAP_END]
    while low < high:
        middle = (low + high) >> 1
        if m.mapping[middle, MAP_ADDR] > addr:
            high = middle
        elif m.mapping[middle, MAP_ADDR] + m.mapping[middle, MAP_SIZE] <= addr:
            low = middle + 1
        else:
            return middle
    return NONE


@jit
def mapped_gfn(m: Model, mapping: int, addr: int) -> int:
    return m.mapping[mapping, MAP_GFN] + ((addr - m.mapping[mapping, MAP_ADDR]) >> PAGE_SHIFT)


@jit
def walk_access(m: Model, root: int, mapping: int) -> int:
    """Access that the whole walk grants: upper entries grant everything."""
    return m.mapping[mapping, MAP_ACCESS] & (ACC_ALL if m.root[root, ROOT_USER] else ~ACC_USER)


@jit
def print_elements(m: Model, task: int, root: int, mapping: int, addr: int) -> None:
    """The entries that a walk for ``addr`` reads, the leaf last."""
    leaf_level = m.mapping[mapping, MAP_LEVEL]
    for level in range(ROOT_LEVEL, leaf_level, -1):
        gfn = m.table[find_table(m, root, level - 1, addr), TABLE_GFN]
        _print_element(m, task, gfn << PAGE_SHIFT | PT_TABLE, level)
    pte = (mapped_gfn(m, mapping, addr) & -pages(leaf_level)) << PAGE_SHIFT
    pte |= PT_TABLE & ~(PT_WRITABLE | PT_USER)
    access = m.mapping[mapping, MAP_ACCESS]
    if access & ACC_WRITE:
        pte |= PT_WRITABLE
    if m.root[root, ROOT_USER]:
        pte |= PT_USER
    if not access & ACC_EXEC:
        pte |= PT_NX
    if leaf_level > 1:
        pte |= PT_PAGE_SIZE
    _print_element(m, task, pte, leaf_level)


@jit
def _print_element(m: Model, task: int, pte: int, level: int) -> None:
    print_event(m, task, UNLOCKED, ELEMENT, pte, level, 0, 0, 0, 0, 0)
