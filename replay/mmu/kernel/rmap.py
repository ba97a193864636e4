"""Reverse maps: which SPTEs map a gfn, in the kernel's own list order (mmu.c, pte_list_*).

A head is 0 when empty, ``sptep + 1`` for one SPTE, ``-1 - d`` for a chain of descriptors that
begins at row ``d``.  Two orders exist: up to 6.3 a full chain grows at its tail (*append*), since
6.4 (141705b78381) a new descriptor becomes the head (*head*).
"""

from __future__ import annotations

from replay.jit import jit
from replay.mmu.state.mmu import Mmu, alloc_block, find_gib, free_block
from replay.mmu.state.records import NO_TABLE, PTE_LIST_EXT, UNIFORM

ORDER_APPEND = 0
ORDER_HEAD = 1


@jit
def _alloc_desc(m: Mmu) -> int:
    """An empty pte_list_desc: its row in ``m.desc``."""
    d = m.ctl.desc_free
    if d >= 0:
        m.ctl.desc_free = m.desc[d].more
    else:
        d = m.ctl.desc_top
        m.ctl.desc_top += 1
    m.desc[d].spte_count = 0
    m.desc[d].more = -1
    m.ctl.desc_used += 1
    return d


@jit
def _free_desc(m: Mmu, d: int) -> None:
    """Give descriptor ``d`` back."""
    m.desc[d].more = m.ctl.desc_free
    m.ctl.desc_free = d
    m.ctl.desc_used -= 1


@jit
def pte_list_add(m: Mmu, head: int, sptep: int, order: int) -> int:
    """The head after ``sptep`` was added; each new descriptor is counted in ``desc_used``."""
    if head == 0:
        return sptep + 1
    if head > 0:
        d = _alloc_desc(m)
        m.desc[d].sptes[0] = head - 1
        m.desc[d].sptes[1] = sptep
        m.desc[d].spte_count = 2
        return -1 - d
    d = -1 - head
    if order == ORDER_HEAD:
        if m.desc[d].spte_count == PTE_LIST_EXT:
            new = _alloc_desc(m)
            m.desc[new].more = d
            d = new
            head = -1 - new
    else:
        while m.desc[d].spte_count == PTE_LIST_EXT:
            if m.desc[d].more < 0:
                m.desc[d].more = _alloc_desc(m)
            d = m.desc[d].more
    m.desc[d].sptes[m.desc[d].spte_count] = sptep
    m.desc[d].spte_count += 1
    return head


@jit
def pte_list_remove(m: Mmu, head: int, sptep: int, order: int) -> int:
    """The head after ``sptep`` was removed; unchanged if it is not in the list."""
    if head == sptep + 1:
        return 0
    if head >= 0:
        return head
    first = -1 - head
    d = first
    previous = -1
    while d >= 0:
        for i in range(m.desc[d].spte_count):
            if m.desc[d].sptes[i] != sptep:
                continue
            # the hole is filled by the last entry of this descriptor, since 6.4 of the head descriptor
            donor = first if order == ORDER_HEAD else d
            m.desc[donor].spte_count -= 1
            m.desc[d].sptes[i] = m.desc[donor].sptes[m.desc[donor].spte_count]
            if m.desc[donor].spte_count:
                return head
            more = m.desc[donor].more
            _free_desc(m, donor)
            if order == ORDER_HEAD or previous < 0:
                return -1 - more  # 0, an empty list, where more is -1
            m.desc[previous].more = more
            return head
        previous = d
        d = m.desc[d].more
    return head


@jit
def pte_list_get(m: Mmu, head: int, position: int) -> int:
    """Entry ``position`` (0..) in walk order, -1 past the end."""
    if head == 0:
        return -1
    if head > 0:
        return head - 1 if position == 0 else -1
    d = -1 - head
    while d >= 0:
        if position < m.desc[d].spte_count:
            return m.desc[d].sptes[position]
        position -= m.desc[d].spte_count
        d = m.desc[d].more
    return -1


@jit
def pte_list_count(m: Mmu, head: int) -> int:
    """pte_list_count(): the number of entries of an rmap list."""
    if head >= 0:
        return 1 if head else 0
    d = -1 - head
    n = 0
    while d >= 0:
        n += m.desc[d].spte_count
        d = m.desc[d].more
    return n


# -- heads by gfn and level --------------------------------------------------------------------------


@jit
def region_of(m: Mmu, g: int, gfn: int) -> int:
    """Row of ``m.region`` for the 2 MiB around ``gfn`` in GiB ``g``."""
    return m.gib[g].region + ((gfn >> 9) & 511)


@jit
def head_in_gib(m: Mmu, g: int, gfn: int, level: int) -> int:
    """The head for ``gfn`` at ``level`` (1 4K, 2 2M, 3 1G); ``g`` is the row of its GiB."""
    if level == 3:
        return m.gib[g].head
    r = region_of(m, g, gfn)
    if level == 2:
        return m.region[r].head
    b = m.region[r].block
    if b >= 0:
        return m.block[b, gfn & 511]
    if b == NO_TABLE:
        return 0
    return m.region[r].sp * 512 + (gfn & 511) + 1


@jit
def set_head_in_gib(m: Mmu, g: int, gfn: int, level: int, head: int) -> None:
    """Set the rmap head of ``gfn`` at ``level``, which lies in GiB row ``g``."""
    if level == 3:
        m.gib[g].head = head
        return
    r = region_of(m, g, gfn)
    if level == 2:
        m.region[r].head = head
    else:
        m.block[materialize_block(m, r), gfn & 511] = head


@jit
def rmap_head(m: Mmu, vm: int, gfn: int, level: int) -> int:
    """gfn_to_rmap(): the head for ``gfn`` at ``level``."""
    g = find_gib(m, vm, gfn, False)
    return 0 if g < 0 else head_in_gib(m, g, gfn, level)


@jit
def materialize_block(m: Mmu, r: int) -> int:
    """Row of ``m.block`` for region ``r``, made from the compact form if it has none."""
    b = m.region[r].block
    if b >= 0:
        return b
    new = alloc_block(m)
    if b == UNIFORM:
        first = m.region[r].sp * 512 + 1
        for i in range(512):
            m.block[new, i] = first + i
    m.region[r].block = new
    return new


@jit
def rmap_add(m: Mmu, vm: int, gfn: int, level: int, sptep: int, order: int) -> None:
    """rmap_add(): ``sptep`` maps ``gfn`` at ``level`` from now on."""
    g = find_gib(m, vm, gfn, True)
    set_head_in_gib(m, g, gfn, level, pte_list_add(m, head_in_gib(m, g, gfn, level), sptep, order))


@jit
def rmap_remove(m: Mmu, vm: int, gfn: int, level: int, sptep: int, order: int) -> None:
    """rmap_remove(): SPTE ``sptep`` no longer maps ``gfn`` at ``level``."""
    g = find_gib(m, vm, gfn, False)
    if g < 0:
        return
    head = head_in_gib(m, g, gfn, level)
    new = pte_list_remove(m, head, sptep, order)
    if new != head:
        set_head_in_gib(m, g, gfn, level, new)


@jit
def rmap_region_set_uniform(m: Mmu, r: int, sp: int) -> None:
    """Region ``r``, whose 512 heads are all empty, is from now on mapped by the 512 SPTEs of ``sp``."""
    if m.region[r].block >= 0:
        free_block(m, m.region[r].block)
    m.region[r].block = UNIFORM
    m.region[r].sp = sp


@jit
def rmap_region_is_empty(m: Mmu, r: int) -> bool:
    """Whether no 4K rmap of region ``r`` has an entry."""
    b = m.region[r].block
    if b == NO_TABLE:
        return True
    if b == UNIFORM:
        return False
    heads = m.block[b]
    found = 0
    for i in range(512):
        found |= heads[i]
    return found == 0
