"""Where traces come from, how they are cut into chunks and batches, and tables on disk."""

from __future__ import annotations

import errno
import gzip
import lzma
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Collection
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from replay.errors import OutputError, TraceError
from replay.schema import event_schema
from replay.trace.reader import Trace, read_trace, write_table

RECORDED = Path(__file__).parents[2] / "traces/recorded/v2/C1-nested-2m.txt.zst"
COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "zstd": lambda data: zstandard.compress(data[:5000]) + zstandard.compress(data[5000:]),
    "xz": lzma.compress,
}


@pytest.fixture(scope="module")
def text() -> bytes:
    with zstandard.open(RECORDED) as file:
        return b"".join(file.read().splitlines(keepends=True)[:3000])


def facts(trace: Trace) -> dict[str, object]:
    """All that a trace tells beside where it was read from."""
    return {name: value for name, value in vars(trace).items() if name not in ("path", "format", "_batches")}


def same(one: Trace, other: Trace) -> bool:
    return facts(one) == facts(other) and one.table().combine_chunks() == other.table().combine_chunks()


def test_the_recording_is_read_whole() -> None:
    trace = read_trace(str(RECORDED))
    assert (trace.lines, trace.events, trace.kvmmmu_events) == (5663, 5651, 3880)
    assert (trace.ignored_lines, trace.malformed_lines, trace.lost_events) == (12, 0, 0)
    assert (trace.vms, trace.comms, trace.format) == (["tgid 160"], ["vmm"], "ftrace")
    assert trace.table().schema == event_schema()


@pytest.mark.parametrize("chunk_bytes", [1, 100, 1000, 64 << 20])
def test_chunks_do_not_matter(tmp_path: Path, text: bytes, chunk_bytes: int) -> None:
    part = text[:100_000] + b"\n" + b"z" * 5000 + b"\r\n" + text[100_000:150_000]
    (tmp_path / "t").write_bytes(part)
    path = str(tmp_path / "t")
    assert same(read_trace(path, chunk_bytes=chunk_bytes), read_trace(path))


@pytest.mark.parametrize(
    ("batch_rows", "memory_bytes"), [(1, 1 << 30), (100, 0), (100, 30_000), (1 << 20, 0)]
)
def test_batches_and_spilling_do_not_matter(
    tmp_path: Path, text: bytes, batch_rows: int, memory_bytes: int
) -> None:
    (tmp_path / "t").write_bytes(text[:100_000])
    path = str(tmp_path / "t")
    trace = read_trace(path, batch_rows=batch_rows, memory_bytes=memory_bytes)
    assert same(trace, read_trace(path))
    batches = list(trace.batches())
    assert [len(batch.kind) for batch in batches[:-1]] == [batch_rows] * (len(batches) - 1)
    assert all(column.flags.writeable for batch in batches for column in batch)
    assert same(trace, trace)


@pytest.mark.parametrize("kind", COMPRESS)
def test_compressed(tmp_path: Path, text: bytes, kind: str) -> None:
    (tmp_path / "plain").write_bytes(text)
    (tmp_path / "packed").write_bytes(COMPRESS[kind](text))
    assert same(read_trace(str(tmp_path / "packed")), read_trace(str(tmp_path / "plain")))


@pytest.mark.parametrize("kind", COMPRESS)
def test_truncated(tmp_path: Path, text: bytes, kind: str) -> None:
    packed = COMPRESS[kind](text)
    path = tmp_path / "cut"
    path.write_bytes(packed[: len(packed) * 3 // 4])
    with pytest.raises(TraceError, match=f"cut: truncated {kind} file"):
        read_trace(str(path))
    trace = read_trace(str(path), tolerate_truncation=True, chunk_bytes=1000)
    assert trace.truncated == f"truncated {kind} file"
    assert 0 < trace.events < 2988


@pytest.mark.parametrize("kind", COMPRESS)
def test_corrupt(tmp_path: Path, text: bytes, kind: str) -> None:
    packed = bytearray(COMPRESS[kind](text))
    middle = len(packed) // 2
    packed[middle : middle + 200] = b"\xa5" * 200
    path = tmp_path / "bad"
    path.write_bytes(packed)
    with pytest.raises(TraceError, match=rf"bad: corrupt {kind} file"):
        read_trace(str(path))


def test_a_cut_off_text_is_no_error(tmp_path: Path, text: bytes) -> None:
    lines = text.splitlines(keepends=True)
    path = tmp_path / "t"
    path.write_bytes(b"".join(lines[:200]) + lines[200][:-20])
    trace = read_trace(str(path))
    assert (trace.lines, trace.truncated) == (201, None)
    path.write_bytes(b"".join(lines[:200])[:-1])
    assert read_trace(str(path)).lines == 200


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("kept", [0, 100, 200_000])
@pytest.mark.parametrize("after", [1, 2, 5])
def test_cut_off_while_it_is_read(tmp_path: Path, text: bytes, threads: int, kept: int, after: int) -> None:
    path = tmp_path / "t"
    path.write_bytes(text)
    calls = []

    def cut(done: int, size: int | None) -> None:
        calls.append(done)
        if len(calls) == after:
            os.truncate(path, kept)

    trace = read_trace(str(path), threads=threads, chunk_bytes=2000, progress=cut)
    assert len(calls) >= after
    assert kept <= trace.bytes < len(text)
    assert trace.lines == text[: trace.bytes].count(b"\n") + (text[trace.bytes - 1] != 10)


def test_a_disk_error(tmp_path: Path, text: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "t"
    path.write_bytes(text)

    def preadv(file: int, buffers: object, place: int) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "preadv", preadv)
    with pytest.raises(TraceError, match=rf"^{path}: Input/output error$"):
        read_trace(str(path), threads=2, chunk_bytes=2000)


def test_a_file_that_tells_no_size(tmp_path: Path, text: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """As those of tracefs, which are regular files of 0 bytes."""
    path = tmp_path / "t"
    path.write_bytes(text)
    expected = read_trace(str(path))
    stat = os.fstat

    def fstat(descriptor: int) -> os.stat_result:
        status = list(stat(descriptor))
        status[6] = 0
        return os.stat_result(status)

    monkeypatch.setattr(os, "fstat", fstat)
    assert same(read_trace(str(path), threads=2, chunk_bytes=2000), expected)


def test_named_pipe(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    writer = threading.Thread(target=path.write_bytes, args=(zstandard.compress(text),))
    writer.start()
    trace = read_trace(str(path))
    writer.join()
    assert trace.lines == 3000


def test_standard_input(text: bytes) -> None:
    program = "from replay.trace.reader import read_trace as r; t = r('-'); print(t.path, t.lines, t.events)"
    done = subprocess.run([sys.executable, "-c", program], input=text, capture_output=True, check=True)
    assert done.stdout.split() == [b"-", b"3000", b"2988"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "empty file"),
        (b"\n\n\n", "not a trace: no line"),
        (b"hello\nworld: this is\n", "not a trace: no line"),
        (b"\x7fELF" + b"\0" * 5000, "not a trace: a binary file"),
        (gzip.compress(b"", mtime=0), "empty file"),
        (b"# tracer: nop\n#\n160 1 17831058123 type: 1404\n", "recorded with option raw or hex"),
        (b"160 1 17831058123 # 8104 replay: resched\n160 1 17831058123 type: 6\n", "option raw or hex"),
        (b"# tracer: nop\n000000a0 00000001 0000000426d0c10b type: 1404\n", "option raw or hex"),
        (b"PAR1 no", "corrupt parquet file"),
        (b"ARROW1 no", "corrupt arrow file"),
    ],
)
def test_no_trace(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "t"
    path.write_bytes(data)
    with pytest.raises(TraceError, match=message) as error:
        read_trace(str(path))
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("threads", [1, 3])
def test_events_may_begin_late(tmp_path: Path, text: bytes, threads: int) -> None:
    """As in the log of a console; but not behind any amount of something else."""
    path = tmp_path / "t"
    event = text.splitlines(keepends=True)[-1]
    path.write_bytes(b"[    0.000000] x86/fpu: Supporting XSAVE feature 0x001\n" * 50_000 + event)
    trace = read_trace(str(path), threads=threads)
    assert (trace.events, trace.lines) == (1, 50_001)
    path.write_bytes(b"[    0.000000] x86/fpu: Supporting XSAVE feature 0x001\n" * 500_000 + event)
    with pytest.raises(TraceError, match="not a trace: no line"):
        read_trace(str(path), threads=threads)


def test_a_trace_without_events_is_one(tmp_path: Path) -> None:
    path = tmp_path / "t"
    path.write_text("# tracer: nop\n#\n# entries-in-buffer/entries-written: 0/0   #P:2\n")
    trace = read_trace(str(path))
    assert (trace.lines, trace.events, trace.vms, trace.first_ts_ns) == (3, 0, [], None)
    assert trace.table().num_rows == 0


def test_an_event_named_type_is_no_sign_of_option_raw(tmp_path: Path) -> None:
    path = tmp_path / "t"
    path.write_text("# tracer: nop\n  vmm-160 [001] .....    17.831058: type: 1404\n")
    assert read_trace(str(path)).ignored_events == {"type": 1}


def test_missing_and_directory(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="No such file or directory"):
        read_trace(str(tmp_path / "none"))
    with pytest.raises(TraceError, match="Is a directory"):
        read_trace(str(tmp_path))


def test_progress(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "t"
    path.write_bytes(text)
    calls: list[tuple[int, int | None]] = []
    read_trace(str(path), chunk_bytes=5_000, progress=lambda done, size: calls.append((done, size)))
    assert len(calls) > 10
    assert {size for _, size in calls} == {len(text)}
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)


@pytest.mark.parametrize("ending", ["parquet", "arrow", "feather"])
def test_tables_tell_the_same(tmp_path: Path, text: bytes, ending: str) -> None:
    source = tmp_path / "t"
    source.write_bytes(text + b"junk [1] 1.0: \nx-1 [000] 1.0: kvm_mmu_walker_error: no\ny-2 [0] 1.0: o: p\n")
    trace = read_trace(str(source), batch_rows=700)
    assert trace.malformed
    path = tmp_path / f"events.{ending}"
    write_table(trace, path)
    again = read_trace(str(path))
    assert again.format == ("parquet" if ending == "parquet" else "arrow")
    assert same(trace, again)
    assert all(column.flags.writeable for batch in again.batches() for column in batch)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [path.name, "t"]


def test_other_tables_are_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": [1]}), tmp_path / "other.parquet")
    with pytest.raises(TraceError, match="no table of events"):
        read_trace(str(tmp_path / "other.parquet"))


def test_failed_writing_leaves_nothing(tmp_path: Path, text: bytes) -> None:
    source = tmp_path / "t"
    source.write_bytes(text)
    trace = read_trace(str(source))
    with pytest.raises(OutputError, match="No such file or directory"):
        write_table(trace, tmp_path / "none" / "x.parquet")
    with pytest.raises(OutputError, match="must end in"):
        write_table(trace, tmp_path / "x.csv")

    def interrupted(needed: Collection[str]) -> None:
        raise KeyboardInterrupt

    trace._batches = interrupted  # type: ignore[assignment]
    with pytest.raises(KeyboardInterrupt):
        write_table(trace, tmp_path / "x.parquet")
    assert [entry.name for entry in tmp_path.iterdir()] == ["t"]
