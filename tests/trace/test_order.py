"""Time that goes back, and lines that are there twice, are said with a count and the first line."""

from __future__ import annotations

from pathlib import Path

import pytest

from replay.report.console import trace_line
from replay.run import Request, run_trace
from replay.trace.reader import Trace, read_trace, write_table


def line(number: int, time: float, pid: int = 4301, event: str = "") -> str:
    text = event or f"kvm_mmu_set_accessed_bit: gpa {round(time * 1000):x}000"
    return f" vmm-{pid}  [001] ..... {time:12.6f}: {text}\n"


def lines(count: int, first: float = 10.0, pid: int = 4301) -> str:
    return "".join(line(number, first + number / 1e3, pid) for number in range(count))


def read(tmp_path: Path, text: str, **options: int) -> Trace:
    path = tmp_path / "trace.txt"
    path.write_text(text)
    return read_trace(str(path), **options)  # type: ignore[arg-type]


def note(count: int, first_line: int) -> dict[str, int]:
    return {"count": count, "first_line": first_line}


def test_nothing_is_said_of_lines_in_order(tmp_path: Path) -> None:
    twice = line(1, 10.0) * 2  # within a microsecond
    assert read(tmp_path, twice + lines(50, 11.0)).notes == {}


def test_two_hosts_in_one_file(tmp_path: Path) -> None:
    text = lines(40, 500.0) + "\nthe other host:\n" + lines(30, 20.0, 99) + lines(20, 10.0, 98)
    assert read(tmp_path, text).notes == {"time_back": note(2, 43)}


def test_a_quoted_copy(tmp_path: Path) -> None:
    copy = "".join(f"> {text}\n" for text in lines(30).splitlines())
    trace = read(tmp_path, lines(30) + "\n" + copy + copy)
    assert trace.notes == {"time_back": note(2, 32), "repeated_lines": note(60, 32)}


def test_a_copy_of_some_of_the_lines(tmp_path: Path) -> None:
    text = lines(30) + line(7, 10.007, event="kvm_mmu_set_dirty_bit: gpa 7000") + line(8, 10.008)
    assert read(tmp_path, text).notes == {"time_back": note(1, 31), "repeated_lines": note(1, 32)}


def test_lines_without_time_are_at_no_time(tmp_path: Path) -> None:
    bare = "kvm_mmu_set_accessed_bit: gpa 1000\n"
    assert read(tmp_path, line(1, 10.0) + bare + line(2, 9.0) + bare * 2).notes == {}


@pytest.mark.parametrize("batch_rows", [7, 64, 100_000])
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("chunk_bytes", [300, 4096, 1 << 20])
def test_batches_and_sections_do_not_matter(
    tmp_path: Path, chunk_bytes: int, threads: int, batch_rows: int
) -> None:
    text = "# tracer: nop\n" + "".join(lines(70 + part, 100.0 - part / 100) for part in range(9))
    trace = read(tmp_path, text, chunk_bytes=chunk_bytes, threads=threads, batch_rows=batch_rows)
    assert trace.notes == {"time_back": note(8, 72), "repeated_lines": note(516, 82)}


def test_a_section_that_begins_with_a_time_before(tmp_path: Path) -> None:
    """Each chunk is a section, each first line of one is before the last of the other."""
    part = lines(16)
    text = "".join(part.replace(" 10.", f" {99 - number}.") for number in range(40))
    options = {"chunk_bytes": len(part), "threads": 2}
    assert read(tmp_path, text, **options).notes == read(tmp_path, text).notes == {"time_back": note(39, 17)}


def test_a_table_and_the_summaries_say_so_too(tmp_path: Path) -> None:
    trace = read(tmp_path, lines(5) * 2)
    write_table(trace, tmp_path / "t.arrow")
    again = read_trace(str(tmp_path / "t.arrow"))
    document = run_trace(again, Request()).document
    assert document["trace"]["notes"] == {"time_back": note(1, 6), "repeated_lines": note(5, 6)}
    said = "steps back in time: 1 (first at line 6), repeated lines: 5 (first at line 6)"
    assert said in trace_line(document["trace"])
