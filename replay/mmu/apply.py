"""What one recorded event does to the shadow MMU: one function per tracepoint (mmutrace.h)."""

from __future__ import annotations

from replay.jit import jit
from replay.mmu.rmap import head_in_gib, pte_list_count, pte_list_get, region_of, rmap_head, rmap_remove
from replay.mmu.role import (
    ACC_ALL,
    ACCESS_SHIFT,
    DIRECT,
    DIRECT_FAMILY,
    INVALID,
    LEVEL,
    key_level,
    key_variant,
    key_vm,
    make_key,
)
from replay.mmu.shadow_page import (
    account_shadowed,
    alloc_shadow_page,
    bind_page,
    drop_spte,
    find_bound,
    find_shadow_page,
    free_shadow_page,
    get_spte,
    install_leaf,
    link_shadow_page,
    same_print,
    set_spte,
    set_translation,
    sptep_gfn,
    unlink_shadow_page,
    zap_children,
)
from replay.mmu.split import add_used_pages
from replay.mmu.spte import (
    EPT_SPTE_HOST_WRITABLE,
    EPT_SPTE_MMU_WRITABLE,
    PFN_MASK,
    PT_ACCESSED_MASK,
    PT_DIRTY_MASK,
    PT_PAGE_SIZE_MASK,
    PT_WRITABLE_MASK,
    SPTE_MMU_PRESENT_MASK,
    is_last_spte,
    is_shadow_present_pte,
    spte_write_protect,
)
from replay.mmu.state import (
    FLAG_ADOPTED,
    FLAG_INVALID,
    FLAG_LIVE,
    FLAG_ROOT,
    FLAG_UNSYNC,
    GIB_HOST,
    NO_TABLE,
    REGION_BLOCK,
    REGION_HOST,
    REGION_SP,
    ROOTS,
    SP_BASE,
    SP_BIRTH,
    SP_FLAGS,
    SP_GFN,
    SP_KEY,
    SP_NEXT,
    SP_PAGE,
    SP_PARENTS,
    SP_SPT,
    STATE_DONE,
    STATE_REQUESTED,
    TASK_CHAIN,
    TASK_DIRECT_ROOT,
    TASK_FAULT_CODE,
    TASK_LEAF_ACCESS,
    TASK_REQ_GFN,
    TASK_ROOT,
    TASK_STATE,
    TASK_TDP_GFN,
    TASK_TDP_LEVEL,
    TASK_TDP_NEW,
    TASK_VARIANT,
    TASK_WALK_LEAF,
    TASK_WALK_TOP,
    TDP_KEY,
    UNIFORM,
    VM_EPT,
    VM_HAS_TDP,
    VM_ROOT_NEXT,
    VM_ROOTS,
    VM_USED,
    Mmu,
    find_gib,
    find_region,
    has_room,
    page_bucket,
)
from replay.mmu.walk import (
    PFERR_WRITE,
    chain,
    clear_chain,
    in_fault,
    leaf_access,
    template_key,
    top_level,
    walk_index,
)
from replay.mmu.window import (
    C_ADOPTED,
    C_ALREADY_LIVE,
    C_PFN_CHANGES,
    C_UNKNOWN_EXISTING,
    C_UNKNOWN_ZAPS,
    C_UNPLACED,
    C_USED_DIFFER,
    C_VARIANT_MOVES,
    count,
)

# -- identity of pages -------------------------------------------------------------------------------


@jit
def other_variant(m: Mmu, gfn: int, role: int, vm: int, variant: int) -> int:
    """A live page that prints like (gfn, role) but has another variant of the same family, or -1."""
    i = m.hash[page_bucket(gfn, make_key(role, 0, vm), m.hash.shape[0])]
    while i >= 0:
        if m.sp[i, SP_FLAGS] & FLAG_LIVE and same_print(m, i, gfn, role & ~INVALID, vm):
            v = key_variant(m.sp[i, SP_KEY])
            if v != variant and not (v ^ variant) & DIRECT_FAMILY:
                return i
        i = m.sp[i, SP_NEXT]
    return -1


@jit
def move_variant(m: Mmu, t: int, vm: int, variant: int) -> None:
    """The assumption about the unprinted bits of the task's root was wrong: take the root of ``variant``."""
    task = m.task[t]
    root = task[TASK_ROOT]
    task[TASK_VARIANT] = variant
    count(m, C_VARIANT_MOVES, 1)
    if root < 0 or not m.sp[root, SP_FLAGS] & FLAG_LIVE:
        return
    found = find_shadow_page(m, m.sp[root, SP_GFN], make_key(m.sp[root, SP_KEY] & 0xFFFFFFFF, variant, vm))
    if found >= 0:
        task[TASK_ROOT] = found
        chain_top = task[TASK_WALK_TOP]
        if chain_top:
            clear_chain(m, t)


@jit
def new_variant(m: Mmu, gfn: int, role: int, vm: int, family: int) -> int:
    v = 0
    while find_shadow_page(m, gfn, make_key(role, v | family, vm)) >= 0:
        v += 1
    return v | family


@jit
def make_page(m: Mmu, vm: int, gfn: int, role: int, variant: int, flags: int, order: int) -> int:
    """kvm_mmu_alloc_shadow_page(): a page of the shadow MMU, accounted."""
    sp = alloc_shadow_page(m, gfn, make_key(role, variant, vm), flags)
    add_used_pages(m, vm, 1)
    if not role & DIRECT:
        account_shadowed(m, vm, gfn, 1)
        write_protect_gfn(m, vm, gfn, 1, True)
    return sp


@jit
def forget_page(m: Mmu, sp: int, order: int) -> None:
    """Zap a page whose own line was not seen."""
    vm = key_vm(m.sp[sp, SP_KEY])
    unlink_shadow_page(m, sp, order)
    if not m.sp[sp, SP_KEY] & DIRECT:
        account_shadowed(m, vm, m.sp[sp, SP_GFN], -1)
    free_shadow_page(m, sp)
    add_used_pages(m, vm, -1)


# -- write protection --------------------------------------------------------------------------------------


@jit
def write_protect_gfn(m: Mmu, vm: int, gfn: int, min_level: int, pt_protect: bool) -> None:
    """kvm_mmu_slot_gfn_write_protect(): every SPTE that maps ``gfn`` at ``min_level`` or above."""
    ept = m.vm[vm, VM_EPT] != 0
    for level in range(min_level, 4):
        write_protect_head(m, rmap_head(m, vm, gfn, level), pt_protect, ept)


@jit
def write_protect_head(m: Mmu, head: int, pt_protect: bool, ept: bool) -> None:
    """rmap_write_protect()."""
    for i in range(pte_list_count(m, head)):
        sptep = pte_list_get(m, head, i)
        old = get_spte(m, sptep // 512, sptep % 512)
        new = spte_write_protect(old, pt_protect, ept)
        if new != old:
            set_spte(m, sptep // 512, sptep % 512, new)


@jit
def write_protect_region(m: Mmu, r: int, ept: bool) -> None:
    """Write-protect the 512 heads of the 4K level of region ``r``, in the compact form where it has one."""
    b = m.region[r, REGION_BLOCK]
    if b == NO_TABLE:
        return
    if b == UNIFORM:
        sp = m.region[r, REGION_SP]
        m.sp[sp, SP_BASE] = spte_write_protect(m.sp[sp, SP_BASE], False, ept)
        for i in range(512 if m.sp[sp, SP_SPT] >= 0 else 0):
            set_spte(m, sp, i, spte_write_protect(get_spte(m, sp, i), False, ept))
        return
    for i in range(512):
        if m.block[b, i]:
            write_protect_head(m, m.block[b, i], False, ept)


# -- pages -----------------------------------------------------------------------------------------


@jit
def get_root(m: Mmu, t: int, vm: int, gfn: int, role: int, created: bool, order: int) -> None:
    """kvm_mmu_get_page for a root (mmu_alloc_root)."""
    task = m.task[t]
    family = DIRECT_FAMILY if role & DIRECT else 0
    variant = DIRECT_FAMILY if family else task[TASK_VARIANT]
    current = task[TASK_DIRECT_ROOT] if family else task[TASK_ROOT]
    sp = find_shadow_page(m, gfn, make_key(role, variant, vm))
    if created:
        if sp >= 0:
            variant = new_variant(m, gfn, role, vm, family)
        sp = make_page(m, vm, gfn, role, variant, 0, order)
    else:
        other = other_variant(m, gfn, role, vm, variant)
        # the very same root is not loaded again, so it is the other one that prints alike
        if other >= 0 and (sp < 0 or sp == current):
            sp = other
        if sp < 0:
            count(m, C_UNKNOWN_EXISTING, 1)
            sp = make_page(m, vm, gfn, role, variant, FLAG_ADOPTED, order)
    m.sp[sp, SP_FLAGS] |= FLAG_ROOT
    if family:
        task[TASK_DIRECT_ROOT] = sp
    else:
        task[TASK_ROOT] = sp
        task[TASK_VARIANT] = key_variant(m.sp[sp, SP_KEY])
        slot = m.vm[vm, VM_ROOT_NEXT]
        m.vm[vm, VM_ROOTS + slot] = sp + 1
        m.vm[vm, VM_ROOT_NEXT] = (slot + 1) % ROOTS
    clear_chain(m, t)
    task[TASK_WALK_TOP] = 0
    task[TASK_STATE] = 0


@jit
def find_child(m: Mmu, t: int, vm: int, gfn: int, role: int, created: bool, order: int) -> int:
    """The page that a get_page line of a fault names; where the root's variant contradicts, it follows."""
    walk = m.task[t, TASK_WALK_TOP] != 0
    variant = m.task[t, TASK_VARIANT] if walk else DIRECT_FAMILY
    sp = find_shadow_page(m, gfn, make_key(role, variant, vm))
    if created:
        if sp >= 0:
            root = m.task[t, TASK_ROOT]
            other = -1
            if walk and root >= 0:
                other = other_variant(m, m.sp[root, SP_GFN], m.sp[root, SP_KEY] & 0xFFFFFFFF, vm, variant)
            if (
                other >= 0
                and find_shadow_page(m, gfn, make_key(role, key_variant(m.sp[other, SP_KEY]), vm)) < 0
            ):
                variant = key_variant(m.sp[other, SP_KEY])
                move_variant(m, t, vm, variant)
            else:
                count(m, C_ALREADY_LIVE, 1)
                forget_page(m, sp, order)
        return make_page(m, vm, gfn, role, variant, 0, order)
    if sp < 0:
        sp = other_variant(m, gfn, role, vm, variant)
        if sp >= 0 and walk:
            move_variant(m, t, vm, key_variant(m.sp[sp, SP_KEY]))
    if sp < 0:
        count(m, C_UNKNOWN_EXISTING, 1)
        sp = make_page(m, vm, gfn, role, variant, FLAG_ADOPTED, order)
    return sp


@jit
def is_passthrough_child(m: Mmu, root: int, gfn: int, level: int) -> bool:
    """A root one level above the guest's own top table shadows the same gfn (role.passthrough)."""
    if root < 0 or not m.sp[root, SP_FLAGS] & FLAG_LIVE:
        return False
    return m.sp[root, SP_GFN] == gfn and key_level(m.sp[root, SP_KEY]) == level + 1


@jit
def get_page(m: Mmu, t: int, vm: int, gfn: int, role: int, created: bool, order: int) -> None:
    """kvm_mmu_get_page of a shadow page outside an eager split."""
    level = role & LEVEL
    if level < 1 or level > 5 or (role & DIRECT and gfn & ((1 << (9 * level)) - 1)):
        count(m, C_UNPLACED, 1)
        return
    if not in_fault(m, t):
        get_root(m, t, vm, gfn, role, created, order)
        return
    top = top_level(m, t)
    root = m.task[t, TASK_ROOT]
    if level == top and m.task[t, TASK_WALK_TOP] and is_passthrough_child(m, root, gfn, level):
        sp = find_child(m, t, vm, gfn, role, created, order)
        link_shadow_page(m, root, walk_index(m, t, level + 1), sp, order)
        m.task[t, TASK_CHAIN + level] = sp
        return
    if level >= top and (top or level > 3):
        get_root(m, t, vm, gfn, role, created, order)
        return
    sp = find_child(m, t, vm, gfn, role, created, order)
    parent = chain(m, t, vm, level + 1)
    if parent >= 0:
        link_shadow_page(m, parent, walk_index(m, t, level + 1), sp, order)
    m.task[t, TASK_CHAIN + level] = sp


@jit
def find_printed(m: Mmu, vm: int, gfn: int, role: int, unsync: bool) -> int:
    """The page that a PAGE line names: synced as printed, then (nested) without parents, then the oldest."""
    invalid = (role & INVALID) != 0
    role &= ~INVALID
    best = -1
    best_rank = 0
    i = m.hash[page_bucket(gfn, make_key(role, 0, vm), m.hash.shape[0])]
    while i >= 0:
        flags = m.sp[i, SP_FLAGS]
        if same_print(m, i, gfn, role, vm) and ((flags & FLAG_INVALID) != 0) == invalid:
            rank = 1 << 40
            if ((flags & FLAG_UNSYNC) != 0) == unsync:
                rank += 1 << 42
            if m.vm[vm, VM_HAS_TDP] and m.sp[i, SP_PARENTS] == 0:
                rank += 1 << 41
            rank -= m.sp[i, SP_BIRTH]
            if rank > best_rank:
                best = i
                best_rank = rank
        i = m.sp[i, SP_NEXT]
    return best


@jit
def set_unsync(m: Mmu, vm: int, gfn: int, role: int, unsync: bool) -> None:
    """kvm_mmu_unsync_page (the page was sync) and kvm_mmu_sync_page (it was unsync)."""
    sp = find_printed(m, vm, gfn, role, not unsync)
    if sp < 0:
        return
    if unsync:
        m.sp[sp, SP_FLAGS] |= FLAG_UNSYNC
    else:
        m.sp[sp, SP_FLAGS] &= ~FLAG_UNSYNC


@jit
def prepare_zap_page(m: Mmu, vm: int, gfn: int, role: int, root_count: int, unsync: bool, order: int) -> None:
    """kvm_mmu_prepare_zap_page of a shadow page; a root in use goes on invalid until its second line."""
    sp = find_printed(m, vm, gfn, role, unsync)
    if sp < 0:
        count(m, C_UNKNOWN_ZAPS, 1)
        return
    unlink_shadow_page(m, sp, order)
    if not m.sp[sp, SP_KEY] & DIRECT and not m.sp[sp, SP_FLAGS] & FLAG_INVALID:
        account_shadowed(m, vm, gfn, -1)
    if root_count > 0:
        m.sp[sp, SP_FLAGS] = FLAG_INVALID
        return
    free_shadow_page(m, sp)
    add_used_pages(m, vm, -1)


@jit
def zap_all_fast(m: Mmu, vm: int, used_pages: int) -> None:
    """kvm_mmu_zap_all_fast: the one event that tells n_used_mmu_pages."""
    if m.vm[vm, VM_USED] != used_pages:
        count(m, C_USED_DIFFER, 1)
        m.vm[vm, VM_USED] = used_pages


# -- leaf SPTEs ------------------------------------------------------------------------------------


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
    if key & TDP_KEY or key_vm(key) != vm or key_level(key) != level or not m.sp[sp, SP_FLAGS] & FLAG_LIVE:
        return False
    return not key & DIRECT or sptep_gfn(m, sp, index) == gfn


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
    if base < 0 or base & ((1 << (9 * level)) - 1):
        return -1
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
    count(m, C_ADOPTED, 1)
    return make_page(m, vm, base, role, key_variant(key), FLAG_ADOPTED, order)


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
    bind_page(m, sp, page)
    g = note_host_level(m, vm, gfn, level)
    spte |= SPTE_MMU_PRESENT_MASK | (PT_PAGE_SIZE_MASK if level > 1 else 0)
    if m.task[t, TASK_STATE] == STATE_REQUESTED and (m.task[t, TASK_REQ_GFN] ^ gfn) >> (9 * (level - 1)) == 0:
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
    while gfn < end:
        r = find_region(m, vm, gfn, False)
        if r < 0:
            gfn = ((gfn >> 18) + 1) << 18
            continue
        if not has_room(m):
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
