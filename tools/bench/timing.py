"""Seconds of calls and of commands: the best of some runs, since all else on a machine only adds to them."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]


class Seconds(NamedTuple):
    """Wall-clock time, processor time, and the peak of memory in MB (of commands only)."""

    wall: float
    cpu: float
    memory: float = 0.0


def best_call(call: Callable[[], object], runs: int) -> Seconds:
    """Of this process."""
    walls, cpus = [], []
    for _ in range(runs):
        wall, cpu = time.perf_counter(), time.process_time()
        call()
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
    return Seconds(min(walls), min(cpus))


def best_command(command: Sequence[str | Path], runs: int, **environment: str) -> Seconds:
    """Of a command, its children included; what it prints is thrown away.  Raises if it cannot be run."""
    found = []
    for _ in range(runs):
        begin = time.perf_counter()
        process = subprocess.Popen(
            list(map(str, command)), cwd=ROOT, env={**os.environ, **environment}, stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        while process.stdout.read(1 << 16):  # grep -c ends at the first line where nobody reads it
            pass
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        wall = time.perf_counter() - begin
        if process.returncode not in (0, 1):
            raise RuntimeError(f"{command}: exit code {process.returncode}")
        found.append(Seconds(wall, usage.ru_utime + usage.ru_stime, _megabytes(usage)))
    return Seconds(*(min(values) for values in zip(*found, strict=True)))


def _megabytes(usage: resource.struct_rusage) -> float:
    return usage.ru_maxrss / (1 << 10 if sys.platform == "linux" else 1 << 20)


def python(*arguments: str | Path) -> list[str | Path]:
    """The command that runs this Python."""
    return [sys.executable, *arguments]


def replay(*arguments: str | Path) -> list[str | Path]:
    """The command ``replay``."""
    return python("-m", "replay", *arguments)


def on_one_core(command: Sequence[str | Path]) -> list[str | Path]:
    """``command`` on the first core that this process may use."""
    core = min(os.sched_getaffinity(0))
    pin = f"import os, sys; os.sched_setaffinity(0, {{{core}}}); os.execvp(sys.argv[1], sys.argv[1:])"
    return python("-c", pin, *command)
