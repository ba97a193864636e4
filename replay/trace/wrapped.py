"""Lines that a mailer has wrapped: an event's text goes on in the lines below it."""

from __future__ import annotations

import re

from replay.schema import EVENT_NAMES, Kind

MAX_LINES = 16
"""An event takes so many lines at most; the texts of markers can be long."""

_LOOKED_AT = 400
"""Bytes of a line that tell whether it begins an event."""

_QUOTE = re.compile(rb"^[\s>|]+")
_NAME_LIST = "|".join(name for kind, name in EVENT_NAMES.items() if kind < Kind.MARK_VM_CREATE)
_NAMES = rb"(?:\w+:)?(?:" + _NAME_LIST.encode() + rb"|tracing_mark_write):"
_EVENT = re.compile(rb"(?:^|[\s>])(?:" + _NAMES + rb"|b?print:)(?=\s|$)")
_HEADER = rb".*?(?:\[-?\d+\]\s.*?\d:(?:\s|$)|\d\.\d{6,9}: |\dus.:)"
_BEGINS = re.compile(_HEADER + rb"|" + _NAMES + rb"|CPU:\d+ \[|#|=>|<stack|-{3}")
_BEGINS_WITH_HEADER = re.compile(_HEADER)
_PAIRS = re.compile(rb"(?:\w+=\S+\s*)+$")


def goes_on(lines: list[bytes]) -> int:
    """Number of lines, 0 to ``MAX_LINES - 1``, behind the first one that go on with its event."""
    is_marker = b"tracing_mark_write:" in lines[0]
    count = 0
    for line in lines[1:MAX_LINES]:
        part = _QUOTE.sub(b"", line[:_LOOKED_AT]).rstrip()
        if count == 0 and lines[0].rstrip().endswith(b":") and part and not _BEGINS_WITH_HEADER.match(part):
            count, is_marker = 1, is_marker or b"tracing_mark_write:" in part
            continue
        if not part or _BEGINS.match(part) or _EVENT.search(part):
            break
        if is_marker and not _PAIRS.match(part):
            break
        count += 1
    return count


def last_event(text: bytes) -> int:
    """Where the last line of whole lines begins that may go on behind them; their end if there is none."""
    at = len(text)
    for line in reversed(text.splitlines(keepends=True)[-MAX_LINES:]):
        at -= len(line)
        if _EVENT.search(line[:_LOOKED_AT]):
            return at
    return len(text)


def unwrap(text: bytes) -> bytes:
    """``text`` with each wrapped event on one line; the lines that it took besides become blank."""
    lines = text.split(b"\n")
    number = 0
    while number < len(lines):
        if _EVENT.search(lines[number]):
            more = goes_on(lines[number : number + MAX_LINES])
            if more:
                parts = [_QUOTE.sub(b"", line).rstrip() for line in lines[number + 1 : number + 1 + more]]
                lines[number] = b" ".join([lines[number].rstrip(), *parts])
                lines[number + 1 : number + 1 + more] = [b""] * more
            number += more
        number += 1
    return b"\n".join(lines)
