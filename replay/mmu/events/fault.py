"""The fault a task is in: guest page walk, the chain of shadow pages from the root down.

A trace prints the guest's entries and the pages that were missing; which pages the walk passed
silently follows from links that are known, else from a look-up as the kernel's own
(paging_tmpl.h FNAME(fetch), mmu.c direct_map).
"""

from __future__ import annotations

from replay.jit import jit
from replay.mmu.events.roots import (
    NOT_CACHED,
    cached_root,
    is_root,
    linked_child,
    note_root_of_walk,
    root_that_leads_to,
    use_root,
)
from replay.mmu.kernel.role import ACC_ALL, ACC_WRITE, ACCESS_SHIFT, QUADRANT_SHIFT, key_level, key_vm
from replay.mmu.kernel.shadow_page import find_shadow_page
from replay.mmu.kernel.spte import LEGACY, gpte_access, gpte_is_clean, spte_pfn
from replay.mmu.state.mmu import Mmu, page_bucket
from replay.mmu.state.records import PREV_ROOTS, ROOTS, FaultState, PageFlag, WriteWalk
from replay.schema import Role

NOT_LOOKED_UP = -2
PFERR_PRESENT = 1
PFERR_WRITE = 2
PFERR_FETCH = 16


@jit
def clear_chain(m: Mmu, t: int) -> None:
    """Forget the shadow pages of the fault."""
    for level in range(6):
        m.task[t].chain[level] = NOT_LOOKED_UP


@jit
def begin_fault(m: Mmu, t: int) -> None:
    """The task enters a fault: nothing of a walk or of the chain is known yet."""
    m.task[t].fault_state = FaultState.FAULT
    m.task[t].walk_top = 0
    m.task[t].leaf_access = 0
    m.task[t].linked = 0
    clear_chain(m, t)


@jit
def begin_walk(m: Mmu, t: int, addr: int, code: int) -> None:
    """kvm_mmu_pagetable_walk."""
    task = m.task[t]
    task.walk_addr = addr
    task.walk_code = code
    own = task.write == WriteWalk.OF_FAULT
    task.write = 0 if own or not code & PFERR_WRITE or code & PFERR_PRESENT else WriteWalk.WALKED
    begin_fault(m, t)


@jit
def add_element(m: Mmu, t: int, pte: int, level: int) -> None:
    """kvm_mmu_paging_element; a level that is not below the last one restarts the walk."""
    task = m.task[t]
    if level < 1 or level > 5:
        return
    if task.walk_top == 0 or level >= task.walk_leaf:
        task.walk_top = level
    task.walk_leaf = level
    task.pte[level] = pte
    task.leaf_access = 0


@jit
def note_first_element(m: Mmu, t: int, vm: int) -> None:
    """The entry of the guest's top table, just read, may show that another root is in use."""
    task = m.task[t]
    top = task.walk_top
    if top > 3 and top == task.walk_leaf and task.pte[top] & 1:
        note_root_of_walk(m, t, vm, top, walk_index(m, t, top), pte_gfn(task.pte[top]))


@jit
def pte_gfn(pte: int) -> int:
    """The gfn in a guest page-table entry."""
    return spte_pfn(pte)


@jit
def is_32bit(task_row: int, m: Mmu) -> bool:
    """True for a guest with 4-byte entries: its walk begins at level 2."""
    return m.task[task_row].walk_top == 2


@jit
def root_level(m: Mmu, t: int) -> int:
    """Level of the shadow root of the walk; the page directories below a PAE PDPTE are roots themselves."""
    top = m.task[t].walk_top
    return 2 if top == 3 else top


@jit
def leaf_gfn(m: Mmu, t: int) -> int:
    """The gfn that the walk translates to."""
    task = m.task[t]
    leaf = task.walk_leaf
    bits = 9 * (leaf - 1)
    if leaf == 2 and is_32bit(t, m):
        bits = 10  # a 4 MiB page
    below = (1 << bits) - 1
    return (pte_gfn(task.pte[leaf]) & ~below) | ((task.walk_addr >> 12) & below)


@jit
def walk_access(m: Mmu, t: int, down_to: int, vm: int) -> int:
    """Access that the guest entries from the top to level ``down_to`` allow (gpte_access and its AND)."""
    task = m.task[t]
    top = task.walk_top
    if top == 3:
        top = 2  # a PDPTE carries no permissions
    common = -1
    found = 0
    for level in range(top, down_to - 1, -1):
        common &= task.pte[level]
        found |= task.pte[level]
    # 4-byte entries have no NX bit
    return gpte_access(common, 0 if is_32bit(t, m) else found, m.vm[vm].layout)


@jit
def guest_has_dirty_bits(m: Mmu, t: int, layout: int) -> bool:
    """PT_HAVE_ACCESSED_DIRTY(): always but in EPT, where the guest's EPTP decides, and with it the role."""
    root = m.task[t].root
    return layout == LEGACY or (root >= 0 and not m.sp[root].key & Role.AD_DISABLED)


@jit
def leaf_access(m: Mmu, t: int, vm: int) -> int:
    """walker.pte_access: no write through a clean leaf unless this access dirties it (protect_clean_gpte)."""
    task = m.task[t]
    if task.leaf_access:
        return task.leaf_access - 1
    access = walk_access(m, t, task.walk_leaf, vm)
    layout = m.vm[vm].layout
    if (
        not task.walk_code & PFERR_WRITE
        and gpte_is_clean(task.pte[task.walk_leaf], layout)
        and guest_has_dirty_bits(m, t, layout)
    ):
        access &= ~ACC_WRITE
    task.leaf_access = access + 1
    return access


@jit
def walk_index(m: Mmu, t: int, level: int) -> int:
    """Index into the table at ``level`` that the fault's address selects."""
    task = m.task[t]
    addr = task.walk_addr if task.walk_top else task.req_gfn << 12
    return (addr >> (12 + 9 * (level - 1))) & 511


@jit
def find_any_access(m: Mmu, gfn: int, key: int) -> int:
    """A live page that differs from ``key`` in access only; the one first in the hash chain, or -1."""
    i = int(m.hash[page_bucket(gfn, key, m.hash.shape[0])])
    while i:
        if (
            m.sp[i].gfn == gfn
            and not (m.sp[i].key ^ key) & ~Role.ACCESS
            and m.sp[i].page_flags & PageFlag.LIVE
        ):
            return i
        i = m.sp[i].next
    return -1


@jit
def find_root(m: Mmu, t: int, vm: int) -> int:
    """The root of the walk: the task's, unless another one leads to the table read."""
    task = m.task[t]
    top = task.walk_top
    root = live_root(m, t, vm)
    if root < 0:
        return -1
    key = m.sp[root].key
    if key_level(key) == top + 1:
        # a guest with fewer levels than the host: its own top table hangs below a passthrough root
        return linked_child(m, root, walk_index(m, t, top + 1))
    if top == 3 and key_level(key) == 2:
        gfn = pte_gfn(task.pte[3])
        return root if m.sp[root].gfn == gfn else find_shadow_page(m, gfn, key)
    if top == 2 and key & Role.HAS_4_BYTE_GPTE:
        quadrant = (task.walk_addr >> 30) & 3
        return find_shadow_page(m, m.sp[root].gfn, (key & ~Role.QUADRANT) | (quadrant << QUADRANT_SHIFT))
    if task.walk_leaf == top:
        return root
    gfn = pte_gfn(task.pte[top])
    index = walk_index(m, t, top)
    place = root_that_leads_to(m, t, vm, top, index, gfn)
    if place != NOT_CACHED:
        return use_root(m, t, place) if place else root
    return other_root(m, t, vm, top, index, gfn)


@jit
def live_root(m: Mmu, t: int, vm: int) -> int:
    """The task's root, another one of its cache if that one was zapped, or -1."""
    for place in range(PREV_ROOTS + 1):
        root = cached_root(m, t, vm, place)
        if root >= 0:
            return use_root(m, t, place) if place else root
    return -1


@jit
def other_root(m: Mmu, t: int, vm: int, top: int, index: int, gfn: int) -> int:
    """A root of the VM, not known to be in the task's cache, that leads to the table of ``gfn``."""
    task = m.task[t]
    for i in range(ROOTS):
        other = m.vm[vm].roots[i] - 1
        if not is_root(m, other, vm) or key_level(m.sp[other].key) != top:
            continue
        child = linked_child(m, other, index)
        if child >= 0 and m.sp[child].gfn == gfn:
            task.root = other
            return other
    return task.root


@jit
def template_key(m: Mmu, t: int, vm: int, direct_fault: bool) -> int:
    """A key with the role bits that every page below the task's root shares, -1 if no root is known."""
    root = m.task[t].direct_root if direct_fault else m.task[t].root
    if root >= 0 and m.sp[root].page_flags & PageFlag.LIVE and key_vm(m.sp[root].key) == vm:
        key = m.sp[root].key
    else:
        return -1
    return key & ~(Role.LEVEL | Role.QUADRANT | Role.DIRECT | Role.ACCESS)


@jit
def look_up(m: Mmu, t: int, vm: int, level: int) -> int:
    """The page at ``level`` of this fault by its identity, where no link is known."""
    task = m.task[t]
    direct_fault = task.walk_top == 0
    key = template_key(m, t, vm, direct_fault)
    if key < 0:
        return -1
    key |= level
    if direct_fault or level < task.walk_leaf:
        if task.fault_state != FaultState.REQUESTED and direct_fault:
            return -1
        target = task.req_gfn if direct_fault else leaf_gfn(m, t)
        gfn = target >> (9 * level) << (9 * level)
        access = ACC_ALL if direct_fault else leaf_access(m, t, vm)
        key |= Role.DIRECT
        if key & Role.HAS_4_BYTE_GPTE:
            key |= (walk_index(m, t, level + 1) & 1) << QUADRANT_SHIFT
    else:
        gfn = pte_gfn(task.pte[level + 1])
        access = walk_access(m, t, level + 1, vm)
        if key & Role.HAS_4_BYTE_GPTE:
            key |= (walk_index(m, t, level + 1) & 1) << QUADRANT_SHIFT
    sp = find_shadow_page(m, gfn, key | (access << ACCESS_SHIFT))
    return sp if sp >= 0 else find_any_access(m, gfn, key)


@jit
def top_level(m: Mmu, t: int) -> int:
    """Level of the root of the fault, 0 if unknown."""
    if m.task[t].walk_top:
        return root_level(m, t)
    root = m.task[t].direct_root
    return key_level(m.sp[root].key) if root >= 0 and m.sp[root].page_flags & PageFlag.LIVE else 0


@jit
def find_direct_root(m: Mmu, t: int) -> int:
    """The direct root over the requested gfn; a nonpaging guest under PAE roots has four, one a GiB."""
    root = m.task[t].direct_root
    if root < 0 or not m.sp[root].page_flags & PageFlag.LIVE:
        return -1
    key = m.sp[root].key
    shift = 9 * key_level(key)
    gfn = m.task[t].req_gfn >> shift << shift
    return root if m.sp[root].gfn == gfn else find_shadow_page(m, gfn, key)


@jit
def is_known(m: Mmu, sp: int, level: int) -> bool:
    """False for an entry of the chain that is not looked up yet, or whose page was zapped meanwhile."""
    if sp < 0:
        return sp != NOT_LOOKED_UP
    return m.sp[sp].page_flags & PageFlag.LIVE != 0 and key_level(m.sp[sp].key) == level


@jit
def chain(m: Mmu, t: int, vm: int, level: int) -> int:
    """The shadow page at ``level`` that the fault of task ``t`` walks through, or -1."""
    top = top_level(m, t)
    if level > top or top > 5:
        return -1
    task = m.task[t]
    if not is_known(m, task.chain[top], top):
        task.chain[top] = find_root(m, t, vm) if task.walk_top else find_direct_root(m, t)
    for at in range(top - 1, level - 1, -1):
        if is_known(m, task.chain[at], at):
            continue
        parent = task.chain[at + 1]
        sp = linked_child(m, parent, walk_index(m, t, at + 1)) if parent >= 0 else -1
        if sp < 0:
            sp = look_up(m, t, vm, at)
        task.chain[at] = sp
    return task.chain[level]


@jit
def walked(m: Mmu, t: int) -> None:
    """FNAME(fetch) walked the pages of the chain: clear_sp_write_flooding_count()."""
    task = m.task[t]
    if task.walk_top == 0:
        return
    for level in range(task.walk_leaf, task.walk_top + 1):
        sp = task.chain[level]
        if sp > 0:
            m.sp[sp].page_flags &= ~PageFlag.FLOOD


@jit
def in_fault(m: Mmu, t: int) -> bool:
    """True while a page that is got belongs below the root of the task's fault."""
    state = m.task[t].fault_state
    return state == FaultState.REQUESTED or (state == FaultState.FAULT and m.task[t].walk_top != 0)


@jit
def spte_requested(m: Mmu, t: int, gfn: int) -> None:
    """kvm_mmu_spte_requested: a walk that leads elsewhere was the emulator's, and the fault is a direct one.

    Kernels such as 5.10 print the frame of the fault's address, which may be virtual.
    """
    task = m.task[t]
    if task.walk_top:
        if task.fault_state != FaultState.DONE and gfn == task.walk_addr >> 12:
            gfn = leaf_gfn(m, t)
        if task.fault_state == FaultState.DONE or leaf_gfn(m, t) != gfn:
            task.walk_top = 0
            clear_chain(m, t)
    task.fault_state = FaultState.REQUESTED
    task.req_gfn = gfn


@jit
def finish_fault(m: Mmu, t: int) -> None:
    """The fault set its SPTE."""
    m.task[t].fault_state = FaultState.DONE
