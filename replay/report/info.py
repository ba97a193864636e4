"""What a trace contains, on a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from replay.report.console import print_line, print_table, trace_line
from replay.report.figures import number

SHOWN_IGNORED = 8
_LAYOUTS = {
    "legacy": "SPTEs of legacy paging or NPT",
    "ept": "SPTEs of EPT up to 7.1",
    "ept-7.2": "SPTEs of EPT from 7.2",
}
_SOURCES = {
    "probes": "lines of probes",
    "markers": "marker lines",
    "recorded_splits": "recorded split lines",
}


def print_info(out: Console, document: Mapping[str, Any]) -> None:
    """Print a ``replay.info/1`` document."""
    print_line(out, trace_line(document))
    print_line(out)
    kinds = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    kinds.add_column("event")
    kinds.add_column("lines", justify="right")
    for name, count in document["kinds"].items():
        kinds.add_row(name, number(count))
    if document["kinds"]:
        print_table(out, kinds)
        print_line(out)
    facts = Table.grid(padding=(0, 2, 0, 0))
    facts.add_column(style="bold")
    facts.add_column()
    facts.add_row("kernel", document["kernel"] or "unknown")
    facts.add_row("time", _time(document["first_ts_ns"], document["last_ts_ns"]))
    for index, vm in enumerate(document["vms"]):
        text = f"{index} {vm['name']}: {number(vm['events'])} events, {number(vm['windows'])} windows"
        if vm["spte_layout"] is not None:
            text += f", {_LAYOUTS[vm['spte_layout']]}"
        if vm["pml"] is not None:
            text += ", PML" if vm["pml"] else ", nothing shows PML"
        facts.add_row("" if index else "VMs", text)
    facts.add_row("control", _sources(document["control"]))
    facts.add_row("windows", _causes(document["windows"]))
    facts.add_row("policy", f"{document['policy']['name']}: {document['policy']['reason']}")
    for index, text in enumerate(document["can"]):
        facts.add_row("" if index else "can", text)
    for index, text in enumerate(document["cannot"]):
        facts.add_row("" if index else "cannot", text)
    if document["ignored_events"]:
        facts.add_row("others", _others(document["ignored_events"]))
    print_table(out, facts)
    for line in document["malformed"]:
        print_line(out, f"malformed line {line['line']}: {line['text']}")


def _time(first: int | None, last: int | None) -> str:
    if first is None or last is None:
        return "unknown"
    return f"{first / 1e9:.6f} to {last / 1e9:.6f}, {(last - first) / 1e9:.6f} s"


def _sources(control: Mapping[str, int]) -> str:
    parts = [f"{number(control[name])} {text}" for name, text in _SOURCES.items() if control[name]]
    return ", ".join(parts) or "none"


def _causes(windows: Mapping[str, Any]) -> str:
    causes = ", ".join(f"{number(count)} {cause}" for cause, count in windows["by_cause"].items())
    return f"{number(windows['total'])}: {causes}" if causes else "none"


def _others(events: Mapping[str, int]) -> str:
    shown = [f"{number(count)} {name}" for name, count in list(events.items())[:SHOWN_IGNORED]]
    more = len(events) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")
