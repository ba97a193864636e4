"""Aging as recorded lines show it: kvm_age_hva() takes permissions away and prints no SPTE."""

from __future__ import annotations

import numpy as np

from replay.jit import jit
from replay.mmu.kernel.rmap import pte_list_count, pte_list_get, rmap_head
from replay.mmu.kernel.shadow_page import get_spte, set_spte
from replay.mmu.kernel.spte import is_aged, is_shadow_present_pte, mark_spte_for_access_track
from replay.mmu.state.mmu import Mmu
from replay.mmu.state.records import UNIFORM


@jit
def follow_aging(m: Mmu, o: int, recorded: int) -> None:
    """The recorded SPTE of attempt ``o`` is access-tracked: so is what the attempt left of it."""
    w = np.int64(m.attempt[o].window)
    vm = m.window[w].vm
    layout = m.vm[vm].layout
    if not is_aged(m.attempt[o].spte, recorded, layout):
        return
    if m.attempt[o].installed:
        age_table(m, m.window[w].child, layout)
        return
    head = rmap_head(m, vm, m.attempt[o].gfn, np.int64(m.attempt[o].level))
    for i in range(pte_list_count(m, head)):
        sptep = pte_list_get(m, head, i)
        spte = get_spte(m, sptep // 512, sptep % 512)
        if spte == m.attempt[o].spte:
            set_spte(m, sptep // 512, sptep % 512, mark_spte_for_access_track(spte, layout))


@jit
def age_table(m: Mmu, sp: int, layout: int) -> None:
    """Every present SPTE of page ``sp`` becomes access-tracked."""
    if m.sp[sp].spt == UNIFORM:
        m.sp[sp].first_spte = mark_spte_for_access_track(m.sp[sp].first_spte, layout)
        return
    for index in range(512):
        spte = get_spte(m, sp, index)
        if is_shadow_present_pte(spte):
            set_spte(m, sp, index, mark_spte_for_access_track(spte, layout))
