"""What one kernel recorded, replayed under the policy of another: the same scenario ran on both.

The guests do the same, so that the splits must be those that the other kernel recorded.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest

from replay.run import Request, run_trace

RECORDED = Path(__file__).parents[1] / "traces" / "recorded"
SPLITS = (
    "attempts",
    "split",
    "partial",
    "by_level",
    "skipped",
    "sptes_left_nonpresent",
    "shadow_pages_created",
)
V2 = [
    "C1-nested-2m linux-5.10",  # which cannot split eagerly
    "C1-nested-2m linux-6.1",
    "C1-nested-2m linux-6.1.192",
    "C1-nested-2m linux-6.12.107",
    "C1-nested-2m linux-7.3.4",
    "C2-alias linux-6.1",
    "C2-alias linux-6.1.192",
    "C2-alias linux-7.3.4",
    "C4-enospc linux-6.1",
    "C4-enospc linux-6.12.107",
    "C4-enospc linux-7.3.4",
    "C7-npt1g-back1g linux-7.3.4",
    "C7-npt2m-back1g linux-6.1",
    "V-clear-1g linux-6.1.192",
    "V-occ4k linux-6.1.192",
]


@cache
def document(kernel: str, scenario: str, policy: str) -> dict[str, Any]:
    trace = str(RECORDED / kernel / f"{scenario}.txt.zst")
    return run_trace(trace, Request(policy=policy, expect="recorded")).document


def splits(run: dict[str, Any]) -> dict[str, Any]:
    return {name: run["totals"][name] for name in SPLITS}


@pytest.mark.parametrize("case", V2)
def test_v2_on_the_recording_of_another_kernel(case: str) -> None:
    scenario, kernel = case.split()
    what_if, real = document(kernel, scenario, "v2"), document("v2", scenario, "auto")
    assert real["verdict"] == "match"
    assert real["totals"]["split"] > 0
    assert splits(what_if) == splits(real)
    # both states: what was simulated, and what that kernel recorded
    recorded = document(kernel, scenario, "auto")["recorded"]
    assert what_if["recorded"] == recorded


@pytest.mark.parametrize("case", [case for case in V2 if "5.10" not in case])
def test_a_merged_policy_on_the_recording_of_v2(case: str) -> None:
    scenario, kernel = case.split()
    real = document(kernel, scenario, "auto")
    what_if = document("v2", scenario, real["policy"]["name"])
    assert splits(what_if) == splits(real)
    assert what_if["recorded"] == document("v2", scenario, "auto")["recorded"]


def test_recorded_state_is_that_of_the_split_lines() -> None:
    assert document("v2", "C4-enospc", "auto")["recorded"] == {
        "attempts": 351,
        "split": 63,
        "skipped": {"existing_child": 254, "no_free_pages": 34},
        "retries": 0,
    }
    assert document("linux-5.10", "C1-nested-2m", "v2")["recorded"] is None


def test_later_faults_are_those_of_the_other_kernel() -> None:
    """104 of the 4K pages are written after the split, whichever kernel recorded it; none is a surprise."""
    faults = {"avoided": 0, "write_protected": 104, "nonpresent": 0, "lazy_splits": 0}
    for kernel in ("v2", "linux-5.10", "linux-6.1", "linux-7.3.4"):
        assert document(kernel, "C1-nested-2m", "v2")["faults"] == faults
    # without eager splits the first of them in each of 64 regions splits it
    assert document("v2", "C1-nested-2m", "off")["faults"] == faults | {
        "write_protected": 0,
        "lazy_splits": 64,
    }


def test_faults_of_sptes_left_nonpresent_are_avoided_by_full_splits() -> None:
    partial = document("v2", "V-occ4k", "v2")
    assert partial["totals"]["sptes_left_nonpresent"] == 2040
    # 520 reads and 7 writes of pages that the split had taken away
    assert partial["faults"] == {"avoided": 0, "write_protected": 7, "nonpresent": 527, "lazy_splits": 0}
    full = document("v2", "V-occ4k", "v2-desc")
    assert full["totals"]["sptes_left_nonpresent"] == 0
    assert full["faults"] == {"avoided": 520, "write_protected": 14, "nonpresent": 0, "lazy_splits": 0}


def test_pages_that_either_side_alone_splits_are_counted() -> None:
    # the recorded kernel split 64 huge pages in faults, the simulation before them
    assert document("linux-5.10", "C1-nested-2m", "v2")["divergences"] == {"pages_split_already": 64}
    # the recorded kernel split 64 before the faults, the simulation in them
    assert document("v2", "C1-nested-2m", "off")["divergences"] == {"pages_not_split": 64}


@pytest.mark.parametrize("trace", sorted(RECORDED.glob("*/*.txt.zst")), ids=lambda trace: trace.name)
def test_no_recorded_fault_was_needless(trace: Path) -> None:
    """Where the policy is the kernel's own, no fault is one that its splits should have avoided."""
    run = run_trace(str(trace), Request(policy="auto", expect="recorded")).document
    assert run["faults"]["avoided"] in (0, None)
    assert run["tdp"]["faults"]["avoided"] in (0, None)
