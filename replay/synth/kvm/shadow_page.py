"""Shadow pages: finding, making and linking them."""

from __future__ import annotations

from replay.jit import jit
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
    CHUNK_VALUE,
    CHUNK_WORDS,
    CTL_LINK_FREE,
    CTL_LINK_TOP,
    CTL_NEXT_TABLE,
    CTL_SP_FREE,
    CTL_SP_TOP,
    KEY,
    LINK_NEXT,
    LINK_PLACE,
    NONE,
    ROOT_LEVEL,
    ROOT_SP,
    SMALL,
    SP_ACCESS,
    SP_COLUMNS,
    SP_DIRECT,
    SP_GEN,
    SP_GFN,
    SP_GUEST_MODE,
    SP_LEVEL,
    SP_NEWER,
    SP_OLDER,
    SP_PARENTS,
    SP_ROOT,
    SP_SPT,
    SP_TABLE,
    SP_TDP,
    SP_VM,
    TABLE_GFN,
    TABLE_SHADOW,
    TABLE_SHIFT,
    VM_GEN,
    VM_NEWEST,
    VM_OLDEST,
    VM_ROLES,
    VM_USED,
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
    sp = m.ctl[CTL_SP_FREE]
    if sp >= 0:
        m.ctl[CTL_SP_FREE] = m.sp[sp, SP_NEWER]
    else:
        sp = m.ctl[CTL_SP_TOP]
        m.ctl[CTL_SP_TOP] += 1
    page = m.sp[sp]
    for i in range(SP_COLUMNS):
        page[i] = 0
    page[KEY] = NONE
    page[SP_GFN] = gfn
    page[SP_LEVEL] = level
    page[SP_DIRECT] = direct
    page[SP_ACCESS] = access
    page[SP_GUEST_MODE] = mode
    page[SP_SPT] = m.ctl[CTL_NEXT_TABLE] << PAGE_SHIFT
    m.ctl[CTL_NEXT_TABLE] += 1
    page[SP_PARENTS] = NONE
    page[SP_TABLE] = NONE
    page[SP_ROOT] = NONE
    page[SP_VM] = vm
    return sp


@jit
def free_page(m: Model, sp: int) -> None:
    """Put a shadow page on the free list; a root that used it has none from now on."""
    root = m.sp[sp, SP_ROOT]
    if root >= 0 and m.root[root, ROOT_SP] == sp:
        m.root[root, ROOT_SP] = NONE
    m.sp[sp, SP_NEWER] = m.ctl[CTL_SP_FREE]
    m.ctl[CTL_SP_FREE] = sp


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
    m.vm[vm, VM_ROLES] |= 1 << direct_role(mode, access)
    if level == 1:
        chunk = make_chunk(m, SMALL, vm, gfn >> 18)
        m.chunk[chunk, CHUNK_VALUE] += 1
        m.chunk[chunk, CHUNK_WORDS + (gfn >> 14 & 15)] |= 1 << (gfn >> 9 & 31)
    _account_new(m, vm, sp)
    print_page(m, task, LOCKED, GET_PAGE, sp, NEW)
    return sp


@jit
def get_indirect_page(m: Model, vm: int, task: int, table: int, level: int, mode: int) -> int:
    """kvm_mmu_get_shadow_page() of the page that shadows a guest page table."""
    sp = m.table[table, TABLE_SHADOW]
    if sp >= 0:
        print_page(m, task, LOCKED, GET_PAGE, sp, EXISTING)
        return sp
    gfn = m.table[table, TABLE_GFN]
    access = m.layout[ACC_ALL] if level == ROOT_LEVEL else m.layout[ACC_TABLE]
    sp = alloc_page(m, vm, gfn, level, 0, access, mode)
    m.sp[sp, SP_TABLE] = table
    m.table[table, TABLE_SHADOW] = sp
    _account_new(m, vm, sp)
    # account_shadowed(): nothing huge maps a guest page table, and nothing writes to it unseen
    disallow_huge(m, vm, gfn, 1)
    write_protect_gfn(m, vm, task, gfn, 1)
    print_page(m, task, LOCKED, GET_PAGE, sp, NEW)
    return sp


@jit
def _account_new(m: Model, vm: int, sp: int) -> None:
    """A page of the shadow MMU counts, and is the newest of the active ones."""
    m.sp[sp, SP_GEN] = m.vm[vm, VM_GEN]
    m.vm[vm, VM_USED] += 1
    newest = m.vm[vm, VM_NEWEST]
    m.sp[sp, SP_OLDER] = newest
    m.sp[sp, SP_NEWER] = NONE
    if newest >= 0:
        m.sp[newest, SP_NEWER] = sp
    else:
        m.vm[vm, VM_OLDEST] = sp
    m.vm[vm, VM_NEWEST] = sp


@jit
def write_protect_gfn(m: Model, vm: int, task: int, gfn: int, min_level: int) -> None:
    """kvm_mmu_slot_gfn_write_protect(): the entries lose W and MMU-writable."""
    change_leaves(m, vm, NONE, gfn, gfn + 1, min_level, HUGEST, PROTECT)
    change_tdp_leaves(m, vm, task, gfn, gfn + 1, min_level, HUGEST, PROTECT)


@jit
def link_shadow_page(m: Model, parent: int, index: int, child: int) -> None:
    """A huge SPTE in the way is dropped, untraced."""
    m.spte[parent, index] = link_to(child)
    if m.sp[child, SP_TDP]:
        return
    link = m.ctl[CTL_LINK_FREE]
    if link >= 0:
        m.ctl[CTL_LINK_FREE] = m.link[link, LINK_NEXT]
    else:
        link = m.ctl[CTL_LINK_TOP]
        m.ctl[CTL_LINK_TOP] += 1
    m.link[link, LINK_PLACE] = parent << TABLE_SHIFT | index
    m.link[link, LINK_NEXT] = m.sp[child, SP_PARENTS]
    m.sp[child, SP_PARENTS] = link


@jit
def unlink_parent(m: Model, parent: int, index: int, child: int) -> None:
    """mmu_page_remove_parent_pte()"""
    place = parent << TABLE_SHIFT | index
    before, link = NONE, m.sp[child, SP_PARENTS]
    while m.link[link, LINK_PLACE] != place:
        before, link = link, m.link[link, LINK_NEXT]
    if before < 0:
        m.sp[child, SP_PARENTS] = m.link[link, LINK_NEXT]
    else:
        m.link[before, LINK_NEXT] = m.link[link, LINK_NEXT]
    m.link[link, LINK_NEXT] = m.ctl[CTL_LINK_FREE]
    m.ctl[CTL_LINK_FREE] = link
