"""What mail programs and terminals put among the words of a trace: colours, and blanks of other kinds."""

from __future__ import annotations

import re

_WIDTHLESS = "\u00ad\u200b\u200c\u200d\u200e\u200f\u2028\u2029\u202a\u202b\u202c\u202d\u202e\u2060\ufeff"
"""Soft hyphen, zero-width characters, marks of direction, U+FEFF: of no width, so that they are nothing."""
_WIDE = "\u00a0\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f\u205f\u3000"
"""No-break space and other blanks."""
STRANGE = tuple(character.encode() for character in _WIDTHLESS + _WIDE)
"""Two or three bytes each."""
SPELLED_ESC = (b"^[", b"ESC", b"#033", b"\\033")
"""ESC, as cat -v, less, syslog and C write it."""

_ESC = rb"(?:\x1b|" + b"|".join(map(re.escape, SPELLED_ESC)) + rb")"
# ECMA-48: control sequences (colours are some of them), strings up to their end (links), the rest
_NOTHING = re.compile(
    _ESC + rb"\[[0-?]*[ -/]*[@-~]?"
    rb"|\x1b[\]P^_X][^\x07\x1b\n]*(?:\x07|\x1b\\)?"
    rb"|\x1b[ -/]*[0-~]?|" + b"|".join(character.encode() for character in _WIDTHLESS)
)
_BLANK = re.compile(rb"\t|" + b"|".join(character.encode() for character in _WIDE))


def undecorate(text: bytes) -> bytes:
    """``text`` with nothing in place of colours, and blanks in place of what looks like them."""
    return _BLANK.sub(b" ", _NOTHING.sub(b"", text))


def is_decorated(text: bytes) -> bool:
    """``undecorate`` would do more than replace tabs."""
    return undecorate(text) != text.replace(b"\t", b" ")
