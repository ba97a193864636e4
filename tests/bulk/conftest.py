"""A corpus of small traces, good and bad, and what a dataset of them holds."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from replay.schema import BULK_TABLES
from tests.test_cli import EVENTS, PROBE_OF_V2, SPLIT_LINE, trace_text

SYNTHETIC = Path(__file__).parents[2] / "traces" / "synthetic"
Content = Callable[[Path], dict[str, bytes]]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Traces in directories, 13 with golden files: 14 match, 1 does not, 1 is none."""
    made = tmp_path / "corpus"
    (made / "kinds").mkdir(parents=True)
    for trace in sorted(set(SYNTHETIC.glob("*.txt")) - set(SYNTHETIC.glob("intel-*"))):
        shutil.copy(trace, made / "kinds")
        shutil.copy(f"{trace}.expected.json", made / "kinds")
    (made / "good.txt").write_text(trace_text([*EVENTS, PROBE_OF_V2]))
    wrong = SPLIT_LINE.replace("errno 0", "errno -28")
    (made / "wrong.txt").write_text(trace_text([*EVENTS[:-2], wrong, PROBE_OF_V2]))
    (made / "none.txt").write_text("no trace\n")
    (made / "README.md").write_text("not even named as one\n")
    return made


def content(directory: Path) -> dict[str, bytes]:
    """The rows of each table, sorted, as bytes."""
    found = {}
    for table in BULK_TABLES:
        files = sorted(directory.glob(f"{table}/policy=*/part-*.parquet"))
        rows = pl.read_parquet(files, hive_partitioning=True)
        found[table] = b"".join(sorted(rows.write_ndjson().encode().splitlines(keepends=True)))
    assert found["runs"]
    return found


def rows_of(directory: Path, table: str = "runs") -> pl.DataFrame:
    """One table of a dataset."""
    return pl.read_parquet(f"{directory}/{table}/**/*.parquet", hive_partitioning=True)
