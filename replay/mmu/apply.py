"""Shadow pages as recorded events make, link and zap them: one function a tracepoint (mmutrace.h)."""

from __future__ import annotations

from replay.jit import jit
from replay.mmu.guessed import find_guessed, name_page
from replay.mmu.layout import (
    CTL_LINE,
    FLAG_ADOPTED,
    FLAG_CLEARED,
    FLAG_FLOOD,
    FLAG_INVALID,
    FLAG_LIVE,
    FLAG_RECORDED,
    FLAG_ROOT,
    FLAG_SPLIT,
    FLAG_UNSYNC,
    NO_TABLE,
    REGION_BLOCK,
    REGION_SP,
    ROOTS,
    SP32_BIRTH,
    SP32_FLAGS,
    SP32_NEXT,
    SP32_SPT,
    SP_BASE,
    SP_GFN,
    SP_KEY,
    SP_PARENTS,
    TASK_CHAIN,
    TASK_DIRECT_ROOT,
    TASK_LAZY,
    TASK_LINKED,
    TASK_ROOT,
    TASK_STATE,
    TASK_VARIANT,
    TASK_WALK_TOP,
    UNIFORM,
    UNLIMITED,
    VM_BEGUN,
    VM_BORN,
    VM_HAS_TDP,
    VM_LAYOUT,
    VM_OBSOLETE,
    VM_OLDER,
    VM_ROOT_NEXT,
    VM_ROOTS,
    VM_WHOLE,
)
from replay.mmu.mmu_pages import add_used_page, drop_unknown_page, drop_used_page, tell_used_pages
from replay.mmu.rmap import pte_list_count, pte_list_get, rmap_head
from replay.mmu.role import (
    DIRECT,
    DIRECT_FAMILY,
    GEN,
    INVALID,
    LEVEL,
    key_level,
    key_variant,
    key_vm,
    make_key,
)
from replay.mmu.roots import NOT_CACHED, cached_root, load_root, reaches, root_that_lacks, use_root
from replay.mmu.shadow_page import (
    account_shadowed,
    alloc_shadow_page,
    find_shadow_page,
    free_shadow_page,
    get_spte,
    link_shadow_page,
    same_print,
    set_spte,
    unlink_shadow_page,
)
from replay.mmu.spte import (
    WRITE_PROTECTED,
    is_last_spte,
    is_shadow_present_pte,
    pt_protected,
    spte_child,
    spte_clear_dirty,
)
from replay.mmu.state import Mmu, find_region, page_bucket
from replay.mmu.walk import (
    chain,
    clear_chain,
    in_fault,
    top_level,
    walk_index,
)
from replay.mmu.window import (
    C_ALREADY_LIVE,
    C_LAZY_SPLITS,
    C_SPLIT_ALREADY,
    C_UNKNOWN_EXISTING,
    C_UNKNOWN_ZAPS,
    C_UNPLACED,
    C_VARIANT_MOVES,
    count,
    note_older,
    note_root,
)

# -- identity of pages -------------------------------------------------------------------------------


@jit
def other_variant(m: Mmu, gfn: int, role: int, vm: int, variant: int) -> int:
    """A live page that prints like (gfn, role) but has another variant of the same family, or -1."""
    i = int(m.hash[page_bucket(gfn, make_key(role, 0, vm), m.hash.shape[0])])
    while i:
        if m.sp32[i, SP32_FLAGS] & FLAG_LIVE and same_print(m, i, gfn, role & ~INVALID, vm):
            v = key_variant(m.sp[i, SP_KEY])
            if v != variant and not (v ^ variant) & DIRECT_FAMILY:
                return i
        i = m.sp32[i, SP32_NEXT]
    return -1


@jit
def move_variant(m: Mmu, t: int, vm: int, variant: int) -> None:
    """The assumption about the unprinted bits of the task's root was wrong: take the root of ``variant``."""
    task = m.task[t]
    root = task[TASK_ROOT]
    task[TASK_VARIANT] = variant
    count(m, C_VARIANT_MOVES, 1)
    if root < 0 or not m.sp32[root, SP32_FLAGS] & FLAG_LIVE:
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
    add_used_page(m, vm, flags & FLAG_ADOPTED != 0)
    if not role & DIRECT:
        account_shadowed(m, vm, gfn, 1)
        write_protect_gfn(m, vm, gfn, 1)
    return sp


@jit
def forget_page(m: Mmu, sp: int, order: int) -> None:
    """Zap a page whose own line was not seen."""
    vm = key_vm(m.sp[sp, SP_KEY])
    unlink_shadow_page(m, sp, order)
    if not m.sp[sp, SP_KEY] & DIRECT:
        account_shadowed(m, vm, m.sp[sp, SP_GFN], -1)
    drop_used_page(m, vm, sp)
    free_shadow_page(m, sp)


# -- write protection --------------------------------------------------------------------------------------

CLEAR_DIRTY = 0
"""What a pass leaves of each SPTE is a mask; here, with PML, it depends on the SPTE."""


@jit
def protected(m: Mmu, sp: int, spte: int, kept: int, layout: int) -> int:
    """What a pass makes of an SPTE of page ``sp``: the bits ``kept``, or as CLEAR_DIRTY has it."""
    if kept != CLEAR_DIRTY:
        return spte & kept
    # where the shadow MMU maps by EPT, a page below an indirect root is of a nested MMU
    nested = not key_variant(m.sp[sp, SP_KEY]) & DIRECT_FAMILY
    return spte_clear_dirty(spte, nested, layout)


@jit
def write_protect_gfn(m: Mmu, vm: int, gfn: int, min_level: int) -> None:
    """kvm_mmu_slot_gfn_write_protect(): every SPTE that maps ``gfn`` at ``min_level`` or above."""
    layout = m.vm[vm, VM_LAYOUT]
    kept = pt_protected(layout)
    for level in range(min_level, 4):
        protect_head(m, rmap_head(m, vm, gfn, level), kept, layout)


@jit
def protect_head(m: Mmu, head: int, kept: int, layout: int) -> None:
    """rmap_write_protect(), __rmap_clear_dirty()."""
    for i in range(pte_list_count(m, head)):
        sptep = pte_list_get(m, head, i)
        old = get_spte(m, sptep // 512, sptep % 512)
        new = protected(m, sptep // 512, old, kept, layout)
        if new != old:
            set_spte(m, sptep // 512, sptep % 512, new)


@jit
def protect_region(m: Mmu, r: int, kept: int, layout: int) -> None:
    """Protect the 512 heads of the 4K level of region ``r``, in the compact form where it has one."""
    b = m.region[r, REGION_BLOCK]
    if b == NO_TABLE:
        return
    if b == UNIFORM:
        sp = m.region[r, REGION_SP]
        m.sp[sp, SP_BASE] = protected(m, sp, m.sp[sp, SP_BASE], kept, layout)
        for i in range(512 if m.sp32[sp, SP32_SPT] >= 0 else 0):
            set_spte(m, sp, i, protected(m, sp, get_spte(m, sp, i), kept, layout))
        return
    for i in range(512):
        if m.block[b, i]:
            protect_head(m, m.block[b, i], kept, layout)


@jit
def protect_pages(m: Mmu, vm: int, gfn: int, bits: int, kept: int) -> None:
    """The 4K SPTEs of gfn + n for each set bit n of a 64-bit mask.

    kvm_mmu_write_protect_pt_masked(), and kvm_mmu_clear_dirty_pt_masked() with PML.
    """
    layout = m.vm[vm, VM_LAYOUT]
    r = find_region(m, vm, gfn, False)
    if r >= 0 and m.region[r, REGION_BLOCK] == UNIFORM and bits == -1 and gfn & 63 == 0:
        sp = m.region[r, REGION_SP]
        spte = m.sp[sp, SP_BASE]
        write_protected = spte & WRITE_PROTECTED
        if m.sp32[sp, SP32_SPT] == UNIFORM and protected(m, sp, spte, kept, layout) == write_protected:
            m.sp32[sp, SP32_FLAGS] |= FLAG_CLEARED << ((gfn >> 6) & 7)
            return
    for n in range(64):
        if (bits >> n) & 1:
            protect_head(m, rmap_head(m, vm, gfn + n, 1), kept, layout)


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
        if role & LEVEL > 1:
            note_root(m, vm)
        else:
            m.vm[vm, VM_BEGUN] = 1  # no root: the trace begins in the middle of a fault or a split
    else:
        other = other_variant(m, gfn, role, vm, variant)
        # the very same root is not loaded again, so it is the other one that prints alike
        if other >= 0 and (sp < 0 or sp == current):
            sp = other
        if sp < 0:
            note_older(m, vm, C_UNKNOWN_EXISTING)
            sp = make_page(m, vm, gfn, role, variant, FLAG_ADOPTED, order)
    m.sp32[sp, SP32_FLAGS] |= FLAG_ROOT
    if family:
        task[TASK_DIRECT_ROOT] = sp
    else:
        load_root(m, t, vm, sp)
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
        if sp >= 0 and m.sp32[sp, SP32_FLAGS] & (FLAG_SPLIT | FLAG_RECORDED) == FLAG_SPLIT:
            # what this fault of the recorded kernel makes, the simulated split has made before
            m.sp32[sp, SP32_FLAGS] |= FLAG_RECORDED
            count(m, C_SPLIT_ALREADY, 1)
            return sp
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
                note_older(m, vm, C_ALREADY_LIVE)
                forget_page(m, sp, order)
        return make_page(m, vm, gfn, role, variant, 0, order)
    if sp < 0:
        sp = other_variant(m, gfn, role, vm, variant)
        if sp >= 0 and walk:
            move_variant(m, t, vm, key_variant(m.sp[sp, SP_KEY]))
    if sp < 0:
        note_older(m, vm, C_UNKNOWN_EXISTING)
        sp = find_guessed(m, vm, gfn, role)
        if sp >= 0:
            name_page(m, sp, role)
        else:
            sp = make_page(m, vm, gfn, role, variant, FLAG_ADOPTED, order)
    m.sp32[sp, SP32_FLAGS] &= ~FLAG_FLOOD
    return sp


@jit
def link_in_fault(m: Mmu, t: int, parent: int, sp: int, order: int) -> None:
    """link_shadow_page() of a fault; a huge page that was there is split lazily."""
    level = key_level(m.sp[parent, SP_KEY])
    index = walk_index(m, t, level)
    old = get_spte(m, parent, index)
    if is_shadow_present_pte(old):
        if is_last_spte(old, level):
            count(m, C_LAZY_SPLITS, 1)
            m.task[t, TASK_LAZY] = m.sp[sp, SP_GFN] + 1
        elif spte_child(old) == sp:
            return
    m.task[t, TASK_LINKED] = 1
    link_shadow_page(m, parent, index, sp, order)


@jit
def is_passthrough_child(m: Mmu, root: int, gfn: int, level: int) -> bool:
    """A root one level above the guest's own top table shadows the same gfn (role.passthrough)."""
    if root < 0 or not m.sp32[root, SP32_FLAGS] & FLAG_LIVE:
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
        link_in_fault(m, t, root, sp, order)
        m.task[t, TASK_CHAIN + level] = sp
        return
    if level >= top and (top or level > 3):
        get_root(m, t, vm, gfn, role, created, order)
        return
    if m.task[t, TASK_WALK_TOP]:
        settle_root(m, t, vm, gfn, role, created)
    sp = find_child(m, t, vm, gfn, role, created, order)
    parent = chain(m, t, vm, level + 1)
    if parent >= 0:
        link_in_fault(m, t, parent, sp, order)
    m.task[t, TASK_CHAIN + level] = sp


@jit
def settle_root(m: Mmu, t: int, vm: int, gfn: int, role: int, created: bool) -> None:
    """The root of a fault that gets this page, before anything is read from the root's printed twin."""
    top = top_level(m, t)
    task = m.task[t]
    if role & LEVEL == top - 1 and top > 3 and task[TASK_WALK_TOP] == top:
        place = root_that_lacks(m, t, vm, top, walk_index(m, t, top), gfn, role, created)
        if place != NOT_CACHED:
            if place:
                use_root(m, t, place)
            task[TASK_CHAIN + top] = task[TASK_ROOT]
            return
    chain(m, t, vm, top)


@jit
def find_printed(m: Mmu, vm: int, gfn: int, role: int, unsync: bool, root: int) -> int:
    """The page that a PAGE line names, of those that print alike.

    Rather one whose writes reached the limit, since such a write zaps it at once; one below ``root``,
    unless that is -1; one synced as printed; (nested) one without parents; the oldest.
    """
    invalid = (role & INVALID) != 0
    role &= ~INVALID
    best = -1
    best_rank = 0
    i = int(m.hash[page_bucket(gfn, make_key(role, 0, vm), m.hash.shape[0])])
    while i:
        flags = m.sp32[i, SP32_FLAGS]
        if same_print(m, i, gfn, role, vm) and ((flags & FLAG_INVALID) != 0) == invalid:
            rank = 1 << 40
            if flags & FLAG_FLOOD == FLAG_FLOOD:
                rank += 1 << 44
            if root >= 0 and reaches(m, root, i):
                rank += 1 << 43
            if ((flags & FLAG_UNSYNC) != 0) == unsync:
                rank += 1 << 42
            if m.vm[vm, VM_HAS_TDP] and m.sp[i, SP_PARENTS] == 0:
                rank += 1 << 41
            rank -= int(m.sp32[i, SP32_BIRTH])
            if rank > best_rank:
                best = i
                best_rank = rank
        i = m.sp32[i, SP32_NEXT]
    return best


@jit
def set_unsync(m: Mmu, t: int, vm: int, gfn: int, role: int, unsync: bool) -> None:
    """kvm_mmu_unsync_page (the page was sync) and kvm_mmu_sync_page (it was not, below the task's root)."""
    root = -1 if unsync else cached_root(m, t, vm, 0)
    sp = find_printed(m, vm, gfn, role, not unsync, root)
    if sp < 0:
        return
    if unsync:
        m.sp32[sp, SP32_FLAGS] |= FLAG_UNSYNC
    else:
        m.sp32[sp, SP32_FLAGS] &= ~FLAG_UNSYNC


@jit
def prepare_zap_page(m: Mmu, vm: int, gfn: int, role: int, root_count: int, unsync: bool, order: int) -> None:
    """kvm_mmu_prepare_zap_page of a shadow page; a root in use goes on invalid until its second line."""
    sp = find_printed(m, vm, gfn, role, unsync, -1)
    if sp < 0 and not role & INVALID:
        sp = find_guessed(m, vm, gfn, role)
        if sp >= 0:
            name_page(m, sp, role)
    if sp < 0:
        gen = 1 if role & GEN else 0
        if m.vm[vm, VM_OBSOLETE] == gen + 1:
            count(m, C_UNKNOWN_ZAPS, 1)  # nothing can depend on an obsolete page
        else:
            note_older(m, vm, C_UNKNOWN_ZAPS)
        if root_count <= 0:
            drop_unknown_page(m, vm)
        return
    unlink_shadow_page(m, sp, order)
    if not m.sp[sp, SP_KEY] & DIRECT and not m.sp32[sp, SP32_FLAGS] & FLAG_INVALID:
        account_shadowed(m, vm, gfn, -1)
    if root_count > 0:
        m.sp32[sp, SP32_FLAGS] = FLAG_INVALID
        return
    drop_used_page(m, vm, sp)
    free_shadow_page(m, sp)


@jit
def zap_all_fast(m: Mmu, vm: int, gen: int, used_pages: int) -> None:
    """kvm_mmu_zap_all_fast: the one event that tells n_used_mmu_pages.

    All pages are obsolete from now on, those too that are older than the trace: nothing unknown is left.
    """
    tell_used_pages(m, vm, min(max(used_pages, 0), UNLIMITED))
    m.vm[vm, VM_OBSOLETE] = (gen & 1) + 1
    if m.vm[vm, VM_OLDER] or not m.vm[vm, VM_BORN]:
        m.vm[vm, VM_WHOLE] = m.ctl[CTL_LINE]
    m.vm[vm, VM_OLDER] = 0
    m.vm[vm, VM_BORN] = 1
