"""What is fuzzed: where the first inputs of each kind come from, and how one becomes another."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import zstandard

from tools.fuzz import columns, lines, trees

TRACES = Path(__file__).parents[2] / "traces"
SCENARIOS = Path(__file__).parents[2] / "tests" / "synth" / "scenarios"
_MOST_BYTES = 8 << 20
_POLICIES = (
    b'base = "v2"\nname = "mine"\nmin_free_pages = 7\nunsync = "split"\nrmap_order = "head"\n',
    b'base = "linux-6.0"\n[knobs]\nflush = "on_link_always"\nnested_only = false\ndesc_min = 4\n',
    b'existing_child = "reuse"\noccupied_rmap = "grow"\nspare_page = "keep"\nclear_end = "exclusive"\n',
)


@dataclass(frozen=True)
class Seed:
    """A good input."""

    data: bytes
    companion: str = ""
    """The trace that a golden file or a policy is used with."""


@dataclass(frozen=True)
class Target:
    """A kind of input."""

    suffix: str
    seeds: Callable[[], Iterator[Seed]]
    change: Callable[[bytes, Random, Sequence[bytes]], bytes]
    cut: Callable[[bytes, Random], bytes] | None = None
    """Makes a small input of a large one, first of all."""
    by_line: bool = True
    """It is made smaller by lines; else by the changes that were made alone."""


def given_seeds(directory: Path, target: Target) -> Iterator[Seed]:
    """The files of a directory as inputs; a golden file or a policy is used with one of our traces."""
    companion = next((seed.companion for seed in target.seeds() if seed.companion), "")
    for path in sorted(directory.iterdir()):
        if path.is_file():
            yield Seed(_content(path), "" if path.read_bytes().find(b"[[vm]]") >= 0 else companion)


def _content(path: Path) -> bytes:
    data = path.read_bytes()
    if path.suffix == ".zst":
        return zstandard.ZstdDecompressor().decompressobj().decompress(data)
    return data


def _texts() -> Iterator[Seed]:
    names = [*TRACES.glob("synthetic/*.txt"), *TRACES.glob("forms/*/*.txt.zst")]
    names += [path for path in TRACES.glob("recorded/*/*.txt.zst") if path.stat().st_size < 60_000]
    for path in sorted(names):
        data = _content(path)
        if len(data) < _MOST_BYTES:
            yield Seed(data)


def _dats() -> Iterator[Seed]:
    for path in sorted(TRACES.glob("trace-cmd/*/*.dat.zst")):
        yield Seed(_content(path))


def _tables() -> Iterator[Seed]:
    """Small traces as ``replay parse`` writes them."""
    with tempfile.TemporaryDirectory() as directory:
        for path in sorted(TRACES.glob("synthetic/*.txt"))[::3]:
            for suffix in (".arrow", ".parquet"):
                table = Path(directory, f"{path.stem}{suffix}")
                command = [sys.executable, "-m", "replay", "parse", str(path), "-o", str(table), "--quiet"]
                subprocess.run(command, check=True)
                yield Seed(table.read_bytes())


def _goldens() -> Iterator[Seed]:
    for path in sorted(TRACES.glob("synthetic/*.txt.expected.json")):
        yield Seed(path.read_bytes(), str(path).removesuffix(".expected.json"))


def _tomls() -> Iterator[Seed]:
    for policy in _POLICIES:
        yield Seed(policy, str(TRACES / "synthetic" / "rule4-occupied-rmap.txt"))
    for path in sorted([*TRACES.glob("synthetic/*.toml"), *SCENARIOS.glob("*.toml")]):
        yield Seed(path.read_bytes())


def _change_dat(data: bytes, rng: Random, seeds: Sequence[bytes]) -> bytes:
    """Half of the changes meet the formats and sections at the beginning, half the events."""
    if rng.random() < 0.1:
        other = rng.choice(seeds)
        at = rng.randrange(min(len(data), len(other)) or 1) & -4096
        return data[:at] + other[at:]
    head = rng.choice((4096, 64 << 10, len(data)))
    at = rng.randrange(head + 1)
    piece = data[at : at + 256]
    if rng.random() < 0.4 and len(piece) >= 8:  # a length, a time, a number
        size, place = rng.choice((2, 4, 8)), rng.randrange(len(piece) - 7)
        number = rng.choice(lines.EXTREMES) % (1 << 8 * size)
        piece = piece[:place] + number.to_bytes(size, "little") + piece[place + size :]
    else:
        piece = lines.noise(piece, rng)
        if len(piece) < 200 and rng.random() < 0.05:
            return data[:at] + piece  # cut off
    return data[:at] + piece + data[at + 256 :]


TARGETS = {
    "text": Target(".txt", _texts, lines.change, lines.cut),
    "dat": Target(".dat", _dats, _change_dat, by_line=False),
    "tables": Target(".table", _tables, columns.change, by_line=False),
    "golden": Target(".json", _goldens, trees.change_golden),
    "toml": Target(".toml", _tomls, trees.change_toml),
}
