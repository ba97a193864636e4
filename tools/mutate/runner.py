"""Tests against mutants: each in a process of its own, forked from one that has loaded what never changes."""

from __future__ import annotations

import contextlib
import importlib
import os
import resource
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from tools.mutate.mutants import Mutant

PRELOADED = ("numpy", "numba", "pyarrow", "hypothesis", "pytest")
NOT_COPIED = shutil.ignore_patterns(".*", "__pycache__", "traces", "docs")


@dataclass(frozen=True)
class Job:
    """A mutant of the module ``source``, a path inside the project."""

    source: str
    mutant: Mutant


class BaselineError(Exception):
    """The tests fail without any change."""


class Runner:
    """Copies of a project in ``directory``; tests run in each against one mutant at a time."""

    def __init__(self, project: Path, tests: Sequence[str], directory: Path, copies: int) -> None:
        os.environ |= {"NUMBA_DISABLE_JIT": "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
        for name in PRELOADED:
            importlib.import_module(name)
        self.tests = tests
        self.copies = [directory / f"copy-{number}" for number in range(copies)]
        shutil.copytree(project, self.copies[0], ignore=NOT_COPIED)
        status, seconds = _wait(self._fork(self.copies[0], "", None))
        if status != 0:
            raise BaselineError(f"tests fail without any change: {' '.join(tests)}")
        self.cpu_limit = int(2 + 3 * seconds)  # some mutants run for ever
        for copy in self.copies[1:]:
            shutil.copytree(self.copies[0], copy)

    def run(self, jobs: Sequence[Job]) -> Iterator[tuple[Job, bool]]:
        """Each job, as it ends, and whether its mutant survived."""
        idle = list(self.copies)
        running: dict[int, tuple[Job, Path, str]] = {}
        left = list(reversed(jobs))
        while left or running:
            while left and idle:
                job, copy = left.pop(), idle.pop()
                original = (copy / job.source).read_text()
                _write(copy / job.source, job.mutant.text)
                running[self._fork(copy, job.source, self.cpu_limit)] = job, copy, original
            pid, status = os.wait()
            job, copy, original = running.pop(pid)
            _write(copy / job.source, original)
            idle.append(copy)
            yield job, status == 0

    def _fork(self, copy: Path, source: str, cpu_limit: int | None) -> int:
        sys.stdout.flush()
        pid = os.fork()
        if pid == 0:
            _test(copy, self._tests_for(source), cpu_limit)
        return pid

    def _tests_for(self, source: str) -> list[str]:
        """The tests, those of the module itself first: most mutants fail there."""
        own = f"test_{Path(source).name}"
        return sorted(self.tests, key=lambda test: Path(test).name != own)


def _write(path: Path, text: str) -> None:
    """Write a module; a compiled one of the same size and second would pass for it."""
    for compiled in path.parent.glob(f"__pycache__/{path.stem}.*.pyc"):
        compiled.unlink()
    path.write_text(text)


def _wait(pid: int) -> tuple[int, float]:
    _, status, usage = os.wait4(pid, 0)
    return status, usage.ru_utime + usage.ru_stime


def _test(copy: Path, tests: Sequence[str], cpu_limit: int | None) -> NoReturn:
    """In the child: run the tests in ``copy``, exit with 0 if all pass."""
    code = 1
    try:
        if cpu_limit is not None:
            resource.setrlimit(resource.RLIMIT_CPU, (cpu_limit, cpu_limit))
            sys.dont_write_bytecode = True
        os.chdir(copy)
        sys.path.insert(0, str(copy))
        for name in [name for name in sys.modules if name.split(".")[0] in ("replay", "tests", "tools")]:
            del sys.modules[name]
        code = _run_pytest(tests)
    finally:
        os._exit(code)


def _run_pytest(tests: Sequence[str]) -> int:
    import hypothesis
    import pytest

    # a counterexample kills a mutant; how small it could be does not matter
    phases = (hypothesis.Phase.explicit, hypothesis.Phase.generate)
    hypothesis.settings.register_profile("mutants", phases=phases, database=None)
    hypothesis.settings.load_profile("mutants")
    with open(os.devnull, "w") as null, contextlib.redirect_stdout(null), contextlib.redirect_stderr(null):
        return int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", "--tb=no", *tests]))
