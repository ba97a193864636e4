"""The answers of a review on a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from replay.printable import printable_lines
from replay.report.console import print_line, print_table, trace_line

INDENT = (0, 0, 0, 4)


def print_review(out: Console, document: Mapping[str, Any]) -> None:
    """Print a ``replay.review/1`` document."""
    print_line(out, trace_line(document["trace"]))
    policy = document["policy"]
    print_line(out, f"under review: policy {policy['name']}, {policy['reason']}")
    for answer in document["answers"]:
        print_line(out)
        _print_answer(out, answer)


def _print_answer(out: Console, answer: Mapping[str, Any]) -> None:
    out.print(Text.assemble((f"{answer['question']:<4}{answer['asks']}", "bold")), soft_wrap=True)
    print_table(out, Padding(Text(printable_lines(answer["answer"])), INDENT))
    for table in answer["tables"]:
        if table["rows"]:
            print_table(out, Padding(Text(printable_lines(f"{table['title']}:")), INDENT))
            print_table(out, Padding(_table(table), INDENT))
    for title, texts in (("computed", [answer["computed"]]), ("not known", answer["not_known"])):
        if texts:
            text = printable_lines(f"{title}: {'; '.join(texts)}")
            print_table(out, Padding(Text(text, style="dim"), INDENT))


def _table(table: Mapping[str, Any]) -> Table:
    shown = Table(box=None, padding=(0, 2, 0, 2), header_style="bold")
    for number, column in enumerate(table["columns"]):
        shown.add_column(column, justify="right" if number else "left")
    for row in table["rows"]:
        shown.add_row(*map(_cell, row))
    return shown


def _cell(value: str | int | float | None) -> str:
    if value is None:
        return "?"
    return value if isinstance(value, str) else f"{value:,}"
