"""The TDP MMU: its tables as kvm_tdp_mmu_spte_changed tells them, and its eager split (tdp_mmu.c).

Kept apart from the shadow MMU: no rmaps, no page limit.  A table is a row of ``Mmu.sp`` whose key
has TDP_KEY; it is found by address space, level and gfn, so a root in use needs no number.
"""

from __future__ import annotations

from replay.jit import jit
from replay.mmu.kinds import CREATED
from replay.mmu.layout import (
    CTL_LAST_TDP,
    CTL_SP_TOP,
    CTL_TS,
    FLAG_LIVE,
    NO_TABLE,
    SP32_FLAGS,
    SP32_SPT,
    SP_BASE,
    SP_GFN,
    SP_KEY,
    TDP_KEY,
    UNIFORM,
    VM_END,
    VM_LAYOUT,
    VM_TDP_ROLE,
)
from replay.mmu.role import ACC_ALL, ACCESS_SHIFT, DIRECT, LEVEL, key_vm
from replay.mmu.room import has_room
from replay.mmu.shadow_page import (
    alloc_shadow_page,
    bind_page,
    find_shadow_page,
    get_spte,
    set_spte,
    unbind_page,
)
from replay.mmu.spte import (
    is_last_spte,
    is_shadow_present_pte,
    make_huge_page_split_spte,
    make_nonleaf_spte,
    spte_pfn,
    sptes_agree,
    with_accessed_dirty_of,
)
from replay.mmu.state import Mmu, extend_memory, free_table
from replay.mmu.tdp_simulated import KEY_AS_SHIFT, SIMULATED, find_simulated, is_split, note_split, table_key
from replay.mmu.truth import ANY, TDP_GET_PAGE, simulated_line
from replay.mmu.window import (
    ATTEMPT_CREATED,
    ATTEMPT_TDP,
    C_ADOPTED_TDP,
    C_SWAPPED,
    C_TDP_ATTEMPTS,
    C_TDP_FAILED,
    C_TDP_SPLIT,
    OUT16_ERRNO,
    OUT16_FLAGS,
    OUT16_INSTALLED,
    OUT16_LEVEL,
    OUT16_OUTCOME,
    OUT32_ROLE,
    OUT_GFN,
    OUT_SPTE,
    WIN_END,
    WIN_SPACE,
    WIN_START,
    WIN_TARGET,
    WIN_TDP_ATTEMPTS,
    WIN_TDP_GFN,
    WIN_TDP_SPLIT,
    WIN_VM,
    count,
    knows_all,
    new_outcome,
    note_older,
)
from replay.schema import EBUSY, ENOMEM, Outcome

SPLIT = int(Outcome.SPLIT)
BUSY = int(Outcome.BUSY)
NO_MEMORY = int(Outcome.NO_MEMORY)
SWAP_WINDOW_NS = 50_000_000
SWAPS = 8
CTL_SWAP = 96  # Mmu.ctl: SWAPS rows of (gfn, level, old, state before, ts), then the next row's number


@jit
def find_table(m: Mmu, vm: int, as_id: int, level: int, gfn: int, create: bool) -> int:
    """The table at ``level`` whose range holds ``gfn``, or -1."""
    key = table_key(vm, as_id, level)
    gfn = gfn >> (9 * level) << (9 * level)
    last = m.ctl[CTL_LAST_TDP]
    if last >= 0 and m.sp[last, SP_GFN] == gfn and m.sp[last, SP_KEY] == key:
        return last
    sp = find_shadow_page(m, gfn, key)
    if sp < 0 and create:
        sp = alloc_shadow_page(m, gfn, key, FLAG_LIVE)
        if level <= 3:
            extend_memory(m, vm, gfn + (1 << (9 * level)))
    m.ctl[CTL_LAST_TDP] = sp
    return sp


@jit
def clear_table(m: Mmu, t: int) -> None:
    if m.sp32[t, SP32_SPT] >= 0:
        free_table(m, int(m.sp32[t, SP32_SPT]))
    m.sp32[t, SP32_SPT] = NO_TABLE


@jit
def fill_from_huge(m: Mmu, t: int, level: int, huge_spte: int, layout: int) -> None:
    """Make table ``t`` at ``level`` the split of ``huge_spte``."""
    clear_table(m, t)
    base = make_huge_page_split_spte(huge_spte, 0, level, ACC_ALL, layout)
    m.sp[t, SP_BASE] = base
    m.sp32[t, SP32_SPT] = UNIFORM


@jit
def was_swapped(m: Mmu, gfn: int, level: int, old: int, new: int, state: int) -> bool:
    """True if this change happened before one of the same entry that was printed earlier.

    The line is printed after the atomic update, under the read lock: lines of two CPUs can swap.
    """
    if old == state:
        return False
    now = m.ctl[CTL_TS]
    for i in range(SWAPS):
        row = CTL_SWAP + 5 * i
        if (
            m.ctl[row] == gfn + 1
            and m.ctl[row + 1] == level
            and m.ctl[row + 2] == new
            and m.ctl[row + 3] == old
            and now - m.ctl[row + 4] <= SWAP_WINDOW_NS
        ):
            m.ctl[row] = 0
            return True
    return False


@jit
def remember_odd_change(m: Mmu, gfn: int, level: int, old: int, state: int) -> None:
    """A change that does not start from the entry's value: its predecessor may still be printed."""
    next_row = CTL_SWAP + 5 * SWAPS
    row = CTL_SWAP + 5 * m.ctl[next_row]
    m.ctl[next_row] = (m.ctl[next_row] + 1) % SWAPS
    m.ctl[row] = gfn + 1
    m.ctl[row + 1] = level
    m.ctl[row + 2] = old
    m.ctl[row + 3] = state
    m.ctl[row + 4] = m.ctl[CTL_TS]


@jit
def spte_changed(m: Mmu, vm: int, as_id: int, gfn: int, level: int, old: int, new: int) -> None:
    """handle_changed_spte(): apply one kvm_tdp_mmu_spte_changed line."""
    t = find_table(m, vm, as_id, level, gfn, False)
    if t < 0:
        t = find_table(m, vm, as_id, level, gfn, True)
        if level <= 3 and is_shadow_present_pte(new):
            note_older(m, vm, C_ADOPTED_TDP)  # no line has linked it
    index = (gfn >> (9 * (level - 1))) & 511
    layout = m.vm[vm, VM_LAYOUT]
    state = get_spte(m, t, index)
    if (
        state != old
        and is_shadow_present_pte(state) | is_shadow_present_pte(old)
        and with_accessed_dirty_of(state, old, layout) != old
    ):
        if was_swapped(m, gfn, level, old, new, state):
            count(m, C_SWAPPED, 1)
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
    layout = m.vm[vm, VM_LAYOUT]
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
    end = min(end, m.vm[vm, VM_END])
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
                if t >= 0 and m.sp32[t, SP32_SPT] != NO_TABLE:
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
    win[WIN_TDP_GFN] = max(win[WIN_TDP_GFN], win[WIN_START] >> 9 << 9)
    space = max(win[WIN_SPACE], 0)
    found = next_huge(m, win[WIN_VM], space, win[WIN_TDP_GFN], win[WIN_END], win[WIN_TARGET])
    return found[0], found[1]


@jit
def predict_split(m: Mmu, w: int, errno: int) -> int:
    """The outcome row of the walk's next attempt, -1 at its end; ``errno`` >= 0 is the environment's."""
    win = m.window[w]
    gfn, level = next_split(m, w)
    if level == 0:
        return -1
    space = max(win[WIN_SPACE], 0)
    spte = next_huge(m, win[WIN_VM], space, gfn, win[WIN_END], win[WIN_TARGET])[2]
    o = new_outcome(m, w, ATTEMPT_TDP)
    m.out[o, OUT_GFN] = gfn
    m.out16[o, OUT16_LEVEL] = level
    m.out[o, OUT_SPTE] = spte
    m.out32[o, OUT32_ROLE] = (level & LEVEL) | DIRECT | (ACC_ALL << ACCESS_SHIFT)
    m.out16[o, OUT16_ERRNO] = -errno
    win[WIN_TDP_ATTEMPTS] += 1
    count(m, C_TDP_ATTEMPTS, 1)
    if errno != ENOMEM:
        role = m.vm[win[WIN_VM], VM_TDP_ROLE]
        simulated_line(m, w, TDP_GET_PAGE, gfn, 0, role | (level - 1) if role else ANY, CREATED)
    if errno:
        m.out16[o, OUT16_OUTCOME] = BUSY if errno == EBUSY else NO_MEMORY
        count(m, C_TDP_FAILED, 1)
        return o
    m.out16[o, OUT16_OUTCOME] = SPLIT
    m.out16[o, OUT16_INSTALLED] = 512
    m.out16[o, OUT16_FLAGS] |= ATTEMPT_CREATED
    win[WIN_TDP_GFN] = gfn if level > win[WIN_TARGET] + 1 else gfn + 512
    win[WIN_TDP_SPLIT] += 1
    count(m, C_TDP_SPLIT, 1)
    note_split(m, win[WIN_VM], space, gfn, level, spte)
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
    for t in range(1, m.ctl[CTL_SP_TOP]):
        key = m.sp[t, SP_KEY]
        level = key & LEVEL
        if m.sp32[t, SP32_FLAGS] == 0 or not key & TDP_KEY or level > 3:
            continue
        if key & SIMULATED:
            n += count_parted(m, t, level)
        elif level > 1 and m.sp32[t, SP32_SPT] == UNIFORM:
            n += 512
        elif level > 1 and m.sp32[t, SP32_SPT] >= 0:
            for i in range(512):
                spte = m.spt[m.sp32[t, SP32_SPT], i]
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
    key, gfn = m.sp[s, SP_KEY], m.sp[s, SP_GFN]
    vm, space = key_vm(key), (key >> KEY_AS_SHIFT) & 1
    recorded = is_huge(m, vm, space, level + 1, gfn)
    if level == 2:
        here = 512 if m.sp32[s, SP32_SPT] == UNIFORM else 0
        if is_split(m, s):
            return here - 1 if recorded else 0
        return 0 if recorded else 1
    if is_split(m, s):
        return -1 if recorded or is_huge(m, vm, space, 3, gfn) else 0
    upper = find_simulated(m, vm, space, 2, gfn)
    there = upper < 0 or is_shadow_present_pte(get_spte(m, upper, (gfn >> 9) & 511))
    return 1 if there and not recorded else 0
