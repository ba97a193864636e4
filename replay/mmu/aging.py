"""Aging as recorded lines show it: kvm_age_hva() takes permissions away and prints no SPTE."""

from __future__ import annotations

import numpy as np

from replay.jit import jit
from replay.mmu.layout import SP32_SPT, SP_BASE, UNIFORM, VM_LAYOUT
from replay.mmu.rmap import pte_list_count, pte_list_get, rmap_head
from replay.mmu.shadow_page import get_spte, set_spte
from replay.mmu.spte import is_aged, is_shadow_present_pte, mark_spte_for_access_track
from replay.mmu.state import Mmu
from replay.mmu.window import (
    OUT16_INSTALLED,
    OUT16_LEVEL,
    OUT32_WINDOW,
    OUT_GFN,
    OUT_SPTE,
    WIN_CHILD,
    WIN_VM,
)


@jit
def follow_aging(m: Mmu, o: int, recorded: int) -> None:
    """The recorded SPTE of attempt ``o`` is access-tracked: so is what the attempt left of it."""
    w = np.int64(m.out32[o, OUT32_WINDOW])
    vm = m.window[w, WIN_VM]
    layout = m.vm[vm, VM_LAYOUT]
    if not is_aged(m.out[o, OUT_SPTE], recorded, layout):
        return
    if m.out16[o, OUT16_INSTALLED]:
        age_table(m, m.window[w, WIN_CHILD], layout)
        return
    head = rmap_head(m, vm, m.out[o, OUT_GFN], np.int64(m.out16[o, OUT16_LEVEL]))
    for i in range(pte_list_count(m, head)):
        sptep = pte_list_get(m, head, i)
        spte = get_spte(m, sptep // 512, sptep % 512)
        if spte == m.out[o, OUT_SPTE]:
            set_spte(m, sptep // 512, sptep % 512, mark_spte_for_access_track(spte, layout))


@jit
def age_table(m: Mmu, sp: int, layout: int) -> None:
    """Every present SPTE of page ``sp`` becomes access-tracked."""
    if m.sp32[sp, SP32_SPT] == UNIFORM:
        m.sp[sp, SP_BASE] = mark_spte_for_access_track(m.sp[sp, SP_BASE], layout)
        return
    for index in range(512):
        spte = get_spte(m, sp, index)
        if is_shadow_present_pte(spte):
            set_spte(m, sp, index, mark_spte_for_access_track(spte, layout))
