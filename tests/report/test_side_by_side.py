"""Runs side by side: leaked pages cost memory too, and what is unknown is not 0."""

from __future__ import annotations

import io
from typing import Any, cast

from replay.options import Options
from replay.policy import PRESETS
from replay.report.console import console
from replay.report.side_by_side import print_side_by_side
from replay.run import Run
from replay.trace.trace import Trace
from replay.verdict.compare import compare_recorded
from tests.report.test_console import FakeTrace


def rows(*replays: Any) -> dict[str, list[str]]:
    documents = [
        Run(cast(Trace, FakeTrace()), PRESETS["v2"], "", Options(), each, compare_recorded(each)).document
        for each in replays
    ]
    text = io.StringIO()
    print_side_by_side(console(text), documents)
    lines = [line.rsplit(maxsplit=len(replays)) for line in text.getvalue().splitlines()[3:-1]]
    return {line[0]: line[1:] for line in lines}


def test_what_splits_cost(make_replay: Any) -> None:
    found = rows(
        make_replay(),
        make_replay(
            shadow_pages_created=0, shadow_pages_leaked=0, sptes_left_nonpresent=0, flushes_window_end=0
        ),
        make_replay(shadow_pages_created=None, flushes_window_end=None),
    )
    assert found["page-table bytes of splits"] == [f"{3 * (4096 + 184):,}", "0", "?"]
    assert found["SPTEs left non-present"] == ["12", "0", "12"]
    assert found["flushes: window_end"] == ["1", "0", "?"]
    assert "flushes: yield" not in found
