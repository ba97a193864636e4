"""Text that may hold anything, as a terminal may be sent it: control characters are shown, not obeyed."""

from __future__ import annotations


def printable(text: str) -> str:
    """``text`` as one line, with escapes such as ``\\x1b`` in place of what does not print.

    Control characters, marks that turn the direction of writing, bytes of a name that are no UTF-8.
    """
    if text.isprintable():
        return text
    return "".join(character if character.isprintable() else _escaped(character) for character in text)


def printable_lines(text: str) -> str:
    """As ``printable``, where ``text`` has several lines."""
    if text.isprintable():
        return text
    return "\n".join(map(printable, text.split("\n")))


def _escaped(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that could not be decoded
        return f"\\x{code - 0xDC00:02x}"
    return character.encode("unicode_escape", "backslashreplace").decode("ascii")
