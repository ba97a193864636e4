"""``replay query``: SQL over a dataset."""

from __future__ import annotations

import csv
import io
import json
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path

import polars as pl
import pytest

from replay.bulk.query import json_rows, query, write_csv
from replay.errors import UsageError
from tests.test_cli import error_of, replay


@pytest.fixture
def dataset(corpus: Path, tmp_path: Path) -> Path:
    replay("bulk", corpus, "-o", tmp_path / "out", "--policy", "v2", "--policy", "off", "--expect", "none")
    return tmp_path / "out"


def test_formats(dataset: Path, tmp_path: Path) -> None:
    sql = "SELECT policy, count(*) AS traces, sum(split) AS split FROM runs GROUP BY policy ORDER BY policy"
    table = replay("query", dataset, sql).stdout.splitlines()
    assert [line.split() for line in table] == [
        ["policy", "traces", "split"],
        ["off", "16", "0"],
        ["v2", "16", table[2].split()[2]],
    ]
    split = int(table[2].split()[2])
    assert split > 20
    expected = [{"policy": "off", "traces": 16, "split": 0}, {"policy": "v2", "traces": 16, "split": split}]
    assert json.loads(replay("query", dataset, sql, "--json").stdout) == expected
    assert replay("query", dataset, sql, "--csv").stdout == f"policy,traces,split\noff,16,0\nv2,16,{split}\n"
    written = replay("query", f"file://{dataset}", sql, "-o", tmp_path / "answer.parquet")
    assert (written.returncode, written.stdout) == (0, "")
    assert pl.read_parquet(tmp_path / "answer.parquet").to_dicts() == expected


def test_tables_are_joined_by_content_and_policy(dataset: Path) -> None:
    sql = (
        "SELECT path, count(*) AS attempts FROM outcomes JOIN runs USING (content, policy) "
        "WHERE path LIKE '%rule4-occupied-rmap.txt' AND mmu = 'shadow' GROUP BY path"
    )
    (row,) = json.loads(replay("query", dataset, sql, "--json").stdout)
    of_run = "SELECT attempts FROM runs WHERE path LIKE '%rule4%' AND policy = 'v2'"
    (expected,) = json.loads(replay("query", dataset, of_run, "--json").stdout)
    assert row["attempts"] == expected["attempts"] > 0
    counts = replay("query", dataset, "SELECT count(*) AS n FROM windows", "--json").stdout
    assert json.loads(counts)[0]["n"] > 10
    lists = replay("query", dataset, "SELECT vms FROM runs WHERE path LIKE '%two-vms.txt'", "--csv").stdout
    assert lists.splitlines()[1].count("; ") == 1


@pytest.mark.parametrize(
    "table",
    [
        "read_csv('{}')",
        "READ_CSV('{}')",
        "\"read_csv\"('{}')",
        "`read_csv`('{}')",
        "read_csv ('{}')",
        "read_csv\n('{}')",
        "read_csv/* */('{}')",
        "read_csv--\n('{}')",
        "read_parquet('{}')",
        "read_json('{}')",
        "read_ndjson('{}')",
        "read_ipc('{}')",
        "scan_csv('{}')",
        "runs JOIN read_csv('{}') AS other ON true",
        "(SELECT * FROM read_csv('{}')) AS other",
        "'{}'",
        '"{}"',
    ],
)
def test_no_other_file_is_read(dataset: Path, tmp_path: Path, table: str) -> None:
    secret = tmp_path / "secret.csv"
    secret.write_text("word\nhidden\n")
    with pytest.raises(UsageError) as error:
        query(str(dataset), f"SELECT * FROM {table.format(secret)}")
    assert "hidden" not in str(error.value)
    with pytest.raises(UsageError):
        query(str(dataset), f"WITH t AS (SELECT * FROM {table.format(secret)}) SELECT * FROM t")


def test_nothing_is_written(dataset: Path, tmp_path: Path) -> None:
    for sql in ("COPY runs TO '{}'", "COPY (SELECT * FROM runs) TO '{}'", "SELECT * INTO '{}' FROM runs"):
        with pytest.raises(UsageError):
            query(str(dataset), sql.format(tmp_path / "copy.csv"))
    before = query(str(dataset), "SELECT count(*) AS n FROM runs").item()
    for sql in ("DELETE FROM runs", "TRUNCATE TABLE runs", "DROP TABLE runs"):
        query(str(dataset), sql)  # of the table that this one query sees
    assert query(str(dataset), "SELECT count(*) AS n FROM runs").item() == before
    assert not (tmp_path / "copy.csv").exists()


def test_words_in_a_text_are_no_function(dataset: Path) -> None:
    assert query(str(dataset), "SELECT count(*) FROM runs WHERE path LIKE '%/read_only/%'").item() == 0


def test_many_rows_are_cut_off(dataset: Path) -> None:
    result = replay("query", dataset, "SELECT a.path FROM runs a CROSS JOIN runs b")
    assert "(924 more rows: --csv, --json or -o have all)" in result.stdout


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("SELECT nothing FROM runs", 'query: unable to find column "nothing"'),
        ("SELECT * FROM traces", "query: relation 'traces' was not found"),
        ("SELEC 1", "query: sql parser error"),
    ],
)
def test_unusable_queries(dataset: Path, sql: str, message: str) -> None:
    assert error_of(replay("query", dataset, sql)).startswith(message)


def test_no_dataset(tmp_path: Path) -> None:
    refused = error_of(replay("query", tmp_path, "SELECT 1"))
    assert refused == f"{tmp_path}: not a dataset of replay bulk: there is no _replay.json in it"
    assert error_of(replay("query", tmp_path, "SELECT 1", "-o", "x.csv")).endswith("must end in .parquet")


def test_every_type_of_column_is_json(dataset: Path) -> None:
    sql = (
        "SELECT DATE '2024-02-29' AS day, CAST(1.25 AS DECIMAL(10, 3)) AS exact, vms AS list, "
        "CAST('12:34:56' AS TIME) AS clock, CAST(path AS BYTEA) AS bytes, "
        "CAST(0 AS DOUBLE) / CAST(0 AS DOUBLE) AS nan, CAST('inf' AS DOUBLE) AS inf, NULL AS nothing, "
        "DATE '2024-03-01' - DATE '2024-02-28' AS days FROM runs WHERE path LIKE '%good.txt' LIMIT 1"
    )
    answer = replay("query", dataset, sql, "--json")
    assert (answer.returncode, answer.stderr) == (0, "")
    (row,) = json.loads(answer.stdout)
    assert bytes.fromhex(row.pop("bytes")).endswith(b"good.txt")
    assert row.pop("list") == ["guest"]
    assert row == {
        "day": "2024-02-29",
        "exact": "1.250",
        "clock": "12:34:56",
        "nan": None,
        "inf": None,
        "nothing": None,
        "days": 172800.0,
    }


def test_any_frame_is_json_and_csv() -> None:
    frame = pl.DataFrame(
        {
            "deep": [[[1, None], []], None],
            "struct": [{"a": float("nan"), "b": b"\xff"}, None],
            "flat": [["x", "y"], None],
            "bytes": [b"\x00", None],
            "span": [timedelta(seconds=1.5), None],
            "at": [datetime(2024, 1, 2, 3, 4, 5), None],
            "exact": [Decimal("1.10"), None],
            "object": pl.Series([object, None], dtype=pl.Object),
        }
    )
    first, second = json.loads(json.dumps(json_rows(frame), allow_nan=False))
    assert set(second.values()) == {None}
    assert first == {
        "deep": [[1, None], []],
        "struct": {"a": None, "b": "ff"},
        "flat": ["x", "y"],
        "bytes": "00",
        "span": 1.5,
        "at": "2024-01-02T03:04:05",
        "exact": "1.10",
        "object": "<class 'object'>",
    }
    file = io.StringIO()
    write_csv(frame, file)
    (read, empty) = csv.DictReader(file.getvalue().splitlines())
    assert set(empty.values()) == {""}
    assert (read["deep"], read["struct"], read["flat"]) == (
        "[[1, null], []]",
        '{"a": null, "b": "ff"}',
        "x; y",
    )
    assert (read["bytes"], read["object"]) == ("00", "<class 'object'>")
