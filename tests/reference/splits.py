"""The eager-split windows of one VM: which lines are outcomes of which window."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from .infer import Inference
from .kernel import Kernel
from .parse import Event, fields, parse_page, parse_split, parse_tdp_change
from .split_merged import Caches, SplitMerged
from .split_v2 import SplitV2
from .state import ADDRESS_MASK, Vm, align
from .tdp_lines import is_table
from .window import PROBE_KINDS, PROBED, TRACED, Window, scan_environment, scan_outcomes

CHAIN_ENDS = frozenset(
    ("tracing_mark_write", "kvm_page_fault", "kvm_mmu_pagetable_walk", "kvm_mmu_zap_all_fast")
)
WINDOW_EVENTS = frozenset(
    (
        "shadow_try_split",
        "tdp_try_split",
        "topup_cache",
        "flush_remote_tlbs",
        "flush_remote_tlbs_addr",
        "flush_remote_tlbs_range",
        "kvm_mmu_sync_page",
    )
)


class Splits:
    """Windows by task. A window is opened by its own probe, by that of its first part where the kernel has
    the call inlined (`inlined`, with its bounds), or by a marker (`chained`).
    """

    def __init__(self, events: Sequence[Event], inference: Inference, kernel: Kernel) -> None:
        self.events, self.inference, self.kernel = events, inference, kernel
        self.vm = inference.vm
        self.caches = Caches()
        self.windows: dict[int, Window] = {}
        self.inlined: dict[int, tuple[int, int]] = {}
        self.chained: set[int] = set()
        self.shown = PROBED if any(event.name.startswith("v2_") for event in events) else TRACED
        self.total: Counter[str] = Counter()
        self.matched: Counter[str] = Counter()
        self.differences: list[str] = []

    def take(self, at: int, event: Event) -> bool:
        """True when the line is an outcome of a window and must not act on the state; closes windows that
        are over.
        """
        window = self.windows.get(event.pid)
        if window is None:
            return False
        if self._in_window(window, at, event):
            return True
        if event.pid in self.chained:
            over = event.name in CHAIN_ENDS
        else:
            over = event.pid in self.inlined and event.name not in WINDOW_EVENTS
        if over:
            self.close(event)
        return False

    def _in_window(self, window: Window, at: int, event: Event) -> bool:
        """True when the line is an outcome of the window and must not act on the state."""
        if event.name in PROBE_KINDS:
            kind, keys = PROBE_KINDS[event.name]
            value = fields(event.text)
            window.recorded(event.line, (kind, *(value[key] for key in keys)))
            if event.name == "v2_try_split_end":
                window.end_shadow(event.line)
            return True
        if event.name == "kvm_mmu_split_huge_page":
            shadow = window.in_shadow or event.pid in self.chained
            window.recorded(event.line, ("split" if shadow else "tdp_split", *parse_split(event.text)))
            return True
        if event.pid in self.chained:
            return self._in_chain(window, at, event)
        if not window.in_shadow:
            return self._in_tdp_part(window, event)
        if event.name == "flush_remote_tlbs":
            window.recorded_flushes += 1
        elif event.name == "kvm_mmu_get_page":
            window.recorded(event.line, ("get_page", event.text))
        elif event.name == "kvm_mmu_prepare_zap_page":
            window.recorded(event.line, ("zap", parse_page(event.text).gfn))
        else:
            return False
        return True

    def _in_chain(self, window: Window, at: int, event: Event) -> bool:
        """Shadow and TDP lines without the probes that tell them apart."""
        if event.name == "kvm_mmu_get_page":
            if not self.inference.lines.is_tdp_page(at, parse_page(event.text)):
                window.recorded(event.line, ("get_page", event.text))
            return True
        return self._in_tdp_part(window, event)

    def _in_tdp_part(self, window: Window, event: Event) -> bool:
        if event.name == "kvm_mmu_get_page":
            return True
        if event.name != "kvm_tdp_mmu_spte_changed":
            return False
        change = parse_tdp_change(event.text)
        if not is_table(change.new, change.level):
            return False
        self.inference.tdp.tables.add(change.new & ADDRESS_MASK)
        window.recorded(event.line, ("tdp_link", change.gfn, change.level))
        return True

    def open(self, pid: int) -> Window:
        window = self.windows.get(pid)
        if window is None:
            window = self.windows[pid] = Window(self.vm, self.inference.tdp, self.shown)
        return window

    def begin_part(self, at: int, event: Event, start: int, end: int, target: int) -> None:
        """The shadow or the TDP part; without a window probe the first part opens the window (inlined in
        CLEAR).
        """
        if event.pid in self.inlined and (
            event.name != "tdp_try_split" or not self.windows[event.pid].in_shadow
        ):
            self.close(event)
        if event.pid not in self.windows:
            self.inlined[event.pid] = (start, end)
        window = self.open(event.pid)
        if event.name == "tdp_try_split":
            window.begin_tdp(event.line, start, end, target)
        elif event.name == "v2_try_split_begin":
            env = scan_environment(self.events, at + 1, event.pid)
            window.begin_shadow(SplitV2(self.vm, env, self.kernel.with_read), start, end, target)
        else:
            env = scan_outcomes(self.events, at + 1, event.pid)
            window.begin_shadow(SplitMerged(self.vm, env, self.kernel, self.caches), start, end, target)

    def close(self, event: Event) -> None:
        window = self.windows.pop(event.pid, None)
        if window is None:
            return
        if window.in_shadow:
            window.end_shadow(event.line)
        window.drain(event.line)
        self.chained.discard(event.pid)
        bounds = self.inlined.pop(event.pid, None)
        if bounds is not None:
            write_protect_chunk(self.vm, bounds[0], bounds[1] - self.kernel.late)
        self.total += window.total
        self.matched += window.matched
        self.differences += window.differences

    def open_chain(self, at: int, event: Event, ranges: Iterator[tuple[int, int]]) -> None:
        """One window for all ranges, shadow part and TDP part of each in turn, for recordings without
        probes.
        """
        env = scan_outcomes(self.events, at + 1, event.pid)
        shadow: SplitV2 | SplitMerged
        if self.kernel.policy == "v2":
            shadow = SplitV2(self.vm, env, self.kernel.with_read)
        else:
            shadow = SplitMerged(self.vm, env, self.kernel, self.caches)
        self.open(event.pid).begin_chain(shadow, ranges)
        self.chained.add(event.pid)


def write_protect_chunk(vm: Vm, start: int, end: int) -> None:
    """kvm_arch_mmu_enable_log_dirty_pt_masked after the split: 2M and up, at both ends (end is a gfn of the
    mask).
    """
    vm.write_protect_gfn(start, 2)
    if align(start + 511, 2) != align(end + 511, 2):
        vm.write_protect_gfn(end, 2)
