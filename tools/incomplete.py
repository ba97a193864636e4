"""Replay recordings as if a part of them had not been recorded: kinds of events, or the beginning.

    python tools/incomplete.py PATH...

prints what can still be compared without each kind, and without the sets of kinds that people leave out.
tools/fidelity.py counts the same for each recording, and cuts off the beginning.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from replay.errors import ReplayError
from replay.run import Request, Run, run_trace
from replay.schema import EVENT_NAMES, Kind
from replay.trace.reader import read_trace
from replay.trace.source import Source

KVMMMU = frozenset(kind for kind in Kind if kind <= Kind.SPLIT_HUGE_PAGE)
MMU_NAMES = frozenset(kind for kind in KVMMMU if EVENT_NAMES[kind].startswith("kvm_mmu_"))
PATCH_PROBES = frozenset(kind for kind in Kind if kind.name.startswith("V2_"))
PROBES = frozenset(kind for kind in Kind if 30 <= kind < 90)
MARKERS = frozenset(kind for kind in Kind if 90 <= kind < Kind.LOST_EVENTS)
NOT_EVENTS = MARKERS | {Kind.LOST_EVENTS}

ONLY = {
    "only the events kvm_mmu_*": MMU_NAMES,
    "only kvm_mmu_split_huge_page": frozenset({Kind.SPLIT_HUGE_PAGE}),
    "only kvm_mmu_get_page, _prepare_zap_page": frozenset({Kind.GET_PAGE, Kind.PREPARE_ZAP_PAGE}),
    "only kvm_mmu_get_page, _prepare_zap_page, _split_huge_page": frozenset(
        {Kind.GET_PAGE, Kind.PREPARE_ZAP_PAGE, Kind.SPLIT_HUGE_PAGE}
    ),
    "only the system kvmmmu": KVMMMU,
}
"""What people record: these kinds and nothing else."""
NONE_OF = {
    "no probe": PROBES,
    "no probe inside the v2 patch": PATCH_PROBES,
    "no marker": MARKERS,
    "no probe and no marker": PROBES | MARKERS,
}
"""What people leave out."""
ORDER = [*EVENT_NAMES.values(), *ONLY, *NONE_OF]
VERDICTS = ("match", "partial", "unchecked", "mismatch")
TITLES = ("left out", "compared", "verdicts", "windows", "what is said")


@dataclass(frozen=True)
class Missing:
    """Kinds that a recording has and a copy of it lacks."""

    name: str
    kinds: frozenset[Kind]


class Recorded:
    """A recording as text, and copies of it in which something is left out."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lines = text_of(path).splitlines(keepends=True)
        self._kinds = np.zeros(len(self._lines), np.uint8)  # by line, from 0; 0 no event
        for batch in read_trace(str(path)).batches(("kind", "line")):
            self._kinds[batch.line - 1] = batch.kind
        self.events = np.flatnonzero(self._kinds)

    @property
    def kinds(self) -> frozenset[Kind]:
        """The kinds of events that it has."""
        return frozenset(map(Kind, np.unique(self._kinds[self.events]).tolist()))

    def without(self, kinds: Collection[Kind]) -> bytes:
        """The text without lines of ``kinds``."""
        left_out = np.isin(self._kinds, list(kinds))
        return b"".join(line for line, out in zip(self._lines, left_out.tolist(), strict=True) if not out)

    def cut(self, events: int) -> bytes:
        """The text without its first ``events`` events; what is no event stays."""
        begin = self.events[events] if events < len(self.events) else len(self._lines)
        head = (self._lines[n] for n in np.flatnonzero(self._kinds[:begin] == 0).tolist())
        return b"".join([*head, *self._lines[begin:]])

    def cuts(self, places: int) -> Iterator[int]:
        """How many events are cut off at ``places`` places at equal distances."""
        for place in range(1, places + 1):
            yield len(self.events) * place // (places + 1)

    def missing(self) -> Iterator[Missing]:
        """Every kind that it has, and the sets of kinds that people leave out."""
        for kind in sorted(self.kinds - {Kind.LOST_EVENTS}):
            yield Missing(EVENT_NAMES[kind], frozenset({kind}))
        sets = {name: self.kinds - kinds - NOT_EVENTS for name, kinds in ONLY.items()}
        for name, kinds in (sets | {name: self.kinds & kinds for name, kinds in NONE_OF.items()}).items():
            if kinds:
                yield Missing(name, frozenset(kinds))


def text_of(path: Path) -> bytes:
    """The text of a trace, whatever it is compressed with."""
    source = Source(str(path))
    text = bytearray()
    chunk = bytearray(1 << 20)
    try:
        while count := source.read_into(memoryview(chunk)):
            text += chunk[:count]
    finally:
        source.close()
    return bytes(text)


def run_text(text: bytes, scratch: Path) -> Run:
    """Replay ``text`` with ``--policy auto`` and compare it with what it recorded; ``scratch`` is a file."""
    scratch.write_bytes(text)
    return run_trace(read_trace(str(scratch)), Request(policy="auto", expect="recorded"))


@dataclass
class Tally:
    """What became of runs of recordings of which a part is left out."""

    verdicts: Counter[str] = field(default_factory=Counter)
    recorded: int = 0
    compared: int = 0
    equal: int = 0
    windows: int = 0
    said: dict[str, None] = field(default_factory=dict)
    """Reasons why the verdict is not ``match``, less those that only count."""
    unaccounted: int = 0
    """Runs whose recorded lines are not those compared and those not compared for a reason."""

    def add(self, run: Run) -> None:
        comparison = run.comparison
        recorded, compared = comparison.recorded or 0, comparison.compared or 0
        self.verdicts[comparison.verdict] += 1
        self.recorded += recorded
        self.compared += compared
        lines = [lines.matched for lines in (comparison.get_page, comparison.probes) if lines]
        self.equal += (comparison.matched or 0) + sum(lines)
        self.windows += run.replay.windows.num_rows
        self.said |= dict.fromkeys(_without_counts(comparison.reasons))
        left_out = comparison.not_compared
        explained = comparison.verdict == "match" or bool(comparison.reasons)
        sums = recorded == compared + sum(left_out.values()) and min(left_out.values(), default=0) >= 0
        self.unaccounted += not (sums and explained)

    def __iadd__(self, other: Tally) -> Tally:
        self.verdicts += other.verdicts
        for name in ("recorded", "compared", "equal", "windows", "unaccounted"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.said |= other.said
        return self

    @property
    def share(self) -> str:
        """How much of what was recorded was compared."""
        return f"{self.compared:,} of {self.recorded:,}"

    @property
    def words(self) -> str:
        """The verdicts, the best first."""
        return ", ".join(f"{self.verdicts[word]} {word}" for word in VERDICTS if self.verdicts[word])


def _without_counts(reasons: Sequence[str]) -> Iterator[str]:
    for reason in reasons:
        if not reason[0].isdigit() and not reason.startswith("flushes not compared"):
            yield re.sub(r": line [\d,]+ shows", ": a line shows", reason)


def run_missing(recorded: Recorded, scratch: Path) -> Iterator[tuple[str, Tally]]:
    """One run for each set of kinds that ``recorded`` may lack: what is missing, and what came of it."""
    for missing in recorded.missing():
        tally = Tally()
        tally.add(run_text(recorded.without(missing.kinds), scratch))
        yield missing.name, tally


def run_cuts(recorded: Recorded, places: int, scratch: Path) -> Iterator[tuple[int, Tally]]:
    """One run for each place at which ``recorded`` is cut: how many events are gone, and what came of it."""
    for events in recorded.cuts(places):
        tally = Tally()
        tally.add(run_text(recorded.cut(events), scratch))
        yield events, tally


def print_missing(paths: Sequence[Path]) -> None:
    """Print a table of what can be compared without some kinds: a row a set, summed over the recordings."""
    rows: dict[str, Tally] = defaultdict(Tally)
    whole: dict[str, Tally] = defaultdict(Tally)
    with tempfile.TemporaryDirectory(prefix="replay-incomplete-") as directory:
        scratch = Path(directory, "trace.txt")
        for path in paths:
            recorded = Recorded(path)
            complete = Tally()
            complete.add(run_text(recorded.without(()), scratch))
            for name, tally in run_missing(recorded, scratch):
                rows[name] += tally
                whole[name] += complete
    print(f"| {' | '.join(TITLES)} |")
    print(f"|{'---|' * len(TITLES)}")
    for name, tally in sorted(rows.items(), key=lambda row: ORDER.index(row[0])):
        windows = f"{tally.windows:,} of {whole[name].windows:,}"
        print(f"| {name} | {tally.share} | {tally.words} | {windows} | {'; '.join(tally.said)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="a recording")
    try:
        print_missing(parser.parse_args().paths)
    except ReplayError as error:
        sys.exit(f"incomplete: error: {error}")


if __name__ == "__main__":
    main()
