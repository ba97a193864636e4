"""Outcomes meet expectations: a golden file and the one that the run itself would write."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from replay.schema import Match
from replay.verdict.compare import (
    SHOWN_DIFFERENCES,
    Comparison,
    Difference,
    attempt_reasons,
    verdict_of,
)
from replay.verdict.golden import Attempt, Golden

_KEY = ("window", "vm", "mmu", "gfn", "level", "role")
"""What names an attempt in both."""


def compare_golden(golden: Golden, run: Golden, doubts: Sequence[str] = ()) -> Comparison:
    """Compare a run with a golden file; ``run`` is the golden file that the run itself would write."""
    counts = dict.fromkeys(("matched", "mismatched", "missing", "unexpected"), 0)
    differences: list[Difference] = []
    for match, place, expected, got in _pair(golden.outcomes, run.outcomes):
        counts[match.name.lower()] += 1
        if match is not Match.MATCHED and len(differences) < SHOWN_DIFFERENCES:
            differences.append(_golden_difference(place, expected, got))
    reasons = attempt_reasons(counts)
    if golden.policy != run.policy:
        reasons.append(f"the golden file has policy {golden.policy}, the run has {run.policy}")
    for name in ("knobs", "options", "totals", "flushes"):
        reasons += _unequal(name, getattr(golden, name), getattr(run, name))
    if not reasons and golden.outcomes != run.outcomes:
        reasons.append("the same attempts, but in a different order")
    if not reasons and golden.outcomes_digest != run.outcomes_digest:
        reasons.append("outcomes_digest does not match the outcomes in the golden file")
    verdict, reasons = verdict_of(reasons, True, doubts)
    flushes = golden.flushes.get("total")
    return Comparison(
        source="file",
        recorded=len(golden.outcomes),
        compared=len(golden.outcomes),
        attempts=len(golden.outcomes),
        flushes_expected=flushes if type(flushes) is int else None,
        verdict=verdict,
        reasons=reasons,
        differences=differences,
        matched=counts["matched"],
        mismatched=counts["mismatched"],
        missing=counts["missing"],
        unexpected=counts["unexpected"],
    )


def _pair(
    expected: list[Attempt], got: list[Attempt]
) -> Iterator[tuple[Match, str, Attempt | None, Attempt | None]]:
    """Pair two lists of attempts by their SPTE, in the order of ``got``; then what remains."""
    waiting: dict[tuple[object, ...], list[int]] = defaultdict(list)
    for index in reversed(range(len(expected))):
        waiting[_key(expected[index])].append(index)
    for index, attempt in enumerate(got):
        indices = waiting[_key(attempt)]
        if not indices:
            yield Match.UNEXPECTED, f"attempt {index}", None, attempt
            continue
        other = expected[indices.pop()]
        yield (Match.MATCHED if other == attempt else Match.MISMATCHED), f"attempt {index}", other, attempt
    for index in sorted(index for indices in waiting.values() for index in indices):
        yield Match.MISSING, f"attempt {index}", expected[index], None


def _key(attempt: Attempt) -> tuple[object, ...]:
    return tuple(str(attempt.get(name)) for name in _KEY)


def _golden_difference(place: str, expected: Attempt | None, got: Attempt | None) -> Difference:
    """Name the attempt and what differs on each side; everything if the other side has no such attempt."""
    some = got or expected or {}
    window, mmu, gfn, level = (some.get(name) for name in ("window", "mmu", "gfn", "level"))
    where = f"{place}, window {window}, {mmu} gfn {gfn} level {level}"
    if expected is None or got is None:
        return Difference(where, _words(expected, None), _words(got, None))
    names = {name for name in expected.keys() | got.keys() if expected.get(name) != got.get(name)}
    return Difference(where, _words(expected, names), _words(got, names))


def _words(attempt: Attempt | None, names: set[str] | None) -> str:
    if attempt is None:
        return ""
    shown = {
        name: value
        for name, value in attempt.items()
        if (name not in _KEY if names is None else name in names)
    }
    return " ".join(f"{name} {'none' if value is None else value}" for name, value in shown.items())


def _unequal(name: str, expected: Mapping[str, Any], got: Mapping[str, Any]) -> list[str]:
    """One text for each key whose value differs, nested keys joined by dots."""
    reasons = []
    for key in [*expected, *(key for key in got if key not in expected)]:
        left, right = expected.get(key), got.get(key)
        if isinstance(left, Mapping) and isinstance(right, Mapping):
            reasons += _unequal(f"{name}.{key}", left, right)
        elif left != right:
            reasons.append(f"{name}.{key}: expected {left}, got {right}")
    return reasons
