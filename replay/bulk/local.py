"""Replay traces on the cores of this machine: one process per core, as many traces as memory allows."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from multiprocessing import get_context, resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.forkserver import ensure_running
from typing import Any, cast

from replay.bulk.memory import NEED_BYTES, Estimate, begin_peak, peak, resident
from replay.bulk.plan import Task
from replay.bulk.rows import WorkerDied
from replay.bulk.work import Job, Reply, stage_error, work
from replay.errors import UsageError

LOOK_SECONDS = 0.2
"""How often memory is measured."""
_MIN_ROWS_BYTES = 64 << 20
_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "ARROW_IO_THREADS": "1"}

Known = Mapping[str, frozenset[str]]
Given = tuple[Task, Known]
Say = Callable[[str], None]


@dataclass
class _Worker:
    process: Any
    connection: Connection
    ready: bool = False
    idle_bytes: int = 0
    given: Given | None = None
    need: int = 0


class Pool:
    """Worker processes; use it as a context, which ends them."""

    def __init__(self, job: Job, jobs: int, memory: int, say: Say) -> None:
        self.peak_bytes = 0
        """The largest measured memory of all processes together."""
        self._looked = 0.0
        self._job = job
        self._jobs = jobs
        self._memory = memory
        self._say = say
        self._estimate = Estimate()
        self._workers: list[_Worker] = []
        self._waiting: deque[Given] = deque()
        self._again: deque[Given] = deque()
        """Traces whose process died once."""
        self._died: set[str] = set()
        self._said: set[str] = set()
        self._context = get_context("forkserver")
        self._context.set_forkserver_preload(["replay.bulk.warm"])

    def __enter__(self) -> Pool:
        # the server and the workers inherit what is set and blocked here: only this process handles Ctrl-C
        resource_tracker.ensure_running()  # which unblocks signals when it starts
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            with _environment(_ENVIRONMENT):
                ensure_running()
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        return self

    def __exit__(self, *error: object) -> None:
        for worker in self._workers:
            worker.process.kill()
        for worker in self._workers:
            worker.process.join()
            worker.connection.close()
        self._workers.clear()

    def run(self, tasks: Iterable[tuple[Task, Known]]) -> Iterator[tuple[Task, Reply]]:
        """Replay traces, in about their order, and yield each as it is done.

        A trace whose process dies is tried again, alone, and then given up.
        """
        self._waiting.extend(tasks)
        self._start()  # the first one compiles what the others then load
        while self._waiting or self._again or self._running():
            for worker in self._idle():
                if (given := self._next()) is None:
                    break
                self._send(worker, given)
            for worker in self._heard():
                given = worker.given
                try:
                    reply = self._take(worker, worker.connection.recv())
                except (EOFError, OSError):
                    reply = self._bury(worker)
                if reply is not None and given is not None:
                    yield given[0], reply

    def _running(self) -> list[_Worker]:
        return [worker for worker in self._workers if worker.given is not None]

    def _idle(self) -> list[_Worker]:
        return [worker for worker in self._workers if worker.ready and worker.given is None]

    def _start(self) -> None:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=_serve, args=(theirs, self._job), daemon=True)
        process.start()
        theirs.close()
        likely = max((worker.idle_bytes for worker in self._workers), default=0)
        self._workers.append(_Worker(process, ours, idle_bytes=likely))

    def _bury(self, worker: _Worker) -> Reply | None:
        """A process died: start another one; returns a reply if its trace is given up."""
        worker.process.join()
        worker.connection.close()
        self._workers.remove(worker)
        reason = _reason(worker.process.exitcode)
        if not worker.ready:
            raise UsageError(f"a worker process cannot start: {reason}")
        self._start()
        if worker.given is None:
            return None
        task, _ = worker.given
        if task.path in self._died:
            return stage_error(self._job, task, WorkerDied(f"its process died twice: {reason}"))
        self._died.add(task.path)
        self._again.append(worker.given)
        return None

    def _heard(self) -> list[_Worker]:
        """The workers that sent something or died."""
        ready = wait([worker.connection for worker in self._workers], LOOK_SECONDS)
        if time.monotonic() - self._looked >= LOOK_SECONDS:
            self._looked = time.monotonic()
            taken = resident() + sum(resident(worker.process.pid) for worker in self._workers)
            self.peak_bytes = max(self.peak_bytes, taken)
        return [worker for worker in self._workers if worker.connection in ready]

    def _take(self, worker: _Worker, message: tuple[Any, ...]) -> Reply | None:
        """Handle a worker's message; returns its reply if it finished a trace."""
        word, *values = message
        if word == "error":
            raise values[0]
        if word == "say":
            if values[0] not in self._said:
                self._said.add(values[0])
                self._say(values[0])
        elif word == "ready":
            worker.ready = True
            (worker.idle_bytes,) = values
            self._start_others(worker.idle_bytes)
        elif worker.given is not None:
            reply, taken, idle_bytes = values
            self._estimate.learn(worker.given[0], taken - worker.idle_bytes)
            worker.given, worker.idle_bytes = None, idle_bytes
            return cast(Reply, reply)
        return None

    def _start_others(self, idle_bytes: int) -> None:
        """Start as many processes as requested, if there is memory for them."""
        room = self._memory - resident()
        fitting = room // (idle_bytes + NEED_BYTES)
        if fitting < 1:
            least = (resident() + idle_bytes + NEED_BYTES) >> 20
            raise UsageError(f"--memory: too little, one process takes {least + 1}M")
        while len(self._workers) < min(self._jobs, fitting):
            self._start()

    def _room(self) -> int:
        """Bytes that no process uses and no running trace will need."""
        processes = sum(worker.idle_bytes + worker.need * bool(worker.given) for worker in self._workers)
        return self._memory - resident() - processes

    def _next(self) -> Given | None:
        """The first trace that fits in memory; one whose process died waits until it can run alone."""
        running = self._running()
        if self._again:
            return None if running else self._again.popleft()
        if any(worker.given[0].path in self._died for worker in running if worker.given):
            return None
        room = self._room()
        for given in self._waiting:
            if not running or self._estimate.need(given[0]) <= room:
                self._waiting.remove(given)
                return given
        return None

    def _send(self, worker: _Worker, given: Given) -> None:
        task, known = given
        room = max(self._room(), _MIN_ROWS_BYTES)
        worker.given, worker.need = given, self._estimate.need(task)
        with contextlib.suppress(OSError):  # it died, which its connection shows
            rows_bytes = min(room, max(worker.need, _MIN_ROWS_BYTES))
            worker.connection.send((task, known, rows_bytes, self._threads()))

    def _threads(self) -> int:
        """Cores for a trace: several at the end, if there are fewer traces than processes."""
        traces = len(self._running()) + len(self._waiting)
        return max(1, len(os.sched_getaffinity(0)) // min(traces, len(self._workers)))


def _reason(exitcode: int) -> str:
    return f"exit code {exitcode}" if exitcode >= 0 else signal.Signals(-exitcode).name


@contextlib.contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _serve(connection: Connection, job: Job) -> None:
    """A worker: takes traces from ``connection`` until it is closed."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        import pyarrow as pa

        from replay.bulk.warm import warm_up

        pa.set_cpu_count(1)
        warm_up(lambda line: connection.send(("say", line)))
        connection.send(("ready", resident()))
        while True:
            task, known, memory_bytes, threads = connection.recv()
            begin_peak()
            reply = work(job, task, known, memory_bytes, threads)
            taken = peak()
            pa.default_memory_pool().release_unused()
            connection.send(("done", reply, taken, resident()))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return
    except Exception as error:
        with contextlib.suppress(OSError):
            connection.send(("error", error))
