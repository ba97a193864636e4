"""The summary of a run on a terminal: what was replayed, the result, and whether it is as expected."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import IO, Any

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from replay.policy import Policy, allowed_values
from replay.printable import printable, printable_lines
from replay.report.figures import number, words
from replay.report.windows import migrations_table, windows_table
from replay.trace.trace import NOTES
from replay.verdict.compare import Difference

PLAIN_WIDTH = 120
"""Columns if standard output is not a terminal."""
SHADOW_PAGE_BYTES = 4096

FAULT_TITLES = {
    "avoided": "avoided by splits",
    "write_protected": "for write protection of split pages",
    "nonpresent": "for SPTEs left non-present",
    "lazy_splits": "that split a huge page",
}
"""The words of ``faults`` in the document."""

_VERDICT_STYLE = {
    "match": "bold green",
    "partial": "bold yellow",
    "mismatch": "bold red",
    "unchecked": "bold yellow",
}


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Leave it to the caller; rich would exit with code 1."""
        raise

    def render_str(self, text: str, **options: Any) -> Text:
        """As rich does it, but without control characters in the text; cells of tables come here too."""
        return super().render_str(printable_lines(text), **options)


def console(file: IO[str]) -> Console:
    """A console that writes plain text of a fixed width if ``file`` is not a terminal."""
    width = None if file.isatty() else PLAIN_WIDTH
    return _Console(file=file, width=width, highlight=False, markup=False)


def print_line(out: Console, text: str = "") -> None:
    """Print one line that is never wrapped, so that it can be searched and copied."""
    out.print(printable(text), soft_wrap=True)


def print_table(out: Console, table: RenderableType) -> None:
    """Print a table, or wrapped text, without the blanks that rich adds at the end of lines."""
    with out.capture() as rendered:
        out.print(table)
    for line in rendered.get().splitlines():
        out.file.write(f"{line.rstrip()}\n")


def print_run(out: Console, document: Mapping[str, Any], differences: Iterable[Difference]) -> None:
    """Print the summary of one run from its ``replay.run/1`` document."""
    print_line(out, trace_line(document["trace"]))
    policy = document["policy"]
    print_line(out, f"policy {policy['name']}: {policy['reason']}")
    for note in document["notes"]:
        print_line(out, f"note: {note}")
    print_line(out)
    is_compared = document["expected"]["source"] != "none"
    verdict = Text.assemble("verdict ", (document["verdict"], _VERDICT_STYLE[document["verdict"]]))
    if not document["trace"]["kvmmmu_events"]:
        out.print(verdict)
        if is_compared:
            print_reasons(out, document["verdict_reasons"], differences)
        return
    if document["windows"]:
        table, others = windows_table(document)
        if table is not None:
            print_table(out, table)
        for line in others:
            print_line(out, line)
    else:
        print_line(out, "no window: dirty logging is never enabled")
    if document["migrations"]:
        print_line(out)
        print_table(out, migrations_table(document["migrations"]))
    print_line(out)
    print_table(out, _facts(document))
    print_line(out)
    print_rmap_histograms(out, document)
    out.print(verdict.append(f": {_expected(document['expected'])}"), soft_wrap=True)
    if is_compared:
        print_reasons(out, document["verdict_reasons"], differences)


def print_rmap_histograms(out: Console, document: Mapping[str, Any]) -> None:
    """Print each histogram in the form of the kernel's file mmu_rmaps_stat, which is empty without rmaps."""
    for histogram in document["rmap_histogram"]:
        place = f"after line {number(histogram['line'])}" if histogram["line"] else "before the first event"
        vm = document["trace"]["vms"][histogram["vm"]]
        print_line(out, f"rmaps of VM {vm} at {histogram['at']}, {place}")
        if histogram["levels"] is None:
            print_line(out, "none: only the TDP MMU maps its memory")
        else:
            out.file.write(rmaps_text(histogram["levels"]))  # rich would expand the tabs
        print_line(out)


def rmaps_text(levels: Mapping[str, Mapping[str, int | None]]) -> str:
    """A histogram as kvm_mmu_rmaps_stat_show() prints it; ``?`` for an unknown number."""
    lines = [["Rmap_Count:", *levels["4k"]]]
    for level, heads in levels.items():
        counts = ("?" if count is None else str(count) for count in heads.values())
        lines.append([f"Level={level.upper()}:", *counts])
    return "".join("\t".join([*words, "\n"]) for words in lines)


def print_reasons(out: Console, reasons: Iterable[str], differences: Iterable[Difference]) -> None:
    """Print, indented, what is not as expected and the first attempts that differ."""
    for reason in reasons:
        print_line(out, f"  {reason}")
    for difference in differences:
        print_line(out, f"  {difference.place}")
        print_line(out, f"    expected  {difference.expected or 'no such attempt'}")
        print_line(out, f"    got       {difference.got or 'no such attempt'}")


def print_policies(out: Console, policies: Iterable[Policy], descriptions: Mapping[str, str]) -> None:
    """Print how each policy differs from the first one, and the knobs with their values."""
    first, *others = policies
    listed = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for name in ("policy", "models", f"differs from {first.name} in"):
        listed.add_column(name, no_wrap=name == "policy")
    listed.add_row(first.name, descriptions[first.name], "")
    for policy in others:
        changed = policy.knobs().items() - first.knobs().items()
        settings = [f"{knob}={_value(value)}" for knob, value in sorted(changed)]
        listed.add_row(policy.name, descriptions[policy.name], " ".join(settings))
    print_table(out, listed)
    print_line(out)
    knobs = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for name in ("knob", first.name, "values"):
        knobs.add_column(name)
    for knob, value in first.knobs().items():
        knobs.add_row(knob, _value(value), " | ".join(allowed_values(knob)) or "number")
    print_table(out, knobs)


def _value(value: str | int | bool) -> str:
    return str(value).lower()


def trace_line(trace: Mapping[str, Any]) -> str:
    """The first line of a summary: what was read, and what is missing or damaged in it."""
    vms = len(trace["vms"])
    parts = [
        f"{trace['path']}: {trace['format']}",
        f"{number(trace['events'])} events ({number(trace['kvmmmu_events'])} kvmmmu)",
        f"{number(trace['lines'])} lines",
        f"{vms} {'VM' if vms == 1 else 'VMs'}",
    ]
    for name, note in trace["notes"].items():
        parts.append(NOTES[name].format(**note))
    if trace["malformed_lines"]:
        parts.append(f"{number(trace['malformed_lines'])} MALFORMED LINES")
    for what, count in trace["losses"].items():
        parts.append(f"{number(count)} {what}")
    nothing = "no event lost" if trace["losses"] else "nothing lost"
    parts.append(f"{trace['lost_events']} EVENTS LOST" if trace["lost_events"] else nothing)
    return ", ".join(parts)


def _facts(document: Mapping[str, Any]) -> Table:
    totals, tdp = document["totals"], document["tdp"]
    facts = Table.grid(padding=(0, 2, 0, 0))
    facts.add_column(style="bold")
    facts.add_column()
    for index, line in enumerate(_attempts(totals)):
        facts.add_row("" if index else "huge SPTEs", line)
    if totals["split"]:
        facts.add_row("children", _children(totals))
    if totals["shadow_pages_used_peak"]:
        facts.add_row("shadow pages", _created(totals))
        facts.add_row(
            "",
            f"{number(totals['shadow_pages_used_end'])} in use at the end, "
            f"{number(totals['shadow_pages_used_peak'])} at most, "
            f"limit {number(totals['max_mmu_pages'])}",
        )
    facts.add_row("flushes", _flushes(totals["flushes"]))
    if totals["retries"]:
        reasons = {
            "empty caches": totals["retries_cache"],
            "resched or contention": totals["retries_resched"],
        }
        facts.add_row("retries", f"{number(totals['retries'])}: {words(reasons)}")
    if any(document["faults"].values()):
        facts.add_row("later faults", _later_faults(document["faults"]))
    if document["verdict"] == "mismatch" and document["recorded"]:
        facts.add_row("recorded", _recorded(document["recorded"]))
    if tdp["huge_sptes"] or tdp["attempts"]:
        facts.add_row(
            "TDP MMU",
            f"{number(tdp['split'])} of {number(tdp['attempts'])} attempts split, "
            f"{number(tdp['failed'])} failed, {number(tdp['huge_sptes'])} huge SPTEs at the end",
        )
    if any(tdp["faults"].values()):
        facts.add_row("" if tdp["huge_sptes"] or tdp["attempts"] else "TDP MMU", _tdp_faults(tdp["faults"]))
    facts.add_row("environment", words(document["environment"]) or "no input taken from it")
    facts.add_row("divergences", words(document["divergences"]) or "none")
    return facts


def _attempts(totals: Mapping[str, Any]) -> Iterator[str]:
    """The results of the shadow MMU's attempts: the sum, by level, and what was skipped."""
    if not totals["attempts"] and not any(totals["skipped"].values()):
        yield "none in the shadow MMU"
        return
    levels = [
        f"{name.upper()} {number(level['split'])} of {number(level['attempts'])}"
        for name, level in totals["by_level"].items()
        if level["attempts"]
    ]
    by_level = f" ({', '.join(levels)})" if levels else ""
    yield f"{number(totals['split'])} of {number(totals['attempts'])} attempts split{by_level}"
    skipped = words(totals["skipped"])
    if skipped:
        yield f"left huge: {skipped}"


def _children(totals: Mapping[str, Any]) -> str:
    text = f"{number(totals['sptes_installed'])} SPTEs installed"
    if totals["sptes_reused"]:
        text += f", {number(totals['sptes_reused'])} already there"
    if totals["partial"]:
        text += f", {number(totals['sptes_left_nonpresent'])} left non-present"
        text += f" by {number(totals['partial'])} of the splits"
    return text


def _created(totals: Mapping[str, Any]) -> str:
    created, leaked = totals["shadow_pages_created"], totals["shadow_pages_leaked"]
    text = f"{number(created)} created ({_bytes(created)}), {number(totals['shadow_pages_reused'])} reused"
    if leaked:
        text += f", {number(leaked)} LEAKED ({_bytes(leaked)})"
    return text


def _flushes(flushes: Mapping[str, int | None]) -> str:
    causes = {name: count for name, count in flushes.items() if name not in ("total", "lost")}
    text = number(flushes["total"])
    if flushes["total"]:
        text += f": {words(causes)}"
    if flushes["lost"]:
        text += f"; lock drops while one was still pending: {flushes['lost']:,}"
    return text


def _later_faults(faults: Mapping[str, int | None]) -> str:
    return words({title: faults[word] for word, title in FAULT_TITLES.items()})


def _tdp_faults(faults: Mapping[str, int | None]) -> str:
    return f"later faults: {_later_faults(faults)}"


def _recorded(recorded: Mapping[str, Any]) -> str:
    text = f"{number(recorded['split'])} of {number(recorded['attempts'])} attempts split"
    skipped = words(recorded["skipped"] | {"retries": recorded["retries"]})
    return f"{text}; {skipped}" if skipped else text


def _expected(expected: Mapping[str, Any]) -> str:
    if expected["source"] == "none":
        return "nothing to compare with"
    source = "recorded split lines" if expected["source"] == "recorded" else "attempts of the golden file"
    text = f"{number(expected['matched'])} of {number(expected['attempts'])} {source} matched"
    if expected["get_page"]:
        others = [expected["get_page"], expected["probes"]]
        text += f", {number(sum(lines['matched'] for lines in others))} of "
        text += f"{number(sum(lines['recorded'] for lines in others))} other lines"
    if expected["flushes_expected"] is None:
        return text
    flushes = f"{number(expected['flushes_expected'])} expected, {number(expected['flushes_simulated'])}"
    return f"{text}; flushes: {flushes} simulated"


def _bytes(pages: int | None) -> str:
    if pages is None:
        return "?"
    kib = pages * SHADOW_PAGE_BYTES // 1024
    return f"{kib:,} KiB" if kib < 1024 else f"{kib / 1024:,.1f} MiB"
