"""The ``format`` files of events: where the fields of a record are."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
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
    """An event as the kernel that recorded it laid it out.  Most are never asked for more than their name."""

    system: str
    name: str
    number: int  # common_type of its records
    text: str

    @cached_property
    def fields(self) -> dict[str, Field]:
        """The fields by name."""
        fields: dict[str, Field] = {}
        for declaration, offset, size, signed in _FIELD.findall(self.text):
            declared = _DECLARED.search(declaration)
            if declared is None:
                continue
            is_number = "[" not in declaration and int(size) in (1, 2, 4, 8)
            fields.setdefault(declared[1], Field(int(offset), int(size), signed == "1", is_number))
        return fields

    @property
    def print_format(self) -> str:
        """How the kernel prints it."""
        printed = _PRINT.search(self.text)
        return printed[1] if printed else ""


def parse_format(system: str, text: str) -> Format | None:
    """The format of one event; None if the text is none."""
    name, number = _NAME.search(text), _ID.search(text)
    if not name or not number:
        return None
    return Format(system, name[1], int(number[1]), text)
