"""The package as Python callers meet it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import replay
from replay.schema import outcome_schema

TRACE = Path(__file__).parents[1] / "traces" / "synthetic" / "rule3-existing-child.txt"


def test_import_is_light() -> None:
    code = """
import sys, replay
heavy = {"numba", "numpy", "polars", "pyarrow", "rich", "typer"} & sys.modules.keys()
sys.exit(f"imports {heavy}" if heavy else 0)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")


def test_every_public_name_is_there() -> None:
    assert set(replay.__all__) <= set(dir(replay))
    assert all(getattr(replay, name).__name__ == name for name in replay.__all__)
    with pytest.raises(AttributeError, match="no attribute 'walk'"):
        _ = replay.walk  # type: ignore[attr-defined]


def test_replay_by_path_and_by_trace() -> None:
    trace = replay.read_trace(str(TRACE))
    by_path, by_trace = replay.replay(TRACE), replay.replay(trace)
    assert by_path.document == by_trace.document
    assert by_path.policy == replay.Policy()
    assert by_path.document["totals"]["skipped"]["existing_child"] > 0
    assert by_path.tables()["outcomes"].schema.equals(outcome_schema())
    assert by_path.tables()["outcomes"].num_rows == by_path.document["totals"]["attempts"]


def test_policy_and_options_count() -> None:
    off = replay.replay(TRACE, "off").document
    assert (off["policy"]["name"], off["totals"]["split"]) == ("off", 0)
    never = replay.replay(TRACE, replay.Policy(), split_at="never").document
    assert never["windows"] == []
    full = replay.replay(TRACE, replay.Policy(min_free_pages=60), max_mmu_pages=64).document
    assert full["totals"]["max_mmu_pages"] == 64
    assert full["totals"]["skipped"]["no_free_pages"] == full["totals"]["attempts"] > 0


def test_rmaps_of_a_moment() -> None:
    found = replay.replay(TRACE, rmap_histogram=["0", "end"], rmap_columns="ffs").document["rmap_histogram"]
    assert [(entry["at"], entry["columns_by"]) for entry in found] == [("0", "ffs"), ("end", "ffs")]
    assert found[0]["levels"] != found[1]["levels"]


def test_compare_gives_what_single_runs_give() -> None:
    runs = replay.compare(TRACE, ["v2", replay.Policy.parse("v2-alias")])
    assert [run.policy.name for run in runs] == ["v2", "v2-alias"]
    assert [run.document for run in runs] == [
        replay.replay(TRACE, name, expect="recorded").document for name in ("v2", "v2-alias")
    ]
    assert runs[0].document["totals"] != runs[1].document["totals"]


@pytest.mark.parametrize(
    ("path", "policy", "message"),
    [("none.txt", "v2", "none.txt: No such file"), (TRACE, "v9", "unknown policy 'v9'")],
)
def test_errors_are_replay_errors(path: str | Path, policy: str, message: str) -> None:
    with pytest.raises(replay.ReplayError, match=message):
        replay.replay(path, policy)
    with pytest.raises(replay.ReplayError, match=message):
        replay.compare(path, [policy])
