"""Which shadow page a line speaks of: faults, guest walks, roots, the pages that are got and zapped."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from .host import HostPages
from .parse import (
    Event,
    Page,
    parse_page,
    parse_page_fault,
    parse_requested,
)
from .spte import ACC_ALL, LEGACY, Layout, guest_format
from .state import ShadowPage, Vm, align, spte_index
from .tdp import Tdp
from .tdp_lines import ROOT_LEVEL, TdpLines
from .walk import PFERR_FETCH, PFERR_WRITE, QUALIFIED_FETCH, Fault, Walk

DIRECT_VARIANT = -1
"""Of the pages below a direct root, which differs from every indirect root in bits that no trace prints."""


@dataclass
class Task:
    """A thread: its fault, and the root that its vCPU runs on as far as the trace told."""

    fault: Fault = field(default_factory=Fault)
    root: ShadowPage | None = None
    roots: dict[int, ShadowPage] = field(default_factory=dict)
    variant: int = 0


class Identity:
    """Faults and shadow pages of one VM; `notes` counts what could not be placed."""

    def __init__(
        self,
        events: Sequence[Event],
        following: Sequence[int],
        preceding: Sequence[int],
        has_tdp: bool,
        layout: Layout = LEGACY,
    ) -> None:
        self.events, self.has_tdp = events, has_tdp
        self.lines = TdpLines(events, following, preceding, has_tdp)
        self.vm, self.tdp = Vm(layout=layout), Tdp()
        self.host = HostPages(self.vm)
        self.tasks: dict[int, Task] = defaultdict(Task)
        self.notes: Counter[str] = Counter()

    # the fault

    def kvm_page_fault(self, at: int, event: Event) -> None:
        address, error = parse_page_fault(event.text)
        fetch = error & (QUALIFIED_FETCH if self.vm.layout.is_ept else PFERR_FETCH)
        self.tasks[event.pid].fault = Fault(address, bool(error & PFERR_WRITE), bool(fetch))

    def kvm_mmu_pagetable_walk(self, at: int, event: Event) -> None:
        words = event.text.split()
        fault = self.tasks[event.pid].fault
        if fault.gfn is not None:
            self.tasks[event.pid].fault = fault = Fault(fault.address, fault.write, fault.fetch)
        root = self.tasks[event.pid].root
        form = guest_format(self.vm.layout, root is not None and root.role.ad)
        access = int(words[3], 16)
        fault.walk = Walk(int(words[1], 16), bool(access & PFERR_WRITE), form)

    def kvm_mmu_paging_element(self, at: int, event: Event) -> None:
        words = event.text.split()
        walk = self.tasks[event.pid].fault.walk
        if walk is not None:
            walk.add(int(words[1], 16), int(words[3]))

    def kvm_mmu_spte_requested(self, at: int, event: Event) -> None:
        """A walk that ends elsewhere was the emulator's. 5.10 prints the gfn of the address, not of what it
        maps.
        """
        gfn, pfn, level = parse_requested(event.text)
        task = self.tasks[event.pid]
        fault = task.fault
        if fault.gfn is not None:
            task.fault = fault = Fault(fault.address, fault.write, fault.fetch, fault.walk)
        fault.gfn = gfn
        walk = fault.walk
        mapped = walk.mapped_gfn(self._gpte_bytes(task)) if walk is not None and walk.gptes else None
        if walk is None or mapped is None or gfn not in (mapped, walk.address >> 12):
            fault.walk = None
        else:
            fault.gfn = mapped
        self.host.saw(fault.gfn, level)
        if level == 1 and (fault.walk is None or fault.walk.leaf > 1):
            self.host.saw_small(fault.gfn, pfn, fault.fetch)

    def _gpte_bytes(self, task: Task) -> int:
        return task.root.role.gpte_bytes if task.root is not None else 8

    # shadow pages

    def kvm_mmu_get_page(self, at: int, event: Event) -> None:
        page = parse_page(event.text)
        if self.lines.is_tdp_page(at, page):
            return
        task = self.tasks[event.pid]
        fault = task.fault
        is_root = self._is_root(task, page)
        if page.role.direct and (is_root or fault.walk is None):
            sp = self._direct_page(page)
        else:
            if is_root:
                task.variant = self._root_variant(task, page)
            sp = self._page(task, page)
        if is_root:
            self._load_root(task, sp)
            return
        fault.pages[page.role.level] = sp
        parent = self._locate(task, page.role.level + 1)
        if parent is None:
            self.notes["child without parent"] += 1
            return
        self.vm.link(parent, spte_index(self._address(fault), page.role.level + 1), sp)

    def _is_root(self, task: Task, page: Page) -> bool:
        """Roots are got outside a walk: at level 4 and 5, for 32-bit guests at level 2. A guest with 4
        levels under a 5-level host has a pass-through root of the same gfn.
        """
        walk, root = task.fault.walk, task.root
        if page.role.level >= ROOT_LEVEL:
            above = (page.gfn, page.role.level + 1)
            passthrough = root is not None and not root.invalid and (root.gfn, root.role.level) == above
            return not passthrough and (walk is None or walk.table_gfn(page.role.level) != page.gfn)
        if page.role.level != 2 or page.role.direct:
            return False
        return page.role.gpte_bytes == 4 or walk is None or walk.table_gfn(2) != page.gfn or walk.is_pae()

    def _root_variant(self, task: Task, page: Page) -> int:
        variants = {sp.variant for sp in self.vm.pages(page.gfn, page.role, page.gen)} - {DIRECT_VARIANT}
        if page.created:
            if task.variant not in variants:
                return task.variant
            return next(variant for variant in range(len(variants) + 1) if variant not in variants)
        root = task.root
        same = root is not None and not root.invalid and root.gfn == page.gfn and root.role == page.role
        others = variants - {task.variant} if same else variants
        if task.variant in others or not others:
            return task.variant
        return min(others)

    def _load_root(self, task: Task, sp: ShadowPage) -> None:
        task.fault = Fault()
        if sp.role.direct:
            return
        task.root = sp
        key = sp.role.quadrant if sp.role.gpte_bytes == 4 else sp.gfn
        task.roots[key] = sp

    def _direct_page(self, page: Page) -> ShadowPage:
        """A direct root or a page below one."""
        alike = self.vm.pages(page.gfn, page.role, page.gen)
        mine = [sp for sp in alike if sp.variant == DIRECT_VARIANT]
        if page.created:
            if mine:
                self.notes["new page exists"] += 1
        elif mine:
            return mine[0]
        else:
            self.notes["existing page unknown"] += 1
        return self.vm.alloc_page(page.gen, page.gfn, page.role, DIRECT_VARIANT)

    def _page(self, task: Task, page: Page) -> ShadowPage:
        """The page that the line names, created when the line says so or when the trace began later."""
        alike = self.vm.pages(page.gfn, page.role, page.gen)
        mine = [sp for sp in alike if sp.variant == task.variant]
        if page.created:
            if mine:
                self.notes["new page exists"] += 1
                taken = {sp.variant for sp in alike} | {DIRECT_VARIANT}
                task.variant = next(variant for variant in range(len(taken) + 1) if variant not in taken)
        else:
            alike = [sp for sp in alike if sp.variant != DIRECT_VARIANT]
            if mine or alike:
                sp = (mine or alike)[0]
                task.variant = sp.variant
                return sp
            self.notes["existing page unknown"] += 1
        sp = self.vm.alloc_page(page.gen, page.gfn, page.role, task.variant)
        if not page.role.direct:
            self.vm.write_protect_gfn(page.gfn, 1)
        return sp

    def _address(self, fault: Fault) -> int:
        if fault.walk is not None:
            return fault.walk.address
        return fault.gfn << 12 if fault.gfn is not None else fault.address

    def _locate(self, task: Task, level: int) -> ShadowPage | None:
        """The page whose SPTE at `level` the fault of the task goes through."""
        fault, address = task.fault, self._address(task.fault)
        if level in fault.pages:
            return fault.pages[level]
        walk = fault.walk
        gfn = walk.table_gfn(level) if walk is not None and level >= walk.leaf else None
        if walk is not None and level >= walk.leaf and (gfn is None or (walk.is_pae() and level == 2)):
            return self._root_for(task, gfn, level, address)
        if walk is None and level >= ROOT_LEVEL:
            return self._direct_root(task)
        parent = self._locate(task, level + 1)
        child = parent.sptes.get(spte_index(address, level + 1)) if parent is not None else None
        if gfn is not None and walk is not None:
            if isinstance(child, ShadowPage) and child.gfn == gfn and not child.role.direct:
                return child
            return self._find(task, gfn, level, False, walk.access_above(level), address)
        if isinstance(child, ShadowPage):
            return child
        access = walk.leaf_access() if walk is not None else ACC_ALL
        mapped = address >> 12 if walk is None else fault.gfn or 0
        return self._find(task, align(mapped, level + 1), level, True, access, address)

    def _root_for(self, task: Task, gfn: int | None, level: int, address: int) -> ShadowPage | None:
        if gfn is not None:
            return task.roots.get(gfn)
        if task.root is not None and task.root.role.gpte_bytes == 4:
            return task.roots.get(address >> 30)
        if task.root is not None and task.root.role.level > level:
            child = task.root.sptes.get(spte_index(address, task.root.role.level))
            return child if isinstance(child, ShadowPage) else None
        return task.root

    def _direct_root(self, task: Task) -> ShadowPage | None:
        roots = [sp for sp in self.vm.by_gfn.get(0, ()) if sp.role.direct and sp.role.level >= ROOT_LEVEL]
        return roots[-1] if roots else None

    def _find(
        self, task: Task, gfn: int, level: int, direct: bool, access: int, address: int
    ) -> ShadowPage | None:
        """A silent level that no link explains: the hash, the task's variant first."""
        like = task.root.role if task.root is not None else None
        walk = task.fault.walk
        compared = walk.format.all if walk is not None else ACC_ALL
        found = [
            sp
            for sp in self.vm.by_gfn.get(gfn, ())
            if sp.role.level == level
            and sp.role.direct == direct
            and sp.role.access & compared == access
            and (sp.role.gpte_bytes != 4 or level > 1 or sp.role.quadrant == (address >> 21 & 1))
            and (like is None or sp.role.gpte_bytes == like.gpte_bytes)
        ]
        variant = task.variant if walk is not None else DIRECT_VARIANT
        found.sort(key=lambda sp: (sp.gen != self.vm.gen, sp.variant != variant))
        return found[0] if found else None

    def kvm_mmu_prepare_zap_page(self, at: int, event: Event) -> None:
        page = parse_page(event.text)
        if self.lines.is_tdp_zap(at, page):
            return
        if page.invalid:
            alike = [sp for sp in self.vm.dying if sp.gfn == page.gfn and sp.role == page.role]
        else:
            alike = self.vm.pages(page.gfn, page.role, page.gen)
            alike = [sp for sp in alike if sp.unsync == page.unsync] or alike
            alike.sort(key=lambda sp: bool(sp.parents))
        if not alike:
            self.notes["zapped page unknown"] += 1
            return
        self.vm.zap_page(alike[0], page.root_count)

    def kvm_mmu_unsync_page(self, at: int, event: Event) -> None:
        self._set_unsync(event, True)

    def kvm_mmu_sync_page(self, at: int, event: Event) -> None:
        self._set_unsync(event, False)

    def _set_unsync(self, event: Event, unsync: bool) -> None:
        page = parse_page(event.text)
        alike = self.vm.pages(page.gfn, page.role, page.gen)
        for sp in [sp for sp in alike if sp.unsync == page.unsync][:1]:
            sp.unsync = unsync

    def kvm_mmu_zap_all_fast(self, at: int, event: Event) -> None:
        words = event.text.split()
        self.vm.gen = int(words[1]) ^ 1
        if int(words[3], 16) != self.vm.n_used:
            self.notes["used_pages differs"] += 1
