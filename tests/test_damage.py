"""Damaged recordings: never a crash, never a match where something that matters is gone.

Damage is random with a fixed seed.  What is claimed of each kind is only what can be proved: a
recorded split that is removed, repeated or altered contradicts the simulation; a line that cannot be
read is counted.
"""

from __future__ import annotations

import random
import re
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import zstandard

from replay.errors import ReplayError, TraceError
from replay.run import Request, Run, run_trace

RECORDED = Path(__file__).parents[1] / "traces" / "recorded"
NAMES = (
    "v2/C1-nested-2m-injresched",
    "v2/C1-nested-2m-enomem",
    "v2/C4-enospc",
    "v2/D-two-vms",
    "v2/V-1g-alias-ro-spin",
    "v2/V-clear-1g-alias-spin",
    "v2/V-occ4k-spin",
    "linux-6.1/C4-enospc",
    "linux-7.3.4/C1-nested-2m",
)
SPLIT = b": kvm_mmu_split_huge_page: "
GET_PAGE = b": kvm_mmu_get_page: "
SEEDS = range(6)
HOSTILE = (
    *(b"0", b"1", b"3", b"4", b"7", b"15", b"255", b"512", b"65536", b"-1", b"-11", b"-95"),
    *(b"7fffffff", b"ffffffff", b"7fffffffffffffff", b"8000000000000000", b"ffffffffffffffff"),
    *(b"40000", b"10000000000", b"18446744073709551615", b"-9223372036854775808"),
)
NUMBER = re.compile(rb"(?<=[ =])-?[0-9a-f]+(?=[ \n])")

Lines = list[bytes]
Damage = Callable[[Lines, random.Random], Lines]


@cache
def lines_of(name: str) -> tuple[bytes, ...]:
    packed = (RECORDED / f"{name}.txt.zst").read_bytes()
    return tuple(zstandard.ZstdDecompressor().decompress(packed, 1 << 28).splitlines(keepends=True))


def run(lines: Lines, directory: Path) -> Run:
    path = directory / "damaged.txt"
    path.write_bytes(b"".join(lines))
    return run_trace(str(path), Request(expect="recorded"))


def run_or_error(lines: Lines, directory: Path) -> Run | str:
    """The run, or what a user is told why there is none."""
    try:
        return run(lines, directory)
    except ReplayError as error:
        return str(error)


def split_lines(lines: Lines | tuple[bytes, ...]) -> list[int]:
    return [number for number, line in enumerate(lines) if SPLIT in line]


def body(line: bytes) -> int:
    """Where the payload of an event line begins, behind the header that may be anything."""
    return line.index(b": ") + 2


# -- kinds of damage ------------------------------------------------------------------------------------


def cut_lines(lines: Lines, rng: random.Random) -> Lines:
    for _ in range(rng.randint(1, 5)):
        at = rng.randrange(len(lines))
        del lines[at : at + rng.choice((1, 1, 2, 10, 100))]
    return lines


def double_lines(lines: Lines, rng: random.Random) -> Lines:
    for _ in range(rng.randint(1, 5)):
        at, count = rng.randrange(len(lines)), rng.choice((1, 1, 2, 10, 100))
        lines[at:at] = lines[at : at + count]
    return lines


def swap_lines(lines: Lines, rng: random.Random) -> Lines:
    for _ in range(rng.randint(1, 20)):
        first = rng.randrange(len(lines))
        second = min(first + rng.choice((1, 1, 2, 50)), len(lines) - 1)
        lines[first], lines[second] = lines[second], lines[first]
    return lines


def flip_bytes(lines: Lines, rng: random.Random) -> Lines:
    text = bytearray(b"".join(lines))
    for _ in range(rng.randint(1, 60)):
        text[rng.randrange(len(text))] = rng.randrange(256)
    return bytes(text).splitlines(keepends=True)


def hostile_numbers(lines: Lines, rng: random.Random) -> Lines:
    for _ in range(rng.randint(1, 30)):
        at = rng.randrange(len(lines))
        numbers = [match for match in NUMBER.finditer(lines[at]) if match.start() > lines[at].find(b": ")]
        if numbers:
            match = rng.choice(numbers)
            lines[at] = lines[at][: match.start()] + rng.choice(HOSTILE) + lines[at][match.end() :]
    return lines


def end_early(lines: Lines, rng: random.Random) -> Lines:
    text = b"".join(lines)
    return text[: rng.randrange(1, len(text))].splitlines(keepends=True)


def begin_late(lines: Lines, rng: random.Random) -> Lines:
    return lines[rng.randrange(1, len(lines) - 1) :]


KINDS: tuple[Damage, ...] = (
    cut_lines, double_lines, swap_lines, flip_bytes, hostile_numbers, end_early, begin_late,
)  # fmt: skip


# -- nothing crashes ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("name", NAMES)
def test_damage_ends_in_a_verdict_or_an_error_of_ours(name: str, kind: Damage, tmp_path: Path) -> None:
    whole = lines_of(name)
    for seed in SEEDS:
        damaged = kind(list(whole), random.Random(seed))
        finished = run_or_error(damaged, tmp_path)
        if isinstance(finished, str):
            assert finished
            assert "\n" not in finished
            continue
        document = finished.document
        assert document["verdict"] in ("match", "partial", "mismatch", "unchecked")
        assert bool(finished.comparison.reasons) == (document["verdict"] != "match")
        if document["verdict"] == "match":
            expected = document["expected"]
            for lines in (expected["get_page"], expected["probes"]):
                assert lines["matched"] == lines["recorded"]
                assert lines["absent"] == 0
            assert document["expected"]["matched"] == document["expected"]["attempts"]
            assert document["trace"]["malformed_lines"] == document["trace"]["lost_events"] == 0
            apart = ("fault_time_tdp_splits", "splits_outside_windows")
            told = sum(document["divergences"].get(name, 0) for name in apart)
            assert document["expected"]["attempts"] + told == len(split_lines(damaged)), f"seed {seed}"


# -- what must be noticed -------------------------------------------------------------------------------


def removed(line: bytes, rng: random.Random) -> Lines:
    return []


def repeated(line: bytes, rng: random.Random) -> Lines:
    return [line, line]


def altered(field: bytes, values: tuple[bytes, ...]) -> Callable[[bytes, random.Random], Lines]:
    """Another value of ``field``, never the one that stands there."""

    def alter(line: bytes, rng: random.Random) -> Lines:
        match = re.search(rb" " + field + rb" (\S+)", line)
        assert match is not None
        value = rng.choice([value for value in values if value != match.group(1)])
        return [line[: match.start(1)] + value + line[match.end(1) :]]

    return alter


ALTERATIONS = {
    "removed": removed,
    "repeated": repeated,
    "gfn": altered(b"gfn", (b"0", b"40001", b"1234000", b"ffffffffff", b"ffffffffffffffff")),
    "spte": altered(b"spte", (b"0", b"800000000123456", b"ffffffffffffffff")),
    "level": altered(b"level", (b"0", b"1", b"2", b"3", b"4", b"9", b"255")),
    "errno": altered(b"errno", (b"0", b"-1", b"-12", b"-22", b"-28", b"-95", b"5", b"-2147483648")),
}


@pytest.mark.parametrize("alteration", ALTERATIONS)
@pytest.mark.parametrize("name", NAMES)
def test_one_wrong_split_line_is_no_match(name: str, alteration: str, tmp_path: Path) -> None:
    whole = lines_of(name)
    rng = random.Random(f"{name} {alteration}")
    for at in rng.sample(split_lines(whole), 6):
        changed = [*whole[:at], *ALTERATIONS[alteration](whole[at], rng), *whole[at + 1 :]]
        finished = run(changed, tmp_path)
        # what cannot be read any more may have been any line: nothing is said to differ for it
        noticed = "partial" if finished.trace.malformed_lines else "mismatch"
        assert finished.comparison.verdict == noticed, f"line {at + 1}: {whole[at].decode()}"
        assert finished.comparison.reasons


def children_of_splits(whole: tuple[bytes, ...]) -> list[int]:
    """The get_page lines of splits: of the same task and gfn, right before the split line or its probe."""
    found = []
    for at in split_lines(whole):
        gfn = re.search(rb" gfn (\w+) ", whole[at])
        for before in range(at - 1, max(at - 600, 0), -1):
            if GET_PAGE in whole[before] and gfn and b" gfn " + gfn.group(1) + b" " in whole[before]:
                found.append(before)
                break
            if SPLIT in whole[before]:
                break
    return found


@pytest.mark.parametrize(
    ("old", "new"), [(b" wux ", b" w-x "), (b" new", b" existing"), (b" q0 ", b" q1 "), (b" ad ", b" !ad ")]
)
@pytest.mark.parametrize("name", NAMES)
def test_one_wrong_child_page_is_no_match(name: str, old: bytes, new: bytes, tmp_path: Path) -> None:
    whole = lines_of(name)
    rng = random.Random(name)
    children = [at for at in children_of_splits(whole) if old in whole[at]]
    children = [at for at in children if b" errno 0" in b"".join(whole[at : at + 600])]
    for at in rng.sample(children, min(2, len(children))):
        changed = [*whole[:at], whole[at].replace(old, new), *whole[at + 1 :]]
        assert run(changed, tmp_path).comparison.verdict == "mismatch", whole[at].decode()


@pytest.mark.parametrize("name", NAMES)
def test_a_line_that_cannot_be_read_is_counted(name: str, tmp_path: Path) -> None:
    whole = lines_of(name)
    rng = random.Random(name)
    at = rng.choice(split_lines(whole))
    start = body(whole[at][whole[at].index(b"kvm_mmu") - 2 :]) + whole[at].index(b"kvm_mmu") - 2
    for broken in (whole[at].replace(b" gfn ", b" gfm "), whole[at][: start + len(SPLIT) + 3] + b"\n"):
        finished = run([*whole[:at], broken, *whole[at + 1 :]], tmp_path)
        assert finished.trace.malformed_lines == 1
        assert finished.trace.malformed[0][0] == at + 1
        assert finished.comparison.verdict != "match"


@pytest.mark.parametrize("name", NAMES)
def test_lost_events_are_no_match(name: str, tmp_path: Path) -> None:
    whole = lines_of(name)
    at = split_lines(whole)[-1]
    finished = run([*whole[: at + 1], b"CPU:0 [LOST 7 EVENTS]\n", *whole[at + 1 :]], tmp_path)
    assert finished.trace.lost_events == 7
    assert finished.comparison.verdict == "partial"


# -- archives and the command line ----------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_cut_archive_is_no_match(name: str, tmp_path: Path) -> None:
    packed = (RECORDED / f"{name}.txt.zst").read_bytes()
    rng = random.Random(name)
    for _ in range(4):
        path = tmp_path / "cut.txt.zst"
        path.write_bytes(packed[: rng.randrange(1, len(packed))])
        with pytest.raises(TraceError) as caught:
            run_trace(str(path), Request(expect="recorded"))
        assert str(path) in str(caught.value)


@pytest.mark.parametrize("name", NAMES)
def test_a_corrupt_archive_is_told_or_read_in_full(name: str, tmp_path: Path) -> None:
    packed = (RECORDED / f"{name}.txt.zst").read_bytes()
    rng = random.Random(name)
    path = tmp_path / "corrupt.txt.zst"
    for _ in range(4):
        damaged = bytearray(packed)
        at = rng.randrange(len(packed))
        damaged[at] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        try:
            finished = run_trace(str(path), Request(expect="recorded"))
        except ReplayError:
            continue
        assert finished.document["verdict"] in ("match", "partial", "mismatch", "unchecked")


@pytest.mark.parametrize("kind", [flip_bytes, hostile_numbers, end_early], ids=lambda kind: kind.__name__)
def test_command_line_never_shows_a_traceback(kind: Damage, tmp_path: Path) -> None:
    path = tmp_path / "damaged.txt"
    path.write_bytes(b"".join(kind(list(lines_of(NAMES[0])), random.Random(1))))
    command = [sys.executable, "-m", "replay", "run", "--json", str(path)]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert finished.returncode in (0, 1, 2)
    assert "Traceback" not in finished.stderr
    assert (finished.returncode == 2) == (finished.stdout == "")
