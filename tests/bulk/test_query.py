"""``replay query``: SQL over a dataset."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest

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
    assert refused == f"{tmp_path}: no dataset of replay bulk: it has no _replay.json"
    assert error_of(replay("query", tmp_path, "SELECT 1", "-o", "x.csv")).endswith("must be .parquet")
