"""Faults on the TDP MMU under the simulated policy: which of the recorded ones it takes, and why.

The first fault is counted of each 4K page below a huge page that was split, by the walk of a window or by a
fault: kvm_tdp_mmu_map() and fast_page_fault().
"""

from __future__ import annotations

from replay.jit import jit
from replay.mmu.events.set_spte import fault_allowed
from replay.mmu.kernel.memslots import gfn_to_slot
from replay.mmu.kernel.shadow_page import get_spte, set_spte
from replay.mmu.kernel.spte import (
    LEFT_NONPRESENT,
    PT_WRITABLE_MASK,
    WRITE_PROTECTED,
    is_last_spte,
    is_shadow_present_pte,
)
from replay.mmu.split.window import count
from replay.mmu.state.counters import Counter
from replay.mmu.state.mmu import Mmu
from replay.mmu.state.records import FaultState, MemFlag
from replay.mmu.tdp.simulated import (
    fill_empty,
    fill_split,
    find_simulated,
    forget_range,
    is_split,
    make_simulated,
)
from replay.policy import FaultSplit, KnobCodes
from replay.schema import WindowCause

COUNTED = 1 << 61  # in the place of an SPTE whose first fault has been counted


@jit
def fault_zaps(m: Mmu, vm: int, k: KnobCodes) -> bool:
    """Whether a fault zaps a huge page that has to be split: as the policy says, else as the trace shows."""
    return (m.vm[vm].fault_split if k.fault_split == FaultSplit.AUTO else k.fault_split) == FaultSplit.ZAP


@jit
def in_fault_on(m: Mmu, t: int, gfn: int, level: int) -> bool:
    """True while task ``t`` maps a page below the entry at ``level`` around ``gfn``."""
    requested = (m.task[t].req_gfn ^ gfn) >> (9 * (level - 1)) == 0
    return m.task[t].fault_state == FaultState.REQUESTED and requested


@jit
def follow_change(
    m: Mmu, t: int, vm: int, space: int, gfn: int, level: int, old: int, new: int, eager: bool, k: KnobCodes
) -> None:
    """What a kvm_tdp_mmu_spte_changed line means for the simulated tables, before it is applied.

    ``eager``: it is of the task of a window, which is where the recorded kernel splits.
    """
    present, was_present = is_shadow_present_pte(new), is_shadow_present_pte(old)
    if level == 1:
        if present:
            if in_fault_on(m, t, gfn, 1):
                note_fault(m, t, vm, space, gfn, new, k)
        elif was_present:
            note_zap(m, vm, space, gfn)
        return
    if level > 3:
        return
    was_huge = was_present and is_last_spte(old, level)
    is_table = present and not is_last_spte(new, level)
    if is_table and not was_huge:
        return
    if was_huge and in_fault_on(m, t, gfn, level):
        if is_table or not present:
            note_lazy_split(
                m, vm, space, gfn, level, old, FaultSplit.ZAP if not present else FaultSplit.SPLIT
            )
    elif is_table:
        if eager and not k.enabled and find_simulated(m, vm, space, level - 1, gfn) < 0:
            make_simulated(m, vm, space, level - 1, gfn, old)
    elif not (was_huge and present):
        forget_range(m, vm, space, gfn, gfn + (1 << (9 * (level - 1))))


@jit
def note_zap(m: Mmu, vm: int, space: int, gfn: int) -> None:
    """A 4K SPTE is zapped, by an mmu notifier or with its table; a huge one in its place is zapped whole."""
    s = find_simulated(m, vm, space, 1, gfn)
    if is_split(m, s):
        set_spte(m, s, gfn & 511, 0)
    elif s >= 0:
        fill_empty(m, s, 0)


@jit
def note_lazy_split(m: Mmu, vm: int, space: int, gfn: int, level: int, old: int, how: int) -> None:
    """A recorded fault replaces a huge SPTE, which the simulation has split before, or splits in it, too."""
    if m.vm[vm].fault_split == FaultSplit.AUTO:
        m.vm[vm].fault_split = how
    if find_simulated(m, vm, space, level - 1, gfn) >= 0:
        return
    s = gfn_to_slot(m, vm, gfn)
    logged = s < 0 or m.slot[s].mem_flags & MemFlag.LOG_DIRTY_PAGES != 0
    if logged and not old & PT_WRITABLE_MASK:
        make_simulated(m, vm, space, level - 1, gfn, old)
    else:
        # for an executable page, or for a page table in it: what follows is no matter of dirty logging
        count(m, Counter.TDP_FAULTS_LAZY_SPLITS, 1)


@jit
def is_being_cleared(m: Mmu, vm: int, gfn: int) -> bool:
    """True if KVM_CLEAR_DIRTY_LOG of ``gfn`` is under way: no line shows when its task lets go of the lock.

    A fault that comes before the next line of that task comes after the pass over the SPTEs.
    """
    w = m.vm[vm].window
    if w < 0 or m.window[w].cause != WindowCause.CLEAR_DIRTY_LOG:
        return False
    return m.window[w].start <= gfn <= m.window[w].end


@jit
def note_fault(m: Mmu, t: int, vm: int, space: int, gfn: int, new: int, k: KnobCodes) -> None:
    """A recorded fault sets the 4K SPTE of ``gfn`` to ``new``."""
    s = find_simulated(m, vm, space, 1, gfn)
    if s < 0:
        return
    kept = WRITE_PROTECTED if is_being_cleared(m, vm, gfn) else -1
    if not is_split(m, s):
        if fault_allowed(m, t, vm, m.sp[s].first_spte & kept, new):
            count(m, Counter.TDP_FAULTS_AVOIDED, 1)
        else:
            split_in_fault(m, vm, space, gfn, s, k)
        return
    old = get_spte(m, s, gfn & 511)
    if old == COUNTED:
        return
    set_spte(m, s, gfn & 511, COUNTED)
    if old == LEFT_NONPRESENT:
        count(m, Counter.TDP_FAULTS_NONPRESENT, 1)
    elif is_shadow_present_pte(old):
        allowed = fault_allowed(m, t, vm, old & kept, new)
        count(m, Counter.TDP_FAULTS_AVOIDED if allowed else Counter.TDP_FAULTS_WRITE_PROTECTED, 1)


@jit
def split_in_fault(m: Mmu, vm: int, space: int, gfn: int, s: int, k: KnobCodes) -> None:
    """A write fault on a huge page under dirty logging: ``s`` is the row of the 2M region around ``gfn``."""
    zaps, layout = fault_zaps(m, vm, k), m.vm[vm].layout
    upper = find_simulated(m, vm, space, 2, gfn)
    if is_split(m, upper) and get_spte(m, upper, (gfn >> 9) & 511) == LEFT_NONPRESENT:
        count(m, Counter.TDP_FAULTS_NONPRESENT, 1)  # another fault has zapped the 1G page
    else:
        if upper >= 0 and not is_split(m, upper):
            count(m, Counter.TDP_FAULTS_LAZY_SPLITS, 1)
            if zaps:
                fill_empty(m, upper, LEFT_NONPRESENT)
            else:
                fill_split(m, upper, 2, layout)
                count(m, Counter.TDP_FAULTS_LAZY_SPLITS, 1)
        else:
            count(m, Counter.TDP_FAULTS_LAZY_SPLITS, 1)
    if zaps:
        fill_empty(m, s, LEFT_NONPRESENT)
    else:
        fill_split(m, s, 1, layout)
    set_spte(m, s, gfn & 511, COUNTED)
