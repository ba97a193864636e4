"""What the metadata of an event table tells of its trace: as it is written, and checked as it is read."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import numpy as np

from replay.arrow import Places
from replay.schema import Columns, Kind
from replay.text_files import parse_json
from replay.trace.trace import Trace
from replay.trace.vms import MAX_VMS

METADATA_KEY = b"replay"
TABLE_SCHEMA = "replay.events/1"
_LARGEST = 2**63 - 1

Facts = dict[str, Any]


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value <= _LARGEST


def _is_time(value: Any) -> bool:
    return value is None or (type(value) is int and abs(value) <= _LARGEST)


def _is_word(value: Any) -> bool:
    return value is None or isinstance(value, str)


def _are_words(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(word, str) for word in value)


def _are_different_words(value: Any) -> bool:
    return _are_words(value) and len(set(value)) == len(value)


def _are_vms(value: Any) -> bool:
    return _are_words(value) and len(value) <= MAX_VMS


def _are_counts(value: Any) -> bool:
    return isinstance(value, dict) and all(_is_count(count) for count in value.values())


def _are_notes(value: Any) -> bool:
    return isinstance(value, dict) and all(_are_counts(note) for note in value.values())


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


def _are_lines(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(line, list) and len(line) == 2 and _is_count(line[0]) and isinstance(line[1], str)
        for line in value
    )


_FACTS: Mapping[str, Callable[[Any], bool]] = {
    "bytes": _is_count,
    "lines": _is_count,
    "events": _is_count,
    "kvmmmu_events": _is_count,
    "ignored_lines": _is_count,
    "malformed_lines": _is_count,
    "malformed": _are_lines,
    "ignored_events": _are_counts,
    "lost_events": _is_count,
    "losses": _are_counts,
    "notes": _are_notes,
    "first_ts_ns": _is_time,
    "last_ts_ns": _is_time,
    "vms": _are_vms,
    "comms": _are_different_words,
    "texts": _are_different_words,
    "kernel": _is_word,
    "role_words": _is_flag,
    "truncated": _is_word,
}


_LATER: Facts = {"notes": {}, "role_words": False}
"""Facts that tables of the first releases do not have."""


def table_metadata(trace: Trace) -> dict[bytes, str]:
    """The metadata of the table of ``trace``."""
    facts = {"schema": TABLE_SCHEMA, **{name: getattr(trace, name) for name in _FACTS}}
    return {METADATA_KEY: json.dumps(facts)}


def stored_facts(metadata: Mapping[bytes, bytes] | None) -> Facts | None:
    """The fields of ``Trace`` that ``metadata`` tells; None if it is not there.

    Raises ``ValueError`` where it is not as ``table_metadata`` makes it.
    """
    stored = (metadata or {}).get(METADATA_KEY)
    if stored is None:
        return None
    facts = parse_json(stored.decode())
    schema = facts.get("schema") if isinstance(facts, dict) else None
    if schema != TABLE_SCHEMA:
        raise ValueError(f"no table of events ({TABLE_SCHEMA})")
    facts = _LATER | facts
    for name, is_right in _FACTS.items():
        if name not in facts or not is_right(facts[name]):
            raise ValueError(f"metadata: {name!r} is missing or of another type")
    kept = {name: facts[name] for name in _FACTS}
    kept["malformed"] = [(line, text) for line, text in kept["malformed"]]
    if kept["malformed_lines"] and not kept["malformed"]:
        raise ValueError("metadata: 'malformed' has none of the malformed lines")
    return kept


Read = Callable[[Places, Collection[str], int], Iterator[Columns]]
"""Reads columns, given the numbers of words, the columns needed, and the number of VMs."""


class _Numbers(dict[str, int]):
    """Numbers words as they come."""

    def __missing__(self, word: str) -> int:
        self[word] = len(self)
        return self[word]


def counted_facts(facts: Facts | None, read: Read) -> Facts:
    """``facts`` with what the rows tell in the place of what they tell no more, or by the rows alone."""
    words = {"comm": _Numbers(), "text": _Numbers()}
    events = kvmmmu = lost = vms = 0
    first, last = _LARGEST, 0
    for batch in read(words, ("kind", "vm", "num", "ts_ns", "comm", "text"), MAX_VMS):
        events += len(batch.kind)
        kvmmmu += int(np.count_nonzero(batch.kind <= Kind.SPLIT_HUGE_PAGE))
        lost += int(np.maximum(batch.num[batch.kind == Kind.LOST_EVENTS], 1).sum())
        vms = max(vms, int(batch.vm.max(initial=-1)) + 1)
        first = min(first, int(batch.ts_ns.min(initial=first, where=batch.ts_ns > 0)))
        last = max(last, int(batch.ts_ns.max(initial=last)))
    if facts is None:
        trace = Trace("", "", lost_events=lost, vms=[f"vm{number}" for number in range(vms)])
        facts = {name: getattr(trace, name) for name in _FACTS}
        facts |= {"comms": list(words["comm"]), "texts": list(words["text"])}
    return facts | {
        "events": events,
        "kvmmmu_events": kvmmmu,
        "lines": events + facts["ignored_lines"] + facts["malformed_lines"],
        "first_ts_ns": first if last else None,
        "last_ts_ns": last or None,
    }
