"""The JSON document of a run, schema ``replay.run/1``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from replay.trace.files import shown_path
from replay.verdict.migrations import migrations
from replay.verdict.outcome import FAULT_WORDS, recorded, rmap_histograms, totals, windows

if TYPE_CHECKING:
    from replay.run import Run
    from replay.verdict.compare import Lines

RUN_SCHEMA = "replay.run/1"
_TRACE = (
    "path",
    "format",
    "bytes",
    "lines",
    "events",
    "kvmmmu_events",
    "ignored_lines",
    "malformed_lines",
    "lost_events",
    "losses",
    "notes",
    "first_ts_ns",
    "last_ts_ns",
    "vms",
)


def run_document(run: Run) -> dict[str, Any]:
    """The whole document, ready for ``json.dumps``."""
    policy, replay, comparison = run.policy, run.replay, run.comparison
    counters = replay.counters
    shown, shown_by = replay.tdp_mmu_shown
    return {
        "schema": RUN_SCHEMA,
        "trace": {name: getattr(run.trace, name) for name in _TRACE} | {"path": shown_path(run.trace.path)},
        "policy": {
            "name": policy.name,
            "reason": run.policy_reason,
            "alternative": run.alternative,
            "knobs": policy.knobs(),
        },
        "tdp_mmu": {"taken_as": replay.tdp_mmu, "shown": shown, "by": shown_by},
        "windows": windows(replay),
        "migrations": migrations(run.trace, replay.windows),
        "totals": totals(counters),
        "expected": {
            "source": comparison.source,
            "recorded": comparison.recorded,
            "compared": comparison.compared,
            "not_compared": comparison.not_compared,
            "compared_from": comparison.compared_from,
            "whole_from": {run.trace.vms[vm]: line for vm, line in replay.whole.items()},
            "attempts": comparison.attempts,
            "matched": comparison.matched,
            "mismatched": comparison.mismatched,
            "missing": comparison.missing,
            "unexpected": comparison.unexpected,
            "get_page": _get_page(comparison.get_page),
            "probes": _probes(comparison.probes),
            "flushes_expected": comparison.flushes_expected,
            "flushes_simulated": counters["flushes_simulated"],
        },
        "environment": {
            "lock_drops": counters["env_lock_drops"],
            "yields": counters["env_yields"],
            "alloc_failures": counters["env_alloc_failures"],
        },
        "tdp": {
            "huge_sptes": counters["tdp_huge_sptes"],
            "attempts": counters["tdp_attempts"],
            "split": counters["tdp_split"],
            "failed": counters["tdp_failed"],
            "faults": {word: counters[f"tdp_faults_{word}"] for word in FAULT_WORDS},
        },
        "recorded": recorded(replay),
        "faults": {word: counters[f"faults_{word}"] for word in FAULT_WORDS},
        "rmap_histogram": rmap_histograms(replay),
        "divergences": dict(sorted(replay.divergences.items())),
        "verdict": comparison.verdict,
        "verdict_reasons": comparison.reasons,
        "notes": list(run.notes),
    }


def _probes(lines: Lines | None) -> dict[str, int] | None:
    if lines is None:
        return None
    return {"expected": lines.compared, "recorded": lines.recorded} | _equal(lines)


def _get_page(lines: Lines | None) -> dict[str, int] | None:
    if lines is None:
        return None
    return {"recorded": lines.recorded, "compared": lines.compared} | _equal(lines)


def _equal(lines: Lines) -> dict[str, int]:
    return {"matched": lines.matched, "absent": lines.absent}
