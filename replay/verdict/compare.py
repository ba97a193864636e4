"""Outcomes meet expectations: the recorded lines of the trace itself, or a golden file.

The words are those of ``schema.Match`` for both: ``missing`` is an attempt that is expected but not
simulated, ``unexpected`` one that is simulated but not expected.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from replay.schema import Match
from replay.verdict.golden import Attempt, Golden

if TYPE_CHECKING:
    from replay.mmu.engine import Replay

SHOWN_DIFFERENCES = 10

MATCH_TEXTS = {
    "mismatched": "not as expected",
    "missing": "expected but not simulated",
    "unexpected": "simulated but not expected",
}
"""What the words of ``schema.Match`` say about attempts."""

_OTHER_LINES = {"get_page": "kvm_mmu_get_page lines of splits", "truth": "probe lines of splits"}
_WHAT_IF = ("end", "time")
_KEY = ("window", "vm", "mmu", "gfn", "level", "role")
_RECORDED = ("gfn", "spte", "level", "errno")


@dataclass(frozen=True)
class Difference:
    """One attempt that is not as expected; an empty text where one side has no such attempt."""

    place: str
    expected: str
    got: str


@dataclass(frozen=True)
class Comparison:
    """What came of comparing a run; counts are None where there was nothing to compare with."""

    source: str = "none"
    """``recorded``, ``file`` or ``none``."""
    attempts: int | None = None
    """Attempts that were expected."""
    matched: int | None = None
    mismatched: int | None = None
    missing: int | None = None
    unexpected: int | None = None
    flushes_expected: int | None = None
    verdict: str = "unchecked"
    """``match``, ``mismatch`` or ``unchecked``."""
    reasons: list[str] = field(default_factory=list)
    """Why the verdict is not ``match``."""
    differences: list[Difference] = field(default_factory=list)
    """The first ``SHOWN_DIFFERENCES`` attempts that are not as expected."""


def unchecked() -> Comparison:
    """The comparison of a run that has nothing to be compared with."""
    return Comparison(reasons=["nothing to compare with"])


def compare_recorded(replay: Replay, doubts: Sequence[str] = (), unknown: Sequence[str] = ()) -> Comparison:
    """Compare a replay with what its own trace recorded: split lines, flushes, get_page lines and probes.

    ``doubts`` are reasons why the trace may not tell all: with one of them nothing can match.  ``unknown``
    is what it does not tell for certain: with that in it, a difference is no mismatch either.
    """
    counters = replay.counters
    if not _has_expectations(replay):
        return unchecked()
    reasons = [*_attempt_reasons(counters), *_flush_reasons(replay)]
    for what, name in _OTHER_LINES.items():
        expected, matched = counters[f"{what}_expected"] or 0, counters[f"{what}_matched"] or 0
        if matched != expected:
            reasons.append(f"{expected - matched:,} of {expected:,} {name} differ")
    verdict, reasons = _verdict(reasons, [*doubts, *unknown])
    return Comparison(
        source="recorded",
        attempts=counters["expected_attempts"],
        matched=counters["matched"],
        mismatched=counters["mismatched"],
        missing=counters["missing"],
        unexpected=counters["unexpected"],
        flushes_expected=counters["flushes_expected"],
        verdict="unchecked" if unknown else verdict,
        reasons=reasons,
        differences=_recorded_differences(replay),
    )


def compare_golden(golden: Golden, run: Golden, doubts: Sequence[str] = ()) -> Comparison:
    """Compare a run with a golden file; ``run`` is the golden file that the run itself would write."""
    counts = dict.fromkeys(("matched", "mismatched", "missing", "unexpected"), 0)
    differences: list[Difference] = []
    for match, place, expected, got in _pair(golden.outcomes, run.outcomes):
        counts[match.name.lower()] += 1
        if match is not Match.MATCHED and len(differences) < SHOWN_DIFFERENCES:
            differences.append(_golden_difference(place, expected, got))
    reasons = _attempt_reasons(counts)
    if golden.policy != run.policy:
        reasons.append(f"the golden file is of policy {golden.policy}, the run of {run.policy}")
    for name in ("knobs", "options", "totals", "flushes"):
        reasons += _unequal(name, getattr(golden, name), getattr(run, name))
    if not reasons and golden.outcomes != run.outcomes:
        reasons.append("the same attempts in another order")
    if not reasons and golden.outcomes_digest != run.outcomes_digest:
        reasons.append("outcomes_digest does not fit the outcomes of the golden file")
    verdict, reasons = _verdict(reasons, doubts)
    return Comparison(
        source="file",
        attempts=len(golden.outcomes),
        flushes_expected=golden.flushes.get("total"),
        verdict=verdict,
        reasons=reasons,
        differences=differences,
        **counts,
    )


def _has_expectations(replay: Replay) -> bool:
    """Something was recorded for a window that was replayed: attempts, or that there were none.

    Windows at the end or at a time that the user chose have no counterpart in the recording.
    """
    if not replay.has_recorded:
        return False
    causes = set(replay.windows["cause"].to_pylist())
    return bool(replay.counters["expected_attempts"]) or not causes.issubset(_WHAT_IF)


def _verdict(reasons: Sequence[str], doubts: Sequence[str]) -> tuple[str, list[str]]:
    """``mismatch`` for any reason, else ``unchecked`` for any doubt; and both as one list."""
    verdict = "mismatch" if reasons else "unchecked" if doubts else "match"
    return verdict, [*reasons, *doubts]


def _attempt_reasons(counts: Mapping[str, int | None]) -> list[str]:
    return [
        f"{count:,} {'attempt' if count == 1 else 'attempts'} {text}"
        for name, text in MATCH_TEXTS.items()
        if (count := counts[name])
    ]


def _flush_reasons(replay: Replay) -> list[str]:
    """Windows whose simulated flushes differ from those that probes recorded."""
    columns = replay.windows.select(["index", "cause", "flushes_total", "flushes_recorded"]).to_pylist()
    differing = [
        row
        for row in columns
        if row["cause"] not in _WHAT_IF
        and row["flushes_recorded"] is not None
        and row["flushes_recorded"] != row["flushes_total"]
    ]
    if not differing:
        return []
    first = differing[0]
    return [
        f"flushes differ in {len(differing)} of {len(columns)} windows, first in window {first['index']}: "
        f"{first['flushes_recorded']} recorded, {first['flushes_total']} simulated"
    ]


def _recorded_differences(replay: Replay) -> list[Difference]:
    if not any(replay.counters[word] for word in MATCH_TEXTS):
        return []
    matches = replay.outcomes["match"].to_pylist()
    differing = [index for index, match in enumerate(matches) if match in MATCH_TEXTS]
    rows = [replay.outcomes.slice(index, 1).to_pylist()[0] for index in differing[:SHOWN_DIFFERENCES]]
    return [
        Difference(
            place=f"line {row['line']}, window {row['window']}",
            expected="" if row["match"] == "unexpected" else _split_line(row, "recorded_"),
            got="" if row["match"] == "missing" else _split_line(row, ""),
        )
        for row in rows
    ]


def _split_line(row: Mapping[str, Any], prefix: str) -> str:
    """An attempt in the words of its trace line, kvm_mmu_split_huge_page."""
    gfn, spte, level, errno = (row[prefix + name] for name in _RECORDED)
    text = " ".join(
        f"{name} {'?' if value is None else f'{value:x}'}" for name, value in (("gfn", gfn), ("spte", spte))
    )
    return f"{text} level {level} errno {'none' if errno is None else errno}"


def _pair(
    expected: list[Attempt], got: list[Attempt]
) -> Iterator[tuple[Match, str, Attempt | None, Attempt | None]]:
    """Line up two lists of attempts by the SPTE they are at, in the order of ``got``, then what is left."""
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
    """Name the attempt, and on each side what differs; all of it where the other side has none."""
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
