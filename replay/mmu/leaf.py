"""Leaf SPTEs as recorded events set, change and zap them."""

from __future__ import annotations

from replay.jit import jit
from replay.mmu.apply import forget_page, link_in_fault, make_page
from replay.mmu.layout import (
    FLAG_ADOPTED,
    FLAG_LIVE,
    FLAG_SPLIT,
    GIB_HOST,
    NO_TABLE,
    REGION_BLOCK,
    REGION_HOST,
    REGION_SP,
    SP32_FLAGS,
    SP32_TRANSLATION,
    SP_KEY,
    SP_PAGE,
    STATE_DONE,
    STATE_REQUESTED,
    TASK_CHAIN,
    TASK_FAULT_CODE,
    TASK_LEAF_ACCESS,
    TASK_LINKED,
    TASK_REQ_GFN,
    TASK_STATE,
    TASK_TDP_GFN,
    TASK_TDP_LEVEL,
    TASK_TDP_NEW,
    TASK_WALK_CODE,
    TASK_WALK_LEAF,
    TASK_WALK_TOP,
    TDP_KEY,
    UNIFORM,
    VM_END,
    VM_EPT,
    VM_HAS_FAULTS,
)
from replay.mmu.rmap import head_in_gib, pte_list_count, pte_list_get, region_of, rmap_head, rmap_remove
from replay.mmu.role import (
    ACC_ALL,
    ACCESS_SHIFT,
    DIRECT,
    DIRECT_FAMILY,
    ROLE_MASK,
    child_key,
    key_level,
    key_variant,
    key_vm,
    make_key,
)
from replay.mmu.room import has_room_for_next
from replay.mmu.shadow_page import (
    bind_page,
    drop_spte,
    find_bound,
    find_shadow_page,
    get_spte,
    install_leaf,
    set_spte,
    set_translation,
    sptep_access,
    sptep_gfn,
    zap_children,
)
from replay.mmu.spte import (
    EPT_SPTE_HOST_WRITABLE,
    EPT_SPTE_MMU_WRITABLE,
    LEFT_NONPRESENT,
    PFN_MASK,
    PT64_NX_MASK,
    PT_ACCESSED_MASK,
    PT_DIRTY_MASK,
    PT_PAGE_SIZE_MASK,
    PT_WRITABLE_MASK,
    SPTE_MMU_PRESENT_MASK,
    VMX_EPT_EXECUTABLE_MASK,
    is_last_spte,
    is_shadow_present_pte,
)
from replay.mmu.state import Mmu, alloc_table, find_gib, find_region
from replay.mmu.walk import PFERR_FETCH, PFERR_WRITE, chain, leaf_access, template_key, walk_index, walked
from replay.mmu.window import (
    C_ADOPTED,
    C_FAULTS_AVOIDED,
    C_FAULTS_NONPRESENT,
    C_FAULTS_PROTECTED,
    C_NOT_SPLIT,
    C_PFN_CHANGES,
    C_UNPLACED,
    count,
    note_older,
)


@jit
def note_host_level(m: Mmu, vm: int, gfn: int, level: int) -> int:
    """The host maps the memory around ``gfn`` at ``level`` or larger; returns the row of its GiB."""
    g = find_gib(m, vm, gfn, True)
    if level == 3:
        m.gib[g, GIB_HOST] = 3
    r = region_of(m, g, gfn)
    if m.region[r, REGION_HOST] < level:
        m.region[r, REGION_HOST] = level
    return g


@jit
def zap_head(m: Mmu, vm: int, gfn: int, level: int, order: int) -> None:
    """kvm_zap_rmap(): every SPTE of one rmap."""
    while True:
        sptep = pte_list_get(m, rmap_head(m, vm, gfn, level), 0)
        if sptep < 0:
            return
        drop_spte(m, sptep // 512, sptep % 512, order)
        rmap_remove(m, vm, gfn, level, sptep, order)


@jit
def zap_moved(m: Mmu, vm: int, g: int, gfn: int, level: int, spte: int, order: int) -> None:
    """One gfn has one pfn: a new one means that an mmu notifier zapped what mapped the old."""
    base_pfn = (spte & PFN_MASK) >> 12
    if level == 2:
        zap_moved_in_region(m, vm, g, gfn, base_pfn, order)
    for at in range(level, 4):
        # at a larger level: the page that holds gfn
        pfn = base_pfn - (gfn & ((1 << (9 * (at - 1))) - 1))
        if stale_head(m, head_in_gib(m, g, gfn, at), pfn):
            count(m, C_PFN_CHANGES, 1)
            zap_head(m, vm, gfn, at, order)


@jit
def zap_moved_in_region(m: Mmu, vm: int, g: int, gfn: int, base_pfn: int, order: int) -> None:
    b = m.region[region_of(m, g, gfn), REGION_BLOCK]
    if b == NO_TABLE or (b == UNIFORM and not stale_head(m, head_in_gib(m, g, gfn, 1), base_pfn)):
        return
    for i in range(512):
        if stale_head(m, head_in_gib(m, g, gfn + i, 1), base_pfn + i):
            count(m, C_PFN_CHANGES, 1)
            zap_head(m, vm, gfn + i, 1, order)


@jit
def stale_head(m: Mmu, head: int, pfn: int) -> bool:
    if head == 0:
        return False
    sptep = pte_list_get(m, head, 0)
    return (get_spte(m, sptep // 512, sptep % 512) & PFN_MASK) >> 12 != pfn


@jit
def is_tdp_set_spte(m: Mmu, t: int, gfn: int, spte: int, level: int, page: int) -> bool:
    """True if a set_spte line is of the TDP MMU: it repeats the change before it, or names a TDP table."""
    task = m.task[t]
    if task[TASK_TDP_LEVEL] == level and task[TASK_TDP_GFN] == gfn and task[TASK_TDP_NEW] == spte:
        return True
    bound = find_bound(m, page)
    return bound >= 0 and m.sp[bound, SP_KEY] & TDP_KEY != 0


@jit
def fits(m: Mmu, sp: int, vm: int, gfn: int, level: int, index: int) -> bool:
    """True if SPTE ``index`` of ``sp`` can map ``gfn`` at ``level``."""
    key = m.sp[sp, SP_KEY]
    if (
        key & TDP_KEY
        or key_vm(key) != vm
        or key_level(key) != level
        or not m.sp32[sp, SP32_FLAGS] & FLAG_LIVE
    ):
        return False
    return not key & DIRECT or sptep_gfn(m, sp, index) == gfn


@jit
def split_lazily(m: Mmu, t: int, vm: int, gfn: int, level: int, order: int) -> int:
    """The table over ``gfn`` that the recorded kernel has and the simulated one did not make, or -1.

    The fault makes it, if it meets a huge page in its place.
    """
    parent = chain(m, t, vm, level + 1) if level < 3 else -1
    if parent < 0:
        return -1
    index = walk_index(m, t, level + 1)
    huge = get_spte(m, parent, index)
    if (
        not is_shadow_present_pte(huge)
        or not is_last_spte(huge, level + 1)
        or sptep_gfn(m, parent, index) != gfn
    ):
        return -1
    key = child_key(m.sp[parent, SP_KEY], index, True, sptep_access(m, parent, index))
    sp = find_shadow_page(m, gfn, key)
    if sp < 0:
        sp = make_page(m, vm, gfn, key & ROLE_MASK, key_variant(key), 0, order)
    count(m, C_NOT_SPLIT, 1)
    link_in_fault(m, t, parent, sp, order)
    m.task[t, TASK_CHAIN + level] = sp
    return sp


@jit
def locate_table(m: Mmu, t: int, vm: int, gfn: int, level: int, page: int, index: int, order: int) -> int:
    """The shadow page whose table is page frame ``page``, found or else adopted; -1 if it cannot be."""
    sp = find_bound(m, page)
    if sp >= 0 and fits(m, sp, vm, gfn, level, index):
        return sp
    if m.task[t, TASK_STATE] == STATE_REQUESTED:
        sp = chain(m, t, vm, level)
        if sp >= 0 and m.sp[sp, SP_PAGE] == 0 and fits(m, sp, vm, gfn, level, index):
            return sp
    base = gfn - (index << (9 * (level - 1)))
    if base & ((1 << (9 * level)) - 1):  # so is one below 0
        return -1
    sp = split_lazily(m, t, vm, base, level, order)
    if sp >= 0:
        return sp
    direct_fault = m.task[t, TASK_WALK_TOP] == 0
    key = template_key(m, t, vm, direct_fault)
    if key < 0:
        key = make_key(0, DIRECT_FAMILY if direct_fault else 0, vm)
    role = (key & 0xFFFFFFFF) | level | DIRECT | (ACC_ALL << ACCESS_SHIFT)
    sp = find_shadow_page(m, base, make_key(role, key_variant(key), vm))
    if sp >= 0 and m.sp[sp, SP_PAGE] == 0:
        return sp
    if sp >= 0:
        forget_page(m, sp, order)
    note_older(m, vm, C_ADOPTED)
    return make_page(m, vm, base, role, key_variant(key), FLAG_ADOPTED, order)


@jit
def fault_allowed(m: Mmu, t: int, vm: int, old: int, new: int) -> bool:
    """Whether the SPTE ``old`` allows the access that faulted, which made the kernel set ``new``.

    Where the trace does not tell the access, it is a write if ``new`` allows one and ``old`` does not.
    """
    task = m.task[t]
    ept = m.vm[vm, VM_EPT] != 0
    if m.vm[vm, VM_HAS_FAULTS] or task[TASK_WALK_TOP]:
        code = task[TASK_FAULT_CODE] if m.vm[vm, VM_HAS_FAULTS] else task[TASK_WALK_CODE]
        if code & PFERR_FETCH and (not old & VMX_EPT_EXECUTABLE_MASK if ept else old & PT64_NX_MASK != 0):
            return False
        return not code & PFERR_WRITE or old & PT_WRITABLE_MASK != 0
    return not new & ~old & PT_WRITABLE_MASK


@jit
def note_fault(m: Mmu, t: int, vm: int, sp: int, index: int, new: int, own: bool) -> None:
    """A recorded line sets an SPTE of page ``sp``, which a simulated split has made, for the first time.

    If it is the fault's ``own`` SPTE, not one of those fetched with it, and could be reached, then the fault
    is one that the split avoids, or one for write protection, or one for an SPTE left non-present.
    """
    marks = m.sp32[sp, SP32_TRANSLATION]  # a direct page has no translations to keep there
    if marks < 0:
        marks = alloc_table(m)
        m.sp32[sp, SP32_TRANSLATION] = marks
    if m.spt[marks, index]:
        return
    m.spt[marks, index] = 1
    if not own or m.task[t, TASK_LINKED]:
        return
    old = get_spte(m, sp, index)
    if old == LEFT_NONPRESENT:
        count(m, C_FAULTS_NONPRESENT, 1)
    elif is_shadow_present_pte(old):
        count(m, C_FAULTS_AVOIDED if fault_allowed(m, t, vm, old, new) else C_FAULTS_PROTECTED, 1)


@jit
def apply_set_spte(m: Mmu, t: int, vm: int, gfn: int, spte: int, level: int, at: int, order: int) -> None:
    """kvm_mmu_set_spte of the shadow MMU (mmu_set_spte)."""
    page = (at & PFN_MASK) >> 12
    index = (at & 0xFFF) >> 3
    if level < 1 or level > 3 or gfn & ((1 << (9 * (level - 1))) - 1):
        count(m, C_UNPLACED, 1)
        return
    if spte & (EPT_SPTE_HOST_WRITABLE | EPT_SPTE_MMU_WRITABLE):
        if not m.vm[vm, VM_EPT]:
            m.task[t, TASK_LEAF_ACCESS] = 0  # guest entries are read in another way from now on
        m.vm[vm, VM_EPT] = 1
    sp = locate_table(m, t, vm, gfn, level, page, index, order)
    if sp < 0:
        count(m, C_UNPLACED, 1)
        return
    walked(m, t)
    bind_page(m, sp, page)
    g = note_host_level(m, vm, gfn, level)
    spte |= SPTE_MMU_PRESENT_MASK | (PT_PAGE_SIZE_MASK if level > 1 else 0)
    requested = (m.task[t, TASK_REQ_GFN] ^ gfn) >> (9 * (level - 1)) == 0
    own = m.task[t, TASK_STATE] == STATE_REQUESTED and requested
    if m.sp32[sp, SP32_FLAGS] & FLAG_SPLIT:
        note_fault(m, t, vm, sp, index, spte, own)
    if own:
        spte = hardware_access(spte, m.task[t, TASK_FAULT_CODE] & PFERR_WRITE != 0, m.vm[vm, VM_EPT] != 0)
    access = ACC_ALL
    if m.task[t, TASK_WALK_TOP] and m.task[t, TASK_WALK_LEAF] <= 3:
        access = leaf_access(m, t, vm)
    zap_moved(m, vm, g, gfn, level, spte, order)
    old = get_spte(m, sp, index)
    if is_shadow_present_pte(old):
        if is_last_spte(old, level) and sptep_gfn(m, sp, index) == gfn and not (old ^ spte) & PFN_MASK:
            set_spte(m, sp, index, spte)
            set_translation(m, sp, index, gfn, access)
            m.task[t, TASK_STATE] = STATE_DONE
            return
        drop_spte(m, sp, index, order)
    install_leaf(m, sp, index, gfn, spte, access, order)
    m.task[t, TASK_STATE] = STATE_DONE


@jit
def hardware_access(spte: int, write: bool, ept: bool) -> int:
    """The SPTE after the guest's retried access: untraced, the CPU sets A, and D on an allowed write."""
    if ept:
        return spte
    spte |= PT_ACCESSED_MASK
    if write and spte & PT_WRITABLE_MASK:
        spte |= PT_DIRTY_MASK
    return spte


@jit
def fast_page_fault(m: Mmu, vm: int, gfn: int, old: int, new: int) -> None:
    """fast_page_fault of a direct shadow MMU: found by gfn and value, since sptep is printed hashed."""
    for level in range(1, 4):
        head = rmap_head(m, vm, gfn, level)
        for i in range(pte_list_count(m, head)):
            sptep = pte_list_get(m, head, i)
            if get_spte(m, sptep // 512, sptep % 512) == old:
                kept = SPTE_MMU_PRESENT_MASK | PT_PAGE_SIZE_MASK | PFN_MASK
                set_spte(m, sptep // 512, sptep % 512, (new & ~kept) | (old & kept))
                return


@jit
def unmap_gfn_range(m: Mmu, vm: int, start: int, end: int, order: int) -> bool:
    """kvm_unmap_gfn_range(): every SPTE that maps a gfn of [start, end); False if rows run out."""
    gfn = start
    end = min(end, m.vm[vm, VM_END])
    while gfn < end:
        r = find_region(m, vm, gfn, False)
        if r < 0:
            gfn = ((gfn >> 18) + 1) << 18
            continue
        if not has_room_for_next(m):
            return False
        zap_head(m, vm, gfn, 3, order)
        zap_head(m, vm, gfn, 2, order)
        following = min(((gfn >> 9) + 1) << 9, end)
        if m.region[r, REGION_BLOCK] == UNIFORM and following - gfn == 512:
            zap_children(m, m.region[r, REGION_SP], order)
        elif m.region[r, REGION_BLOCK] != NO_TABLE:
            for at in range(gfn, following):
                zap_head(m, vm, at, 1, order)
        gfn = following
    return True
