"""What a trace holds, found in one pass before the replay: recorded outcomes, probes, TDP MMUs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from replay.jit import by_reference, jit, kernel, new_records
from replay.kernel import MERGED, POSTED, KernelVersion
from replay.mmu.evidence.spte_layout import SIGNS, count_leaf, count_role, has_pml_sptes, layout_of
from replay.mmu.kernel.spte import (
    PT_PAGE_SIZE_MASK,
    SHADOW_NONPRESENT_VALUE,
    is_last_spte,
    is_shadow_present_pte,
)
from replay.policy import PRESETS
from replay.schema import (
    EAGAIN,
    EINVAL,
    ENOMEM,
    ENOSPC,
    EOPNOTSUPP,
    LAST_KVMMMU,
    NOWAIT_FAILED,
    Columns,
    Flag,
    Kind,
    Role,
)

VM_FACTS = np.dtype(
    [
        ("shadow_splits", np.int64),
        ("eagain_splits", np.int64),
        ("v2_splits", np.int64),  # errors that only the v2 series gives
        ("log_changes", np.int64),
        ("log_control", np.int64),  # control lines that switch dirty logging on, or clear the log
        (
            "shadow_part_splits",
            np.int64,
        ),  # successful splits between shadow_try_split and the end of that part
        ("shadow_part_flushes", np.int64),
        ("in_shadow_part", np.int64),
        ("huge_sptes", np.int64),
        (
            "nonpresent_sptes",
            np.int64,
        ),  # TDP SPTEs that are non-present by bit 63, as 6.10 and later print them
        ("indirect_pages", np.int64),  # kvm_mmu_get_page lines of pages that shadow a guest's table
        ("first_lost", np.int64),  # line of the first loss that the trace marks, in row 0 whatever the VM
        ("vmm_marks", np.int64),  # control lines that the VMM wrote itself
        ("vmm_clears", np.int64),  # those of them that clear the log
        ("clear_dirty_passes", np.int64),  # passes of dirty logging that spare 4K SPTEs, as PML has them
        ("window_task", np.int64),  # pid + 1 of the task that probes show in a window, 0 none
        ("window_kind", np.int64),  # kind of that task's last event
        ("window_splits", np.int64),  # lines in windows that only a split leaves, beside its own
        ("late_flushes", np.int64),  # flushes in windows right after a head of the v2 series
        ("lock_drops", np.int64),  # restarts of the v2 series after the lock was dropped
        (
            "alloc_failures",
            np.int64,
        ),  # of the v2 series: lock drops for them, splits that fail after a lock drop
        ("zaps_of_pages", np.int64),  # kvm_mmu_zap_all_fast lines of VMs that have shadow pages
        (
            "eager_tdp_splits",
            np.int64,
        ),  # splits in the TDP MMU by tasks that had no fault, outside windows of probes
        ("window_prepare", np.int64),  # gfn + 1 of the head of that event, if it is v2_prepare
        (
            "first_event",
            np.int64,
        ),  # what the first event that needs a root shows: FROM_BIRTH or LATE; 0 there is none
        ("splits_with_page", np.int64),  # shadow pages that recorded splits made
        ("signs", np.int64, SIGNS),  # the counts of spte_layout.py
    ]
)
"""What is counted of one VM."""
FROM_BIRTH = 1  # of ``first_event``: a root is made, so that all of the VM's life is in the trace
LATE = 2
KINDS = 128
PAGE_MADE = 1 << 16  # as a kind: kvm_mmu_get_page of a new page
# in ``window_kind``, beside kinds
_LATE_FLUSH = KINDS  # a flush that no lock drop explains
_HEAD_LEFT = KINDS + 1  # v2_restart after a split, of which nothing need follow in its head
_PREPARED_AGAIN = KINDS + 2  # v2_prepare of the same head as the event before
_HAS_SPLIT = KINDS + 3  # the line of a split
_TASKS = 1024
_MERGED = (MERGED, "linux-2026")


FACT_COLUMNS = (
    "kind", "vm", "pid", "gfn", "level", "flags", "old_spte", "spte", "code", "num", "role", "line",
)  # fmt: skip
"""What ``scan_rows`` reads of an event."""


@jit
def note_window(c: Columns, i: int, facts: Any) -> None:
    """Count in ``facts``, those of the VM, what event ``i`` shows of a window that probes open."""
    kind, task = c.kind[i], np.int64(c.pid[i]) + 1
    if Kind.SLOT_TRY_SPLIT <= kind <= Kind.TDP_TRY_SPLIT or kind == Kind.V2_TRY_SPLIT_BEGIN:
        ends = kind == Kind.SLOT_TRY_SPLIT_RET or kind == Kind.TRY_SPLIT_RET
        facts.window_task = 0 if ends else task
    if facts.window_task != task or task <= 0:  # 0: no task is printed
        return
    if (
        kind == Kind.PAGE_FAULT
        or kind == Kind.PAGETABLE_WALK
        or kind == Kind.SPTE_REQUESTED
        or kind == Kind.SET_SPTE
    ):
        facts.window_task = 0
        return
    if kind == Kind.GET_PAGE:
        facts.window_splits += c.role[i] & np.uint32(Role.DIRECT) != 0
    elif kind == Kind.TDP_MMU_SPTE_CHANGED and c.level[i] > 1:
        level, old, new = np.int64(c.level[i]), np.int64(c.old_spte[i]), np.int64(c.spte[i])
        was_huge = is_shadow_present_pte(old) and is_last_spte(old, level)
        facts.window_splits += was_huge and is_shadow_present_pte(new) and not is_last_spte(new, level)
    elif kind == Kind.V2_SPLIT_DONE:
        facts.window_splits += 1
    elif kind == Kind.V2_PREPARE:
        facts.window_splits += 1
        if facts.window_prepare == np.int64(c.gfn[i]) + 1:
            kind = _PREPARED_AGAIN
    elif kind == Kind.V2_SP_LEAKED:
        facts.lock_drops += facts.window_kind == _PREPARED_AGAIN
    elif kind == Kind.V2_RESTART:
        facts.lock_drops += c.code[i] != 0 and facts.window_kind != _HAS_SPLIT
    if facts.window_kind == _LATE_FLUSH and kind != Kind.V2_TRY_SPLIT_END and kind != Kind.V2_FINAL_FLUSH:
        facts.late_flushes += 1  # not the one at the end of the walk, and nothing is owed after it
    if kind == Kind.FLUSH_REMOTE_TLBS:
        last = facts.window_kind
        left = last == _HEAD_LEFT or last == _HAS_SPLIT or last == Kind.V2_SP_FREED_UNUSED
        if left or last == Kind.V2_SPLIT_DONE or last == Kind.V2_PREPARE:
            kind = _LATE_FLUSH
    elif (kind == Kind.V2_RESTART and c.code[i] == 0) or (
        kind == Kind.SPLIT_HUGE_PAGE and c.num[i] == -ENOSPC
    ):
        kind = _HEAD_LEFT
    elif kind == Kind.SPLIT_HUGE_PAGE and c.num[i] == 0:
        kind = _HAS_SPLIT
    elif kind == Kind.V2_LOCK_DROPPED:
        facts.alloc_failures += c.code[i] == NOWAIT_FAILED
    elif kind == Kind.SPLIT_HUGE_PAGE and c.num[i] == -ENOMEM:
        facts.alloc_failures += (
            facts.window_kind == Kind.V2_LOCK_DROPPED or facts.window_kind == Kind.FLUSH_REMOTE_TLBS
        )
    facts.window_kind = kind
    facts.window_prepare = np.int64(c.gfn[i]) + 1 if c.kind[i] == Kind.V2_PREPARE else 0


@jit
def first_event(c: Columns, i: int) -> int:
    """FROM_BIRTH, LATE, or 0 where event ``i`` shows neither."""
    kind, role = c.kind[i], c.role[i]
    if kind == Kind.GET_PAGE:
        is_table = role & np.uint32(Role.DIRECT) != 0 and c.gfn[i] != 0
        is_root = c.flags[i] & Flag.CREATED != 0 and role & np.uint32(Role.LEVEL) > 1 and not is_table
        return FROM_BIRTH if is_root else LATE
    is_late = (
        kind == Kind.TDP_MMU_SPTE_CHANGED
        or kind == Kind.SET_SPTE
        or kind == Kind.SPTE_REQUESTED
        or kind == Kind.SPLIT_HUGE_PAGE
    )
    return LATE if is_late or kind == Kind.PREPARE_ZAP_PAGE else 0


class Counts(NamedTuple):
    """What one pass over the events of a trace fills."""

    kinds: np.ndarray  # [VMs + 1, KINDS] events of each kind; the last row is of no VM
    facts: Any  # [VMs] VM_FACTS
    last: np.ndarray  # [_TASKS, 2] the last event of each task: pid and kind
    faulted: np.ndarray  # [_TASKS] not 0 for tasks that had a fault


@kernel
def scan_rows(columns: Columns, counts: Counts) -> None:
    """Add the events of a batch to ``counts``."""
    c, n = by_reference(columns), by_reference(counts)
    for i in range(len(c.kind)):
        vm = c.vm[i]
        kind = c.kind[i]
        if kind == Kind.LOST_EVENTS and n.facts[0].first_lost == 0:
            n.facts[0].first_lost = c.line[i]
        if vm < 0:
            n.kinds[n.kinds.shape[0] - 1, kind] += 1
            continue
        n.kinds[vm, kind] += 1
        of_vm = n.facts[vm]
        note_window(c, i, of_vm)
        if of_vm.first_event == 0:
            of_vm.first_event = first_event(c, i)
        task = c.pid[i] & (_TASKS - 1)
        if kind == Kind.SPLIT_HUGE_PAGE:
            errno = c.num[i]
            tdp = n.last[task, 0] == c.pid[i] and n.last[task, 1] == Kind.TDP_MMU_SPTE_CHANGED
            if tdp and not n.faulted[task] and of_vm.window_task == 0:
                of_vm.eager_tdp_splits += 1
            if not tdp and errno != -16:
                of_vm.shadow_splits += 1
                made = n.last[task, 0] == c.pid[i] and n.last[task, 1] == PAGE_MADE
                of_vm.splits_with_page += made and errno == 0
            if errno == -EAGAIN:
                of_vm.eagain_splits += 1
            if errno == -EOPNOTSUPP or errno == -EINVAL:
                of_vm.v2_splits += 1
            elif errno == 0 and not tdp and of_vm.in_shadow_part:
                of_vm.shadow_part_splits += 1
        elif kind == Kind.GET_PAGE:
            of_vm.indirect_pages += c.role[i] & np.uint32(Role.DIRECT) == 0
            count_role(of_vm.signs, np.int64(c.role[i]))
        elif kind == Kind.TDP_MMU_SPTE_CHANGED:
            of_vm.nonpresent_sptes += np.int64(c.old_spte[i]) == SHADOW_NONPRESENT_VALUE
            if is_shadow_present_pte(np.int64(c.spte[i])):
                count_leaf(of_vm.signs, np.int64(c.spte[i]), np.int64(c.level[i]))
        elif kind == Kind.SET_SPTE:
            of_vm.huge_sptes += c.level[i] > 1
            leaf = np.int64(c.spte[i]) | PT_PAGE_SIZE_MASK  # whatever its level
            count_leaf(of_vm.signs, leaf, np.int64(c.level[i]))
        elif kind == Kind.ZAP_ALL_FAST:
            of_vm.zaps_of_pages += c.num[i] > 0
        elif kind == Kind.SLOT_REMOVE_WRITE_ACCESS:
            of_vm.clear_dirty_passes += c.level[i] > 1
        elif kind == Kind.SLOT_LEAF_CLEAR_DIRTY:
            of_vm.clear_dirty_passes += 1
        elif kind == Kind.COMMIT_REGION and c.num[i] > 2:
            of_vm.log_changes += 1
        elif kind == Kind.PAGE_FAULT:
            n.faulted[task] = 1
        elif kind == Kind.SET_REGION or kind == Kind.MARK_MEMSLOT:
            of_vm.log_control += c.code[i] & np.uint64(1) != 0
            of_vm.vmm_marks += kind == Kind.MARK_MEMSLOT and c.flags[i] & Flag.VMM != 0
        elif kind == Kind.MARK_CLEAR_DIRTY_LOG:
            of_vm.log_control += 1
            of_vm.vmm_marks += c.flags[i] & Flag.VMM != 0
            of_vm.vmm_clears += c.flags[i] & Flag.VMM != 0
        elif kind == Kind.SHADOW_TRY_SPLIT:
            of_vm.in_shadow_part = 1
        elif kind == Kind.TDP_TRY_SPLIT or kind == Kind.SLOT_TRY_SPLIT_RET or kind == Kind.TRY_SPLIT_RET:
            of_vm.in_shadow_part = 0
        elif kind == Kind.FLUSH_REMOTE_TLBS:
            of_vm.shadow_part_flushes += of_vm.in_shadow_part
        if kind <= LAST_KVMMMU:
            n.last[task, 0] = c.pid[i]
            n.last[task, 1] = PAGE_MADE if kind == Kind.GET_PAGE and c.flags[i] & Flag.CREATED else kind


@dataclass(frozen=True)
class TraceFacts:
    """Counts by VM, as in :class:`Counts`."""

    kinds: np.ndarray
    facts: Any
    role_words: bool = False
    """Roles have all bits of the kernel's, guest_mode too."""

    def has(self, vm: int, *kinds: Kind) -> bool:
        return any(self.kinds[vm, kind] for kind in kinds)

    def total(self, *kinds: Kind) -> int:
        return int(sum(self._totals[kind] for kind in kinds))

    @cached_property
    def _totals(self) -> np.ndarray:
        return self.kinds.sum(axis=0)

    def has_mmu_events(self, vm: int) -> bool:
        """``vm`` has events of the system kvmmmu."""
        return bool(self.kinds[vm, 1 : LAST_KVMMMU + 1].any())

    @cached_property
    def probe_lines(self) -> int:
        """Lines of the probes of the v2 series."""
        return int(self.kinds[:, Kind.V2_LOCK_DROPPED : Kind.V2_RESTART + 1].sum())

    @property
    def first_lost_line(self) -> int:
        """The first line that marks a loss; 0 where the trace tells only that there was one."""
        return int(self.facts[0].first_lost)

    @cached_property
    def shows_v2(self) -> bool:
        """Probes or errors show the v2 series."""
        return self.probe_lines > 0 or bool(self.facts.v2_splits.sum())

    def tdp_mmu_of(self, vm: int) -> bool:
        """Whether eager splitting of ``vm`` meets kvm.tdp_mmu=Y, as far as the trace shows.

        A VM that has no line of the TDP MMU, where others have some, is taken as one of another kernel.
        """
        if self.total(Kind.TDP_MMU_SPTE_CHANGED):
            return self.has(vm, Kind.TDP_MMU_SPTE_CHANGED)
        return bool(self.tdp_mmu[0])

    @cached_property
    def tdp_mmu(self) -> tuple[bool | None, str]:
        """Whether the kernel's TDP MMU was on, None where no line shows it, and what shows it."""
        if self.total(Kind.TDP_MMU_SPTE_CHANGED):
            return True, "kvm_tdp_mmu_spte_changed lines"
        if self.total(Kind.TDP_TRY_SPLIT):
            return True, "the probe of the TDP MMU's eager split"
        if self.facts.eagain_splits.sum():
            return True, "splits that ended in -EAGAIN"
        if self.total(Kind.SHADOW_TRY_SPLIT) and not self.shows_v2:
            return True, "the probe of the shadow MMU's eager split, which merged code calls with it only"
        if self.total(Kind.SLOT_TRY_SPLIT, Kind.TRY_SPLIT):
            return False, "split functions ran without the TDP MMU's"
        return None, "no kvm_tdp_mmu_spte_changed line"

    def split_probes(self, vm: int) -> bool:
        """Probes tell when this VM's windows open and close."""
        return self.has(
            vm,
            Kind.SLOT_TRY_SPLIT,
            Kind.TRY_SPLIT,
            Kind.SHADOW_TRY_SPLIT,
            Kind.TDP_TRY_SPLIT,
            Kind.V2_TRY_SPLIT_BEGIN,
        )

    def spte_layout(self, vm: int, kernel: KernelVersion | None) -> int:
        """The layout of this VM's SPTEs, a code of spte.py; ``kernel`` decides where the trace does not."""
        return layout_of(self.facts.signs, vm, kernel)

    def shows_pml(self, vm: int, layout: int) -> bool:
        """The CPU logs what this VM writes, by its SPTEs or by the passes over them."""
        signs = self.facts.signs
        return bool(self.facts[vm].clear_dirty_passes) or has_pml_sptes(signs, vm, layout)

    @property
    def vms(self) -> int:
        return len(self.facts)

    @cached_property
    def flushes_recorded(self) -> bool:
        """The flushes of shadow parts can be counted: lines show where these parts begin."""
        placed = self.total(Kind.SHADOW_TRY_SPLIT, Kind.V2_TRY_SPLIT_BEGIN) > 0
        return self.total(Kind.FLUSH_REMOTE_TLBS) > 0 and (placed or not self.facts.shadow_splits.any())

    @cached_property
    def has_recorded(self) -> bool:
        """There is something to compare with: split lines, or windows that probes saw stay empty."""
        return self.total(Kind.SPLIT_HUGE_PAGE) > 0 or any(self.split_probes(vm) for vm in range(self.vms))

    def vm_has_control(self, vm: int) -> bool:
        """Probes or markers say when dirty logging of this VM changed, or would have."""
        return self.split_probes(vm) or bool(self.facts[vm].log_control)

    def vmm_clears(self, vm: int) -> bool:
        """The VMM itself tells of KVM_CLEAR_DIRTY_LOG, and nothing else of the capability that it needs."""
        return bool(self.facts[vm].vmm_clears) and not self.has(vm, Kind.MARK_MANUAL_PROTECT)

    def hides_windows(self, vm: int) -> bool:
        """Nothing shows where windows of ``vm`` open, other than that they do not where logging begins.

        A task that had no fault split in the TDP MMU: for KVM_CLEAR_DIRTY_LOG.
        """
        known = self.split_probes(vm) or self.has(vm, Kind.MARK_MANUAL_PROTECT, Kind.MARK_CLEAR_DIRTY_LOG)
        return not known and self.has(vm, Kind.PAGE_FAULT) and bool(self.facts[vm].eager_tdp_splits)

    def vmm_marks(self, vm: int) -> bool:
        """The VMM itself writes control lines."""
        return bool(self.facts[vm].vmm_marks)

    @cached_property
    def has_control(self) -> bool:
        """As :meth:`vm_has_control`, for any VM."""
        return any(self.vm_has_control(vm) for vm in range(self.vms))

    @property
    def kernel_knobs(self) -> dict[str, str]:
        """Knobs that the recording kernel's age decides, whatever its policy."""
        if self.facts.nonpresent_sptes.sum():
            return {"rmap_order": "head", "clear_end": "exclusive"}
        return {}

    def _left_huge(self, vm: int) -> bool:
        return (
            self.split_probes(vm)
            and bool(self.facts[vm].huge_sptes)
            and not self.has(vm, Kind.TDP_MMU_SPTE_CHANGED)
        )

    @property
    def _fills_caches(self) -> bool:
        """More pages were made by splits than the caches of merged code hold, which it refills by -EAGAIN."""
        return int(self.facts.splits_with_page.max()) > PRESETS[MERGED].page_capacity

    @property
    def policy_evidence(self) -> tuple[tuple[str, ...], str]:
        """The policies that the recorded outcomes speak for, the likeliest first, and what they show.

        Empty where they say nothing.
        """
        shadow = int(self.facts.shadow_splits.sum())
        if self.probe_lines:
            return (POSTED,), "the trace has probes of the v2 series"
        if self.facts.v2_splits.sum():
            return (POSTED,), "splits failed with errors that only the v2 series gives"
        merged = ""
        if self.facts.eagain_splits.sum():
            merged = "splits ended in -EAGAIN"
        elif shadow and self.total(Kind.SHADOW_TRY_SPLIT):
            merged = "the probe of the shadow MMU's eager split is merged code's"
        if merged:
            splits = int(self.facts.shadow_part_splits.sum())
            if not splits or not self.total(Kind.FLUSH_REMOTE_TLBS):
                return _MERGED, merged
            if self.facts.shadow_part_flushes.sum() >= splits:
                return ("linux-2026",), f"{merged}, and every split flushed"
            return (MERGED,), f"{merged}, and not every split flushed"
        late = self.facts.first_event.max() == LATE and self.tdp_mmu[0] is not False
        if shadow and (self._fills_caches or not late):
            return (POSTED,), "shadow pages were split and no attempt ended in -EAGAIN"
        if any(self._left_huge(vm) for vm in range(self.vms)):
            return _MERGED, "split functions ran and left the huge pages of a VM without TDP MMU alone"
        if self.facts.log_changes.sum() and not self.has_recorded:
            return ("off",), "dirty logging was switched on and nothing was split"
        if self.facts.nonpresent_sptes.sum():
            return _MERGED, "SPTEs that are non-present by bit 63 are of 6.10 or later, which has merged code"
        if shadow:
            few = "the trace begins late, and too few shadow pages were split for one that ends in -EAGAIN"
            return ((*_MERGED, POSTED) if self.tdp_mmu[0] else ()), few
        if self.total(Kind.SPLIT_HUGE_PAGE):
            return (), "only splits of the TDP MMU were recorded, which are alike in all of them"
        return (), "no outcome was recorded"


def scan_facts(batches: Iterable[Columns], vms: int, role_words: bool = False) -> TraceFacts:
    """One pass over all batches of a trace with ``vms`` virtual machines."""
    counts = Counts(
        np.zeros((max(vms, 1) + 1, KINDS), np.int64),
        new_records(max(vms, 1), VM_FACTS),
        np.zeros((_TASKS, 2), np.int64),
        np.zeros(_TASKS, np.int64),
    )
    for batch in batches:
        scan_rows(batch, counts)
    return TraceFacts(counts.kinds, counts.facts, role_words)
