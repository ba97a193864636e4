"""The census: facts about each attempt and each walk that no outcome needs, for ``replay review``.

Kept in records beside those of attempts and windows, if a census is asked for; without one every
function here returns at once.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from replay.jit import jit
from replay.mmu.kernel.rmap import pte_list_count, rmap_head
from replay.mmu.kernel.role import ACCESS_SHIFT, child_key, key_level, key_vm
from replay.mmu.kernel.shadow_page import find_shadow_page, get_spte, sptep_access
from replay.mmu.kernel.spte import is_last_spte, is_shadow_present_pte, spte_access
from replay.mmu.results.tables import attempts
from replay.mmu.state.counters import Counter
from replay.mmu.state.mmu import Mmu
from replay.mmu.state.records import (
    ATTEMPT_CENSUS,
    LENGTHS,
    NO_TABLE,
    TDP_KEY,
    UNIFORM,
    WINDOW_CENSUS,
    PageFlag,
)
from replay.schema import Role

SCAN_LIMIT = 1 << 30
"""Shadow pages looked at to count hash collisions, over all attempts: some seconds."""
KVM_MMU_HASH_SHIFT = 12


@jit
def kernel_bucket(gfn: int) -> int:
    """kvm_page_table_hashfn(): hash_64(gfn, KVM_MMU_HASH_SHIFT), one of 4096."""
    return np.int64((np.uint64(gfn) * np.uint64(0x61C8864680B583EB)) >> np.uint64(64 - KVM_MMU_HASH_SHIFT))


@jit
def hash_collisions(m: Mmu, gfn: int, key: int, child: int) -> int:
    """What for_each_valid_sp() in kvm_mmu_find_shadow_page() passes of other gfns; newer pages come first."""
    if m.ctl.scanned > SCAN_LIMIT:
        return -1
    m.ctl.scanned += m.ctl.sp_top
    bucket = kernel_bucket(gfn)
    collisions = 0
    for i in range(m.ctl.sp_top):
        other = m.sp[i].key
        if (
            m.sp[i].page_flags & (PageFlag.LIVE | PageFlag.INVALID) == PageFlag.LIVE
            and m.sp[i].gfn != gfn
            and key_vm(other) == key_vm(key)
            and not (other ^ key) & Role.GEN
            and not other & TDP_KEY
            and kernel_bucket(m.sp[i].gfn) == bucket
        ):
            collisions += child < 0 or m.sp[i].birth > m.sp[child].birth
    return collisions


@jit
def occupied_children(m: Mmu, vm: int, gfn: int, level: int) -> int:
    """How many of the 512 child gfns of the huge page at ``gfn`` and ``level`` are mapped already."""
    n = 0
    for index in range(512):
        n += rmap_head(m, vm, gfn + (index << (9 * (level - 2))), level - 1) != 0
    return n


@jit
def count_length(m: Mmu, w: int, level: int, head: int) -> None:
    """Count the rmap list at ``head`` among those of its length, in the census of window ``w``."""
    n = pte_list_count(m, head)
    if n:
        m.window_census[w].lengths[(level - 1) * LENGTHS + min(n, LENGTHS) - 1] += 1


@jit
def count_lengths(m: Mmu, vm: int, w: int) -> None:
    """The lengths of all rmap lists of ``vm``, into the census of window ``w``."""
    walked = m.window_census[w]
    walked.descriptors = m.ctl.desc_used
    for g in range(m.gib.shape[0]):
        gib = m.gib[g]
        if gib.key < 0 or gib.key & 0xFFFF != vm:
            continue
        count_length(m, w, 3, gib.head)
        for r in range(gib.region, gib.region + 512):
            count_length(m, w, 2, m.region[r].head)
            b = m.region[r].block
            if b == UNIFORM:
                walked.lengths[0] += 512
            elif b != NO_TABLE:
                for i in range(512):
                    count_length(m, w, 1, m.block[b, i])


@jit
def census_attempt(m: Mmu, w: int, sptep: int, spte: int, o: int) -> None:
    """What attempt ``o`` finds at the huge SPTE ``sptep`` before anything is done."""
    if not m.ctl.has_census:
        return
    win = m.window[w]
    vm = win.vm
    if not m.vm[vm].seen:
        m.vm[vm].seen = 1
        count_lengths(m, vm, w)
    found = m.attempt_census[o]
    sp = sptep // 512
    gfn, level = win.gfn, win.level
    layout = m.vm[vm].layout
    guest = sptep_access(m, sp, sptep % 512)
    granted = guest & spte_access(spte, layout)
    key = child_key(m.sp[sp].key, sptep % 512, True, guest)
    child = find_shadow_page(m, gfn, key)
    found.huge_spte = m.sp[sp].birth * 512 + sptep % 512
    found.guest_access = guest
    found.spte_access = granted
    found.child_exists = child >= 0
    found.other_exists = find_shadow_page(m, gfn, key & ~Role.ACCESS | granted << ACCESS_SHIFT) >= 0
    if child >= 0:
        found.child_parents = pte_list_count(m, m.sp[child].parent_ptes)
        for index in range(512):
            entry = get_spte(m, child, index)
            if is_shadow_present_pte(entry):
                found.child_present += 1
                found.child_nonleaf += not is_last_spte(entry, key_level(key))
    found.occupied = occupied_children(m, vm, gfn, level)
    found.rmap_length = pte_list_count(m, rmap_head(m, vm, gfn, level))
    found.collisions = hash_collisions(m, gfn, key, child)
    found.hold = (
        m.counter[Counter.RETRIES_CACHE]
        + m.counter[Counter.RETRIES_RESCHED]
        + m.counter[Counter.ENV_YIELDS]
        + m.counter[Counter.ENV_ALLOC_FAILURES]
    )
    found.leaked = win.leaked
    found.used = m.vm[vm].n_used_mmu_pages
    found.limit = m.vm[vm].n_max_mmu_pages
    found.layout = layout
    found.range = m.window_census[w].ranges
    found.owed = win.owed and not win.head_flush


@jit
def census_descriptors(m: Mmu, o: int, used: int) -> None:
    """The split of attempt ``o`` took ``used`` pte_list_desc."""
    if m.ctl.has_census:
        m.attempt_census[o].descriptors = used


@jit
def census_head(m: Mmu, w: int) -> None:
    """The walk of window ``w`` has come to another rmap head."""
    if not m.ctl.has_census:
        return
    win, walked = m.window[w], m.window_census[w]
    start, end = win.start, win.end
    if win.level == 3 and win.gfn == start >> 18 << 18:
        walked.ranges += 1
        walked.pages += max(end - start, 0)
        walked.no_page += end <= start
        walked.end_alone += end > start and end & 511 == 0
        walked.last_alone += end - 1 > start and (end - 1) & 511 == 0
    if m.vm[win.vm].has_rmaps:  # else the memslots have no rmaps, and the kernel does not walk them
        walked.heads += 1
        walked.empty_heads += rmap_head(m, win.vm, win.gfn, win.level) == 0


class Census(NamedTuple):
    """Columns of int64 by name."""

    attempts: dict[str, np.ndarray]  # one row an outcome, as in the outcome table
    windows: dict[str, np.ndarray]
    lengths: np.ndarray  # [3 levels, LENGTHS] rmap heads by number of entries, at each VM's first attempt
    caches: dict[str, int]  # objects in the split caches at the end, over all VMs


def collect(m: Mmu) -> Census:
    """The census of a finished replay."""
    found = m.attempt_census[: m.ctl.attempt_top]
    walked = m.window_census[: m.ctl.window_top]
    return Census(
        attempts={name: column.astype(np.int64) for name, column in attempts(m).items()}
        | {name: found[name] for name in ATTEMPT_CENSUS.names or ()},
        windows={name: walked[name] for name in WINDOW_CENSUS.names or () if name != "lengths"},
        lengths=walked.lengths.sum(axis=0).reshape(3, LENGTHS),
        caches={
            "descriptors": int(m.vm.desc_cache.sum()),
            "headers": int(m.vm.header_cache.sum()),
            "pages": int(m.vm.page_cache.sum()),
        },
    )
