"""Makes any text safe for a terminal: control characters are shown, not executed."""

from __future__ import annotations


def printable(text: str) -> str:
    """``text`` as one line, with escapes (``\\x1b``) for characters that cannot be printed.

    These are control characters, marks that change the direction of writing, and bytes that are not UTF-8.
    """
    if text.isprintable():
        return text
    return "".join(character if character.isprintable() else _escaped(character) for character in text)


def printable_lines(text: str) -> str:
    """As ``printable``, for several lines of text."""
    if text.isprintable():
        return text
    return "\n".join(map(printable, text.split("\n")))


def _escaped(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that could not be decoded
        return f"\\x{code - 0xDC00:02x}"
    return character.encode("unicode_escape", "backslashreplace").decode("ascii")
