"""Shadow pages as recorded events make, link and zap them: one function a tracepoint (mmutrace.h)."""

from __future__ import annotations

from replay.jit import jit
from replay.mmu.events.fault import chain, clear_chain, in_fault, top_level, walk_index
from replay.mmu.events.roots import NOT_CACHED, cached_root, load_root, reaches, root_that_lacks, use_root
from replay.mmu.kernel.mmu_pages import add_used_page, drop_unknown_page, drop_used_page, tell_used_pages
from replay.mmu.kernel.rmap import pte_list_count, pte_list_get, rmap_head
from replay.mmu.kernel.role import DIRECT_FAMILY, key_level, key_variant, key_vm, make_key
from replay.mmu.kernel.shadow_page import (
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
from replay.mmu.kernel.spte import (
    WRITE_PROTECTED,
    is_last_spte,
    is_shadow_present_pte,
    pt_protected,
    spte_child,
    spte_clear_dirty,
)
from replay.mmu.recorded.guessed import find_guessed, name_page
from replay.mmu.split.window import count, note_older, note_root
from replay.mmu.state.counters import Counter
from replay.mmu.state.mmu import Mmu, find_region, page_bucket
from replay.mmu.state.records import NO_TABLE, ROOTS, UNIFORM, UNLIMITED, PageFlag
from replay.schema import Role

# -- identity of pages -------------------------------------------------------------------------------


@jit
def other_variant(m: Mmu, gfn: int, role: int, vm: int, variant: int) -> int:
    """A live page that prints like (gfn, role) but has another variant of the same family, or -1."""
    i = int(m.hash[page_bucket(gfn, make_key(role, 0, vm), m.hash.shape[0])])
    while i:
        if m.sp[i].page_flags & PageFlag.LIVE and same_print(m, i, gfn, role & ~Role.INVALID, vm):
            v = key_variant(m.sp[i].key)
            if v != variant and not (v ^ variant) & DIRECT_FAMILY:
                return i
        i = m.sp[i].next
    return -1


@jit
def move_variant(m: Mmu, t: int, vm: int, variant: int) -> None:
    """The assumption about the unprinted bits of the task's root was wrong: take the root of ``variant``."""
    task = m.task[t]
    root = task.root
    task.variant = variant
    count(m, Counter.VARIANT_MOVES, 1)
    if root < 0 or not m.sp[root].page_flags & PageFlag.LIVE:
        return
    found = find_shadow_page(m, m.sp[root].gfn, make_key(m.sp[root].key & 0xFFFFFFFF, variant, vm))
    if found >= 0:
        task.root = found
        chain_top = task.walk_top
        if chain_top:
            clear_chain(m, t)


@jit
def new_variant(m: Mmu, gfn: int, role: int, vm: int, family: int) -> int:
    """The first variant of a family under which no page of this gfn and role is known."""
    v = 0
    while find_shadow_page(m, gfn, make_key(role, v | family, vm)) >= 0:
        v += 1
    return v | family


@jit
def make_page(m: Mmu, vm: int, gfn: int, role: int, variant: int, flags: int) -> int:
    """kvm_mmu_alloc_shadow_page(): a page of the shadow MMU, accounted."""
    sp = alloc_shadow_page(m, gfn, make_key(role, variant, vm), flags)
    add_used_page(m, vm, flags & PageFlag.ADOPTED != 0)
    if not role & Role.DIRECT:
        account_shadowed(m, vm, gfn, 1)
        write_protect_gfn(m, vm, gfn, 1)
    return sp


@jit
def forget_page(m: Mmu, sp: int, order: int) -> None:
    """Zap a page whose own line was not seen."""
    vm = key_vm(m.sp[sp].key)
    unlink_shadow_page(m, sp, order)
    if not m.sp[sp].key & Role.DIRECT:
        account_shadowed(m, vm, m.sp[sp].gfn, -1)
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
    nested = not key_variant(m.sp[sp].key) & DIRECT_FAMILY
    return spte_clear_dirty(spte, nested, layout)


@jit
def write_protect_gfn(m: Mmu, vm: int, gfn: int, min_level: int) -> None:
    """kvm_mmu_slot_gfn_write_protect(): every SPTE that maps ``gfn`` at ``min_level`` or above."""
    layout = m.vm[vm].layout
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
    b = m.region[r].block
    if b == NO_TABLE:
        return
    if b == UNIFORM:
        sp = m.region[r].sp
        m.sp[sp].first_spte = protected(m, sp, m.sp[sp].first_spte, kept, layout)
        for i in range(512 if m.sp[sp].spt >= 0 else 0):
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
    layout = m.vm[vm].layout
    r = find_region(m, vm, gfn, False)
    if r >= 0 and m.region[r].block == UNIFORM and bits == -1 and gfn & 63 == 0:
        sp = m.region[r].sp
        spte = m.sp[sp].first_spte
        write_protected = spte & WRITE_PROTECTED
        if m.sp[sp].spt == UNIFORM and protected(m, sp, spte, kept, layout) == write_protected:
            m.sp[sp].page_flags |= PageFlag.CLEARED << ((gfn >> 6) & 7)
            return
    for n in range(64):
        if (bits >> n) & 1:
            protect_head(m, rmap_head(m, vm, gfn + n, 1), kept, layout)


# -- pages -----------------------------------------------------------------------------------------


@jit
def get_root(m: Mmu, t: int, vm: int, gfn: int, role: int, created: bool) -> None:
    """kvm_mmu_get_page for a root (mmu_alloc_root)."""
    task = m.task[t]
    family = DIRECT_FAMILY if role & Role.DIRECT else 0
    variant = DIRECT_FAMILY if family else task.variant
    current = task.direct_root if family else task.root
    sp = find_shadow_page(m, gfn, make_key(role, variant, vm))
    if created:
        if sp >= 0:
            variant = new_variant(m, gfn, role, vm, family)
        sp = make_page(m, vm, gfn, role, variant, 0)
        if role & Role.LEVEL > 1:
            note_root(m, vm)
        else:
            m.vm[vm].begun = 1  # no root: the trace begins in the middle of a fault or a split
    else:
        other = other_variant(m, gfn, role, vm, variant)
        # the very same root is not loaded again, so it is the other one that prints alike
        if other >= 0 and (sp < 0 or sp == current):
            sp = other
        if sp < 0:
            note_older(m, vm, Counter.UNKNOWN_PAGES_EXISTING)
            sp = make_page(m, vm, gfn, role, variant, PageFlag.ADOPTED)
    m.sp[sp].page_flags |= PageFlag.ROOT
    if family:
        task.direct_root = sp
    else:
        load_root(m, t, vm, sp)
        task.variant = key_variant(m.sp[sp].key)
        slot = m.vm[vm].root_next
        m.vm[vm].roots[slot] = sp + 1
        m.vm[vm].root_next = (slot + 1) % ROOTS
    clear_chain(m, t)
    task.walk_top = 0
    task.fault_state = 0


@jit
def find_child(m: Mmu, t: int, vm: int, gfn: int, role: int, created: bool, order: int) -> int:
    """The page that a get_page line of a fault names; where the root's variant contradicts, it follows."""
    walk = m.task[t].walk_top != 0
    variant = m.task[t].variant if walk else DIRECT_FAMILY
    sp = find_shadow_page(m, gfn, make_key(role, variant, vm))
    if created:
        if sp >= 0 and m.sp[sp].page_flags & (PageFlag.SPLIT | PageFlag.RECORDED) == PageFlag.SPLIT:
            # what this fault of the recorded kernel makes, the simulated split has made before
            m.sp[sp].page_flags |= PageFlag.RECORDED
            count(m, Counter.PAGES_SPLIT_ALREADY, 1)
            return sp
        if sp >= 0:
            root = m.task[t].root
            other = -1
            if walk and root >= 0:
                other = other_variant(m, m.sp[root].gfn, m.sp[root].key & 0xFFFFFFFF, vm, variant)
            if other >= 0 and find_shadow_page(m, gfn, make_key(role, key_variant(m.sp[other].key), vm)) < 0:
                variant = key_variant(m.sp[other].key)
                move_variant(m, t, vm, variant)
            else:
                note_older(m, vm, Counter.ALREADY_LIVE_PAGES_NEW)
                forget_page(m, sp, order)
        return make_page(m, vm, gfn, role, variant, 0)
    if sp < 0:
        sp = other_variant(m, gfn, role, vm, variant)
        if sp >= 0 and walk:
            move_variant(m, t, vm, key_variant(m.sp[sp].key))
    if sp < 0:
        note_older(m, vm, Counter.UNKNOWN_PAGES_EXISTING)
        sp = find_guessed(m, vm, gfn, role)
        if sp >= 0:
            name_page(m, sp, role)
        else:
            sp = make_page(m, vm, gfn, role, variant, PageFlag.ADOPTED)
    m.sp[sp].page_flags &= ~PageFlag.FLOOD
    return sp


@jit
def link_in_fault(m: Mmu, t: int, parent: int, sp: int, order: int) -> None:
    """link_shadow_page() of a fault; a huge page that was there is split lazily."""
    level = key_level(m.sp[parent].key)
    index = walk_index(m, t, level)
    old = get_spte(m, parent, index)
    if is_shadow_present_pte(old):
        if is_last_spte(old, level):
            count(m, Counter.FAULTS_LAZY_SPLITS, 1)
            m.task[t].lazy = m.sp[sp].gfn + 1
        elif spte_child(old) == sp:
            return
    m.task[t].linked = 1
    link_shadow_page(m, parent, index, sp, order)


@jit
def is_passthrough_child(m: Mmu, root: int, gfn: int, level: int) -> bool:
    """A root one level above the guest's own top table shadows the same gfn (role.passthrough)."""
    if root < 0 or not m.sp[root].page_flags & PageFlag.LIVE:
        return False
    return m.sp[root].gfn == gfn and key_level(m.sp[root].key) == level + 1


@jit
def get_page(m: Mmu, t: int, vm: int, gfn: int, role: int, created: bool, order: int) -> None:
    """kvm_mmu_get_page of a shadow page outside an eager split."""
    level = role & Role.LEVEL
    if level < 1 or level > 5 or (role & Role.DIRECT and gfn & ((1 << (9 * level)) - 1)):
        count(m, Counter.UNPLACED_SPTES, 1)
        return
    if not in_fault(m, t):
        get_root(m, t, vm, gfn, role, created)
        return
    top = top_level(m, t)
    root = m.task[t].root
    if level == top and m.task[t].walk_top and is_passthrough_child(m, root, gfn, level):
        sp = find_child(m, t, vm, gfn, role, created, order)
        link_in_fault(m, t, root, sp, order)
        m.task[t].chain[level] = sp
        return
    if level >= top and (top or level > 3):
        get_root(m, t, vm, gfn, role, created)
        return
    if m.task[t].walk_top:
        settle_root(m, t, vm, gfn, role, created)
    sp = find_child(m, t, vm, gfn, role, created, order)
    parent = chain(m, t, vm, level + 1)
    if parent >= 0:
        link_in_fault(m, t, parent, sp, order)
    m.task[t].chain[level] = sp


@jit
def settle_root(m: Mmu, t: int, vm: int, gfn: int, role: int, created: bool) -> None:
    """The root of a fault that gets this page, before anything is read from the root's printed twin."""
    top = top_level(m, t)
    task = m.task[t]
    if role & Role.LEVEL == top - 1 and top > 3 and task.walk_top == top:
        place = root_that_lacks(m, t, vm, top, walk_index(m, t, top), gfn, role, created)
        if place != NOT_CACHED:
            if place:
                use_root(m, t, place)
            task.chain[top] = task.root
            return
    chain(m, t, vm, top)


@jit
def find_printed(m: Mmu, vm: int, gfn: int, role: int, unsync: bool, root: int) -> int:
    """The page that a PAGE line names, of those that print alike.

    Rather one whose writes reached the limit, since such a write zaps it at once; one below ``root``,
    unless that is -1; one synced as printed; (nested) one without parents; the oldest.
    """
    invalid = (role & Role.INVALID) != 0
    role &= ~Role.INVALID
    best = -1
    best_rank = 0
    i = int(m.hash[page_bucket(gfn, make_key(role, 0, vm), m.hash.shape[0])])
    while i:
        flags = m.sp[i].page_flags
        if same_print(m, i, gfn, role, vm) and ((flags & PageFlag.INVALID) != 0) == invalid:
            rank = 1 << 40
            if flags & PageFlag.FLOOD == PageFlag.FLOOD:
                rank += 1 << 44
            if root >= 0 and reaches(m, root, i):
                rank += 1 << 43
            if ((flags & PageFlag.UNSYNC) != 0) == unsync:
                rank += 1 << 42
            if m.vm[vm].has_tdp and m.sp[i].parent_ptes == 0:
                rank += 1 << 41
            rank -= int(m.sp[i].birth)
            if rank > best_rank:
                best = i
                best_rank = rank
        i = m.sp[i].next
    return best


@jit
def set_unsync(m: Mmu, t: int, vm: int, gfn: int, role: int, unsync: bool) -> None:
    """kvm_mmu_unsync_page (the page was sync) and kvm_mmu_sync_page (it was not, below the task's root)."""
    root = -1 if unsync else cached_root(m, t, vm, 0)
    sp = find_printed(m, vm, gfn, role, not unsync, root)
    if sp < 0:
        return
    if unsync:
        m.sp[sp].page_flags |= PageFlag.UNSYNC
    else:
        m.sp[sp].page_flags &= ~PageFlag.UNSYNC


@jit
def prepare_zap_page(m: Mmu, vm: int, gfn: int, role: int, root_count: int, unsync: bool, order: int) -> None:
    """kvm_mmu_prepare_zap_page of a shadow page; a root in use goes on invalid until its second line."""
    sp = find_printed(m, vm, gfn, role, unsync, -1)
    if sp < 0 and not role & Role.INVALID:
        sp = find_guessed(m, vm, gfn, role)
        if sp >= 0:
            name_page(m, sp, role)
    if sp < 0:
        gen = 1 if role & Role.GEN else 0
        if m.vm[vm].obsolete == gen + 1:
            count(m, Counter.UNKNOWN_ZAPS, 1)  # nothing can depend on an obsolete page
        else:
            note_older(m, vm, Counter.UNKNOWN_ZAPS)
        if root_count <= 0:
            drop_unknown_page(m, vm)
        return
    unlink_shadow_page(m, sp, order)
    if not m.sp[sp].key & Role.DIRECT and not m.sp[sp].page_flags & PageFlag.INVALID:
        account_shadowed(m, vm, gfn, -1)
    if root_count > 0:
        m.sp[sp].page_flags = PageFlag.INVALID
        return
    drop_used_page(m, vm, sp)
    free_shadow_page(m, sp)


@jit
def zap_all_fast(m: Mmu, vm: int, gen: int, used_pages: int) -> None:
    """kvm_mmu_zap_all_fast: the one event that tells n_used_mmu_pages.

    All pages are obsolete from now on, those too that are older than the trace: nothing unknown is left.
    """
    tell_used_pages(m, vm, min(max(used_pages, 0), UNLIMITED))
    m.vm[vm].obsolete = (gen & 1) + 1
    if m.vm[vm].older or not m.vm[vm].born:
        m.vm[vm].whole = m.ctl.line
    m.vm[vm].older = 0
    m.vm[vm].born = 1
