"""What a trace contains, and what can be replayed from it: the document ``replay.info/1``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from replay.kernel import parse_kernel_version
from replay.mmu.engine import trace_facts
from replay.mmu.evidence.facts import TraceFacts
from replay.mmu.kernel.spte import LAYOUTS, LEGACY
from replay.run import Request, Run, run_trace
from replay.schema import EVENT_NAMES, Kind
from replay.trace.trace import Trace
from replay.verdict.doubt import NEVER_MATCH, REASONS, doubts_of

INFO_SCHEMA = "replay.info/1"
SHOWN_MALFORMED = 10

_FACTS = (
    "path",
    "format",
    "kernel",
    "bytes",
    "lines",
    "events",
    "kvmmmu_events",
    "ignored_lines",
    "first_ts_ns",
    "last_ts_ns",
    "lost_events",
    "losses",
    "notes",
    "malformed_lines",
)
_SPTE_LINES = (Kind.SET_SPTE, Kind.TDP_MMU_SPTE_CHANGED)
_WHAT_IF = ("end", "time")
_SOURCES = {
    "probes": range(Kind.SET_REGION, Kind.MARK_VM_CREATE),
    "markers": range(Kind.MARK_VM_CREATE, Kind.MARK_UNKNOWN + 1),
    "recorded_splits": range(Kind.SPLIT_HUGE_PAGE, Kind.SPLIT_HUGE_PAGE + 1),
}


def info_document(trace: Trace) -> dict[str, Any]:
    """The whole document, ready for ``json.dumps``.

    The windows are those that a run with ``--split-at auto`` opens, and what can be compared is what that
    run compares.
    """
    run = run_trace(trace, Request(policy="auto", expect="recorded"))
    facts = trace_facts(trace)
    counts = Counter({kind: n for kind, n in enumerate(trace.kind_counts().tolist()) if n})
    has_events = bool(trace.kvmmmu_events)  # otherwise a window at the end means nothing
    causes = run.replay.windows["cause"].to_pylist() if has_events else []
    window_vms = Counter(run.replay.windows["vm"].to_pylist() if has_events else ())
    control = {name: sum(counts[kind] for kind in kinds) for name, kinds in _SOURCES.items()}
    told = _told_columns(trace)
    kernel = parse_kernel_version(trace.kernel)
    layouts = [facts.spte_layout(vm, kernel) for vm in range(facts.vms)]
    return {
        "schema": INFO_SCHEMA,
        **{name: getattr(trace, name) for name in _FACTS},
        "malformed": [{"line": line, "text": text} for line, text in trace.malformed[:SHOWN_MALFORMED]],
        "kinds": {EVENT_NAMES[Kind(kind)]: count for kind, count in sorted(counts.items())},
        "ignored_events": dict(sorted(trace.ignored_events.items(), key=lambda item: -item[1])),
        "vms": [
            {
                "name": name,
                "events": int(facts.kinds[vm].sum()),
                "windows": window_vms[vm],
                "spte_layout": LAYOUTS[layouts[vm]].name if facts.has(vm, *_SPTE_LINES) else None,
                "pml": facts.shows_pml(vm, layouts[vm]) if layouts[vm] != LEGACY else None,
            }
            for vm, name in enumerate(trace.vms)
        ],
        "control": control,
        "windows": {"total": len(causes), "by_cause": dict(Counter(causes))},
        "columns": told,
        "policy": {
            "name": run.policy.name,
            "reason": run.policy_reason,
            "alternative": run.alternative,
        },
        "compared": {
            "recorded": run.comparison.recorded,
            "compared": run.comparison.compared,
            "not_compared": run.comparison.not_compared,
            "from": run.comparison.compared_from,
        },
        "can": list(_can(run, causes, counts)),
        "cannot": list(_cannot(run, facts, told, causes, counts)),
    }


def _told_columns(trace: Trace) -> dict[str, bool]:
    """Which of the columns before the name of an event occur in any line."""
    told = {"time": bool(trace.last_ts_ns), "task": False, "process": False, "cpu": False}
    for batch in trace.batches(("pid", "tgid", "cpu")):
        for name, column in (("task", batch.pid), ("process", batch.tgid), ("cpu", batch.cpu)):
            told[name] = told[name] or bool((column >= 0).any())
    return told


def _can(run: Run, causes: list[str], counts: Counter[int]) -> Iterator[str]:
    if causes and causes[0] not in _WHAT_IF:
        yield f"{_number(len(causes), 'window')}, when dirty logging was enabled"
    elif causes and counts[Kind.SET_SPTE] + counts[Kind.TDP_MMU_SPTE_CHANGED]:
        yield "what if dirty logging were enabled at the end of the trace"
    comparison = run.comparison
    if comparison.recorded:
        if comparison.compared:
            lines = f"{comparison.compared:,} of {_number(comparison.recorded, 'recorded line')}"
            yield f"comparison with {lines} that state an outcome"
    elif comparison.source != "none":
        yield "comparison: split functions ran, and nothing was split"
    if comparison.flushes_expected is not None:
        yield "comparison of TLB flushes"


def _cannot(
    run: Run, facts: TraceFacts, told: dict[str, bool], causes: list[str], counts: Counter[int]
) -> Iterator[str]:
    trace, comparison = run.trace, run.comparison
    if not trace.kvmmmu_events:
        yield "anything: there is no event of the system kvmmmu"
    elif not counts[Kind.SET_SPTE] and not counts[Kind.TDP_MMU_SPTE_CHANGED]:
        yield "splits: no line installs an SPTE (record every event of the system kvmmmu)"
    if not counts[Kind.GET_PAGE] and trace.kvmmmu_events:
        yield "shadow pages: there is no kvm_mmu_get_page line"
    for doubt in doubts_of(trace, facts):
        what = "a match" if doubt.reason in NEVER_MATCH else "a comparison that counts every difference"
        yield f"{what}: {doubt.text}"
    for reason, count in comparison.not_compared.items():
        yield f"comparison of {_number(count, 'recorded line')}: {REASONS[reason]}"
    if not causes or causes[0] in _WHAT_IF:
        yield "when dirty logging was enabled: no probe, marker or recorded split shows it"
    if comparison.source == "none":
        yield "comparison: nothing was recorded to compare with"
    elif comparison.flushes_expected is None:
        yield "comparison of TLB flushes: there is no probe of kvm_flush_remote_tlbs"
    if not told["process"] and not counts[Kind.MARK_VM_CREATE]:
        yield "VMs apart: neither option record-tgid nor vm_create markers show the process of a task"
    if not told["time"]:
        yield "--split-at SECONDS: there are no times"


def _number(count: int, what: str) -> str:
    return f"{count:,} {what if count == 1 else what + 's'}"
