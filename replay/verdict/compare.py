"""Outcomes meet expectations: the recorded lines of the trace itself; a golden file in ``compare_golden``.

The words are those of ``schema.Match`` for both: ``missing`` is an attempt that is expected but not
simulated, ``unexpected`` one that is simulated but not expected.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from replay.schema import Kind
from replay.verdict.doubt import NEVER_MATCH, REASONS, Doubt, reason_of

if TYPE_CHECKING:
    from replay.mmu.engine import Replay

SHOWN_DIFFERENCES = 10

MATCH_TEXTS = {
    "mismatched": "not as expected",
    "missing": "expected but not simulated",
    "unexpected": "simulated but not expected",
}
"""What the words of ``schema.Match`` say about attempts."""

_UNSHOWN = {
    Kind.V2_LOCK_DROPPED: "no v2_lock_dropped line was recorded, but SPTEs are attempted again",
    Kind.FAST_PAGE_FAULT: "no fast_page_fault line was recorded, but SPTEs are writable again",
}
"""How a replay shows that events happened whose kind the recording lacks."""

_FAULT_TIME = "fault_time_tdp_splits"
_WHAT_IF = ("end", "time")
_RECORDED = ("gfn", "spte", "level", "errno")


@dataclass(frozen=True)
class Difference:
    """One attempt that is not as expected; the text is empty if one side has no such attempt."""

    place: str
    expected: str
    got: str


@dataclass(frozen=True)
class Lines:
    """The comparison of one kind of lines."""

    recorded: int = 0
    compared: int = 0
    matched: int = 0
    absent: int = 0
    """Lines that the simulation has but the recording lacks."""


@dataclass(frozen=True)
class Comparison:
    """The result of comparing a run; counts are None if there was nothing to compare with."""

    source: str = "none"
    """``recorded``, ``file`` or ``none``."""
    recorded: int | None = None
    """Recorded lines that state an outcome: the sum of ``compared`` and ``not_compared``."""
    compared: int | None = None
    not_compared: dict[str, int] = field(default_factory=dict)
    """By reason, a key of ``doubt.REASONS``."""
    compared_from: int | None = None
    """The line from which on nothing rests on something unknown; None where no split line follows."""
    attempts: int | None = None
    """Attempts that were expected."""
    matched: int | None = None
    mismatched: int | None = None
    missing: int | None = None
    unexpected: int | None = None
    get_page: Lines | None = None
    """kvm_mmu_get_page lines of windows."""
    probes: Lines | None = None
    """Lines of the probes of the v2 series."""
    flushes_expected: int | None = None
    verdict: str = "unchecked"
    """``match``, ``partial``, ``mismatch`` or ``unchecked``."""
    reasons: list[str] = field(default_factory=list)
    """Why the verdict is not ``match``."""
    differences: list[Difference] = field(default_factory=list)
    """The first ``SHOWN_DIFFERENCES`` attempts that are not as expected."""


def unchecked() -> Comparison:
    """The comparison of a run that has nothing to be compared with."""
    return Comparison(reasons=["nothing to compare with"])


def compare_recorded(replay: Replay, doubts: Sequence[Doubt] = ()) -> Comparison:
    """Compare a replay with the outcomes in its own trace: split lines, get_page lines, probes and flushes.

    ``doubts`` are those that the replay was made with: a line that differs but may depend on something
    unknown is not compared.
    """
    counters = replay.counters
    if not replay.has_recorded:
        return unchecked()
    judged, fault_time = counters["expected_attempts"] or 0, replay.divergences.get(_FAULT_TIME, 0)
    get_page = _lines(counters, "get_page", "tdp_get_page")
    probes = _lines(counters, "probes")
    not_compared: Counter[str] = Counter(fault_time=fault_time)
    not_compared["no_window"] = replay.recorded_lines["splits"] - judged - fault_time
    not_compared["no_window"] += replay.recorded_lines["probes"] - probes.recorded
    for vm, count in replay.unknown.items():
        unshown = sum(by_vm.get(vm, 0) for by_vm in replay.unshown.values())
        not_compared["missing_kind"] += unshown
        not_compared[reason_of(doubts, vm)] += count - unshown
    recorded = replay.recorded_lines["splits"] + get_page.recorded + replay.recorded_lines["probes"]
    compared = recorded - sum(not_compared.values())
    differing = [
        *attempt_reasons(counters),
        *_line_reasons("kvm_mmu_get_page lines of splits", get_page),
        *_line_reasons("probe lines of splits", probes),
        *(_flush_reasons(replay, doubted=False) or _flush_places(_lines(counters, "flush_lines"))),
    ]
    left_out = {reason: not_compared[reason] for reason in REASONS if not_compared[reason]}
    verdict, reasons = verdict_of(
        differing, compared > 0 or _has_empty_window(replay), _open_questions(replay, doubts, left_out)
    )
    return Comparison(
        source="recorded",
        recorded=recorded,
        compared=compared,
        not_compared=left_out,
        compared_from=_compared_from(replay),
        attempts=counters["expected_attempts"],
        matched=counters["matched"],
        mismatched=counters["mismatched"],
        missing=counters["missing"],
        unexpected=counters["unexpected"],
        get_page=get_page,
        probes=probes,
        flushes_expected=counters["flushes_expected"],
        verdict=verdict,
        reasons=reasons,
        differences=_recorded_differences(replay),
    )


def _lines(counters: Mapping[str, int | None], *names: str) -> Lines:
    """The sum of the counters NAME_recorded, NAME_unknown, NAME_matched and NAME_absent over ``names``."""
    recorded, unknown, matched, absent = (
        sum(counters[f"{name}_{what}"] or 0 for name in names)
        for what in ("recorded", "unknown", "matched", "absent")
    )
    return Lines(recorded, recorded - unknown, matched, absent)


def _line_reasons(name: str, lines: Lines) -> Iterator[str]:
    if lines.matched != lines.compared:
        yield f"{lines.compared - lines.matched:,} of {lines.compared:,} {name} differ"
    if lines.absent:
        yield f"{lines.absent:,} {name} simulated but not recorded"


def _open_questions(replay: Replay, doubts: Sequence[Doubt], left_out: Mapping[str, int]) -> list[str]:
    """Why not everything could be compared; a vCPU's own lazy splits are not a reason."""
    # a line that is simulated but not recorded is not in left_out, but it is an open question too
    silent = [reason_of(doubts, vm) for vm in sorted(replay.unproven) if not replay.unknown.get(vm)]
    doubtful = [*_unrecorded(replay, silent), *_flush_reasons(replay, doubted=True)]
    shown = {*left_out, *silent, *NEVER_MATCH}
    if doubtful or "no_window" in left_out:
        shown.add("missing_kind")
    reasons = [doubt.text for doubt in doubts if doubt.reason in shown]
    reasons += [text for kind, text in _UNSHOWN.items() if replay.unshown.get(kind)]
    if "before_trace" in shown:
        reasons.append(_before_trace(replay))
    for reason, count in left_out.items():
        if reason != "fault_time":
            lines = f"{count:,} recorded {'line' if count == 1 else 'lines'}"
            reasons.append(f"{lines} not compared: {REASONS[reason]}")
    return [*reasons, *doubtful]


def _unrecorded(replay: Replay, silent: Sequence[str]) -> Iterator[str]:
    """Attempts and lines that the recording lacks, which proves nothing; ``silent``: a reason per VM."""
    count = replay.counters["unknown_attempts"]
    if count:
        attempts = "attempt" if count == 1 else "attempts"
        yield f"{count:,} {attempts} simulated but not recorded: not all of the state was known"
    if silent:
        yield f"lines that were simulated but not recorded prove nothing: {REASONS[silent[0]]}"


def _compared_from(replay: Replay) -> int | None:
    return replay.last_unproven + 1 if replay.last_split > replay.last_unproven else None


def _before_trace(replay: Replay) -> str:
    vms = {*replay.unknown, *replay.unproven}
    # a fast zap of all pages makes a VM's state known, so at the end it may no longer be in doubt
    lines = [replay.older.get(vm, replay.unproven.get(vm, 0)) for vm in vms]
    line = min(lines, default=0)
    shown = f"line {line:,} shows older state" if line else "the creation of its first root is missing"
    begin = _compared_from(replay)
    rest = f"; from line {begin:,} everything is compared" if begin and begin > 1 else ""
    return f"the trace begins in the middle of a VM's life: {shown}{rest}"


def _has_empty_window(replay: Replay) -> bool:
    """A probe opened a window in which nothing was recorded: this is compared, too."""
    rows = replay.windows.select(["cause", "doubted"]).to_pylist()
    return any(row["cause"] not in _WHAT_IF and not row["doubted"] for row in rows)


def verdict_of(
    differing: Sequence[str], is_compared: bool, open_questions: Sequence[str]
) -> tuple[str, list[str]]:
    """The verdict, and the reasons why it is not ``match``."""
    reasons = [*differing, *open_questions]
    if differing:
        return "mismatch", reasons
    if not is_compared:
        return "unchecked", reasons or ["nothing could be compared"]
    return ("partial" if open_questions else "match"), reasons


def attempt_reasons(counts: Mapping[str, int | None]) -> list[str]:
    """One text for each way in which attempts differ; ``counts`` are by the words of ``MATCH_TEXTS``."""
    return [
        f"{count:,} {'attempt' if count == 1 else 'attempts'} {text}"
        for name, text in MATCH_TEXTS.items()
        if (count := counts[name])
    ]


def _flush_reasons(replay: Replay, doubted: bool) -> list[str]:
    """Windows whose simulated flushes differ from the recorded ones; ``doubted``: those with doubts."""
    columns = replay.windows.select(
        ["index", "cause", "doubted", "flushes_total", "flushes_recorded"]
    ).to_pylist()
    differing = [
        row
        for row in columns
        if row["cause"] not in _WHAT_IF
        and row["doubted"] == doubted
        and row["flushes_recorded"] is not None
        and row["flushes_recorded"] != row["flushes_total"]
    ]
    if not differing:
        return []
    windows = f"in {len(differing)} of {len(columns)} windows"
    if doubted:
        return [f"flushes not compared {windows}: not all of the state was known, or the trace ends there"]
    first = differing[0]
    return [
        f"flushes differ {windows}, first in window {first['index']}: "
        f"{first['flushes_recorded']} recorded, {first['flushes_total']} simulated"
    ]


def _flush_places(lines: Lines) -> list[str]:
    """Flushes whose place among the lines of their window is not the simulated one."""
    count = max(lines.compared - lines.matched, lines.absent)
    return [f"{count:,} of {lines.compared:,} flushes recorded in a different place"] if count else []


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
    """An attempt in the form of its trace line, kvm_mmu_split_huge_page."""
    gfn, spte, level, errno = (row[prefix + name] for name in _RECORDED)
    text = " ".join(
        f"{name} {'?' if value is None else f'{value:x}'}" for name, value in (("gfn", gfn), ("spte", spte))
    )
    return f"{text} level {level} errno {'none' if errno is None else errno}"
