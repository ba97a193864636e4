"""What tools print about tracepoints that is no trace of events: recognised, to say what to do instead."""

from __future__ import annotations

import re
from typing import NamedTuple


class _Text(NamedTuple):
    pattern: re.Pattern[bytes]
    message: str


def _text(pattern: bytes, message: str) -> _Text:
    return _Text(re.compile(rb"^[ \t]*(?:" + pattern + rb")", re.MULTILINE), message)


_TEXTS = (
    _text(
        rb"# trigger info: hist:|\{ \w+: .*\} +hitcount: ",
        "a histogram of a hist trigger: enable the events themselves and read the file trace",
    ),
    _text(
        rb"Performance counter stats for |#? +time +counts unit events|[\d,.]+ +[\w-]+:\w+ *(?:#.*)?\r?$",
        "counts of perf stat: perf record keeps the events",
    ),
    _text(
        rb"Attaching \d+ probes?\.\.\.|Attached \d+ probes?|@\w*(?:\[[^\]\n]*\])?:[ \r\n]",
        "output of bpftrace: record the events with trace-cmd or perf",
    ),
    _text(
        rb"\d+\.\d{3} (?:\( *(?:\d+\.\d{3} ms)? *\): |[^\n:]*?[\w-]+:\w+[(:])",
        "output of perf trace: perf record keeps the events, perf script prints them",
    ),
    _text(rb"Analyze events for (?:all VMs|pid)", "statistics of perf kvm: perf record keeps the events"),
    _text(rb"# Samples: |# Overhead  ", "a report of perf: perf script prints the events"),
    _text(rb"kvm statistics - summary", "counts of kvm_stat: record the events with trace-cmd or perf"),
)


def other_text(head: bytes) -> str | None:
    """What a text is that begins with ``head`` and has no event, with a remedy; None if nobody knows."""
    return next((text.message for text in _TEXTS if text.pattern.search(head)), None)
