"""What set_spte lines do to SPTEs and rmaps, and what changed without a line."""

from __future__ import annotations

from .identity import Identity, Task
from .parse import (
    ACC_READ,
    ACC_USER,
    ACC_WRITE,
    Event,
    parse_fast_fault,
    parse_set_spte,
    parse_tdp_change,
)
from .spte import ACC_ALL, PT_USER, PT_WRITABLE
from .state import ShadowPage, align, is_leaf, pages_per, pfn_of
from .walk import Walk


class Inference(Identity):
    """Adds the SPTEs of the shadow MMU and of the TDP MMU."""

    def kvm_mmu_set_spte(self, at: int, event: Event) -> None:
        gfn, spte, level, address = parse_set_spte(event.text)
        self.host.saw(gfn, level)
        table, index = address & ~0xFFF, (address & 0xFFF) >> 3
        if table in self.tdp.tables and table not in self.vm.tables:
            return
        task = self.tasks[event.pid]
        sp = self._page_of_spte(task, table, index, gfn, level)
        if sp is None:
            self.notes["SPTE without page"] += 1
            return
        self._one_pfn(sp, index, gfn, spte, level)
        walk = task.fault.walk
        access = sp.role.access if sp.role.direct or walk is None else self._leaf_access(walk, spte)
        if not self.vm.layout.has_read:
            access |= sp.role.access & ACC_READ
        self.host.saw_leaf(spte, level, access)
        if align(task.fault.gfn or 0, level) == gfn:
            spte = self.vm.layout.used_by_cpu(spte, task.fault.write)
        self.vm.set_leaf(sp, index, gfn, spte, access)

    def _page_of_spte(self, task: Task, table: int, index: int, gfn: int, level: int) -> ShadowPage | None:
        """Bound tables name their page; else the chain of the fault does, and binds the table."""
        sp = self.vm.tables.get(table)
        if sp is not None and fits(sp, index, gfn, level):
            return sp
        if sp is not None:
            self.notes["table of another page"] += 1
        found = self._locate(task, level)
        if found is None or not fits(found, index, gfn, level):
            return None
        if found.table is not None and found.table != table:
            self.notes["page has another table"] += 1
        self.vm.bind(found, table)
        return found

    def _leaf_access(self, walk: Walk, spte: int) -> int:
        """With CR0.WP clear a supervisor write to a read-only user page is mapped writable and not user."""
        access = walk.leaf_access()
        if not self.vm.layout.is_ept and access & ACC_USER and not spte & PT_USER:
            access = (access | ACC_WRITE) & ~ACC_USER
        return access

    def _one_pfn(self, sp: ShadowPage, index: int, gfn: int, spte: int, level: int) -> None:
        """A gfn has one pfn: other SPTEs that map it elsewhere were zapped by an mmu notifier."""
        rmap, pfn = self.vm.rmap, pfn_of(spte)
        for other_level in (1, 2, 3):
            covered = pages_per(max(level, other_level))
            first = align(gfn, other_level)
            for head in range(first, first + covered, pages_per(other_level)):
                for other, at in rmap.at(other_level, head):
                    old = other.sptes[at]
                    assert isinstance(old, int)
                    if (other, at) != (sp, index) and pfn_of(old) - other.gfn_at(at) != pfn - gfn:
                        self.vm.drop_spte(other, at)

    def fast_page_fault(self, at: int, event: Event) -> None:
        fixed = parse_fast_fault(event.text)
        if fixed is None:
            return
        gfn, old, new = fixed
        for level in (1, 2, 3):
            if is_leaf(old, level) and self._same(self.tdp.sptes.get((level, align(gfn, level)), 0), old):
                self.tdp.sptes[level, align(gfn, level)] = new
            for sp, index in self.vm.rmap.at(level, gfn):
                spte = sp.sptes[index]
                assert isinstance(spte, int)
                if sp.role.direct and self._same(spte, old):
                    sp.sptes[index] = new

    def _same(self, known: int, seen: int) -> bool:
        """Equal but for A and D, which the CPU sets without a line."""
        return self.vm.layout.compared(known) == self.vm.layout.compared(seen)

    def kvm_tdp_mmu_spte_changed(self, at: int, event: Event) -> None:
        as_id, gfn, level, old, new = parse_tdp_change(event.text)
        if as_id:
            return
        if is_leaf(new, level):
            self.host.saw(gfn, level)
            self.host.saw_leaf(new, level, ACC_ALL)
        self.tdp.change(level, gfn, old, new)

    def zap_collapsible(self, base: int, end: int) -> None:
        """kvm_rmap_zap_collapsible_sptes: leaves of direct pages that the host could map larger."""
        for level in (1, 2):
            keys = sorted(gfn for at, gfn in self.vm.rmap.heads if at == level and base <= gfn < end)
            for gfn in keys:
                self._zap_collapsible_head(level, gfn)

    def _zap_collapsible_head(self, level: int, gfn: int) -> None:
        again = True
        while again:
            again = False
            for sp, index in self.vm.rmap.at(level, gfn):
                if sp.role.direct and level < self.host.max_mapping_level(sp.gfn):
                    self.vm.drop_spte(sp, index)
                    again = True
                    break


def fits(sp: ShadowPage, index: int, gfn: int, level: int) -> bool:
    return sp.role.level == level and (not sp.role.direct or sp.gfn + index * pages_per(level) == gfn)


def written_gfn(text: str) -> int | None:
    """The gfn of a kvm_mmu_set_spte that makes a 4K page writable."""
    change = parse_set_spte(text)
    return change.gfn if change.level == 1 and change.spte & PT_WRITABLE else None
