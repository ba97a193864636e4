"""How fast traces are parsed: lines a second on one core, and beside it ``wc -l`` on the same file.

    python tools/bench/parse.py FILE
    python tools/bench/parse.py --synthetic [--lines 1000000]

The best of some runs counts, with compiled code warm and the file in the page cache.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from replay.trace.reader import read_trace


def write_synthetic(path: Path, lines: int) -> None:
    """A trace of ``lines`` lines in the proportions of a guest that touches its memory."""
    with path.open("w") as file:
        file.write("# tracer: nop\n#\n")
        for number in range(lines - 2):
            vcpu = number >> 12 & 1
            head = f" CPU {vcpu}/KVM-{4242 + vcpu}    (   4200) [{number & 7:03d}] ...1. "
            at = f"{100 + number * 1e-6:12.6f}: "
            gfn = 0x40000 + number // 6
            spte = gfn << 12 | 0xE67
            text = (
                f"kvm_page_fault: vcpu 0 rip 0xffffffff81001000 address 0x{gfn << 12:016x} error_code 0x6",
                f"kvm_mmu_spte_requested: gfn {gfn:x} pfn {gfn + 0x9A000:x} level 1",
                f"kvm_mmu_get_page: sp gen 0 gfn {gfn & ~511:x} l1 8-byte q0 direct wux nxe ad root 0 sync new",  # noqa: E501
                f"kvm_tdp_mmu_spte_changed: as id 0 gfn {gfn:x} level 1 old_spte 0 new_spte {spte:x}",
                f"kvm_mmu_set_spte: gfn {gfn:x} spte {spte:x} (rwxu) level 1 at {gfn * 8 + 0x2717A000:x}",
                f"kvm_mmu_split_huge_page: gfn {gfn:x} spte {spte:x} level 2 errno 0",
            )[number % 6]
            file.write(f"{head}{at}{text}\n")


def best_seconds(run: Callable[[], object], runs: int) -> float:
    """The shortest of ``runs`` runs."""
    seconds = []
    for _ in range(runs):
        begin = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - begin)
    return min(seconds)


def measure(path: Path, runs: int) -> None:
    """Print the speed of parsing ``path`` and of ``wc -l`` on it."""
    trace = read_trace(str(path))
    parsing = best_seconds(lambda: read_trace(str(path)), runs)
    command = ["wc", "-l", str(path)]
    counting = best_seconds(lambda: subprocess.run(command, stdout=subprocess.DEVNULL, check=True), runs)
    lines, size = trace.lines, path.stat().st_size / 1e6
    print(f"{lines} lines, {size:.1f} MB, {trace.events} events, {trace.malformed_lines} malformed")
    print(f"parse  {parsing:.3f} s  {lines / parsing / 1e6:.2f} M lines/s  {size / parsing:.0f} MB/s")
    print(f"wc -l  {counting:.3f} s  {lines / counting / 1e6:.2f} M lines/s")
    print(f"ratio  {parsing / counting:.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the speed of parsing a trace.")
    parser.add_argument("file", nargs="?", type=Path, help="a trace; plain text compares best with wc")
    parser.add_argument("--synthetic", action="store_true", help="measure a trace made up for it")
    parser.add_argument("--lines", type=int, default=1_000_000, help="lines of the synthetic trace")
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    if arguments.synthetic:
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory, "synthetic.txt")
            write_synthetic(path, arguments.lines)
            measure(path, arguments.runs)
    elif arguments.file:
        measure(arguments.file, arguments.runs)
    else:
        parser.error("give a FILE or --synthetic")


if __name__ == "__main__":
    main()
