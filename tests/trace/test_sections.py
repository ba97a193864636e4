"""Sections that threads scan at once, joined: as if the trace were read from end to end."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from replay.errors import MalformedLine
from replay.trace import reader
from replay.trace.reader import Trace, read_trace
from replay.trace.text import text_parser

TRACES = Path(__file__).parents[2] / "traces"
HEAD = "# tracer: nop\n"


@pytest.fixture
def joined(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Two threads, whatever the machine has; collects whether each section could be joined."""
    results: list[bool] = []
    join = text_parser.TextParser._join

    def noted(self: text_parser.TextParser, *section: object) -> bool:
        results.append(join(self, *section))  # type: ignore[arg-type]
        return results[-1]

    monkeypatch.setattr(reader, "thread_count", lambda: 2)
    monkeypatch.setattr(text_parser.TextParser, "_join", noted)
    return results


def facts(trace: Trace) -> dict[str, object]:
    return {
        field.name: getattr(trace, field.name)
        for field in dataclasses.fields(trace)
        if not field.name.startswith("_")
    }


def assert_same(path: Path, chunk_bytes: int) -> Trace:
    whole, parts = read_trace(str(path)), read_trace(str(path), chunk_bytes=chunk_bytes)
    assert facts(parts) == facts(whole)
    assert parts.table().combine_chunks() == whole.table().combine_chunks()
    return parts


def line(number: int, comm: str = "qemu", event: str = "kvm_mmu_set_accessed_bit: gpa 1000") -> str:
    return f"{comm:>16}-{4200 + number % 3}    [001] .....  {100 + number}.000001: {event}\n"


@pytest.mark.parametrize(
    "path", sorted((TRACES / "synthetic").glob("*.txt")), ids=lambda path: path.name.removesuffix(".txt")
)
def test_synthetic(path: Path, joined: list[bool]) -> None:
    assert_same(path, 512)
    assert any(joined)


def test_tasks_names_texts_comments(tmp_path: Path, joined: list[bool]) -> None:
    lines = []
    for number in range(400):
        lines.append(line(number, f"task {number // 60}"))
        if number % 50 == 3:
            lines.append(line(number, event=f"tracing_mark_write: note {number // 100}"))
            lines.append(line(number, event=f"other_{number // 100}: x"))
            lines.append(
                line(number, event=f"tracing_mark_write: replay: vm_create vm=v{number} pid={number}")
            )
        if number == 333:
            lines.append("# entries-in-buffer/entries-written: 5/8   #P:1\n")
    path = tmp_path / "t.txt"
    path.write_text(HEAD + "".join(lines))
    trace = assert_same(path, 1024)
    assert joined
    assert all(joined)
    assert trace.lost_events == 3
    assert len(trace.comms) > 6
    assert len(trace.vms) > 1


def test_malformed(tmp_path: Path, joined: list[bool]) -> None:
    path = tmp_path / "t.txt"
    bad = "kvm_mmu_set_accessed_bit: gpa zz"
    path.write_text(HEAD + "".join(line(n, event=bad if n > 150 and n % 2 else "x: y") for n in range(400)))
    whole = read_trace(str(path), file_format="ftrace")
    parts = read_trace(str(path), file_format="ftrace", chunk_bytes=1024)
    assert any(joined)
    assert facts(parts) == facts(whole)
    with pytest.raises(MalformedLine, match=":153: "):
        read_trace(str(path), file_format="ftrace", chunk_bytes=1024, strict=True)


def test_given_up_for_a_time_before_it(tmp_path: Path, joined: list[bool]) -> None:
    """The line at which a section begins may have the time of the line before."""
    lost = "CPU:1 [LOST 7 EVENTS]\n"
    path = tmp_path / "t.txt"
    body = "".join(line(number) for number in range(200)) + 400 * lost + line(201)
    path.write_text(HEAD + body)
    trace = assert_same(path, 1000)
    assert trace.lost_events == 7 * 400
    assert any(joined)
    assert not all(joined)


def test_given_up_for_another_form(tmp_path: Path, joined: list[bool]) -> None:
    """Lines of another form begin in the middle."""
    raw = "kvm_mmu_spte_requested:  gfn=10 pfn=118a71 level=1"
    path = tmp_path / "t.txt"
    path.write_text(HEAD + "".join(line(n, event=raw) if n > 250 else line(n) for n in range(500)))
    trace = assert_same(path, 1024)
    assert any(joined)
    assert trace.malformed_lines == 0
    assert trace.events == 500


def test_rows_of_small_batches(tmp_path: Path, joined: list[bool]) -> None:
    path = tmp_path / "t.txt"
    path.write_text(HEAD + "".join(line(number) for number in range(400)))
    parts = read_trace(str(path), chunk_bytes=2048, batch_rows=7)
    assert any(joined)
    assert [int(n) for batch in parts.batches() for n in batch.line] == list(range(2, 402))
    assert all(len(batch.kind) <= 7 for batch in parts.batches())
