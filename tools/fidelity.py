"""How well the replay agrees with recordings of real kernels: a Markdown table, one row a recording.

    python tools/fidelity.py PATH... [--cuts [N]] [--missing]

A path is a trace or a directory of traces.  Each is replayed with ``--policy auto`` and compared
with what it recorded.  A file NAME.info.json beside NAME.txt.zst adds the kernel's version and its
rmap histograms (``mmu_rmaps_stat``, read behind the marker line ``lab: stat LABEL``).

``--cuts`` replays each recording without its beginning too, cut at N places (20), and ``--missing``
without each of its kinds of events and the sets that people leave out: how many recorded lines are compared
then, of how many that are left, how many of them are equal, and the verdicts.  The exit code is 1 if one of
these is ``mismatch``, or if not every recorded line is compared or left out for a reason; such runs are
listed below the table.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from incomplete import Recorded, Tally, run_cuts, run_missing

from replay.errors import ReplayError
from replay.kernel import parse_kernel_version
from replay.mmu.results.rmap_histogram import FIRST_BY_FLS
from replay.report.console import rmaps_text
from replay.run import Request, Run, run_trace
from replay.verdict.compare import Lines

TRACE_NAME = re.compile(r"(.+)\.txt(\.(gz|xz|zst))?")
TITLES = ("attempts", "get_page lines", "flushes", "probe lines", "rmap histograms")
"""What is compared; a cell says how many were as recorded, of how many."""
CUT, MISSING = "cut", "kinds missing"


@dataclass(frozen=True)
class Recording:
    """One row."""

    name: str
    kernel: str
    policy: str
    windows: int
    counts: dict[str, tuple[int, int]]  # by title: as recorded, recorded
    verdict: str
    incomplete: dict[str, Tally] = field(default_factory=dict)  # by title: the runs without some of it
    wrong: tuple[str, ...] = ()  # those of them that show a defect

    def cells(self) -> list[str]:
        ratios = _ratios(self.counts)
        cells = [self.name, self.kernel, self.policy, str(self.windows), *ratios, self.verdict]
        return [*cells, *map(_tally_cell, self.incomplete.values())]


def _tally_cell(tally: Tally) -> str:
    return f"{tally.share}, {tally.equal:,} equal; {tally.words}"


def _ratios(counts: dict[str, tuple[int, int]]) -> Iterator[str]:
    for title in TITLES:
        equal, recorded = counts.get(title, (0, 0))
        yield f"{equal:,} of {recorded:,}" if equal or recorded else ""


def traces_of(paths: Sequence[str]) -> list[Path]:
    """The traces that ``paths`` name or hold, those of a directory in the order of their names."""
    found: list[Path] = []
    for path in map(Path, paths):
        inside = sorted(path.rglob("*")) if path.is_dir() else [path]
        found += [trace for trace in inside if TRACE_NAME.fullmatch(trace.name) or trace == path]
    return found


def info_of(trace: Path) -> dict[str, Any]:
    """The content of the file NAME.info.json beside the trace; empty if there is none."""
    name = TRACE_NAME.fullmatch(trace.name)
    path = trace.with_name(f"{name[1] if name else trace.name}.info.json")
    return json.loads(path.read_text()) if path.exists() else {}


def compare_incomplete(recording: Recording, trace: Path, cuts: int, missing: bool) -> Recording:
    """Replay the recording without its beginning, and without kinds of events.  Raises ``ReplayError``."""
    recorded = Recorded(trace)
    incomplete: dict[str, Tally] = {}
    wrong: list[str] = []
    with tempfile.TemporaryDirectory(prefix="replay-fidelity-") as directory:
        scratch = Path(directory, "trace.txt")
        runs: list[tuple[str, Iterator[tuple[str, Tally]]]] = []
        if cuts:
            places = run_cuts(recorded, cuts, scratch)
            runs.append((CUT, ((f"without the first {events:,} events", tally) for events, tally in places)))
        if missing:
            runs.append((MISSING, run_missing(recorded, scratch)))
        for title, tallies in runs:
            total = incomplete[title] = Tally()
            for what, tally in tallies:
                total += tally
                if tally.verdicts["mismatch"] or tally.unaccounted or tally.equal != tally.compared:
                    wrong.append(f"{recording.name}, {title}: {what}: {tally.words}, {tally.share}")
    return replace(recording, incomplete=incomplete, wrong=tuple(wrong))


def compare(trace: Path) -> Recording:
    """Replay one recording.  Raises ``ReplayError``."""
    info = info_of(trace)
    kernel = parse_kernel_version(info.get("kernel"))
    stats = {f"lab: stat {label}": lines for label, lines in (info.get("mmu_rmaps_stat") or {}).items()}
    request = Request(
        policy="auto",
        expect="recorded",
        rmap_histogram=tuple(stats),
        rmap_columns="fls" if kernel and kernel.series >= FIRST_BY_FLS else "ffs",
    )
    run = run_trace(str(trace), request)
    kernel = kernel or parse_kernel_version(run.trace.kernel)
    counts = _counts(run)
    if stats:
        texts = {
            entry["at"]: rmaps_text(entry["levels"]).split("\n") if entry["levels"] else []
            for entry in run.document["rmap_histogram"]
        }
        equal = [_stripped(texts[label]) == _stripped(lines) for label, lines in stats.items()]
        counts["rmap histograms"] = (sum(equal), len(equal))
    return Recording(
        name=f"{trace.parent.name}/{trace.name.partition('.txt')[0]}",
        kernel=str(kernel or ""),
        policy=run.policy.name,
        windows=run.replay.windows.num_rows,
        counts=counts,
        verdict=run.comparison.verdict,
    )


def _stripped(lines: Sequence[str]) -> list[str]:
    return [line.rstrip() for line in lines if line.strip() and not line.startswith("#")]


def _counts(run: Run) -> dict[str, tuple[int, int]]:
    comparison, counters = run.comparison, run.replay.counters
    if comparison.source == "none":
        return {}
    pairs = {
        "attempts": (comparison.matched, comparison.attempts),
        "get_page lines": lines_of(comparison.get_page),
        "flushes": (counters["flushes_simulated"], comparison.flushes_expected),
        "probe lines": lines_of(comparison.probes),
    }
    return {
        title: (equal or 0, recorded) for title, (equal, recorded) in pairs.items() if recorded is not None
    }


def lines_of(lines: Lines | None) -> tuple[int, int]:
    """(equal, recorded or else simulated)."""
    return (lines.matched, lines.recorded + lines.absent) if lines else (0, 0)


def print_table(recordings: Sequence[Recording]) -> None:
    """Print the table, and a last row with the sums."""
    apart = list(dict.fromkeys(title for recording in recordings for title in recording.incomplete))
    titles = ("recording", "kernel", "policy", "windows", *TITLES, "verdict", *apart)
    print(f"| {' | '.join(titles)} |")
    print(f"|{'---|' * len(titles)}")
    for recording in recordings:
        print(f"| {' | '.join(recording.cells())} |")
    sums = {
        title: (
            sum(recording.counts.get(title, (0, 0))[0] for recording in recordings),
            sum(recording.counts.get(title, (0, 0))[1] for recording in recordings),
        )
        for title in TITLES
    }
    verdicts = Counter(recording.verdict for recording in recordings)
    words = ", ".join(f"{count} {verdict}" for verdict, count in sorted(verdicts.items()))
    windows = sum(recording.windows for recording in recordings)
    totals = {title: Tally() for title in apart}
    for recording in recordings:
        for title, tally in recording.incomplete.items():
            totals[title] += tally
    cells = [f"{len(recordings)} recordings", "", "", f"{windows:,}", *_ratios(sums), words]
    print(f"| {' | '.join([*cells, *map(_tally_cell, totals.values())])} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("paths", nargs="+", metavar="PATH", help="a trace, or a directory of traces")
    parser.add_argument("--cuts", nargs="?", type=int, const=20, default=0, metavar="N", help="cut each, too")
    parser.add_argument("--missing", action="store_true", help="leave kinds of events out of each, too")
    options = parser.parse_args()
    recordings: list[Recording] = []
    try:
        for trace in traces_of(options.paths):
            recording = compare(trace)
            if options.cuts or options.missing:
                recording = compare_incomplete(recording, trace, options.cuts, options.missing)
            recordings.append(recording)
    except ReplayError as error:
        sys.exit(f"fidelity: error: {error}")
    print_table(recordings)
    wrong = [text for recording in recordings for text in recording.wrong]
    print("".join(f"\n{text}" for text in wrong), end="\n" if wrong else "")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
