"""Plays the program of a scenario: accesses of the guests, ioctls of the VMMs, markers.

The one kernel of the model.  It comes back when arrays are to be enlarged, from time to time so that an
interrupt is noticed, at an error and at the end, and goes on where it was.
"""

from __future__ import annotations

from replay.jit import by_reference, jit, kernel
from replay.synth.kvm.events import LOCKED, TEXT, UNLOCKED, print_event
from replay.synth.kvm.fault import NO_TABLES, OK, page_fault, permits, used_by_cpu
from replay.synth.kvm.ioctl import clear_dirty_log, delete_slot, set_dirty_log, unmap
from replay.synth.kvm.lines import flush
from replay.synth.kvm.root import load_root, put_root, reload_root
from replay.synth.kvm.spte import EPT
from replay.synth.kvm.state import NONE, Model, has_room, leaf_page, rehash, spte_index
from replay.synth.kvm.twister import random_below, shuffle
from replay.synth.kvm.zap import change_mmu_pages, prepare_zap_page

IOCTL_US, FAULT_US = 1000, 40
"""Time that passes before an ioctl of the VMM and before an access."""
BUDGET = 1 << 24
"""Instructions and accesses between two returns, of which a buffer that is written counts for many."""
WORDS_A_TASK = 4

# -- instructions, Model.program -------------------------------------------------------------------
DO = 0
DEPTH = 1  # repeats around it
VM = 2
STEP_TEXT = 3  # place of the line of the VMM in Model.words
ARGS = 4
PROGRAM_COLUMNS = 12
END, REPEAT, AGAIN, MARK, TOUCH, LOAD, ZAP = range(7)
DIRTY_LOG, CLEAR, DELETE, LIMIT, MANUAL, UNMAP, UNMAP_SLOT = range(7, 14)
ACCESS_RANDOM = 3

# -- what the kernel returns, beside the refusals of fault.py --------------------------------------
DONE, GROW, PAUSED = -1, -2, -3
NO_VCPU, NOT_LOADED, TDP_STAYS, DELETED, NOT_LOGGED, BEYOND_SLOT, NO_ADDRESS = range(-4, -11, -1)
ADDRESS_END = 1 << 60


@kernel
def play(model: Model) -> int:
    """Continue the program until it is done or cannot continue; returns the reason."""
    m = by_reference(model)
    if m.ctl.grew:
        m.ctl.grew = 0
        rehash(m.sp, m.page_heads, m.ctl.sp_top)
        rehash(m.table, m.table_heads, m.ctl.table_top)
        rehash(m.chunk, m.chunk_heads, m.ctl.chunk_top)
    m.ctl.budget = BUDGET
    result = OK
    while result == OK:
        result = _step(m, m.program[m.ctl.pc])
    if result == DONE:
        flush(m)
    return result


@jit
def _step(m: Model, step) -> int:
    """One instruction; the next one follows if it returns OK."""
    do, vm = step[DO], step[VM]
    ctl = m.ctl
    ctl.budget -= 1
    if ctl.budget < 0:
        return PAUSED
    following = ctl.pc + 1
    result = OK
    if do == END:
        return DONE
    if do == REPEAT:
        m.rounds[step[DEPTH] + 1] = 0
        if step[ARGS] == 0:
            following = step[ARGS + 1]
    elif do == AGAIN:
        m.rounds[step[DEPTH] + 1] += 1
        if m.rounds[step[DEPTH] + 1] < step[ARGS]:
            following = step[ARGS + 1]
    elif do == TOUCH:
        result = _touch(m, vm, step)
    elif do == LOAD or do == ZAP:
        result = _root_step(m, vm, step)
    elif do == DIRTY_LOG or do == CLEAR or do == DELETE:
        result = _slot_step(m, vm, step)
    elif do == UNMAP_SLOT:
        result = _unmap_step(m, vm, step)
    else:
        ctl.clock += IOCTL_US
        lock = LOCKED if do == UNMAP else UNLOCKED
        print_event(m, m.vm[vm].task, lock, TEXT, step[STEP_TEXT], 0, 0, 0, 0, 0, 0)
        if do == LIMIT:
            change_mmu_pages(m, vm, m.vm[vm].task, step[ARGS])
        elif do == MANUAL:
            m.vm[vm].all_set = step[ARGS]
    if result == OK:
        ctl.pc = following
    return result


@jit
def _touch(m: Model, vm: int, step) -> int:
    """Accesses of a vCPU, one every ``stride`` bytes."""
    root, vcpu, start, count = step[ARGS], step[ARGS + 1], step[ARGS + 2], step[ARGS + 3]
    stride = step[ARGS + 4]
    access, in_order, advance = step[ARGS + 5] & 3, step[ARGS + 5] >> 2 == 0, step[ARGS + 6]
    ctl = m.ctl
    if vcpu >= m.vm[vm].vcpus:
        return NO_VCPU
    now = m.rounds[step[DEPTH]]
    end = step[ARGS + 7]
    if end > ADDRESS_END or (advance and now > (ADDRESS_END - end) // advance):
        return NO_ADDRESS
    start += now * advance
    task = m.vm[vm].task + WORDS_A_TASK * (vcpu + 1)
    if ctl.number < 0:
        if not has_room(m):
            return GROW
        if not in_order:
            shuffle(m, count)
        if load_root(m, vm, task, vcpu, root) < 0:
            return NO_TABLES
        ctl.number = 0
    top = m.root[root].sp
    for number in range(ctl.number, count):
        ctl.budget -= 1
        if ctl.budget < 0:
            ctl.number = number
            return PAUSED
        addr = start + stride * (number if in_order else m.order[number])
        kind = random_below(m, 2) if access == ACCESS_RANDOM else access
        leaf = leaf_page(m, top, addr)
        if permits(m, m.spte[leaf, spte_index(m, leaf, addr)], kind):
            if m.layout[EPT]:
                used_by_cpu(m, vm, leaf, addr, kind)
            continue
        ctl.clock += FAULT_US
        ctl.access = kind
        result = page_fault(m, vm, task, vcpu, root, top, addr, kind)
        if result != OK:
            return result
        if m.layout[EPT]:
            used_by_cpu(m, vm, leaf_page(m, top, addr), addr, kind)
        if not has_room(m):
            ctl.number = number + 1
            return GROW
    ctl.number = NONE
    return OK


@jit
def _root_step(m: Model, vm: int, step) -> int:
    """The guest loads a root anew (its page tables are synced), or a root is dropped and recycled."""
    root, vcpu = step[ARGS], step[ARGS + 1]
    if not has_room(m):
        return GROW
    if vcpu >= m.vm[vm].vcpus:
        return NO_VCPU
    sp = m.root[root].sp
    if sp < 0 and step[DO] == ZAP:
        return NOT_LOADED
    if sp >= 0 and m.sp[sp].tdp:
        return TDP_STAYS
    m.ctl.clock += IOCTL_US
    task = m.vm[vm].task + WORDS_A_TASK * (vcpu + 1)
    if sp < 0:
        return OK if load_root(m, vm, task, vcpu, root) >= 0 else NO_TABLES
    if step[DO] == ZAP:
        put_root(m, sp)
        prepare_zap_page(m, task, sp)
    else:
        reload_root(m, vm, task, vcpu, root)
    return OK


@jit
def _slot_step(m: Model, vm: int, step) -> int:
    """Dirty logging and deletion of a memslot."""
    do, slot, task = step[DO], step[ARGS], m.vm[vm].task
    first_page, count = step[ARGS + 1], step[ARGS + 2]
    if not m.slot[slot].is_live:
        return DELETED
    if do == CLEAR:
        if first_page + count > m.slot[slot].end - m.slot[slot].base_gfn:
            return BEYOND_SLOT
        if not m.slot[slot].dirty_log:
            return NOT_LOGGED
        m.ctl.want_chunks = count // 512 + 2
        if not has_room(m):
            return GROW
        m.ctl.want_chunks = 0
    m.ctl.clock += IOCTL_US
    print_event(m, task, UNLOCKED, TEXT, step[STEP_TEXT], 0, 0, 0, 0, 0, 0)
    if do == DIRTY_LOG:
        m.slot[slot].dirty_log = first_page
        set_dirty_log(m, vm, task, slot)
    elif do == CLEAR:
        clear_dirty_log(m, vm, task, slot, first_page, count, step[ARGS + 3])
    else:
        delete_slot(m, vm, task, slot)
    return OK


@jit
def _unmap_step(m: Model, vm: int, step) -> int:
    """An mmu notifier takes memory of one slot away."""
    slot, first, last = step[ARGS], step[ARGS + 1], step[ARGS + 2]
    if m.slot[slot].is_live:
        m.ctl.want_moved = min(m.ctl.chunk_top, (last - first >> 9) + 2)
        if not has_room(m):
            return GROW
        m.ctl.want_moved = 0
        unmap(m, vm, m.vm[vm].task, slot, first, last)
    return OK
