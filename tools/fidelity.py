"""How well the replay agrees with recordings of real kernels: a Markdown table, one row a recording.

    python tools/fidelity.py PATH...

A path is a trace or a directory of traces.  Each is replayed with ``--policy auto`` and compared
with what it recorded.  A file NAME.info.json beside NAME.txt.zst adds the kernel's version and its
rmap histograms (``mmu_rmaps_stat``, read behind the marker line ``lab: stat LABEL``).
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from replay.errors import ReplayError
from replay.kernel import parse_kernel_version
from replay.mmu.histogram import FIRST_BY_FLS
from replay.report.console import rmaps_text
from replay.run import Request, Run, run_trace
from replay.verdict.compare import Lines

TRACE_NAME = re.compile(r"(.+)\.txt(\.(gz|xz|zst))?")
TITLES = ("attempts", "get_page lines", "flushes", "probe lines", "rmap histograms")
"""What is compared; a cell says how many were as recorded, of how many."""


@dataclass(frozen=True)
class Recording:
    """One row."""

    name: str
    kernel: str
    policy: str
    windows: int
    counts: dict[str, tuple[int, int]]  # by title: as recorded, recorded
    verdict: str

    def cells(self) -> list[str]:
        return [self.name, self.kernel, self.policy, str(self.windows), *_ratios(self.counts), self.verdict]


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
    titles = ("recording", "kernel", "policy", "windows", *TITLES, "verdict")
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
    print(f"| {len(recordings)} recordings | | | {windows:,} | {' | '.join(_ratios(sums))} | {words} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("paths", nargs="+", metavar="PATH", help="a trace, or a directory of traces")
    try:
        print_table([compare(trace) for trace in traces_of(parser.parse_args().paths)])
    except ReplayError as error:
        sys.exit(f"fidelity: error: {error}")


if __name__ == "__main__":
    main()
