"""Which kinds of events a recording lacks that it must have had: the one place that knows them."""

from __future__ import annotations

from collections.abc import Iterator

from replay.mmu.evidence.facts import TraceFacts
from replay.schema import Kind

_TOGETHER = (
    (Kind.SET_REGION, Kind.COMMIT_REGION),
    (Kind.SLOT_TRY_SPLIT, Kind.SLOT_TRY_SPLIT_RET),
    (Kind.TRY_SPLIT, Kind.TRY_SPLIT_RET),
    (Kind.V2_TRY_SPLIT_BEGIN, Kind.V2_TRY_SPLIT_END),
)
"""Either leaves a line wherever the other does."""


_OF_RANGES = (Kind.TRY_SPLIT, Kind.TRY_SPLIT_RET)


def lacking(facts: TraceFacts, vm: int, shadow_only: bool = False) -> list[Kind]:
    """Kinds that the recording has of no VM, although ``vm`` has events that never come without them.

    ``shadow_only``: the recording kernel is known to split without a TDP MMU, too.
    """
    needed = [*_of_tracepoints(facts, vm, shadow_only), *_of_probes(facts, vm), *_of_patch_probes(facts, vm)]
    return [kind for kind in dict.fromkeys(needed) if not facts.total(kind)]


def _of_tracepoints(facts: TraceFacts, vm: int, shadow_only: bool) -> Iterator[Kind]:
    of_vm = facts.facts[vm]
    if of_vm.window_splits:
        yield Kind.SPLIT_HUGE_PAGE
    if of_vm.zaps_of_pages:
        yield Kind.PREPARE_ZAP_PAGE
    if facts.hides_windows(vm):
        yield Kind.TDP_TRY_SPLIT
    if facts.has(vm, Kind.TDP_TRY_SPLIT):
        yield Kind.TDP_MMU_SPTE_CHANGED
    if not of_vm.shadow_splits:
        return
    yield Kind.GET_PAGE
    yield Kind.SET_SPTE
    yield Kind.SPTE_REQUESTED
    if not (facts.shows_v2 or shadow_only):  # merged code splits nothing without the TDP MMU
        yield Kind.TDP_MMU_SPTE_CHANGED
    if of_vm.indirect_pages:
        if facts.tdp_mmu[0] is None and not shadow_only:
            yield Kind.TDP_MMU_SPTE_CHANGED
        yield Kind.PAGETABLE_WALK
        yield Kind.PAGING_ELEMENT


def _of_probes(facts: TraceFacts, vm: int) -> Iterator[Kind]:
    for first, second in _TOGETHER:
        if facts.has(vm, first, second):
            yield first
            yield second
    if facts.has(vm, Kind.SLOT_TRY_SPLIT, Kind.SLOT_TRY_SPLIT_RET):
        yield Kind.SET_REGION
        yield Kind.COMMIT_REGION
    if not facts.facts[vm].shadow_splits:
        return
    if not facts.has(vm, Kind.MARK_MEMSLOT):
        yield Kind.SET_REGION  # limit, host addresses and read-only memory are those of slots
    if facts.shows_v2:  # has the shadow MMU's part inlined, and may have no TDP MMU
        return
    if facts.has(vm, Kind.SHADOW_TRY_SPLIT, Kind.TDP_TRY_SPLIT):
        yield Kind.SHADOW_TRY_SPLIT
        yield Kind.TDP_TRY_SPLIT


def _of_patch_probes(facts: TraceFacts, vm: int) -> Iterator[Kind]:
    """Probes inside the v2 series."""
    of_vm = facts.facts[vm]
    if facts.has(vm, Kind.V2_TRY_SPLIT_BEGIN) and not facts.has(vm, *_OF_RANGES):
        yield Kind.SLOT_TRY_SPLIT
    if (of_vm.lock_drops and facts.total(Kind.SPLIT_HUGE_PAGE)) or facts.has(vm, Kind.V2_DROP_FLUSH):
        yield Kind.V2_LOCK_DROPPED
    if of_vm.alloc_failures and facts.probe_lines:
        yield Kind.V2_ALLOC_FAILED
    if of_vm.late_flushes and facts.probe_lines:
        yield Kind.V2_RANGE_YIELD
