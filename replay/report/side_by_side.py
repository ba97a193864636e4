"""Runs of one trace under several policies, one column per policy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from replay.report.console import FAULT_TITLES, SHADOW_PAGE_BYTES, print_line, print_table, trace_line
from replay.report.figures import number

_SPLITS = {"attempts": "attempts", "split": "split", "partial": "split in part"}
_PAGES = {
    "sptes_installed": "SPTEs installed",
    "sptes_reused": "SPTEs already there",
    "sptes_left_nonpresent": "SPTEs left non-present",
    "shadow_pages_created": "shadow pages created",
    "shadow_pages_reused": "shadow pages reused",
    "shadow_pages_leaked": "shadow pages LEAKED",
    "shadow_pages_used_peak": "shadow pages in use at most",
}
HEADER_BYTES = 184
"""sizeof(struct kvm_mmu_page) of 6.1 on x86-64."""
_FLUSHES = {"total": "flushes", "lost": "lock drops with a flush pending"}


def print_side_by_side(out: Console, documents: Sequence[Mapping[str, Any]]) -> None:
    """Print figures of ``replay.run/1`` documents of one trace, without rows that are 0 in all of them."""
    print_line(out, trace_line(documents[0]["trace"]))
    print_line(out)
    _print_columns(out, documents)


def print_alternative(out: Console, document: Mapping[str, Any], other: Mapping[str, Any] | None) -> None:
    """Print, below the summary of ``document``, its figures beside those of the other policy.

    Nothing if the kernel is known; one line if ``other`` was not run because it cannot differ.
    """
    alternative = document["policy"]["alternative"]
    if alternative is None or not document["trace"]["kvmmmu_events"]:
        return
    print_line(out)
    if other is None:
        name = document["policy"]["name"]
        print_line(out, f"{alternative} gives the same result as {name}: no huge SPTE in the shadow MMU")
        return
    print_line(
        out, "nothing identifies the kernel, so here are both (use --kernel RELEASE or --kernel host):"
    )
    _print_columns(out, [document, other])


def _print_columns(out: Console, documents: Sequence[Mapping[str, Any]]) -> None:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("", no_wrap=True)
    for document in documents:
        table.add_column(document["policy"]["name"], justify="right", overflow="fold")
    for title, counts in _rows(documents):
        if title == "attempts" or any(count != 0 for count in counts):
            table.add_row(title, *map(number, counts))
    if any(document["expected"]["source"] != "none" for document in documents):
        table.add_row(
            "recorded split lines matched", *(_matched(document["expected"]) for document in documents)
        )
    print_table(out, table)


def _rows(documents: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, list[int | None]]]:
    totals = [document["totals"] for document in documents]
    for name, title in _SPLITS.items():
        yield title, [each[name] for each in totals]
    for word in totals[0]["skipped"]:
        yield f"left huge: {word}", [each["skipped"][word] for each in totals]
    for name, title in _PAGES.items():
        yield title, [each[name] for each in totals]
    yield "page-table bytes of splits", [_page_table_bytes(each) for each in totals]
    yield "retries", [each["retries"] for each in totals]
    for word in totals[0]["flushes"]:
        yield _FLUSHES.get(word, f"flushes: {word}"), [each["flushes"][word] for each in totals]
    for word, title in FAULT_TITLES.items():
        yield f"faults {title}", [document["faults"][word] for document in documents]
    yield "TDP MMU: split", [document["tdp"]["split"] for document in documents]
    for word, title in FAULT_TITLES.items():
        yield f"TDP MMU: faults {title}", [document["tdp"]["faults"][word] for document in documents]


def _page_table_bytes(totals: Mapping[str, Any]) -> int | None:
    """Shadow pages that splits allocated, including leaked ones: the table and its header."""
    created, leaked = totals["shadow_pages_created"], totals["shadow_pages_leaked"]
    if created is None or leaked is None:
        return None
    return int(created + leaked) * (SHADOW_PAGE_BYTES + HEADER_BYTES)


def _matched(expected: Mapping[str, Any]) -> str:
    return f"{number(expected['matched'])} of {number(expected['attempts'])}"
