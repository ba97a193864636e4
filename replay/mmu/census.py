"""The census: facts about each attempt and each walk that no outcome needs, for ``replay review``.

Kept in further columns of ``Mmu.out`` and ``Mmu.window``, which are there only if a census is asked
for; without them every function here returns at once.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from replay.jit import jit
from replay.mmu.layout import (
    CTL_COUNTERS,
    CTL_DESC_USED,
    CTL_OUT_TOP,
    CTL_SCANNED,
    CTL_SP_TOP,
    CTL_WINDOW_TOP,
    FLAG_INVALID,
    FLAG_LIVE,
    GIB_HEAD,
    GIB_KEY,
    GIB_REGION,
    NO_TABLE,
    REGION_BLOCK,
    REGION_HEAD,
    SP32_BIRTH,
    SP32_FLAGS,
    SP_GFN,
    SP_KEY,
    SP_PARENTS,
    TDP_KEY,
    UNIFORM,
    VM_DESC,
    VM_HAS_RMAPS,
    VM_HEADERS,
    VM_LAYOUT,
    VM_MAX,
    VM_PAGES,
    VM_SEEN,
    VM_USED,
)
from replay.mmu.rmap import pte_list_count, rmap_head
from replay.mmu.role import (
    ACCESS,
    ACCESS_SHIFT,
    GEN,
    child_key,
    key_level,
    key_vm,
)
from replay.mmu.shadow_page import find_shadow_page, get_spte, sptep_access
from replay.mmu.spte import (
    is_last_spte,
    is_shadow_present_pte,
    spte_access,
)
from replay.mmu.state import Mmu
from replay.mmu.tables import attempts
from replay.mmu.window import (
    C_ENV_ALLOC,
    C_ENV_YIELDS,
    C_RETRIES_CACHE,
    C_RETRIES_RESCHED,
    OUT_COLUMNS,
    WIN_COLUMNS,
    WIN_END,
    WIN_GFN,
    WIN_HEAD_FLUSH,
    WIN_LEAKED,
    WIN_LEVEL,
    WIN_OWED,
    WIN_START,
    WIN_VM,
)

# -- columns behind OUT_COLUMNS: what an attempt found ---------------------------------------------
CEN_HUGE_SPTE = OUT_COLUMNS  # identity of the huge SPTE: birth of its page * 512 + index
CEN_GUEST_ACCESS = CEN_HUGE_SPTE + 1  # what the guest allows: the access of the child's role
CEN_SPTE_ACCESS = CEN_HUGE_SPTE + 2  # the same cut down to what the huge SPTE itself allows
CEN_CHILD_EXISTS = CEN_HUGE_SPTE + 3  # a page of the child's gfn and role is there
CEN_OTHER_EXISTS = CEN_HUGE_SPTE + 4  # one with the SPTE's access is there
CEN_CHILD_PARENTS = CEN_HUGE_SPTE + 5  # of the existing child: parent SPTEs,
CEN_CHILD_PRESENT = CEN_HUGE_SPTE + 6  # present SPTEs,
CEN_CHILD_NONLEAF = CEN_HUGE_SPTE + 7  # present SPTEs that lead to a table below
CEN_OCCUPIED = CEN_HUGE_SPTE + 8  # child gfns whose rmap is not empty, 0..512
CEN_RMAP_LENGTH = CEN_HUGE_SPTE + 9  # entries of the huge page's rmap head
CEN_COLLISIONS = (
    CEN_HUGE_SPTE + 10
)  # pages of other gfns before the child in the kernel's hash, -1 not counted
CEN_HOLD = CEN_HUGE_SPTE + 11  # lock drops and yields so far: attempts of one number share a hold
CEN_LEAKED = CEN_HUGE_SPTE + 12  # pages that the window has leaked so far
CEN_USED = CEN_HUGE_SPTE + 13  # n_used_mmu_pages
CEN_LIMIT = CEN_HUGE_SPTE + 14  # n_max_mmu_pages
CEN_LAYOUT = CEN_HUGE_SPTE + 15  # of the SPTEs, see spte.py
CEN_RANGE = CEN_HUGE_SPTE + 16  # which range of the window, 1..
CEN_OWED = CEN_HUGE_SPTE + 17  # a lock drop here would find an earlier head's flush owed
CEN_DESCRIPTORS = CEN_HUGE_SPTE + 18  # pte_list_desc that the split took
OUT_CENSUS_COLUMNS = CEN_DESCRIPTORS + 1

# -- columns behind WIN_COLUMNS: what a window walked --------------------------------------------------
WIN_RANGES = WIN_COLUMNS  # ranges walked: one, or one for each 64-page word of a marker's CLEAR
WIN_PAGES = WIN_COLUMNS + 1  # 4K pages in them
WIN_NO_PAGE = WIN_COLUMNS + 2  # ranges of no page: the kernel still visits their first rmap heads
WIN_END_ALONE = WIN_COLUMNS + 3  # ranges whose ``end`` is the first page of another 2M page
WIN_LAST_ALONE = WIN_COLUMNS + 4  # ranges whose last page is the first of another 2M page
WIN_HEADS = WIN_COLUMNS + 5  # rmap heads visited
WIN_EMPTY_HEADS = WIN_COLUMNS + 6
WIN_DESC_USED = WIN_COLUMNS + 7  # descriptors in use when a VM's first attempt is made here
WIN_LENGTHS = WIN_COLUMNS + 8  # then, for each level, rmap heads with 1, 2 .. LENGTHS entries (or more)
LENGTHS = 16
WIN_CENSUS_COLUMNS = WIN_LENGTHS + 3 * LENGTHS

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
    if m.ctl[CTL_SCANNED] > SCAN_LIMIT:
        return -1
    m.ctl[CTL_SCANNED] += m.ctl[CTL_SP_TOP]
    bucket = kernel_bucket(gfn)
    collisions = 0
    for i in range(m.ctl[CTL_SP_TOP]):
        other = m.sp[i, SP_KEY]
        if (
            m.sp32[i, SP32_FLAGS] & (FLAG_LIVE | FLAG_INVALID) == FLAG_LIVE
            and m.sp[i, SP_GFN] != gfn
            and key_vm(other) == key_vm(key)
            and not (other ^ key) & GEN
            and not other & TDP_KEY
            and kernel_bucket(m.sp[i, SP_GFN]) == bucket
        ):
            collisions += child < 0 or m.sp32[i, SP32_BIRTH] > m.sp32[child, SP32_BIRTH]
    return collisions


@jit
def occupied_children(m: Mmu, vm: int, gfn: int, level: int) -> int:
    """How many of the 512 child gfns of the huge page at ``gfn`` and ``level`` are mapped already."""
    n = 0
    for index in range(512):
        n += rmap_head(m, vm, gfn + (index << (9 * (level - 2))), level - 1) != 0
    return n


@jit
def count_length(m: Mmu, lengths: np.ndarray, level: int, head: int) -> None:
    n = pte_list_count(m, head)
    if n:
        lengths[WIN_LENGTHS + (level - 1) * LENGTHS + min(n, LENGTHS) - 1] += 1


@jit
def count_lengths(m: Mmu, vm: int, w: int) -> None:
    """The lengths of all rmap lists of ``vm``, into the row of window ``w``."""
    lengths = m.window[w]
    lengths[WIN_DESC_USED] = m.ctl[CTL_DESC_USED]
    for g in range(m.gib.shape[0]):
        if m.gib[g, GIB_KEY] < 0 or m.gib[g, GIB_KEY] & 0xFFFF != vm:
            continue
        count_length(m, lengths, 3, m.gib[g, GIB_HEAD])
        for r in range(m.gib[g, GIB_REGION], m.gib[g, GIB_REGION] + 512):
            count_length(m, lengths, 2, m.region[r, REGION_HEAD])
            b = m.region[r, REGION_BLOCK]
            if b == UNIFORM:
                lengths[WIN_LENGTHS] += 512
            elif b != NO_TABLE:
                for i in range(512):
                    count_length(m, lengths, 1, m.block[b, i])


@jit
def census_attempt(m: Mmu, w: int, sptep: int, spte: int, o: int) -> None:
    """What attempt ``o`` finds at the huge SPTE ``sptep`` before anything is done."""
    if m.out.shape[1] == OUT_COLUMNS:
        return
    win = m.window[w]
    vm = win[WIN_VM]
    if not m.vm[vm, VM_SEEN]:
        m.vm[vm, VM_SEEN] = 1
        count_lengths(m, vm, w)
    row = m.out[o]
    sp = sptep // 512
    gfn, level = win[WIN_GFN], win[WIN_LEVEL]
    layout = m.vm[vm, VM_LAYOUT]
    guest = sptep_access(m, sp, sptep % 512)
    granted = guest & spte_access(spte, layout)
    key = child_key(m.sp[sp, SP_KEY], sptep % 512, True, guest)
    child = find_shadow_page(m, gfn, key)
    row[CEN_HUGE_SPTE] = m.sp32[sp, SP32_BIRTH] * 512 + sptep % 512
    row[CEN_GUEST_ACCESS] = guest
    row[CEN_SPTE_ACCESS] = granted
    row[CEN_CHILD_EXISTS] = child >= 0
    row[CEN_OTHER_EXISTS] = find_shadow_page(m, gfn, key & ~ACCESS | granted << ACCESS_SHIFT) >= 0
    if child >= 0:
        row[CEN_CHILD_PARENTS] = pte_list_count(m, m.sp[child, SP_PARENTS])
        for index in range(512):
            entry = get_spte(m, child, index)
            if is_shadow_present_pte(entry):
                row[CEN_CHILD_PRESENT] += 1
                row[CEN_CHILD_NONLEAF] += not is_last_spte(entry, key_level(key))
    row[CEN_OCCUPIED] = occupied_children(m, vm, gfn, level)
    row[CEN_RMAP_LENGTH] = pte_list_count(m, rmap_head(m, vm, gfn, level))
    row[CEN_COLLISIONS] = hash_collisions(m, gfn, key, child)
    for counter in (C_RETRIES_CACHE, C_RETRIES_RESCHED, C_ENV_YIELDS, C_ENV_ALLOC):
        row[CEN_HOLD] += m.ctl[CTL_COUNTERS + counter]
    row[CEN_LEAKED] = win[WIN_LEAKED]
    row[CEN_USED] = m.vm[vm, VM_USED]
    row[CEN_LIMIT] = m.vm[vm, VM_MAX]
    row[CEN_LAYOUT] = layout
    row[CEN_RANGE] = win[WIN_RANGES]
    row[CEN_OWED] = win[WIN_OWED] and not win[WIN_HEAD_FLUSH]


@jit
def census_descriptors(m: Mmu, o: int, used: int) -> None:
    """The split of attempt ``o`` took ``used`` pte_list_desc."""
    if m.out.shape[1] != OUT_COLUMNS:
        m.out[o, CEN_DESCRIPTORS] = used


@jit
def census_head(m: Mmu, w: int) -> None:
    """The walk of window ``w`` has come to another rmap head."""
    if m.window.shape[1] == WIN_COLUMNS:
        return
    win = m.window[w]
    start, end = win[WIN_START], win[WIN_END]
    if win[WIN_LEVEL] == 3 and win[WIN_GFN] == start >> 18 << 18:
        win[WIN_RANGES] += 1
        win[WIN_PAGES] += max(end - start, 0)
        win[WIN_NO_PAGE] += end <= start
        win[WIN_END_ALONE] += end > start and end & 511 == 0
        win[WIN_LAST_ALONE] += end - 1 > start and (end - 1) & 511 == 0
    if m.vm[win[WIN_VM], VM_HAS_RMAPS]:  # else the memslots have no rmaps, and the kernel does not walk them
        win[WIN_HEADS] += 1
        win[WIN_EMPTY_HEADS] += rmap_head(m, win[WIN_VM], win[WIN_GFN], win[WIN_LEVEL]) == 0


class Census(NamedTuple):
    """Columns of int64 by name."""

    attempts: dict[str, np.ndarray]  # one row an outcome, as in the outcome table
    windows: dict[str, np.ndarray]
    lengths: np.ndarray  # [3 levels, LENGTHS] rmap heads by number of entries, at each VM's first attempt
    caches: dict[str, int]  # objects in the split caches at the end, over all VMs


_ATTEMPTS = {
    "descriptors": CEN_DESCRIPTORS,
    "huge_spte": CEN_HUGE_SPTE,
    "guest_access": CEN_GUEST_ACCESS,
    "spte_access": CEN_SPTE_ACCESS,
    "child_exists": CEN_CHILD_EXISTS,
    "other_exists": CEN_OTHER_EXISTS,
    "child_parents": CEN_CHILD_PARENTS,
    "child_present": CEN_CHILD_PRESENT,
    "child_nonleaf": CEN_CHILD_NONLEAF,
    "occupied": CEN_OCCUPIED,
    "rmap_length": CEN_RMAP_LENGTH,
    "collisions": CEN_COLLISIONS,
    "hold": CEN_HOLD,
    "leaked": CEN_LEAKED,
    "used": CEN_USED,
    "limit": CEN_LIMIT,
    "layout": CEN_LAYOUT,
    "range": CEN_RANGE,
    "owed": CEN_OWED,
}
_WINDOWS = {
    "ranges": WIN_RANGES,
    "pages": WIN_PAGES,
    "no_page": WIN_NO_PAGE,
    "end_alone": WIN_END_ALONE,
    "last_alone": WIN_LAST_ALONE,
    "heads": WIN_HEADS,
    "empty_heads": WIN_EMPTY_HEADS,
    "descriptors": WIN_DESC_USED,
}


def collect(m: Mmu) -> Census:
    """The census of a finished replay."""
    rows = m.out[: m.ctl[CTL_OUT_TOP]]
    windows = m.window[: m.ctl[CTL_WINDOW_TOP]]
    lengths = windows[:, WIN_LENGTHS : WIN_LENGTHS + 3 * LENGTHS].sum(axis=0)
    return Census(
        attempts={name: column.astype(np.int64) for name, column in attempts(m).items()}
        | {name: rows[:, column] for name, column in _ATTEMPTS.items()},
        windows={name: windows[:, column] for name, column in _WINDOWS.items()},
        lengths=lengths.reshape(3, LENGTHS),
        caches={
            name: int(m.vm[:, column].sum())
            for name, column in {"descriptors": VM_DESC, "headers": VM_HEADERS, "pages": VM_PAGES}.items()
        },
    )
