"""Passes over the SPTEs of a memslot when its dirty logging changes (mmu.c).

kvm_mmu_slot_remove_write_access() once it is on, kvm_mmu_zap_collapsible_sptes() once it is off.
"""

from __future__ import annotations

from replay.jit import jit
from replay.mmu.apply import write_protect_head, write_protect_region
from replay.mmu.layout import (
    GIB_HEAD,
    GIB_HOST,
    GIB_REGION,
    GIB_TABLES,
    NO_TABLE,
    REGION_BLOCK,
    REGION_HEAD,
    REGION_HOST,
    REGION_SP,
    REGION_TABLES,
    SLOT_BASE,
    SLOT_HVA,
    SLOT_ID,
    SLOT_NPAGES,
    SP_KEY,
    UNIFORM,
    VM_END,
    VM_EPT,
)
from replay.mmu.rmap import head_in_gib, pte_list_get, rmap_head, rmap_remove
from replay.mmu.role import DIRECT, key_level
from replay.mmu.room import NO_ROOM, OK, has_room_for_next
from replay.mmu.shadow_page import drop_spte, zap_children
from replay.mmu.state import Mmu, find_gib


@jit
def write_protect_slot(m: Mmu, vm: int, s: int, start_level: int) -> int:
    """kvm_mmu_slot_remove_write_access(): every SPTE of the slot at ``start_level`` and above."""
    if m.slot[s, SLOT_ID] >> 16:
        return OK  # the rmaps of SMM's slots are empty
    ept = m.vm[vm, VM_EPT] != 0
    gfn = m.slot[s, SLOT_BASE]
    end = min(gfn + m.slot[s, SLOT_NPAGES], m.vm[vm, VM_END])
    while gfn < end:
        g = find_gib(m, vm, gfn, False)
        following = min(((gfn >> 18) + 1) << 18, end)
        if g >= 0:
            write_protect_head(m, m.gib[g, GIB_HEAD], False, ept)
            for i in range((gfn >> 9) & 511, ((following - 1) >> 9 & 511) + 1):
                if not has_room_for_next(m):
                    return NO_ROOM
                r = m.gib[g, GIB_REGION] + i
                write_protect_head(m, m.region[r, REGION_HEAD], False, ept)
                if start_level == 1:
                    write_protect_region(m, r, ept)
        gfn = following
    return OK


@jit
def can_be_huge(m: Mmu, s: int, gfn: int, level: int) -> bool:
    """Whether a slot's edges let a page at ``level`` around ``gfn`` be huge, and gfn and hva are in step."""
    pages = 1 << (9 * (level - 1))
    start = gfn & -pages
    if start < m.slot[s, SLOT_BASE] or start + pages > m.slot[s, SLOT_BASE] + m.slot[s, SLOT_NPAGES]:
        return False
    return (m.slot[s, SLOT_BASE] - (m.slot[s, SLOT_HVA] >> 12)) & (pages - 1) == 0


@jit
def zap_collapsible_head(m: Mmu, vm: int, gfn: int, level: int, max_level: int, order: int) -> None:
    """kvm_mmu_zap_collapsible_spte(): SPTEs of direct pages that could be larger; a zap restarts the list."""
    position = 0
    while True:
        sptep = pte_list_get(m, rmap_head(m, vm, gfn, level), position)
        if sptep < 0:
            return
        key = m.sp[sptep // 512, SP_KEY]
        if key & DIRECT and key_level(key) < max_level:
            drop_spte(m, sptep // 512, sptep % 512, order)
            rmap_remove(m, vm, gfn, level, sptep, order)  # done already, unless the trace is damaged
            position = 0
        else:
            position += 1


@jit
def zap_collapsible(m: Mmu, vm: int, s: int, order: int) -> int:
    """kvm_mmu_zap_collapsible_sptes(), kvm_mmu_recover_huge_pages(): logging went off for slot ``s``.

    The host's page size is the largest at which it was seen to map the region.
    """
    base = m.slot[s, SLOT_BASE]
    if m.slot[s, SLOT_ID] >> 16:
        return OK
    end = min(base + m.slot[s, SLOT_NPAGES], m.vm[vm, VM_END])
    gfn = base
    while gfn < end:
        g = find_gib(m, vm, gfn, False)
        if g < 0:
            gfn = ((gfn >> 18) + 1) << 18
            continue
        r = m.gib[g, GIB_REGION] + ((gfn >> 9) & 511)
        following = min(((gfn >> 9) + 1) << 9, end)
        max_level = 1
        if m.gib[g, GIB_HOST] >= 3 and m.gib[g, GIB_TABLES] == 0 and can_be_huge(m, s, gfn, 3):
            max_level = 3
        elif m.region[r, REGION_BLOCK] == NO_TABLE:
            gfn = following
            continue
        elif m.region[r, REGION_HOST] >= 2 and m.region[r, REGION_TABLES] == 0 and can_be_huge(m, s, gfn, 2):
            max_level = 2
        if not has_room_for_next(m):
            return NO_ROOM
        if max_level > 1 and m.region[r, REGION_BLOCK] == UNIFORM and following - gfn == 512:
            zap_children(m, m.region[r, REGION_SP], order)  # one direct page maps it all
        elif max_level > 1 and m.region[r, REGION_BLOCK] != NO_TABLE:
            for at in range(gfn, following):
                if head_in_gib(m, g, at, 1):
                    zap_collapsible_head(m, vm, at, 1, max_level, order)
        if max_level > 2:
            zap_collapsible_head(m, vm, gfn, 2, max_level, order)
        gfn = following
    return OK
