"""Tests against mutants: collected once, then run in a process of its own for each mutant."""

from __future__ import annotations

import gc
import importlib
import inspect
import os
import resource
import shutil
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from tools.mutate.mutants import Mutant

NOT_COPIED = shutil.ignore_patterns(".*", "__pycache__", "traces", "docs")


@dataclass(frozen=True)
class Job:
    """A mutant of the module ``source``, a path inside the project."""

    source: str
    mutant: Mutant


class BaselineError(Exception):
    """The tests fail without any change."""


@dataclass
class Run:
    """One run of ``tests``, files of ``project``, against each of ``jobs``, ``parallel`` at a time.

    ``report`` is called as each job ends: with the job, and whether its mutant survived.
    """

    project: Path
    tests: Sequence[str]
    jobs: Sequence[Job]
    parallel: int
    report: Callable[[Job, bool], None]
    fails: bool = False

    def in_copy(self, copy: Path) -> None:
        """Do it in a copy of the project, which is made at ``copy``: nothing is written elsewhere."""
        os.environ |= {"NUMBA_DISABLE_JIT": "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
        shutil.copytree(self.project, copy, ignore=NOT_COPIED)
        sys.path.insert(0, str(copy))
        os.chdir(copy)
        import hypothesis
        import pytest

        # a counterexample kills a mutant; how small it could be does not matter
        phases = (hypothesis.Phase.explicit, hypothesis.Phase.generate)
        hypothesis.settings.register_profile("mutants", phases=phases, database=None)
        hypothesis.settings.load_profile("mutants")
        options = ["--rootdir", str(copy), "-s", "-p", "no:terminal", "-p", "no:cacheprovider"]
        pytest.main([*options, *self.tests], plugins=[self])
        if self.fails:
            raise BaselineError(f"tests fail without any change: {' '.join(self.tests)}")

    def pytest_runtestloop(self, session: Any) -> bool:
        """In place of pytest's own loop over the tests that it collected."""
        self.fails = session.testsfailed > 0 or not session.items
        if self.fails:
            return True
        gc.disable()  # it would write to all that the processes share
        gc.freeze()
        _, status, usage = os.wait4(_fork(session, None, None), 0)
        self.fails = status != 0
        if not self.fails:
            # some mutants run for ever
            self._test_all(session, int(2 + 3 * (usage.ru_utime + usage.ru_stime)))
        return True

    def _test_all(self, session: Any, cpu_limit: int) -> None:
        running: dict[int, Job] = {}
        left = list(reversed(self.jobs))
        while left or running:
            while left and len(running) < self.parallel:
                job = left.pop()
                running[_fork(session, job, cpu_limit)] = job
            pid, status = os.wait()
            self.report(running.pop(pid), status == 0)


def _fork(session: Any, job: Job | None, cpu_limit: int | None) -> int:
    """Start the tests against a mutant; the process ends with 0 if all pass."""
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        _test(session, job, cpu_limit)
    return pid


def _test(session: Any, job: Job | None, cpu_limit: int | None) -> NoReturn:
    code = 1
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        if cpu_limit is not None:
            resource.setrlimit(resource.RLIMIT_CPU, (cpu_limit, cpu_limit))
        items = session.items
        if job is not None:
            _mutate(job)
            # most mutants fail in the tests of their own module
            own = f"test_{Path(job.source).name}"
            items = sorted(items, key=lambda item: item.path.name != own)
        code = int(not all(_passes(session, item) for item in items))
    finally:
        os._exit(code)


def _passes(session: Any, item: Any) -> bool:
    item.ihook.pytest_runtest_protocol(item=item, nextitem=None)
    return bool(session.testsfailed == 0)


def _mutate(job: Job) -> None:
    """Give the functions of a module the code of the mutant: who has imported one has it, too."""
    name = job.source.removesuffix(".py").replace("/", ".")
    module = importlib.import_module(name)
    mutated = types.ModuleType(name)
    exec(compile(job.mutant.text, job.source, "exec"), mutated.__dict__)
    for old, new in _functions(module, mutated, name):
        old.__code__ = new.__code__


def _functions(old: Any, new: Any, module: str) -> Iterator[tuple[Any, Any]]:
    """The functions that a module or class defines, each with its namesake in its other form."""
    for name, mutated in vars(new).items():
        original = vars(old).get(name)
        if getattr(mutated, "__module__", None) != module:
            continue
        if inspect.isfunction(mutated) and inspect.isfunction(original):
            yield original, mutated
        elif inspect.isclass(mutated) and inspect.isclass(original):
            yield from _functions(original, mutated, module)
