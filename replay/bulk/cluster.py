"""Replay traces on the workers of an existing Dask cluster."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from replay.bulk.manifest import results_version
from replay.bulk.plan import Task
from replay.bulk.rows import WorkerDied
from replay.bulk.work import Job, Reply, stage_error, work
from replay.errors import OutputError, UsageError

RETRIES = 2
"""Attempts for a trace whose rows could not be written; if a worker dies, Dask gives its trace to others."""
CONNECT_SECONDS = 10
Known = Mapping[str, frozenset[str]]


class Cluster:
    """The workers of the cluster with its scheduler at ``address``; use it as a context."""

    def __init__(self, job: Job, address: str) -> None:
        try:
            from distributed import Client
        except ImportError as error:
            raise UsageError("--scheduler needs Dask: pip install 'kvm-replay[dask]'") from error
        self._job = job
        try:
            self._client = Client(address, timeout=CONNECT_SECONDS, set_as_default=False)
        except (OSError, ValueError) as error:
            raise UsageError(f"--scheduler {address}: no scheduler answers there") from error

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *error: object) -> None:
        self._client.close()

    def run(self, tasks: Iterable[tuple[Task, Known]]) -> Iterator[tuple[Task, Reply]]:
        """Replay traces and yield each as it is done; a trace that kills its workers is given up."""
        from distributed import KilledWorker, as_completed

        self._prepare()
        given = list(tasks)
        futures = self._client.map(
            work,
            [self._job] * len(given),
            *zip(*given, strict=True),
            pure=False,
            retries=RETRIES,
        )
        task_of = {future.key: task for future, (task, _) in zip(futures, given, strict=True)}
        for future in as_completed(futures, loop=self._client.loop):
            task = task_of[future.key]
            error = future.exception()
            if isinstance(error, KilledWorker):
                yield task, stage_error(self._job, task, WorkerDied("the workers that it was given to died"))
            elif error is not None:
                raise error
            else:
                yield task, future.result()

    def _prepare(self) -> None:
        """Check that all workers run this version, and let one on each host compile the kernels."""
        workers: dict[str, Any] = self._client.scheduler_info(n_workers=-1)["workers"]
        if not workers:
            raise UsageError(f"--scheduler {self._client.scheduler.address}: has no workers")
        ours = results_version()
        try:
            versions = self._client.run(results_version)
        except ImportError as error:
            raise UsageError(f"a worker of the cluster cannot import replay: {error}") from error
        for address, version in versions.items():
            if version != ours:
                raise UsageError(f"worker {address} runs another version of replay")
        from replay.bulk.warm import warm_up

        hosts = {info["host"]: address for address, info in workers.items()}
        compiled = [self._client.submit(warm_up, workers=[each], pure=False) for each in hosts.values()]
        self._client.gather(compiled)
        self._check_shared()

    def _check_shared(self) -> None:
        """Check that every worker can access the directory of the dataset."""
        for address, there in self._client.run(_sees_manifest, self._job.url).items():
            if not there:
                raise OutputError(self._job.url, f"worker {address} does not see it: storage must be shared")


def _sees_manifest(url: str) -> bool:
    from replay.bulk.work import storage_of
    from replay.trace.files import MANIFEST

    return storage_of(url).exists(MANIFEST)
