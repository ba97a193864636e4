"""Lines longer than a megabyte: malformed, counted, and never held."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import zstandard

from replay.errors import MalformedLine, TraceError
from replay.trace.reader import read_trace
from replay.trace.text.text_parser import EVENT_WITHIN, LONGEST_LINE

HEADER = b"# tracer: nop\n"
EVENT = b"CPU 0/KVM-7 [001] 1.%06d: kvm_mmu_set_accessed_bit: gpa 1000\n"
START = b"vmm-7 [000] 2.000000: tracing_mark_write: "


def line_of(size: int) -> bytes:
    """A marker line of ``size`` bytes without its end."""
    return START + b"a" * (size - len(START))


def events(first: int, count: int) -> bytes:
    return b"".join(EVENT % number for number in range(first, first + count))


@pytest.mark.parametrize("chunk_bytes", [1 << 16, 1 << 20, 3 << 20])
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("place", [0, 100, 30_000])
def test_a_line_of_a_megabyte_is_read_a_longer_one_is_not(
    tmp_path: Path, place: int, threads: int, chunk_bytes: int
) -> None:
    path = tmp_path / "t.txt"
    for more, malformed in ((0, 0), (1, 1), (2 << 20, 1)):
        long = line_of(LONGEST_LINE + more)
        path.write_bytes(HEADER + events(0, place) + long + b"\n" + events(place, 30_000))
        trace = read_trace(str(path), chunk_bytes=chunk_bytes, threads=threads)
        assert trace.malformed_lines == len(trace.malformed) == malformed
        assert trace.events == place + 30_000 + 1 - malformed
        assert trace.lines == place + 30_000 + 2
        assert trace.bytes == path.stat().st_size
        if malformed:
            assert trace.malformed == [(place + 2, line_of(200).decode())]
        lines = [line for batch in trace.batches() for line in batch.line.tolist()]
        assert lines[-1] == trace.lines
        assert (place + 2 in lines) != bool(malformed)


@pytest.mark.parametrize("end", [b"", b"\n", b"\n" + EVENT % 1])
@pytest.mark.parametrize("size", [LONGEST_LINE + 1, 2 * LONGEST_LINE, 5 * LONGEST_LINE + 7])
def test_a_long_line_at_the_end(tmp_path: Path, size: int, end: bytes) -> None:
    path = tmp_path / "t.txt"
    path.write_bytes(HEADER + events(0, 3) + line_of(size) + end)
    trace = read_trace(str(path))
    assert (trace.malformed_lines, trace.events) == (1, 3 + bool(end[1:]))
    with pytest.raises(MalformedLine, match=r"t\.txt:5: malformed event"):
        read_trace(str(path), strict=True)


def test_long_lines_alone_are_no_trace(tmp_path: Path) -> None:
    path = tmp_path / "t"
    for text in (b"\0" * (EVENT_WITHIN + 5), (b"a" * (2 << 20) + b"\n") * 3):
        path.write_bytes(text)
        with pytest.raises(TraceError, match="not a trace"):
            read_trace(str(path))


def test_what_is_skipped_takes_no_memory(tmp_path: Path) -> None:
    """A gigabyte of one line, of which there are a few kilobytes on disk."""
    path = tmp_path / "t.zst"
    compressor = zstandard.ZstdCompressor()
    parts = [HEADER + events(0, 3) + START, *[b"a" * (64 << 20)] * 16, b"\n" + EVENT % 4]
    path.write_bytes(b"".join(compressor.compress(part) for part in parts))
    code = (
        "import re, sys\n"
        "from replay.trace.reader import read_trace\n"
        "trace = read_trace(sys.argv[1])\n"
        # ru_maxrss of a process that was started by a large one is that one's
        "kilobytes = re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1]\n"
        "print(trace.events, trace.malformed_lines, int(kilobytes) >> 10)"
    )
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
    count, malformed, megabytes = map(int, done.stdout.split())
    assert (count, malformed) == (4, 1)
    assert megabytes < 512
