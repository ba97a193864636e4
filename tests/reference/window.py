"""One eager-split window: predicted lines against recorded lines, kind by kind, in order."""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Iterator, Sequence

from .parse import Event, Step, fields, parse_split
from .split_merged import EAGAIN, SplitMerged
from .split_v2 import ENOMEM, Environment, SplitV2
from .state import Vm
from .tdp import Tdp

PROBE_KINDS = {
    "v2_prepare": ("prepare", ("gfn", "level", "available")),
    "v2_split_nonpresent": ("nonpresent", ("gfn", "level", "huge_gfn")),
    "v2_split_done": ("done", ("huge_gfn", "huge_level", "present", "nonpresent")),
    "v2_alias_sp": ("alias", ("gfn", "level")),
    "v2_sp_leaked": ("leaked", ("gfn", "level")),
    "v2_sp_freed_unused": ("freed", ()),
    "v2_lock_dropped": ("dropped", ("gfn", "level", "flush")),
    "v2_range_yield": ("yield", ("gfn", "level", "flush")),
    "v2_try_split_end": ("end", ("flush",)),
}
TRACED = frozenset(("split", "tdp_split", "get_page"))
PROBED = TRACED | {kind for kind, _ in PROBE_KINDS.values()} - {"end"}


def scan_environment(events: Sequence[Event], begin: int, pid: int) -> Environment:
    """Read lock drops, yields and failed allocations of the v2 patch between its begin and end."""
    env, prepared, last = Environment(), Counter[tuple[int, int]](), (0, 0)
    for event in events[begin:]:
        if event.pid != pid:
            continue
        if event.name == "v2_try_split_end":
            break
        if not event.name.startswith("v2_"):
            continue
        value = fields(event.text)
        if event.name == "v2_prepare":
            last = (value["gfn"], value["level"])
            prepared[last] += 1
        elif event.name == "v2_lock_dropped":
            place = (value["gfn"], value["level"])
            env.drops.add((*place, prepared[place]))
        elif event.name == "v2_range_yield":
            env.yields.add((value["gfn"], value["level"]))
        elif event.name == "v2_alloc_failed":
            (env.nowait_failures if value["locked"] else env.blocking_failures).add((*last, prepared[last]))
    return env


def scan_outcomes(events: Sequence[Event], begin: int, pid: int) -> Environment:
    """Without probes: a line of errno -11 or -12 shows that the lock was dropped, -12 that it was in vain."""
    env, attempts, before = Environment(), Counter[tuple[int, int]](), ""
    for event in events[begin:]:
        if event.pid != pid:
            continue
        of_tdp, before = before == "kvm_tdp_mmu_spte_changed", event.name
        if event.name in ("tdp_try_split", "slot_try_split_ret", "try_split_ret", "tracing_mark_write"):
            break
        if event.name != "kvm_mmu_split_huge_page" or of_tdp:
            continue
        gfn, _, level, error = parse_split(event.text)
        attempts[gfn, level] += 1
        place = (gfn, level, attempts[gfn, level])
        if error in (EAGAIN, ENOMEM):
            env.drops.add(place)
        if error == ENOMEM:
            env.blocking_failures.add(place)
    return env


class Window:
    """The split work of one task: what the model shows waits, kind by kind, for the recorded lines of its
    kind.
    """

    def __init__(self, vm: Vm, tdp: Tdp, shown: frozenset[str]) -> None:
        self.vm, self.tdp, self.shown = vm, tdp, shown
        self.predicted: dict[str, deque[Step]] = defaultdict(deque)
        self.steps: Iterator[Step] = iter(())
        self.shadow: SplitV2 | SplitMerged | None = None
        self.in_shadow, self.waiting = False, True
        self.recorded_flushes = 0
        self.total: Counter[str] = Counter()
        self.matched: Counter[str] = Counter()
        self.differences: list[str] = []

    def begin_shadow(self, shadow: SplitV2 | SplitMerged, start: int, end: int, target: int) -> None:
        self.shadow = shadow
        self.steps = shadow.walk(start, end, target)
        self.in_shadow, self.waiting = True, False
        self._take_arguments()

    def begin_tdp(self, line: int, start: int, end: int, target: int) -> None:
        if self.in_shadow:
            self.end_shadow(line)
        self.steps = self.tdp.split(start, end, target)
        self.waiting = True

    def begin_chain(self, shadow: SplitV2 | SplitMerged, ranges: Iterator[tuple[int, int]]) -> None:
        """Both parts of every range as one walk, to 4K."""
        self.shadow, self.steps, self.waiting = shadow, self._chain(shadow, ranges), False
        self._take_arguments()

    def _chain(self, shadow: SplitV2 | SplitMerged, ranges: Iterator[tuple[int, int]]) -> Iterator[Step]:
        for start, end in ranges:
            yield from shadow.walk(start, end, 1)
            yield ("attempt",)
            for step in self.tdp.split(start, end, 1):
                if step[0] == "tdp_split":
                    yield ("split", *step[1:])
                    yield ("attempt",)
                else:
                    yield step

    def recorded(self, line: int, item: Step) -> None:
        """Advance until the model shows something of the same kind, and compare."""
        kind = str(item[0])
        queue = self.predicted[kind]
        while not queue and self._step():
            pass
        expected = queue.popleft() if queue else None
        self.total[kind] += 1
        if expected is not None and self._agree(expected, item):
            self.matched[kind] += 1
        else:
            self._differ(line, f"recorded {show(item)} predicted {show(expected) if expected else 'nothing'}")

        self._take_arguments()

    def _agree(self, expected: Step, item: Step) -> bool:
        """Equal but for what the CPU and the host's aging do to an SPTE without a line."""
        if item[0] not in ("split", "tdp_split"):
            return expected == item
        return (*expected[:2], *expected[3:]) == (*item[:2], *item[3:]) and same_spte(
            self.vm, int(expected[2]), int(item[2])
        )

    def _step(self) -> bool:
        step = next(self.steps, None)
        self.waiting = step is None or step[0] == "attempt"
        if step is not None and step[0] != "attempt":
            self.predicted[str(step[0])].append(step)
        return step is not None

    def _take_arguments(self) -> None:
        """Merged kernels read the SPTE before they drop the lock and trace after it."""
        while isinstance(self.shadow, SplitMerged) and not self.waiting:
            self._step()

    def drain(self, line: int) -> None:
        """The recording says this part is over: whatever the model still shows was not recorded."""
        while self._step():
            pass
        for kind, queue in self.predicted.items():
            for step in queue:
                if kind in self.shown:
                    self.total[f"extra_{kind}"] += 1
                    self._differ(line, f"not recorded: {show(step)}")
        self.predicted.clear()

    def end_shadow(self, line: int) -> None:
        self.drain(line)
        assert self.shadow is not None
        self.in_shadow, self.waiting = False, True
        self.total["flush"] += self.recorded_flushes
        self.matched["flush"] += self.shadow.flushes
        if self.recorded_flushes != self.shadow.flushes:
            self._differ(line, f"flushes recorded {self.recorded_flushes} predicted {self.shadow.flushes}")

    def _differ(self, line: int, text: str) -> None:
        self.differences.append(f"line {line}: {text}")


def same_spte(vm: Vm, predicted: int, recorded: int) -> bool:
    """An SPTE that may have been aged can be access-tracked."""
    layout = vm.layout
    if layout.is_tracked(recorded) and vm.aged and not layout.is_tracked(predicted):
        predicted = layout.track(predicted)
    return layout.compared(predicted) == layout.compared(recorded)


def show(item: Step) -> str:
    return " ".join(part if isinstance(part, str) else f"{part:x}" for part in item)
