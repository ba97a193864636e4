"""Alter one recorded line at a time and see whether the verdict notices: Markdown tables.

    python tools/alter.py PATH... [--per-kind N | --all] [--seed S] [--examples N] [--kind WORD]

A path is a recording of a real kernel (text) or a directory of them.  Of every kind of line that states
an outcome, N random lines of each recording are dropped, doubled, changed in each of their fields, and
swapped with the line of the same task before or after them, one at a time.  Each altered text is parsed
and replayed anew, with the policy that the unaltered one chose; recordings that are not ``match`` or
``partial`` as they are are left out.  What the kernel could not have foreseen is an input of the replay,
not an outcome: it stands in a table of its own.  The exit code is 1 if an altered outcome still matched.
"""

from __future__ import annotations

import argparse
import random
import re
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fidelity import traces_of
from incomplete import text_of

from replay.errors import ReplayError
from replay.policy import Policy
from replay.run import Request, run_trace
from replay.schema import EAGAIN, EBUSY, ENOMEM, EVENT_NAMES, Kind
from replay.trace.reader import Trace, read_trace

VERDICTS = ("match", "partial", "unchecked", "mismatch")
V2_KINDS = tuple(kind for kind in Kind if kind.name.startswith("V2_"))
OF_WINDOW = {
    Kind.GET_PAGE, Kind.SPLIT_HUGE_PAGE, Kind.TDP_MMU_SPTE_CHANGED, Kind.PREPARE_ZAP_PAGE, Kind.SYNC_PAGE,
    Kind.TOPUP_CACHE, *(kind for kind in Kind if kind.name.startswith("FLUSH_REMOTE_TLBS")), *V2_KINDS,
}  # fmt: skip
"""What a window's task leaves in it; where no return probe ends the window, anything else does."""
ENVIRONMENT_ERRNOS = {-EAGAIN: "errno -11", -ENOMEM: "errno -12", -EBUSY: "errno -16"}

ENVIRONMENT = {
    # kind of line: the alterations that change an input of the replay, by their first word; () all
    "v2_lock_dropped": ("drop", "double", "gfn", "level", "reason"),
    "v2_range_yield": ("drop", "double", "gfn", "level"),
    "v2_alloc_failed": (),
    "split line, errno -11": ("drop", "double"),
    "split line, errno -12": ("drop", "double"),
    "split line, errno -16": ("drop", "double", "spte"),
}
"""A lock drop, a yield and a failed allocation; the flush at either is an outcome."""

Change = tuple[str, str]  # what is changed and how; the line as it is then


@dataclass(frozen=True)
class Place:
    """A line that states an outcome."""

    kind: str
    number: int  # from 0


@dataclass
class Tally:
    """What became of the alterations of one kind."""

    verdicts: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)


# -- which lines -------------------------------------------------------------------------------------


def outcome_lines(trace: Trace) -> dict[str, list[Place]]:
    """The lines of ``trace`` that state an outcome, by kind."""
    found: dict[str, list[Place]] = defaultdict(list)
    parts: dict[int, str] = {}  # by task: the part of the window that it is in
    asked: set[int] = set()  # tasks whose window a return probe ends
    for kind, pid, line, num in _rows(trace):
        parts[pid] = part = _part_after(kind, pid, parts.get(pid, ""), asked)
        word = _outcome(kind, num, part)
        if word:
            found[word].append(Place(word, line - 1))
    return found


def _rows(trace: Trace) -> Iterator[tuple[Kind, int, int, int]]:
    for batch in trace.batches(("kind", "pid", "line", "num")):
        columns = (batch.kind, batch.pid, batch.line, batch.num)
        for kind, pid, line, num in zip(*(column.tolist() for column in columns), strict=True):
            yield Kind(kind), pid, line, num


def _part_after(kind: Kind, pid: int, part: str, asked: set[int]) -> str:
    """The part of a window that its task is in: "shadow", "tdp", "window" between them, "" outside."""
    if kind in (Kind.SLOT_TRY_SPLIT, Kind.TRY_SPLIT):
        asked.add(pid)
        return "window"
    if kind in (Kind.SLOT_TRY_SPLIT_RET, Kind.TRY_SPLIT_RET):
        asked.discard(pid)
        return ""
    if kind in (Kind.SHADOW_TRY_SPLIT, Kind.V2_TRY_SPLIT_BEGIN):
        return "shadow"
    if kind == Kind.TDP_TRY_SPLIT:
        return "tdp"
    if kind == Kind.V2_TRY_SPLIT_END:
        return "window"
    return part if pid in asked or kind in OF_WINDOW else ""


def _outcome(kind: Kind, num: int, part: str) -> str:
    """The name of a kind of line that states an outcome, "" of one that does not."""
    if kind == Kind.SPLIT_HUGE_PAGE:
        errno = ENVIRONMENT_ERRNOS.get(num)
        return f"split line, {errno}" if errno else "split line"
    if kind == Kind.GET_PAGE and part in ("shadow", "tdp"):
        return f"get_page line, {part} part"
    if kind == Kind.FLUSH_REMOTE_TLBS and part == "shadow":
        return "flush_remote_tlbs, shadow part"
    return EVENT_NAMES[kind] if kind in V2_KINDS else ""


def neighbours(trace: Trace) -> dict[int, tuple[int, int]]:
    """The lines of the same task before and after each event, lines from 0, -1 none."""
    last: dict[int, int] = {}  # by task
    found: dict[int, tuple[int, int]] = {}
    for _, pid, line, _ in _rows(trace):
        number = line - 1
        before = last.get(pid, -1)
        found[number] = (before, -1)
        if before >= 0:
            found[before] = (found[before][0], number)
        last[pid] = number
    return found


# -- what is done to them ------------------------------------------------------------------------------


_PAIR = re.compile(r"(?P<name>\w+)=(?P<value>-?(?:0x)?[0-9a-fA-F]+)\b")
_WORD = re.compile(r"\b(?P<name>gfn|spte|level|errno|gen|root) (?P<value>-?[0-9a-f]+)\b")
_PAGE_WORDS: dict[str, tuple[tuple[str, str], ...]] = {
    "level": ((r" l1 ", " l2 "), (r" l2 ", " l3 "), (r" l3 ", " l4 "), (r" l([45]) ", " l1 ")),
    "size of guest ptes": ((" 8-byte ", " 4-byte "), (" 4-byte ", " 8-byte ")),
    "quadrant": ((" q0 ", " q1 "), (r" q[123] ", " q0 ")),
    "direct": ((" direct ", " "), (r"( q\d) ", r"\1 direct ")),
    "write access": ((r" ([r-]?)w([u-][x-]) ", r" \1-\2 "), (r" ([r-]?)-([u-][x-]) ", r" \1w\2 ")),
    "exec access": ((r" ([r-]?[w-][u-])x ", r" \1- "), (r" ([r-]?[w-][u-])- ", r" \1x ")),
    "nxe": ((" nxe ", " !nxe "), (" !nxe ", " nxe ")),
    "ad": ((" ad ", " !ad "), (" !ad ", " ad ")),
    "sync": ((" sync\\b", " unsync"), (" unsync\\b", " sync")),
    "new": ((" new\\b", " existing"), (" existing\\b", " new")),
}
"""Words of a PAGE line: of the replacements of a word the first that fits is made."""
_FRAMES = ("gfn", "huge_gfn", "base_gfn", "start", "end")


def alterations(line: str) -> Iterator[Change]:
    """Every altered form of ``line``, which ends in a newline."""
    yield "drop", ""
    yield "double", line * 2
    head, name, details = line.partition(re.search(r": \w+: ", line)[0])  # type: ignore[index]
    pattern = _PAIR if _PAIR.search(details) else _WORD
    for match in pattern.finditer(details):
        for what, value in _other_values(match["name"], match["value"], is_word=pattern is _WORD):
            yield what, head + name + details[: match.start("value")] + value + details[match.end("value") :]
    if "get_page" in name:
        for what, replacements in _PAGE_WORDS.items():
            for old, new in replacements:
                changed, count = re.subn(old, new, details, count=1)
                if count:
                    yield what, head + name + changed
                    break


_STAMPED = re.compile(r"(?P<stamp>.*? \d+\.\d+: )(?P<event>.*)", re.DOTALL)


def swapped(first: str, second: str) -> tuple[str, str] | None:
    """Both lines with each other's event, each at its own time; None if that changes nothing."""
    one, other = _STAMPED.fullmatch(first), _STAMPED.fullmatch(second)
    if one is None or other is None or one["event"] == other["event"]:
        return None
    return one["stamp"] + other["event"], other["stamp"] + one["event"]


def _other_values(name: str, text: str, is_word: bool) -> Iterator[Change]:
    """Other values of a field: (what is changed, text)."""
    is_hex = text.startswith("0x") or (is_word and name in ("gfn", "spte"))
    value = int(text, 16 if is_hex else 10)

    def written(number: int) -> str:
        return (f"0x{number:x}" if text.startswith("0x") else f"{number:x}") if is_hex else str(number)

    if name == "errno":
        others = {"errno to 0": 0, "errno to -11": -11, "errno to -28": -28, "errno to -95": -95}
    elif name in _FRAMES:
        others = {f"{name} + 1": value + 1, f"{name} + 0x200": value + 0x200}
    elif name == "spte":
        others = {"spte, another pfn": value ^ 1 << 21, "spte, writable": value ^ 2}
    elif name == "flush":
        others = {"flush": int(not value)}
    elif name == "level" or name == "huge_level":
        others = {name: 3 if value == 2 else 2}
    elif name == "role":
        others = {"role, level": value ^ 3, "role, access": value ^ 0x400}
    elif name == "huge_sptep":
        others = {name: value + 8}
    else:
        others = {name: value + 1}
    return ((what, written(number)) for what, number in others.items() if number != value)


# -- verdicts --------------------------------------------------------------------------------------------


def is_environment(kind: str, what: str) -> bool:
    """True if the alteration changes an input of the replay."""
    words = ENVIRONMENT.get(kind)
    return words is not None and (not words or what.split()[0] in words)


class Altered:
    """One recording, and the verdicts on altered forms of it."""

    def __init__(self, path: Path, directory: str) -> None:
        self.name = f"{path.parent.name}/{path.name}"
        self._path = Path(directory, "altered.txt")
        self.lines = text_of(path).splitlines(keepends=True)
        self._path.write_bytes(b"".join(self.lines))
        run = run_trace(str(self._path), Request(expect="recorded"))
        self._policy: Policy = run.policy
        self.verdict = run.comparison.verdict
        self.places = outcome_lines(run.trace)
        self.kinds = {place.number: place.kind for places in self.places.values() for place in places}
        self.neighbours = neighbours(run.trace)

    def line(self, number: int) -> str:
        return self.lines[number].decode(errors="surrogateescape")

    def changes(self, place: Place) -> Iterator[tuple[str, dict[int, str]]]:
        """What is done to the line at ``place``, and how the lines read then that it changes."""
        line = self.line(place.number)
        for what, changed in alterations(line):
            yield what, {place.number: changed}
        for side, other in zip(("before", "after"), self.neighbours[place.number], strict=True):
            pair = swapped(line, self.line(other)) if other >= 0 else None
            if pair:
                yield f"swap with the line {side}", {place.number: pair[0], other: pair[1]}

    def verdict_with(self, changed: Mapping[int, str]) -> str:
        """The verdict where the lines of these numbers read so."""
        lines = list(self.lines)
        for number, line in changed.items():
            lines[number] = line.encode(errors="surrogateescape")
        self._path.write_bytes(b"".join(lines))
        request = Request(policy=self._policy, expect="recorded")
        return run_trace(read_trace(str(self._path)), request).comparison.verdict


def alter(
    paths: Iterable[Path], per_kind: int | None, seed: int, kinds: Sequence[str] = ()
) -> tuple[Counter[str], dict[tuple[str, str], Tally]]:
    """Verdicts on the recordings as they are, and what became of their alterations, by kind of each.

    Only kinds of lines that hold one of ``kinds``, if any are given.  Raises ``ReplayError``.
    """
    unaltered: Counter[str] = Counter()
    tallies: dict[tuple[str, str], Tally] = defaultdict(Tally)
    with tempfile.TemporaryDirectory(prefix="replay-alter-") as directory:
        for path in paths:
            recording = Altered(path, directory)
            unaltered[recording.verdict] += 1
            if recording.verdict not in ("match", "partial"):
                continue
            chosen = random.Random(f"{seed} {recording.name}")  # each recording's sample is its own
            for kind, places in sorted(recording.places.items()):
                if kinds and not any(word in kind for word in kinds):
                    continue
                sample = places if per_kind is None else chosen.sample(places, min(per_kind, len(places)))
                for place in sample:
                    _try_all(recording, place, tallies)
            if sys.stderr.isatty():
                print(
                    f"{recording.name}: {sum(t.verdicts.total() for t in tallies.values()):,}",
                    file=sys.stderr,
                )
    return unaltered, tallies


def _try_all(recording: Altered, place: Place, tallies: dict[tuple[str, str], Tally]) -> None:
    line = recording.line(place.number)
    for what, changed in recording.changes(place):
        verdict = recording.verdict_with(changed)
        tally = tallies[place.kind, what]
        tally.verdicts[verdict] += 1
        if verdict == "match":
            shown = "\n            ".join(line.strip() for line in changed.values())
            after = {"drop": "(dropped)", "double": "(twice)"}.get(what, shown)
            at = f"{recording.name}, line {place.number + 1}, {place.kind}, {what}"
            tally.examples.append(f"{at}\n    before: {line.strip()}\n    after:  {after}")


# -- output --------------------------------------------------------------------------------------------


def print_tables(unaltered: Counter[str], tallies: dict[tuple[str, str], Tally], examples: int) -> int:
    """Print both tables and the examples; how many altered outcomes were not noticed."""
    print(f"Recordings as they are: {_counts(unaltered)}.\n")
    apart = {key: tally for key, tally in tallies.items() if is_environment(*key)}
    outcomes = {key: tally for key, tally in tallies.items() if key not in apart}
    unnoticed = 0
    for title, part in (("outcomes", outcomes), ("inputs of the replay", apart)):
        print(f"| line: {title} | alteration | tried | {' | '.join(VERDICTS)} |")
        print(f"|{'---|' * (3 + len(VERDICTS))}")
        total: Counter[str] = Counter()
        for (kind, what), tally in sorted(part.items()):
            print(f"| {kind} | {what} | {_row(tally.verdicts)} |")
            total += tally.verdicts
        print(f"| all {title} | | {_row(total)} |\n")
        if part is outcomes:
            unnoticed = total["match"]
    shown = [example for _, tally in sorted(outcomes.items()) for example in tally.examples[:examples]]
    print("\n".join(shown))
    return unnoticed


def _row(verdicts: Counter[str]) -> str:
    return " | ".join(f"{count:,}" for count in (verdicts.total(), *(verdicts[word] for word in VERDICTS)))


def _counts(verdicts: Counter[str]) -> str:
    return ", ".join(f"{verdicts[word]} {word}" for word in VERDICTS if verdicts[word]) or "none"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("paths", nargs="+", metavar="PATH", help="a recording, or a directory of recordings")
    parser.add_argument("--per-kind", type=int, default=3, metavar="N", help="lines of a kind in a recording")
    parser.add_argument("--all", action="store_true", help="every line")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--examples", type=int, default=1, metavar="N", help="shown of each row")
    parser.add_argument("--kind", action="append", default=[], metavar="WORD", help="only kinds that hold it")
    options = parser.parse_args(arguments)
    try:
        per_kind = None if options.all else options.per_kind
        found = alter(traces_of(options.paths), per_kind, options.seed, options.kind)
    except (ReplayError, OSError) as error:
        sys.exit(f"alter: error: {error}")
    sys.exit(1 if print_tables(*found, options.examples) else 0)


if __name__ == "__main__":
    main()
