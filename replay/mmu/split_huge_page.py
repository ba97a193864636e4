"""A huge SPTE becomes a table of smaller ones: kvm_mmu_split_huge_page() of v2 20/26.

shadow_mmu_split_huge_page() of 6.0 onward differs in knobs only.
"""

from __future__ import annotations

import numpy as np

from replay.jit import jit
from replay.mmu.census import census_descriptors
from replay.mmu.kinds import CREATED, GET_PAGE, V2_ALIAS_SP, V2_SPLIT_DONE, V2_SPLIT_NONPRESENT
from replay.mmu.layout import (
    CTL_DESC_USED,
    FLAG_LIVE,
    FLAG_SPLIT,
    FLAG_UNSYNC,
    SP32_FLAGS,
    SP32_NEXT,
    SP_GFN,
    SP_KEY,
    SP_PAGE,
    VM_DESC,
    VM_HEADERS,
    VM_LAYOUT,
    VM_PAGES,
)
from replay.mmu.mmu_pages import add_used_page, drop_used_page
from replay.mmu.rmap import rmap_head
from replay.mmu.role import GEN, ROLE_MASK, UNPRINTED, child_key, key_access, key_level, key_vm
from replay.mmu.shadow_page import (
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
from replay.mmu.spte import LEFT_NONPRESENT, is_last_spte, is_shadow_present_pte, make_huge_page_split_spte
from replay.mmu.state import Mmu, page_bucket
from replay.mmu.truth import simulated_flush, simulated_line
from replay.mmu.window import (
    ATTEMPT_CREATED,
    ATTEMPT_FLUSHED,
    C_INSTALLED,
    C_NONPRESENT,
    C_PAGES_CREATED,
    C_PAGES_REUSED,
    C_PARTIAL,
    C_REUSED,
    CAUSE_LINK,
    CAUSE_ZAP,
    OUT16_FLAGS,
    OUT16_INSTALLED,
    OUT16_NONPRESENT,
    OUT16_REUSED,
    OUT_GFN,
    WIN_CHILD,
    WIN_END,
    WIN_HEAD_FLUSH,
    WIN_LEVEL,
    WIN_SPARE,
    WIN_START,
    WIN_VM,
    WIN_ZAPPED,
    count,
)
from replay.policy import ExistingChild, Flush, KnobCodes, OccupiedRmap, SplitCaches

CHILD_SKIP = int(ExistingChild.SKIP)
RMAP_LEAVE = int(OccupiedRmap.LEAVE_NONPRESENT)
FLUSH_DEFERRED = int(Flush.DEFERRED_IF_PARTIAL)
FLUSH_ALWAYS = int(Flush.ON_LINK_ALWAYS)
CACHES_MERGED = int(SplitCaches.MERGED)


@jit
def zap_unsync_of_gfn(m: Mmu, w: int, gfn: int, key: int, order: int) -> None:
    """What kvm_mmu_find_shadow_page() zaps on its way above the 4K level: unsync pages of the gfn."""
    win = m.window[w]
    zapped = False
    i = int(m.hash[page_bucket(gfn, key, m.hash.shape[0])])
    while i:
        following = m.sp32[i, SP32_NEXT]
        if m.sp[i, SP_GFN] == gfn and m.sp[i, SP_KEY] == key and m.sp32[i, SP32_FLAGS] & FLAG_LIVE:
            break  # the page that is looked for; those behind it are not looked at
        if (
            m.sp[i, SP_GFN] == gfn
            and m.sp32[i, SP32_FLAGS] & (FLAG_LIVE | FLAG_UNSYNC) == FLAG_LIVE | FLAG_UNSYNC
            and not (m.sp[i, SP_KEY] ^ key) & GEN
        ):
            unlink_shadow_page(m, i, order)
            drop_used_page(m, win[WIN_VM], i)
            free_shadow_page(m, i)
            win[WIN_ZAPPED] += 1
            zapped = True
        i = following
    if zapped:
        simulated_flush(m, w, CAUSE_ZAP, win[WIN_START], win[WIN_END])


@jit
def simulated_alias(m: Mmu, w: int, gfn: int, key: int, sptep: int) -> None:
    """v2_alias_sp: the child with ``key`` exists, and the huge SPTE ``sptep`` stays."""
    page = m.sp[sptep // 512, SP_PAGE]
    offset = 8 * (sptep % 512)
    address = (page << 12) + offset if page else -1 - offset
    simulated_line(m, w, V2_ALIAS_SP, gfn, key_level(key), key & ROLE_MASK & ~(GEN | UNPRINTED), address)


@jit
def fill_child(m: Mmu, w: int, child: int, huge_spte: int, o: int, k: KnobCodes) -> bool:
    """Populate the 512 SPTEs of ``child`` from ``huge_spte``; True if a present non-leaf SPTE was met."""
    key = m.sp[child, SP_KEY]
    level = key_level(key)
    if fill_uniform(m, child, huge_spte):
        m.out16[o, OUT16_INSTALLED] = 512
        return False
    vm = key_vm(key)
    access = key_access(key)
    layout = m.vm[vm, VM_LAYOUT]
    nonleaf = False
    for index in range(512):
        spte = get_spte(m, child, index)
        if is_shadow_present_pte(spte):
            nonleaf |= not is_last_spte(spte, level)
            m.out16[o, OUT16_REUSED] += 1
            continue
        gfn = m.sp[child, SP_GFN] + (index << (9 * (level - 1)))
        if k.occupied_rmap == RMAP_LEAVE and rmap_head(m, vm, gfn, level):
            m.out16[o, OUT16_NONPRESENT] += 1
            set_spte(m, child, index, LEFT_NONPRESENT)
            simulated_line(m, w, V2_SPLIT_NONPRESENT, gfn, level, m.sp[child, SP_GFN], 0)
            continue
        spte = make_huge_page_split_spte(huge_spte, index, level, access, layout)
        install_leaf(m, child, index, gfn, spte, access, k.rmap_order)
        m.out16[o, OUT16_INSTALLED] += 1
    return nonleaf


@jit
def split_huge_page(m: Mmu, w: int, sptep: int, o: int, k: KnobCodes) -> bool:
    """kvm_mmu_split_huge_page() / shadow_mmu_split_huge_page(); False if the child exists and is refused."""
    win = m.window[w]
    vm = win[WIN_VM]
    sp = sptep // 512
    index = sptep % 512
    gfn = sptep_gfn(m, sp, index)
    huge_spte = get_spte(m, sp, index)
    key = child_key(m.sp[sp, SP_KEY], index, True, sptep_access(m, sp, index))
    if key_level(key) > 1:
        zap_unsync_of_gfn(m, w, gfn, key, k.rmap_order)
    child = find_shadow_page(m, gfn, key)
    if child >= 0 and k.existing_child == CHILD_SKIP:
        simulated_alias(m, w, gfn, key, sptep)
        return False
    if child < 0:
        child = alloc_shadow_page(m, gfn, key, FLAG_SPLIT)
        add_used_page(m, vm, False)
        m.out16[o, OUT16_FLAGS] |= ATTEMPT_CREATED
        count(m, C_PAGES_CREATED, 1)
        win[WIN_SPARE] = 0
        if k.split_caches == CACHES_MERGED:
            m.vm[vm, VM_HEADERS] -= 1
            m.vm[vm, VM_PAGES] -= 1
    else:
        count(m, C_PAGES_REUSED, 1)
    win[WIN_CHILD] = child
    created = m.out16[o, OUT16_FLAGS] & ATTEMPT_CREATED
    simulated_line(m, w, GET_PAGE, gfn, 0, key & ROLE_MASK, CREATED if created else 0)
    descriptors = m.ctl[CTL_DESC_USED]
    nonleaf = fill_child(m, w, child, huge_spte, o, k)
    used = m.ctl[CTL_DESC_USED] - descriptors
    installed, nonpresent = np.int64(m.out16[o, OUT16_INSTALLED]), np.int64(m.out16[o, OUT16_NONPRESENT])
    simulated_line(m, w, V2_SPLIT_DONE, gfn, win[WIN_LEVEL], installed, nonpresent)
    drop_spte(m, sp, index, k.rmap_order)
    descriptors = m.ctl[CTL_DESC_USED]
    link_shadow_page(m, sp, index, child, k.rmap_order)
    used += m.ctl[CTL_DESC_USED] - descriptors
    census_descriptors(m, o, used)
    if k.split_caches == CACHES_MERGED:
        m.vm[vm, VM_DESC] -= used
    flush_after_split(m, w, o, nonleaf, k)
    return True


@jit
def flush_after_split(m: Mmu, w: int, o: int, nonleaf: bool, k: KnobCodes) -> None:
    win = m.window[w]
    count(m, C_INSTALLED, np.int64(m.out16[o, OUT16_INSTALLED]))
    count(m, C_NONPRESENT, np.int64(m.out16[o, OUT16_NONPRESENT]))
    count(m, C_REUSED, np.int64(m.out16[o, OUT16_REUSED]))
    partial = m.out16[o, OUT16_NONPRESENT] > 0
    if partial:
        count(m, C_PARTIAL, 1)
    if k.flush == FLUSH_DEFERRED:
        if partial:
            m.out16[o, OUT16_FLAGS] |= ATTEMPT_FLUSHED
            win[WIN_HEAD_FLUSH] = 1
    elif k.flush == FLUSH_ALWAYS or nonleaf or partial:
        m.out16[o, OUT16_FLAGS] |= ATTEMPT_FLUSHED
        gfn = m.out[o, OUT_GFN]
        simulated_flush(m, w, CAUSE_LINK, gfn, gfn + (1 << (9 * (win[WIN_LEVEL] - 1))))
