"""The ``format`` files of events: where the fields of a record are."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NamedTuple

_NAME = re.compile(r"^name: (\S+)$", re.MULTILINE)
_ID = re.compile(r"^ID: (\d{1,9})$", re.MULTILINE)
_FIELD = re.compile(r"field:([^;]+);\s*offset:(\d{1,6});\s*size:(\d{1,6});(?:\s*signed:([01]);)?")
_DECLARED = re.compile(r"(\w+)\s*(\[[^\]]*\])?\s*$")
_PRINT = re.compile(r"^print fmt: (.*)", re.MULTILINE | re.DOTALL)


class Field(NamedTuple):
    """A field of a record; ``is_number`` is false for arrays, strings and ``__data_loc``/``__rel_loc``."""

    offset: int
    size: int
    is_signed: bool
    is_number: bool


@dataclass(frozen=True)
class Format:
    """An event as the kernel that recorded it laid it out."""

    system: str
    name: str
    number: int  # common_type of its records
    fields: dict[str, Field]
    print_format: str


def parse_format(system: str, text: str) -> Format | None:
    """The format of one event; None if the text is none."""
    name, number = _NAME.search(text), _ID.search(text)
    if not name or not number:
        return None
    fields: dict[str, Field] = {}
    for declaration, offset, size, signed in _FIELD.findall(text):
        declared = _DECLARED.search(declaration)
        if declared is None:
            continue
        is_number = "[" not in declaration and int(size) in (1, 2, 4, 8)
        fields.setdefault(declared[1], Field(int(offset), int(size), signed == "1", is_number))
    printed = _PRINT.search(text)
    return Format(system, name[1], int(number[1]), fields, printed[1] if printed else "")
