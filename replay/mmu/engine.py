"""Drives the jitted event loop over the batches of a trace and turns its rows into Arrow tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from replay.jit import compile_meanwhile
from replay.kernel import KernelVersion, parse_kernel_version
from replay.mmu.event_loop import ROWS_DONE, replay_rows
from replay.mmu.events.next_event import LOOKAHEAD
from replay.mmu.events.vmm_markers import place_markers, with_markers_placed
from replay.mmu.evidence.facts import FACT_COLUMNS, TraceFacts, scan_facts, scan_rows
from replay.mmu.recorded.lines import FLUSH_BIT, GET_PAGE_BIT, UNKNOWN
from replay.mmu.results import tables
from replay.mmu.results.census import Census, collect
from replay.mmu.results.moments import Moment, Moments
from replay.mmu.results.rmap_histogram import COLUMNS_BY, RmapHistogram, columns_by, rmap_counts
from replay.mmu.state import growth, mmu, records
from replay.mmu.state.counters import FIRST_DIVERGENCE, Counter
from replay.mmu.state.records import LimitFrom, ManualProtect, ProbeSet
from replay.policy import FaultSplit, Policy
from replay.schema import (
    COLUMN_TYPES,
    SKIP_WORDS,
    Columns,
    FlushCause,
    Kind,
    Match,
    WindowCause,
)

if TYPE_CHECKING:
    import pyarrow as pa

    from replay.trace.trace import Trace


NEVER = 1 << 62
_MOST_HELD = 4 * LOOKAHEAD
"""Rows of short batches that are held back until they are handled together, so that few are copied twice."""
REPLAYED_COLUMNS = tuple(name for name in COLUMN_TYPES if name not in ("tgid", "cpu", "comm", "text"))
"""What ``replay_rows`` reads of an event."""


@dataclass(frozen=True)
class Options:
    """How to replay; the words are those of the command line."""

    split_at: str = "auto"
    resched: str = "recorded"
    max_mmu_pages: int | None = None
    nested: str = "auto"
    compare_recorded: bool = True
    rmap_histogram: tuple[str, ...] = ()
    """Moments at which rmaps are counted, see ``Moments``."""
    rmap_columns: str = COLUMNS_BY[0]
    census: bool = False
    kernel: KernelVersion | None = None
    """The kernel that recorded, where the trace does not name it."""


@dataclass(frozen=True)
class Replay:
    """A finished replay: tables of schema.py, and counters by the names of the JSON document."""

    outcomes: pa.Table
    flushes: pa.Table
    windows: pa.Table
    counters: dict[str, int | None]
    divergences: dict[str, int]
    has_recorded: bool
    recorded_errnos: dict[int, int] = field(default_factory=dict)
    """Recorded split lines of the shadow MMU by errno."""
    rmap_histograms: tuple[RmapHistogram, ...] = ()
    census: Census | None = None
    recorded_lines: dict[str, int] = field(default_factory=dict)
    """Lines of the trace that state an outcome, those of no VM included: ``splits`` and ``probes``."""
    unknown: dict[int, int] = field(default_factory=dict)
    """By VM: recorded lines of windows that differ, but rest on something unknown."""
    unshown: dict[Kind, dict[int, int]] = field(default_factory=dict)
    """By VM: those of them that events explain of a kind that the recording lacks."""
    unproven: dict[int, int] = field(default_factory=dict)
    """By VM: the first line where a line, recorded or simulated, differs but rests on something unknown."""
    older: dict[int, int] = field(default_factory=dict)
    """By VM: the first line that shows state older than the trace; 0 if its beginning was not seen."""
    last_unproven: int = 0
    """The last line of those, of all VMs; 0 if there is none."""
    last_split: int = 0
    """The last recorded split line that was looked at in a window."""
    whole: dict[int, int] = field(default_factory=dict)
    """By VM: the line from which on all state is known, though some of it had been older than the trace."""
    tdp_mmu: bool = False
    """kvm.tdp_mmu was taken to be on."""
    tdp_mmu_shown: tuple[bool | None, str] = (None, "")
    """Whether the trace shows it to be on or off, None if not, and by what."""


def compile_kernels() -> None:
    """Compile and keep what a replay needs, by replaying nothing."""
    nothing = _no_events()
    facts = scan_facts([nothing], 1)
    m = _new_state(facts, Options(), {}, None)
    replay_rows(m, nothing, 0, Policy().codes(), _resched("recorded"), -1)


def compile_in_other_process() -> None:
    """Let another process compile what a replay needs, should this one have to compile something else."""
    compile_meanwhile(compile_kernels, scan_rows, replay_rows)


def trace_facts(trace: Trace) -> TraceFacts:
    """What ``trace`` holds, in one pass over its events."""
    return scan_facts(trace.batches(FACT_COLUMNS), len(trace.vms), trace.role_words)


def replay_trace(
    trace: Trace,
    policy: Policy,
    options: Options,
    facts: TraceFacts | None = None,
    doubtful_from: Mapping[int, int] | None = None,
) -> Replay:
    """Replay all events of ``trace`` with ``policy``; ``facts`` are those of the trace, if they are known.

    ``doubtful_from`` has the line by VM from which on a difference from the recording proves nothing.

    Raises ``UsageError`` for a moment that the trace does not have.
    """
    facts = facts or trace_facts(trace)
    moments = Moments(trace, options.rmap_histogram if trace.vms else ())  # there are rmaps of VMs only
    histograms: list[RmapHistogram] = []
    kernel = parse_kernel_version(trace.kernel) or options.kernel
    m = _new_state(facts, options, doubtful_from or {}, kernel)
    layouts = m.vm.layout.tolist()
    columns_of = [columns_by(options.rmap_columns, code, kernel) for code in layouts]
    codes = policy.codes()
    resched = _resched(options.resched)
    cause = WindowCause.END if m.ctl.split_time == NEVER else WindowCause.TIME
    batches = trace.batches(REPLAYED_COLUMNS + moments.columns)
    if any(facts.vmm_marks(vm) for vm in range(facts.vms)):
        batches = with_markers_placed(batches, place_markers(trace))
    for columns, stop in _with_lookahead(batches):
        end_cause = int(cause) if stop == len(columns.kind) else -1
        m.ctl.row = 0
        for moment in moments.of_batch(columns, stop):
            while replay_rows(m, columns, moment.row, codes, resched, -1) != ROWS_DONE:
                m = growth.grow(m)
            histograms += _rmap_histograms(m, facts, moment, columns_of)
        while replay_rows(m, columns, stop, codes, resched, end_cause) != ROWS_DONE:
            m = growth.grow(m)
    for moment in moments.of_end():
        histograms += _rmap_histograms(m, facts, moment, columns_of)
    census = collect(m) if options.census else None
    m = growth.without_pages(m)
    return replace(_result(m, facts), rmap_histograms=tuple(histograms), census=census)


def _rmap_histograms(
    m: mmu.Mmu, facts: TraceFacts, moment: Moment, columns: Sequence[str]
) -> list[RmapHistogram]:
    """One of each VM that ``moment`` is about; ``columns`` is what picks them, by VM."""
    return [
        RmapHistogram(
            at=moment.at,
            vm=vm,
            ts_ns=moment.ts_ns,
            line=moment.line,
            columns_by=columns[vm],
            counts=rmap_counts(m, vm, facts.has(vm, Kind.COMMIT_REGION, Kind.MARK_MEMSLOT), columns[vm]),
        )
        for vm in (range(facts.vms) if moment.vm < 0 else [moment.vm])
    ]


def _resched(text: str) -> tuple[int, int]:
    """(drop the lock at every n-th attempt, 0 as recorded, -1 never; seed of random drops or -1)."""
    word, _, number = text.partition("=")
    if word == "never":
        return -1, -1
    return (int(number) if word == "every" else 0, int(number) if word == "seed" else -1)


def _split_at(m: mmu.Mmu, facts: TraceFacts, split_at: str) -> None:
    """What opens windows: control lines, else recorded outcomes, else the end of the trace."""
    has_splits = facts.total(Kind.SPLIT_HUGE_PAGE) > 0
    m.ctl.split_time = NEVER
    if split_at == "auto":
        for vm in range(facts.vms):
            m.vm[vm].by_control = facts.vm_has_control(vm)
            m.vm[vm].by_record = not facts.vm_has_control(vm) and has_splits
            m.vm[vm].split_due = not facts.has_control and not has_splits and facts.has_mmu_events(vm)
    elif split_at == "control":
        m.vm.by_control = 1
    elif split_at == "recorded":
        m.vm.by_record = 1
    elif split_at == "end":
        m.vm.split_due = 1
    elif split_at != "never":
        m.vm.split_due = 1
        m.ctl.split_time = round(float(split_at) * 1e9)


def tdp_mmu_on(facts: TraceFacts, options: Options, vm: int) -> bool:
    """Whether kvm.tdp_mmu is taken to be on: as asked for, else as the trace shows, else not."""
    return options.nested == "yes" or (options.nested == "auto" and facts.tdp_mmu_of(vm))


def _new_state(
    facts: TraceFacts, options: Options, doubtful_from: Mapping[int, int], kernel: KernelVersion | None
) -> mmu.Mmu:
    m = mmu.make(facts.vms, options.census)
    compared = options.split_at in ("auto", "control", "recorded") and options.compare_recorded
    kinds = _compared_kinds(facts)
    m.ctl.has_recorded = facts.has_recorded and compared
    _split_at(m, facts, options.split_at)
    for vm in range(facts.vms):
        m.vm[vm].has_tdp = facts.has(vm, Kind.TDP_MMU_SPTE_CHANGED)
        m.vm[vm].has_faults = facts.has(vm, Kind.PAGE_FAULT)
        m.vm[vm].layout = facts.spte_layout(vm, kernel)
        if kernel is not None:
            m.vm[vm].fault_split = FaultSplit.ZAP if kernel.series < (6, 2) else FaultSplit.SPLIT
        m.vm[vm].pml = facts.shows_pml(vm, m.vm[vm].layout)
        m.vm[vm].probes = (
            ProbeSet.REGION * facts.has(vm, Kind.COMMIT_REGION)
            + ProbeSet.SPLIT * facts.split_probes(vm)
            + ProbeSet.LIMIT * facts.has(vm, Kind.CHANGE_MMU_PAGES)
            + ProbeSet.PROTECT * facts.has(vm, Kind.SLOT_REMOVE_WRITE_ACCESS)
            + ProbeSet.COLLAPSE * facts.has(vm, Kind.ZAP_COLLAPSIBLE, Kind.RECOVER_HUGE)
            + ProbeSet.CLEAR_DIRTY * facts.has(vm, Kind.SLOT_LEAF_CLEAR_DIRTY)
            + ProbeSet.RETURN * facts.has(vm, Kind.SLOT_TRY_SPLIT_RET, Kind.TRY_SPLIT_RET)
            + ProbeSet.FAST_FAULT * (facts.total(Kind.FAST_PAGE_FAULT) > 0)
        )
        m.vm[vm].truths = kinds
        m.vm[vm].raw_roles = facts.role_words
        m.vm[vm].tdp_mmu = tdp_mmu_on(facts, options, vm)
        m.vm[vm].doubt_line = doubtful_from.get(vm, NEVER)
        if facts.vmm_clears(vm):
            # QEMU asks for all that the kernel has of it: since 5.7 that is initially all set, too
            m.vm[vm].manual = ManualProtect.ENABLE | ManualProtect.INITIALLY_SET
        if options.max_mmu_pages is not None:
            m.vm[vm].n_max_mmu_pages = options.max_mmu_pages
            m.vm[vm].max_known = LimitFrom.CALLER
    return m


def _compared_kinds(facts: TraceFacts) -> int:
    """Bits of the kinds of lines that the recording has, and that are compared one by one."""
    kinds = (Kind.GET_PAGE, *range(Kind.V2_LOCK_DROPPED, Kind.V2_RESTART + 1))
    present = [kind for kind in kinds if facts.total(Kind(kind))]
    bits = sum(
        GET_PAGE_BIT if kind == Kind.GET_PAGE else 1 << (kind - Kind.V2_LOCK_DROPPED) for kind in present
    )
    return bits | FLUSH_BIT if facts.flushes_recorded else bits


def _no_events() -> Columns:
    return Columns(*(np.zeros(0, COLUMN_TYPES[name]) for name in Columns._fields))


def _with_lookahead(batches: Iterator[Columns]) -> Iterator[tuple[Columns, int]]:
    """Columns and how many of their first rows to handle: the rows after those are only looked at.

    However short the batches are, ``LOOKAHEAD`` rows follow each row that is handled, or else all that
    the trace has.  The last rows of a batch are handled joined to those of the next.
    """
    held: list[Columns] = []
    rows = 0  # of those held
    for batch in batches:
        size = len(batch.kind)
        if size < LOOKAHEAD:
            held.append(_copied(batch, 0))
            rows += size
            if rows < _MOST_HELD:
                continue
            batch, size = _joined(held), rows
        elif held:
            yield _joined([*held, Columns(*(column[:LOOKAHEAD] for column in batch))]), rows
        stop = size - LOOKAHEAD
        if stop:
            yield batch, stop
        held, rows = [_copied(batch, stop)], LOOKAHEAD
    yield _joined(held or [_no_events()]), rows


def _copied(batch: Columns, begin: int) -> Columns:
    return Columns(*(column[begin:].copy() for column in batch))


def _joined(parts: list[Columns]) -> Columns:
    return Columns(*map(np.concatenate, zip(*parts, strict=True)))


_LINES = {"get_page": "get_pages", "tdp_get_page": "tdp_get_pages", "probes": "probes"}
"""Lines that state an outcome: names of counters, and the fields of windows that count such lines."""

# -- counters --------------------------------------------------------------------------------------


def _result(m: mmu.Mmu, facts: TraceFacts) -> Replay:
    counted = {counter.name.lower(): int(m.counter[counter]) for counter in Counter}
    names = list(counted)
    divergences = {name: counted.pop(name) for name in names[FIRST_DIVERGENCE:]}
    counters: dict[str, int | None] = dict(counted)
    wins = m.window[: m.ctl.window_top]
    counters["attempts"] = int(wins.attempts.sum())
    counters["split"] = int(wins.split.sum())
    for i, word in enumerate(SKIP_WORDS):
        counters[f"skipped_{word}"] = int(wins.skipped[:, i].sum())
    for cause in FlushCause:
        counters[f"flushes_{cause.name.lower()}"] = int(wins.flushes[:, cause].sum())
    total = int(wins.flushes.sum())
    counters["flushes_total"] = total
    counters["flushes_lost"] = int(wins.flushes_lost.sum())
    counters["shadow_pages_used_end"] = int(m.vm.n_used_mmu_pages.sum())
    counters["shadow_pages_used_peak"] = int(m.vm.peak.sum())
    limits = m.vm.n_max_mmu_pages
    counters["max_mmu_pages"] = int(limits.sum()) if (limits < records.UNLIMITED).all() else None
    aligned = wins[wins.aligned != 0]
    for name, field_name in (*_LINES.items(), ("flush_lines", "flush_lines")):
        for i, what in enumerate(("recorded", "matched", "absent", "unknown")):
            counters[f"{name}_{what}"] = int(aligned[field_name][:, i].sum())
    flush_probes = facts.flushes_recorded
    counters["flushes_expected"] = int(aligned.flush_lines[:, 0].sum()) if flush_probes else None
    counters["flushes_simulated"] = total
    if facts.total(Kind.SET_SPTE) == 0:
        counters |= {name: None for name in counters if name.startswith("faults_")}
    if facts.total(Kind.TDP_MMU_SPTE_CHANGED) > 0 and facts.total(Kind.SPTE_REQUESTED) == 0:
        counters |= {name: None for name in counters if name.startswith("tdp_faults_")}
    matches = m.attempt[: m.ctl.attempt_top].match
    for match in Match:
        if match != Match.UNCHECKED:
            counters[match.name.lower()] = int(np.count_nonzero(matches == int(match)))
    lines = m.source[: m.ctl.source_top]
    sources = m.attempt.source[np.flatnonzero(matches == int(Match.UNKNOWN))]
    counters["unknown_attempts"] = int(np.count_nonzero(lines.recorded[sources] == 0))
    splits = lines[lines.recorded != 0]
    shadow = splits[splits.mmu == 0]
    errnos, counts = np.unique(shadow.errno, return_counts=True)
    return Replay(
        recorded_errnos=dict(zip(errnos.tolist(), counts.tolist(), strict=True)),
        outcomes=tables.outcomes(m),
        flushes=tables.flushes(m),
        windows=tables.windows(m, flush_probes),
        counters=counters,
        divergences={name: n for name, n in divergences.items() if n},
        has_recorded=facts.has_recorded,
        recorded_lines={"splits": facts.total(Kind.SPLIT_HUGE_PAGE), "probes": facts.probe_lines},
        unknown=_unknown_lines(m, facts.vms),
        unshown={
            Kind.V2_LOCK_DROPPED: _sums_by_vm(wins.vm, wins.repeated, facts.vms),
            Kind.FAST_PAGE_FAULT: _sums_by_vm(wins.vm, wins.restored, facts.vms),
        },
        unproven={vm: line for vm, line in enumerate(m.vm[: facts.vms].unproven.tolist()) if line},
        older={vm: int(m.vm[vm].older) for vm in range(facts.vms) if m.vm[vm].older or not m.vm[vm].born},
        last_unproven=int(m.vm.last_unproven.max(initial=0)),
        last_split=int(splits.line.max(initial=0)),
        whole={vm: line for vm, line in enumerate(m.vm[: facts.vms].whole.tolist()) if line},
        tdp_mmu=bool(m.vm.tdp_mmu.any()),
        tdp_mmu_shown=facts.tdp_mmu,
    )


def _unknown_lines(m: mmu.Mmu, vms: int) -> dict[int, int]:
    """Recorded lines by VM that differ although they may be right."""
    wins = m.window[: m.ctl.window_top]
    top = m.ctl.attempt_top
    rows = np.flatnonzero(m.attempt[:top].match == Match.UNKNOWN)
    recorded = m.source.recorded[m.attempt.source[rows]] != 0
    vm_of_row = wins.vm[m.attempt.window[rows[recorded]]]
    lines = sum(wins[name][:, UNKNOWN] for name in _LINES.values())
    unknown = np.bincount(vm_of_row, minlength=vms)
    np.add.at(unknown, wins.vm, lines)
    return {vm: count for vm, count in enumerate(unknown.tolist()) if count}


def _sums_by_vm(vm_of: np.ndarray, counts: np.ndarray, vms: int) -> dict[int, int]:
    """The sum of ``counts`` of each VM, where it is not 0."""
    sums = np.zeros(vms, np.int64)
    np.add.at(sums, vm_of, counts)
    return {vm: count for vm, count in enumerate(sums.tolist()) if count}
