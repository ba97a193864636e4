"""Eager splitting of nested shadow pages as merged in 6.0 (shadow_mmu_try_split_huge_pages), one generator
per window.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Iterator
from dataclasses import dataclass

from .kernel import Kernel
from .parse import Role, Step, page_text
from .split_v2 import ENOMEM, ENOSPC, MIN_FREE_MMU_PAGES, Environment, child_role, child_spte, find_page
from .state import MAX_HUGEPAGE_LEVEL, PTE_LIST_EXT, SPTES, ShadowPage, Vm, align, is_leaf, pages_per

EAGAIN = -11
DESC_CAPACITY, DESC_MIN, OBJECTS = 553, 513, 40


@dataclass
class Caches:
    """The VM's split_desc_cache, split_page_header_cache and split_shadow_page_cache."""

    descs: int = 0
    headers: int = 0
    pages: int = 0

    def low(self) -> bool:
        return self.descs < DESC_MIN or not self.headers or not self.pages

    def topup(self) -> None:
        """kvm_mmu_topup_memory_cache does nothing at or above the minimum."""
        if self.descs < DESC_MIN:
            self.descs = DESC_CAPACITY
        self.headers = self.headers or OBJECTS
        self.pages = self.pages or OBJECTS


class SplitMerged:
    """Yields like SplitV2, and ("attempt",) when the arguments of the next trace line are taken."""

    def __init__(self, vm: Vm, env: Environment, kernel: Kernel, caches: Caches) -> None:
        self.vm, self.env, self.kernel, self.caches = vm, env, kernel, caches
        self.flushes = 0
        self.attempts: Counter[tuple[int, int]] = Counter()

    def walk(self, start: int, end: int, target: int) -> Iterator[Step]:
        for level in range(MAX_HUGEPAGE_LEVEL, target, -1):
            first, last = align(start, level), align(end - 1, level)
            for head in (first, *range(first + pages_per(level), last + 1, pages_per(level))):
                while (yield from self._try_first(level, head)):
                    pass

    def _try_first(self, level: int, head: int) -> Generator[Step, None, bool]:
        """rmap_try_split_huge_pages: true when the list has to be walked again."""
        for sp, index in self.vm.rmap.at(level, head):
            spte = sp.sptes[index]
            assert isinstance(spte, int)
            if not is_leaf(spte, level) or sp.invalid or sp.unsync:
                continue
            gfn = sp.gfn_at(index)
            yield ("attempt",)
            error = yield from self._try(sp, index, spte, gfn)
            yield ("split", gfn, spte, level, error)
            return error in (0, EAGAIN)
        return False

    def _try(self, sp: ShadowPage, index: int, spte: int, gfn: int) -> Generator[Step, None, int]:
        """shadow_mmu_try_split_huge_page."""
        level = sp.role.level
        self.attempts[gfn, level] += 1
        place = (gfn, level, self.attempts[gfn, level])
        if self.vm.available() <= MIN_FREE_MMU_PAGES:
            return ENOSPC
        if place in self.env.blocking_failures:
            return ENOMEM
        if self.vm.take_resched() or self.caches.low() or place in self.env.drops:
            self.caches.topup()
            return EAGAIN
        yield from self._split(sp, index, spte, gfn)
        return 0

    def _split(self, huge_sp: ShadowPage, index: int, spte: int, gfn: int) -> Iterator[Step]:
        """shadow_mmu_split_huge_page: present children are kept."""
        vm, role = self.vm, child_role(huge_sp, index)
        child = yield from self._find(gfn, role, huge_sp.variant)
        created = child is None
        if child is None:
            child = vm.alloc_page(vm.gen, gfn, role, huge_sp.variant)
            self.caches.headers -= 1
            self.caches.pages -= 1
        yield ("get_page", page_text(vm.gen, gfn, role, created, self.kernel.with_read))
        flush, kept = self.kernel.always_flush, len(child.sptes)
        for at in range(SPTES):
            if at in child.sptes:
                flush |= isinstance(child.sptes[at], ShadowPage)
                continue
            child_gfn = gfn + at * pages_per(role.level)
            self.caches.descs -= vm.rmap.needs_desc(role.level, child_gfn)
            vm.install(child, at, child_gfn, child_spte(vm.layout, spte, at, role), role.access)
        self.caches.descs -= needs_parent_desc(child)
        vm.link(huge_sp, index, child)
        self.flushes += flush
        yield ("filled", gfn, huge_sp.role.level, SPTES - kept, kept)

    def _find(self, gfn: int, role: Role, variant: int) -> Generator[Step, None, ShadowPage | None]:
        """kvm_mmu_find_shadow_page of a direct page."""
        found, zapped = find_page(self.vm, gfn, role, variant)
        for _ in range(zapped):
            yield ("zap", gfn)
        self.flushes += bool(zapped)
        return found


def needs_parent_desc(child: ShadowPage) -> bool:
    """mmu_page_add_parent_pte: as Rmap.needs_desc."""
    if child.parent_desc:
        return len(child.parents) % PTE_LIST_EXT == 0
    return bool(child.parents)
