"""Answers about recordings, against what the recorded kernels counted themselves.

``truth`` of an ``.info.json`` are the counters of the v2 kernel's own probes, ``mmu_rmaps_stat`` the
histogram of debugfs, and the marker lines ``lab: stat`` hold statistics of KVM: a replay reads none of them.
"""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from replay.mmu.results.census import LENGTHS
from replay.review.questions import review_trace
from replay.review.runs import Runs
from replay.review.walks import end_word
from replay.run import Request
from replay.schema import Kind

RECORDED = Path(__file__).parents[2] / "traces" / "recorded"
V2 = (
    "B-shadow-2m-manual", "B-shadow-2m-spin", "C1-nested-2m-enomem", "C1-nested-manual", "C2-alias-contend",
    "C2-alias-injresched9", "C2-alias8-spin", "C3-mixed4k", "C4-enospc", "C7-npt1g-back1g", "C9-slots",
    "D-two-vms", "V-1g-alias-ro-injresched50", "V-1g-alias-same", "V-clear-npt2m-back1g",
    "V-occ4k-injresched",
)  # fmt: skip
OF_ALL_KERNELS = (
    "linux-6.1/C4-enospc", "linux-6.12.107/C2-alias", "linux-7.3.4/C2-alias", "linux-7.3.4/C7-npt1g-back1g",
    "v2/B-shadow-2m-spin", "v2/C2-alias8-spin", "v2/C3-mixed4k", "v2/C7-npt1g-back1g", "v2/V-1g-alias-ro",
)  # fmt: skip
QUESTIONS = ("A2", "A4", "A6")


def info(trace: str) -> dict[str, Any]:
    return json.loads((RECORDED / f"{trace}.info.json").read_text())


@cache
def answers(trace: str) -> dict[str, Any]:
    document = review_trace(str(RECORDED / f"{trace}.txt.zst"), QUESTIONS, Request())
    return {answer["question"]: answer for answer in document["answers"]}


def counted(trace: str, prefix: str, suffix: str = "") -> int:
    """Sum of the kernel's counters whose names begin and end so."""
    counters = info(trace)["truth"]["v2"]
    return sum(n for name, n in counters.items() if name.startswith(prefix) and name.endswith(suffix))


@pytest.mark.parametrize("name", V2)
def test_a2_leaks_are_those_of_the_kernel(name: str) -> None:
    answer = answers(f"v2/{name}")["A2"]
    leaked = counted(f"v2/{name}", "sp_leaked")
    assert answer["figures"]["leaked"] == leaked
    by_place = [row[2] for row in answer["tables"][1]["rows"]]
    assert len(by_place) == min(answer["figures"]["rmap_heads"], 8)
    assert bool(by_place) == bool(leaked)
    assert sum(by_place) == leaked or len(by_place) == 8


@pytest.mark.parametrize("name", V2)
def test_a4_existing_children_and_occupied_rmaps_are_those_of_the_kernel(name: str) -> None:
    exists, new = answers(f"v2/{name}")["A4"]["tables"][0]["rows"]
    assert exists[-1] == counted(f"v2/{name}", "alias_sp_")
    kinds = ("full", "partial", "all_nonpresent")
    assert new[1:-1] == [counted(f"v2/{name}", "splits_L", kind) for kind in kinds]


@pytest.mark.parametrize("name", V2)
def test_a6_drops_with_a_flush_owed_are_those_of_the_kernel(name: str) -> None:
    figures = answers(f"v2/{name}")["A6"]["figures"]
    owed = counted(f"v2/{name}", "lock_dropped_while_earlier_head_owes_flush")
    assert figures["drops_with_a_flush_owed"] == owed
    assert figures["attempts_with_a_flush_owed"] >= min(owed, 1)


def column(entries: int, trace: str) -> int:
    """Column of mmu_rmaps_stat: ffs(entries) up to 6.12, later fls(entries)."""
    return entries.bit_length() if "/linux-7" in f"/{trace}" else (entries & -entries).bit_length()


@cache
def runs(trace: str) -> Runs:
    return Runs(str(RECORDED / f"{trace}.txt.zst"), Request(policy="auto"))


@pytest.mark.parametrize("trace", OF_ALL_KERNELS)
def test_b12_lengths_are_those_of_the_kernel(trace: str) -> None:
    simulated = [[0] * 10 for _ in range(3)]
    for level, row in enumerate(runs(trace).reviewed.census.lengths.tolist()):
        assert row[LENGTHS - 1] == 0
        for entries, heads in enumerate(row, 1):
            simulated[level][column(entries, trace) - 1] += heads
    lines = [line for line in info(trace)["mmu_rmaps_stat"]["before"] if line.startswith("Level=")]
    assert simulated == [[int(word) for word in line.split()[2:]] for line in lines]


@pytest.mark.parametrize("trace", OF_ALL_KERNELS)
def test_b18_the_most_collisions_are_those_of_the_kernel(trace: str) -> None:
    """max_mmu_page_hash_collisions, where a look-up of the first window raised it."""
    text = " ".join(runs(trace).trace.texts)
    most = dict(re.findall(r"lab: stat (\S+) .*?max_mmu_page_hash_collisions=(\d+)", text))
    collisions = runs(trace).reviewed.looked_up["collisions"]
    first = collisions[runs(trace).reviewed.looked_up["window"] == 0]
    if int(most["after"]) > int(most["before"]):
        assert first.max() == int(most["after"])
    else:
        assert first.max() <= int(most["after"])


def test_b18_some_recording_shows_collisions() -> None:
    assert any(runs(trace).reviewed.looked_up["collisions"].max() > 1 for trace in OF_ALL_KERNELS)


def test_a3_children_gain_exec_with_nx_huge_pages() -> None:
    """Of a kernel with nx_huge_pages=force: each of the 32 full splits makes 512 executable children."""
    trace = RECORDED / "v2" / "C2-alias-nxhp.txt.zst"
    (answer,) = review_trace(str(trace), ["A3"], Request())["answers"]
    assert answer["figures"]["children_that_gain_exec"] == counted("v2/C2-alias-nxhp", "splits_L2_full") * 512
    assert answer["figures"]["not_executable"] == answer["figures"]["lookups"]


@pytest.mark.parametrize(
    ("start", "end", "word"),
    [
        ([0x40000, 0x40040], [0x4003F, 0x4007F], "inclusive"),
        ([0x40000, 0x40044], [0x40040, 0x40045], "exclusive"),
        ([0x40004], [0x40004], "inclusive"),
        ([0x40004], [0x40008], None),
    ],
)
def test_b19_the_end_of_the_recorded_kernel_is_told_from_its_ranges(
    start: list[int], end: list[int], word: str | None
) -> None:
    assert end_word(np.array(start), np.array(end)) == word


def test_b19_a_kernel_before_6_8_misses_one_page_of_each_range() -> None:
    trace = "linux-6.1.192/V-clear-1g"
    (answer,) = review_trace(str(RECORDED / f"{trace}.txt.zst"), ["B19"], Request())["answers"]
    ranges = runs(trace).kinds[Kind.SHADOW_TRY_SPLIT]
    assert ranges > 100
    assert (answer["figures"]["ranges"], answer["figures"]["pages_missed"]) == (ranges, ranges)
