"""Which traces are begun when: as many as memory allows, one whose process died alone."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from replay.bulk import local
from replay.bulk.local import Pool, _Worker
from replay.bulk.plan import Task
from replay.bulk.work import Job
from replay.run import Request

IDLE = 100 << 20
MIB = 1 << 20


class Connection:
    """Takes what a worker is sent."""

    def __init__(self) -> None:
        self.sent: list[Any] = []

    def send(self, message: Any) -> None:
        self.sent.append(message)


def task(name: str, mib: int) -> Task:
    return Task(name, f"/{name}", mib * MIB, mib * MIB, "plain")


@pytest.fixture
def pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pool:
    """Three idle workers of 100 MiB and 500 MiB for the needs of traces."""
    monkeypatch.setattr(local, "resident", lambda *process: 0)
    made = Pool(Job(str(tmp_path), "key", {}, Request()), 3, 3 * IDLE + 500 * MIB, print)
    made._workers = [_Worker(None, Connection(), True, IDLE) for _ in range(3)]  # type: ignore[arg-type]
    return made


def begin(pool: Pool) -> list[str]:
    begun = []
    for worker in pool._idle():
        if (given := pool._next()) is None:
            break
        pool._send(worker, given)
        begun.append(given[0].path)
    return begun


def test_as_many_as_memory_allows(pool: Pool) -> None:
    pool._waiting.extend((task(name, mib), {}) for name, mib in (("a", 150), ("b", 140), ("c", 10), ("d", 9)))
    assert begin(pool) == ["a", "c", "d"]
    assert [given[0].path for given in pool._waiting] == ["b"]
    pool._workers[0].given = None
    assert begin(pool) == ["b"]


def test_one_that_does_not_fit_is_run_alone_within_what_is_there(pool: Pool) -> None:
    pool._waiting.extend((task(name, mib), {}) for name, mib in (("a", 4000), ("b", 1)))
    assert begin(pool) == ["a"]
    ((_, _, memory_bytes, _),) = pool._workers[0].connection.sent  # type: ignore[attr-defined]
    assert memory_bytes == 500 * MIB
    pool._workers[0].given = None
    assert begin(pool) == ["b"]


def test_the_last_traces_have_several_cores(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(6)))
    pool._waiting.extend((task(name, 1), {}) for name in "abcd")
    assert begin(pool) == ["a", "b", "c"]
    for worker in pool._workers:
        worker.given = None
    assert begin(pool) == ["d"]
    sent = [worker.connection.sent for worker in pool._workers]  # type: ignore[attr-defined]
    assert [[threads for *_, threads in messages] for messages in sent] == [[2, 6], [2], [2]]


def test_one_whose_process_died_is_alone(pool: Pool) -> None:
    pool._waiting.extend((task(name, 1), {}) for name in ("a", "b"))
    pool._died.add("x")
    pool._again.append((task("x", 1), {}))
    pool._workers[2].given = (task("c", 1), {})
    assert begin(pool) == []
    pool._workers[2].given = None
    assert begin(pool) == ["x"]
    assert begin(pool) == []
    pool._workers[0].given = None
    assert begin(pool) == ["a", "b"]
