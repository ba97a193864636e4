"""Page faults: how KVM of Linux 6.1 handles one access of a guest, and what that prints, in order."""

from __future__ import annotations

from replay.jit import jit
from replay.synth.kvm.events import (
    FAST_PAGE_FAULT,
    IRQS_OFF,
    PAGE_FAULT,
    PFERR_F,
    PFERR_P,
    PFERR_TEXT,
    PFERR_U,
    PFERR_W,
    UNLOCKED,
    WALK,
    print_event,
)
from replay.synth.kvm.guest import (
    find_mapping,
    is_clean,
    make_table,
    mapped_gfn,
    permits_walk,
    print_elements,
    set_dirty_bit,
    shadow_of,
    walk_access,
)
from replay.synth.kvm.map import shadow_map, tdp_map
from replay.synth.kvm.memory import gfn_to_memslot, mark_page_dirty
from replay.synth.kvm.spte import (
    ACC_ALL,
    ACCESSED,
    DIRTY,
    EPT,
    EPT_EXEC,
    EPT_READ,
    FOUR_LETTERS,
    L1,
    MMU_WRITABLE,
    NESTED_WITHOUT_AD,
    PAGE_SHIFT,
    PML,
    SPTE_W,
    can_fetch,
)
from replay.synth.kvm.state import KIND_SHADOW, NONE, ROOT_LEVEL, Model, leaf_page, spte_index
from replay.synth.kvm.zap import make_mmu_pages_available

READ, WRITE, EXEC = 0, 1, 2
OK, NOT_MAPPED, NO_TABLES, NO_SLOT, READ_ONLY, EMULATED, FORBIDDEN = range(7)
"""Why the model cannot handle an access; ``m.ctl.detail`` holds the address or gfn."""
RIP_READ, RIP_WRITE, RIP_EXEC = 0x1001CC, 0x100219, 0x100050
PFERR_GUEST_FINAL = 1 << 32
EPT_FINAL = 0x180  # of an exit qualification: a guest address, and its translation was what failed
GOLDEN_RATIO = 0x9E3779B1


@jit
def permits(m: Model, spte: int, access: int) -> bool:
    """Whether the hardware lets ``access`` through."""
    if access == WRITE:
        return spte & SPTE_W != 0
    return spte & 1 != 0 if access == READ else can_fetch(m.layout, spte)


@jit
def used_by_cpu(m: Model, vm: int, sp: int, addr: int, access: int) -> None:
    """The hardware sets A and D in an SPTE of EPT, and PML logs what it makes dirty."""
    if m.sp[sp].guest_mode == NESTED_WITHOUT_AD:
        return
    index = spte_index(m, sp, addr)
    spte = m.spte[sp, index]
    m.spte[sp, index] = spte | m.layout[ACCESSED]
    if access != WRITE or spte & m.layout[DIRTY]:
        return
    m.spte[sp, index] |= m.layout[DIRTY]
    if m.layout[PML] and m.sp[sp].guest_mode == L1:
        gfn = addr >> PAGE_SHIFT
        mark_page_dirty(m, gfn_to_memslot(m, vm, gfn), gfn)


@jit
def page_fault(m: Model, vm: int, task: int, vcpu: int, root: int, top: int, addr: int, access: int) -> int:
    """An access that the leaf for ``addr`` below ``top`` does not permit: OK, or why it cannot be handled."""
    leaf = leaf_page(m, top, addr)
    spte = m.spte[leaf, spte_index(m, leaf, addr)]
    gfn, mapping = addr >> PAGE_SHIFT, NONE
    if m.root[root].map < m.root[root].map_end:
        mapping = find_mapping(m, root, addr)
        if mapping < 0:
            m.ctl.detail = addr
            return NOT_MAPPED
        for level in range(ROOT_LEVEL, m.mapping[mapping].level - 1, -1):
            if make_table(m, vm, root, level, addr) < 0:
                return NO_TABLES
        gfn = mapped_gfn(m, mapping, addr)
    m.ctl.detail = gfn
    slot = gfn_to_memslot(m, vm, gfn)
    if slot < 0:
        return NO_SLOT
    granted = m.layout[ACC_ALL] if mapping < 0 else walk_access(m, root, mapping, addr, access == WRITE)
    refusal = _refusal(m, vm, slot, gfn, granted, access)
    if refusal:
        return refusal
    rip = RIP_READ
    if access != READ:
        rip = RIP_WRITE if access == WRITE else RIP_EXEC
    pferr = _ept_error(m, spte, access) if m.layout[EPT] else _error(m, root, spte, access)
    code = pferr
    if m.layout[EPT]:
        code = EPT_FINAL | 1 << access | (spte & (EPT_READ | SPTE_W | EPT_EXEC)) << 3
    elif m.root[root].kind != KIND_SHADOW:
        code |= PFERR_GUEST_FINAL
    print_event(m, task, UNLOCKED, PAGE_FAULT, vcpu, rip, addr, code, 0, 0, 0)
    if mapping >= 0:
        print_event(m, task, UNLOCKED, WALK, addr, pferr, PFERR_TEXT + pferr, 0, 0, 0, 0)
        print_elements(m, task, root, mapping, addr)
        if access == WRITE and is_clean(m, root, mapping, addr):
            set_dirty_bit(m, task, root, mapping, addr)
    elif spte and access == WRITE and _fast_page_fault(m, task, vcpu, slot, leaf, addr, pferr):
        return OK
    if m.sp[top].tdp:
        tdp_map(m, vm, task, top, slot, gfn)
        return OK
    make_mmu_pages_available(m, vm, task)
    shadow_map(m, vm, task, root, top, slot, mapping, granted, gfn, addr)
    return _refusal(m, vm, slot, gfn, granted, access)  # the fault may have begun to shadow this very gfn


@jit
def _refusal(m: Model, vm: int, slot: int, gfn: int, granted: int, access: int) -> int:
    """READ_ONLY, EMULATED (a write to a shadowed table) or FORBIDDEN; OK if the access is allowed."""
    if access == WRITE:
        if m.slot[slot].readonly:
            return READ_ONLY
        shadow = shadow_of(m, vm, gfn)
        if shadow >= 0 and m.sp[shadow].level > 1:
            return EMULATED
    return OK if permits_walk(m, granted, access == WRITE, access == EXEC) else FORBIDDEN


@jit
def _error(m: Model, root: int, spte: int, access: int) -> int:
    """The error code of a page fault, but for the bits of nested paging."""
    user = m.root[root].user or m.root[root].kind != KIND_SHADOW
    code = (PFERR_U if user else 0) | (PFERR_P if spte else 0)
    if access == WRITE:
        return code | PFERR_W
    return code | PFERR_F if access == EXEC else code


@jit
def _ept_error(m: Model, spte: int, access: int) -> int:
    """handle_ept_violation(): the error code that stands for an exit qualification; reads are U up to 7.1."""
    code = PFERR_P if spte & (EPT_READ | SPTE_W | EPT_EXEC) else 0
    if access == WRITE:
        return code | PFERR_W
    if access == EXEC:
        return code | PFERR_F
    return code if m.layout[FOUR_LETTERS] else code | PFERR_U


@jit
def _fast_page_fault(m: Model, task: int, vcpu: int, slot: int, sp: int, addr: int, pferr: int) -> bool:
    """fast_page_fault(): a write-protected SPTE is made writable without mmu_lock."""
    index = spte_index(m, sp, addr)
    old = m.spte[sp, index]
    fixed = old & m.layout[MMU_WRITABLE] != 0 and not (m.sp[sp].level > 1 and m.slot[slot].dirty_log)
    if fixed:
        m.spte[sp, index] = old | SPTE_W
        mark_page_dirty(m, slot, addr >> PAGE_SHIFT)
    sptep = m.sp[sp].spt + 8 * index & 0xFFFFFFFF
    # %p prints a hash; in two steps, since the product has more than 63 bits
    hashed = sptep * (GOLDEN_RATIO >> 16) << 16 & 0xFFFFFFFF
    hashed = hashed + sptep * (GOLDEN_RATIO & 0xFFFF) & 0xFFFFFFFF
    lock, new = UNLOCKED if m.sp[sp].tdp else IRQS_OFF, m.spte[sp, index]
    flags, is_fixed = PFERR_TEXT + pferr, 1 if fixed else 0
    print_event(m, task, lock, FAST_PAGE_FAULT, vcpu, addr, flags, hashed, old, new, is_fixed)
    return fixed
