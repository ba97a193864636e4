"""The reference model against the recordings: every line that it predicts, flushes and rmap histograms."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.reference.run import compare

RECORDED = Path(__file__).parents[2] / "traces" / "recorded"
COMPRESSED_MAX = 23 << 10
INTEL_MAX = 64 << 10
"""Larger recordings take plain Python long: `python -m tests.reference.run FILE...` compares them."""
TRACES = sorted(
    path.relative_to(RECORDED).as_posix()
    for path in RECORDED.glob("*/*.txt.zst")
    if path.stat().st_size <= (INTEL_MAX if path.parent.name.startswith("intel") else COMPRESSED_MAX)
)
NOTHING_TO_COMPARE = ("nosplit", "linux-5.10/")
"""Without eager splitting, and without a histogram."""


@pytest.mark.parametrize("name", TRACES)
def test_recorded_lines_are_predicted(name: str) -> None:
    trace = RECORDED / name
    info = json.loads(Path(str(trace).replace(".txt.zst", ".info.json")).read_text())
    vms, total, matched, differences = compare(trace, info)
    assert differences == []
    assert total == matched
    assert total or any(word in name for word in NOTHING_TO_COMPARE)
    for machine in vms.machines.values():
        assert machine.splits.windows == {}
