"""The engine against the plain-Python model of tests/reference, on random traces."""

from __future__ import annotations

import itertools
import re
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from replay.mmu.engine import Replay, replay_trace
from replay.options import Options, SplitAt, SplitKind
from replay.policy import Policy
from replay.run import Request, run_trace
from replay.trace.reader import read_trace
from tests.recorded import mutated, with_recorded_lines
from tests.reference.through import Predicted, run_through
from tests.scenarios import DATA, REGION, Table, intel_scenarios, make_trace, scenarios

POLICIES = ("v2", "v2-desc", "v2-alias", "linux-6.0", "linux-2026")
Row = tuple[Any, ...]
FIELDS = ("mmu", "gfn", "level", "spte", "errno", "installed", "nonpresent", "reused", "child_created")


def replayed(trace: Path, policy: str) -> Replay:
    return replay_trace(read_trace(str(trace)), Policy.parse(policy), Options(SplitAt(SplitKind.CONTROL)))


def simulated_attempts(replay: Replay) -> dict[int, list[Row]]:
    """Attempts by the line of their window's marker."""
    lines = replay.windows["begin_line"].to_pylist()
    found: dict[int, list[Row]] = {line: [] for line in lines}
    for row in replay.outcomes.to_pylist():
        found[lines[row["window"]]].append(tuple(row[name] for name in FIELDS))
    return found


def predicted_attempts(window: Predicted) -> list[Row]:
    """The same of the model, which says nothing of the child pages of the TDP MMU."""
    return [
        (a.mmu, a.gfn, a.level, a.spte, a.errno, a.installed, a.nonpresent, a.reused, a.created)
        if a.mmu == "shadow"
        else (a.mmu, a.gfn, a.level, a.spte, a.errno, 512, 0, 0, True)
        for a in window.attempts()
    ]


def differences(trace: Path, policy: str) -> list[str]:
    """What the model and the engine say differently of the windows before the first contradiction.

    The generator knows no eager splitting: a fault after a window may get a page that the split has made.
    """
    predicted = run_through(trace, policy)
    replay = replayed(trace, policy)
    simulated = simulated_attempts(replay)
    lines, flush_counts = (replay.windows[name].to_pylist() for name in ("begin_line", "flushes_total"))
    if sorted(simulated) != [window.line for window in predicted]:
        return [f"windows {sorted(simulated)}, predicted {[window.line for window in predicted]}"]
    flushes = dict(zip(lines, flush_counts, strict=True))
    understood = list(itertools.takewhile(lambda window: window.understood, predicted))
    found = [text for window in understood for text in window_differences(window, simulated[window.line])]
    found += [
        f"{window.line}: {flushes[window.line]} flushes, predicted {window.flushes}"
        for window in understood
        if flushes[window.line] != window.flushes
    ]
    leaked = sum(window.count("leaked") for window in predicted)
    if understood == predicted and replay.counters["shadow_pages_leaked"] != leaked:
        found.append(f"leaked {replay.counters['shadow_pages_leaked']}, predicted {leaked}")
    return found


def window_differences(window: Predicted, simulated: list[Row]) -> list[str]:
    """The first attempt that differs, and the number of attempts."""
    expected = predicted_attempts(window)
    pairs = enumerate(zip(simulated, expected, strict=False))
    found = [
        f"{window.line}: attempt {number}: {got}, predicted {wanted}"
        for number, (got, wanted) in pairs
        if got != wanted
    ][:1]
    if len(simulated) != len(expected):
        found.append(f"{window.line}: {len(simulated)} attempts, predicted {len(expected)}")
    return found


@pytest.mark.parametrize("policy", POLICIES)
@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(table=scenarios())
def test_windows_of_random_traces(policy: str, table: Table) -> None:
    with tempfile.TemporaryDirectory() as directory:
        assert differences(make_trace(table, Path(directory)), policy) == []


@pytest.mark.parametrize("policy", POLICIES)
@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(table=intel_scenarios())
def test_windows_of_random_intel_traces(policy: str, table: Table) -> None:
    with tempfile.TemporaryDirectory() as directory:
        assert differences(make_trace(table, Path(directory)), policy) == []


SHADOW_VM: Table = {
    "name": "vm0",
    "pid": 100,
    "vcpu_pids": [101],
    "slot": [
        {"id": 0, "base_gfn": 0, "npages": 0x400},
        {"id": 1, "base_gfn": DATA, "npages": 3 * REGION, "backing": "2m", "hva": 0x7F0040000000},
    ],
    "root": [
        {"name": "own", "kind": "direct"},
        *(
            {
                "name": name,
                "kind": "nested",
                "map": [{"addr": 1 << 30, "gfn": DATA, "size": 3 << 21, "page": page, "access": "rwx"}],
            }
            for name, page in (("a", "2m"), ("b", "2m"), ("c", "4k"))
        ),
    ],
}


def touched(root: str, count: int = 3) -> Table:
    return {
        "do": "touch",
        "root": root,
        "start": 1 << 30,
        "size": (count - 1 << 21) + 0x1000,
        "stride": "2m",
        "access": "write",
    }


SWITCH_ON: Table = {"do": "dirty_log", "slot": 1, "on": True}
SWITCH_OFF = SWITCH_ON | {"on": False}
CLEAR: Table = {"do": "clear_dirty_log", "slot": 1, "first_page": 0, "num_pages": 0x400}
MANUAL: Table = {"do": "manual_protect", "arg": 3}
EDGES = {
    "aliases of equal access": [touched("a"), touched("b"), SWITCH_ON],
    "direct and nested pages of one gfn": [touched("own"), touched("a"), SWITCH_ON],
    "occupied rmaps and a lock drop": [
        touched("c"),
        touched("a"),
        touched("b"),
        {"do": "resched"},
        SWITCH_ON,
    ],
    "second limit is lower": [touched("a"), {"do": "limit", "n": 80}, {"do": "limit", "n": 64}, SWITCH_ON],
    "off and on again": [touched("a"), SWITCH_ON, SWITCH_OFF, SWITCH_ON],
    "unmapped before the window": [
        touched("a"),
        {"do": "unmap", "hva": 0x7F0040200000, "size": "4k"},
        SWITCH_ON,
    ],
    "cleared word by word": [MANUAL, touched("a"), touched("b", 2), SWITCH_ON, CLEAR, CLEAR],
    "set again with the same flags": [
        MANUAL,
        touched("a"),
        touched("b"),
        SWITCH_ON,
        CLEAR | {"mask": 0xFF00},
        SWITCH_ON,
        CLEAR | {"mask": 0xFF00},
    ],
}


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", EDGES)
def test_windows_of_chosen_traces(name: str, policy: str, tmp_path: Path) -> None:
    trace = make_trace(
        {"name": "edge", "description": name, "vm": [SHADOW_VM], "step": EDGES[name]}, tmp_path
    )
    assert differences(trace, policy) == []


def test_model_of_another_policy_is_told_apart(tmp_path: Path) -> None:
    steps = EDGES["occupied rmaps and a lock drop"]
    trace = make_trace({"name": "edge", "description": "", "vm": [SHADOW_VM], "step": steps}, tmp_path)
    predicted = {policy: run_through(trace, policy)[0] for policy in ("v2", "v2-desc", "v2-alias")}
    for policy, window in predicted.items():
        simulated = simulated_attempts(replayed(trace, policy))[window.line]
        same = {other for other in predicted if window_differences(predicted[other], simulated) == []}
        assert same == {policy}


@settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(table=st.one_of(scenarios(), intel_scenarios()), data=st.data())
def test_recorded_lines_match_until_one_is_changed(table: Table, data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as directory:
        trace = make_trace(table, Path(directory))
        # whoever write-protects a huge page of the TDP MMU in the trace would find it split already
        huge = r"spte_changed: .* level [23] old_spte (?!8000000000000000)[1-9a-f]"
        assume(not re.search(huge, trace.read_text()))
        windows = [window for window in run_through(trace, "v2") if window.understood]
        assume(not any(window.count("zap") for window in windows))
        output = Path(directory) / "recorded.txt"
        rows = with_recorded_lines(trace, windows, output, table.get("spte_layout", "amd"))
        assume(rows)
        assert verdict(output) == ("match", [])
        lines = output.read_text().splitlines(keepends=True)
        row = data.draw(st.sampled_from(rows))
        changed = data.draw(st.sampled_from(("detail", "deleted")))
        if changed == "detail":
            lines[row] = mutated(lines[row], data.draw(st.integers(0, 2)))
        else:
            del lines[row]
        output.write_text("".join(lines))
        is_left = any("kvm_mmu_split_huge_page" in line for line in lines)
        assert verdict(output)[0] == ("mismatch" if is_left else "unchecked")


def verdict(trace: Path) -> tuple[str, list[str]]:
    """The verdict of a run with policy v2, and why it is not ``match``."""
    document = run_trace(str(trace), Request(policy="v2", expect="recorded")).document
    return document["verdict"], document["verdict_reasons"]
