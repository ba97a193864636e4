"""Shadow pages: finding, making, linking and zapping them (mmu.c, kvm_mmu_get_shadow_page and around)."""

from __future__ import annotations

from replay.jit import jit
from replay.mmu.kernel.rmap import (
    pte_list_add,
    pte_list_get,
    pte_list_remove,
    rmap_add,
    rmap_region_is_empty,
    rmap_region_set_uniform,
    rmap_remove,
)
from replay.mmu.kernel.role import ROLE_MASK, key_access, key_level, key_vm
from replay.mmu.kernel.spte import (
    PT_WRITABLE_MASK,
    is_last_spte,
    is_shadow_present_pte,
    make_huge_page_split_spte,
    make_nonleaf_spte,
    spte_child,
)
from replay.mmu.state.mmu import (
    Mmu,
    alloc_table,
    find_gib,
    find_region,
    frame_bucket,
    free_table,
    page_bucket,
)
from replay.mmu.state.records import NO_TABLE, UNIFORM, PageFlag
from replay.schema import Role


@jit
def find_shadow_page(m: Mmu, gfn: int, key: int) -> int:
    """The page with exactly this gfn and key, or -1."""
    i = int(m.hash[page_bucket(gfn, key, m.hash.shape[0])])
    while i:
        if m.sp[i].gfn == gfn and m.sp[i].key == key and (m.sp[i].page_flags & PageFlag.LIVE):
            return i
        i = m.sp[i].next
    return -1


@jit
def alloc_shadow_page(m: Mmu, gfn: int, key: int, flags: int) -> int:
    """A new page without present SPTEs, first in its hash chain."""
    i = m.ctl.sp_free
    if i >= 0:
        m.ctl.sp_free = m.sp[i].next
    else:
        i = m.ctl.sp_top
        m.ctl.sp_top += 1
    b = page_bucket(gfn, key, m.hash.shape[0])
    m.sp[i].gfn = gfn
    m.sp[i].key = key
    m.sp[i].next = m.hash[b]
    m.hash[b] = i
    m.sp[i].page_flags = PageFlag.LIVE | flags
    m.sp[i].spt = NO_TABLE
    m.sp[i].first_spte = 0
    m.sp[i].parent_ptes = 0
    m.sp[i].frame = 0
    m.sp[i].shadowed_translation = NO_TABLE
    m.ctl.birth += 1
    m.sp[i].birth = m.ctl.birth
    return i


@jit
def free_shadow_page(m: Mmu, sp: int) -> None:
    """kvm_mmu_free_shadow_page(): row ``sp`` and its tables are free; it must be in no list."""
    unbind_page(m, sp)
    if m.sp[sp].spt >= 0:
        free_table(m, int(m.sp[sp].spt))
    if m.sp[sp].shadowed_translation >= 0:
        free_table(m, int(m.sp[sp].shadowed_translation))
    m.sp[sp].spt = NO_TABLE
    m.sp[sp].shadowed_translation = NO_TABLE
    b = page_bucket(m.sp[sp].gfn, m.sp[sp].key, m.hash.shape[0])
    i = m.hash[b]
    if i == sp:
        m.hash[b] = m.sp[sp].next
    else:
        while m.sp[i].next != sp:
            i = m.sp[i].next
        m.sp[i].next = m.sp[sp].next
    m.sp[sp].page_flags = 0
    m.sp[sp].next = m.ctl.sp_free
    m.ctl.sp_free = sp


# -- the page frame of a table, as set_spte lines tell it ---------------------------------------------


@jit
def find_bound(m: Mmu, page: int) -> int:
    """The shadow page whose table is page frame ``page``, or -1."""
    last = m.ctl.last_bound
    if page and m.sp[last].frame == page:
        return last
    i = int(m.frames[frame_bucket(page, m.frames.shape[0])])
    while i and m.sp[i].frame != page:
        i = m.sp[i].next_in_frame
    m.ctl.last_bound = i
    return i if i else -1


@jit
def unbind_page(m: Mmu, sp: int) -> None:
    """The table of ``sp`` is no longer in a known page frame."""
    page = m.sp[sp].frame
    if page == 0:
        return
    b = frame_bucket(page, m.frames.shape[0])
    i = m.frames[b]
    if i == sp:
        m.frames[b] = m.sp[sp].next_in_frame
    else:
        while m.sp[i].next_in_frame != sp:
            i = m.sp[i].next_in_frame
        m.sp[i].next_in_frame = m.sp[sp].next_in_frame
    m.sp[sp].frame = 0


@jit
def bind_page(m: Mmu, sp: int, page: int) -> None:
    """The table of ``sp`` is in page frame ``page``; whatever was bound to that frame no longer is."""
    if m.sp[sp].frame == page:
        return
    other = find_bound(m, page)
    if other >= 0:
        unbind_page(m, other)
    unbind_page(m, sp)
    b = frame_bucket(page, m.frames.shape[0])
    m.sp[sp].frame = page
    m.sp[sp].next_in_frame = m.frames[b]
    m.frames[b] = sp


# -- SPTEs ----------------------------------------------------------------------------------------------


@jit
def get_spte(m: Mmu, sp: int, index: int) -> int:
    """SPTE ``index`` of page ``sp``, 0 if it is not present."""
    t = m.sp[sp].spt
    if t >= 0:
        return m.spt[t, index]
    if t == NO_TABLE:
        return 0
    return uniform_spte(m, sp, index)


@jit
def uniform_spte(m: Mmu, sp: int, index: int) -> int:
    """SPTE ``index`` of a table that one split filled: SPTE 0 moved on by whole pages."""
    spte = m.sp[sp].first_spte + (index << (12 + 9 * (key_level(m.sp[sp].key) - 1)))
    if m.sp[sp].page_flags & (PageFlag.CLEARED << (index >> 6)):
        spte &= ~PT_WRITABLE_MASK
    return spte


@jit
def set_spte(m: Mmu, sp: int, index: int, spte: int) -> None:
    """Write one SPTE; a compact table is spelled out first."""
    t = m.sp[sp].spt
    if t < 0:
        t = alloc_table(m)
        if m.sp[sp].spt == UNIFORM:
            for i in range(512):
                m.spt[t, i] = uniform_spte(m, sp, i)
        m.sp[sp].spt = t
    m.spt[t, index] = spte


@jit
def sptep_gfn(m: Mmu, sp: int, index: int) -> int:
    """kvm_mmu_page_get_gfn(): the gfn that SPTE ``index`` maps (-1 where it was never told)."""
    key = m.sp[sp].key
    if key & Role.DIRECT:
        return m.sp[sp].gfn + (index << (9 * (key_level(key) - 1)))
    t = m.sp[sp].shadowed_translation
    if t < 0:
        return -1
    return (m.spt[t, index] >> 4) - 1


@jit
def sptep_access(m: Mmu, sp: int, index: int) -> int:
    """kvm_mmu_page_get_access(): what the guest allows through SPTE ``index``."""
    key = m.sp[sp].key
    if key & Role.DIRECT or m.sp[sp].shadowed_translation < 0:
        return key_access(key)
    return m.spt[m.sp[sp].shadowed_translation, index] & 0xF


@jit
def set_translation(m: Mmu, sp: int, index: int, gfn: int, access: int) -> None:
    """kvm_mmu_page_set_translation(), for indirect pages."""
    if m.sp[sp].key & Role.DIRECT:
        return
    if m.sp[sp].shadowed_translation < 0:
        m.sp[sp].shadowed_translation = alloc_table(m)
    m.spt[m.sp[sp].shadowed_translation, index] = ((gfn + 1) << 4) | access


@jit
def drop_spte(m: Mmu, sp: int, index: int, order: int) -> None:
    """drop_spte() or drop_parent_pte(): the SPTE becomes non-present and leaves its rmap or its child."""
    spte = get_spte(m, sp, index)
    if not is_shadow_present_pte(spte):
        return
    key = m.sp[sp].key
    level = key_level(key)
    if is_last_spte(spte, level):
        gfn = sptep_gfn(m, sp, index)
        if gfn >= 0:
            rmap_remove(m, key_vm(key), gfn, level, sp * 512 + index, order)
    else:
        child = spte_child(spte)
        m.sp[child].parent_ptes = pte_list_remove(m, m.sp[child].parent_ptes, sp * 512 + index, order)
    set_spte(m, sp, index, 0)


@jit
def link_shadow_page(m: Mmu, parent: int, index: int, child: int, order: int) -> None:
    """__link_shadow_page(): what the SPTE pointed to before is dropped."""
    spte = get_spte(m, parent, index)
    level = key_level(m.sp[parent].key)
    if is_shadow_present_pte(spte):
        if not is_last_spte(spte, level) and spte_child(spte) == child:
            return
        drop_spte(m, parent, index, order)
    set_spte(m, parent, index, make_nonleaf_spte(child))
    m.sp[child].parent_ptes = pte_list_add(m, m.sp[child].parent_ptes, parent * 512 + index, order)


@jit
def install_leaf(m: Mmu, sp: int, index: int, gfn: int, spte: int, access: int, order: int) -> None:
    """Make SPTE ``index`` map ``gfn``; the SPTE must be non-present."""
    key = m.sp[sp].key
    set_spte(m, sp, index, spte)
    set_translation(m, sp, index, gfn, access)
    rmap_add(m, key_vm(key), gfn, key_level(key), sp * 512 + index, order)


@jit
def fill_uniform(m: Mmu, sp: int, huge_spte: int) -> bool:
    """Fill the empty direct 4K table ``sp`` by splitting ``huge_spte``, in the compact form.

    Possible if none of its 512 gfns is mapped by another SPTE; else False and nothing is done.
    """
    key = m.sp[sp].key
    if key_level(key) != 1 or m.sp[sp].spt != NO_TABLE:
        return False
    r = find_region(m, key_vm(key), m.sp[sp].gfn, True)
    if not rmap_region_is_empty(m, r):
        return False
    layout = m.vm[key_vm(key)].layout
    m.sp[sp].first_spte = make_huge_page_split_spte(huge_spte, 0, 1, key_access(key), layout)
    m.sp[sp].page_flags &= ~PageFlag.ALL_CLEARED
    m.sp[sp].spt = UNIFORM
    rmap_region_set_uniform(m, r, sp)
    return True


# -- zapping ----------------------------------------------------------------------------------------------


@jit
def account_shadowed(m: Mmu, vm: int, gfn: int, change: int) -> None:
    """An indirect page begins (+1) or ends (-1) to shadow a guest table at ``gfn``: nothing huge there."""
    g = find_gib(m, vm, gfn, True)
    m.gib[g].tables += change
    m.region[find_region(m, vm, gfn, True)].tables += change


@jit
def zap_children(m: Mmu, sp: int, order: int) -> None:
    """kvm_mmu_page_unlink_children(): all SPTEs, in index order."""
    if m.sp[sp].spt == NO_TABLE:
        return
    if m.sp[sp].spt == UNIFORM:
        key = m.sp[sp].key
        r = find_region(m, key_vm(key), m.sp[sp].gfn, False)
        if r >= 0 and m.region[r].block == UNIFORM and m.region[r].sp == sp:
            m.region[r].block = NO_TABLE
            m.sp[sp].spt = NO_TABLE
            return
    for index in range(512):
        drop_spte(m, sp, index, order)


@jit
def unlink_parents(m: Mmu, sp: int, order: int) -> None:
    """kvm_mmu_unlink_parents(): every SPTE that points to ``sp`` becomes non-present."""
    while True:
        sptep = pte_list_get(m, m.sp[sp].parent_ptes, 0)
        if sptep < 0:
            return
        m.sp[sp].parent_ptes = pte_list_remove(m, m.sp[sp].parent_ptes, sptep, order)
        if get_spte(m, sptep // 512, sptep % 512) == make_nonleaf_spte(sp):
            set_spte(m, sptep // 512, sptep % 512, 0)


@jit
def unlink_shadow_page(m: Mmu, sp: int, order: int) -> None:
    """The part of __kvm_mmu_prepare_zap_page() that empties a page and takes it out of the tree."""
    zap_children(m, sp, order)
    unlink_parents(m, sp, order)


@jit
def same_print(m: Mmu, sp: int, gfn: int, role: int, vm: int) -> bool:
    """True if page ``sp`` prints ``gfn`` and ``role`` (less the invalid bit), whatever its variant."""
    key = m.sp[sp].key
    return m.sp[sp].gfn == gfn and (key & ROLE_MASK) == role and key_vm(key) == vm
