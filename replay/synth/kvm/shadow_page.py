"""Shadow pages: finding, making and linking them."""

from __future__ import annotations

from replay.jit import clear, jit
from replay.synth.kvm.events import EXISTING, GET_PAGE, LOCKED, NEW, print_page
from replay.synth.kvm.memory import disallow_huge
from replay.synth.kvm.reach import HUGEST, PROTECT, change_leaves, change_tdp_leaves
from replay.synth.kvm.spte import (
    ACC_ALL,
    ACC_TABLE,
    PAGE_SHIFT,
    link_to,
)
from replay.synth.kvm.state import (
    NONE,
    ROOT_LEVEL,
    SMALL,
    TABLE_SHIFT,
    Model,
    direct_role,
    find,
    insert,
    make_chunk,
    page_key,
)


@jit
def alloc_page(m: Model, vm: int, gfn: int, level: int, direct: int, access: int, mode: int) -> int:
    """A new page, in no list and no table of heads."""
    sp = m.ctl.sp_free
    if sp >= 0:
        m.ctl.sp_free = m.sp[sp].newer
    else:
        sp = m.ctl.sp_top
        m.ctl.sp_top += 1
    page = m.sp[sp]
    clear(page)
    page.key = NONE
    page.gfn = gfn
    page.level = level
    page.direct = direct
    page.access = access
    page.guest_mode = mode
    page.spt = m.ctl.next_table << PAGE_SHIFT
    m.ctl.next_table += 1
    page.parents = NONE
    page.table = NONE
    page.root = NONE
    page.vm = vm
    return sp


@jit
def free_page(m: Model, sp: int) -> None:
    """Put a shadow page on the free list; a root that used it has none from now on."""
    root = m.sp[sp].root
    if root >= 0 and m.root[root].sp == sp:
        m.root[root].sp = NONE
    m.sp[sp].newer = m.ctl.sp_free
    m.ctl.sp_free = sp


@jit
def get_direct_page(m: Model, vm: int, task: int, gfn: int, level: int, access: int, mode: int) -> int:
    """kvm_mmu_get_shadow_page() of a page that maps guest memory from ``gfn`` on."""
    key = page_key(vm, gfn, level, direct_role(mode, access))
    sp = find(m.sp, m.page_heads, key)
    if sp >= 0:
        print_page(m, task, LOCKED, GET_PAGE, sp, EXISTING)
        return sp
    sp = alloc_page(m, vm, gfn, level, 1, access, mode)
    insert(m.sp, m.page_heads, sp, key)
    m.vm[vm].roles |= 1 << direct_role(mode, access)
    if level == 1:
        chunk = make_chunk(m, SMALL, vm, gfn >> 18)
        m.chunk[chunk].value += 1
        m.chunk[chunk].words[gfn >> 14 & 15] |= 1 << (gfn >> 9 & 31)
    _account_new(m, vm, sp)
    print_page(m, task, LOCKED, GET_PAGE, sp, NEW)
    return sp


@jit
def get_indirect_page(m: Model, vm: int, task: int, table: int, level: int, mode: int) -> int:
    """kvm_mmu_get_shadow_page() of the page that shadows a guest page table."""
    sp = m.table[table].shadow
    if sp >= 0:
        print_page(m, task, LOCKED, GET_PAGE, sp, EXISTING)
        return sp
    gfn = m.table[table].gfn
    access = m.layout[ACC_ALL] if level == ROOT_LEVEL else m.layout[ACC_TABLE]
    sp = alloc_page(m, vm, gfn, level, 0, access, mode)
    m.sp[sp].table = table
    m.table[table].shadow = sp
    _account_new(m, vm, sp)
    # account_shadowed(): nothing huge maps a guest page table, and nothing writes to it unseen
    disallow_huge(m, vm, gfn, 1)
    write_protect_gfn(m, vm, task, gfn, 1)
    print_page(m, task, LOCKED, GET_PAGE, sp, NEW)
    return sp


@jit
def _account_new(m: Model, vm: int, sp: int) -> None:
    """A page of the shadow MMU counts, and is the newest of the active ones."""
    m.sp[sp].gen = m.vm[vm].gen
    m.vm[vm].n_used_mmu_pages += 1
    newest = m.vm[vm].newest
    m.sp[sp].older = newest
    m.sp[sp].newer = NONE
    if newest >= 0:
        m.sp[newest].newer = sp
    else:
        m.vm[vm].oldest = sp
    m.vm[vm].newest = sp


@jit
def write_protect_gfn(m: Model, vm: int, task: int, gfn: int, min_level: int) -> None:
    """kvm_mmu_slot_gfn_write_protect(): the entries lose W and MMU-writable."""
    change_leaves(m, vm, NONE, gfn, gfn + 1, min_level, HUGEST, PROTECT)
    change_tdp_leaves(m, vm, task, gfn, gfn + 1, min_level, HUGEST, PROTECT)


@jit
def link_shadow_page(m: Model, parent: int, index: int, child: int) -> None:
    """A huge SPTE in the way is dropped, untraced."""
    m.spte[parent, index] = link_to(child)
    if m.sp[child].tdp:
        return
    link = m.ctl.link_free
    if link >= 0:
        m.ctl.link_free = m.link[link].next
    else:
        link = m.ctl.link_top
        m.ctl.link_top += 1
    m.link[link].place = parent << TABLE_SHIFT | index
    m.link[link].next = m.sp[child].parents
    m.sp[child].parents = link


@jit
def unlink_parent(m: Model, parent: int, index: int, child: int) -> None:
    """mmu_page_remove_parent_pte()"""
    place = parent << TABLE_SHIFT | index
    before, link = NONE, m.sp[child].parents
    while m.link[link].place != place:
        before, link = link, m.link[link].next
    if before < 0:
        m.sp[child].parents = m.link[link].next
    else:
        m.link[before].next = m.link[link].next
    m.link[link].next = m.ctl.link_free
    m.ctl.link_free = link
