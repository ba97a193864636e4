"""The progress of a bulk run: one line that is redrawn on a terminal, plain lines otherwise."""

from __future__ import annotations

import io

import pytest

from replay.bulk.plan import Task
from replay.report import bulk
from replay.report.bulk import bulk_progress

TASK = Task("a", "/a", 1 << 20, 1 << 20, "plain")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def seconds(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What the clock says."""
    now = [0.0]
    monkeypatch.setattr(bulk.time, "monotonic", lambda: now[0])
    return now


@pytest.mark.parametrize("stream", [Terminal(), io.StringIO()])
def test_progress(stream: io.StringIO, seconds: list[float]) -> None:
    with bulk_progress(stream, quiet=False) as progress:
        progress.begin(4, 4 * TASK.cost)
        progress.advance(TASK.cost, TASK.text_bytes, {})
        seconds[0] = 20.0
        progress.advance(TASK.cost, TASK.text_bytes, {"v2": "mismatch", "off": "match"})
        progress.say("that is all")
    line = "2 of 4 traces, 0/s, 0 MB/s, 0:40 to go, 1 bad"
    if stream.isatty():
        assert stream.getvalue() == f"\r\x1b[K{line}\r\x1b[Kreplay: that is all\n"
    else:
        assert stream.getvalue() == f"replay: {line}\nreplay: that is all\n"


def test_quiet(seconds: list[float]) -> None:
    stream = Terminal()
    with bulk_progress(stream, quiet=True) as progress:
        progress.begin(1, 1)
        seconds[0] = 100.0
        progress.advance(TASK.cost, TASK.text_bytes, {"v2": "error"})
        progress.say("nothing")
    assert stream.getvalue() == ""
