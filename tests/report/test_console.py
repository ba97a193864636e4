"""The summary says what a reader looks for, and says nothing it does not know."""

from __future__ import annotations

import io
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np
import pytest

from replay.options import Options
from replay.policy import DESCRIPTIONS, PRESETS
from replay.report.console import console, print_policies, print_run
from replay.report.progress import read_progress
from replay.run import Run
from replay.trace.trace import Trace
from replay.verdict.compare import compare_recorded
from replay.verdict.doubt import Doubt
from tests.conftest import window


@dataclass
class FakeTrace:
    path: str = "t.txt"
    format: str = "ftrace"
    bytes: int = 1000
    lines: int = 23456
    events: int = 12345
    kvmmmu_events: int = 7
    ignored_lines: int = 0
    malformed_lines: int = 0
    lost_events: int = 0
    first_ts_ns: int = 0
    last_ts_ns: int = 9
    losses: dict[str, int] = field(default_factory=dict)
    notes: dict[str, dict[str, int]] = field(default_factory=dict)
    vms: list[str] = field(default_factory=lambda: ["157"])

    def kind_counts(self) -> np.ndarray:
        return np.zeros(256, np.int64)


def summary(replay: Any, trace: FakeTrace | None = None) -> str:
    trace = trace or FakeTrace()
    doubts = [Doubt("lost_events", "events lost")] if trace.lost_events else []
    comparison = compare_recorded(replay, doubts)
    reason = "nothing speaks against it"
    document = Run(cast(Trace, trace), PRESETS["v2"], reason, Options(), replay, comparison).document
    text = io.StringIO()
    print_run(console(text), document, comparison.differences)
    return text.getvalue()


def test_summary_of_a_match(make_replay: Any) -> None:
    lines = summary(make_replay()).splitlines()
    assert lines[0] == "t.txt: ftrace, 12,345 events (7 kvmmmu), 23,456 lines, 1 VM, nothing lost"
    assert lines[1] == "policy v2: nothing speaks against it"
    assert lines[8:] == [
        "huge SPTEs    2 of 3 attempts split (2M 2 of 3)",
        "              left huge: 1 existing_child",
        "children      1,012 SPTEs installed, 12 left non-present by 1 of the splits",
        "shadow pages  2 created (8 KiB), 0 reused, 1 LEAKED (4 KiB)",
        "              20 in use at the end, 20 at most, limit ?",
        "flushes       1: 1 window_end",
        "TDP MMU       1 of 1 attempts split, 0 failed, 1 huge SPTEs at the end",
        "environment   no input taken from it",
        "divergences   none",
        "",
        "verdict match: 4 of 4 recorded split lines matched, 2 of 2 other lines; "
        "flushes: 1 expected, 1 simulated",
    ]
    assert all(line == line.rstrip() for line in lines)


def test_summary_without_shadow_pages_or_expectations(make_replay: Any) -> None:
    replay = make_replay(has_recorded=False)
    none = dict.fromkeys(("attempts", "split", "skipped_existing_child", "shadow_pages_used_peak"), 0)
    lines = summary(replace(replay, counters=replay.counters | none)).splitlines()
    assert lines[8] == "huge SPTEs   none in the shadow MMU"
    assert not any(line.startswith(("children", "shadow pages")) for line in lines)
    assert lines[-1] == "verdict unchecked: nothing to compare with"


def test_windows_are_listed_with_totals(make_replay: Any) -> None:
    lines = summary(make_replay()).splitlines()
    header = next(index for index, line in enumerate(lines) if line.lstrip().startswith("#"))
    assert lines[header].split() == [
        "#", "vm", "cause", "slot", "gfns", "attempts", "split", "skipped", "retries", "flushes",
    ]  # fmt: skip
    assert lines[header + 1].split() == ["0", "0", "kprobe", "3", "40000..41000", "2", "2", "0", "1"]
    assert lines[header + 2].split()[5:] == ["1", "0", "1", "existing_child", "0", "0"]
    assert lines[header + 3].split() == ["all", "3", "2", "1", "existing_child", "0", "1"]


IDLE = window(0)
SHADOW, TDP = window(0, attempts=1, split=1), window(0, tdp_attempts=2, tdp_split=1, tdp_failed=1)


def listed(make_replay: Any, rows: list[dict[str, Any]]) -> tuple[list[int], list[str]]:
    """(numbers of the windows that are listed, the lines from the last of them to the next blank one)."""
    text = summary(make_replay(windows=[row | {"index": index} for index, row in enumerate(rows)]))
    lines = text.splitlines()
    found = [index for index, line in enumerate(lines) if "kprobe" in line]
    rest = lines[found[-1] + 1 :] if found else lines[3:]
    return [int(lines[index].split()[0]) for index in found], rest[: rest.index("")]


def test_a_few_windows_are_all_listed(make_replay: Any) -> None:
    numbers, rest = listed(make_replay, [IDLE] * 11 + [SHADOW])
    assert numbers == list(range(12))
    assert [line.split()[0] for line in rest] == ["all"]


def test_of_many_windows_those_that_did_something(make_replay: Any) -> None:
    acts = [{"attempts": 1}, {"skipped_unsync": 1}, {"retries": 1}, {"flushes_total": 1}, {"tdp_attempts": 1}]
    rows = [IDLE] * 4500
    for index, counts in enumerate(acts):
        rows[100 * index + 7] = window(0, **counts)
    numbers, (_, other) = listed(make_replay, rows)
    assert numbers == [7, 107, 207, 307, 407]
    assert other == "4,495 other windows: no attempt"


def test_many_windows_that_did_nothing(make_replay: Any) -> None:
    assert listed(make_replay, [IDLE] * 13) == ([], ["13 windows: no attempt"])


def test_of_too_many_windows_those_of_the_shadow_mmu(make_replay: Any) -> None:
    rows = ([TDP] * 3 + [IDLE]) * 100
    rows[50] = rows[60] = SHADOW
    numbers, rest = listed(make_replay, rows)
    assert numbers == [50, 60]
    assert rest[1:] == [
        "298 other windows: attempts only in the TDP MMU",
        "100 other windows: no attempt",
    ]


@pytest.mark.parametrize("row", [SHADOW, TDP])
def test_hundreds_of_busy_windows_are_grouped(make_replay: Any, row: dict[str, Any]) -> None:
    rows = [row | {"index": index} for index in range(400)]
    numbers, _ = listed(make_replay, rows)
    assert numbers == [*range(40), *range(390, 400)]
    assert "(350 more)" in summary(make_replay(windows=rows))


def test_splits_of_the_tdp_mmu_are_listed_with_the_others(make_replay: Any) -> None:
    text = summary(make_replay(windows=[SHADOW, TDP | {"index": 1}], tdp_attempts=2))
    lines = [line for line in text.splitlines() if line.endswith((" split", " 0", " of 2"))]
    assert [line.split("  ")[-1].strip() for line in lines[:4]] == ["tdp split", "0", "1 of 2", "1 of 2"]
    assert "tdp split" not in summary(make_replay(windows=[SHADOW, IDLE]))


@pytest.mark.parametrize(
    ("trace", "words"),
    [
        (FakeTrace(lost_events=6), ["6 EVENTS LOST", "verdict partial"]),
        (FakeTrace(malformed_lines=3), ["3 MALFORMED LINES"]),
        (FakeTrace(vms=["1", "2"]), ["2 VMs"]),
    ],
)
def test_what_is_wrong_with_the_trace_is_said(make_replay: Any, trace: FakeTrace, words: list[str]) -> None:
    text = summary(make_replay(), trace)
    assert all(word in text for word in words)


def test_differences_and_doubts(make_replay: Any) -> None:
    rows = make_replay().outcomes.to_pylist()
    rows[2] |= {"match": "unexpected"}
    text = summary(
        make_replay(
            attempts=rows,
            unexpected=1,
            matched=3,
            retries=2,
            retries_cache=2,
            flushes_lost=1,
            env_yields=4,
            divergences={"adopted_pages": 7, "never": 0},
        )
    )
    for words in (
        "retries       2: 2 empty caches\n",
        "1 window_end; lock drops while one was still pending: 1",
        "environment   4 yields",
        "divergences   7 adopted_pages\n",
        "verdict mismatch: 3 of 4 recorded split lines matched",
        "  1 attempt simulated but not expected\n",
        "  line 15, window 1\n    expected  no such attempt\n    got       gfn 40200 spte",
    ):
        assert words in text


def test_names_of_files_are_no_markup(make_replay: Any) -> None:
    assert "[bold]t[/].txt: ftrace" in summary(make_replay(), FakeTrace(path="[bold]t[/].txt"))


def test_policies_are_listed_by_what_differs() -> None:
    text = io.StringIO()
    print_policies(console(text), PRESETS.values(), DESCRIPTIONS)
    lines = text.getvalue().splitlines()
    assert next(line for line in lines if line.startswith("off ")).endswith("enabled=false")
    assert next(line for line in lines if line.startswith("flush ")).split() == [
        "flush", "deferred_if_partial",
        "deferred_if_partial", "|", "on_link_always", "|", "on_link_if_nonleaf",
    ]  # fmt: skip


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_only_on_a_terminal_and_erased() -> None:
    with read_progress(io.StringIO()) as show:
        assert show is None
    terminal = Terminal()
    with read_progress(terminal) as show:
        assert show is not None
        show(5_000_000, 10_000_000)
    assert "reading 5 of 10 MB" in terminal.getvalue()
    assert terminal.getvalue().endswith("\r\x1b[K")


def test_progress_of_a_pipe_has_no_total() -> None:
    terminal = Terminal()
    with read_progress(terminal) as show:
        assert show is not None
        show(5_000_000, None)
    assert "reading 5 MB" in terminal.getvalue()
