"""The state of one VM's MMU: memslots, shadow pages, rmaps; a small model of Linux 6.1 arch/x86/kvm/mmu.

It knows what tracepoints print, not what eager page splitting does: ``eager_page_split=N``.
Silent actions of KVM (write protection, dropped SPTEs) change the state and print nothing; where
the TDP MMU prints its change, so does the model.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from replay.synth.guest import ACC_ALL, ROOT_LEVEL, GuestTables
from replay.synth.memory import Host, MemSlot
from replay.synth.scenario import Root, Scenario, Vm
from replay.synth.steps import KVM_MIN_ALLOC_MMU_PAGES
from replay.synth.toml import PAGE_SHIFT, pages
from replay.synth.write import Task, TraceWriter

SPTE_P, SPTE_W, SPTE_U, SPTE_A, SPTE_D, SPTE_PS = 1, 2, 4, 0x20, 0x40, 0x80
SPTE_HOST_W, SPTE_MMU_W, SPTE_MMU_PRESENT, SPTE_NX = 0x200, 0x400, 0x800, 1 << 63
NONLEAF = SPTE_MMU_PRESENT | SPTE_P | SPTE_W | SPTE_U | SPTE_A
REMOVED_SPTE = 0x5A0  # what the TDP MMU leaves while it replaces an entry
KVM_MIN_FREE_MMU_PAGES, KVM_REFILL_PAGES = 5, 25
ACCESS_TEXT = ("---", "--x", "w--", "w-x", "-u-", "-ux", "wu-", "wux")


class ShadowPage:
    """struct kvm_mmu_page, of the shadow MMU or (``tdp``) of the TDP MMU."""

    __slots__ = (
        "access", "children", "direct", "gen", "gfn", "gfns", "guest_mode", "invalid", "leaves", "level",
        "parents", "root_count", "shift", "spt", "tdp", "unsync",
    )  # fmt: skip

    def __init__(
        self, gfn: int, level: int, direct: bool, access: int, guest_mode: bool, gen: int, spt: int, tdp: bool
    ) -> None:
        self.gfn, self.level, self.direct, self.access = gfn, level, direct, access
        self.guest_mode, self.gen, self.spt, self.tdp = guest_mode, gen, spt << PAGE_SHIFT, tdp
        self.shift = PAGE_SHIFT + 9 * (level - 1)
        self.leaves: dict[int, int] = {}
        self.gfns: dict[int, int] = {}  # of an indirect page: first gfn of each leaf
        self.children: dict[int, ShadowPage] = {}
        self.parents: list[tuple[ShadowPage, int]] = []
        self.unsync = self.invalid = False
        self.root_count = 0

    def text(self) -> str:
        """KVM_MMU_PAGE_PRINTK of Linux 5.5 to 7.x."""
        return (
            f"sp gen {self.gen} gfn {self.gfn:x} l{self.level} 8-byte q0{' direct' if self.direct else ''} "
            f"{ACCESS_TEXT[self.access]}{' invalid' if self.invalid else ''} nxe ad root {self.root_count} "
            f"{'unsync' if self.unsync else 'sync'}"
        )

    def key(self) -> tuple[int, int, bool, int, bool]:
        """What the hash table compares: gfn and role."""
        return self.gfn, self.level, self.direct, self.access, self.guest_mode

    def leaf_gfn(self, index: int) -> int:
        """First gfn that the leaf SPTE at ``index`` maps (kvm_mmu_page_get_gfn())."""
        return self.gfn + index * pages(self.level) if self.direct else self.gfns[index]


class Kvm:
    """One VM.  Methods named after kernel functions do what those do, as far as a trace shows it."""

    def __init__(self, scenario: Scenario, vm: Vm, cpu: int, host: Host, writer: TraceWriter) -> None:
        self.scenario, self.vm, self.host, self.writer = scenario, vm, host, writer
        self.emit = writer.emit
        self.vmm = Task(vm.comm, vm.pid, vm.pid, cpu)
        self.vcpus = [Task(vcpu.comm, vcpu.pid, vm.pid, cpu + vcpu.index) for vcpu in vm.vcpus]
        self.slots = {slot.id: MemSlot(slot, host) for slot in vm.slots}
        self.last_slot: MemSlot | None = None
        self.next_table_gfn = vm.table_gfn
        self.guest = {root.name: GuestTables(root, self._guest_table) for root in vm.roots}
        self.roots: dict[str, ShadowPage] = {}
        self.loaded: set[tuple[Task, ShadowPage]] = set()  # which vCPUs hold which roots of the shadow MMU
        self.invalid_roots: list[ShadowPage] = []
        self.hash: dict[tuple[int, int, bool, int, bool], ShadowPage] = {}
        self.active: dict[ShadowPage, None] = {}  # oldest first
        self.shadowed: dict[int, list[ShadowPage]] = {}  # gfn of a guest page table -> its shadow pages
        self.huge_disallowed: tuple[set[int], ...] = (set(), set(), set(), set())  # lpage_info, by level
        self.gen = 0
        self.n_used = 0
        self.n_max = 0
        self.requested_pages = 0
        self.initially_all_set = False
        self.default_mmu_pages()

    @contextmanager
    def noted_lines(self) -> Iterator[list[tuple[str, str]]]:
        """Collects what is emitted meanwhile, beside writing it."""
        lines: list[tuple[str, str]] = []

        def emit(start: str, event: str) -> None:
            lines.append((start, event))
            self.writer.emit(start, event)

        self.emit = emit
        try:
            yield lines
        finally:
            self.emit = self.writer.emit

    def _guest_table(self) -> int:
        gfn = self.next_table_gfn
        self.next_table_gfn += 1
        if self.find_slot(gfn) is None:
            message = f"VM '{self.vm.name}': guest page tables reach gfn {gfn:#x}, outside every slot"
            raise self.scenario.error(0, message)
        return gfn

    def find_slot(self, gfn: int) -> MemSlot | None:
        """gfn_to_memslot()."""
        slot = self.last_slot
        if slot is not None and slot.base_gfn <= gfn < slot.end:
            return slot
        for slot in self.slots.values():
            if slot.base_gfn <= gfn < slot.end:
                self.last_slot = slot
                return slot
        return None

    def slot_of(self, gfn: int) -> MemSlot:
        """The slot of a gfn that is known to be in one."""
        slot = self.find_slot(gfn)
        assert slot is not None
        return slot

    def default_mmu_pages(self) -> None:
        """kvm_mmu_calculate_default_mmu_pages(), unless KVM_SET_NR_MMU_PAGES was called."""
        total = sum(slot.slot.npages for slot in self.slots.values())
        self.n_max = self.requested_pages or max(KVM_MIN_ALLOC_MMU_PAGES, total // 50)

    def get_page(
        self, task: Task, gfn: int, level: int, direct: bool, access: int, guest_mode: bool
    ) -> ShadowPage:
        """kvm_mmu_get_shadow_page()."""
        sp = self.hash.get((gfn, level, direct, access, guest_mode))
        word = "existing"
        if sp is None:
            word = "new"
            sp = ShadowPage(gfn, level, direct, access, guest_mode, self.gen, self.host.table(), False)
            self.hash[sp.key()] = sp
            self.active[sp] = None
            self.n_used += 1
            if not direct:
                self.account_shadowed(task, sp)
        self.emit(task.locked, f"kvm_mmu_get_page: {sp.text()} {word}")
        return sp

    def account_shadowed(self, task: Task, sp: ShadowPage) -> None:
        """Nothing huge maps a guest page table, and nothing writes to it unseen."""
        self.shadowed.setdefault(sp.gfn, []).append(sp)
        for level in (2, 3):
            self.huge_disallowed[level].add(sp.gfn >> 9 * (level - 1))
        self.write_protect_gfn(task, sp.gfn, 1)

    def write_protect_gfn(self, task: Task, gfn: int, min_level: int) -> None:
        """kvm_mmu_slot_gfn_write_protect(): the entries lose W and MMU-writable."""
        slot = self.slot_of(gfn)
        for level in range(min_level, 4):
            base = gfn - gfn % pages(level)
            for sp, index in slot.rmaps[level].get(base, ()):
                self.change_leaf(task, sp, index, base, sp.leaves[index] & ~(SPTE_W | SPTE_MMU_W))

    def change_leaf(self, task: Task, sp: ShadowPage, index: int, gfn: int, spte: int) -> None:
        """Another value for a present leaf; only the TDP MMU prints it."""
        old = sp.leaves[index]
        if old == spte:
            return
        sp.leaves[index] = spte
        if sp.tdp:
            self.spte_changed(task, gfn, sp.level, old, spte)

    def spte_changed(self, task: Task, gfn: int, level: int, old: int, new: int) -> None:
        """kvm_tdp_mmu_spte_changed, under mmu_lock."""
        self.emit(
            task.locked,
            f"kvm_tdp_mmu_spte_changed: as id 0 gfn {gfn:x} level {level} old_spte {old:x} new_spte {new:x}",
        )

    def add_leaf(self, slot: MemSlot, sp: ShadowPage, index: int, gfn: int, spte: int) -> None:
        """rmap_add()."""
        sp.leaves[index] = spte
        heads = slot.rmaps[sp.level]
        if gfn in heads:
            heads[gfn].append((sp, index))
        else:
            heads[gfn] = [(sp, index)]
        if not sp.direct:
            sp.gfns[index] = gfn

    def drop_leaf(self, sp: ShadowPage, index: int) -> None:
        """drop_spte()."""
        gfn = sp.leaf_gfn(index)
        del sp.leaves[index]
        heads = self.slot_of(gfn).rmaps[sp.level]
        heads[gfn].remove((sp, index))
        if not heads[gfn]:
            del heads[gfn]

    def leaves_of(self, slot: MemSlot, levels: tuple[int, ...]) -> Iterator[tuple[ShadowPage, int, int]]:
        """Leaf SPTEs that map the slot: shadow MMU first, then the TDP MMU, by ascending gfn."""
        found = [
            (sp.tdp, gfn, sp, index)
            for level in levels
            for gfn, head in slot.rmaps[level].items()
            for sp, index in head
        ]
        found.sort(key=lambda leaf: leaf[:2])
        for _, gfn, sp, index in found:
            yield sp, index, gfn

    def link(self, parent: ShadowPage, index: int, child: ShadowPage) -> None:
        """link_shadow_page(); a huge SPTE in the way is dropped, untraced."""
        if index in parent.leaves:
            self.drop_leaf(parent, index)
        parent.children[index] = child
        child.parents.append((parent, index))

    def prepare_zap_page(self, task: Task, sp: ShadowPage) -> int:
        """__kvm_mmu_prepare_zap_page(); returns how many pages went."""
        self.emit(task.locked, f"kvm_mmu_prepare_zap_page: {sp.text()}")
        zapped = sum(self.prepare_zap_page(task, child) for child in self.unsync_children(sp))
        for index in list(sp.leaves):
            self.drop_leaf(sp, index)
        for index, child in sorted(sp.children.items()):
            child.parents.remove((sp, index))
            if child.guest_mode and not child.parents and not child.invalid:
                zapped += self.prepare_zap_page(task, child)
        sp.children.clear()
        for parent, index in sp.parents:
            del parent.children[index]
        sp.parents.clear()
        if not sp.invalid and not sp.direct:
            self.shadowed[sp.gfn].remove(sp)
            if not self.shadowed[sp.gfn]:
                del self.shadowed[sp.gfn]
                for level in (2, 3):
                    region = {gfn >> 9 * (level - 1) for gfn in self.shadowed}
                    self.huge_disallowed[level].intersection_update(region)
        if sp.unsync:
            self.emit(task.locked, f"kvm_mmu_sync_page: {sp.text()}")
            sp.unsync = False
        if self.hash.get(sp.key()) is sp:
            del self.hash[sp.key()]
        self.active.pop(sp, None)
        sp.invalid = True
        if sp.root_count:
            self.invalid_roots.append(sp)
            return zapped
        self.n_used -= 1
        return zapped + 1

    def unsync_children(self, sp: ShadowPage) -> list[ShadowPage]:
        """mmu_unsync_walk(): unsync pages below ``sp``, by index."""
        found: list[ShadowPage] = []
        for _, child in sorted(sp.children.items()):
            if child.unsync:
                found.append(child)
            elif child.level > 1:
                found.extend(page for page in self.unsync_children(child) if page not in found)
        return found

    def zap_oldest(self, task: Task, count: int) -> None:
        """kvm_mmu_zap_oldest_mmu_pages(): from the tail of the active list, roots in use excepted."""
        zapped = 0
        while zapped < count:
            oldest = next((sp for sp in self.active if not sp.root_count), None)
            if oldest is None:
                return
            zapped += self.prepare_zap_page(task, oldest)

    def make_mmu_pages_available(self, task: Task) -> None:
        """Before a fault of the shadow MMU: at least five free pages, else 25."""
        available = max(0, self.n_max - self.n_used)
        if available < KVM_MIN_FREE_MMU_PAGES:
            self.zap_oldest(task, KVM_REFILL_PAGES - available)

    def change_mmu_pages(self, task: Task, goal: int) -> None:
        """kvm_mmu_change_mmu_pages(): pages above the goal go at once."""
        self.requested_pages = goal
        if self.n_used > goal:
            self.zap_oldest(task, self.n_used - goal)
        self.n_max = max(goal, self.n_used)

    def load_root(self, task: Task, root: Root) -> ShadowPage:
        """kvm_mmu_load(): the root of a page table, obsolete roots being freed first."""
        for sp in self.invalid_roots:
            self.put_root(sp)
            self.prepare_zap_page(task, sp)
        self.invalid_roots.clear()
        current = self.roots.get(root.name)
        if current is not None and not current.invalid:
            if not current.tdp and (task, current) not in self.loaded:
                self.emit(task.locked, f"kvm_mmu_get_page: {current.text()} existing")
                self.hold_root(task, current)
            return current
        if root.kind == "tdp":
            sp = ShadowPage(0, ROOT_LEVEL, True, ACC_ALL, False, self.gen, self.host.table(), True)
            self.emit(task.locked, f"kvm_mmu_get_page: {sp.text()} new")
        else:
            self.make_mmu_pages_available(task)
            direct = root.kind == "direct"
            gfn = 0 if direct else self.guest[root.name].table(ROOT_LEVEL, 0)
            sp = self.get_page(task, gfn, ROOT_LEVEL, direct, ACC_ALL, root.kind == "nested")
            self.hold_root(task, sp)
        self.roots[root.name] = sp
        return sp

    def hold_root(self, task: Task, sp: ShadowPage) -> None:
        """A vCPU's reference to a root that it has loaded."""
        sp.root_count += 1
        self.loaded.add((task, sp))

    def put_root(self, sp: ShadowPage) -> None:
        """All vCPUs drop a root."""
        sp.root_count = 0
        self.loaded = {(task, held) for task, held in self.loaded if held is not sp}
