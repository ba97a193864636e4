"""Huge pages in small states, and windows that split them."""

from __future__ import annotations

from replay.mmu.kernel import rmap, shadow_page
from replay.mmu.kernel.role import ACC_ALL, ACCESS_SHIFT, make_key
from replay.mmu.results import tables
from replay.mmu.split import walk, window
from replay.mmu.state import mmu
from replay.policy import KnobCodes, Policy
from replay.schema import FlushCause

GFN = 1 << 18
HUGE = 0x140000EE7
ALL = ACC_ALL << ACCESS_SHIFT
NEVER = (0, -1)
V2 = Policy.parse("v2").codes()


def knobs(policy: str) -> KnobCodes:
    return Policy.parse(policy).codes()


def huge_page(
    m: mmu.Mmu, number: int, gfn: int = GFN, level: int = 2, access: int = ACC_ALL, variant: int = 0
) -> int:
    """An indirect page, ``number`` its own gfn, whose SPTE 0 maps ``gfn``; gives its sptep."""
    sp = shadow_page.alloc_shadow_page(m, number, make_key(ALL | level, variant, 0), 0)
    shadow_page.install_leaf(m, sp, 0, gfn, HUGE | gfn << 12, access, rmap.ORDER_APPEND)
    return int(sp * 512)


def opened(m: mmu.Mmu, npages: int = 1024, free: int = 1 << 20) -> int:
    m.vm[0].n_max_mmu_pages = m.vm[0].n_used_mmu_pages + free
    return int(window.open_window(m, 0, 1, 0, -1, GFN, GFN + npages, 1))


def run(m: mmu.Mmu, w: int, k: KnobCodes = V2) -> list[tuple[int, int, int]]:
    """Walk to the end: gfn, outcome and SPTEs left non-present of each attempt."""
    while True:
        stop = walk.advance(m, w, k, NEVER, False)
        assert stop != walk.STOP_NO_ROOM
        if stop == walk.STOP_DONE:
            break
    columns = tables.attempts(m)
    return list(zip(*(columns[name].tolist() for name in ("gfn", "outcome", "nonpresent")), strict=True))


def flushes(m: mmu.Mmu, w: int) -> dict[str, int]:
    counts = m.window[w].flushes
    return {cause.name: int(n) for cause, n in zip(FlushCause, counts, strict=True) if n}
