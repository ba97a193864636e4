"""Runs of one trace under the policies and knobs that the questions compare, each made once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, cast

import numpy as np

from replay.policy import Policy
from replay.run import Progress, Request, Run, named_policy, run_trace
from replay.schema import Kind, Outcome

if TYPE_CHECKING:
    from replay.mmu.results.census import Census
    from replay.schema import Columns
    from replay.trace.trace import Trace

Arrays = dict[str, np.ndarray]
"""Columns of equal length, int64, by name."""


@dataclass(frozen=True)
class Result:
    """One run with its census."""

    run: Run

    def __getitem__(self, counter: str) -> int:
        """A counter of the run that is always known."""
        return cast(int, self.run.replay.counters[counter])

    @property
    def policy(self) -> Policy:
        return self.run.policy

    @property
    def census(self) -> Census:
        census = self.run.replay.census
        assert census is not None, "runs of a review keep it"
        return census

    @cached_property
    def shown(self) -> Arrays:
        """All outcomes of the shadow MMU in order, retries included."""
        attempts = self.census.attempts
        return rows_of(attempts, (attempts["mmu"] == 0) & (attempts["outcome"] >= 0))

    @cached_property
    def attempts(self) -> Arrays:
        return rows_of(self.shown, self.shown["outcome"] != Outcome.RETRY)

    @cached_property
    def looked_up(self) -> Arrays:
        """Attempts that came as far as looking for the child."""
        outcome = self.attempts["outcome"]
        return rows_of(self.attempts, (outcome == Outcome.SPLIT) | (outcome == Outcome.EXISTING_CHILD))

    @cached_property
    def splits(self) -> Arrays:
        return rows_of(self.attempts, self.attempts["outcome"] == Outcome.SPLIT)

    def windows(self, *names: str) -> Arrays:
        """Columns of the window table; all are numbers, 0 where null."""
        table = self.run.replay.windows
        return {name: table[name].fill_null(0).to_numpy().astype(np.int64) for name in names}

    @cached_property
    def is_clear(self) -> np.ndarray:
        """Which windows are of KVM_CLEAR_DIRTY_LOG."""
        causes = self.run.replay.windows["cause"].to_pylist()
        return np.array([cause == "clear_dirty_log" for cause in causes], dtype=bool)


class Runs:
    """Runs of ``trace`` with the options of ``request``; its policy is the one under review."""

    def __init__(self, trace: str | Trace, request: Request, progress: Progress | None = None) -> None:
        self._request = replace(request, policy=request.policy or "v2", expect="recorded", census=True)
        self._results: dict[tuple[object, ...], Result] = {}
        self._first = Result(run_trace(trace, self._request, progress))
        self.trace = self._first.run.trace
        self._results[self._key(self._first.policy, self._request)] = self._first

    @property
    def reviewed(self) -> Result:
        """The policy under review, with the recorded environment."""
        return self._first

    def varied(
        self,
        *settings: str,
        resched: str | None = None,
        max_mmu_pages: int | None = None,
        alone: bool = False,
    ) -> Result:
        """The policy under review with other knobs or options, as :meth:`preset` takes them."""
        policy = self._first.policy.with_settings(settings)
        return self._result(policy, resched, max_mmu_pages, alone)

    def preset(self, name: str, *settings: str, resched: str | None = None, alone: bool = False) -> Result:
        """Another policy, with the knobs that the caller set, then ``settings``.

        ``alone`` runs each window through by itself: the recorded environment is left out, and
        lock drops are those of ``resched``.
        """
        policy = named_policy(name, self._request).with_settings([*self._request.settings, *settings])
        return self._result(policy, resched, None, alone)

    def _result(self, policy: Policy, resched: str | None, max_mmu_pages: int | None, alone: bool) -> Result:
        request = replace(
            self._request,
            policy=policy,
            settings=(),
            expect="none" if alone else "recorded",
            resched=resched or self._request.resched,
            max_mmu_pages=max_mmu_pages or self._request.max_mmu_pages,
        )
        key = self._key(policy, request)
        if key not in self._results:
            self._results[key] = Result(run_trace(self.trace, request))
        return self._results[key]

    @staticmethod
    def _key(policy: Policy, request: Request) -> tuple[object, ...]:
        return (policy.codes(), request.expect, request.resched, request.max_mmu_pages)

    @cached_property
    def kinds(self) -> np.ndarray:
        """Events by kind."""
        return self.trace.kind_counts()

    def has(self, *kinds: Kind) -> bool:
        return any(self.kinds[kind] for kind in kinds)

    def events(self, chosen: Callable[[Columns], np.ndarray]) -> Arrays:
        """Columns vm, line, role, gfn and addr of the events that ``chosen`` marks, batch by batch."""
        names = ("vm", "line", "role", "gfn", "addr", "kind")
        parts: dict[str, list[np.ndarray]] = {name: [np.zeros(0, np.int64)] for name in names}
        for batch in self.trace.batches():
            mask = chosen(batch)
            for name in names:
                parts[name].append(getattr(batch, name)[mask].astype(np.int64))
        return {name: np.concatenate(arrays) for name, arrays in parts.items()}


def rows_of(arrays: Arrays, chosen: np.ndarray) -> Arrays:
    """The rows that a mask marks, or those of an array of row numbers."""
    return {name: column[chosen] for name, column in arrays.items()}


def groups(arrays: Arrays, *names: str) -> np.ndarray:
    """The number, 0.., of the group of equal values of ``names`` that each row is in."""
    if not len(arrays[names[0]]):
        return np.zeros(0, np.int64)
    stacked = np.stack([arrays[name] for name in names])
    return np.unique(stacked, axis=1, return_inverse=True)[1].reshape(-1)


def sums(group: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Sum of ``values`` by group, exact."""
    total = np.zeros(int(group.max()) + 1 if len(group) else 0, np.int64)
    np.add.at(total, group, values)
    return total


def last_of(group: np.ndarray) -> np.ndarray:
    """The row of the last member of each group."""
    last = np.zeros(int(group.max()) + 1 if len(group) else 0, np.int64)
    last[group] = np.arange(len(group))
    return last


def first_of(group: np.ndarray) -> np.ndarray:
    """The row of the first member of each group."""
    return np.unique(group, return_index=True)[1]
