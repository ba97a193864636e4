"""Windows and migrations of a run as tables for a terminal; idle windows are omitted if there are many."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from rich.table import Table

from replay.report.figures import number, words

ALL_WINDOWS = 12
"""With more windows than this, only those in which something happened are listed, and the totals."""
FIRST_WINDOWS, LAST_WINDOWS = 40, 10
"""How many of those are listed at most, from the beginning and from the end."""
ALL_GFNS = 1 << 40
"""The end of a window over all of guest memory: the gfns of 52 physical address bits."""
_WINDOW_COLUMNS = ("#", "vm", "cause", "slot", "gfns", "attempts", "split", "skipped", "retries", "flushes")
_MIGRATION_COLUMNS = (
    *("migration", "vm", "log on", "log off", "slots", "rounds", "windows", "attempts", "split"),
    *("retries", "flushes"),
)
_TDP_COLUMN = "tdp split"
"""For the TDP MMU, splits of attempts; all other figures are for the shadow MMU."""


def windows_table(document: Mapping[str, Any]) -> tuple[Table | None, list[str]]:
    """The windows of a ``replay.run/1`` document, and lines about those that are not listed.

    All if they are few, otherwise those in which something happened; if too many, the shadow MMU's.
    """
    windows = document["windows"]
    busy = list(filter(_did_something, windows))
    shadow = list(filter(_split_shadow_pages, windows))
    others = []
    if len(windows) <= ALL_WINDOWS:
        listed = windows
    else:
        listed = shadow if shadow and len(busy) > FIRST_WINDOWS + LAST_WINDOWS else busy
        if len(listed) < len(busy):
            others.append(f"{number(len(busy) - len(listed))} other windows: attempts only in the TDP MMU")
        if len(busy) < len(windows):
            word = "other " if listed else ""
            others.append(f"{number(len(windows) - len(busy))} {word}windows: no attempt")
    return (_table(listed, document) if listed else None), others


def _split_shadow_pages(window: Mapping[str, Any]) -> bool:
    counts = (window["attempts"], window["retries"], window["flushes"]["total"])
    return any(counts) or any(window["skipped"].values())


def _did_something(window: Mapping[str, Any]) -> bool:
    return _split_shadow_pages(window) or bool(window["tdp"]["attempts"])


def _table(windows: list[Mapping[str, Any]], document: Mapping[str, Any]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    has_tdp = any(window["tdp"]["attempts"] for window in document["windows"])
    for name in (*_WINDOW_COLUMNS, *([_TDP_COLUMN] if has_tdp else [])):
        table.add_column(name, justify="left" if name in ("cause", "gfns", "skipped") else "right")
    for window in _shown(windows):
        if window is None:
            table.add_row("", "", f"({len(windows) - FIRST_WINDOWS - LAST_WINDOWS} more)")
            continue
        slot = "" if window["slot"] is None or window["slot"] < 0 else str(window["slot"])
        table.add_row(
            str(window["index"]),
            "" if window["vm"] is None or window["vm"] < 0 else str(window["vm"]),
            window["cause"],
            slot,
            _gfns(window["start_gfn"], window["end_gfn"]),
            *_results(window),
            *([_tdp(window)] if has_tdp else []),
        )
    if len(document["windows"]) > 1:
        tdp = [_tdp(document)] if has_tdp else []
        table.add_row("all", "", "", "", "", *_results(document["totals"]), *tdp, style="bold")
    return table


def migrations_table(migrations: Iterable[Mapping[str, Any]]) -> Table:
    """One line per migration."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    migrations = list(migrations)
    has_tdp = any(migration["tdp"]["attempts"] for migration in migrations)
    for name in (*_MIGRATION_COLUMNS, *([_TDP_COLUMN] if has_tdp else [])):
        table.add_column(name, justify="right")
    for migration in migrations:
        table.add_row(
            str(migration["index"]),
            str(migration["vm"]),
            _moment(migration["on_ts_ns"], migration["on_line"]),
            _moment(migration["off_ts_ns"], migration["off_line"]),
            number(migration["slots"]),
            number(max(migration["get_dirty_log"], migration["clear_dirty_log"])),
            *(number(migration[name]) for name in ("windows", "attempts", "split", "retries", "flushes")),
            *([_tdp(migration)] if has_tdp else []),
        )
    return table


def _moment(ts_ns: int | None, line: int | None) -> str:
    if line is None:
        return "never"
    return f"line {number(line)}" if ts_ns is None else f"{ts_ns / 1e9:.6f}"


def _tdp(counts: Mapping[str, Any]) -> str:
    tdp = counts["tdp"]
    return f"{number(tdp['split'])} of {number(tdp['attempts'])}" if tdp["attempts"] else "0"


def _shown(windows: list[Mapping[str, Any]]) -> list[Mapping[str, Any] | None]:
    if len(windows) <= FIRST_WINDOWS + LAST_WINDOWS:
        return list(windows)
    return [*windows[:FIRST_WINDOWS], None, *windows[-LAST_WINDOWS:]]


def _results(counts: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        number(counts["attempts"]),
        number(counts["split"]),
        words(counts["skipped"]),
        number(counts["retries"]),
        number(counts["flushes"]["total"]),
    )


def _gfns(start: int | None, end: int | None) -> str:
    if start is None or end is None:
        return ""
    return "all" if start == 0 and end >= ALL_GFNS else f"{start:x}..{end:x}"
