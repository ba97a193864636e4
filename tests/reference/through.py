"""Traces without recorded splits: every window that the markers open runs through at its marker.

`run_through` gives what the model predicts, window by window, for comparison with the engine.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from .kernel import detect
from .machine import Vms
from .parse import Event, Step, read_events
from .split_merged import SplitMerged
from .split_v2 import Environment, SplitV2, SplitV2Alias, SplitV2Desc
from .splits import Splits

SPLITS_V2 = {"v2": SplitV2, "v2-desc": SplitV2Desc, "v2-alias": SplitV2Alias}


@dataclass
class Attempt:
    """One split line, with what the child page got; the counts are 0 for an attempt of the TDP MMU."""

    mmu: str
    gfn: int
    level: int
    spte: int
    errno: int
    installed: int = 0
    nonpresent: int = 0
    reused: int = 0
    created: bool = False


@dataclass
class Predicted:
    """One window; `line` is that of its marker. `steps` is all that the model yields, in order."""

    line: int
    tgid: int
    pid: int
    steps: list[Step] = field(default_factory=list)
    flushes: int = 0
    understood: bool = True

    def attempts(self) -> list[Attempt]:
        found: list[Attempt] = []
        child = Attempt("shadow", 0, 0, 0, 0)
        for step in self.steps:
            kind, *values = step
            if kind in ("done", "filled"):
                child.installed = int(values[2])
                child.nonpresent = int(values[3]) if kind == "done" else 0
                child.reused = int(values[3]) if kind == "filled" else 0
            elif kind == "get_page":
                child.created = str(values[0]).endswith(" new")
            elif kind in ("split", "tdp_split"):
                gfn, spte, level, errno = map(int, values)
                mmu = "tdp" if kind == "tdp_split" else "shadow"
                found.append(
                    Attempt(
                        mmu, gfn, level, spte, errno,
                        child.installed, child.nonpresent, child.reused, child.created,
                    )
                )  # fmt: skip
                child = Attempt("shadow", 0, 0, 0, 0)
        return found

    def count(self, kind: str) -> int:
        return sum(step[0] == kind for step in self.steps)


class RunThrough(Splits):
    """Windows that end where they begin. `understood` is lost with the first line that contradicts the
    state.
    """

    windows_run: list[Predicted]

    def open_chain(self, at: int, event: Event, ranges: Iterator[tuple[int, int]]) -> None:
        window = Predicted(event.line, event.tgid, event.pid, understood=not self.inference.notes)
        self.windows_run.append(window)
        for start, end in ranges:
            shadow = self._shadow()
            if shadow is not None:
                window.steps += shadow.walk(start, end, 1)
                window.flushes += shadow.flushes
            window.steps += self.inference.tdp.split(start, end, 1)

    def _shadow(self) -> SplitV2 | SplitMerged | None:
        """Merged kernels split only with tdp_mmu=Y."""
        if self.kernel.policy in SPLITS_V2:
            return SPLITS_V2[self.kernel.policy](self.vm, Environment(), self.kernel.with_read)
        if not self.inference.has_tdp:
            return None
        return SplitMerged(self.vm, Environment(), self.kernel, self.caches)


def run_through(path: Path, policy: str) -> list[Predicted]:
    """The windows of all VMs, in the order of the trace; the policy's knobs stand for the kernel's age."""
    events = list(read_events(path))
    kernel = replace(detect(events), policy=policy, late=False)
    vms = Vms(events, {}, kernel)
    windows: list[Predicted] = []
    for machine in vms.machines.values():
        machine.splits = RunThrough(machine.events, machine.inference, kernel)
        machine.splits.windows_run = windows
        machine.markers.splits = machine.splits
    vms.run()
    return windows
