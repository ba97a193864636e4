"""Damaged text of every form: never an exception, each line is accounted for."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from replay.errors import TraceError
from replay.trace.reader import read_trace
from replay.trace.text.rewrite import Forms, stages
from replay.trace.text.text_parser import MAX_LINE
from tests.trace.test_forms import DERIVED

LINES = 400
REPEATED = 30


def damaged(data: bytes, rng: random.Random) -> bytes:
    """``data`` with bytes changed, cut out, and lines torn apart or joined."""
    text = bytearray(data)
    for _ in range(60):
        at = rng.randrange(len(text) - 20)
        kind = rng.randrange(4)
        if kind == 0:
            text[at] = rng.randrange(256)
        elif kind == 1:
            del text[at : at + rng.randrange(1, 20)]
        elif kind == 2:
            text[at:at] = b"\n"
        else:
            text[at : at + 1] = rng.choice([b"[", b"> ", b": ", b"=", b"role=", b"CPU:", b"\0", b"  "])
    return bytes(text)


@pytest.mark.parametrize("form", DERIVED)
def test_damage(form: str, tmp_path: Path) -> None:
    whole = DERIVED[form][0]("linux-5.10" if "5.1" in form else "linux-7.3.4")
    sample = "\n".join(whole.split("\n")[:LINES]).encode() + b"\n"
    path = tmp_path / "trace.txt"
    for seed in range(4):
        data = damaged(sample, random.Random(seed))
        path.write_bytes(data)
        trace = read_trace(str(path), chunk_bytes=1 << 14)
        rows = sum(len(batch.kind) for batch in trace.batches())
        assert rows == trace.events
        assert trace.lines == trace.events + trace.ignored_lines + trace.malformed_lines
        assert trace.lines == data.count(b"\n") + (not data.endswith(b"\n"))


UNKIND = [
    b"  1.000001 " + b" " * 10000,
    b"1" * 10000,
    b"[1] " * 3000,
    b"CPU:1 [" + b"EVENTS" * 2000,
    b"-1 " * 4000,
    b"PERF_RECORD_LOST " + b"[1]" * 3000,
    b"> " * 5000,
    b"a=" * 5000,
    b": " * 5000,
    b"\x00" * 10000,
    b"new sp gfn " + b"1 q0 " * 2000,
]


@pytest.mark.parametrize("text", UNKIND, ids=range(len(UNKIND)))
def test_long_lines_take_no_time(text: bytes) -> None:
    """The work on a line grows with its length, not with the square of it: else this does not end."""
    forms = Forms()
    forms.used.update(stages())
    line = b"kvm_mmu_get_page: " + text * REPEATED + b" kvm_mmu_set_spte: " + text * REPEATED
    forms.learn(line[:MAX_LINE])
    rewritten = forms.rewrite(line + b"\n" + line)
    assert rewritten.count(b"\n") == 1


def test_many_malformed_lines(tmp_path: Path) -> None:
    path = tmp_path / "trace.txt"
    path.write_text("  vmm-7  [000] .....  1.000001: kvm_mmu_get_page: sp gen nothing\n" * 30_000)
    trace = read_trace(str(path))
    assert (trace.lines, trace.malformed_lines) == (30_000, 30_000)


def test_prose_is_no_trace(tmp_path: Path) -> None:
    path = tmp_path / "trace.txt"
    path.write_text("Hello,\n\n> we saw this with kvm_mmu_get_page in 6.1\n> and lost events.\n")
    with pytest.raises(TraceError, match="not a trace"):
        read_trace(str(path))
