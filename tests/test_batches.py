"""A result does not depend on how a trace is read: batches, chunks, threads and the form it is kept in."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import zstandard

from replay.mmu.engine import _with_lookahead
from replay.mmu.events.next_event import LOOKAHEAD
from replay.run import Request, run_trace
from replay.schema import COLUMN_TYPES, Columns
from replay.trace.reader import Trace, read_trace, write_table

TRACES = Path(__file__).parents[1] / "traces"
RUNS = {
    # recording: how it is replayed
    "recorded/v2/C1-nested-2m-injresched.txt.zst": Request(expect="recorded"),
    "recorded/v2/V-clear-1g.txt.zst": Request(expect="recorded", census=True),
    "recorded/v2/D-two-vms.txt.zst": Request(policy="v2-alias", expect="none", resched="every=5"),
    "recorded/v2/V-1g-alias-ro-spin.txt.zst": Request(
        policy="v2-desc", expect="none", resched="seed=1", max_mmu_pages=1
    ),
    "recorded/linux-6.1/C4-enospc.txt.zst": Request(
        expect="recorded", rmap_histogram=("end", "38.31", "lab: stat after")
    ),
    "recorded/linux-7.3.4/C1-nested-2m.txt.zst": Request(expect="recorded", split_at="recorded"),
    "recorded/linux-5.10/C1-nested-2m.txt.zst": Request(policy="linux-6.0", expect="none"),
    "trace-cmd/linux-6.1/D-two-vms.dat.zst": Request(expect="recorded"),
    "synthetic/two-vms.txt": Request(policy="v2", expect="none", split_at="end", resched="every=2"),
    "synthetic/tdp-only.txt": Request(policy="v2", expect="none", split_at="100.0045"),
}
READINGS: list[dict[str, Any]] = [
    {"batch_rows": 1},
    {"batch_rows": 3},
    {"batch_rows": 250, "memory_bytes": 0},
    {"batch_rows": LOOKAHEAD - 1},
    {"batch_rows": LOOKAHEAD},
    {"batch_rows": LOOKAHEAD + 1},
    {"batch_rows": 4 * LOOKAHEAD},
    {"chunk_bytes": 5_000, "threads": 1},
    {"chunk_bytes": 20_000, "threads": 3, "batch_rows": 777},
]


def result(trace: Trace, request: Request) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The document, and each table as bytes."""
    run = run_trace(trace, request)
    tables = {}
    for name, table in run.tables().items():
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as stream:
            stream.write_table(table)
        tables[name] = sink.getvalue().to_pybytes()
    if run.replay.census:
        tables |= {name: column.tobytes() for name, column in run.replay.census.attempts.items()}
    return run.document, tables


@pytest.mark.parametrize("name", RUNS)
def test_batches_chunks_and_threads_do_not_matter(name: str) -> None:
    path, request = str(TRACES / name), RUNS[name]
    document, tables = result(read_trace(path), request)
    text = json.dumps(document)
    assert document["windows"]
    for reading in READINGS:
        other, others = result(read_trace(path, **reading), request)
        assert json.dumps(other) == text, reading
        assert [name for name in tables if others[name] != tables[name]] == [], reading


@pytest.mark.parametrize("form", ["arrow", "parquet"])
@pytest.mark.parametrize("name", RUNS)
def test_tables_on_disk_have_the_result_of_their_text(tmp_path: Path, name: str, form: str) -> None:
    path, request = str(TRACES / name), RUNS[name]
    document, tables = result(read_trace(path), request)
    document["trace"] |= {"path": str(tmp_path / f"table.{form}"), "format": form}
    for batch_rows in (100, 1 << 20):
        output = tmp_path / f"table.{form}"
        write_table(read_trace(path, batch_rows=batch_rows), str(output))
        other, others = result(read_trace(str(output)), request)
        assert other == document
        assert [name for name in tables if others[name] != tables[name]] == []


@pytest.mark.parametrize(
    "name", ["linux-5.10/C1-nested-2m", "linux-6.1/C1-nested-thp", "linux-6.1/D-two-vms"]
)
def test_trace_dat_has_the_result_of_its_text(name: str) -> None:
    """It has times in ns, all bits of roles, and records for lines: nothing else differs."""
    request = Request(policy="v2-alias", expect="none", resched="every=5")
    runs = [run_trace(str(TRACES / "trace-cmd" / f"{name}.{form}.zst"), request) for form in ("txt", "dat")]
    documents = [run.document for run in runs]
    for document in documents:
        del document["trace"]
        for window in document["windows"]:
            del window["begin_ts_ns"]
        for migration in document["migrations"]:
            for moment in ("on", "off"):
                del migration[f"{moment}_ts_ns"], migration[f"{moment}_line"]
    assert documents[0] == documents[1]
    assert documents[0]["migrations"]
    assert documents[0]["totals"]["attempts"] > 0
    richer = {"ts_ns", "line", "begin_ts_ns", "begin_line", "role"}
    for text, dat in zip(*(run.tables().values() for run in runs), strict=True):
        dropped = [column for column in text.column_names if column in richer]
        assert text.drop_columns(dropped).equals(dat.drop_columns(dropped))


def test_events_of_other_tasks_between_those_that_belong_together(tmp_path: Path) -> None:
    """The next event of a task shows what one is, however many batches later it comes."""
    source = TRACES / "recorded/linux-6.1/C1-nested-la57.txt.zst"
    lines = zstandard.ZstdDecompressor().decompressobj().decompress(source.read_bytes()).decode().splitlines()
    path = tmp_path / "trace.txt"
    other = "kvm_page_fault: vcpu 1 rip 0x1000 address 0x1000 error_code 0x4"
    with path.open("w") as file:
        for line in lines:
            head = re.match(r"(\s*\S+)-\d+(\s+\(\s*\d+\) .* \d+\.\d+: )", line)
            file.write(f"{line}\n" + (f"{head[1]}-99999{head[2]}{other}\n" * 5 if head else ""))
    request = Request(expect="recorded")
    document, tables = result(read_trace(str(path)), request)
    assert document["verdict"] == "match"
    for batch_rows in (3, 50):
        other_document, others = result(read_trace(str(path), batch_rows=batch_rows), request)
        assert other_document == document
        assert others == tables


def batches_of(sizes: list[int]) -> Iterator[Columns]:
    """Batches of these sizes; the events are numbered by line."""
    begin = 0
    for size in sizes:
        columns = {name: np.zeros(size, dtype) for name, dtype in COLUMN_TYPES.items()}
        columns["line"] = np.arange(begin, begin + size, dtype=columns["line"].dtype)
        begin += size
        yield Columns(**columns)


@pytest.mark.parametrize(
    "sizes",
    [
        [],
        [0],
        [5],
        [1] * 40,
        [LOOKAHEAD],
        [LOOKAHEAD, 1],
        [LOOKAHEAD, 0, 0],
        [3 * LOOKAHEAD, 2, 3, 3 * LOOKAHEAD, 1, 0],
        [LOOKAHEAD // 2] * 21,
        [LOOKAHEAD + 1, 7, LOOKAHEAD - 1, LOOKAHEAD, 10 * LOOKAHEAD, LOOKAHEAD],
    ],
)
def test_every_row_is_handled_once_with_all_that_follows_near_it(sizes: list[int]) -> None:
    total = sum(sizes)
    handled = 0
    parts = list(_with_lookahead(batches_of(sizes)))
    for number, (columns, stop) in enumerate(parts):
        assert columns.line.tolist() == list(range(handled, handled + len(columns.line)))
        handled += stop
        is_last = number == len(parts) - 1
        assert (stop == len(columns.line)) == is_last  # by this a replay knows the end of the trace
        assert is_last or len(columns.line) - stop >= min(LOOKAHEAD, total - handled)
    assert handled == total
