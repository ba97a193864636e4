"""Real kernels: every recording is replayed attempt for attempt, with nothing left over on either side.

``truth`` of a recording's ``.info.json`` was counted from the kernel's own markers, by level, before
the trace was cut down to what stands here; the replay never sees it.
"""

from __future__ import annotations

import json
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from replay.report.console import rmaps_text
from replay.run import Request, Run, run_trace

RECORDED = Path(__file__).parents[1] / "traces" / "recorded"
TRACES = sorted(path.relative_to(RECORDED).as_posix() for path in RECORDED.glob("*/*.txt.zst"))
POLICIES = {
    "v2": "v2",
    "linux-6.1": "linux-2026",
    "linux-6.1.192": "linux-2026",
    "linux-6.12.107": "linux-2026",
    "linux-6.18.15": "linux-6.0",
    "linux-7.3.4": "linux-6.0",
    "linux-5.10": "off",
    "intel-6.1.176": "linux-2026",
    "intel-6.12.107": "linux-2026",
    "intel-6.18.15": "linux-6.0",
    "intel-7.2.12": "linux-6.0",
    "intel-7.3.4": "linux-6.0",
}
"""What the kernel of each directory does, where it splits shadow pages."""


def info(trace: str) -> dict[str, Any]:
    return json.loads((RECORDED / trace.replace(".txt.zst", ".info.json")).read_text())


def truth(trace: str) -> dict[str, Any]:
    return info(trace)["truth"] or {}


def v2_truth(trace: str, *prefixes: str) -> int:
    """Sum of the kernel's own counts whose names begin with one of ``prefixes``."""
    return sum(n for name, n in truth(trace).get("v2", {}).items() if name.startswith(prefixes))


def splits_nothing(trace: str) -> bool:
    """The kernel has no eager splitting, or was told not to do it."""
    return "/parameters/eager_page_split:Y" not in " ".join(info(trace)["module_params"])


def rmaps_stat(trace: str) -> dict[str, str]:
    """What the kernel's file mmu_rmaps_stat said behind the marker line that begins with the key."""
    return {f"lab: stat {label}": "\n".join(lines) for label, lines in info(trace)["mmu_rmaps_stat"].items()}


def rmap_columns(trace: str) -> str:
    """EPT tells by its layout what others do not."""
    if trace.startswith("intel-"):
        return "auto"
    return "fls" if trace.startswith("linux-7") else "ffs"


@cache
def replayed(trace: str, policy: str = "auto") -> Run:
    request = Request(
        policy=policy,
        expect="recorded",
        rmap_histogram=tuple(rmaps_stat(trace)),
        rmap_columns=rmap_columns(trace),
    )
    return run_trace(str(RECORDED / trace), request)


def splits_by_errno(run: Run) -> Counter[str]:
    """Attempts by level and errno, as ``truth`` counts them."""
    rows = zip(*(run.replay.outcomes[name].to_pylist() for name in ("level", "errno")), strict=True)
    return Counter(f"L{level} errno {errno}" for level, errno in rows)


SPLITTING = [trace for trace in TRACES if not splits_nothing(trace)]
STILL = [trace for trace in TRACES if splits_nothing(trace)]
NOT_NESTED = ["linux-6.1/A-legacy-2m.txt.zst", "intel-6.1.176/A-legacy-2m.txt.zst"]
"""Nothing is split: merged kernels split shadow pages of nested guests only."""
WITH_TRUTH = [trace for trace in TRACES if truth(trace) and trace not in STILL]
V2 = [trace for trace in WITH_TRUTH if trace.startswith("v2/")]


def test_every_kernel_and_every_environment_is_here() -> None:
    assert {trace.split("/")[0] for trace in TRACES} == set(POLICIES)
    assert all((RECORDED / trace.replace(".txt.zst", ".info.json")).exists() for trace in TRACES)
    for word in ("contend", "spin", "injresched", "enomem", "nowaitfail"):
        assert any(word in trace for trace in TRACES)


@pytest.mark.parametrize("trace", SPLITTING)
def test_each_attempt_is_simulated_as_recorded(trace: str) -> None:
    run = replayed(trace)
    comparison, counters = run.comparison, run.replay.counters
    assert comparison.verdict == "match", comparison.reasons
    assert comparison.matched == comparison.attempts == counters["expected_attempts"]
    assert (comparison.mismatched, comparison.missing, comparison.unexpected) == (0, 0, 0)
    for name in ("get_page", "tdp_get_page", "probes"):
        assert counters[f"{name}_matched"] == counters[f"{name}_recorded"]
        assert counters[f"{name}_absent"] == counters[f"{name}_unknown"] == 0
    assert comparison.compared == comparison.recorded
    assert comparison.flushes_expected == counters["flushes_simulated"]
    assert run.trace.malformed_lines == run.trace.lost_events == 0


@pytest.mark.parametrize("trace", SPLITTING)
def test_split_lines_of_the_trace_are_all_accounted_for(trace: str) -> None:
    from replay.schema import Kind

    run = replayed(trace)
    lines = sum(int((batch.kind == Kind.SPLIT_HUGE_PAGE).sum()) for batch in run.trace.batches())
    apart = ("fault_time_tdp_splits", "splits_outside_windows")
    assert run.comparison.attempts == lines - sum(run.replay.divergences.get(name, 0) for name in apart)
    assert run.replay.divergences.get("splits_outside_windows", 0) == 0


@pytest.mark.parametrize("trace", SPLITTING)
def test_the_policy_is_found(trace: str) -> None:
    run = replayed(trace)
    if run.replay.counters["attempts"]:
        assert run.policy.name == POLICIES[trace.split("/")[0]]
    else:
        assert "/A-" in trace  # the TDP MMU is split alike by all


@pytest.mark.parametrize("trace", STILL)
def test_a_kernel_that_does_not_split_is_told(trace: str) -> None:
    run = replayed(trace)
    assert run.policy.name == "off"
    assert run.comparison.verdict == "unchecked"
    assert run.replay.outcomes.num_rows == 0


@pytest.mark.parametrize("trace", STILL)
def test_what_v2_would_have_split_there(trace: str) -> None:
    """The same memory without eager splitting: a what-if, so that nothing is compared."""
    run = run_trace(str(RECORDED / trace), Request(policy="v2", expect="none"))
    counters = run.replay.counters
    assert (counters["split"] or 0) + (counters["tdp_split"] or 0) > 0
    assert run.comparison.verdict == "unchecked"


@pytest.mark.parametrize("trace", WITH_TRUTH)
def test_attempts_by_level_and_errno(trace: str) -> None:
    run = replayed(trace)
    by_mmu = [Counter(truth(trace).get(name, {})) for name in ("shadow_split", "tdp_split", "split")]
    assert splits_by_errno(run) == sum(by_mmu, Counter())
    assert len(run.replay.outcomes) > 0


@pytest.mark.parametrize("trace", V2)
def test_counts_of_the_kernel_itself(trace: str) -> None:
    counters = replayed(trace).replay.counters
    simulated_and_true = {
        "sptes_left_nonpresent": v2_truth(trace, "nonpresent_sptes"),
        "sptes_installed": v2_truth(trace, "present_sptes"),
        "shadow_pages_leaked": v2_truth(trace, "sp_leaked"),
        "skipped_existing_child": v2_truth(trace, "alias_sp"),
        "flushes_total": v2_truth(trace, "flush_remote_tlbs_inside_walk"),
        "flushes_window_end": v2_truth(trace, "final_flush"),
        "flushes_lock_drop": v2_truth(trace, "drop_flush"),
        "flushes_yield": v2_truth(trace, "range_yield_flush1"),
        "env_yields": v2_truth(trace, "range_yield"),
        "env_alloc_failures": v2_truth(trace, "alloc_failed"),
        "split": sum(v2_truth(trace, f"splits_L{level}") for level in (2, 3)),
        "split_1g": v2_truth(trace, "splits_L3"),
    }
    assert {name: counters[name] for name in simulated_and_true} == simulated_and_true
    full = sum(n for name, n in truth(trace)["v2"].items() if name.endswith("_full"))
    assert counters["partial"] == simulated_and_true["split"] - full


@pytest.mark.parametrize("trace", V2)
def test_debts_at_lock_drops(trace: str) -> None:
    owed = v2_truth(trace, "lock_dropped_while_earlier_head_owes_flush")
    assert replayed(trace).replay.counters["flushes_lost"] == owed


@pytest.mark.parametrize("trace", [trace for trace in TRACES if "/A-tdp-" in trace and trace in SPLITTING])
def test_tdp_mmu_alone(trace: str) -> None:
    run = replayed(trace)
    counters = run.replay.counters
    pages = 16 if "-2m-s." in trace else 32
    assert counters["tdp_split"] == run.comparison.matched == 2 * pages * (1 + ("linux-6.18" in trace))
    assert counters["attempts"] == counters["tdp_failed"] == 0
    assert set(run.replay.outcomes["mmu"].to_pylist()) == {"tdp"}


@pytest.mark.parametrize("trace", [trace for trace in TRACES if rmaps_stat(trace)])
def test_rmaps_are_as_long_as_in_the_kernel(trace: str) -> None:
    histograms = replayed(trace).document["rmap_histogram"]
    assert {entry["at"]: rmaps_text(entry["levels"]).rstrip() for entry in histograms} == rmaps_stat(trace)


# -- agreement is not vacuous ---------------------------------------------------------------------------


@pytest.mark.parametrize("trace", [trace for trace in SPLITTING if trace not in NOT_NESTED])
def test_a_kernel_that_splits_is_not_one_that_does_not(trace: str) -> None:
    comparison = replayed(trace, "off").comparison
    assert comparison.verdict == "mismatch"
    assert comparison.missing == comparison.attempts


@pytest.mark.parametrize("trace", [trace for trace in V2 if v2_truth(trace, "nonpresent_sptes")])
def test_partial_splits_are_not_full_ones(trace: str) -> None:
    run = replayed(trace, "v2-desc")
    assert run.comparison.verdict == "mismatch"
    assert run.replay.counters["partial"] == 0


@pytest.mark.parametrize("trace", [trace for trace in V2 if v2_truth(trace, "alias_sp")])
def test_a_refused_child_is_not_a_reused_one(trace: str) -> None:
    run = replayed(trace, "v2-alias")
    assert run.comparison.verdict == "mismatch"
    assert run.replay.counters["skipped_existing_child"] == 0


SHADOW_OF_STOCK = [trace for trace in SPLITTING if trace.startswith(("linux-", "intel-")) and "/C" in trace]


@pytest.mark.parametrize("trace", SHADOW_OF_STOCK)
def test_merged_kernels_differ_in_flushes_and_from_v2(trace: str) -> None:
    right = POLICIES[trace.split("/")[0]]
    for policy in {"linux-6.0", "linux-2026", "v2"} - {right}:
        run = replayed(trace, policy)
        assert run.comparison.verdict == "mismatch", policy
        if policy != "v2":
            assert run.comparison.flushes_expected != run.replay.counters["flushes_simulated"]
