"""What the kernel keeps: memslots, shadow pages, SPTEs, rmaps, page counters. No trace, no policy."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

from .parse import Role
from .spte import LEGACY, PT_PAGE_SIZE, PT_WRITABLE, SPTE_MMU_PRESENT, Layout

SPTES = 512
PTE_LIST_EXT = 14
MAX_HUGEPAGE_LEVEL = 3
LOG_DIRTY, READONLY = 1, 2
ADDRESS_MASK = 0x000F_FFFF_FFFF_F000


def pages_per(level: int) -> int:
    """4 KiB pages that one SPTE of `level` maps (KVM_PAGES_PER_HPAGE)."""
    return 1 << (9 * (level - 1))


def align(gfn: int, level: int) -> int:
    return gfn & -pages_per(level)


def spte_index(address: int, level: int) -> int:
    return (address >> (12 + 9 * (level - 1))) & (SPTES - 1)


def is_leaf(spte: int, level: int) -> bool:
    return bool(spte & SPTE_MMU_PRESENT) and (level == 1 or bool(spte & PT_PAGE_SIZE))


def pfn_of(spte: int) -> int:
    return (spte & ADDRESS_MASK) >> 12


class ShadowPage:
    """struct kvm_mmu_page. `variant` stands for role bits that no trace prints: cr0_wp, smep, smap,
    guest_mode.
    """

    def __init__(self, gen: int, gfn: int, role: Role, variant: int) -> None:
        self.gen, self.gfn, self.role, self.variant = gen, gfn, role, variant
        self.sptes: dict[int, int | ShadowPage] = {}
        self.gfns: dict[int, int] = {}
        self.accesses: dict[int, int] = {}
        self.parents: set[Sptep] = set()
        self.table: int | None = None
        self.parent_desc = self.unsync = self.invalid = False

    def gfn_at(self, index: int) -> int:
        """The gfn that the SPTE at `index` maps (kvm_mmu_page_get_gfn)."""
        if self.role.direct:
            return self.gfn + index * pages_per(self.role.level)
        return self.gfns[index]

    def access_at(self, index: int) -> int:
        """The guest's access to the SPTE at `index` (kvm_mmu_page_get_access)."""
        return self.role.access if self.role.direct else self.accesses[index]


Sptep = tuple[ShadowPage, int]


@dataclass
class Memslot:
    """`flags` bit 0 is dirty logging; `hva` is where the host maps it, 0 where that is not told."""

    base: int
    npages: int
    flags: int
    hva: int = 0

    @property
    def end(self) -> int:
        return self.base + self.npages


class Rmap:
    """Leaf SPTEs by (level, gfn of the head), in the order of pte_list_add/pte_list_remove.

    Up to 6.3 a new descriptor goes to the tail and a hole is filled from the same descriptor; since then
    (`head_first`) it goes to the head, and holes are filled from the head.
    """

    def __init__(self) -> None:
        self.head_first = False
        self.heads: dict[tuple[int, int], list[list[Sptep]]] = {}
        self.with_desc: set[tuple[int, int]] = set()

    def add(self, level: int, gfn: int, sptep: Sptep) -> None:
        key = (level, align(gfn, level))
        groups = self.heads.setdefault(key, [])
        if groups:
            self.with_desc.add(key)
        for group in groups:
            if len(group) < PTE_LIST_EXT:
                group.append(sptep)
                return
        groups.insert(0 if self.head_first else len(groups), [sptep])

    def remove(self, level: int, gfn: int, sptep: Sptep) -> bool:
        """Drop one entry; the last entry of a descriptor takes its place."""
        key = (level, align(gfn, level))
        groups = self.heads.get(key, [])
        for group in groups:
            if sptep not in group:
                continue
            donor = groups[0] if self.head_first else group
            group[group.index(sptep)] = donor[-1]
            donor.pop()
            if not donor:
                groups.remove(donor)
            if not groups:
                del self.heads[key]
                self.with_desc.discard(key)
            return True
        return False

    def needs_desc(self, level: int, gfn: int) -> bool:
        """Does the next add take a pte_list_desc? A list that shrank to one entry keeps its own."""
        key = (level, align(gfn, level))
        groups = self.heads.get(key, [])
        if key in self.with_desc:
            return all(len(group) == PTE_LIST_EXT for group in groups)
        return bool(groups)

    def at(self, level: int, gfn: int) -> list[Sptep]:
        return [sptep for group in self.heads.get((level, align(gfn, level)), ()) for sptep in group]

    def used(self, level: int, gfn: int) -> bool:
        return (level, align(gfn, level)) in self.heads


@dataclass
class Vm:
    """struct kvm, as far as the shadow MMU needs it. `tdp` is kept by tdp.py. `shadowed` counts the shadowed
    guest tables of a huge region, `aged` is set when an mmu notifier aged addresses of no known slot.
    """

    slots: dict[int, Memslot] = field(default_factory=dict)
    rmap: Rmap = field(default_factory=Rmap)
    by_gfn: dict[int, list[ShadowPage]] = field(default_factory=lambda: defaultdict(list))
    dying: list[ShadowPage] = field(default_factory=list)
    tables: dict[int, ShadowPage] = field(default_factory=dict)
    gen: int = 0
    n_used: int = 0
    n_max: int = 0
    limit: tuple[int, int] | None = None
    resched: bool = False
    layout: Layout = LEGACY
    shadowed: Counter[tuple[int, int]] = field(default_factory=Counter)
    aged: bool = False

    def slot_of(self, gfn: int) -> Memslot | None:
        return next((slot for slot in self.slots.values() if slot.base <= gfn < slot.end), None)

    def available(self) -> int:
        """kvm_mmu_available_pages."""
        return max(0, self.n_max - self.n_used)

    def take_resched(self) -> bool:
        """Is need_resched raised? The lock drop that follows lowers it."""
        raised, self.resched = self.resched, False
        return raised

    def settle_limit(self, pid: int, zapping: bool) -> None:
        """kvm_mmu_change_mmu_pages by task `limit[0]`: pages that it could not zap raise the limit."""
        if self.limit is not None and self.limit[0] == pid and not zapping:
            self.n_max, self.limit = max(self.limit[1], self.n_used), None

    def alloc_page(self, gen: int, gfn: int, role: Role, variant: int) -> ShadowPage:
        sp = ShadowPage(gen, gfn, role, variant)
        self.by_gfn[gfn].append(sp)
        self.n_used += 1
        self._account_shadowed(sp, 1)
        return sp

    def _account_shadowed(self, sp: ShadowPage, change: int) -> None:
        """account_shadowed: no huge page may cover a guest table."""
        if not sp.role.direct:
            for level in range(2, MAX_HUGEPAGE_LEVEL + 1):
                self.shadowed[level, align(sp.gfn, level)] += change

    def pages(self, gfn: int, role: Role, gen: int | None = None) -> list[ShadowPage]:
        """Live pages that print like this, oldest first."""
        found = [sp for sp in self.by_gfn.get(gfn, ()) if sp.role == role]
        return found if gen is None else [sp for sp in found if sp.gen == gen]

    def bind(self, sp: ShadowPage, table: int) -> None:
        """Remember which physical page holds the SPTEs of `sp`."""
        old = self.tables.get(table)
        if old is not None and old is not sp:
            old.table = None
        if sp.table is not None and sp.table != table:
            self.tables.pop(sp.table, None)
        self.tables[table], sp.table = sp, table

    def drop_spte(self, sp: ShadowPage, index: int) -> None:
        """drop_spte of a leaf, drop_parent_pte of a link; nothing if not present."""
        spte = sp.sptes.pop(index, None)
        if isinstance(spte, ShadowPage):
            spte.parents.discard((sp, index))
            spte.parent_desc = spte.parent_desc and bool(spte.parents)
        elif spte is not None:
            self.rmap.remove(sp.role.level, sp.gfn_at(index), (sp, index))

    def set_leaf(self, sp: ShadowPage, index: int, gfn: int, spte: int, access: int) -> None:
        """mmu_set_spte: another pfn or gfn moves the entry to the end of its list, else only the value
        changes.
        """
        old = sp.sptes.get(index)
        if isinstance(old, int) and pfn_of(old) == pfn_of(spte) and sp.gfn_at(index) == gfn:
            sp.sptes[index] = spte
            sp.accesses[index] = access
            return
        self.drop_spte(sp, index)
        self.install(sp, index, gfn, spte, access)

    def install(self, sp: ShadowPage, index: int, gfn: int, spte: int, access: int) -> None:
        """Fill a non-present SPTE and add it to its rmap."""
        sp.sptes[index] = spte
        if not sp.role.direct:
            sp.gfns[index], sp.accesses[index] = gfn, access
        self.rmap.add(sp.role.level, gfn, (sp, index))

    def link(self, parent: ShadowPage, index: int, child: ShadowPage) -> None:
        """link_shadow_page; whatever was there is dropped first."""
        if parent.sptes.get(index) is child:
            return
        self.drop_spte(parent, index)
        parent.sptes[index] = child
        child.parent_desc = child.parent_desc or bool(child.parents)
        child.parents.add((parent, index))

    def zap_page(self, sp: ShadowPage, root_count: int) -> None:
        """kvm_mmu_prepare_zap_page without its recursion: recursive zaps print lines of their own."""
        for index in sorted(sp.sptes):
            self.drop_spte(sp, index)
        for parent, index in list(sp.parents):
            self.drop_spte(parent, index)
        if sp in self.dying:
            self.dying.remove(sp)
        else:
            self.by_gfn[sp.gfn].remove(sp)
            self._account_shadowed(sp, -1)
        if sp.table is not None and self.tables.get(sp.table) is sp:
            del self.tables[sp.table]
        if root_count:
            self.dying.append(sp)
        else:
            self.n_used -= 1
        sp.invalid = True

    def write_protect(self, level: int, gfn: int, pt_protect: bool) -> None:
        """rmap_write_protect of one head; `pt_protect` also takes the right to become writable again."""
        clear = PT_WRITABLE | (self.layout.mmu_writable if pt_protect else 0)
        for sp, index in self.rmap.at(level, gfn):
            spte = sp.sptes[index]
            assert isinstance(spte, int)
            sp.sptes[index] = spte & ~clear

    def clear_dirty(self, gfn: int) -> None:
        """__rmap_clear_dirty of one 4K head, for PML: what PML does not log is write-protected."""
        for sp, index in self.rmap.at(1, gfn):
            spte = sp.sptes[index]
            assert isinstance(spte, int)
            clear = PT_WRITABLE if self.layout.needs_write_protect(spte) else self.layout.dirty
            sp.sptes[index] = spte & ~clear

    def write_protect_gfn(self, gfn: int, min_level: int) -> None:
        """kvm_mmu_slot_gfn_write_protect."""
        for level in range(min_level, MAX_HUGEPAGE_LEVEL + 1):
            self.write_protect(level, gfn, pt_protect=True)

    def unmap_gfns(self, first: int, last: int) -> None:
        """kvm_unmap_gfn_range of [first, last]: every leaf whose page meets the range."""
        for sp, index in self._leaves(first, last):
            self.drop_spte(sp, index)

    def age_gfns(self, first: int, last: int) -> None:
        """kvm_age_gfn of [first, last]."""
        for sp, index in self._leaves(first, last):
            spte = sp.sptes[index]
            assert isinstance(spte, int)
            sp.sptes[index] = self.layout.age(spte)

    def _leaves(self, first: int, last: int) -> list[Sptep]:
        found = []
        for level in range(1, MAX_HUGEPAGE_LEVEL + 1):
            low = align(first, level)
            for head in [gfn for at, gfn in self.rmap.heads if at == level and low <= gfn <= last]:
                found += self.rmap.at(level, head)
        return found

    def heads_in(self, slot: Memslot, level: int) -> Iterator[int]:
        """Non-empty rmap heads of the slot, ascending."""
        first, last = align(slot.base, level), align(slot.end - 1, level)
        return iter(sorted(gfn for at, gfn in self.rmap.heads if at == level and first <= gfn <= last))
