"""How an input is made, and how one that fails is made smaller."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import TypeVar

from tools.fuzz.child import Case, Child, Failure
from tools.fuzz.targets import Seed, Target

SHRINK_SECONDS = 120
Piece = TypeVar("Piece")


@dataclass(frozen=True)
class Recipe:
    """A good input, by its number, and the seeds of what is done to it."""

    seed: int
    cut: int
    changes: tuple[int, ...]
    options: int


def build(recipe: Recipe, target: Target, seeds: Sequence[Seed]) -> Case:
    """The input of a recipe, always the same."""
    seed = seeds[recipe.seed]
    data = target.cut(seed.data, Random(recipe.cut)) if target.cut else seed.data
    others = [each.data for each in seeds]
    for change in recipe.changes:
        data = target.change(data, Random(change), others)
    return Case(data, target.suffix, seed.companion, recipe.options)


def shrink(recipe: Recipe, target: Target, seeds: Sequence[Seed], child: Child, failure: Failure) -> Case:
    """A smaller input that fails in the same way: fewer changes, then fewer lines."""
    until = time.monotonic() + SHRINK_SECONDS

    def fails(case: Case) -> bool:
        if time.monotonic() > until:
            return False
        found = child.run(case)
        return found is not None and found.kind == failure.kind

    def with_changes(changes: Sequence[int]) -> Case:
        return build(replace(recipe, changes=tuple(changes)), target, seeds)

    changes = _fewest(recipe.changes, lambda kept: fails(with_changes(kept)))
    case = with_changes(changes)
    if target.by_line:
        lines = case.data.splitlines(keepends=True)
        kept = _fewest(lines, lambda kept: fails(replace(case, data=b"".join(kept))))
        case = replace(case, data=b"".join(kept))
    return case


def _fewest(pieces: Sequence[Piece], fails: Callable[[Sequence[Piece]], bool]) -> Sequence[Piece]:
    """Pieces none of which can be left out, found by leaving out halves, quarters and so on."""
    size = (len(pieces) + 1) // 2
    while size:
        begin = 0
        while begin < len(pieces):
            without = [*pieces[:begin], *pieces[begin + size :]]
            if fails(without):
                pieces = without
            else:
                begin += size
        size = size // 2
    return pieces
