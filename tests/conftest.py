"""A finished replay to hand: two windows, three shadow attempts and one of the TDP MMU."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, settings

from replay.mmu.engine import Replay
from replay.schema import SKIP_WORDS, FlushCause, flush_schema, outcome_schema, window_schema
from replay.verdict.outcome import FAULT_WORDS

# how long an example takes is no property of the code: other processes use the machine, too
settings.register_profile("replay", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("replay")

# tools/ is not installed; what is installed goes first
sys.path.append(str(Path(__file__).parents[1]))

ATTEMPT = {
    "window": 0,
    "vm": 0,
    "mmu": "shadow",
    "ts_ns": 1_000,
    "line": 7,
    "gfn": 0x40000,
    "level": 2,
    "spte": 0x8000_0001_0000_0EE7,
    "sptep": None,
    "role": 0xF82,
    "outcome": "split",
    "errno": 0,
    "installed": 512,
    "nonpresent": 0,
    "reused": 0,
    "child_created": True,
    "retries": 0,
    "flush": False,
    "recorded_gfn": 0x40000,
    "recorded_spte": 0x8000_0001_0000_0EE7,
    "recorded_level": 2,
    "recorded_errno": 0,
    "match": "matched",
}
ATTEMPTS = [
    ATTEMPT,
    ATTEMPT
    | {"gfn": 0x40200, "recorded_gfn": 0x40200, "line": 9, "installed": 500, "nonpresent": 12, "flush": True},
    ATTEMPT
    | {
        "window": 1,
        "gfn": 0x40200,
        "recorded_gfn": 0x40200,
        "line": 15,
        "outcome": "existing_child",
        "errno": -95,
        "installed": 0,
        "child_created": False,
        "recorded_errno": -95,
    },
    ATTEMPT | {"window": 1, "mmu": "tdp", "gfn": 0x80000, "recorded_gfn": 0x80000, "line": 20},
]

MakeReplay = Callable[..., Replay]
LINES = ("get_page", "tdp_get_page", "probes", "flush_lines")


@pytest.fixture(scope="session", autouse=True)
def compiled() -> None:
    """Compile all kernels beforehand, so that no command that a test runs has to say that it does."""
    subprocess.run(
        [sys.executable, "-m", "replay", "warmup", "--quiet"], stderr=subprocess.DEVNULL, check=False
    )


def window(index: int, **counts: int | None) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys(window_schema().names, 0)
    place = {"index": index, "cause": "kprobe", "slot": 3, "start_gfn": 0x40000, "end_gfn": 0x41000}
    place["doubted"] = False
    return row | place | {"target_level": 1, "begin_ts_ns": 500, "begin_line": 6} | counts


def counters(**changes: int | None) -> dict[str, int | None]:
    names = [
        "attempts_1g", "split_1g", "partial", "retries", "retries_cache", "retries_resched", "sptes_reused",
        "shadow_pages_reused", "flushes_lost", "tdp_failed", "mismatched", "missing", "unexpected",
        "env_lock_drops", "env_yields", "env_alloc_failures",
        *(f"{name}_{what}" for name in LINES for what in ("recorded", "matched", "absent", "unknown")),
        *(f"skipped_{word}" for word in SKIP_WORDS),
        *(f"{mmu}faults_{word}" for mmu in ("", "tdp_") for word in FAULT_WORDS),
        *(f"flushes_{cause.name.lower()}" for cause in FlushCause),
    ]  # fmt: skip
    figures: dict[str, int | None] = dict.fromkeys(names, 0)
    figures |= {
        "attempts": 3, "split": 2, "partial": 1, "attempts_2m": 3, "split_2m": 2, "skipped_existing_child": 1,
        "sptes_installed": 1012, "sptes_left_nonpresent": 12, "shadow_pages_created": 2,
        "shadow_pages_leaked": 1, "shadow_pages_used_end": 20, "shadow_pages_used_peak": 20,
        "max_mmu_pages": None, "flushes_total": 1, "flushes_window_end": 1,
        "tdp_huge_sptes": 1, "tdp_attempts": 1, "tdp_split": 1, "expected_attempts": 4, "matched": 4,
        "unknown_attempts": 0, "flushes_expected": 1, "flushes_simulated": 1,
        "get_page_recorded": 2, "get_page_matched": 2,
    }  # fmt: skip
    return figures | changes


@pytest.fixture
def make_replay() -> MakeReplay:
    """Build a replay: ``attempts`` and ``windows`` replace the rows, other keywords the counters."""

    def make(
        attempts: list[dict[str, Any]] = ATTEMPTS,
        windows: list[dict[str, Any]] | None = None,
        has_recorded: bool = True,
        divergences: dict[str, int] | None = None,
        recorded_probes: int = 0,
        unknown: dict[int, int] | None = None,
        **changes: int | None,
    ) -> Replay:
        rows = windows or [
            window(0, attempts=2, split=2, flushes_total=1, flushes_window_end=1, flushes_recorded=1),
            window(1, attempts=1, skipped_existing_child=1, flushes_recorded=0),
        ]
        flush = {"window": 0, "vm": 0, "ts_ns": 1_000, "line": 9, "cause": "window_end"}
        figures = counters(**changes)
        return Replay(
            outcomes=pa.Table.from_pylist(attempts, outcome_schema()),
            flushes=pa.Table.from_pylist([flush | {"start_gfn": 0, "end_gfn": 1}], flush_schema()),
            windows=pa.Table.from_pylist(rows, window_schema()),
            counters=figures,
            divergences=divergences or {},
            has_recorded=has_recorded,
            recorded_lines={"splits": figures["expected_attempts"] or 0, "probes": recorded_probes},
            unknown=unknown or {},
        )

    return make
