"""Doubts: what a trace does not show, so that a difference from it proves nothing.

``replay run`` and ``replay info`` call the same function, :func:`doubts_of`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from replay.schema import EVENT_NAMES

if TYPE_CHECKING:
    from replay.mmu.evidence.facts import TraceFacts
    from replay.trace.trace import Trace

REASONS = {
    "missing_kind": "the trace lacks events that the model needs",
    "form": "the form of the text omits fields or mixes up times",
    "lost_events": "events were lost",
    "malformed_lines": "lines cannot be read",
    "before_trace": "they depend on state older than the trace",
    "fault_time": "splits by a vCPU's fault",
    "no_window": "no line shows to which window they belong",
}
"""The keys of ``expected.not_compared`` in the document, and what they mean."""

NEVER_MATCH = ("lost_events", "malformed_lines")
"""A lost line may have been an outcome, so the verdict cannot be ``match``."""


@dataclass(frozen=True)
class Doubt:
    """One thing that a trace does not show."""

    reason: str
    """A key of ``REASONS``."""
    text: str
    vm: int | None = None
    """The VM that it concerns; None for all."""
    line: int = 0
    """The line from which it applies."""


def doubts_of(
    trace: Trace, facts: TraceFacts, allow_lost: bool = False, shadow_only: bool = False
) -> list[Doubt]:
    """What ``trace`` leaves open, the most serious first.  Only replaying a trace shows state older than it.

    ``shadow_only``: the recorded kernel is known to split also without a TDP MMU.
    """
    doubts = list(_missing_kinds(facts, trace.losses, shadow_only))
    if trace.losses:
        from replay.trace.formats import better_form

        lines = ", ".join(f"{what}: {count:,} lines" for what, count in trace.losses.items())
        doubts.append(Doubt("form", f"{lines}; {better_form(trace.format)}"))
    if trace.lost_events and not allow_lost:
        text = f"events lost: {trace.lost_events:,}, so a match would prove nothing (--allow-lost)"
        doubts.append(Doubt("lost_events", text, line=facts.first_lost_line))
    if back := trace.notes.get("time_back"):
        first = back["first_line"]
        text = f"time goes back, first at line {first:,}: what follows may be from another recording"
        doubts.append(Doubt("form", text, line=first))
    if trace.malformed_lines:
        first, _ = trace.malformed[0]
        text = f"malformed lines: {trace.malformed_lines:,}, first line {first}: their content is unknown"
        doubts.append(Doubt("malformed_lines", text, line=first))
    return doubts


def _missing_kinds(facts: TraceFacts, dropped: Iterable[str], shadow_only: bool) -> Iterator[Doubt]:
    """Kinds of events that were not recorded although the VM has others that never occur without them.

    Lines that the form of the text omits (the texts of ``dropped``) were recorded.
    """
    in_form = {what.split()[0] for what in dropped}
    from replay.mmu.evidence.lacking import lacking

    for vm in range(facts.vms):
        names = [EVENT_NAMES[kind] for kind in lacking(facts, vm, shadow_only)]
        names = [name for name in names if name not in in_form]
        if names:
            last = names.pop()
            listed = f"{', '.join(names)} or {last}" if names else last
            text = f"no {listed} line was recorded, which the model needs"
            yield Doubt("missing_kind", text, vm)


def reason_of(doubts: Sequence[Doubt], vm: int) -> str:
    """Why lines of ``vm`` that depend on something unknown are not compared."""
    return next((doubt.reason for doubt in doubts if doubt.vm in (None, vm)), "before_trace")


def doubtful_from(doubts: Sequence[Doubt], vms: int) -> dict[int, int]:
    """By VM: the first line from which a difference proves nothing."""
    lines = {vm: [doubt.line for doubt in doubts if doubt.vm in (None, vm)] for vm in range(vms)}
    return {vm: min(of_vm) for vm, of_vm in lines.items() if of_vm}
