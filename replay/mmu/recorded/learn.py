"""What a line of a window shows of state that is older than the trace.

A recorded line is compared first, and is unknown where it differs.  What it shows then becomes state,
marked as adopted, so that later lines can be compared: a huge SPTE that a split line names was there,
a page that a split got has the role that its line prints, a refused split left its huge SPTE.
"""

from __future__ import annotations

from replay.jit import jit
from replay.mmu.events.pages import forget_page, make_page
from replay.mmu.kernel.host_pages import note_host_level
from replay.mmu.kernel.mmu_pages import available_pages, learn_older_page
from replay.mmu.kernel.rmap import pte_list_count, pte_list_get, rmap_head
from replay.mmu.kernel.role import (
    ACC_ALL,
    ACCESS_SHIFT,
    DIRECT_FAMILY,
    ROLE_MASK,
    UNPRINTED,
    child_key,
    key_access,
    key_level,
    key_variant,
    key_vm,
    make_key,
)
from replay.mmu.kernel.shadow_page import (
    drop_spte,
    fill_uniform,
    find_shadow_page,
    get_spte,
    install_leaf,
    link_shadow_page,
    sptep_gfn,
    zap_children,
)
from replay.mmu.kernel.spte import is_last_spte, is_shadow_present_pte, make_huge_page_split_spte, spte_pfn
from replay.mmu.recorded.guessed import OF_A_PAGE, name_page, set_role
from replay.mmu.split.rmap_heads import END_OF_HEAD
from replay.mmu.split.window import knows_all, note_older
from replay.mmu.state.counters import Counter
from replay.mmu.state.mmu import Mmu, page_bucket
from replay.mmu.state.records import TDP_KEY, PageFlag
from replay.policy import KnobCodes, OccupiedRmap
from replay.schema import EAGAIN, ENOSPC, EOPNOTSUPP, Role


@jit
def learn_role(m: Mmu, w: int, gfn: int, role: int) -> None:
    """kvm_mmu_get_page of a split prints the role of its child, and so that of the huge SPTE's page."""
    child = m.window[w].child
    vm = m.window[w].vm
    if child < 0 or not m.sp[child].page_flags & PageFlag.LIVE or knows_all(m, vm):
        return
    key = m.sp[child].key
    differs = (key ^ role) & ROLE_MASK & ~UNPRINTED
    sptep = pte_list_get(m, m.sp[child].parent_ptes, 0)
    if sptep < 0 or m.sp[child].gfn != gfn or differs & (Role.LEVEL | Role.DIRECT):
        return
    parent = sptep // 512
    if m.sp[parent].page_flags & PageFlag.GUESSED:
        if differs:
            set_role(m, child, role)
        own = m.sp[parent].key
        kept = Role.LEVEL | Role.QUADRANT | Role.DIRECT
        if not own & Role.DIRECT:
            kept |= Role.ACCESS  # that of a guest's table, where the child's is that of its entry
        name_page(m, parent, (role & ~kept) | (own & kept))


@jit
def child_of_attempt(m: Mmu, w: int, o: int) -> int:
    """The page that the simulated split ``o`` linked, or -1."""
    child = m.window[w].child
    if child < 0 or not m.sp[child].page_flags & PageFlag.LIVE or m.sp[child].gfn != m.attempt[o].gfn:
        return -1
    return child if key_level(m.sp[child].key) == m.attempt[o].level - 1 else -1


@jit
def undo_split(m: Mmu, w: int, o: int, spte: int, errno: int, k: KnobCodes) -> None:
    """The kernel refused the split ``o``: the huge SPTE stays, and the child is there only if that is why."""
    vm = m.window[w].vm
    child = child_of_attempt(m, w, o)
    if child < 0 or errno == -EAGAIN:
        return
    win = m.window[w]
    sptep = pte_list_get(m, m.sp[child].parent_ptes, 0)
    others = pte_list_count(m, rmap_head(m, vm, win.gfn, win.level))
    if sptep < 0 or pte_list_count(m, m.sp[child].parent_ptes) != 1 or (others and errno != -ENOSPC):
        return  # the walk would have to go on in the middle of the list
    parent, index = sptep // 512, sptep % 512
    drop_spte(m, parent, index, k.rmap_order)
    zap_children(m, child, k.rmap_order)
    gfn, access = sptep_gfn(m, parent, index), key_access(m.sp[child].key)
    if gfn >= 0:
        install_leaf(m, parent, index, gfn, spte, access, k.rmap_order)
    if errno == -EOPNOTSUPP:
        m.sp[child].page_flags |= PageFlag.ADOPTED
        learn_older_page(m, vm)
    else:
        forget_page(m, child, k.rmap_order)
    if errno == -ENOSPC:
        learn_limit(m, vm, k)
    win.restarted = 0
    win.position = END_OF_HEAD


@jit
def learn_limit(m: Mmu, vm: int, k: KnobCodes) -> None:
    """-ENOSPC: no more pages are available than the split leaves; fewer may be."""
    if available_pages(m, vm) > k.min_free_pages:
        m.vm[vm].n_max_mmu_pages = m.vm[vm].n_used_mmu_pages + k.min_free_pages


@jit
def adopted_with(m: Mmu, vm: int, gfn: int, level: int, spte: int) -> int:
    """The entry for ``gfn`` of an adopted page at ``level``, as sptep, or -1: one that holds ``spte``.

    If none holds it, one that is empty.
    """
    base = gfn >> (9 * level) << (9 * level)
    index = (gfn >> (9 * (level - 1))) & 511
    empty = -1
    sp = int(m.hash[page_bucket(base, make_key(level, 0, vm), m.hash.shape[0])])
    while sp:
        key = m.sp[sp].key
        flags = PageFlag.LIVE | PageFlag.ADOPTED
        direct = key & Role.DIRECT and key_vm(key) == vm and key_level(key) == level and not key & TDP_KEY
        if direct and m.sp[sp].gfn == base and m.sp[sp].page_flags & flags == flags:
            held = get_spte(m, sp, index)
            if not is_shadow_present_pte(held):
                empty = sp * 512 + index
            elif is_last_spte(held, level) and spte_pfn(held) == spte_pfn(spte):
                return sp * 512 + index
        sp = m.sp[sp].next
    return empty


@jit
def adopt_huge(m: Mmu, w: int, gfn: int, spte: int, level: int, errno: int, role: int, k: KnobCodes) -> None:
    """A split line that was not foreseen: its huge SPTE was there, and is split now, or else stays.

    ``role`` is that of the child where its line was recorded, else -1.
    """
    vm = m.window[w].vm
    note_host_level(m, vm, gfn, level)
    sptep = adopted_with(m, vm, gfn, level, spte)
    if sptep < 0:
        sptep = 512 * adopt_parent(m, vm, gfn, level, role) + ((gfn >> (9 * (level - 1))) & 511)
    parent, index = sptep // 512, sptep % 512
    access = key_access(m.sp[parent].key)
    if not is_shadow_present_pte(get_spte(m, parent, index)):
        install_leaf(m, parent, index, gfn, spte, access, k.rmap_order)
    if errno == -ENOSPC:
        learn_limit(m, vm, k)
    if errno != 0 and errno != -EOPNOTSUPP:
        return
    key = child_key(m.sp[parent].key, index, True, access)
    child = find_shadow_page(m, gfn, key)
    if child < 0:
        child = make_page(m, vm, gfn, key & ROLE_MASK, key_variant(key), PageFlag.ADOPTED)
    if errno == 0:
        fill_adopted(m, child, spte, k)
        link_shadow_page(m, parent, index, child, k.rmap_order)


@jit
def adopt_parent(m: Mmu, vm: int, gfn: int, level: int, role: int) -> int:
    """A page that mapped ``gfn``; ``role`` of a child of it, or -1, is all else that is known of it."""
    known = m.vm[vm].indirect_role
    variant = 0 if m.vm[vm].has_tdp or known else DIRECT_FAMILY
    bits = role & ~OF_A_PAGE if role >= 0 else max(known - 1, 0)
    access = role & Role.ACCESS if role >= 0 else ACC_ALL << ACCESS_SHIFT
    flags = PageFlag.ADOPTED if role >= 0 else PageFlag.ADOPTED | PageFlag.GUESSED
    note_older(m, vm, Counter.ADOPTED_PAGES)
    base = gfn >> (9 * level) << (9 * level)
    return make_page(m, vm, base, bits | level | Role.DIRECT | access, variant, flags)


@jit
def fill_adopted(m: Mmu, child: int, huge_spte: int, k: KnobCodes) -> None:
    """What the recorded split left in ``child``, as far as its SPTEs are not known."""
    if fill_uniform(m, child, huge_spte):
        return
    key = m.sp[child].key
    vm, level, access = key_vm(key), key_level(key), key_access(key)
    for index in range(512):
        gfn = m.sp[child].gfn + (index << (9 * (level - 1)))
        occupied = k.occupied_rmap == OccupiedRmap.LEAVE_NONPRESENT and rmap_head(m, vm, gfn, level)
        if not occupied and not is_shadow_present_pte(get_spte(m, child, index)):
            spte = make_huge_page_split_spte(huge_spte, index, level, access, m.vm[vm].layout)
            install_leaf(m, child, index, gfn, spte, access, k.rmap_order)
