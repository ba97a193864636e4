"""Text of lines: put together in a buffer from texts known beforehand and from numbers.

Parts are put at ``at`` one after the other, each giving the place behind it.
"""

from __future__ import annotations

from replay.jit import jit
from replay.synth.kvm.bytes import EINTR, copy_bytes, write_some
from replay.synth.kvm.state import Model

ZERO, BLANK = 48, 32
NUMBERS_MAX = 512
"""More bytes than the numbers and known texts of any event take."""
FLUSH_COST = 1 << 18
_LENGTH_BITS = 24
_LENGTH = (1 << _LENGTH_BITS) - 1


class Texts:
    """Texts one after the other; a *text* of jitted code is the place and the length of one of them."""

    def __init__(self, before: bytes = b"") -> None:
        self.bytes = bytearray(before)
        self.longest = 0

    def add(self, text: str) -> int:
        """The text as a number."""
        content = text.encode()
        self.bytes += content
        self.longest = max(self.longest, len(content))
        return (len(self.bytes) - len(content)) << _LENGTH_BITS | len(content)


@jit
def put(m: Model, at: int, text: int) -> int:
    """Copy a constant text to the output at ``at``; returns the place after it."""
    length = text & _LENGTH
    copy_bytes(m.out[0], at, m.text[0], text >> _LENGTH_BITS, length)
    return at + length


@jit
def put_hex(m: Model, at: int, value: int, digits: int) -> int:
    """``%llx``, of so many digits at least."""
    rest = value >> 4 * digits & (1 << 64 - 4 * digits) - 1
    while rest:
        digits += 1
        rest >>= 4
    out = m.out[0]
    place = at + digits
    while place > at:
        place -= 1
        digit = value & 15
        out[place] = digit + ZERO + 39 * (digit > 9)
        value >>= 4
    return at + digits


@jit
def put_decimal(m: Model, at: int, value: int, width: int, fill: int) -> int:
    """``%lu``, filled up at the left to ``width`` bytes."""
    digits, limit = 1, 10
    while value >= limit:
        digits += 1
        limit *= 10
    while digits < width:
        m.out[0, at] = fill
        at += 1
        width -= 1
    out, place = m.out[0], at + digits
    while place > at:
        place -= 1
        rest = value // 10
        out[place] = value - 10 * rest + ZERO
        value = rest
    return at + digits


@jit
def flush(m: Model) -> None:
    """Write out what the buffer holds; after an error, which is noted, nothing more is written."""
    first = 0
    count = m.ctl.out
    while first < count and m.ctl.errno == 0:
        written = write_some(m.ctl.fd, m.out[0], first, count - first)
        if written >= 0:
            first += written
        elif written != -EINTR:
            m.ctl.errno = -written
    m.ctl.out = 0
    m.ctl.budget -= FLUSH_COST
