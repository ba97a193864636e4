"""Event tables that others made, changed or damaged: right columns are read, wrong ones are named."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from replay.errors import OutputError, TraceError
from replay.schema import COLUMN_TYPES, Columns, Kind
from replay.trace.reader import Trace, read_trace, write_table
from replay.trace.table import arrow_file

ROWS = 3000
ENDINGS = ("arrow", "parquet")
KINDS = (Kind.GET_PAGE, Kind.SET_SPTE, Kind.PAGE_FAULT, Kind.MARK_TEXT, Kind.LOST_EVENTS)


def made_trace(rows: int = ROWS, batch_rows: int = 700) -> Trace:
    random = np.random.default_rng(1)
    arrays = {name: random.integers(0, 100, rows).astype(kind) for name, kind in COLUMN_TYPES.items()}
    arrays["kind"] = random.choice(np.array(KINDS, np.uint8), rows)
    arrays["vm"] = random.integers(-1, 2, rows).astype(np.int16)
    arrays["level"] = random.integers(1, 4, rows).astype(np.uint8)
    arrays["role"] = arrays["level"].astype(np.uint32)
    arrays["line"] = np.arange(1, rows + 1)
    arrays["ts_ns"] = 1_000 + np.arange(rows)
    arrays["comm"] = random.integers(0, 2, rows).astype(np.int32)
    arrays["text"] = random.integers(-1, 3, rows).astype(np.int32)
    trace = Trace("made", "text", events=rows, vms=["a", "b"])
    trace.comms, trace.texts = ["vmm", "CPU 0/KVM"], ["x" * 70_000, "", "d\u00e4t"]
    parts = [
        Columns(**{name: array[at : at + batch_rows] for name, array in arrays.items()})
        for at in range(0, rows, batch_rows)
    ]
    trace._batches = lambda _: iter(parts)
    return trace


def words_of(trace: Trace) -> dict[str, list[Any]]:
    """All rows, with words for the numbers of words."""
    parts = list(trace.batches())
    found = {name: np.concatenate([getattr(p, name) for p in parts]).tolist() for name in COLUMN_TYPES}
    for name, words in (("comm", trace.comms), ("text", trace.texts)):
        found[name] = [None if number < 0 else words[number] for number in found[name]]
    return found


def write(frame: pl.DataFrame, path: Path, **options: Any) -> Path:
    if path.suffix == ".parquet":
        frame.write_parquet(path)
    else:
        frame.write_ipc(path, **options)
    return path


def frame_of(trace: Trace) -> pl.DataFrame:
    frame = pl.from_arrow(trace.table())
    assert isinstance(frame, pl.DataFrame)
    return frame


@pytest.fixture(params=["small", "large"])
def reads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways in which columns of an Arrow file are read, in few rows at a time."""
    monkeypatch.setattr(arrow_file, "_ROWS", 256)
    if request.param == "small":
        monkeypatch.setattr(arrow_file, "_LARGE", 1 << 30)


# -- what is right ---------------------------------------------------------------------------------------


@pytest.mark.usefixtures("reads")
@pytest.mark.parametrize("ending", ENDINGS)
def test_batches_that_are_kept_stay_as_they_are(tmp_path: Path, ending: str) -> None:
    trace, path = made_trace(), tmp_path / f"t.{ending}"
    write_table(trace, path)
    again = read_trace(str(path))
    assert words_of(again) == words_of(trace)
    assert (again.vms, again.events) == (["a", "b"], ROWS)
    columns = [column for batch in again.batches() for column in batch]
    assert all(column.flags.aligned and column.flags.writeable for column in columns)


@pytest.mark.usefixtures("reads")
@pytest.mark.parametrize("needed", [("kind",), ("gfn", "vm"), ("text",), ("comm", "num")], ids=str)
def test_needed_columns_of_an_arrow_file(tmp_path: Path, needed: tuple[str, ...]) -> None:
    trace, path = made_trace(), tmp_path / "t.arrow"
    write_table(trace, path)
    again = list(read_trace(str(path)).batches(needed))
    for name in (*needed, "line"):
        expected = np.concatenate([getattr(batch, name) for batch in trace.batches()])
        assert np.concatenate([getattr(batch, name) for batch in again]).tolist() == expected.tolist()
    assert all(len({len(column) for column in batch}) == 1 for batch in again)


def test_columns_of_a_large_batch_are_read_as_they_are_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "t.arrow"
    write_table(made_trace(), path)
    trace = read_trace(str(path))
    read = []
    counted = arrow_file.os.preadv

    def preadv(file: int, buffers: list[Any], at: int) -> int:
        read.append(sum(map(len, buffers)))
        return counted(file, buffers, at)

    monkeypatch.setattr(arrow_file.os, "preadv", preadv)
    list(trace.batches(("kind",)))
    assert sum(read) < path.stat().st_size / 2


FOREIGN: Mapping[str, Callable[[pl.DataFrame], pl.DataFrame]] = {
    "as it is": lambda frame: frame,
    "in one piece": lambda frame: frame.rechunk(),
    "in small pieces": lambda frame: pl.concat([frame[:5], frame[5:6], frame[6:]], rechunk=False),
    "filtered": lambda frame: frame.filter(pl.col("kind") == int(Kind.SET_SPTE)),
    "other order": lambda frame: frame.select(reversed(frame.columns)),
    "more columns": lambda frame: frame.with_row_index().with_columns(more=pl.lit([1.5])),
    "plain text": lambda frame: frame.with_columns(pl.col("comm", "text").cast(pl.String)),
    "no row": lambda frame: frame.clear(),
}


@pytest.mark.usefixtures("reads")
@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("change", FOREIGN)
def test_tables_of_polars_are_read(tmp_path: Path, change: str, ending: str) -> None:
    frame = FOREIGN[change](frame_of(made_trace()))
    for number, options in enumerate([{}, {"compression": "lz4"}, {"compat_level": pl.CompatLevel.oldest()}]):
        trace = read_trace(str(write(frame, tmp_path / f"t{number}.{ending}", **options)))
        expected = {
            name: frame[name].cast(pl.String).to_list() if name in ("comm", "text") else frame[name].to_list()
            for name in COLUMN_TYPES
        }
        if len(frame):
            assert words_of(trace) == expected
        assert trace.events == trace.lines == len(frame)
        assert trace.vms == ([] if not len(frame) else ["vm0", "vm1"])
        assert trace.kvmmmu_events == int((frame["kind"] <= int(Kind.SPLIT_HUGE_PAGE)).sum())
        lost = frame.filter(pl.col("kind") == int(Kind.LOST_EVENTS))["num"]
        assert trace.lost_events == sum(max(1, number) for number in lost)
        times = expected["ts_ns"]
        assert (trace.first_ts_ns, trace.last_ts_ns) == ((times[0], times[-1]) if times else (None, None))


@pytest.mark.parametrize("ending", ENDINGS)
def test_rows_were_taken_away_and_metadata_kept(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"t.{ending}"
    trace = made_trace()
    trace.malformed_lines, trace.malformed = 1, [(7, "x")]
    write_table(trace, path)
    table = read_table(path)[10:20]
    save(table, path)
    again = read_trace(str(path))
    assert (again.events, again.lines, again.malformed_lines, again.vms) == (10, 11, 1, ["a", "b"])
    assert (again.first_ts_ns, again.last_ts_ns) == (1_010, 1_019)


# -- what is wrong ---------------------------------------------------------------------------------------


def read_table(path: Path) -> pa.Table:
    return pq.read_table(path) if path.suffix == ".parquet" else pa.ipc.open_file(path).read_all()


def save(table: pa.Table, path: Path) -> None:
    if path.suffix == ".parquet":
        pq.write_table(table, path)
        return
    with pa.ipc.new_file(path, table.schema) as writer:
        writer.write_table(table)


def complaint(path: Path) -> str:
    """What is said of a table: one line that begins with its name."""
    with pytest.raises(TraceError) as caught:
        list(read_trace(str(path)).batches())
    text = str(caught.value)
    assert text.startswith(f"{path}: ")
    assert "\n" not in text
    return text


WRONG_VALUES = [
    ("vm", 2, "column 'vm' is 2 in the row of line 1501: the table has 2 VMs"),
    ("vm", -2, "column 'vm' is -2"),
    ("vm", 32767, "column 'vm' is 32767"),
    ("kind", 0, "column 'kind' is 0 in the row of line 1501: no kind of event"),
    ("kind", 255, "column 'kind' is 255"),
    ("kind", 111, "column 'kind' is 111"),
    ("level", 0, "column 'level' is 0"),
    ("level", 16, "column 'level' is 16 in the row of line 1501: 1 to 15 are possible"),
    ("role", 7, "column 'role' is 7"),
]


@pytest.mark.usefixtures("reads")
@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize(("name", "value", "message"), WRONG_VALUES)
def test_values_out_of_range(tmp_path: Path, ending: str, name: str, value: int, message: str) -> None:
    trace, path = made_trace(), tmp_path / f"t.{ending}"
    batch = next(batch for batch in trace.batches() if 1501 in batch.line)
    batch.kind[batch.line == 1501] = Kind.GET_PAGE
    getattr(batch, name)[batch.line == 1501] = value
    write_table(trace, path)
    assert message in complaint(path)


def test_a_constant_column_that_statistics_tell_is_checked(tmp_path: Path) -> None:
    trace, path = made_trace(), tmp_path / "t.parquet"
    for batch in trace.batches():
        batch.kind[:] = 200
    write_table(trace, path)
    assert "column 'kind' is 200 in the row of line 1: no kind" in complaint(path)


COLUMN_CHANGES: Mapping[str, tuple[Callable[[pl.DataFrame], pl.DataFrame], str]] = {
    "missing": (lambda frame: frame.drop("gfn"), "no table of events: no column 'gfn'"),
    "dtype": (lambda frame: frame.with_columns(pl.col("gfn").cast(pl.Int64)), "'gfn' is int64, not uint64"),
    "float": (lambda frame: frame.with_columns(pl.col("num").cast(pl.Float64)), "'num' is double, not int64"),
    "list": (lambda frame: frame.with_columns(pl.col("vm").implode().over("line")), "'vm' is "),
    "words": (lambda frame: frame.with_columns(pl.lit(1).alias("comm")), "'comm' is int32, not text"),
    "null": (lambda frame: frame.with_columns(pl.col("addr").replace(5, None)), "column 'addr' has nulls"),
    "all null": (lambda frame: frame.with_columns(pl.lit(None, pl.UInt8).alias("level")), "has nulls"),
    "other": (lambda _: pl.DataFrame({"a": [1]}), "no table of events: no column 'kind'"),
    "nothing": (lambda _: pl.DataFrame(), "no table of events: no column 'kind'"),
}


@pytest.mark.usefixtures("reads")
@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("change", COLUMN_CHANGES)
def test_wrong_columns(tmp_path: Path, change: str, ending: str) -> None:
    changed, message = COLUMN_CHANGES[change]
    assert message in complaint(write(changed(frame_of(made_trace())), tmp_path / f"t.{ending}"))


def test_a_column_twice(tmp_path: Path) -> None:
    table = made_trace().table()
    save(table.append_column("vm", table["vm"]), tmp_path / "t.arrow")
    assert "more than one column 'vm'" in complaint(tmp_path / "t.arrow")


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("events", "3"),
        ("events", -1),
        ("events", 2**63),
        ("lines", 1.5),
        ("bytes", True),
        ("vms", 3),
        ("vms", [1]),
        ("vms", ["x"] * 32768),
        ("comms", None),
        ("comms", ["a", "a"]),
        ("texts", {"a": 1}),
        ("malformed", [[1]]),
        ("malformed", [["a", "b"]]),
        ("malformed_lines", 1),
        ("ignored_events", [1]),
        ("losses", {"a": "b"}),
        ("first_ts_ns", "x"),
        ("kernel", 6),
        ("vms", ["\ud800"]),
    ],
)
def test_wrong_metadata(tmp_path: Path, ending: str, name: str, value: Any) -> None:
    path = tmp_path / f"t.{ending}"
    write_table(made_trace(10), path)
    table = read_table(path)
    facts = json.loads(table.schema.metadata[b"replay"])
    save(table.replace_schema_metadata({"replay": json.dumps(facts | {name: value})}), path)
    assert "no table of events: " in complaint(path)


@pytest.mark.parametrize(
    "metadata",
    [b"", b"[]", b"{}", b"\xff", b"[" * 100_000, b'{"schema": 1}', b'{"schema": ' + b"9" * 5000 + b"}"],
)
def test_metadata_that_is_something_else(tmp_path: Path, metadata: bytes) -> None:
    path = tmp_path / "t.arrow"
    save(made_trace(10).table().replace_schema_metadata({"replay": metadata}), path)
    assert "no table of events: " in complaint(path)


# -- damage ----------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("reads")
@pytest.mark.parametrize("size", [0, 100, 60_000])
def test_cut_off_while_it_is_read(tmp_path: Path, size: int) -> None:
    """What is mapped and not there any more would end the process by a signal."""
    path = tmp_path / "t.arrow"
    write_table(made_trace(), path)
    trace = read_trace(str(path))
    batches = trace.batches()
    first = next(iter(batches))
    os.truncate(path, size)
    assert first.line[0] == 1
    with pytest.raises(TraceError, match="corrupt arrow file"):
        list(batches)
    with pytest.raises(TraceError, match="corrupt arrow file"):
        list(trace.batches())


def test_a_file_that_took_the_name_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "t.arrow"
    write_table(made_trace(), path)
    trace = read_trace(str(path))
    write_table(made_trace(10), path)
    assert sum(len(batch.line) for batch in trace.batches()) == ROWS


@pytest.mark.usefixtures("reads")
@pytest.mark.parametrize("seed", range(60))
def test_damage_is_told_or_harmless(tmp_path: Path, seed: int) -> None:
    """Whatever is changed, columns are of one length and in their ranges: jitted code does not check."""
    path = tmp_path / "t.arrow"
    write_table(made_trace(), path)
    random = np.random.default_rng(seed)
    data = bytearray(path.read_bytes())
    footer = int.from_bytes(data[-10:-6], "little") + 10
    for _ in range(random.integers(1, 4)):
        reach = (footer, len(data), 4000)[seed % 3]
        data[-int(random.integers(1, reach + 1))] = int(random.integers(256))
    if seed % 5 == 0:
        del data[int(random.integers(100, len(data))) : -footer]
    path.write_bytes(data)
    with contextlib.suppress(TraceError):
        trace = read_trace(str(path))
        for batch in trace.batches():
            assert len({len(column) for column in batch}) == 1
            assert np.isin(batch.kind, [int(kind) for kind in Kind]).all()
            assert ((batch.vm >= -1) & (batch.vm < len(trace.vms))).all()
            assert ((batch.text >= -1) & (batch.text < len(trace.texts))).all()


def test_arrow_streams(tmp_path: Path) -> None:
    source = Path(__file__).parents[2] / "traces" / "by-hand" / "n1-rwx.txt"
    trace = read_trace(str(source))
    table = trace.table()
    path = tmp_path / "events.arrows"
    with pa.ipc.new_stream(str(path), table.schema) as writer:
        writer.write_table(table, 7)
    read = read_trace(str(path))
    assert read.format == "arrow"
    assert read.table().to_pylist() == table.to_pylist()
    whole = path.read_bytes()
    for size in (len(whole) - 8, len(whole) - 100, 40, 6, 4):
        path.write_bytes(whole[:size])
        with pytest.raises(TraceError, match="corrupt arrow file"):
            read_trace(str(path))


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_device_in_place_of_the_table_is_kept(tmp_path: Path, ending: str) -> None:
    (tmp_path / f"t.{ending}").symlink_to("/dev/full")
    with pytest.raises(OutputError, match="No space left on device"):
        write_table(made_trace(), tmp_path / f"t.{ending}")
    assert Path("/dev/full").is_char_device()
    assert os.listdir(tmp_path) == [f"t.{ending}"]
