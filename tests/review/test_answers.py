"""Each question on a scenario whose figures can be counted by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from replay.errors import UsageError
from replay.review.questions import QUESTIONS, review_trace
from replay.run import Request
from tests.scenarios import DATA, REGION, Table, make_trace

SYNTHETIC = Path(__file__).parents[2] / "traces" / "synthetic"
ADDR = 1 << 30
ON: Table = {"do": "dirty_log", "slot": 1, "on": True}
OFF = ON | {"on": False}
PAGE = 4096


def figures(trace: Path, question: str, **request: Any) -> dict[str, Any]:
    (answer,) = review_trace(str(trace), [question], Request(**request))["answers"]
    assert answer["question"] == question
    return answer["figures"]


def rows(trace: Path, question: str, table: int = 0) -> list[list[Any]]:
    (answer,) = review_trace(str(trace), [question], Request())["answers"]
    return answer["tables"][table]["rows"]


def synthetic(name: str) -> Path:
    return SYNTHETIC / f"{name}.txt"


def nested(name: str, page: str = "2m", gfn: int = DATA, size: int = 3 << 21, addr: int = ADDR) -> Table:
    mapped = {"addr": addr, "gfn": gfn, "size": size, "page": page, "access": "rwx"}
    return {"name": name, "kind": "nested", "map": [mapped]}


def touch(root: str, count: int = 3, size: int = 1 << 21, access: str = "write", addr: int = ADDR) -> Table:
    length = (count - 1) * size + PAGE
    return {"do": "touch", "root": root, "start": addr, "size": length, "stride": size, "access": access}


@pytest.fixture
def trace_of(tmp_path: Path) -> Any:
    """Write a trace of nested ``roots`` over slot 1, three 2M pages unless told otherwise."""

    def make(roots: list[Table], steps: list[Table], **slot: Any) -> Path:
        data = {"id": 1, "base_gfn": DATA, "npages": 3 * REGION, "backing": "2m"} | slot
        slots = [{"id": 0, "base_gfn": 0, "npages": 0x400}, data]
        vm = {"name": "vm0", "pid": 100, "vcpu_pids": [101], "slot": slots}
        vm["root"] = [{"name": "l1", "kind": "tdp"}, *roots]
        first = {
            "do": "touch",
            "root": "l1",
            "start": 0x10000,
            "size": PAGE,
            "stride": PAGE,
            "access": "write",
        }
        table = {"name": "review", "description": "", "vm": [vm], "step": [first, *steps]}
        return make_trace(table, tmp_path)

    return make


def test_a2_all_but_one_of_the_existing_children_of_a_head_leak(trace_of: Any) -> None:
    """Four equal roots: one splits, the next allocates a spare, and each of the other two loses one."""
    roots = ["a", "b", "c", "d"]
    trace = trace_of([nested(name) for name in roots], [*(touch(name) for name in roots), ON])
    assert figures(trace, "A2") == {
        "leaked": 3 * 2,
        "leaked_bytes": 3 * 2 * PAGE,
        "rmap_heads": 3,
        "existing_child": 3 * 3,
        "lock_drops": 0,
    }
    assert rows(trace, "A2", 1) == [[f"{DATA + number * REGION:x}", 2, 2] for number in range(3)]
    assert figures(trace, "A2", policy="v2-desc")["leaked"] == 0


def test_a2_leaks_are_told_by_gfn_and_level(trace_of: Any) -> None:
    """Four roots share a 1G page, whose head leaks two; three others a 2M page behind it, which leaks one."""
    gib = 1 << 18
    large = [nested(name, "1g", gib, 1 << 30) for name in "abcd"]
    small = [nested(name, "2m", 2 * gib, 1 << 21) for name in "efg"]
    steps = [*(touch(name, 1) for name in "abcdefg"), ON]
    trace = trace_of([*large, *small], steps, base_gfn=gib, npages=2 * gib, backing="1g")
    assert rows(trace, "A2", 1) == [[f"{gib:x}", 3, 2], [f"{2 * gib:x}", 2, 1]]


def test_a2_a_lock_drop_leaks_one_more() -> None:
    by_rate = {row[0]: row[-2:] for row in rows(synthetic("full-split"), "A2")}
    assert by_rate["never"] == [0, 0]
    assert by_rate["every=1"] == [4, 4]


def test_a3_children_allow_what_write_protection_took_from_the_huge_page(trace_of: Any) -> None:
    """The second window finds the second root's SPTEs, which the first one protected and left huge."""
    trace = trace_of([nested("a"), nested("b")], [touch("a"), touch("b"), ON, OFF, ON])
    assert figures(trace, "A3") == {
        "lookups": 6 + 3,
        "differ": 3,
        "not_writable": 3,
        "not_executable": 0,
        "not_user": 0,
        "access_tracked": 0,
        "children_that_gain_exec": 0,
        "existing_children": 3 + 3,
        "existing_children_missed": 3,
        "other_children_found": 0,
        "children_of_another_role": 3,
    }


def test_a4_the_checks_are_not_equivalent(trace_of: Any) -> None:
    """First window: children made by the first root. Second: the same, but logging off has emptied them."""
    trace = trace_of([nested("a"), nested("b")], [touch("a"), touch("b"), ON, OFF, ON])
    assert rows(trace, "A4") == [["exists", 3, 0, 3, 6], ["does not exist", 3, 0, 0, 3]]
    found = figures(trace, "A4")
    assert found["p_exists_given_occupied"] == 1
    assert found["p_occupied_given_exists"] == 0.5
    assert (found["lookups"], found["huge_sptes"]) == (9, 6)
    assert (found["exists_with_a_parent"], found["exists_with_a_free_rmap"]) == (6, 3)
    assert rows(trace, "A4", 1) == [
        ["has a parent SPTE: -EINVAL", 6],
        ["has none, but present SPTEs: BUG_ON", 0],
        ["empty and without parent: could be used", 0],
    ]


def test_a4_occupied_rmaps_without_a_child() -> None:
    assert rows(synthetic("rule4-occupied-rmap"), "A4")[1] == ["does not exist", 1, 2, 0, 3]
    found = figures(synthetic("rule4-occupied-rmap"), "A4")
    assert (found["occupied_without_child"], found["children_left_nonpresent"]) == (2, 16)
    assert found["p_occupied_given_exists"] is None


def test_a5_and_b1_descriptors_of_occupied_rmaps() -> None:
    """Eight gfns of two of three pages are mapped already: eight descriptors, eight, none."""
    trace = synthetic("rule4-occupied-rmap")
    assert [row[1] for row in rows(trace, "A5")] == [1, 0, 2, 0, 0]
    assert figures(trace, "A5") == {
        "splits": 3,
        "descriptors": 16,
        "most": 8,
        "splits_without": 1,
        "up_front": 3 * 513,
        "up_front_bytes": 3 * 513 * 128,
        "used_share": round(16 / 1539, 4),
    }
    found = figures(trace, "B1")
    assert (found["exact_sum"], found["exact_most"], found["rmap_probes_saved"]) == (16, 8, 3 * 512)
    assert (found["walks"], found["idle_at_end"]) == (1, 513)  # the last split takes none


def test_a5_a_second_parent_takes_one_descriptor() -> None:
    assert [row[1] for row in rows(synthetic("rule3-existing-child"), "A5")] == [3, 3, 0, 0, 0]


def test_a6_flushes_by_rule_and_attempts_with_a_flush_owed() -> None:
    """Two partial splits: behind the first, a drop at either of the next two attempts loses its flush."""
    found = figures(synthetic("rule4-occupied-rmap"), "A6")
    assert (found["flushes_deferred"], found["flushes_at_once"], found["flushes_always"]) == (1, 2, 3)
    assert (found["partial_splits"], found["attempts_with_a_flush_owed"]) == (2, 2)
    assert (found["lock_drops"], found["drops_with_a_flush_owed"]) == (0, 0)
    (_, _, every) = rows(synthetic("rule4-occupied-rmap"), "A6", 1)
    assert every == ["every=1", 3, 3, 2]


def test_a7_unsync_pages_hold_no_huge_spte() -> None:
    trace = synthetic("rule2-unsync")
    lines = trace.read_text().count("kvm_mmu_unsync_page:")
    assert lines > 0
    found = figures(trace, "A7")
    assert (found["unsync_pages"], found["unsync_pages_above_4k"]) == (lines, 0)
    assert found["huge_sptes_in_unsync_pages"] == 0


def test_a7_an_unsync_page_above_4k_is_told(tmp_path: Path) -> None:
    """A line that no kernel prints: the page with the huge SPTEs is said to be unsync."""
    lines = synthetic("full-split").read_text().splitlines(keepends=True)
    at = next(i for i, line in enumerate(lines) if "kvm_mmu_get_page" in line and " l2 8-byte q0 wux" in line)
    last = next(i for i in range(at, len(lines)) if "tracing_mark_write" in lines[i])
    unsync = lines[at].replace("kvm_mmu_get_page", "kvm_mmu_unsync_page").replace(" new", "")
    trace = tmp_path / "t.txt"
    trace.write_text("".join([*lines[:last], unsync, *lines[last:]]))
    found = figures(trace, "A7")
    assert (found["unsync_pages_above_4k"], found["huge_sptes_in_unsync_pages"]) == (1, 4)


def test_a8_what_the_limit_refuses() -> None:
    """57 pages used and a limit of 64: two of four splits. Four splits need 57 + 3 + 6 = 66."""
    trace = synthetic("rule1-no-free-pages")
    found = figures(trace, "A8")
    assert found == {
        "limit": 64,
        "refused": 2,
        "first_refused_gfn": "1000400",
        "refused_share": 0.5,
        "left_huge_share": 0.5,
        "pages_needed": 4,
        "pages_needed_for_2m": 4,
        "pages_needed_for_1g": 0,
        "limit_needed": 66,
        "pages_for_one_4k_mapping": 4,
    }
    assert [row[1:5] for row in rows(trace, "A8")] == [[64, 4, 2, 2], [66, 4, 4, 0], [65, 4, 3, 1]]
    assert figures(trace, "A8", max_mmu_pages=65)["refused"] == 1


def test_b5_work_under_one_hold() -> None:
    found = figures(synthetic("rule3-existing-child"), "B5")
    assert found == {
        "most_sptes_between_possible_drops": 512,
        "holds": 1,
        "most_sptes_in_a_hold": 3 * 512,
        "most_attempts_in_a_hold": 6,
        "heads_tried": 3,
        "longest_rmap": 2,
    }
    dropped = figures(synthetic("resched-drop"), "B5", resched="every=2")
    assert (dropped["holds"], dropped["most_attempts_in_a_hold"]) == (3, 1)


@pytest.fixture
def reused_1g(trace_of: Any) -> Path:
    """A 1G page is split to the bottom, logging goes off, and the second root maps the same page huge."""
    roots = [nested(name, "1g", 1 << 18, 1 << 30) for name in ("a", "b")]
    steps = [touch("a", 1), ON, OFF, touch("b", 1), ON]
    return trace_of(roots, steps, base_gfn=1 << 18, npages=1 << 18, backing="1g")


def test_b7_a_child_that_leads_to_tables_below_needs_a_flush(reused_1g: Path) -> None:
    """Its 512 links are still there, so that the second root's one split reuses it and flushes."""
    found = figures(reused_1g, "B7")
    assert found == {
        "splits": 1 + 512 + 1,
        "splits_with_existing_child": 1,
        "splits_with_nonleaf_child": 1,
        "flushes": 1,
        "flushes_batched": 1,
    }


def test_b7_leaves_need_none() -> None:
    found = figures(synthetic("rule3-existing-child"), "B7")
    assert (found["splits_with_existing_child"], found["splits_with_nonleaf_child"]) == (3, 0)
    by_policy = {row[0]: row[1:] for row in rows(synthetic("rule3-existing-child"), "B7")}
    assert by_policy["v2"] == [3, 0, 0, 0]
    assert by_policy["linux-2026"] == [6, 3, 6, 1]


def test_b9_direct_pages_are_not_nested() -> None:
    found = figures(synthetic("rule1-no-free-pages"), "B9")
    assert (found["split_nested_only"], found["reviewed_split_nested_only"]) == (0, 0)
    assert (found["split_all"], found["reviewed_split_all"]) == (2, 2)
    assert found["not_nested"] > 0


def test_b11_an_exact_capacity_drops_the_lock_after_each_descriptor() -> None:
    """Filled at first, then below 513 after each of the two splits that take eight."""
    found = figures(synthetic("rule4-occupied-rmap"), "B11")
    assert (found["splits"], found["descriptors"]) == (3, 16)
    assert [found[f"drops_{size}"] for size in (513, 553, 1026)] == [3, 1, 1]
    assert figures(synthetic("rule4-occupied-rmap"), "B11", settings=("desc_capacity=520",))["drops_520"] == 3


def test_b12_lengths_of_rmaps_before_the_window() -> None:
    assert rows(synthetic("rule3-existing-child"), "B12") == [
        ["4K", 0, 0, 0, 0, 0, 0, 0],
        ["2M", 0, 3, 0, 0, 0, 0, 0],
        ["1G", 0, 0, 0, 0, 0, 0, 0],
    ]
    found = figures(synthetic("rule3-existing-child"), "B12")
    assert (found["share"], found["descriptors_in_use"], found["descriptor_bytes"]) == (1, 3, 3 * 128)
    assert figures(synthetic("rule4-occupied-rmap"), "B12")["with_more_than_one_entry"] == 0


def test_b13_memory_of_the_caches() -> None:
    """Three splits took 16 descriptors and three pages of one filling."""
    found = figures(synthetic("rule4-occupied-rmap"), "B13")
    assert (found["v2_pointer_bytes"], found["v2_filled_bytes"]) == (4104, 65664)
    assert (found["descriptors"], found["pages"], found["headers"]) == (553 - 16, 37, 37)
    assert found["bytes"] == 553 * 8 + 537 * 128 + 37 * PAGE


def bucket(gfn: int) -> int:
    return (gfn * 0x61C8864680B583EB & (1 << 64) - 1) >> 52


def test_b18_a_child_behind_another_of_its_bucket(trace_of: Any) -> None:
    """Of two children in one bucket the second is looked for behind the first."""
    first = 0x100000
    shared = bucket(first)
    second = next(gfn for gfn in range(first + REGION, 1 << 32, REGION) if bucket(gfn) == shared)
    assert bucket(0) != shared
    roots = [nested("a", "2m", first, 1 << 21), nested("b", "2m", second, 1 << 21)]
    roots[0]["map"] += nested("", "2m", second, 1 << 21, 2 * ADDR)["map"]
    steps = [touch("a", 1), touch("a", 1, addr=2 * ADDR), ON]
    trace = trace_of(roots[:1], steps, base_gfn=first, npages=second - first + REGION)
    found = figures(trace, "B18")
    assert (found["lookups"], found["counted"], found["collisions"], found["most"]) == (2, 2, 1, 1)


def test_b19_one_page_of_each_range_is_missed() -> None:
    found = figures(synthetic("clear-dirty-log"), "B19")
    assert (found["windows"], found["ranges"]) == (5, 1 + 1 + 0 + 8 + 1)
    assert (found["pages_missed"], found["ranges_of_no_page"]) == (11, 1)
    assert (found["huge_pages_missed"], found["splits_before"], found["splits_after"]) == (0, 3, 3)


def test_b19_a_huge_page_whose_first_page_ends_the_range_is_missed(trace_of: Any) -> None:
    base = DATA + REGION - 63
    steps = [
        {"do": "manual_protect", "arg": 3},
        touch("a", 1),
        ON,
        {"do": "clear_dirty_log", "slot": 1, "first_page": 0, "num_pages": 64},
    ]
    trace = trace_of([nested("a", "2m", DATA + REGION, 1 << 21)], steps, base_gfn=base, npages=REGION + 64)
    found = figures(trace, "B19")
    assert (found["huge_pages_missed"], found["splits_before"], found["splits_after"]) == (1, 0, 1)


def test_b19_and_b22_without_a_clear() -> None:
    for question in ("B19", "B22"):
        (answer,) = review_trace(str(synthetic("full-split")), [question], Request())["answers"]
        assert answer["figures"] == {"windows": 0}
        assert answer["not_known"]


def test_b20_flushes_of_every_link(reused_1g: Path) -> None:
    found = figures(synthetic("rule4-occupied-rmap"), "B20")
    assert (found["splits"], found["flushes_flagged"], found["flushes_always"]) == (3, 0, 3)
    assert found["factor"] is None
    found = figures(reused_1g, "B20")
    assert (found["flushes_flagged"], found["flushes_always"], found["factor"]) == (1, 514, 514)


def test_b21_two_of_three_pages_are_never_written(trace_of: Any) -> None:
    trace = trace_of([nested("a")], [touch("a"), ON, touch("a", 1)])
    assert figures(trace, "B21") == {
        "regions_split": 3,
        "never_written": 2,
        "share": round(2 / 3, 4),
        "page_table_bytes": 2 * PAGE,
        "page_tables": 3,
        "all_page_table_bytes": 3 * PAGE,
    }


def test_b21_cannot_be_told_without_later_writes() -> None:
    (answer,) = review_trace(str(synthetic("rule3-existing-child")), ["B21"], Request())["answers"]
    assert answer["figures"]["never_written"] is None
    assert answer["figures"]["regions_split"] == 3
    assert any("no writable 4K SPTE" in text for text in answer["not_known"])


def test_b22_a_clear_that_finds_nothing_visits_one_empty_head_a_level() -> None:
    trace = synthetic("clear-dirty-log")
    assert rows(trace, "B22") == [
        ["huge pages tried", 3, 1 + 8 + 1, 20, 17, 6.67],
        ["nothing huge found", 2, 1 + 0, 2, 2, 1.0],
    ]


@pytest.mark.parametrize("name", sorted(path.stem for path in SYNTHETIC.glob("*.txt")))
def test_every_question_has_an_answer_for_every_trace(name: str) -> None:
    document = review_trace(str(synthetic(name)), [], Request())
    assert [answer["question"] for answer in document["answers"]] == list(QUESTIONS)
    for answer in document["answers"]:
        assert answer["answer"].strip()
        assert answer["computed"]


def test_questions_are_answered_once_in_the_order_of_the_review() -> None:
    answers = review_trace(str(synthetic("full-split")), ["b7", "A4", "B7"], Request())["answers"]
    assert [answer["question"] for answer in answers] == ["A4", "B7"]


def test_unknown_question_is_told_before_anything_is_read() -> None:
    with pytest.raises(UsageError, match="unknown question 'B4': use A2, A3"):
        review_trace("no such file", ["A4", "B4"], Request())


def test_a8_a_later_window_splits_what_an_earlier_one_was_refused(trace_of: Any) -> None:
    """Three of 64 pages are used: 56 splits leave five free, the other eight wait for a higher limit."""
    low, high = ({"do": "limit", "n": n} for n in (64, 200))
    trace = trace_of(
        [nested("a", size=64 << 21)], [touch("a", 64), low, ON, OFF, high, ON], npages=64 * REGION
    )
    found = figures(trace, "A8")
    assert (found["limit"], found["refused"], found["refused_share"]) == (64, 8, 8 / 64)
    assert found["left_huge_share"] == 0


def test_every_question_stands_in_the_documentation() -> None:
    text = (SYNTHETIC.parents[1] / "docs" / "review.md").read_text()
    listed = [line.split(" | ")[:2] for line in text.splitlines() if line[:3] in ("| A", "| B")]
    assert listed == [[f"| {name}", question.asks] for name, question in QUESTIONS.items()]
