"""Leaf SPTEs as recorded events set, change and zap them."""

from __future__ import annotations

from replay.jit import jit
from replay.mmu.events.fault import (
    PFERR_FETCH,
    PFERR_WRITE,
    chain,
    leaf_access,
    pte_gfn,
    template_key,
    walk_access,
    walk_index,
    walked,
)
from replay.mmu.events.pages import forget_page, link_in_fault, make_page
from replay.mmu.kernel.host_pages import note_host_level
from replay.mmu.kernel.rmap import (
    head_in_gib,
    pte_list_count,
    pte_list_get,
    region_of,
    rmap_head,
    rmap_remove,
)
from replay.mmu.kernel.role import (
    ACC_ALL,
    ACC_EXEC,
    ACCESS_SHIFT,
    DIRECT_FAMILY,
    ROLE_MASK,
    child_key,
    key_level,
    key_variant,
    key_vm,
    make_key,
)
from replay.mmu.kernel.shadow_page import (
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
from replay.mmu.kernel.spte import (
    LEFT_NONPRESENT,
    PFN_MASK,
    PT_PAGE_SIZE_MASK,
    PT_WRITABLE_MASK,
    SPTE_MMU_PRESENT_MASK,
    allows,
    hardware_access,
    is_access_track_spte,
    is_executable,
    is_last_spte,
    is_shadow_present_pte,
    restore_acc_track_spte,
    spte_pfn,
    sptes_agree,
)
from replay.mmu.split.window import count, knows_all, note_older
from replay.mmu.state.counters import Counter
from replay.mmu.state.growth import has_room_for_next
from replay.mmu.state.mmu import Mmu, alloc_table, find_region
from replay.mmu.state.records import NO_TABLE, TDP_KEY, UNIFORM, FaultState, PageFlag
from replay.schema import Role


@jit
def note_nx_huge_page(m: Mmu, vm: int, spte: int, level: int, access: int) -> None:
    """A huge SPTE that takes X away from a guest that has it: the NX huge page mitigation is on."""
    if level > 1 and access & ACC_EXEC and not m.vm[vm].nx_huge:
        layout = m.vm[vm].layout
        tracked = is_access_track_spte(spte, layout)
        if not is_executable(restore_acc_track_spte(spte, layout) if tracked else spte, layout):
            m.vm[vm].nx_huge = 1


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
    base_pfn = spte_pfn(spte)
    if level == 2:
        zap_moved_in_region(m, vm, g, gfn, base_pfn, order)
    for at in range(level, 4):
        # at a larger level: the page that holds gfn
        pfn = base_pfn - (gfn & ((1 << (9 * (at - 1))) - 1))
        if stale_head(m, head_in_gib(m, g, gfn, at), pfn):
            count(m, Counter.PFN_CHANGES, 1)
            zap_head(m, vm, gfn, at, order)


@jit
def zap_moved_in_region(m: Mmu, vm: int, g: int, gfn: int, base_pfn: int, order: int) -> None:
    """Zap the 4K SPTEs around ``gfn`` that map other page frames than those from ``base_pfn`` on."""
    b = m.region[region_of(m, g, gfn)].block
    if b == NO_TABLE or (b == UNIFORM and not stale_head(m, head_in_gib(m, g, gfn, 1), base_pfn)):
        return
    for i in range(512):
        if stale_head(m, head_in_gib(m, g, gfn + i, 1), base_pfn + i):
            count(m, Counter.PFN_CHANGES, 1)
            zap_head(m, vm, gfn + i, 1, order)


@jit
def stale_head(m: Mmu, head: int, pfn: int) -> bool:
    """Whether the first SPTE of an rmap list maps another page frame than ``pfn``."""
    if head == 0:
        return False
    sptep = pte_list_get(m, head, 0)
    return spte_pfn(get_spte(m, sptep // 512, sptep % 512)) != pfn


@jit
def is_tdp_set_spte(m: Mmu, t: int, gfn: int, spte: int, level: int, page: int) -> bool:
    """True if a set_spte line is of the TDP MMU: it repeats the change before it, or names a TDP table."""
    task = m.task[t]
    if task.tdp_level == level and task.tdp_gfn == gfn and task.tdp_new == spte:
        return True
    bound = find_bound(m, page)
    return bound >= 0 and m.sp[bound].key & TDP_KEY != 0


@jit
def fits(m: Mmu, sp: int, vm: int, gfn: int, level: int, index: int) -> bool:
    """True if SPTE ``index`` of ``sp`` can map ``gfn`` at ``level``."""
    key = m.sp[sp].key
    if (
        key & TDP_KEY
        or key_vm(key) != vm
        or key_level(key) != level
        or not m.sp[sp].page_flags & PageFlag.LIVE
    ):
        return False
    return not key & Role.DIRECT or sptep_gfn(m, sp, index) == gfn


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
    key = child_key(m.sp[parent].key, index, True, sptep_access(m, parent, index))
    sp = find_shadow_page(m, gfn, key)
    if sp < 0:
        sp = make_page(m, vm, gfn, key & ROLE_MASK, key_variant(key), 0)
    count(m, Counter.PAGES_NOT_SPLIT, 1)
    link_in_fault(m, t, parent, sp, order)
    m.task[t].chain[level] = sp
    return sp


@jit
def adopt_shadowing(m: Mmu, t: int, vm: int, level: int, index: int) -> int:
    """The page older than the trace that shadows the guest table at ``level`` of the task's walk, or -1.

    The walk names the guest's table and its access, other pages of the VM the rest of the role.
    """
    task = m.task[t]
    known = m.vm[vm].indirect_role
    if (
        task.fault_state != FaultState.REQUESTED
        or not task.walk_leaf <= level < task.walk_top
        or (known and (known - 1) & Role.HAS_4_BYTE_GPTE)
        or task.walk_top == 2
        or walk_index(m, t, level) != index
        or knows_all(m, vm)
    ):
        return -1
    gfn = pte_gfn(task.pte[level + 1])
    role = max(known - 1, 0) | level | (walk_access(m, t, level + 1, vm) << ACCESS_SHIFT)
    sp = find_shadow_page(m, gfn, make_key(role, task.variant, vm))
    if sp >= 0:
        return sp if m.sp[sp].frame == 0 else -1
    note_older(m, vm, Counter.ADOPTED_PAGES)
    flags = PageFlag.ADOPTED if known else PageFlag.ADOPTED | PageFlag.GUESSED
    sp = make_page(m, vm, gfn, role, task.variant, flags)
    task.chain[level] = sp
    return sp


@jit
def locate_table(m: Mmu, t: int, vm: int, gfn: int, level: int, page: int, index: int, order: int) -> int:
    """The shadow page whose table is page frame ``page``, found or else adopted; -1 if it cannot be."""
    sp = find_bound(m, page)
    if sp >= 0 and fits(m, sp, vm, gfn, level, index):
        return sp
    if m.task[t].fault_state == FaultState.REQUESTED:
        sp = chain(m, t, vm, level)
        if sp >= 0 and m.sp[sp].frame == 0 and fits(m, sp, vm, gfn, level, index):
            return sp
    sp = adopt_shadowing(m, t, vm, level, index)
    if sp >= 0:
        return sp
    base = gfn - (index << (9 * (level - 1)))
    if base & ((1 << (9 * level)) - 1):  # so is one below 0
        return -1
    sp = split_lazily(m, t, vm, base, level, order)
    if sp >= 0:
        return sp
    direct_fault = m.task[t].walk_top == 0
    key = template_key(m, t, vm, direct_fault)
    if key < 0:
        key = likely_key(m, vm, direct_fault)
    access = ACC_ALL
    if not direct_fault and m.task[t].walk_leaf <= 3 and not knows_all(m, vm):
        access = leaf_access(m, t, vm)
    role = (key & 0xFFFFFFFF) | level | Role.DIRECT | (access << ACCESS_SHIFT)
    sp = find_shadow_page(m, base, make_key(role, key_variant(key), vm))
    if sp >= 0 and m.sp[sp].frame == 0:
        return sp
    if sp >= 0 and not m.sp[sp].page_flags & PageFlag.GUESSED:
        forget_page(m, sp, order)
    note_older(m, vm, Counter.ADOPTED_PAGES)
    return make_page(m, vm, base, role, key_variant(key), PageFlag.ADOPTED | PageFlag.GUESSED)


@jit
def likely_key(m: Mmu, vm: int, direct_fault: bool) -> int:
    """As :func:`walk.template_key` where no root is known: the role of other pages, if a line showed it."""
    if direct_fault and not m.vm[vm].has_tdp:  # with the TDP MMU all roots of the shadow MMU are indirect
        return make_key(0, DIRECT_FAMILY, vm)
    return make_key(max(m.vm[vm].indirect_role - 1, 0), 0, vm)


@jit
def fault_allowed(m: Mmu, t: int, vm: int, old: int, new: int) -> bool:
    """Whether the SPTE ``old`` allows the access that faulted, which made the kernel set ``new``.

    Where the trace does not tell the access, it is a write if ``new`` allows one and ``old`` does not.
    """
    task = m.task[t]
    if m.vm[vm].has_faults or task.walk_top:
        code = task.fault_code if m.vm[vm].has_faults else task.walk_code
        return allows(old, code & PFERR_WRITE != 0, code & PFERR_FETCH != 0, m.vm[vm].layout)
    return not new & ~old & PT_WRITABLE_MASK


@jit
def note_fault(m: Mmu, t: int, vm: int, sp: int, index: int, new: int, own: bool) -> None:
    """A recorded line sets an SPTE of page ``sp``, which a simulated split has made, for the first time.

    If it is the fault's ``own`` SPTE, not one of those fetched with it, and could be reached, then the fault
    is one that the split avoids, or one for write protection, or one for an SPTE left non-present.
    """
    marks = m.sp[sp].shadowed_translation  # a direct page has no translations to keep there
    if marks < 0:
        marks = alloc_table(m)
        m.sp[sp].shadowed_translation = marks
    if m.spt[marks, index]:
        return
    m.spt[marks, index] = 1
    if not own or m.task[t].linked:
        return
    old = get_spte(m, sp, index)
    if old == LEFT_NONPRESENT:
        count(m, Counter.FAULTS_NONPRESENT, 1)
    elif is_shadow_present_pte(old):
        count(
            m,
            Counter.FAULTS_AVOIDED if fault_allowed(m, t, vm, old, new) else Counter.FAULTS_WRITE_PROTECTED,
            1,
        )


@jit
def apply_set_spte(m: Mmu, t: int, vm: int, gfn: int, spte: int, level: int, at: int, order: int) -> None:
    """kvm_mmu_set_spte of the shadow MMU (mmu_set_spte)."""
    page = spte_pfn(at)
    index = (at & 0xFFF) >> 3
    if level < 1 or level > 3 or gfn & ((1 << (9 * (level - 1))) - 1):
        count(m, Counter.UNPLACED_SPTES, 1)
        return
    sp = locate_table(m, t, vm, gfn, level, page, index, order)
    if sp < 0:
        count(m, Counter.UNPLACED_SPTES, 1)
        return
    walked(m, t)
    bind_page(m, sp, page)
    g = note_host_level(m, vm, gfn, level)
    spte |= SPTE_MMU_PRESENT_MASK | (PT_PAGE_SIZE_MASK if level > 1 else 0)
    requested = (m.task[t].req_gfn ^ gfn) >> (9 * (level - 1)) == 0
    own = m.task[t].fault_state == FaultState.REQUESTED and requested
    if m.sp[sp].page_flags & PageFlag.SPLIT:
        note_fault(m, t, vm, sp, index, spte, own)
    if own:
        spte = hardware_access(spte, m.task[t].fault_code & PFERR_WRITE != 0, m.vm[vm].layout)
    access = ACC_ALL
    if m.task[t].walk_top and m.task[t].walk_leaf <= 3:
        access = leaf_access(m, t, vm)
    note_nx_huge_page(m, vm, spte, level, access)
    zap_moved(m, vm, g, gfn, level, spte, order)
    old = get_spte(m, sp, index)
    if is_shadow_present_pte(old):
        if is_last_spte(old, level) and sptep_gfn(m, sp, index) == gfn and spte_pfn(old) == spte_pfn(spte):
            set_spte(m, sp, index, spte)
            set_translation(m, sp, index, gfn, access)
            m.task[t].fault_state = FaultState.DONE
            return
        drop_spte(m, sp, index, order)
    install_leaf(m, sp, index, gfn, spte, access, order)
    m.task[t].fault_state = FaultState.DONE


@jit
def fast_page_fault(m: Mmu, vm: int, gfn: int, old: int, new: int) -> None:
    """fast_page_fault of a direct shadow MMU: found by gfn and value, since sptep is printed hashed."""
    for level in range(1, 4):
        head = rmap_head(m, vm, gfn, level)
        for i in range(pte_list_count(m, head)):
            sptep = pte_list_get(m, head, i)
            if sptes_agree(get_spte(m, sptep // 512, sptep % 512), old, m.vm[vm].layout):
                kept = SPTE_MMU_PRESENT_MASK | PT_PAGE_SIZE_MASK | PFN_MASK
                set_spte(m, sptep // 512, sptep % 512, (new & ~kept) | (old & kept))
                return


@jit
def unmap_gfn_range(m: Mmu, vm: int, start: int, end: int, order: int) -> bool:
    """kvm_unmap_gfn_range(): every SPTE that maps a gfn of [start, end); False if rows run out."""
    gfn = start
    end = min(end, m.vm[vm].end)
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
        if m.region[r].block == UNIFORM and following - gfn == 512:
            zap_children(m, m.region[r].sp, order)
        elif m.region[r].block != NO_TABLE:
            for at in range(gfn, following):
                zap_head(m, vm, at, 1, order)
        gfn = following
    return True
