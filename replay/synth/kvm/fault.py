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
    ACC_ALL,
    ACC_EXEC,
    ACC_WRITE,
    find_mapping,
    make_table,
    mapped_gfn,
    print_elements,
    shadow_of,
    walk_access,
)
from replay.synth.kvm.map import shadow_map, tdp_map
from replay.synth.kvm.memory import gfn_to_memslot, mark_page_dirty
from replay.synth.kvm.spte import SPTE_MMU_W, SPTE_NX, SPTE_W
from replay.synth.kvm.state import (
    CTL_DETAIL,
    KIND_SHADOW,
    MAP_LEVEL,
    NONE,
    PAGE_SHIFT,
    ROOT_KIND,
    ROOT_LEVEL,
    ROOT_MAP,
    ROOT_MAP_END,
    ROOT_USER,
    SLOT_DIRTY_LOG,
    SLOT_READONLY,
    SP_LEVEL,
    SP_SPT,
    SP_TDP,
    Model,
    leaf_page,
    spte_index,
)
from replay.synth.kvm.zap import make_mmu_pages_available

READ, WRITE, EXEC = 0, 1, 2
OK, NOT_MAPPED, NO_TABLES, NO_SLOT, READ_ONLY, EMULATED, FORBIDDEN = range(7)
"""Why the model cannot handle an access; ``CTL_DETAIL`` holds the address or gfn."""
RIP_READ, RIP_WRITE, RIP_EXEC = 0x1001CC, 0x100219, 0x100050
PFERR_GUEST_FINAL = 1 << 32
GOLDEN_RATIO = 0x9E3779B1


@jit
def permits(spte: int, access: int) -> bool:
    """Whether the hardware lets ``access`` through."""
    if access == WRITE:
        return spte & SPTE_W != 0
    return spte != 0 and (access == READ or spte & SPTE_NX == 0)


@jit
def page_fault(m: Model, vm: int, task: int, vcpu: int, root: int, top: int, addr: int, access: int) -> int:
    """An access that the leaf for ``addr`` below ``top`` does not permit: OK, or why it cannot be handled."""
    leaf = leaf_page(m, top, addr)
    spte = m.spte[leaf, spte_index(m, leaf, addr)]
    gfn, mapping = addr >> PAGE_SHIFT, NONE
    if m.root[root, ROOT_MAP] < m.root[root, ROOT_MAP_END]:
        mapping = find_mapping(m, root, addr)
        if mapping < 0:
            m.ctl[CTL_DETAIL] = addr
            return NOT_MAPPED
        for level in range(ROOT_LEVEL, m.mapping[mapping, MAP_LEVEL] - 1, -1):
            if make_table(m, vm, root, level, addr) < 0:
                return NO_TABLES
        gfn = mapped_gfn(m, mapping, addr)
    m.ctl[CTL_DETAIL] = gfn
    slot = gfn_to_memslot(m, vm, gfn)
    if slot < 0:
        return NO_SLOT
    granted = ACC_ALL if mapping < 0 else walk_access(m, root, mapping)
    refusal = _refusal(m, vm, slot, gfn, granted, access)
    if refusal:
        return refusal
    is_shadow = m.root[root, ROOT_KIND] == KIND_SHADOW
    user = m.root[root, ROOT_USER] or not is_shadow
    pferr = (PFERR_U if user else 0) | (PFERR_P if spte else 0)
    rip = RIP_READ
    if access == WRITE:
        pferr, rip = pferr | PFERR_W, RIP_WRITE
    elif access == EXEC:
        pferr, rip = pferr | PFERR_F, RIP_EXEC
    code = pferr if is_shadow else pferr | PFERR_GUEST_FINAL
    print_event(m, task, UNLOCKED, PAGE_FAULT, vcpu, rip, addr, code, 0, 0, 0)
    if mapping >= 0:
        print_event(m, task, UNLOCKED, WALK, addr, pferr, PFERR_TEXT + pferr, 0, 0, 0, 0)
        print_elements(m, task, root, mapping, addr)
    elif spte and access == WRITE and _fast_page_fault(m, task, vcpu, slot, leaf, addr, pferr):
        return OK
    if m.sp[top, SP_TDP]:
        tdp_map(m, vm, task, top, slot, gfn)
        return OK
    make_mmu_pages_available(m, vm, task)
    shadow_map(m, vm, task, root, top, slot, mapping, granted, gfn, addr)
    return _refusal(m, vm, slot, gfn, granted, access)  # the fault may have begun to shadow this very gfn


@jit
def _refusal(m: Model, vm: int, slot: int, gfn: int, granted: int, access: int) -> int:
    if access == WRITE:
        if m.slot[slot, SLOT_READONLY]:
            return READ_ONLY
        shadow = shadow_of(m, vm, gfn)
        if shadow >= 0 and m.sp[shadow, SP_LEVEL] > 1:
            return EMULATED
    if (access == WRITE and not granted & ACC_WRITE) or (access == EXEC and not granted & ACC_EXEC):
        return FORBIDDEN
    return OK


@jit
def _fast_page_fault(m: Model, task: int, vcpu: int, slot: int, sp: int, addr: int, pferr: int) -> bool:
    """fast_page_fault(): a write-protected SPTE is made writable without mmu_lock."""
    index = spte_index(m, sp, addr)
    old = m.spte[sp, index]
    fixed = old & SPTE_MMU_W != 0 and not (m.sp[sp, SP_LEVEL] > 1 and m.slot[slot, SLOT_DIRTY_LOG])
    if fixed:
        m.spte[sp, index] = old | SPTE_W
        mark_page_dirty(m, slot, addr >> PAGE_SHIFT)
    sptep = m.sp[sp, SP_SPT] + 8 * index & 0xFFFFFFFF
    # %p prints a hash; in two steps, since the product has more than 63 bits
    hashed = sptep * (GOLDEN_RATIO >> 16) << 16 & 0xFFFFFFFF
    hashed = hashed + sptep * (GOLDEN_RATIO & 0xFFFF) & 0xFFFFFFFF
    lock, new = UNLOCKED if m.sp[sp, SP_TDP] else IRQS_OFF, m.spte[sp, index]
    flags, is_fixed = PFERR_TEXT + pferr, 1 if fixed else 0
    print_event(m, task, lock, FAST_PAGE_FAULT, vcpu, addr, flags, hashed, old, new, is_fixed)
    return fixed
