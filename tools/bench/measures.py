"""What is measured: each function gives rows of the table, all of one run on one machine."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tools.bench.inputs import write_synthetic
from tools.bench.timing import ROOT, best_call, best_command, on_one_core, python, replay

if TYPE_CHECKING:
    from replay.trace.trace import Trace

MIXED = ROOT / "traces" / "synthetic" / "bench-mixed.toml"
GUEST = ROOT / "tools" / "bench" / "guest-12tib.toml"
SMALL = ROOT / "traces" / "synthetic" / "full-split.txt"
LINES_A_ROUND = 1500
"""About as many has one round of the mixed scenario."""
ROUNDS_MAPPED = 1000
"""For so many the mixed scenario maps memory."""
EMPTY_APP = "import typer; app = typer.Typer(); app.command()(lambda: None); app()"


class Row(NamedTuple):
    """One line of the table; ``ratio`` is that of ``value`` to what ``against`` names."""

    name: str
    value: float
    unit: str
    against: str = ""
    ratio: float | None = None


class Inputs(NamedTuple):
    """Traces made for the run, and how much is to be measured."""

    directory: Path
    runs: int
    text: Path  # about ``lines`` lines in the proportions of a guest that touches its memory
    lines: int
    longest: int  # events of the longest trace that is replayed


Measure = Callable[[Inputs], Iterator[Row]]


def parsing(inputs: Inputs) -> Iterator[Row]:
    """Text to columns, on one core and on all, beside tools that look for one word."""
    from replay.trace.reader import read_trace
    from replay.trace.text.sections import thread_count

    tool = next(name for name in ("rg", "grep") if shutil.which(name))
    counting = best_command([tool, "-c", "set_spte", inputs.text], inputs.runs)
    words = best_command(["wc", "-l", inputs.text], inputs.runs)
    one = best_call(lambda: read_trace(str(inputs.text), threads=1), inputs.runs + 1)
    every = best_call(lambda: read_trace(str(inputs.text)), inputs.runs)
    yield Row(
        "parse, one core", inputs.lines / one.cpu / 1e6, "M lines/s", f"{tool} -c", one.cpu / counting.cpu
    )
    yield Row("parse, one core", one.cpu * 1e9 / inputs.lines, "ns/line", "wc -l", one.cpu / words.cpu)
    yield Row(
        f"parse, {thread_count()} cores, wall",
        inputs.lines / every.wall / 1e6,
        "M lines/s",
        f"{tool} -c",
        every.wall / counting.wall,
    )
    yield Row("parse, speed of all cores", one.wall / every.wall, "x", "one core", one.wall / every.wall)


def memory(inputs: Inputs) -> Iterator[Row]:
    """Peak memory of ``replay parse`` for a trace, and for two more than what is kept in memory."""
    longer, table = inputs.directory / "longer.txt", inputs.directory / "memory.arrow"
    peaks = []
    for copies in (1, 2, 20):
        with longer.open("ab") as file:
            while file.tell() < copies * inputs.text.stat().st_size:
                with inputs.text.open("rb") as part:
                    shutil.copyfileobj(part, file, 1 << 20)
        peaks.append(best_command(replay("parse", "-q", longer, "-o", table), 1).memory)
    yield Row("parse, memory", peaks[0], "MB")
    yield Row("parse, memory at 20 times the lines", peaks[2], "MB", "2 times", peaks[2] / peaks[1])
    longer.unlink()
    table.unlink()


def caching(inputs: Inputs) -> Iterator[Row]:
    """Reading the columns from tables, and from the text they were made of, in processor time."""
    from replay.trace.reader import read_trace, write_table

    def columns(path: Path) -> int:
        return sum(int(batch.line[-1]) for batch in read_trace(str(path)).batches())

    text = best_call(lambda: columns(inputs.text), inputs.runs)
    for ending in (".arrow", ".parquet"):
        table = inputs.directory / f"table{ending}"
        write_table(read_trace(str(inputs.text)), table)
        read = best_call(lambda path=table: columns(path), inputs.runs)  # type: ignore[misc]
        yield Row(f"read {ending}", read.cpu * 1e3, "ms", "text", read.cpu / text.cpu)


def synthesis(inputs: Inputs) -> Iterator[Row]:
    """Writing traces: a guest that touches its memory in order, and one that does all sorts of things."""
    trace = inputs.directory / "synth.txt"
    for name, text in (("in order", _guest(1)), ("mixed", _mixed(100))):
        seconds = best_call(lambda text=text: _write(text, inputs.directory, trace), inputs.runs)  # type: ignore[misc]
        yield Row(f"synth, {name}", _lines(trace) / seconds.cpu / 1e6, "M lines/s")


def replaying(inputs: Inputs) -> Iterator[Row]:
    """The simulated MMU alone, on columns in memory: mixed events, and a guest far larger than the cache."""
    from replay.mmu.engine import Options, replay_trace
    from replay.policy import Policy
    from replay.trace.reader import read_trace

    for name, text in (("mixed", _mixed(300)), ("large state", _guest(1))):
        path = inputs.directory / "synth.txt"
        _write(text, inputs.directory, path)
        trace = read_trace(str(path))
        without = _replay_seconds(trace, "never", inputs.runs)
        yield Row(f"replay, {name}", trace.events / without / 1e6, "M events/s")
    options = Options(split_at="end", compare_recorded=False)
    splits = replay_trace(trace, Policy.parse("v2"), options).counters["split"] or 1
    each = (_replay_seconds(trace, "end", inputs.runs) - without) / splits
    yield Row("split of a 2M page", each * 1e9, "ns", "25 us of Linux", each / 25e-6)


def scale(inputs: Inputs) -> Iterator[Row]:
    """The simulated MMU on ever longer traces of the mixed scenario; beyond some it reads them from disk."""
    from replay.trace.reader import read_trace

    first = None
    path = inputs.directory / "scale.txt"
    events = 100_000
    while events <= inputs.longest:
        _write(_mixed(events // LINES_A_ROUND), inputs.directory, path)
        trace = read_trace(str(path))
        runs = inputs.runs if events < 100_000_000 else 1
        each = _replay_seconds(trace, "never", runs) / trace.events
        first = first or each
        yield Row(
            f"replay, {trace.events / 1e6:.1f} M events", each * 1e9, "ns/event", "the first", each / first
        )
        events *= 10
    path.unlink()


def commands(inputs: Inputs) -> Iterator[Row]:
    """Whole commands, compiled code warm, on the wall clock."""
    best_command(replay("warmup"), 1)
    app = best_command(python("-c", EMPTY_APP), inputs.runs)
    usage = best_command(replay("--help"), inputs.runs)
    yield Row("replay --help", usage.wall * 1e3, "ms", "an empty typer app", usage.wall / app.wall)
    imports = best_command(python("-c", "import numba, pyarrow"), inputs.runs)
    small = best_command(replay("run", SMALL, "--expect", "none"), inputs.runs)
    yield Row(
        "replay run, small trace",
        small.wall * 1e3,
        "ms",
        "importing numba, pyarrow",
        small.wall / imports.wall,
    )
    mixed = inputs.directory / "mixed.txt"
    _write(_mixed(inputs.lines // LINES_A_ROUND), inputs.directory, mixed)
    whole = best_command(replay("run", mixed, "--expect", "none"), inputs.runs)
    yield Row(f"replay run, {_lines(mixed) / 1e6:.2f} M lines", whole.wall, "s")
    for ending in (".arrow", ".parquet"):
        table = mixed.with_suffix(ending)
        best_command(replay("parse", mixed, "-o", table), 1)
        cached = best_command(replay("run", table, "--expect", "none"), inputs.runs)
        yield Row(
            f"replay run on the table ({ending})", cached.wall, "s", "on the text", cached.wall / whole.wall
        )


def compilation(inputs: Inputs) -> Iterator[Row]:
    """Everything cold."""
    for name, command in (
        ("compile everything, all cores", replay("warmup")),
        ("compile everything, one core", on_one_core(replay("warmup"))),
    ):
        with tempfile.TemporaryDirectory() as cache:
            yield Row(name, best_command(command, 1, REPLAY_CACHE_DIR=cache).wall, "s")


def make_inputs(directory: Path, lines: int, runs: int, longest: int) -> Inputs:
    """The traces that several measures use."""
    text = directory / "text.txt"
    write_synthetic(text, lines)
    return Inputs(directory, runs, text, lines, longest)


def _replay_seconds(trace: Trace, split_at: str, runs: int) -> float:
    """Processor time of one replay by policy v2."""
    from replay.mmu.engine import Options, replay_trace
    from replay.policy import Policy

    options = Options(split_at=split_at, compare_recorded=False)
    return best_call(lambda: replay_trace(trace, Policy.parse("v2"), options), runs).cpu


def _write(scenario: str, directory: Path, trace: Path) -> None:
    """Write the trace of the TOML ``scenario``."""
    from replay.synth import write_trace

    path = directory / "scenario.toml"
    path.write_text(scenario)
    write_trace(path, trace)


def _lines(path: Path) -> int:
    with path.open("rb") as file:
        return sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b""))


def _guest(tebibytes: int) -> str:
    """The scenario of the large guest with ``tebibytes`` instead of 12."""
    text = (
        GUEST.read_text()
        .replace("0xc0000000000", hex(tebibytes << 40))
        .replace("0xc0000000", hex(tebibytes << 28))
    )
    return "\n".join(line for line in text.splitlines() if 'do = "dirty_log"' not in line)


def _mixed(rounds: int) -> str:
    """The mixed scenario with so many rounds, and memory for them."""
    more = -(-rounds // ROUNDS_MAPPED)
    return (
        MIXED.read_text()
        .replace("times = 700", f"times = {rounds}")
        .replace("size = 0x1000000000", f"size = {more * 0x1000000000:#x}")
        .replace("npages = 0x1000000\n", f"npages = {more * 0x1000000:#x}\n")
        .replace("npages = 0x10000\n", f"npages = {0x10000 + more * 0x1000:#x}\n")  # page tables
    )


MEASURES: tuple[Measure, ...] = (
    memory,  # first: what this process has taken counts as its children's
    parsing,
    caching,
    synthesis,
    replaying,
    scale,
    commands,
    compilation,
)
