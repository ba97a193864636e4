"""The summary of a run on a terminal: what was replayed, what came of it, and whether it is as expected."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import IO, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from replay.policy import Policy, allowed_values
from replay.verdict.compare import Difference

SHOWN_WINDOWS = 12
"""With more windows than this only the first and last few are listed, and the totals."""
FIRST_WINDOWS, LAST_WINDOWS = 6, 4
PLAIN_WIDTH = 120
"""Columns where standard output is no terminal."""
SHADOW_PAGE_BYTES = 4096

_VERDICT_STYLE = {"match": "bold green", "mismatch": "bold red", "unchecked": "bold yellow"}
_WINDOW_COLUMNS = ("#", "vm", "cause", "slot", "gfns", "attempts", "split", "skipped", "retries", "flushes")


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Leave it to the caller, where rich would exit with code 1."""
        raise


def console(file: IO[str]) -> Console:
    """A console that writes plain text of a fixed width where ``file`` is no terminal."""
    width = None if file.isatty() else PLAIN_WIDTH
    return _Console(file=file, width=width, highlight=False, markup=False)


def print_line(out: Console, text: str = "") -> None:
    """Print one line that is never wrapped, so that it can be searched for and copied."""
    out.print(text, soft_wrap=True)


def _print_table(out: Console, table: Table) -> None:
    """Print a table without the blanks that rich puts at the end of lines."""
    with out.capture() as rendered:
        out.print(table)
    for line in rendered.get().splitlines():
        out.file.write(f"{line.rstrip()}\n")


def print_run(out: Console, document: Mapping[str, Any], differences: Iterable[Difference]) -> None:
    """Print the summary of one run from its ``replay.run/1`` document."""
    print_line(out, _trace_line(document["trace"]))
    policy = document["policy"]
    print_line(out, f"policy {policy['name']}: {policy['reason']}")
    print_line(out)
    if document["windows"]:
        _print_table(out, _windows_table(document["windows"], document["totals"]))
    else:
        print_line(out, "no window: dirty logging is never turned on in this trace")
    print_line(out)
    _print_table(out, _facts(document))
    print_verdict(out, document["verdict"], document["verdict_reasons"], differences)


def print_verdict(
    out: Console, verdict: str, reasons: Iterable[str], differences: Iterable[Difference]
) -> None:
    """Print the verdict, its reasons, and the first attempts that differ."""
    print_line(out)
    out.print(Text.assemble("verdict ", (verdict, _VERDICT_STYLE[verdict])))
    print_reasons(out, reasons, differences)


def print_reasons(out: Console, reasons: Iterable[str], differences: Iterable[Difference]) -> None:
    """Print, indented, what is not as expected and the first attempts that differ."""
    for reason in reasons:
        print_line(out, f"  {reason}")
    for difference in differences:
        print_line(out, f"  {difference.place}")
        print_line(out, f"    expected  {difference.expected or 'no such attempt'}")
        print_line(out, f"    got       {difference.got or 'no such attempt'}")


def print_policies(out: Console, policies: Iterable[Policy], descriptions: Mapping[str, str]) -> None:
    """Print the policies by what sets them apart from the first one, and the knobs with their values."""
    first, *others = policies
    listed = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for name in ("policy", "models", f"differs from {first.name} in"):
        listed.add_column(name, no_wrap=name == "policy")
    listed.add_row(first.name, descriptions[first.name], "")
    for policy in others:
        changed = policy.knobs().items() - first.knobs().items()
        settings = [f"{knob}={_value(value)}" for knob, value in sorted(changed)]
        listed.add_row(policy.name, descriptions[policy.name], " ".join(settings))
    _print_table(out, listed)
    print_line(out)
    knobs = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for name in ("knob", first.name, "values"):
        knobs.add_column(name)
    for knob, value in first.knobs().items():
        knobs.add_row(knob, _value(value), " | ".join(allowed_values(knob)) or "number")
    _print_table(out, knobs)


def _value(value: str | int | bool) -> str:
    return str(value).lower()


def _trace_line(trace: Mapping[str, Any]) -> str:
    vms = len(trace["vms"])
    parts = [
        f"{trace['path']}: {trace['format']}",
        f"{_number(trace['events'])} events ({_number(trace['kvmmmu_events'])} kvmmmu)",
        f"{_number(trace['lines'])} lines",
        f"{vms} {'VM' if vms == 1 else 'VMs'}",
    ]
    if trace["malformed_lines"]:
        parts.append(f"{_number(trace['malformed_lines'])} MALFORMED LINES")
    parts.append(f"{trace['lost_events']} EVENTS LOST" if trace["lost_events"] else "nothing lost")
    return ", ".join(parts)


def _windows_table(windows: list[Mapping[str, Any]], totals: Mapping[str, Any]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for name in _WINDOW_COLUMNS:
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
        )
    if len(windows) > 1:
        table.add_row("all", "", "", "", "", *_results(totals), style="bold")
    return table


def _shown(windows: list[Mapping[str, Any]]) -> list[Mapping[str, Any] | None]:
    if len(windows) <= SHOWN_WINDOWS:
        return list(windows)
    return [*windows[:FIRST_WINDOWS], None, *windows[-LAST_WINDOWS:]]


def _results(counts: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        _number(counts["attempts"]),
        _number(counts["split"]),
        _words(counts["skipped"]),
        _number(counts["retries"]),
        _number(counts["flushes"]["total"]),
    )


def _facts(document: Mapping[str, Any]) -> Table:
    totals, tdp = document["totals"], document["tdp"]
    facts = Table.grid(padding=(0, 2, 0, 0))
    facts.add_column(style="bold")
    facts.add_column()
    levels = ", ".join(
        f"{name.upper()} {_number(level['split'])} of {_number(level['attempts'])}"
        for name, level in totals["by_level"].items()
    )
    facts.add_row(
        "splits", f"{_number(totals['split'])} of {_number(totals['attempts'])} huge SPTEs split ({levels})"
    )
    if totals["partial"]:
        facts.add_row("", f"{_number(totals['partial'])} of them left SPTEs non-present")
    facts.add_row("left huge", _words(totals["skipped"]) or "none")
    facts.add_row(
        "SPTEs",
        f"{_number(totals['sptes_installed'])} installed, "
        f"{_number(totals['sptes_left_nonpresent'])} left non-present, "
        f"{_number(totals['sptes_reused'])} already there",
    )
    facts.add_row("page tables", _memory(totals))
    facts.add_row("flushes", _flushes(totals["flushes"]))
    if totals["retries"]:
        facts.add_row(
            "retries",
            f"{_number(totals['retries'])}: {_number(totals['retries_cache'])} for empty caches, "
            f"{_number(totals['retries_resched'])} for need_resched or contention",
        )
    if tdp["huge_sptes"] or tdp["attempts"]:
        facts.add_row(
            "TDP MMU",
            f"{_number(tdp['split'])} of {_number(tdp['attempts'])} attempts split, "
            f"{_number(tdp['failed'])} failed, {_number(tdp['huge_sptes'])} huge SPTEs at the end",
        )
    facts.add_row("environment", _words(document["environment"]) or "nothing taken from it")
    facts.add_row("divergences", _words(document["divergences"]) or "none")
    facts.add_row("expected", _expected(document["expected"]))
    return facts


def _memory(totals: Mapping[str, Any]) -> str:
    created, leaked = totals["shadow_pages_created"], totals["shadow_pages_leaked"]
    text = f"{_number(created)} shadow pages created ({_bytes(created)})"
    text += f", {_number(totals['shadow_pages_reused'])} reused"
    if leaked:
        text += f", {_number(leaked)} LEAKED ({_bytes(leaked)})"
    return (
        f"{text}; in use {_number(totals['shadow_pages_used_end'])} at the end, "
        f"{_number(totals['shadow_pages_used_peak'])} at most, limit {_number(totals['max_mmu_pages'])}"
    )


def _flushes(flushes: Mapping[str, int | None]) -> str:
    causes = {name: count for name, count in flushes.items() if name not in ("total", "lost")}
    text = _number(flushes["total"])
    if flushes["total"]:
        text += f": {_words(causes)}"
    if flushes["lost"]:
        text += f"; {flushes['lost']} lock drops with a flush still owed"
    return text


def _expected(expected: Mapping[str, Any]) -> str:
    if expected["source"] == "none":
        return "nothing to compare with"
    source = "recorded in the trace" if expected["source"] == "recorded" else "by the golden file"
    text = f"{_number(expected['attempts'])} attempts {source}: {_number(expected['matched'])} matched"
    for name, words in (
        ("mismatched", "differ"),
        ("missing", "simulated only"),
        ("unexpected", "expected only"),
    ):
        if expected[name]:
            text += f", {_number(expected[name])} {words}"
    if expected["flushes_expected"] is None:
        return text
    return f"{text}; flushes {expected['flushes_simulated']} of {expected['flushes_expected']}"


def _gfns(start: int | None, end: int | None) -> str:
    return "" if start is None or end is None else f"{start:x}..{end:x}"


def _words(counts: Mapping[str, int | None]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in counts.items() if count)


def _number(count: int | None) -> str:
    return "?" if count is None else f"{count:,}"


def _bytes(pages: int | None) -> str:
    if pages is None:
        return "?"
    kib = pages * SHADOW_PAGE_BYTES // 1024
    return f"{kib:,} KiB" if kib < 1024 else f"{kib / 1024:,.1f} MiB"
