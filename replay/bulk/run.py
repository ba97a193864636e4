"""A bulk run: replays what is not in the dataset yet, locally or on a cluster, and updates the dataset."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from replay.bulk.dataset import Dataset
from replay.bulk.local import Known, Pool
from replay.bulk.memory import default_memory, parse_size
from replay.bulk.plan import Task, find_tasks
from replay.bulk.storage import STAGING, Storage
from replay.bulk.work import Job, Reply
from replay.errors import UsageError
from replay.kernel import HOST, host_release
from replay.policy import Policy
from replay.run import Request, named_policy, parse_options

BULK_SCHEMA = "replay.bulk/1"
COMMIT_TRACES, COMMIT_BYTES = 500, 1 << 26
"""Number of staged traces, or bytes of their rows, that are merged into a part."""
SHOWN_WORST = 10
AUTO = "auto"


class Watcher(Protocol):
    """Receives the progress of a bulk run."""

    def say(self, line: str) -> None: ...
    def begin(self, traces: int, cost: int) -> None: ...
    def advance(self, cost: int, text_bytes: int, verdicts: Mapping[str, str]) -> None: ...


@dataclass(frozen=True)
class Where:
    """The processes that replay: local ones, or those of a cluster."""

    scheduler: str | None = None
    jobs: int | None = None
    memory: int | None = None

    @staticmethod
    def parse(scheduler: str | None, jobs: int | None, memory: str | None) -> Where:
        """What the command line asks for.  Raises ``UsageError``."""
        if scheduler is not None and (jobs is not None or memory is not None):
            raise UsageError("--jobs and --memory are for local processes: a cluster has its own limits")
        return Where(scheduler, jobs, None if memory is None else parse_size(memory))


@dataclass
class Summary:
    """The result of a bulk run."""

    directory: str
    traces: int
    replayed: int = 0
    kept: int = 0
    """Traces whose rows all existed already."""
    seconds: float = 0.0
    peak_bytes: int | None = None
    """The peak memory of all processes together; None if it cannot be measured."""
    rows: list[dict[str, Any]] = field(default_factory=list)
    """Rows of ``runs`` for the requested traces, with their ``policy``."""

    @property
    def verdicts(self) -> dict[str, dict[str, int]]:
        """By policy, rows of each verdict, and those with an error."""
        counted: dict[str, Counter[str]] = {}
        for row in self.rows:
            counted.setdefault(row["policy"], Counter())[row["verdict"] or "error"] += 1
        return {policy: dict(sorted(counts.items())) for policy, counts in counted.items()}

    @property
    def failed(self) -> int:
        """Rows with an error."""
        return sum(row["error_code"] is not None for row in self.rows)

    @property
    def mismatched(self) -> int:
        """Rows that did not match."""
        return sum(row["verdict"] == "mismatch" for row in self.rows)

    @property
    def worst(self) -> list[dict[str, Any]]:
        """Errors, then the mismatches with the most attempts that are not as expected."""
        names = ("path", "policy", "verdict", "error_code", "error_line", "error_message")
        bad = [row for row in self.rows if row["verdict"] in (None, "mismatch")]
        bad.sort(key=lambda row: (row["verdict"] is not None, -differing(row), row["path"], row["policy"]))
        return [
            {name: row[name] for name in names}
            | {"differing": differing(row), "attempts": row["expected_attempts"]}
            | {"reasons": row["verdict_reasons"]}
            for row in bad[:SHOWN_WORST]
        ]

    def raise_if_all_failed(self) -> None:
        """Raises ``UsageError``, with the first error, where no trace could be replayed."""
        if self.failed == len(self.rows):
            first = self.worst[0]
            raise UsageError(f"no trace could be replayed: {first['path']}: {first['error_message']}")

    @property
    def document(self) -> dict[str, Any]:
        """The ``replay.bulk/1`` document."""
        return {
            "schema": BULK_SCHEMA,
            "directory": self.directory,
            "traces": self.traces,
            "replayed": self.replayed,
            "kept": self.kept,
            "seconds": round(self.seconds, 3),
            "peak_bytes": self.peak_bytes,
            "mismatched": self.mismatched,
            "failed": self.failed,
            "verdicts": self.verdicts,
            "worst": self.worst,
        }


def differing(row: Mapping[str, Any]) -> int:
    """Attempts of a row of ``runs`` that are not as expected."""
    return sum(row[f"expected_{word}"] or 0 for word in ("mismatched", "missing", "unexpected"))


def run_bulk(
    paths: Sequence[str], url: str, policies: Sequence[str], request: Request, where: Where, watcher: Watcher
) -> Summary:
    """Replay many traces with each policy, and store the rows in the dataset at ``url``.

    A trace whose content the dataset has rows of is not replayed again.  What is done when the run is
    interrupted stays done.  Raises ``UsageError`` if another run has the dataset, or it holds rows of
    other options; ``InputError`` if there is no trace; ``OutputError`` if it cannot be written.
    """
    request, chosen = _checked(request, policies)
    storage = Storage(url)
    tasks = find_tasks(paths, storage.root if storage.local else None)
    storage.make_directory(STAGING)
    begun = time.monotonic()
    with storage.lock():
        knobs = {label: _knobs(each) for label, each in chosen.items()}
        dataset = Dataset(storage, _options(request), knobs, watcher.say)
        if dataset.discarded:
            watcher.say(f"{url}: results of another version of replay are made anew")
        job = Job(url if "://" in url else os.path.abspath(url), dataset.key, chosen, request)
        summary = Summary(url, len(tasks))
        watcher.begin(len(tasks), sum(task.cost for task in tasks))
        try:
            with _workers(job, where, watcher) as workers:
                _replay(workers, dataset, tasks, chosen, watcher, summary)
        except (KeyboardInterrupt, SystemExit):
            done = summary.replayed + summary.kept
            watcher.say(f"interrupted, {done:,} of {len(tasks):,} traces are done: the same command goes on")
            raise
        finally:
            dataset.finish()
        summary.peak_bytes = workers.peak_bytes if isinstance(workers, Pool) else None
        summary.rows = dataset.runs(chosen, [task.path for task in tasks])
    summary.seconds = time.monotonic() - begun
    return summary


class _Workers(Protocol):
    def run(self, tasks: Iterator[tuple[Task, Known]]) -> Iterator[tuple[Task, Reply]]: ...


def _workers(job: Job, where: Where, watcher: Watcher) -> AbstractContextManager[Any]:
    if where.scheduler is not None:
        from replay.bulk.cluster import Cluster

        return Cluster(job, where.scheduler)
    jobs = where.jobs or len(os.sched_getaffinity(0))
    return Pool(job, jobs, where.memory or default_memory(), watcher.say)


def _replay(
    workers: _Workers,
    dataset: Dataset,
    tasks: Sequence[Task],
    labels: Mapping[str, Any],
    watcher: Watcher,
    summary: Summary,
) -> None:
    known = dataset.known(labels)
    nothing: frozenset[str] = frozenset()
    given = (
        (task, {label: sizes.get(task.file_bytes, nothing) for label, sizes in known.items()})
        for task in tasks
    )
    staged, staged_bytes = 0, 0
    commit: Future[None] | None = None
    with ThreadPoolExecutor(1) as committer:  # so that no process waits for its next trace
        for task, reply in workers.run(given):
            dataset.keep(reply)
            summary.replayed += bool(reply.verdicts)
            summary.kept += not reply.verdicts
            watcher.advance(task.cost, task.text_bytes, reply.verdicts)
            staged, staged_bytes = staged + 1, staged_bytes + reply.staged_bytes
            if staged >= COMMIT_TRACES or staged_bytes >= COMMIT_BYTES:
                if commit is not None:
                    commit.result()
                commit = committer.submit(dataset.commit)
                staged, staged_bytes = 0, 0
        if commit is not None:
            commit.result()


def _checked(request: Request, policies: Sequence[str]) -> tuple[Request, dict[str, str | Policy]]:
    """The request, and the policies by their labels, each read once."""
    asked = parse_options(request)
    if request.kernel == HOST:
        request = replace(request, kernel=host_release())  # of this machine, wherever the workers are
    if request.expect not in (None, "recorded", "none"):
        raise UsageError(f"--expect {request.expect}: use recorded or none; golden files stand beside traces")
    chosen: dict[str, str | Policy] = {}
    for label in policies or [AUTO]:
        chosen[label] = AUTO if label == AUTO else named_policy(label, asked.kernel)
        policy = chosen[label]
        if isinstance(policy, Policy):
            policy.with_settings(request.settings)
    Policy().with_settings(request.settings)
    return request, chosen


def _knobs(policy: str | Policy) -> dict[str, Any] | None:
    return policy.knobs() if isinstance(policy, Policy) else None


def _options(request: Request) -> dict[str, Any]:
    """What determines the results in addition to content and policy."""
    return {
        "settings": list(request.settings),
        "kernel": request.kernel,
        "split_at": request.split_at,
        "nested": request.nested,
        "resched": request.resched,
        "max_mmu_pages": request.max_mmu_pages,
        "expect": request.expect,
        "strict": request.strict,
        "allow_lost": request.allow_lost,
        "file_format": request.file_format,
    }
