"""Lines that a mailer has wrapped: an event's text goes on in the lines below it.

Mailers break lines at blanks.  What cuts them at a column, amid words, shows where it cut an event's name.
"""

from __future__ import annotations

import re

from replay.schema import EVENT_NAMES, Kind

MAX_LINES = 16
"""An event takes so many lines at most; the texts of markers can be long."""

_LOOKED_AT = 400
"""Bytes of a line that tell whether it begins an event."""

_QUOTE = b" \t\r\v\f>|"
_EVENTS = frozenset(
    name.encode()
    for name in (
        *(name for kind, name in EVENT_NAMES.items() if kind < Kind.MARK_VM_CREATE),
        "tracing_mark_write",
        "print",
        "bprint",
    )
)
_NAMED = re.compile(rb"(?:^|[\s>:])(\w+):(?=\s|$)")
_HEADER = re.compile(rb".*?(?:\[-?\d+\]\s.*?\d:(?:\s|$)|\d\.\d{6,9}: |\dus.:)")
_OTHER_BEGINS = (b"#", b"=>", b"<stack", b"---")
_LOST = re.compile(rb"CPU:\d+ \[")
_PAIRS = re.compile(rb"(?:\w+=\S+\s*)+$")


_CUT_HEADER = re.compile(rb"[^\n]*-\d+\s[^\n]*?\[\d+\](?:\s+[dDbX.][^\s:]{3,4})?(?:\s+\d+\.\d{6,9}:)?\s*")


_CUT_NAME = re.compile(rb"[^\n]*?(?:\[-?\d+\]\s[^\n]*?\d|\d\.\d{6,9}|\dus.):\s+(?:\w+:)?(\w+)")
_NAME_GOES_ON = re.compile(rb"(\w*):(?:\s|$)")
_OPEN_VALUE = re.compile(rb"\w=\w*$")
_VALUE_GOES_ON = re.compile(rb"[0-9a-f]+(?:\s+\w+=\S*)*$")


def _cut_name(line: bytes) -> bytes | None:
    """The word that a line ends with right after its header: a name, or its beginning."""
    line = line.rstrip(b"\r\n")
    if len(line) > _LOOKED_AT or not line.rpartition(b" ")[0].rstrip().endswith(b":"):
        return None
    cut = _CUT_NAME.fullmatch(line)
    return cut[1] if cut else None


def is_cut_header(line: bytes) -> bool:
    """A mailer has cut the line amid the header, or before the event's name."""
    if len(line) > _LOOKED_AT or b"]" not in line or b": " in line.rstrip():
        return False
    return _CUT_HEADER.fullmatch(line) is not None


def _has_event(line: bytes) -> bool:
    return any(name in _EVENTS for name in _NAMED.findall(line))


def _begins(part: bytes) -> bool:
    """A line, without quotes, is not the rest of another."""
    if part.startswith(_OTHER_BEGINS) or is_cut_header(part):
        return True
    return b":" in part and bool(_HEADER.match(part) or _LOST.match(part) or _has_event(part))


def goes_on(lines: list[bytes]) -> int:
    """Number of lines, 0 to ``MAX_LINES - 1``, behind the first one that go on with its event."""
    is_marker = b"tracing_mark_write:" in lines[0]
    is_cut_before_text = lines[0].rstrip().endswith(b":")
    count = 0
    for line in lines[1:MAX_LINES]:
        part = line[:_LOOKED_AT].lstrip(_QUOTE).rstrip()
        if count == 0 and is_cut_before_text and part and not _HEADER.match(part):
            count, is_marker = 1, is_marker or b"tracing_mark_write:" in part
            continue
        if not part or _begins(part) or (is_marker and not _PAIRS.match(part)):
            break
        count += 1
    return count


def last_event(text: bytes) -> int:
    """Where the last line of whole lines begins that may go on behind them; their end if there is none."""
    end = len(text)
    for _ in range(MAX_LINES):
        begin = text.rfind(b"\n", 0, max(0, end - 1)) + 1
        line = text[begin : min(end, begin + _LOOKED_AT)]
        if _has_event(line) or _cut_name(line):
            return begin
        end = begin
    return len(text)


def unwrap(text: bytes) -> bytes:
    """``text`` with each wrapped event on one line; the lines that it took besides become blank."""
    lines = text.split(b"\n")
    number = 0
    while number < len(lines):
        if is_cut_header(lines[number]) and number + 1 < len(lines) and _has_event(lines[number + 1]):
            whole = b" ".join([lines[number].rstrip(), lines[number + 1].lstrip(_QUOTE)])
            lines[number : number + 2] = [b"", whole]
            number += 1
        more = 0
        if cut := _cut_name(lines[number]):
            more = _cut_at_column(lines[number : number + MAX_LINES], cut)
            lines[number] = b"".join([line.rstrip(b"\r") for line in lines[number : number + 1 + more]])
        elif _has_event(lines[number]):
            more = goes_on(lines[number : number + MAX_LINES])
            lines[number] = _joined(lines[number : number + 1 + more])
        lines[number + 1 : number + 1 + more] = [b""] * more
        number += 1 + more
    return b"\n".join(lines)


def _joined(lines: list[bytes]) -> bytes:
    """Lines that were broken at blanks as one; the value of a probe's argument may have been broken, too."""
    if len(lines) == 1:
        return lines[0]
    whole = lines[0].rstrip()
    for line in lines[1:]:
        part = line.lstrip(_QUOTE).rstrip()
        is_value = b": (" in whole and _OPEN_VALUE.search(whole) and _VALUE_GOES_ON.match(part)
        whole += part if is_value else b" " + part
    return whole


def _cut_at_column(lines: list[bytes], name: bytes) -> int:
    """Number of lines behind the first that go on with it, which ends amid the ``name`` of an event."""
    rest = _NAME_GOES_ON.match(lines[1]) if len(lines) > 1 else None
    if not rest or name + rest[1] not in _EVENTS:
        return 0
    width, count = len(lines[0].rstrip(b"\r")), 1
    while count + 1 < len(lines) and len(lines[count].rstrip(b"\r")) == width:
        if not lines[count + 1] or _begins(lines[count + 1].lstrip(_QUOTE)):
            break
        count += 1
    return count
