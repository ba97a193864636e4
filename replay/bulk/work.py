"""One trace of many: replayed with every policy, its rows staged for the dataset.

The local processes and the workers of a cluster both call ``work``.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache

import xxhash

from replay.bulk.plan import Task
from replay.bulk.rows import Tables, error_tables, run_tables
from replay.bulk.storage import Storage, write_staged
from replay.errors import GoldenError, ReplayError
from replay.policy import Policy
from replay.regular import open_regular
from replay.run import Request, run_trace
from replay.verdict.golden import golden_path, has_golden


@dataclass(frozen=True)
class Job:
    """What all traces of a bulk run have in common."""

    url: str
    """Of the dataset: a path or an fsspec URL."""
    key: str
    """A hash of version and options: rows that were staged under another one are ignored."""
    policies: Mapping[str, str | Policy]
    """By the label of their partition."""
    request: Request


@dataclass(frozen=True)
class Reply:
    """The result for one trace."""

    path: str
    content: str | None
    kept: tuple[str, ...] = ()
    """Policies for which this content is already in the dataset."""
    staged_bytes: int = 0
    verdicts: Mapping[str, str] = field(default_factory=dict)
    """By policy; ``error`` if there is none."""


def work(
    job: Job,
    task: Task,
    known: Mapping[str, frozenset[str]],
    memory_bytes: int | None = None,
    threads: int = 1,
) -> Reply:
    """Replay one trace with all policies of ``job`` and stage the rows.

    ``known`` holds, by policy, contents that need not be replayed; ``memory_bytes`` bounds what its
    events take in memory, beyond which they are kept in a temporary file; so many ``threads`` scan its
    text.  Whatever is wrong with the trace becomes a row.  Raises ``OutputError`` where the rows cannot be
    written.
    """
    try:
        content = content_of(task.file, job.request)
    except (OSError, ReplayError) as error:
        return stage_error(job, task, error)
    kept = tuple(label for label in job.policies if content in known.get(label, ()))
    labels = [label for label in job.policies if label not in kept]
    if not labels:
        return Reply(task.path, content, kept)
    verdicts: dict[str, str] = {}
    runs = _noted(_runs(job, task, labels, content, memory_bytes, threads), verdicts)
    size = write_staged(storage_of(job.url), job.key, task.path, runs)
    return Reply(task.path, content, kept, size, verdicts)


def stage_error(job: Job, task: Task, error: Exception) -> Reply:
    """Stage the rows of a trace that cannot be read, or during which the process died."""
    runs = [(label, error_tables(task.path, None, task.file_bytes, error)) for label in job.policies]
    size = write_staged(storage_of(job.url), job.key, task.path, runs)
    return Reply(task.path, None, (), size, dict.fromkeys(job.policies, "error"))


def _runs(
    job: Job, task: Task, labels: list[str], content: str, memory_bytes: int | None, threads: int
) -> Iterator[tuple[str, Tables]]:
    """The rows of each policy; the trace is read once."""
    from replay.trace.reader import MEMORY_BYTES, read_trace

    request = job.request
    try:
        trace = read_trace(
            task.file,
            file_format=request.file_format,
            strict=request.strict,
            memory_bytes=min(MEMORY_BYTES, memory_bytes or MEMORY_BYTES),
            threads=threads,
        )
    except Exception as error:
        for label in labels:
            yield label, error_tables(task.path, content, task.file_bytes, error)
        return
    for label in labels:
        try:
            run = run_trace(trace, replace(request, policy=job.policies[label]))
            tables = run_tables(task.path, content, task.file_bytes, run)
        except Exception as error:
            tables = error_tables(task.path, content, task.file_bytes, error)
        yield label, tables


def _noted(runs: Iterator[tuple[str, Tables]], verdicts: dict[str, str]) -> Iterator[tuple[str, Tables]]:
    for label, tables in runs:
        verdicts[label] = tables["runs"]["verdict"][0].as_py() or "error"
        yield label, tables


def content_of(path: str, request: Request) -> str:
    """What determines the results in addition to policy and options: the XXH64 of the trace.

    With a golden file beside it that a run would use, the digest of that behind it.
    """
    content = _xxh64(path)
    if request.expect is not None or not has_golden(path):
        return content
    golden = golden_path(path)
    try:
        return f"{content}-{_xxh64(golden)}"
    except OSError as error:
        raise GoldenError(golden, 0, f"{golden.name}: {error.strerror or error}") from error


def _xxh64(path: str | os.PathLike[str]) -> str:
    """As 16 hexadecimal digits: identifies a content at the speed of memory."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, xxhash.xxh64).hexdigest()


@cache
def storage_of(url: str) -> Storage:
    """The storage of a dataset, kept for the next task of this process."""
    return Storage(url)
