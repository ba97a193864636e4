"""Passes over the SPTEs of a memslot when its dirty logging changes (mmu.c).

kvm_mmu_slot_leaf_clear_dirty() and kvm_mmu_slot_remove_write_access() once it is on,
kvm_mmu_zap_collapsible_sptes() once it is off.
"""

from __future__ import annotations

from replay.jit import jit
from replay.mmu.events.pages import CLEAR_DIRTY, protect_head, protect_region
from replay.mmu.kernel.host_pages import host_level, share_host_levels
from replay.mmu.kernel.rmap import head_in_gib, pte_list_get, rmap_head, rmap_remove
from replay.mmu.kernel.role import key_level
from replay.mmu.kernel.shadow_page import drop_spte, get_spte, zap_children
from replay.mmu.kernel.spte import LEGACY, WRITE_PROTECTED, spte_pfn
from replay.mmu.state.growth import NO_ROOM, OK, has_room_for_next
from replay.mmu.state.mmu import Mmu, find_gib
from replay.mmu.state.records import NO_TABLE, UNIFORM
from replay.mmu.tdp.simulated import forget_range, protect_range
from replay.policy import KnobCodes, Pml
from replay.schema import Role


@jit
def uses_pml(m: Mmu, vm: int, k: KnobCodes) -> bool:
    """Whether the CPU logs writes of ``vm``: as the trace shows, unless the policy says otherwise."""
    if m.vm[vm].layout == LEGACY:
        return False
    return m.vm[vm].pml != 0 if k.pml == Pml.AUTO else k.pml == Pml.ON


@jit
def protect_slot(m: Mmu, vm: int, s: int, pml: bool) -> int:
    """What dirty logging does to the SPTEs of a slot once it is on (kvm_mmu_slot_apply_flags())."""
    if not pml:
        return write_protect_slot(m, vm, s, 1)
    if clear_dirty_slot(m, vm, s) == NO_ROOM:
        return NO_ROOM
    return write_protect_slot(m, vm, s, 2)


@jit
def protect_simulated(m: Mmu, vm: int, s: int, kept: int, huge: bool) -> None:
    """The pass over what the simulated TDP MMU has of its own; recorded lines tell it of the rest."""
    base = m.slot[s].base_gfn
    protect_range(m, vm, m.slot[s].id >> 16, base, base + m.slot[s].npages, kept, huge)


@jit
def protect_pass(m: Mmu, vm: int, s: int, kept: int, huge: bool) -> int:
    """One pass over slot ``s``: larger SPTEs lose W if ``huge``; OK or NO_ROOM.

    ``kept`` says what 4K SPTEs keep: WRITE_PROTECTED, CLEAR_DIRTY, or -1 to leave them as they are.
    """
    protect_simulated(m, vm, s, kept, huge)
    if m.slot[s].id >> 16:
        return OK  # the rmaps of SMM's slots are empty
    layout = m.vm[vm].layout
    gfn = m.slot[s].base_gfn
    end = min(gfn + m.slot[s].npages, m.vm[vm].end)
    while gfn < end:
        g = find_gib(m, vm, gfn, False)
        following = min(((gfn >> 18) + 1) << 18, end)
        if g >= 0:
            if huge:
                protect_head(m, m.gib[g].head, WRITE_PROTECTED, layout)
            for i in range((gfn >> 9) & 511, ((following - 1) >> 9 & 511) + 1):
                if not has_room_for_next(m):
                    return NO_ROOM
                r = m.gib[g].region + i
                if huge:
                    protect_head(m, m.region[r].head, WRITE_PROTECTED, layout)
                if kept != -1:
                    protect_region(m, r, kept, layout)
        gfn = following
    return OK


@jit
def write_protect_slot(m: Mmu, vm: int, s: int, start_level: int) -> int:
    """kvm_mmu_slot_remove_write_access(): every SPTE of the slot at ``start_level`` and above."""
    return protect_pass(m, vm, s, WRITE_PROTECTED if start_level == 1 else -1, True)


@jit
def clear_dirty_slot(m: Mmu, vm: int, s: int) -> int:
    """kvm_mmu_slot_leaf_clear_dirty(): every 4K SPTE of the slot."""
    return protect_pass(m, vm, s, CLEAR_DIRTY, False)


@jit
def can_be_huge(m: Mmu, s: int, gfn: int, level: int) -> bool:
    """Whether a slot's edges let a page at ``level`` around ``gfn`` be huge, and gfn and hva are in step.

    Where the hva is not known they are: the page was seen to be mapped huge.
    """
    pages = 1 << (9 * (level - 1))
    start = gfn & -pages
    if start < m.slot[s].base_gfn or start + pages > m.slot[s].base_gfn + m.slot[s].npages:
        return False
    hva = m.slot[s].hva
    return hva == 0 or (m.slot[s].base_gfn - (hva >> 12)) & (pages - 1) == 0


@jit
def max_mapping_level(m: Mmu, vm: int, s: int, g: int, gfn: int) -> int:
    """kvm_mmu_max_mapping_level() of ``gfn`` in slot ``s``, as far as the trace showed the host's page size.

    With nx_huge_pages every executable mapping is of 4K, whatever the host has: there the page frame that
    ``gfn`` has been given tells, by being in step with it.
    """
    r = m.gib[g].region + ((gfn >> 9) & 511)
    host = host_level(m, g, r)
    if host >= 3 and m.gib[g].tables == 0 and can_be_huge(m, s, gfn, 3):
        return 3
    if host < 2 and m.vm[vm].nx_huge and frames_in_step(m, g, gfn):
        host = 2
    return 2 if host >= 2 and m.region[r].tables == 0 and can_be_huge(m, s, gfn, 2) else 1


@jit
def frames_in_step(m: Mmu, g: int, gfn: int) -> bool:
    """True if the first page of the 2M region around ``gfn`` that is mapped lies where a huge page had it."""
    start = gfn & -512
    for at in range(start, start + 512):
        sptep = pte_list_get(m, head_in_gib(m, g, at, 1), 0)
        if sptep >= 0:
            return (spte_pfn(get_spte(m, sptep // 512, sptep % 512)) ^ at) & 511 == 0
    return False


@jit
def zap_collapsible_head(m: Mmu, vm: int, gfn: int, level: int, max_level: int, order: int) -> None:
    """kvm_mmu_zap_collapsible_spte(): SPTEs of direct pages that could be larger; a zap restarts the list."""
    position = 0
    while True:
        sptep = pte_list_get(m, rmap_head(m, vm, gfn, level), position)
        if sptep < 0:
            return
        key = m.sp[sptep // 512].key
        if key & Role.DIRECT and key_level(key) < max_level:
            drop_spte(m, sptep // 512, sptep % 512, order)
            rmap_remove(m, vm, gfn, level, sptep, order)  # done already, unless the trace is damaged
            position = 0
        else:
            position += 1


@jit
def zap_collapsible(m: Mmu, vm: int, s: int, order: int) -> int:
    """kvm_mmu_zap_collapsible_sptes(), kvm_mmu_recover_huge_pages(): logging went off for slot ``s``."""
    if share_host_levels(m, vm, s) == NO_ROOM:
        return NO_ROOM
    base = m.slot[s].base_gfn
    forget_range(m, vm, m.slot[s].id >> 16, base, base + m.slot[s].npages)
    if m.slot[s].id >> 16:
        return OK
    end = min(base + m.slot[s].npages, m.vm[vm].end)
    gfn = base
    while gfn < end:
        g = find_gib(m, vm, gfn, False)
        if g < 0:
            gfn = ((gfn >> 18) + 1) << 18
            continue
        r = m.gib[g].region + ((gfn >> 9) & 511)
        following = min(((gfn >> 9) + 1) << 9, end)
        if m.region[r].block == NO_TABLE and m.gib[g].host < 3:
            gfn = following
            continue
        max_level = max_mapping_level(m, vm, s, g, gfn)
        if not has_room_for_next(m):
            return NO_ROOM
        if max_level > 1 and m.region[r].block == UNIFORM and following - gfn == 512:
            zap_children(m, m.region[r].sp, order)  # one direct page maps it all
        elif max_level > 1 and m.region[r].block != NO_TABLE:
            for at in range(gfn, following):
                if head_in_gib(m, g, at, 1):
                    zap_collapsible_head(m, vm, at, 1, max_level, order)
        if max_level > 2:
            zap_collapsible_head(m, vm, gfn, 2, max_level, order)
        gfn = following
    return OK
