"""How fast trace.dat files are decoded: events a second on one core, and beside it a copy of the same bytes.

    python -m tools.bench.dat FILE [--events 10000000] [--cpus 4]

The pages of FILE's CPUs are repeated, each time later, until there are that many events, as an uncompressed
file of version 6.  The best of some runs counts, in CPU time, with compiled code warm and the file in the
page cache.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from replay.trace.dat.container import read_container
from replay.trace.dat.cursor import FileBytes
from replay.trace.reader import read_trace
from tools.bench.timing import best_call


def _sized(size: int, data: bytes) -> bytes:
    return len(data).to_bytes(size, "little") + data


def _headers(formats: list[tuple[str, str]]) -> bytes:
    """All of a version 6 file up to the list of CPUs."""
    page = "".join(
        f"\tfield: {field};\toffset:{at};\tsize:{size};\tsigned:1;\n"
        for field, at, size in (("u64 timestamp", 0, 8), ("local_t commit", 8, 8), ("char data", 16, 4080))
    )
    parts = [b"\x17\x08\x44tracing6\0\0\x08", (4096).to_bytes(4, "little")]
    parts += [b"header_page\0", _sized(8, page.encode())]
    parts += [b"header_event\0", _sized(8, b"type_len : 5 bits\n"), (0).to_bytes(4, "little")]
    parts.append(len(formats).to_bytes(4, "little"))
    for system, text in formats:
        parts += [system.encode(), b"\0", (1).to_bytes(4, "little"), _sized(8, text.encode())]
    return b"".join([*parts, bytes(4 + 4 + 8)])


def _later(pages: np.ndarray, cpus: int, repeats: int) -> Iterator[tuple[int, np.ndarray]]:
    """(CPU, pages) for each CPU and repeat: at times behind those of the repeat before."""
    clocks = pages[:, :8].copy().view(np.uint64)[:, 0]
    span = np.uint64(clocks.max() - clocks.min() + 10_000_000_000)
    for cpu in range(cpus):
        for number in range(repeats):
            shifted = pages.copy()
            shifted[:, :8] = (
                (clocks + span * np.uint64(number) + np.uint64(cpu)).view(np.uint8).reshape(-1, 8)
            )
            yield cpu, shifted


def write_repeated(source: Path, target: Path, events: int, cpus: int) -> None:
    """A file of about ``events`` events in the proportions of ``source``."""
    with source.open("rb") as opened:
        data = FileBytes.whole(str(source), opened.fileno())
        file = read_container(str(source), data, tolerate_truncation=False)
        cpus_pages = [cpu.pages() for cpu in file.cpus]
    pages = np.frombuffer(max(cpus_pages, key=len), np.uint8).reshape(-1, 4096)
    share = pages.size / sum(map(len, cpus_pages))
    repeats = max(1, int(events / (cpus * share * read_trace(str(source)).lines)))
    head = _headers(file.formats) + cpus.to_bytes(4, "little") + b"flyrecord\0"
    begin = -(-(len(head) + 16 * cpus) // 4096) * 4096
    size = repeats * pages.size
    places = b"".join(
        (begin + cpu * size).to_bytes(8, "little") + size.to_bytes(8, "little") for cpu in range(cpus)
    )
    with target.open("wb") as output:
        output.write((head + places).ljust(begin, b"\0"))
        for _, shifted in _later(pages, cpus, repeats):
            output.write(shifted.tobytes())


def measure(path: Path, runs: int) -> None:
    """Print the speed of reading ``path`` and of copying its bytes."""
    trace = read_trace(str(path))
    reading = best_call(lambda: read_trace(str(path)), runs).cpu
    data = np.fromfile(path, np.uint8)
    copying = best_call(data.copy, runs).cpu
    size = len(data) / 1e6
    print(f"{trace.lines} events, {trace.events} of them kept, {size:.1f} MB")
    print(f"read   {reading:.3f} s  {trace.lines / reading / 1e6:.2f} M events/s  {size / reading:.0f} MB/s")
    print(f"copy   {copying:.3f} s  {size / copying:.0f} MB/s  {reading / copying:.1f} times as fast")


def main() -> None:
    """Measure what the command line names."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path, help="a trace.dat file, uncompressed as a whole")
    parser.add_argument("--events", type=int, default=10_000_000)
    parser.add_argument("--cpus", type=int, default=4)
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "trace.dat")
        write_repeated(options.file, path, options.events, options.cpus)
        measure(path, options.runs)


if __name__ == "__main__":
    main()
