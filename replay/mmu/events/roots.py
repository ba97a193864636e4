"""Which root a task uses: KVM's cache of roots, and what shows a switch to another root of it.

A guest that loads CR3 leaves no line if the root of the new tables is one of the last four
(kvm_mmu_new_pgd(), fast_pgd_switch()); the faults that follow walk through it.
"""

from __future__ import annotations

from replay.jit import jit
from replay.mmu.kernel.rmap import pte_list_count, pte_list_get
from replay.mmu.kernel.role import key_level, key_variant, key_vm, make_key
from replay.mmu.kernel.shadow_page import find_shadow_page, get_spte
from replay.mmu.kernel.spte import is_last_spte, is_shadow_present_pte, spte_child
from replay.mmu.state.mmu import Mmu
from replay.mmu.state.records import PREV_ROOTS, PageFlag

NOT_CACHED = -1


@jit
def linked_child(m: Mmu, parent: int, index: int) -> int:
    """The page that SPTE ``index`` of ``parent`` points to, or -1."""
    spte = get_spte(m, parent, index)
    if not is_shadow_present_pte(spte) or is_last_spte(spte, key_level(m.sp[parent].key)):
        return -1
    return spte_child(spte)


@jit
def is_root(m: Mmu, sp: int, vm: int) -> bool:
    """True for a page that is there and that a vCPU of ``vm`` may have loaded."""
    flags = PageFlag.LIVE | PageFlag.ROOT
    return sp >= 0 and m.sp[sp].page_flags & flags == flags and key_vm(m.sp[sp].key) == vm


@jit
def cached_root(m: Mmu, t: int, vm: int, place: int) -> int:
    """The root at ``place`` of the task's cache, the one in use at 0; -1 where there is none (any more)."""
    root = m.task[t].root if place == 0 else m.task[t].prev_roots[place - 1] - 1
    return root if is_root(m, root, vm) else -1


@jit
def use_root(m: Mmu, t: int, place: int) -> int:
    """cached_root_find_and_keep_current(): the root at ``place`` > 0 comes into use; returns it."""
    task = m.task[t]
    root = task.prev_roots[place - 1] - 1
    for i in range(place - 1, 0, -1):
        task.prev_roots[i] = task.prev_roots[i - 1]
    task.prev_roots[0] = task.root + 1
    task.root = root
    task.variant = key_variant(m.sp[root].key)
    return root


@jit
def load_root(m: Mmu, t: int, vm: int, root: int) -> None:
    """mmu_alloc_root() put ``root`` in use; the one before is kept, if its role is the same.

    A root of the cache is not looked up again: all were dropped before, as kvm_mmu_reset_context() does.
    """
    task = m.task[t]
    old = cached_root(m, t, vm, 0)
    dropped = old < 0 or (m.sp[old].key ^ m.sp[root].key) != 0
    for place in range(PREV_ROOTS + 1):
        dropped |= cached_root(m, t, vm, place) == root
    for i in range(PREV_ROOTS - 1, 0, -1):
        task.prev_roots[i] = 0 if dropped else task.prev_roots[i - 1]
    task.prev_roots[0] = 0 if dropped else old + 1
    task.root = root


@jit
def root_that_leads_to(m: Mmu, t: int, vm: int, top: int, index: int, gfn: int) -> int:
    """The place in the cache of the root whose SPTE ``index`` leads to the table of ``gfn``."""
    for place in range(PREV_ROOTS + 1):
        root = cached_root(m, t, vm, place)
        if root >= 0 and key_level(m.sp[root].key) == top:
            child = linked_child(m, root, index)
            if child >= 0 and m.sp[child].gfn == gfn:
                return place
    return NOT_CACHED


@jit
def root_that_lacks(m: Mmu, t: int, vm: int, top: int, index: int, gfn: int, role: int, created: bool) -> int:
    """The place in the cache of the root whose SPTE ``index`` was empty, so that a page was got for it.

    kvm_mmu_get_child_sp() gets none where the SPTE leads to one.  A root of a variant that has the page
    already (or lacks it) cannot be the one for which it is new (or existing).
    """
    empty = NOT_CACHED
    for place in range(PREV_ROOTS + 1):
        root = cached_root(m, t, vm, place)
        if root < 0 or key_level(m.sp[root].key) != top or linked_child(m, root, index) >= 0:
            continue
        variant = key_variant(m.sp[root].key)
        if (find_shadow_page(m, gfn, make_key(role, variant, vm)) < 0) == created:
            return place
        if empty == NOT_CACHED:
            empty = place
    return empty


@jit
def note_root_of_walk(m: Mmu, t: int, vm: int, top: int, index: int, gfn: int) -> None:
    """A walk read the table of ``gfn``: if the root in use leads elsewhere, another one is in use."""
    root = cached_root(m, t, vm, 0)
    if root < 0 or key_level(m.sp[root].key) != top:
        return
    child = linked_child(m, root, index)
    if child >= 0 and m.sp[child].gfn != gfn:
        place = root_that_leads_to(m, t, vm, top, index, gfn)
        if place > 0:
            use_root(m, t, place)


@jit
def reaches(m: Mmu, root: int, sp: int) -> bool:
    """True if ``sp`` is ``root`` or hangs below it."""
    return sp == root or parent_reaches(m, root, sp)


@jit
def parent_reaches(m: Mmu, root: int, sp: int) -> bool:
    """:func:`reaches` for the pages above ``sp``, up to three levels of them."""
    parents = m.sp[sp].parent_ptes
    for i in range(pte_list_count(m, parents)):
        first = pte_list_get(m, parents, i) // 512
        if first == root:
            return True
        above = m.sp[first].parent_ptes
        for j in range(pte_list_count(m, above)):
            second = pte_list_get(m, above, j) // 512
            if second == root:
                return True
            tops = m.sp[second].parent_ptes
            for n in range(pte_list_count(m, tops)):
                if pte_list_get(m, tops, n) // 512 == root:
                    return True
    return False


@jit
def root_above(m: Mmu, t: int, vm: int, sp: int) -> int:
    """The first place in the cache whose root has ``sp`` below it."""
    for place in range(PREV_ROOTS + 1):
        root = cached_root(m, t, vm, place)
        if root >= 0 and reaches(m, root, sp):
            return place
    return NOT_CACHED
