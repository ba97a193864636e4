"""Lines that a mailer has wrapped: an event's text goes on in the lines below it."""

from __future__ import annotations

import re

from replay.schema import EVENT_NAMES, Kind

MAX_LINES, MAX_BYTES = 4, 1200
"""An event is looked for in so many lines and bytes."""

_QUOTE = re.compile(rb"^[\s>|]+")
_NAMES = "|".join(name for kind, name in EVENT_NAMES.items() if kind < Kind.MARK_VM_CREATE)
_BEGINS = re.compile(
    rb"(?:\w+:)?(?:"
    + _NAMES.encode()
    + rb"):|CPU:\d+ \[|#|=>|<stack|-{3}|.*?(?:\[-?\d+\]\s.*?\d:(?:\s|$)|\dus.:)"
)


def joined(text: bytes) -> tuple[bytes, int] | None:
    """The line at the beginning of ``text`` with what belongs to it of the lines below.

    Gives the line and the number of lines that it took; None where no line below goes on with it.
    """
    lines = text[:MAX_BYTES].split(b"\n")
    if len(text) > MAX_BYTES:
        lines.pop()
    parts = [lines[0].rstrip()]
    for line in lines[1 : MAX_LINES + 1]:
        part = _QUOTE.sub(b"", line).rstrip()
        if not part or _BEGINS.match(part):
            break
        parts.append(part)
    return (b" ".join(parts), len(parts)) if len(parts) > 1 else None
