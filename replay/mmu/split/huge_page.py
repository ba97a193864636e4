"""A huge SPTE becomes a table of smaller ones: kvm_mmu_split_huge_page() of v2 20/26.

shadow_mmu_split_huge_page() of 6.0 onward differs in knobs only.
"""

from __future__ import annotations

import numpy as np

from replay.jit import jit
from replay.mmu.kernel.mmu_pages import add_used_page, drop_used_page
from replay.mmu.kernel.rmap import rmap_head
from replay.mmu.kernel.role import ROLE_MASK, UNPRINTED, child_key, key_access, key_level, key_vm
from replay.mmu.kernel.shadow_page import (
    alloc_shadow_page,
    drop_spte,
    fill_uniform,
    find_shadow_page,
    free_shadow_page,
    get_spte,
    install_leaf,
    link_shadow_page,
    set_spte,
    sptep_access,
    sptep_gfn,
    unlink_shadow_page,
)
from replay.mmu.kernel.spte import (
    LEFT_NONPRESENT,
    is_last_spte,
    is_shadow_present_pte,
    make_huge_page_split_spte,
)
from replay.mmu.recorded.lines import simulated_flush, simulated_line
from replay.mmu.results.census import census_descriptors
from replay.mmu.split.window import count
from replay.mmu.state.counters import Counter
from replay.mmu.state.mmu import Mmu, page_bucket
from replay.mmu.state.records import AttemptFlag, PageFlag
from replay.policy import ExistingChild, Flush, KnobCodes, OccupiedRmap, SplitCaches
from replay.schema import Flag, FlushCause, Kind, Role


@jit
def zap_unsync_of_gfn(m: Mmu, w: int, gfn: int, key: int, order: int) -> None:
    """What kvm_mmu_find_shadow_page() zaps on its way above the 4K level: unsync pages of the gfn."""
    win = m.window[w]
    zapped = False
    i = int(m.hash[page_bucket(gfn, key, m.hash.shape[0])])
    while i:
        following = m.sp[i].next
        if m.sp[i].gfn == gfn and m.sp[i].key == key and m.sp[i].page_flags & PageFlag.LIVE:
            break  # the page that is looked for; those behind it are not looked at
        if (
            m.sp[i].gfn == gfn
            and m.sp[i].page_flags & (PageFlag.LIVE | PageFlag.UNSYNC) == PageFlag.LIVE | PageFlag.UNSYNC
            and not (m.sp[i].key ^ key) & Role.GEN
        ):
            unlink_shadow_page(m, i, order)
            drop_used_page(m, win.vm, i)
            free_shadow_page(m, i)
            win.zapped += 1
            zapped = True
        i = following
    if zapped:
        simulated_flush(m, w, FlushCause.ZAP, win.start, win.end)


@jit
def simulated_alias(m: Mmu, w: int, gfn: int, key: int, sptep: int) -> None:
    """v2_alias_sp: the child with ``key`` exists, and the huge SPTE ``sptep`` stays."""
    page = m.sp[sptep // 512].frame
    offset = 8 * (sptep % 512)
    address = (page << 12) + offset if page else -1 - offset
    simulated_line(
        m, w, Kind.V2_ALIAS_SP, gfn, key_level(key), key & ROLE_MASK & ~(Role.GEN | UNPRINTED), address
    )


@jit
def fill_child(m: Mmu, w: int, child: int, huge_spte: int, o: int, k: KnobCodes) -> bool:
    """Populate the 512 SPTEs of ``child`` from ``huge_spte``; True if a present non-leaf SPTE was met."""
    key = m.sp[child].key
    level = key_level(key)
    if fill_uniform(m, child, huge_spte):
        m.attempt[o].installed = 512
        return False
    vm = key_vm(key)
    access = key_access(key)
    layout = m.vm[vm].layout
    nonleaf = False
    for index in range(512):
        spte = get_spte(m, child, index)
        if is_shadow_present_pte(spte):
            nonleaf |= not is_last_spte(spte, level)
            m.attempt[o].reused += 1
            continue
        gfn = m.sp[child].gfn + (index << (9 * (level - 1)))
        if k.occupied_rmap == OccupiedRmap.LEAVE_NONPRESENT and rmap_head(m, vm, gfn, level):
            m.attempt[o].nonpresent += 1
            set_spte(m, child, index, LEFT_NONPRESENT)
            simulated_line(m, w, Kind.V2_SPLIT_NONPRESENT, gfn, level, m.sp[child].gfn, 0)
            continue
        spte = make_huge_page_split_spte(huge_spte, index, level, access, layout)
        install_leaf(m, child, index, gfn, spte, access, k.rmap_order)
        m.attempt[o].installed += 1
    return nonleaf


@jit
def split_huge_page(m: Mmu, w: int, sptep: int, o: int, k: KnobCodes) -> bool:
    """kvm_mmu_split_huge_page() / shadow_mmu_split_huge_page(); False if the child exists and is refused."""
    win = m.window[w]
    vm = win.vm
    sp = sptep // 512
    index = sptep % 512
    gfn = sptep_gfn(m, sp, index)
    huge_spte = get_spte(m, sp, index)
    key = child_key(m.sp[sp].key, index, True, sptep_access(m, sp, index))
    if key_level(key) > 1:
        zap_unsync_of_gfn(m, w, gfn, key, k.rmap_order)
    child = find_shadow_page(m, gfn, key)
    if child >= 0 and k.existing_child == ExistingChild.SKIP:
        simulated_alias(m, w, gfn, key, sptep)
        return False
    if child < 0:
        child = alloc_shadow_page(m, gfn, key, PageFlag.SPLIT)
        add_used_page(m, vm, False)
        m.attempt[o].attempt_flags |= AttemptFlag.CREATED
        count(m, Counter.SHADOW_PAGES_CREATED, 1)
        win.spare = 0
        if k.split_caches == SplitCaches.MERGED:
            m.vm[vm].header_cache -= 1
            m.vm[vm].page_cache -= 1
    else:
        count(m, Counter.SHADOW_PAGES_REUSED, 1)
    win.child = child
    created = m.attempt[o].attempt_flags & AttemptFlag.CREATED
    simulated_line(m, w, Kind.GET_PAGE, gfn, 0, key & ROLE_MASK, Flag.CREATED if created else 0)
    descriptors = m.ctl.desc_used
    nonleaf = fill_child(m, w, child, huge_spte, o, k)
    used = m.ctl.desc_used - descriptors
    installed, nonpresent = np.int64(m.attempt[o].installed), np.int64(m.attempt[o].nonpresent)
    simulated_line(m, w, Kind.V2_SPLIT_DONE, gfn, win.level, installed, nonpresent)
    drop_spte(m, sp, index, k.rmap_order)
    descriptors = m.ctl.desc_used
    link_shadow_page(m, sp, index, child, k.rmap_order)
    used += m.ctl.desc_used - descriptors
    census_descriptors(m, o, used)
    if k.split_caches == SplitCaches.MERGED:
        m.vm[vm].desc_cache -= used
    flush_after_split(m, w, o, nonleaf, k)
    return True


@jit
def flush_after_split(m: Mmu, w: int, o: int, nonleaf: bool, k: KnobCodes) -> None:
    """What the policy flushes once attempt ``o`` has linked its child; ``nonleaf``: it had a table below."""
    win = m.window[w]
    count(m, Counter.SPTES_INSTALLED, np.int64(m.attempt[o].installed))
    count(m, Counter.SPTES_LEFT_NONPRESENT, np.int64(m.attempt[o].nonpresent))
    count(m, Counter.SPTES_REUSED, np.int64(m.attempt[o].reused))
    partial = m.attempt[o].nonpresent > 0
    if partial:
        count(m, Counter.PARTIAL, 1)
    if k.flush == Flush.DEFERRED_IF_PARTIAL:
        if partial:
            m.attempt[o].attempt_flags |= AttemptFlag.FLUSHED
            win.head_flush = 1
    elif k.flush == Flush.ON_LINK_ALWAYS or nonleaf or partial:
        m.attempt[o].attempt_flags |= AttemptFlag.FLUSHED
        gfn = m.attempt[o].gfn
        simulated_flush(m, w, FlushCause.LINK, gfn, gfn + (1 << (9 * (win.level - 1))))
