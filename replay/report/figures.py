"""Counts as text."""

from __future__ import annotations

from collections.abc import Mapping


def words(counts: Mapping[str, int | None]) -> str:
    """The counts that are not 0, each with its name."""
    return ", ".join(f"{count:,} {name}" for name, count in counts.items() if count)


def number(count: int | None) -> str:
    """A count, ``?`` if it is unknown."""
    return "?" if count is None else f"{count:,}"
