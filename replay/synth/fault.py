"""Page faults: how KVM of Linux 6.1 handles one access of a guest, and what that prints, in order."""

from __future__ import annotations

from functools import cache

from replay.synth.guest import ACC_ALL, ACC_EXEC, ACC_USER, ACC_WRITE, Walk, paging_element
from replay.synth.kvm import (
    NONLEAF,
    REMOVED_SPTE,
    SPTE_A,
    SPTE_D,
    SPTE_HOST_W,
    SPTE_MMU_PRESENT,
    SPTE_MMU_W,
    SPTE_NX,
    SPTE_P,
    SPTE_PS,
    SPTE_U,
    SPTE_W,
    Kvm,
    ShadowPage,
)
from replay.synth.memory import MemSlot
from replay.synth.scenario import Root
from replay.synth.toml import PAGE_SHIFT, pages
from replay.synth.write import Task

PFERR_P, PFERR_W, PFERR_U, PFERR_F = 1, 2, 4, 0x10
PFERR_GUEST_FINAL = 1 << 32
PFERR_OF = {"read": 0, "write": PFERR_W, "exec": PFERR_F}
RIP_OF = {"read": 0x1001CC, "write": 0x100219, "exec": 0x100050}
PTE_PREFETCH_NUM = 8
TABLE_SPTES = 512


@cache
def pferr_text(pferr: int) -> str:
    """__print_flags() of kvm_mmu_trace_pferr_flags."""
    return "|".join(name for bit, name in ((1, "P"), (2, "W"), (4, "U"), (16, "F")) if pferr & bit)


def lookup(sp: ShadowPage, addr: int) -> tuple[ShadowPage, int, int]:
    """Page, index and leaf SPTE (0: none) at which a hardware walk for ``addr`` ends."""
    index = addr >> sp.shift & 511
    while index in sp.children:
        sp = sp.children[index]
        index = addr >> sp.shift & 511
    return sp, index, sp.leaves.get(index, 0)


def permits(spte: int, access: str) -> bool:
    """Whether the hardware lets ``access`` through."""
    if access == "write":
        return bool(spte & SPTE_W)
    return bool(spte) and (access == "read" or not spte & SPTE_NX)


def page_fault(
    kvm: Kvm, vcpu: int, root: Root, top: ShadowPage, addr: int, access: str, spte: int
) -> str | None:
    """An access that ``spte``, the leaf for ``addr`` below ``top`` or 0, does not permit.

    Returns why the model cannot handle it, or None.
    """
    task = kvm.vcpus[vcpu]
    walk = None
    gfn = addr >> PAGE_SHIFT
    if root.mappings:
        walk = kvm.guest[root.name].walk(addr)
        if walk is None:
            return f"nothing is mapped at {addr:#x}"
        gfn = walk.gfn
    slot = kvm.find_slot(gfn)
    if slot is None:
        return f"gfn {gfn:#x} is in no slot"
    refusal = _refusal(kvm, slot, gfn, walk, access)
    if refusal is not None:
        return refusal
    user = root.user or root.kind != "shadow"
    pferr = PFERR_OF[access] | (PFERR_U if user else 0) | (PFERR_P if spte else 0)
    code = pferr | (0 if root.kind == "shadow" else PFERR_GUEST_FINAL)
    kvm.emit(
        task.unlocked,
        f"kvm_page_fault: vcpu {vcpu} rip {RIP_OF[access]:#x} address 0x{addr:016x} error_code {code:#x}",
    )
    if walk is not None:
        kvm.emit(task.unlocked, f"kvm_mmu_pagetable_walk: addr {addr:x} pferr {pferr:x} {pferr_text(pferr)}")
        for element in walk.upper:
            kvm.emit(task.unlocked, element)
        kvm.emit(task.unlocked, paging_element(walk.leaf, walk.leaf_level))
    elif spte and access == "write" and _fast_page_fault(kvm, task, vcpu, top, slot, addr, pferr):
        return None
    if top.tdp:
        _tdp_map(kvm, task, top, slot, gfn)
        return None
    kvm.make_mmu_pages_available(task)
    _shadow_map(kvm, task, root, top, slot, walk, gfn, addr)
    return _refusal(kvm, slot, gfn, walk, access)  # the fault may have begun to shadow this very gfn


def _refusal(kvm: Kvm, slot: MemSlot, gfn: int, walk: Walk | None, access: str) -> str | None:
    if access == "write" and slot.slot.readonly:
        return f"a write to gfn {gfn:#x}, in a read-only slot, leaves for user space"
    if access == "write" and gfn in kvm.shadowed and any(sp.level > 1 for sp in kvm.shadowed[gfn]):
        return f"a write to gfn {gfn:#x}, an upper guest page table, is emulated; the model cannot do that"
    granted = ACC_ALL if walk is None else walk.access
    if (access == "write" and not granted & ACC_WRITE) or (access == "exec" and not granted & ACC_EXEC):
        return f"the guest page tables forbid to {access} gfn {gfn:#x}"
    return None


def _fast_page_fault(
    kvm: Kvm, task: Task, vcpu: int, top: ShadowPage, slot: MemSlot, addr: int, pferr: int
) -> bool:
    """fast_page_fault(): a write-protected SPTE is made writable without mmu_lock."""
    sp, index, old = lookup(top, addr)
    fixed = bool(old & SPTE_MMU_W) and not (sp.level > 1 and slot.dirty_log)
    if fixed:
        sp.leaves[index] = old | SPTE_W
        _mark_dirty(slot, addr >> PAGE_SHIFT)
    hashed = (sp.spt + 8 * index) * 0x9E3779B1 & 0xFFFFFFFF
    kvm.emit(
        task.unlocked if sp.tdp else task.irqs_off,
        f"fast_page_fault: vcpu {vcpu} gva {addr:x} error_code {pferr_text(pferr)} sptep {hashed:016x} "
        f"old {old:#x} new {sp.leaves[index]:x} spurious 0 fixed {fixed:d}",
    )
    return fixed


def host_level(kvm: Kvm, slot: MemSlot, gfn: int) -> int:
    """kvm_mmu_max_mapping_level(): what the host's pages and lpage_info allow."""
    for level in range(slot.slot.backing, 1, -1):
        base = gfn - gfn % pages(level)
        inside = slot.base_gfn <= base and base + pages(level) <= slot.end
        if inside and gfn >> 9 * (level - 1) not in kvm.huge_disallowed[level]:
            return level
    return 1


def _goal_level(kvm: Kvm, slot: MemSlot, gfn: int, most: int) -> int:
    """kvm_mmu_hugepage_adjust(): 4K only while the slot's dirty log is on."""
    return 1 if slot.dirty_log else min(most, host_level(kvm, slot, gfn))


def _request(kvm: Kvm, task: Task, slot: MemSlot, gfn: int, goal: int) -> None:
    kvm.emit(task.locked, f"kvm_mmu_spte_requested: gfn {gfn:x} pfn {slot.pfn(gfn):x} level {goal}")


def _shadow_map(
    kvm: Kvm, task: Task, root: Root, sp: ShadowPage, slot: MemSlot, walk: Walk | None, gfn: int, addr: int
) -> None:
    """FNAME(fetch)() with a walk, __direct_map() without."""
    guest_mode = root.kind == "nested"
    tables = walk.tables if walk else ()
    for table_gfn in tables[1:]:
        index = addr >> sp.shift & 511
        child = sp.children.get(index)
        if child is None:
            child = kvm.get_page(task, table_gfn, sp.level - 1, False, ACC_ALL, guest_mode)
            kvm.link(sp, index, child)
        sp = child
    goal = _goal_level(kvm, slot, gfn, walk.leaf_level if walk else 3)
    access = walk.access if walk else ACC_ALL
    _request(kvm, task, slot, gfn, goal)
    while sp.level > goal:
        index = addr >> sp.shift & 511
        child = sp.children.get(index)
        if child is None:
            child = kvm.get_page(task, gfn - gfn % pages(sp.level), sp.level - 1, True, access, guest_mode)
            kvm.link(sp, index, child)
        sp = child
    index = addr >> sp.shift & 511
    _set_spte(kvm, task, sp, index, gfn, access, slot, prefetch=False)
    if sp.level == 1:
        if sp.direct:
            _direct_prefetch(kvm, task, sp, index, slot)
        else:
            _indirect_prefetch(kvm, task, root, sp, index, addr)


def _tdp_map(kvm: Kvm, task: Task, sp: ShadowPage, slot: MemSlot, gfn: int) -> None:
    """kvm_tdp_mmu_map()."""
    goal = _goal_level(kvm, slot, gfn, 3)
    _request(kvm, task, slot, gfn, goal)
    while sp.level > goal:
        size = pages(sp.level)
        index = gfn >> 9 * (sp.level - 1) & 511
        child = sp.children.get(index)
        if child is None:
            base = gfn - gfn % size
            if index in sp.leaves:
                kvm.spte_changed(task, base, sp.level, sp.leaves[index], REMOVED_SPTE)
                kvm.drop_leaf(sp, index)
            child = ShadowPage(base, sp.level - 1, True, ACC_ALL, False, 0, kvm.host.table(), True)
            kvm.emit(task.locked, f"kvm_mmu_get_page: {child.text()} new")
            kvm.spte_changed(task, base, sp.level, 0, child.spt | NONLEAF)
            kvm.link(sp, index, child)
        sp = child
    _set_spte(kvm, task, sp, gfn >> 9 * (sp.level - 1) & 511, gfn, ACC_ALL, slot, prefetch=False)


def remove_table(kvm: Kvm, task: Task, sp: ShadowPage) -> None:
    """handle_removed_pt() of the TDP MMU: the page, then every one of its entries."""
    kvm.emit(task.locked, f"kvm_mmu_prepare_zap_page: {sp.text()}")
    for index in range(TABLE_SPTES):
        child = sp.children.pop(index, None)
        old = child.spt | NONLEAF if child else sp.leaves.get(index, 0)
        kvm.spte_changed(task, sp.gfn + index * pages(sp.level), sp.level, old, REMOVED_SPTE)
        if child:
            remove_table(kvm, task, child)
        elif old:
            kvm.drop_leaf(sp, index)


def _mark_dirty(slot: MemSlot, gfn: int) -> None:
    if slot.dirty_log:
        slot.dirty |= 1 << gfn - slot.base_gfn


def _may_write(kvm: Kvm, task: Task, gfn: int, access: int, prefetch: bool) -> bool:
    """mmu_try_to_unsync_pages(): a last-level guest page table may become writable, and unsync."""
    shadows = kvm.shadowed[gfn]
    if not access & ACC_WRITE or prefetch or any(sp.level > 1 for sp in shadows):
        return False
    for sp in shadows:
        if not sp.unsync:
            kvm.emit(task.locked_twice, f"kvm_mmu_unsync_page: {sp.text()}")
            sp.unsync = True
    return True


@cache
def _spte_bits(access: int, huge: bool, prefetch: bool, host_writable: bool) -> tuple[int, str]:
    """make_spte() but for the pfn, and the letters of kvm_mmu_set_spte."""
    spte = SPTE_P | SPTE_MMU_PRESENT
    spte |= (0 if prefetch else SPTE_A) | (SPTE_PS if huge else 0) | (SPTE_U if access & ACC_USER else 0)
    spte |= (0 if access & ACC_EXEC else SPTE_NX) | (SPTE_HOST_W if host_writable else 0)
    if access & ACC_WRITE:
        spte |= SPTE_W | SPTE_MMU_W | SPTE_D
    letters = ((ACC_WRITE, "w"), (ACC_EXEC, "x"), (ACC_USER, "u"))
    return spte, "r" + "".join(letter if access & bit else "-" for bit, letter in letters)


def _set_spte(
    kvm: Kvm, task: Task, sp: ShadowPage, index: int, gfn: int, access: int, slot: MemSlot, prefetch: bool
) -> None:
    """mmu_set_spte() and make_spte(), or their TDP MMU counterpart."""
    level = sp.level
    gfn &= -pages(level)
    host_writable = not slot.slot.readonly
    if not host_writable or (gfn in kvm.shadowed and not _may_write(kvm, task, gfn, access, prefetch)):
        access &= ~ACC_WRITE
    bits, rwxu = _spte_bits(access, level > 1, prefetch, host_writable)
    spte = slot.pfn(gfn) << PAGE_SHIFT | bits
    if slot.dirty_log and access & ACC_WRITE:
        _mark_dirty(slot, gfn)
    old = sp.leaves.get(index, 0)
    if old == spte:
        return
    child = sp.children.pop(index, None)
    if sp.tdp:
        kvm.spte_changed(task, gfn, level, child.spt | NONLEAF if child else old, spte)
    if child and sp.tdp:
        remove_table(kvm, task, child)
    elif child:
        child.parents.remove((sp, index))
    if old:
        sp.leaves[index] = spte
    else:
        kvm.add_leaf(slot, sp, index, gfn, spte)
    at = sp.spt + 8 * index
    kvm.emit(task.locked, f"kvm_mmu_set_spte: gfn {gfn:x} spte {spte:x} ({rwxu}) level {level} at {at:x}")


def _direct_prefetch(kvm: Kvm, task: Task, sp: ShadowPage, index: int, slot: MemSlot) -> None:
    """__direct_pte_prefetch(): resident neighbours in the aligned group of eight."""
    if sp.access & ACC_WRITE and slot.dirty_log:
        return
    group = range(index & -PTE_PREFETCH_NUM, (index & -PTE_PREFETCH_NUM) + PTE_PREFETCH_NUM)
    start = group.start
    while start < group.stop:
        if start in sp.leaves:
            start += 1
            continue
        stop = next((i for i in group if i > start and i in sp.leaves), group.stop)
        resident = 0
        if slot.base_gfn <= sp.gfn + start and sp.gfn + stop <= slot.end:
            while start + resident < stop and sp.gfn + start + resident >> slot.shift in slot.resident:
                resident += 1
        if not resident:
            return
        for i in range(start, start + resident):
            _set_spte(kvm, task, sp, i, sp.gfn + i, sp.access, slot, prefetch=True)
        start = stop


def _indirect_prefetch(kvm: Kvm, task: Task, root: Root, sp: ShadowPage, index: int, addr: int) -> None:
    """FNAME(pte_prefetch)(): the same, by the guest's entries; ends at the first that cannot be had."""
    tables = kvm.guest[root.name]
    first = index & -PTE_PREFETCH_NUM
    for i in range(first, first + PTE_PREFETCH_NUM):
        if i in sp.leaves:
            continue
        neighbour = addr + (i - index << PAGE_SHIFT)
        mapping = tables.mapping(neighbour)
        if mapping is None or mapping.level > 1:
            return
        gfn = mapping.gfn + (neighbour - mapping.addr >> PAGE_SHIFT)
        slot = kvm.find_slot(gfn)
        access = tables.access(mapping)
        if slot is None or (slot.dirty_log and access & ACC_WRITE) or gfn >> slot.shift not in slot.resident:
            return
        _set_spte(kvm, task, sp, i, gfn, access, slot, prefetch=True)
