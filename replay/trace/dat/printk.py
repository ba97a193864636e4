"""The text of ``trace_printk``: records that hold the address of a format and arguments in binary.

Kernel: ``vbin_printf`` of lib/vsprintf.c; a string without arguments comes as a record ``bputs``, which has
only its address.  Formats and strings are in the file, by address.
"""

from __future__ import annotations

import re

_CONVERSION = re.compile(r"%([-+ #0]*)(\d{1,2}|\*)?(?:\.(\d{1,2}|\*))?(hh|h|ll|l|z|t)?([diouxXcsp%])")
_MAX_WIDTH = 99
_SIZES = {"hh": 1, "h": 2, "": 4, "l": 8, "ll": 8, "z": 8, "t": 8}


class _Arguments:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def number(self, size: int, is_signed: bool) -> int:
        align = min(size, 4)
        self._at = -(-self._at // align) * align
        value = int.from_bytes(self._data[self._at : self._at + size], "little", signed=is_signed)
        self._at += size
        return value

    def string(self) -> str:
        end = self._data.find(0, self._at)
        text = self._data[self._at : end if end >= 0 else len(self._data)]
        self._at += len(text) + 1
        return text.decode(errors="replace")


def printed(form: str, data: bytes) -> str:
    """``form``, as printk_formats lists it, with the arguments in ``data``."""
    arguments = _Arguments(data)

    def value(found: re.Match[str]) -> str:
        flags, width, precision, length, kind = found.groups(default="")
        if kind == "%":
            return "%"
        sizes = [
            str(min(max(arguments.number(4, True), 0), _MAX_WIDTH)) if one == "*" else one
            for one in (width, precision)
        ]
        if kind == "s":
            return arguments.string()
        if kind == "c":
            return chr(arguments.number(1, False))
        if kind == "p":
            return f"{arguments.number(8, False):016x}"
        number = arguments.number(_SIZES[length], kind in "di")
        point = f".{sizes[1]}" if sizes[1] else ""
        return f"%{flags}{sizes[0]}{point}{'d' if kind == 'u' else kind}" % number

    return _CONVERSION.sub(value, form.replace("\\n", "\n").replace('\\"', '"'))
