"""Parquet tables: every way a column can be stored, old and foreign files, and damage."""

import gc
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest

from replay.errors import TraceError
from replay.schema import COLUMN_TYPES, Columns, Kind
from replay.trace.reader import Trace, read_trace
from replay.trace.table import parquet
from replay.trace.table.event_table import write_table
from replay.trace.vms import MAX_VMS

ROW_GROUP = 1000
KINDS = [int(kind) for kind in Kind]
WORDS = {"comm": ["vmm", "CPU 0/KVM", "dät\n"], "text": ["hello", ""]}
OLD_RISING = ("gfn", "addr", "spte", "old_spte", "sptep", "num", "ts_ns", "line")
OLD: dict[str, Any] = {  # as the first version wrote them
    "compression": "lz4",
    "use_dictionary": [name for name in COLUMN_TYPES if name not in OLD_RISING],
    "column_encoding": dict.fromkeys(OLD_RISING, "DELTA_BINARY_PACKED"),
}


@pytest.fixture(autouse=True)
def small_row_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "_ROW_GROUP", ROW_GROUP)


def trace_of(*batches: Columns) -> Trace:
    trace = Trace("made", "text", events=sum(len(batch.line) for batch in batches))
    trace.comms, trace.texts = WORDS["comm"], WORDS["text"]
    trace.vms = [f"vm{number}" for number in range(MAX_VMS)]
    trace._batches = lambda _: iter(batches)
    return trace


def columns_of(rows: int, column: Callable[[str, np.dtype[Any]], np.ndarray]) -> Columns:
    arrays = {name: column(name, np.dtype(kind)) for name, kind in COLUMN_TYPES.items()}
    arrays["kind"] = np.array(KINDS, np.uint8)[arrays["kind"] % len(KINDS)]
    arrays["vm"] = np.clip(arrays["vm"], -1, MAX_VMS - 1)
    arrays["level"] = (arrays["level"] % 15 + 1).astype(np.uint8)
    arrays["role"] = arrays["role"] & np.uint32(0xFFFFFFF0) | arrays["level"]
    return Columns(**arrays | {"line": np.arange(1, rows + 1)})


def constant(rows: int, value: int) -> Columns:
    def column(name: str, kind: np.dtype[Any]) -> np.ndarray:
        return np.full(rows, value if name not in WORDS else min(value, 1), kind)

    return columns_of(rows, column)


def varied(rows: int, seed: int = 1) -> Columns:
    """All values that a column can have, and words with nulls between them."""
    random = np.random.default_rng(seed)

    def column(name: str, kind: np.dtype[Any]) -> np.ndarray:
        if name in WORDS:
            return random.integers(-1, len(WORDS[name]), rows).astype(kind)
        bounds = np.iinfo(kind)
        values = random.integers(bounds.min, bounds.max, rows, kind, endpoint=True)
        values[:2] = bounds.min, bounds.max
        return values

    return columns_of(rows, column)


def extreme(rows: int, end: str) -> Columns:
    """Columns that are constant at the end of what they can hold."""

    def column(name: str, kind: np.dtype[Any]) -> np.ndarray:
        return np.full(rows, -1 if name in WORDS else getattr(np.iinfo(kind), end), kind)

    return columns_of(rows, column)


def mixed_trace() -> Trace:
    """Row groups that are constant, each of another value, and others, in batches of any length."""
    rows = ROW_GROUP
    parts = [constant(rows, 0), constant(rows, 1), varied(rows), extreme(rows, "max"), extreme(rows, "min")]
    return trace_of(*parts, varied(2 * rows + 17, 2), constant(3, 2), varied(5, 3))


def rows_of(batches: Iterator[Columns]) -> dict[str, list[int]]:
    parts = list(batches)
    return {name: np.concatenate([getattr(p, name) for p in parts]).tolist() for name in COLUMN_TYPES}


def rewritten(path: Path, **options: Any) -> Path:
    """``path`` with the same rows and metadata, stored in another way."""
    table = pq.read_table(path)
    pq.write_table(table, path.with_name("again.parquet"), **{"row_group_size": ROW_GROUP, **options})
    return path.with_name("again.parquet")


@pytest.fixture
def written(tmp_path: Path) -> Path:
    write_table(mixed_trace(), tmp_path / "t.parquet")
    return tmp_path / "t.parquet"


def test_every_column_comes_back(written: Path) -> None:
    again = read_trace(str(written))
    expected = rows_of(mixed_trace().batches())
    assert rows_of(again.batches()) == expected
    assert rows_of(again.batches()) == expected  # more than once
    metadata = pq.read_metadata(written)
    groups = [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]
    assert groups == [ROW_GROUP] * 7 + [25]


def test_needed_columns_come_back(written: Path) -> None:
    expected = rows_of(mixed_trace().batches())
    for needed in (("kind",), ("text", "num"), ("line", "comm", "old_spte")):
        found = rows_of(read_trace(str(written)).batches(needed))
        assert {name: found[name] for name in needed} == {name: expected[name] for name in needed}
        assert {len(column) for column in found.values()} == {len(expected["line"])}


def test_cut_off_while_it_is_read(written: Path) -> None:
    trace = read_trace(str(written))
    os.truncate(written, 100)
    with pytest.raises(TraceError, match="corrupt parquet file"):
        list(trace.batches())


def test_fewer_rows_than_a_row_group_says(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As pyarrow gives them, without an error, where the pages of a column are damaged."""
    trace = read_trace(str(written))
    whole = pq.ParquetFile.iter_batches
    monkeypatch.setattr(pq.ParquetFile, "iter_batches", lambda *args, **kws: list(whole(*args, **kws))[:0])
    message = f"corrupt parquet file: row group 0 has 0 rows where its description has {ROW_GROUP}"
    with pytest.raises(TraceError, match=message):
        list(trace.batches())


def test_reading_may_end_early(written: Path) -> None:
    batches = read_trace(str(written)).batches()
    assert next(batches).line[0] == 1
    batches.close()  # type: ignore[attr-defined]
    before = threading.active_count()
    for _ in range(3):
        next(iter(read_trace(str(written)).batches()))
    gc.collect()
    assert threading.active_count() <= before


def test_columns_are_as_jitted_code_wants_them(written: Path) -> None:
    for batch in read_trace(str(written)).batches():
        for column, kind in zip(batch, COLUMN_TYPES.values(), strict=True):
            assert column.dtype == np.dtype(kind)
            assert column.flags.c_contiguous
            assert column.flags.aligned
            assert column.flags.writeable


def test_constants_are_not_decoded(written: Path) -> None:
    metadata = pq.read_metadata(written)
    places = list(COLUMN_TYPES)
    numbers = {name: {word: n for n, word in enumerate(words)} for name, words in WORDS.items()}
    for number in (0, 1, 3, 4):
        group = metadata.row_group(number)
        found = [
            parquet._constant(group.column(n), COLUMN_TYPES[name], numbers.get(name))
            for n, name in enumerate(places)
        ]
        assert None not in found[: places.index("line")] + found[places.index("comm") :]


@pytest.mark.parametrize(
    "options",
    [
        OLD,
        OLD | {"write_statistics": False},
        {"write_statistics": False},
        {"use_dictionary": False, "write_statistics": ["gfn"], "compression": "none"},
        {"use_dictionary": False, "compression": "lz4", "data_page_version": "2.0"},
        {"use_dictionary": False, "compression": "none", "data_page_size": 100},
        {"use_dictionary": False, "compression": "zstd"},
        {"use_dictionary": ["comm", "text"], "use_byte_stream_split": ["gfn"], "compression": "snappy"},
        {"compression": "gzip", "dictionary_pagesize_limit": 100, "write_page_index": True},
        {"row_group_size": 1 << 20},
        {"row_group_size": 7},
    ],
    ids=str,
)
def test_files_stored_in_other_ways_are_read(written: Path, options: dict[str, Any]) -> None:
    again = read_trace(str(rewritten(written, **options)))
    assert rows_of(again.batches()) == rows_of(mixed_trace().batches())
    assert max(len(batch.line) for batch in again.batches()) <= ROW_GROUP


@pytest.mark.parametrize("rows", [0, 1])
def test_few_rows(tmp_path: Path, rows: int) -> None:
    write_table(trace_of(*[constant(1, 1)] * rows), tmp_path / "t.parquet")
    assert [len(batch.line) for batch in read_trace(str(tmp_path / "t.parquet")).batches()] == [1] * rows


def test_other_readers_read_the_same(written: Path) -> None:
    expected = mixed_trace().table()
    assert pq.read_table(written).replace_schema_metadata(None).equals(expected.unify_dictionaries())
    frame = pl.read_parquet(written)
    for name in COLUMN_TYPES:
        assert frame[name].cast(pl.String).to_list() == [
            None if value is None else str(value) for value in expected[name].to_pylist()
        ]


def test_words_that_the_facts_lack_are_damage(written: Path) -> None:
    table = pq.read_table(written)
    metadata = {key: value.replace(b'"vmm"', b'"xyz"') for key, value in table.schema.metadata.items()}
    pq.write_table(table.replace_schema_metadata(metadata), written)
    with pytest.raises(TraceError, match="corrupt parquet file: 'vmm'"):
        list(read_trace(str(written)).batches())


@pytest.mark.parametrize("seed", range(60))
def test_damage_is_told_or_harmless(written: Path, seed: int) -> None:
    """Whatever is changed, columns are of one length: jitted code does not check."""
    random = np.random.default_rng(seed)
    data = bytearray(written.read_bytes())
    footer = int.from_bytes(data[-8:-4], "little") + 8
    for _ in range(random.integers(1, 4)):
        reach = footer if seed % 2 else len(data)
        data[-int(random.integers(1, reach + 1))] = int(random.integers(256))
    if seed % 5 == 0:
        del data[int(random.integers(100, len(data))) : -footer]
    written.write_bytes(data)
    try:
        for batch in read_trace(str(written)).batches():
            assert len({len(column) for column in batch}) == 1
    except TraceError:
        pass
