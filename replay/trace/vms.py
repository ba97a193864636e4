"""Which VM an event belongs to: by process where the trace tells it, else by the markers."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import numpy as np

from replay.schema import Columns, Kind
from replay.trace.scan.header import Task

MAX_VMS = (1 << 15) - 1
"""VMs of a trace: what the column ``vm`` can tell apart."""
_VM_KEY = re.compile(r"(?:^|\s)vm=(\S+)")


@dataclass
class VmMap:
    """The VMs of a trace and how to find an event's.

    A VM is a process that shows VM activity.  Events of other tasks belong to the only VM if there
    is just one, and to none (-1) if there are several.  Without a tgid column the pids that
    ``vm_create`` markers name are the VMs' processes, other tasks belong to the VM created last;
    without at least two such pids everything is one VM.
    """

    names: list[str] = field(default_factory=list)
    by_tgid: bool = False
    keys: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))  # sorted tgids or pids
    vm_of_key: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int16))
    tgid_of_pid: dict[int, int] = field(default_factory=dict)  # of tasks whose tgid is not always printed
    vm_of_text: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int16))  # -1: names none
    created_lines: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    created_vms: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int16))

    def assign(self, batch: Columns) -> None:
        """Fill the column ``vm`` of ``batch``."""
        if len(self.names) <= 1:
            batch.vm[:] = 0 if self.names else -1
            return
        owner = batch.tgid if self.by_tgid else batch.pid
        if self.by_tgid:
            unknown = np.flatnonzero(owner < 0)
            owner = owner.copy()
            owner[unknown] = [self.tgid_of_pid.get(pid, pid) for pid in batch.pid[unknown].tolist()]
            batch.vm[:] = -1
        else:
            last = np.searchsorted(self.created_lines, batch.line, side="right") - 1
            batch.vm[:] = self.created_vms[np.maximum(last, 0)]
        place = np.minimum(np.searchsorted(self.keys, owner), len(self.keys) - 1)
        known = self.keys[place] == owner
        batch.vm[known] = self.vm_of_key[place[known]]
        marked = np.flatnonzero(batch.text >= 0)
        named = self.vm_of_text[batch.text[marked]]
        batch.vm[marked[named >= 0]] = named[named >= 0]


@dataclass(frozen=True)
class VmCreated:
    """A ``vm_create`` marker: its line, the pid it names or else its task's, the number of its text."""

    line: int
    pid: int
    text: int


@dataclass
class SlotOwners:
    """Tells by the memslots that there are several VMs, where no line tells the process of a task.

    KVM refuses to give a slot another address before it is deleted, and nobody sets one to what it is
    already: two tasks that seem to have two VMs.
    """

    several_vms: bool = False
    # slot: task, region as (address, first gfn, end, flags)
    _slots: dict[int, tuple[int, tuple[int, ...]]] = field(default_factory=dict)

    def note(self, batch: Columns) -> None:
        """Take in the memslots of ``batch``."""
        for row in np.flatnonzero(batch.kind == Kind.SET_REGION).tolist():
            slot, task = int(batch.num[row]), int(batch.pid[row])
            region = tuple(int(column[row]) for column in (batch.addr, batch.gfn, batch.end, batch.code))
            if batch.end[row] == batch.gfn[row]:
                self._slots.pop(slot, None)
                continue
            owner, before = self._slots.get(slot, (task, region))
            self.several_vms |= owner != task and (before[0] != region[0] or before == region)
            self._slots[slot] = task, region


def vm_created(batch: Columns) -> list[VmCreated]:
    """The ``vm_create`` markers of ``batch``."""
    return [
        VmCreated(int(batch.line[row]), int(batch.num[row] or batch.pid[row]), int(batch.text[row]))
        for row in np.flatnonzero(batch.kind == Kind.MARK_VM_CREATE).tolist()
    ]


def find_vms(tasks: list[Task], first_lines: list[int], created: list[VmCreated], texts: list[str]) -> VmMap:
    """The VMs of a trace, in the order in which they appear.

    ``first_lines`` has for each task the line of its first VM activity, 0 none; ``texts`` are those of
    the markers.  Raises ``ValueError`` for more VMs than ``MAX_VMS``.
    """
    has_tgid = any(task.has_tgid_column for task in tasks)
    vms = VmMap(by_tgid=has_tgid)
    named = [match.group(1) if (match := _VM_KEY.search(text)) else "" for text in texts]
    first: dict[int, int] = {}  # line at which a process first shows up as a VM
    if has_tgid:
        vms.tgid_of_pid = {task.pid: task.tgid for task in tasks if task.tgid >= 0}
        for task, line in zip(tasks, first_lines, strict=True):
            if line and task.pid >= 0:
                owner = vms.tgid_of_pid.get(task.pid, task.pid) if task.tgid < 0 else task.tgid
                first[owner] = min(line, first.get(owner, line))
    name_of: dict[int, str] = {}
    for marker in created:
        owner = vms.tgid_of_pid.get(marker.pid, marker.pid) if has_tgid else marker.pid
        first[owner] = min(marker.line, first.get(owner, marker.line))
        name_of[owner] = name_of.get(owner) or named[marker.text]
    if len(first) > MAX_VMS:
        raise ValueError(f"{len(first):,} VMs, of which {MAX_VMS:,} at most can be told apart")
    owners = sorted(first, key=lambda owner: (first[owner], owner))
    word = "tgid" if has_tgid else "pid"
    vms.names = [name_of.get(owner) or f"{word} {owner}" for owner in owners]
    if not owners and any(first_lines):
        vms.names = ["vm0"]
    index_of = {owner: vm for vm, owner in enumerate(owners)}
    vms.keys = np.array(sorted(index_of), np.int64)
    vms.vm_of_key = np.array([index_of[owner] for owner in sorted(index_of)], np.int16)
    name_index = {name: vm for vm, name in enumerate(vms.names)}
    vms.vm_of_text = np.array([name_index.get(name, -1) if name else -1 for name in named], np.int16)
    if not has_tgid:
        vms.created_lines = np.array([marker.line for marker in created], np.int64)
        vms.created_vms = np.array([index_of[marker.pid] for marker in created], np.int16)
    return vms
