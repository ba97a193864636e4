"""The progress and the result of a bulk run."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import IO, Any

from rich.console import Console
from rich.table import Table

from replay.printable import printable
from replay.report.console import print_line, print_table
from replay.report.figures import number
from replay.report.progress import ERASE_LINE, REDRAW_SECONDS

LOG_SECONDS = 10.0
"""Seconds between two lines if standard error is not a terminal."""


class BulkProgress:
    """One line that is redrawn on a terminal, otherwise a line from time to time."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self._terminal = stream.isatty()
        self._told = self._begun = time.monotonic()
        self._traces = self._cost = 0
        self._done = self._done_cost = self._bad = 0
        self._replayed = self._replayed_cost = self._replayed_text = 0
        self._drawn = False

    def say(self, line: str) -> None:
        """Write a separate line."""
        self.erase()
        self._stream.write(f"replay: {printable(line)}\n")
        self._stream.flush()

    def begin(self, traces: int, cost: int) -> None:
        """Set the number of traces, and their cost in bytes of text."""
        self._traces, self._cost = traces, cost
        self._told = self._begun = time.monotonic()

    def advance(self, cost: int, text_bytes: int, verdicts: Mapping[str, str]) -> None:
        """One more trace has been replayed, or, without a verdict, had been before."""
        self._done += 1
        self._done_cost += cost
        if verdicts:
            self._replayed += 1
            self._replayed_cost += cost
            self._replayed_text += text_bytes
        self._bad += any(verdict in ("mismatch", "error") for verdict in verdicts.values())
        now = time.monotonic()
        if now - self._told < (REDRAW_SECONDS if self._terminal else LOG_SECONDS):
            return
        self._told = now
        if self._terminal:
            self._stream.write(f"{ERASE_LINE}{self._line(now)}")
            self._stream.flush()
            self._drawn = True
        else:
            self.say(self._line(now))

    def erase(self) -> None:
        """Leave nothing on the terminal."""
        if self._drawn:
            self._stream.write(ERASE_LINE)
            self._stream.flush()
            self._drawn = False

    def _line(self, now: float) -> str:
        seconds = max(now - self._begun, 1e-9)
        line = f"{self._done:,} of {self._traces:,} traces"
        if self._replayed:
            left = (self._cost - self._done_cost) * seconds / self._replayed_cost
            line += f", {self._replayed / seconds:,.0f}/s, {self._replayed_text / seconds / 1e6:,.0f} MB/s"
            line += f", {_duration(left)} to go"
        return line + (f", {self._bad:,} bad" if self._bad else "")


class Silence:
    """Reports nothing."""

    def say(self, line: str) -> None: ...
    def begin(self, traces: int, cost: int) -> None: ...
    def advance(self, cost: int, text_bytes: int, verdicts: Mapping[str, str]) -> None: ...


@contextmanager
def bulk_progress(stream: IO[str], quiet: bool) -> Iterator[BulkProgress | Silence]:
    """The progress display of a bulk run."""
    if quiet:
        yield Silence()
        return
    progress = BulkProgress(stream)
    try:
        yield progress
    finally:
        progress.erase()


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def print_bulk(out: Console, document: Mapping[str, Any]) -> None:
    """Print a ``replay.bulk/1`` document: verdicts by policy, and what is worst."""
    replayed, peak = document["replayed"], document["peak_bytes"]
    spent = f" in {_duration(document['seconds'])}" if replayed else ""
    print_line(
        out,
        f"{document['directory']}: {number(document['traces'])} traces, {number(replayed)} replayed"
        f"{spent}, "
        f"{number(document['kept'])} done before" + (f", {peak >> 20:,} MiB at most" if peak else ""),
    )
    print_line(out)
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    words = ("match", "mismatch", "unchecked", "error")
    table.add_column("policy")
    for word in words:
        table.add_column(word, justify="right")
    for policy, by_word in document["verdicts"].items():
        table.add_row(policy, *(number(by_word.get(word, 0)) for word in words))
    print_table(out, table)
    if worst := document["worst"]:
        print_line(out)
        bad = document["failed"] + document["mismatched"]
        print_line(out, "worst" + (f" ({len(worst)} of {number(bad)})" if bad > len(worst) else ""))
        for row in worst:
            print_line(out, f"  {row['path']}, policy {row['policy']}: {_what(row)}")


def _what(row: Mapping[str, Any]) -> str:
    if row["error_code"] is not None:
        line = f"line {row['error_line']}: " if row["error_line"] else ""
        return f"ERROR {row['error_code']}: {line}{row['error_message']}"
    if row["differing"]:
        return f"mismatch: {number(row['differing'])} attempts differ, {number(row['attempts'])} expected"
    return f"mismatch: {row['reasons'][0]}"


def print_rows(out: Console, names: list[str], rows: list[tuple[Any, ...]], shown: int) -> None:
    """Print the answer to a query, the first ``shown`` rows of it."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for index, name in enumerate(names):
        is_number = all(isinstance(row[index], (int, float, type(None))) for row in rows)
        table.add_column(printable(name), justify="right" if is_number else "left", overflow="fold")
    for row in rows[:shown]:
        table.add_row(*("" if value is None else printable(str(value)) for value in row))
    print_table(out, table)
    if len(rows) > shown:
        print_line(out, f"({number(len(rows) - shown)} more rows: --csv, --json or -o have all)")
