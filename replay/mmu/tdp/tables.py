"""The TDP MMU: its tables as kvm_tdp_mmu_spte_changed tells them, and its eager split (tdp_mmu.c).

Kept apart from the shadow MMU: no rmaps, no page limit.  A table is a row of ``Mmu.sp`` whose key
has TDP_KEY; it is found by address space, level and gfn, so a root in use needs no number.
"""

from __future__ import annotations

from replay.jit import jit
from replay.mmu.kernel.role import ACC_ALL, ACCESS_SHIFT, key_vm
from replay.mmu.kernel.shadow_page import (
    alloc_shadow_page,
    bind_page,
    find_shadow_page,
    get_spte,
    set_spte,
    unbind_page,
)
from replay.mmu.kernel.spte import (
    is_last_spte,
    is_shadow_present_pte,
    make_huge_page_split_spte,
    make_nonleaf_spte,
    spte_pfn,
    sptes_agree,
    with_accessed_dirty_of,
)
from replay.mmu.recorded.lines import ANY, TDP_GET_PAGE, simulated_line
from replay.mmu.split.window import count, knows_all, new_outcome, note_older
from replay.mmu.state.counters import Counter
from replay.mmu.state.growth import has_room
from replay.mmu.state.mmu import Mmu, extend_memory, free_table
from replay.mmu.state.records import NO_TABLE, SWAPS, TDP_KEY, UNIFORM, AttemptFlag, PageFlag
from replay.mmu.tdp.simulated import KEY_AS_SHIFT, SIMULATED, find_simulated, is_split, note_split, table_key
from replay.schema import EBUSY, ENOMEM, Flag, Outcome, Role

SWAP_WINDOW_NS = 50_000_000


@jit
def find_table(m: Mmu, vm: int, as_id: int, level: int, gfn: int, create: bool) -> int:
    """The table at ``level`` whose range holds ``gfn``, or -1."""
    key = table_key(vm, as_id, level)
    gfn = gfn >> (9 * level) << (9 * level)
    last = m.ctl.last_tdp
    if last >= 0 and m.sp[last].gfn == gfn and m.sp[last].key == key:
        return last
    sp = find_shadow_page(m, gfn, key)
    if sp < 0 and create:
        sp = alloc_shadow_page(m, gfn, key, PageFlag.LIVE)
        if level <= 3:
            extend_memory(m, vm, gfn + (1 << (9 * level)))
    m.ctl.last_tdp = sp
    return sp


@jit
def clear_table(m: Mmu, t: int) -> None:
    """Table ``t`` of the TDP MMU holds no SPTE any more."""
    if m.sp[t].spt >= 0:
        free_table(m, int(m.sp[t].spt))
    m.sp[t].spt = NO_TABLE


@jit
def fill_from_huge(m: Mmu, t: int, level: int, huge_spte: int, layout: int) -> None:
    """Make table ``t`` at ``level`` the split of ``huge_spte``."""
    clear_table(m, t)
    base = make_huge_page_split_spte(huge_spte, 0, level, ACC_ALL, layout)
    m.sp[t].first_spte = base
    m.sp[t].spt = UNIFORM


@jit
def was_swapped(m: Mmu, gfn: int, level: int, old: int, new: int, state: int) -> bool:
    """True if this change happened before one of the same entry that was printed earlier.

    The line is printed after the atomic update, under the read lock: lines of two CPUs can swap.
    """
    if old == state:
        return False
    for i in range(SWAPS):
        swap = m.swap[i]
        if (
            swap.gfn == gfn + 1
            and swap.level == level
            and swap.old == new
            and swap.before == old
            and m.ctl.ts - swap.ts <= SWAP_WINDOW_NS
        ):
            swap.gfn = 0
            return True
    return False


@jit
def remember_odd_change(m: Mmu, gfn: int, level: int, old: int, state: int) -> None:
    """A change that does not start from the entry's value: its predecessor may still be printed."""
    swap = m.swap[m.ctl.next_swap]
    m.ctl.next_swap = (m.ctl.next_swap + 1) % SWAPS
    swap.gfn = gfn + 1
    swap.level = level
    swap.old = old
    swap.before = state
    swap.ts = m.ctl.ts


@jit
def spte_changed(m: Mmu, vm: int, as_id: int, gfn: int, level: int, old: int, new: int) -> None:
    """handle_changed_spte(): apply one kvm_tdp_mmu_spte_changed line."""
    t = find_table(m, vm, as_id, level, gfn, False)
    if t < 0:
        t = find_table(m, vm, as_id, level, gfn, True)
        if level <= 3 and is_shadow_present_pte(new):
            note_older(m, vm, Counter.ADOPTED_TDP_TABLES)  # no line has linked it
    index = (gfn >> (9 * (level - 1))) & 511
    layout = m.vm[vm].layout
    state = get_spte(m, t, index)
    if (
        state != old
        and is_shadow_present_pte(state) | is_shadow_present_pte(old)
        and with_accessed_dirty_of(state, old, layout) != old
    ):
        if was_swapped(m, gfn, level, old, new, state):
            count(m, Counter.SWAPPED_TDP_CHANGES, 1)
            return
        remember_odd_change(m, gfn, level, old, state)
    if level > 1:
        was_table = is_shadow_present_pte(old) and not is_last_spte(old, level)
        if is_shadow_present_pte(new) and not is_last_spte(new, level):
            child = find_table(m, vm, as_id, level - 1, gfn, True)
            if is_shadow_present_pte(old) and not was_table:
                fill_from_huge(m, child, level - 1, old, layout)
            elif not was_table or spte_pfn(old) != spte_pfn(new):
                clear_table(m, child)
            bind_page(m, child, spte_pfn(new))
        elif was_table:
            child = find_table(m, vm, as_id, level - 1, gfn, False)
            if child >= 0:
                clear_table(m, child)
                unbind_page(m, child)
    set_spte(m, t, index, new if is_shadow_present_pte(new) else 0)
    if level < 3 and is_shadow_present_pte(new) and not knows_all(m, vm):
        adopt_path(m, vm, as_id, gfn, level)


@jit
def adopt_path(m: Mmu, vm: int, as_id: int, gfn: int, level: int) -> None:
    """A table at ``level`` that is in use hangs below others, though the lines that linked it are older."""
    for above in range(level + 1, 4):
        parent = find_table(m, vm, as_id, above, gfn, True)
        index = (gfn >> (9 * (above - 1))) & 511
        spte = get_spte(m, parent, index)
        if not is_shadow_present_pte(spte) or is_last_spte(spte, above):
            set_spte(m, parent, index, make_nonleaf_spte(0))


@jit
def fast_fix(m: Mmu, vm: int, gfn: int, old: int, new: int) -> bool:
    """fast_page_fault() on the TDP MMU: the leaf that maps ``gfn`` and holds ``old`` becomes ``new``."""
    layout = m.vm[vm].layout
    t, index = find_leaf(m, vm, 0, gfn)
    if t < 0 or not sptes_agree(get_spte(m, t, index), old, layout):
        smm, at = find_leaf(m, vm, 1, gfn)
        if smm >= 0 and sptes_agree(get_spte(m, smm, at), old, layout):
            t, index = smm, at
    if t < 0:
        return False
    fixed = sptes_agree(get_spte(m, t, index), old, layout)
    # a page recovered in place after logging went off is restored without a line of its own
    set_spte(m, t, index, new)
    return fixed


@jit
def find_leaf(m: Mmu, vm: int, space: int, gfn: int) -> tuple[int, int]:
    """(table, index) of the leaf SPTE that maps ``gfn`` in address space ``space``; table -1: none does."""
    for level in range(1, 4):
        t = find_table(m, vm, space, level, gfn, False)
        index = (gfn >> (9 * (level - 1))) & 511
        if t >= 0:
            spte = get_spte(m, t, index)
            if is_shadow_present_pte(spte) and is_last_spte(spte, level):
                return t, index
    return -1, 0


@jit
def next_huge(m: Mmu, vm: int, space: int, gfn: int, end: int, target: int) -> tuple[int, int, int]:
    """The next huge leaf of address space ``space`` at or after ``gfn`` in pre-order: (gfn, level, SPTE).

    The level is 0 if there is none.
    """
    end = min(end, m.vm[vm].end)
    while gfn < end:
        t = find_table(m, vm, space, 3, gfn, False)
        spte = get_spte(m, t, (gfn >> 18) & 511) if t >= 0 else 0
        if is_shadow_present_pte(spte):
            if is_last_spte(spte, 3):
                split = find_simulated(m, vm, space, 2, gfn)
                if target < 3 and not is_split(m, split):
                    return gfn >> 18 << 18, 3, spte
                if target < 2:
                    at = next_simulated_huge(m, vm, space, gfn, end)
                    if at >= 0:
                        return at, 2, get_spte(m, split, (at >> 9) & 511)
            elif target < 2:
                t = find_table(m, vm, space, 2, gfn, False)
                first = (gfn >> 9) & 511
                if t >= 0 and m.sp[t].spt != NO_TABLE:
                    for i in range(first, 512):
                        at = (gfn >> 18 << 18) + (i << 9)
                        if at >= end:
                            break
                        spte = get_spte(m, t, i)
                        huge = is_shadow_present_pte(spte) and is_last_spte(spte, 2)
                        if huge and not is_split(m, find_simulated(m, vm, space, 1, at)):
                            return at, 2, spte
        gfn = ((gfn >> 18) + 1) << 18
    return 0, 0, 0


@jit
def next_simulated_huge(m: Mmu, vm: int, space: int, gfn: int, end: int) -> int:
    """The next 2M page at or after ``gfn`` of a 1G page that the simulation alone has split, -1 none."""
    at = gfn >> 9 << 9
    while at < end:
        if not is_split(m, find_simulated(m, vm, space, 1, at)):
            return at
        at += 512
        if at & 0x3FFFF == 0:
            break
    return -1


@jit
def next_split(m: Mmu, w: int) -> tuple[int, int]:
    """(gfn, level) of the huge SPTE that the walk comes to next; level 0: to none."""
    win = m.window[w]
    # the iterator begins with the 2M entry around the first gfn, even if the range ends before its end
    win.tdp_gfn = max(win.tdp_gfn, win.start >> 9 << 9)
    space = max(win.space, 0)
    found = next_huge(m, win.vm, space, win.tdp_gfn, win.end, win.target)
    return found[0], found[1]


@jit
def predict_split(m: Mmu, w: int, errno: int) -> int:
    """The outcome row of the walk's next attempt, -1 at its end; ``errno`` >= 0 is the environment's."""
    win = m.window[w]
    gfn, level = next_split(m, w)
    if level == 0:
        return -1
    space = max(win.space, 0)
    spte = next_huge(m, win.vm, space, gfn, win.end, win.target)[2]
    o = new_outcome(m, w, AttemptFlag.TDP)
    m.attempt[o].gfn = gfn
    m.attempt[o].level = level
    m.attempt[o].spte = spte
    m.attempt[o].role = (level & Role.LEVEL) | Role.DIRECT | (ACC_ALL << ACCESS_SHIFT)
    m.attempt[o].errno = -errno
    win.tdp_attempts += 1
    count(m, Counter.TDP_ATTEMPTS, 1)
    if errno != ENOMEM:
        role = m.vm[win.vm].tdp_role
        simulated_line(m, w, TDP_GET_PAGE, gfn, 0, role | (level - 1) if role else ANY, Flag.CREATED)
    if errno:
        m.attempt[o].outcome = Outcome.BUSY if errno == EBUSY else Outcome.NO_MEMORY
        count(m, Counter.TDP_FAILED, 1)
        return o
    m.attempt[o].outcome = Outcome.SPLIT
    m.attempt[o].installed = 512
    m.attempt[o].attempt_flags |= AttemptFlag.CREATED
    win.tdp_gfn = gfn if level > win.target + 1 else gfn + 512
    win.tdp_split += 1
    count(m, Counter.TDP_SPLIT, 1)
    note_split(m, win.vm, space, gfn, level, spte)
    return o


@jit
def split_all(m: Mmu, w: int) -> bool:
    """Split what is left of the window in the simulated tables; False if rows run out first."""
    while has_room(m):
        if predict_split(m, w, 0) < 0:
            return True
    return False


@jit
def count_huge(m: Mmu) -> int:
    """Huge leaf SPTEs in all tables of the simulated TDP MMU, uniform 2M tables included."""
    n = 0
    for t in range(1, m.ctl.sp_top):
        key = m.sp[t].key
        level = key & Role.LEVEL
        if m.sp[t].page_flags == 0 or not key & TDP_KEY or level > 3:
            continue
        if key & SIMULATED:
            n += count_parted(m, t, level)
        elif level > 1 and m.sp[t].spt == UNIFORM:
            n += 512
        elif level > 1 and m.sp[t].spt >= 0:
            for i in range(512):
                spte = m.spt[m.sp[t].spt, i]
                n += is_shadow_present_pte(spte) and is_last_spte(spte, level)
    return n


@jit
def is_huge(m: Mmu, vm: int, space: int, level: int, gfn: int) -> bool:
    """Whether a recorded leaf SPTE at ``level`` maps ``gfn``."""
    t = find_table(m, vm, space, level, gfn, False)
    spte = get_spte(m, t, (gfn >> (9 * (level - 1))) & 511) if t >= 0 else 0
    return is_shadow_present_pte(spte) and is_last_spte(spte, level)


@jit
def count_parted(m: Mmu, s: int, level: int) -> int:
    """Huge SPTEs that the simulation has at its table ``s`` beyond the recorded ones."""
    key, gfn = m.sp[s].key, m.sp[s].gfn
    vm, space = key_vm(key), (key >> KEY_AS_SHIFT) & 1
    recorded = is_huge(m, vm, space, level + 1, gfn)
    if level == 2:
        here = 512 if m.sp[s].spt == UNIFORM else 0
        if is_split(m, s):
            return here - 1 if recorded else 0
        return 0 if recorded else 1
    if is_split(m, s):
        return -1 if recorded or is_huge(m, vm, space, 3, gfn) else 0
    upper = find_simulated(m, vm, space, 2, gfn)
    there = upper < 0 or is_shadow_present_pte(get_spte(m, upper, (gfn >> 9) & 511))
    return 1 if there and not recorded else 0
