"""Roots: loaded by vCPUs, loaded again, dropped."""

from __future__ import annotations

from replay.jit import jit
from replay.synth.kvm.events import EXISTING, GET_PAGE, LOCKED, NEW, NOTHING, SYNC_PAGE, print_page
from replay.synth.kvm.guest import make_table
from replay.synth.kvm.shadow_page import alloc_page, get_direct_page, get_indirect_page, write_protect_gfn
from replay.synth.kvm.spte import ACC_ALL, L1
from replay.synth.kvm.state import KIND_DIRECT, KIND_TDP, NONE, ROOT_LEVEL, Model
from replay.synth.kvm.zap import make_mmu_pages_available, next_unsync, prepare_zap_page


@jit
def load_root(m: Model, vm: int, task: int, vcpu: int, root: int) -> int:
    """kvm_mmu_load(): the root of a page table, obsolete roots being freed first.

    -1 where the guest's own root reaches beyond every slot.
    """
    while m.vm[vm].invalid_root >= 0:
        sp = m.vm[vm].invalid_root
        m.vm[vm].invalid_root = m.sp[sp].newer
        put_root(m, sp)
        prepare_zap_page(m, task, sp)
    m.vm[vm].last_invalid_root = NONE
    sp = m.root[root].sp
    kind = m.root[root].kind
    if sp >= 0:
        if kind != KIND_TDP and not m.loaded[root, vcpu]:
            print_page(m, task, LOCKED, GET_PAGE, sp, EXISTING)
            hold_root(m, vcpu, root)
        return sp
    if kind == KIND_TDP:
        sp = alloc_page(m, vm, 0, ROOT_LEVEL, 1, m.layout[ACC_ALL], L1)
        m.sp[sp].tdp = 1
        m.sp[sp].gen = m.vm[vm].gen
        m.vm[vm].tdp = sp
        print_page(m, task, LOCKED, GET_PAGE, sp, NEW)
    else:
        make_mmu_pages_available(m, vm, task)
        if kind == KIND_DIRECT:
            sp = get_direct_page(m, vm, task, 0, ROOT_LEVEL, m.layout[ACC_ALL], L1)
        else:
            table = make_table(m, vm, root, ROOT_LEVEL, 0)
            if table < 0:
                return NONE
            sp = get_indirect_page(m, vm, task, table, ROOT_LEVEL, m.root[root].mode)
    m.sp[sp].root = root
    m.root[root].sp = sp
    if kind != KIND_TDP:
        hold_root(m, vcpu, root)
    return sp


@jit
def reload_root(m: Model, vm: int, task: int, vcpu: int, root: int) -> None:
    """The guest loads an existing root again: its page tables are synced."""
    sp = m.root[root].sp
    m.sp[sp].root_count -= m.loaded[root, vcpu]
    print_page(m, task, LOCKED, GET_PAGE, sp, EXISTING)
    hold_root(m, vcpu, root)
    position = next_unsync(m, sp, 0)
    while position >= 0:
        write_protect_gfn(m, vm, task, m.sp[m.ctl.found].gfn, 1)
        position = next_unsync(m, sp, position + 1)
    position = next_unsync(m, sp, 0)
    while position >= 0:
        page = m.ctl.found
        print_page(m, task, LOCKED, SYNC_PAGE, page, NOTHING)
        m.sp[page].unsync = 0
        m.vm[vm].unsync -= 1
        position = next_unsync(m, sp, position + 1)


@jit
def hold_root(m: Model, vcpu: int, root: int) -> None:
    """A vCPU's reference to a root that it has loaded."""
    m.sp[m.root[root].sp].root_count += 1
    m.loaded[root, vcpu] = 1


@jit
def put_root(m: Model, sp: int) -> None:
    """All vCPUs drop a root."""
    m.sp[sp].root_count = 0
    for vcpu in range(m.loaded.shape[1]):
        m.loaded[m.sp[sp].root, vcpu] = 0
