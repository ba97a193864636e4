"""Which kvm_mmu_get_page and prepare_zap_page lines speak of the TDP MMU, by the lines around them."""

from __future__ import annotations

from collections.abc import Sequence

from .parse import Event, Page, TdpChange, parse_tdp_change
from .spte import SPTE_MMU_PRESENT
from .state import align, is_leaf

ROOT_LEVEL = 4


class TdpLines:
    """`following` and `preceding` are the neighbours of each event in its task. Since 7.x a page comes before
    its SPTEs.
    """

    def __init__(
        self, events: Sequence[Event], following: Sequence[int], preceding: Sequence[int], has_tdp: bool
    ) -> None:
        self.events, self.following, self.preceding, self.has_tdp = events, following, preceding, has_tdp
        self.page_before_children = False

    def is_tdp_page(self, at: int, page: Page) -> bool:
        if not self.has_tdp or not page.role.direct:
            return False
        if page.role.level >= ROOT_LEVEL and page.gfn == 0:
            return True
        event = self._neighbour(self.following, at)
        if event is None or event.name != "kvm_tdp_mmu_spte_changed":
            return False
        change = parse_tdp_change(event.text)
        return is_parent(change, page) and is_table(change.new, change.level)

    def _neighbour(self, links: Sequence[int], at: int) -> Event | None:
        return self.events[links[at]] if links[at] >= 0 else None

    def is_tdp_zap(self, at: int, page: Page) -> bool:
        event = self._neighbour(self.following if self.page_before_children else self.preceding, at)
        if (
            not self.has_tdp
            or not page.role.direct
            or event is None
            or event.name != "kvm_tdp_mmu_spte_changed"
        ):
            return False
        change = parse_tdp_change(event.text)
        if self.page_before_children and change.level == page.role.level:
            inside = align(change.gfn, change.level + 1) == page.gfn
            return inside and not change.new & SPTE_MMU_PRESENT
        return is_parent(change, page) and is_table(change.old, change.level)


def is_parent(change: TdpChange, page: Page) -> bool:
    """Is it the SPTE that links `page`?"""
    return change.level == page.role.level + 1 and change.gfn == page.gfn


def is_table(spte: int, level: int) -> bool:
    return bool(spte & SPTE_MMU_PRESENT) and not is_leaf(spte, level)
