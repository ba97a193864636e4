"""The JSON document of a run, schema ``replay.run/1``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from replay.policy import Policy
from replay.verdict.outcome import FAULT_WORDS, recorded, rmap_histograms, totals, windows

if TYPE_CHECKING:
    from replay.mmu.engine import Replay
    from replay.trace.trace import Trace
    from replay.verdict.compare import Comparison

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
    "first_ts_ns",
    "last_ts_ns",
    "vms",
)


def run_document(
    trace: Trace,
    policy: Policy,
    policy_reason: str,
    replay: Replay,
    comparison: Comparison,
) -> dict[str, Any]:
    """The whole document, ready for ``json.dumps``."""
    counters = replay.counters
    return {
        "schema": RUN_SCHEMA,
        "trace": {name: getattr(trace, name) for name in _TRACE},
        "policy": {"name": policy.name, "reason": policy_reason, "knobs": policy.knobs()},
        "windows": windows(replay),
        "totals": totals(counters),
        "expected": {
            "source": comparison.source,
            "attempts": comparison.attempts,
            "matched": comparison.matched,
            "mismatched": comparison.mismatched,
            "missing": comparison.missing,
            "unexpected": comparison.unexpected,
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
        },
        "recorded": recorded(replay),
        "faults": {word: counters[f"faults_{word}"] for word in FAULT_WORDS},
        "rmap_histogram": rmap_histograms(replay),
        "divergences": dict(sorted(replay.divergences.items())),
        "verdict": comparison.verdict,
        "verdict_reasons": comparison.reasons,
    }
