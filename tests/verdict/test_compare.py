"""Verdicts: what makes a run match, and how the first difference reads."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from replay.errors import UsageError
from replay.options import Options
from replay.policy import PRESETS
from replay.verdict.compare import Comparison, Lines, compare_recorded
from replay.verdict.compare_golden import compare_golden
from replay.verdict.doubt import Doubt
from replay.verdict.golden import Golden, golden_of

V2 = PRESETS["v2"]


def test_recorded_match(make_replay: Any) -> None:
    comparison = compare_recorded(make_replay())
    assert comparison == Comparison(
        source="recorded",
        recorded=6,
        compared=6,
        attempts=4,
        matched=4,
        mismatched=0,
        missing=0,
        unexpected=0,
        get_page=Lines(2, 2, 2),
        probes=Lines(),
        flushes_expected=1,
        verdict="match",
    )


def test_nothing_recorded_is_unchecked_and_counts_are_unknown(make_replay: Any) -> None:
    comparison = compare_recorded(make_replay(has_recorded=False))
    assert (comparison.source, comparison.verdict) == ("none", "unchecked")
    assert comparison.matched is comparison.attempts is comparison.flushes_expected is None


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"mismatched": 2}, "2 attempts not as expected"),
        ({"missing": 1}, "1 attempt expected but not simulated"),
        ({"unexpected": 3}, "3 attempts simulated but not expected"),
        ({"get_page_matched": 1}, "1 of 2 kvm_mmu_get_page lines of splits differ"),
        ({"get_page_absent": 3}, "3 kvm_mmu_get_page lines of splits simulated but not recorded"),
        ({"tdp_get_page_recorded": 3}, "3 of 5 kvm_mmu_get_page lines of splits differ"),
        (
            {"recorded_probes": 9, "probes_recorded": 9, "probes_matched": 5},
            "4 of 9 probe lines of splits differ",
        ),
        ({"probes_absent": 1}, "1 probe lines of splits simulated but not recorded"),
    ],
)
def test_each_difference_is_a_mismatch(make_replay: Any, changes: dict[str, int], reason: str) -> None:
    comparison = compare_recorded(make_replay(**changes))
    assert comparison.verdict == "mismatch"
    assert comparison.reasons == [reason]


def test_truth_that_was_not_recorded_is_no_difference(make_replay: Any) -> None:
    replay = make_replay(flushes_expected=None)
    assert compare_recorded(replay).verdict == "match"


def test_windows_that_the_user_placed_are_compared_with_nothing(make_replay: Any) -> None:
    rows = [row | {"cause": "end", "flushes_recorded": 5} for row in make_replay().windows.to_pylist()]
    what_if = make_replay(
        windows=rows, expected_attempts=0, matched=0, get_page_recorded=0, get_page_matched=0
    )
    what_if.recorded_lines["splits"] = 4
    comparison = compare_recorded(what_if)
    assert (comparison.verdict, comparison.not_compared) == ("unchecked", {"no_window": 4})


def test_window_in_which_nothing_was_recorded_is_an_expectation(make_replay: Any) -> None:
    replay = make_replay(attempts=[], expected_attempts=0, matched=0)
    assert compare_recorded(replay).verdict == "match"


def test_flushes_are_compared_window_by_window(make_replay: Any) -> None:
    replay = make_replay()
    rows = replay.windows.to_pylist()
    rows[0]["flushes_recorded"], rows[1]["flushes_recorded"] = 0, 1
    comparison = compare_recorded(make_replay(windows=rows))
    assert comparison.verdict == "mismatch"
    assert comparison.reasons == [
        "flushes differ in 2 of 2 windows, first in window 0: 0 recorded, 1 simulated"
    ]


@pytest.mark.parametrize("reason", ["lost_events", "malformed_lines"])
@pytest.mark.parametrize(("mismatched", "verdict"), [(0, "partial"), (1, "mismatch")])
def test_what_is_lost_may_have_been_an_outcome(
    make_replay: Any, reason: str, mismatched: int, verdict: str
) -> None:
    comparison = compare_recorded(make_replay(mismatched=mismatched), [Doubt(reason, "six of them")])
    assert comparison.verdict == verdict
    assert comparison.reasons[-1] == "six of them"
    same = golden(make_replay())
    assert compare_golden(same, same, ["events lost: 6"]).verdict == "partial"


def test_each_line_that_is_not_compared_has_its_reason(make_replay: Any) -> None:
    replay = make_replay(
        expected_attempts=8,
        matched=7,
        get_page_unknown=1,
        unknown={0: 2},
        divergences={"fault_time_tdp_splits": 0, "splits_outside_windows": 3},
    )
    replay.recorded_lines["splits"] += 3
    doubts = [Doubt("missing_kind", "no walk", vm=1), Doubt("form", "no gfn", vm=0)]
    comparison = compare_recorded(replay, doubts)
    assert comparison.not_compared == {"form": 2, "no_window": 3}
    assert (comparison.recorded, comparison.compared) == (13, 8)
    assert comparison.get_page == Lines(recorded=2, compared=1, matched=2)
    assert comparison.reasons[-2:] == [
        "2 recorded lines not compared: the form of the text omits fields or mixes up times",
        "3 recorded lines not compared: no line shows to which window they belong",
    ]


def test_lines_that_rest_on_older_state_leave_a_part(make_replay: Any) -> None:
    replay = replace(make_replay(matched=3, unknown={0: 1}), older={0: 7})
    comparison = compare_recorded(replay)
    assert (comparison.verdict, comparison.not_compared) == ("partial", {"before_trace": 1})
    assert comparison.reasons[0] == (
        "the trace begins in the middle of a VM's life: line 7 shows older state"
    )


def test_a_lazy_split_of_a_vcpu_leaves_nothing_open(make_replay: Any) -> None:
    replay = make_replay(divergences={"fault_time_tdp_splits": 2})
    replay.recorded_lines["splits"] += 2
    comparison = compare_recorded(replay)
    assert (comparison.verdict, comparison.not_compared) == ("match", {"fault_time": 2})


def test_nothing_compared_is_unchecked(make_replay: Any) -> None:
    windows = [row | {"doubted": True} for row in make_replay().windows.to_pylist()]
    replay = replace(
        make_replay(windows=windows, matched=0, get_page_unknown=2, get_page_matched=0, unknown={0: 6}),
        older={0: 0},
    )
    comparison = compare_recorded(replay)
    assert (comparison.verdict, comparison.compared, comparison.recorded) == ("unchecked", 0, 6)


def test_recorded_differences_name_the_line_and_both_sides(make_replay: Any) -> None:
    rows = make_replay().outcomes.to_pylist()
    rows[1] |= {"match": "mismatched", "recorded_errno": -28}
    rows[2] |= {"match": "unexpected", "recorded_gfn": None, "recorded_spte": None, "recorded_errno": None}
    rows[3] |= {"match": "missing", "outcome": None, "gfn": None, "spte": None, "errno": None}
    differences = compare_recorded(
        make_replay(attempts=rows, mismatched=1, missing=1, unexpected=1)
    ).differences
    spte = "8000000100000ee7"
    assert [(one.place, one.expected, one.got) for one in differences] == [
        (
            "line 9, window 0",
            f"gfn 40200 spte {spte} level 2 errno -28",
            f"gfn 40200 spte {spte} level 2 errno 0",
        ),
        ("line 15, window 1", "", f"gfn 40200 spte {spte} level 2 errno -95"),
        ("line 20, window 1", f"gfn 80000 spte {spte} level 2 errno 0", ""),
    ]


def golden(replay: Any, policy: str = "v2", options: Options | None = None) -> Golden:
    return golden_of(PRESETS[policy], options or Options(), replay)


def test_golden_match(make_replay: Any) -> None:
    comparison = compare_golden(golden(make_replay()), golden(make_replay()))
    assert comparison == Comparison(
        source="file",
        recorded=4,
        compared=4,
        attempts=4,
        matched=4,
        mismatched=0,
        missing=0,
        unexpected=0,
        flushes_expected=1,
        verdict="match",
    )


def test_golden_difference_names_the_attempt_and_what_differs(make_replay: Any) -> None:
    rows = make_replay().outcomes.to_pylist()
    rows[1] |= {"installed": 512, "nonpresent": 0}
    comparison = compare_golden(golden(make_replay()), golden(make_replay(attempts=rows)))
    assert (comparison.matched, comparison.mismatched) == (3, 1)
    assert comparison.verdict == "mismatch"
    (difference,) = comparison.differences
    assert difference.place == "attempt 1, window 0, shadow gfn 0x40200 level 2"
    assert (difference.expected, difference.got) == (
        "installed 500 nonpresent 12",
        "installed 512 nonpresent 0",
    )


def test_golden_with_one_attempt_less_and_one_more(make_replay: Any) -> None:
    rows = make_replay().outcomes.to_pylist()
    more = rows[0] | {"gfn": 0x7E00}
    comparison = compare_golden(golden(make_replay()), golden(make_replay(attempts=[more, *rows[1:]])))
    assert (comparison.matched, comparison.mismatched) == (3, 0)
    assert (comparison.missing, comparison.unexpected) == (1, 1)
    assert [(bool(one.expected), bool(one.got)) for one in comparison.differences] == [
        (False, True),
        (True, False),
    ]


def test_golden_attempts_in_another_order_do_not_match(make_replay: Any) -> None:
    rows = make_replay().outcomes.to_pylist()
    swapped = [rows[1], rows[0], *rows[2:]]
    comparison = compare_golden(golden(make_replay()), golden(make_replay(attempts=swapped)))
    assert comparison.verdict == "mismatch"
    assert comparison.reasons == ["the same attempts, but in a different order"]


def test_golden_totals_flushes_policy_and_options_count(make_replay: Any) -> None:
    old = golden(make_replay())
    run = golden(
        make_replay(shadow_pages_leaked=5, flushes_total=2, split_1g=1),
        "v2-desc",
        Options(max_mmu_pages=64),
    )
    assert compare_golden(old, run).reasons == [
        "the golden file has policy v2, the run has v2-desc",
        "knobs.occupied_rmap: expected leave_nonpresent, got grow",
        "knobs.spare_page: expected leak, got keep",
        "knobs.alloc_failure: expected unchecked, got drop_lock",
        "options.max_mmu_pages: expected None, got 64",
        "totals.by_level.1g.split: expected 0, got 1",
        "totals.shadow_pages_leaked: expected 1, got 5",
        "flushes.total: expected 1, got 2",
    ]


def test_a_number_of_flushes_that_is_none_is_unknown(make_replay: Any) -> None:
    old = golden(make_replay())
    edited = Golden(**(vars(old) | {"flushes": vars(old)["flushes"] | {"total": "-1"}}))
    comparison = compare_golden(edited, old)
    assert comparison.reasons == ["flushes.total: expected -1, got 1"]
    assert comparison.flushes_expected is None


def test_digest_alone_differs(make_replay: Any) -> None:
    old = golden(make_replay())
    edited = Golden(**(vars(old) | {"outcomes_digest": "sha256:0"}))
    assert "outcomes_digest" in compare_golden(edited, old).reasons[0]


def test_only_the_first_differences_are_kept(make_replay: Any) -> None:
    row = make_replay().outcomes.to_pylist()[0]
    many = [row | {"gfn": gfn << 9} for gfn in range(50)]
    comparison = compare_golden(golden(make_replay(attempts=[row])), golden(make_replay(attempts=many)))
    assert len(comparison.differences) == 10
    assert (comparison.matched, comparison.missing, comparison.unexpected) == (0, 1, 50)


def test_knobs_of_a_damaged_golden_are_refused() -> None:
    with pytest.raises(UsageError, match="unknown knob"):
        V2.with_knobs({"colour": "red"}, "golden file")
