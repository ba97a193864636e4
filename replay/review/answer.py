"""The parts of an answer, and its JSON form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Cell = str | int | float | None
"""None for a figure that cannot be known."""


@dataclass(frozen=True)
class Table:
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]

    def document(self) -> dict[str, Any]:
        return {"title": self.title, "columns": list(self.columns), "rows": [list(row) for row in self.rows]}


@dataclass(frozen=True)
class Answer:
    """The answer in one line, its figures, how they were computed, and what they do not show."""

    answer: str
    figures: Mapping[str, Cell]
    computed: str
    tables: list[Table] = field(default_factory=list)
    not_known: list[str] = field(default_factory=list)

    def document(self) -> dict[str, Any]:
        return {
            "answer": self.answer,
            "figures": dict(self.figures),
            "tables": [table.document() for table in self.tables],
            "computed": self.computed,
            "not_known": self.not_known,
        }


def share(part: int, whole: int) -> float | None:
    """``part`` of ``whole``, None if ``whole`` is 0."""
    return round(part / whole, 4) if whole else None


def percent(part: int, whole: int) -> str:
    """``part`` of ``whole`` as text with one decimal, ``?`` if ``whole`` is 0."""
    return f"{100 * part / whole:.1f} %" if whole else "?"


def many(count: int, thing: str, plural: str = "") -> str:
    """A count with its noun in the singular or plural; ``plural`` where it does not end in s."""
    return f"{count:,} {thing if count == 1 else plural or thing + 's'}"
