"""``replay bulk`` as a user meets it: what the dataset holds, what is replayed again, and how it ends."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import xxhash

from replay.bulk.rows import run_row
from replay.bulk.storage import STAGING, Storage
from replay.schema import BULK_TABLES, bulk_schema, runs_schema
from tests.bulk.conftest import content, rows_of
from tests.bulk.gate import ENVIRONMENT, HANGS_SECONDS, PROGRAM, Gate
from tests.test_cli import EVENTS, error_of, replay, trace_text


def bulk(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    return replay("bulk", *arguments, **options)


def summary(*arguments: object, code: int = 0) -> dict[str, Any]:
    result = bulk(*arguments, "--json")
    assert result.returncode == code, result.stderr
    document: dict[str, Any] = json.loads(result.stdout)
    return document


def test_one_row_a_trace(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    document = summary(corpus, "-o", out, code=1)
    assert document["verdicts"] == {"auto": {"error": 1, "match": 14, "mismatch": 1}}
    assert (document["traces"], document["replayed"], document["kept"]) == (16, 16, 0)
    assert [row["path"] for row in document["worst"]] == [f"{corpus}/none.txt", f"{corpus}/wrong.txt"]
    runs = rows_of(out)
    assert sorted(runs["path"]) == sorted(map(str, corpus.rglob("*.txt")))
    (bad,) = runs.filter(runs["error_code"].is_not_null()).to_dicts()
    assert (bad["error_code"], bad["error_message"]) == (
        "trace",
        "not a trace: no line is an ftrace event or header",
    )
    assert bad["verdict"] is None
    assert bad["content"] is not None


def test_rows_are_those_of_run(corpus: Path, tmp_path: Path) -> None:
    trace = corpus / "kinds" / "rule4-occupied-rmap.txt"
    document = json.loads(replay("run", trace, "--json").stdout)
    summary(trace, "-o", tmp_path / "out")
    replay("run", trace, "-o", tmp_path / "run")
    (row,) = rows_of(tmp_path / "out").to_dicts()
    assert run_row(document).items() <= row.items()
    assert row["policy_name"] == document["policy"]["name"]
    assert row["skipped_existing_child"] == document["totals"]["skipped"]["existing_child"]
    for table in BULK_TABLES[1:]:
        alone = pq.read_table(tmp_path / "run" / f"{table}.parquet").to_pylist()
        assert alone
        rows = rows_of(tmp_path / "out", table).drop("content", "policy").to_dicts()
        assert rows == alone


def test_columns_are_those_of_the_document(corpus: Path) -> None:
    document = json.loads(replay("run", corpus / "wrong.txt", "--json").stdout)
    others = {"path", "content", "file_bytes", "kernel", "error_code", "error_line", "error_message"}
    assert {*run_row(document), *others} == set(runs_schema().names)


def test_all_parts_have_one_schema(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    policies = ["--policy", "off", "--policy", "v2", "--expect", "none"]
    summary(corpus / "none.txt", corpus / "good.txt", "-o", out, *policies, code=1)
    for table in BULK_TABLES:
        files = sorted(out.glob(f"{table}/policy=*/part-*.parquet"))
        assert [file.parent.name for file in files] == ["policy=off", "policy=v2"]
        for file in files:
            assert pq.read_schema(file).remove_metadata().equals(bulk_schema(table))
    assert rows_of(out, "outcomes")["policy"].unique().to_list() == ["v2"]


def test_each_trace_is_read_once(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from replay.bulk.plan import find_tasks
    from replay.bulk.work import Job, work
    from replay.run import Request
    from replay.trace import reader

    read: list[str] = []
    original = reader.read_trace

    def counting(path: str, **options: Any) -> Any:
        read.append(path)
        return original(path, **options)

    monkeypatch.setattr(reader, "read_trace", counting)
    (task,) = find_tasks([str(corpus / "good.txt")])
    policies = ("v2", "v2-desc", "off")
    Storage(str(tmp_path)).make_directory(STAGING)
    reply = work(Job(str(tmp_path), "key", dict(zip(policies, policies, strict=True)), Request()), task, {})
    assert read == [str(corpus / "good.txt")]
    assert reply.verdicts == {"v2": "match", "v2-desc": "match", "off": "mismatch"}


def test_exit_codes(corpus: Path, tmp_path: Path) -> None:
    assert bulk(corpus / "good.txt", "-o", tmp_path / "1").returncode == 0
    assert bulk(corpus / "good.txt", corpus / "wrong.txt", "-o", tmp_path / "2").returncode == 1
    assert bulk(corpus / "good.txt", tmp_path / "missing", "-o", tmp_path / "3").returncode == 1
    nothing = bulk(tmp_path / "missing", corpus / "none.txt", "-o", tmp_path / "4", "--quiet")
    assert error_of(nothing).startswith("no trace could be replayed: ")
    assert sorted(rows_of(tmp_path / "4")["error_code"]) == ["trace", "unreadable"]


def test_summary_on_a_terminal(corpus: Path, tmp_path: Path) -> None:
    result = bulk(corpus, "-o", tmp_path / "out", "--jobs", "1")
    assert result.returncode == 1
    assert "16 traces, 16 replayed" in result.stdout
    assert f"  {corpus}/none.txt, policy auto: ERROR trace: not a trace" in result.stdout
    assert f"  {corpus}/wrong.txt, policy auto: mismatch: 1 attempts differ, 1 expected" in result.stdout
    assert bulk(corpus, "-o", tmp_path / "out", "--quiet").stdout == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--policy", "v3"], "unknown policy 'v3'"),
        (["--set", "flush=never"], "--set"),
        (["--expect", "x.json"], "--expect x.json: use recorded or none"),
        (["--split-at", "soon"], "--split-at soon"),
        (["--memory", "much"], "--memory much: use a size like 4G or 800M"),
        (["--memory", "20M"], "--memory: too little, one process takes"),
        (["--scheduler", "tcp://127.0.0.1:1", "--jobs", "2"], "--jobs and --memory are for local processes"),
    ],
)
def test_unusable_calls(corpus: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    assert message in error_of(bulk(corpus, "-o", tmp_path / "out", *arguments))


def test_nothing_to_do(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("")
    assert error_of(bulk(tmp_path, "-o", tmp_path / "out")) == f"{tmp_path}: no trace"
    full = tmp_path / "file"
    full.write_text("")
    assert error_of(bulk("/dev/null", "-o", full / "out")).startswith(f"{full}/out")


def test_list_on_standard_input(corpus: Path, tmp_path: Path) -> None:
    listed = f"{corpus}/good.txt\n{corpus}/kinds\n"
    result = bulk("-", "-o", tmp_path / "out", "--json", input=listed)
    assert result.returncode == 0
    assert json.loads(result.stdout)["traces"] == 14


# -- what is replayed again --------------------------------------------------------------------------


def test_only_what_is_new_is_replayed(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    summary(corpus, "-o", out, code=1)
    before = content(out)
    again = summary(corpus, "-o", out, code=1)
    assert (again["replayed"], again["kept"]) == (0, 16)
    assert content(out) == before
    (corpus / "wrong.txt").write_text(trace_text(EVENTS[:-1]))
    shutil.move(corpus / "good.txt", corpus / "moved.txt")
    shutil.copy(corpus / "kinds" / "two-vms.txt", corpus / "none.txt")
    changed = summary(corpus, "-o", out)
    assert (changed["replayed"], changed["kept"]) == (2, 14)
    runs = rows_of(out)
    assert sorted(runs["path"]) == sorted([*map(str, corpus.rglob("*.txt")), f"{corpus}/good.txt"])
    assert runs["error_code"].null_count() == len(runs)
    for table in BULK_TABLES[1:]:
        rows = rows_of(out, table)
        assert set(rows["content"]) <= set(runs["content"])
        assert rows.height == rows.unique().height or table == "flushes"


def test_content_decides_and_the_golden_file_is_part_of_it(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    trace = corpus / "kinds" / "full-split.txt"
    golden = Path(f"{trace}.expected.json")
    assert summary(trace, "-o", out)["verdicts"] == {"auto": {"match": 1}}
    digests = [xxhash.xxh64(path.read_bytes()).hexdigest() for path in (trace, golden)]
    assert rows_of(out)["content"].to_list() == ["-".join(digests)]
    os.utime(trace, (1, 1))
    assert summary(trace, "-o", out)["replayed"] == 0
    golden.write_text(golden.read_text().replace('"attempts": 4', '"attempts": 5'))
    assert summary(trace, "-o", out, code=1)["verdicts"] == {"auto": {"mismatch": 1}}
    golden.unlink()
    assert summary(trace, "-o", out)["verdicts"] == {"auto": {"unchecked": 1}}
    assert rows_of(out).height == 1


def test_another_policy_is_added(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    summary(corpus / "good.txt", "-o", out, "--policy", "v2")
    added = summary(corpus / "good.txt", "-o", out, "--policy", "v2", "--policy", "v2:min_free_pages=0")
    assert added["replayed"] == 1
    assert added["verdicts"] == {"v2": {"match": 1}, "v2:min_free_pages=0": {"match": 1}}
    assert sorted(rows_of(out)["policy"]) == ["v2", "v2:min_free_pages=0"]


def test_other_options_need_another_directory(corpus: Path, tmp_path: Path) -> None:
    out, knobs = tmp_path / "out", tmp_path / "mine.toml"
    knobs.write_text('base = "v2"\nmin_free_pages = 7\n')
    summary(corpus / "good.txt", "-o", out, "--policy", knobs)
    refused = error_of(bulk(corpus, "-o", out, "--policy", knobs, "--split-at", "end"))
    assert refused == f"{out}: holds results with split_at = None, not 'end': use another directory"
    knobs.write_text('base = "v2"\nmin_free_pages = 8\n')
    refused = error_of(bulk(corpus, "-o", out, "--policy", knobs))
    assert refused == f"{out}: policy {knobs} had other knobs then: use another directory"


def test_another_version_replays_all(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    summary(corpus, "-o", out, code=1)
    before = content(out)
    manifest = json.loads((out / "_replay.json").read_text())
    (out / "_replay.json").write_text(json.dumps(manifest | {"version": "0"}))
    result = bulk(corpus, "-o", out, "--json")
    assert json.loads(result.stdout)["replayed"] == 16
    assert "results of another version of replay are made anew" in result.stderr
    assert content(out) == before


def test_two_runs_exclude_each_other(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    storage = Storage(str(out))
    storage.make_directory()
    with storage.lock():
        refused = error_of(bulk(corpus, "-o", out))
        assert refused.startswith(f"{out}: in use by another bulk run (")
        assert f"process {os.getpid()}" in refused
    assert bulk(corpus / "good.txt", "-o", out).returncode == 0


# -- interruptions --------------------------------------------------------------------------------------

COPIES, DONE = 20, 7


@pytest.fixture
def many(corpus: Path, tmp_path: Path) -> Path:
    """Traces that are replayed in the order of their names, no two alike."""
    made = tmp_path / "many"
    made.mkdir()
    text = (corpus / "kinds" / "rule1-no-free-pages.txt").read_text()
    for number in range(COPIES):
        (made / f"{number:03}.txt").write_text(f"{text}# {number:03}\n")
    return made


@contextmanager
def started(*arguments: object) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, str(PROGRAM), "bulk", *map(str, arguments)]
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, start_new_session=True, env=ENVIRONMENT
    ) as process:
        try:
            yield process
        finally:
            with_children = process.poll() is None
            if with_children:
                os.killpg(process.pid, signal.SIGKILL)


def staged(out: Path) -> int:
    return len(list((out / STAGING).glob("*.arrow")))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_interrupted_run_goes_on(many: Path, tmp_path: Path, number: signal.Signals) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    options = ["--jobs", "1", "--policy", "v2", "--policy", "linux-6.0", "--expect", "none"]
    with Gate(many / f"{DONE:03}.txt") as gate, started(many, "-o", out, *options) as process:
        worker = gate.holds(process)
        assert staged(out) == DONE
        if number == signal.SIGINT:  # Ctrl-C goes to all processes of a terminal
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)
        if number == signal.SIGKILL:
            process.wait()
            os.kill(worker, number)
        _, errors = process.communicate(timeout=HANGS_SECONDS)
    if number == signal.SIGKILL:
        assert not list(out.glob("runs/*/*"))
        assert staged(out) == DONE
    else:
        assert process.returncode == 128 + number
        assert f"of {COPIES} traces are done: the same command goes on" in errors
        assert "Traceback" not in errors
        assert not list(out.glob(f"{STAGING}/*"))
        assert rows_of(out).height == 2 * DONE
    again = summary(many, "-o", out, *options)
    assert (again["kept"], again["replayed"]) == (DONE, COPIES - DONE)
    assert not list(out.glob(f"{STAGING}/*"))
    summary(many, "-o", whole, *options)
    assert content(out) == content(whole)


def test_a_trace_that_kills_its_process_is_given_up(corpus: Path, tmp_path: Path) -> None:
    bad, out = corpus / "bad.txt", tmp_path / "out"
    bad.write_text(trace_text(EVENTS * 2))
    with Gate(bad) as gate, started(corpus, "-o", out, "--jobs", "2") as process:
        killed = [gate.holds(process)]
        os.kill(killed[0], signal.SIGKILL)
        killed.append(gate.holds(process))
        os.kill(killed[1], signal.SIGKILL)
        process.communicate(timeout=HANGS_SECONDS)
    assert killed[0] != killed[1]
    assert process.returncode == 1
    errors = rows_of(out).select("path", "error_code", "error_message").drop_nulls().rows()
    assert sorted(errors) == [
        (f"{bad}", "worker_died", "its process died twice: SIGKILL"),
        (f"{corpus}/none.txt", "trace", "not a trace: no line is an ftrace event or header"),
    ]
    assert rows_of(out).height == 17
    again = summary(corpus, "-o", out, code=1)
    assert (again["replayed"], again["kept"]) == (1, 16)
    assert "worker_died" not in rows_of(out)["error_code"]
