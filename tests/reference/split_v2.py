"""Eager splitting of shadow-MMU huge pages as in v2 20/26, one generator per window.

A generator yields what the kernel would show, in its order; it is resumed line by line, so what other tasks
do while the lock is dropped is seen by the next step. Its only inputs are the state and the environment.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field

from .parse import Role, Step, page_text
from .spte import PT_PAGE_SIZE, SPTE_MMU_PRESENT, Layout
from .state import (
    MAX_HUGEPAGE_LEVEL,
    SPTES,
    ShadowPage,
    Vm,
    align,
    is_leaf,
    pages_per,
)

MIN_FREE_MMU_PAGES = 5
ENOMEM, ENOSPC, EOPNOTSUPP = -12, -28, -95


@dataclass
class Environment:
    """What the kernel could not foresee. A place is (gfn, level, how many times prepare ran for it before
    and now).
    """

    drops: set[tuple[int, int, int]] = field(default_factory=set)
    nowait_failures: set[tuple[int, int, int]] = field(default_factory=set)
    blocking_failures: set[tuple[int, int, int]] = field(default_factory=set)
    yields: set[tuple[int, int]] = field(default_factory=set)


class SplitV2:
    """One call of kvm_rmap_try_split_huge_pages; `flushes` counts remote TLB flushes."""

    def __init__(self, vm: Vm, env: Environment, with_read: bool) -> None:
        self.vm, self.env, self.with_read = vm, env, with_read
        self.flushes = 0
        self.spare = self.flush = False
        self.prepared: Counter[tuple[int, int]] = Counter()

    def walk(self, start: int, end: int, target: int) -> Iterator[Step]:
        """[start, end) level by level; the first head is visited even when the range is empty."""
        pending = False
        for level in range(MAX_HUGEPAGE_LEVEL, target, -1):
            last = align(end - 1, level)
            head, shown = align(start, level), start
            while True:
                if shown == start or self.vm.rmap.used(level, head):
                    yield from self._head(level, head)
                    pending |= self.flush
                    if (shown, level) in self.env.yields:
                        yield ("yield", shown, level, int(pending))
                        self.flushes += pending
                        pending = False
                head, shown = head + pages_per(level), shown + pages_per(level)
                if head > last:
                    break
        self.flushes += pending
        yield ("end", int(pending))

    def _head(self, level: int, head: int) -> Iterator[Step]:
        """rmap_try_split_huge_pages."""
        self.spare = self.flush = False
        while (yield from self._pass(level, head)):
            pass
        if self.spare:
            yield ("freed",)

    def _pass(self, level: int, head: int) -> Generator[Step, None, bool]:
        """One walk over the list; true when it has to restart."""
        for sp, index in self.vm.rmap.at(level, head):
            spte = sp.sptes[index]
            assert isinstance(spte, int)
            if not is_leaf(spte, level) or sp.invalid or sp.unsync:
                continue
            gfn = sp.gfn_at(index)
            error, dropped = yield from self._prepare(gfn, level)
            if error:
                yield ("split", gfn, spte, level, error)
                return False
            if dropped:
                return True
            error = yield from self._split(sp, index, spte, gfn)
            yield ("split", gfn, spte, level, error)
            if not error:
                return True
        return False

    def _prepare(self, gfn: int, level: int) -> Generator[Step, None, tuple[int, bool]]:
        """prepare_to_split_huge_page: (errno, lock dropped). A spare page is overwritten, never reused."""
        self.prepared[gfn, level] += 1
        place = (gfn, level, self.prepared[gfn, level])
        available = self.vm.available()
        yield ("prepare", gfn, level, available)
        if available <= MIN_FREE_MMU_PAGES:
            return ENOSPC, False
        if self.vm.take_resched() or place in self.env.drops:
            yield ("dropped", gfn, level, int(self.flush))
            self.flushes += self.flush
            self.flush = False
            yield from self._allocate(gfn, level, place not in self.env.blocking_failures)
            return (0 if self.spare else ENOMEM), True
        yield from self._allocate(gfn, level, place not in self.env.nowait_failures)
        return 0, False

    def _allocate(self, gfn: int, level: int, success: bool) -> Iterator[Step]:
        if self.spare:
            yield ("leaked", gfn, level)
        self.spare = success

    def _split(self, huge_sp: ShadowPage, index: int, spte: int, gfn: int) -> Generator[Step, None, int]:
        """split_huge_page: the child page is filled where no other SPTE maps the gfn, then linked."""
        vm, role = self.vm, child_role(huge_sp, index)
        level = huge_sp.role.level
        existing = yield from self._find_direct(gfn, role, huge_sp.variant)
        if existing is not None:
            yield ("alias", gfn, role.level)
        if existing is not None or not self.spare:
            return EOPNOTSUPP
        self.spare = False
        child = vm.alloc_page(vm.gen, gfn, role, huge_sp.variant)
        yield ("get_page", page_text(vm.gen, gfn, role, True, self.with_read))
        filled = 0
        for at in range(SPTES):
            child_gfn = gfn + at * pages_per(role.level)
            if vm.rmap.used(role.level, child_gfn):
                self.flush = True
                yield ("nonpresent", child_gfn, role.level, gfn)
            else:
                vm.install(child, at, child_gfn, child_spte(vm.layout, spte, at, role), role.access)
                filled += 1
        vm.link(huge_sp, index, child)
        yield ("done", gfn, level, filled, SPTES - filled)
        return 0

    def _find_direct(self, gfn: int, role: Role, variant: int) -> Generator[Step, None, ShadowPage | None]:
        """find_direct_sp: any unsync page of the gfn that comes first in the bucket is zapped for a 2M
        child.
        """
        found, zapped = find_page(self.vm, gfn, role, variant)
        for _ in range(zapped):
            yield ("zap", gfn)
        self.flushes += bool(zapped)
        return found


class SplitV2Desc(SplitV2):
    """With patch 23: child rmaps grow, so that every split is full, and a spare page is kept."""

    reuses = False

    def _allocate(self, gfn: int, level: int, success: bool) -> Iterator[Step]:
        self.spare = self.spare or success
        yield from ()

    def _split(self, huge_sp: ShadowPage, index: int, spte: int, gfn: int) -> Generator[Step, None, int]:
        vm, role = self.vm, child_role(huge_sp, index)
        child = yield from self._find_direct(gfn, role, huge_sp.variant)
        created = child is None
        if child is None:
            self.spare = False
            child = vm.alloc_page(vm.gen, gfn, role, huge_sp.variant)
        elif not self.reuses:
            yield ("alias", gfn, role.level)
            return EOPNOTSUPP
        yield ("get_page", page_text(vm.gen, gfn, role, created, self.with_read))
        kept = len(child.sptes)
        self.flushes += any(isinstance(below, ShadowPage) for below in child.sptes.values())
        for at in range(SPTES):
            if at not in child.sptes:
                child_gfn = gfn + at * pages_per(role.level)
                vm.install(child, at, child_gfn, child_spte(vm.layout, spte, at, role), role.access)
        vm.link(huge_sp, index, child)
        yield ("filled", gfn, huge_sp.role.level, SPTES - kept, kept)
        return 0


class SplitV2Alias(SplitV2Desc):
    """With patches 23 to 25: an existing child is reused; one flush if it leads to a table below."""

    reuses = True


def find_page(vm: Vm, gfn: int, role: Role, variant: int) -> tuple[ShadowPage | None, int]:
    """kvm_mmu_find_shadow_page: the page, and how many unsync ones before it in the bucket were zapped."""
    zapped = 0
    for sp in reversed(list(vm.by_gfn.get(gfn, ()))):
        if sp.gen != vm.gen:
            continue
        if sp.role == role and sp.variant == variant:
            return sp, zapped
        if role.level > 1 and sp.unsync:
            vm.zap_page(sp, 0)
            zapped += 1
    return None, zapped


def child_role(parent: ShadowPage, index: int) -> Role:
    """kvm_mmu_child_role of a direct child."""
    role = parent.role
    quadrant = index & 1 if role.gpte_bytes == 4 else role.quadrant
    return role._replace(level=role.level - 1, direct=True, access=parent.access_at(index), quadrant=quadrant)


def child_spte(layout: Layout, huge: int, index: int, role: Role) -> int:
    """make_huge_page_split_spte: a 4K child is executable where its role allows it."""
    spte = huge + (index * pages_per(role.level) << 12)
    if role.level == 1:
        spte = layout.executable(spte & ~PT_PAGE_SIZE, role.access)
    return spte | SPTE_MMU_PRESENT
