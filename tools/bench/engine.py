"""Replay speed: events a second on one core, and the cost of a split, beside ``wc -l`` on the same text.

    python tools/bench/engine.py TRACE...

Prints, for each trace, the best of several runs of the jitted loop on a parsed table.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from replay.mmu.engine import Options, replay_trace, trace_facts
from replay.policy import Policy
from replay.trace.reader import read_trace

RUNS = 5


def seconds_of_wc(path: Path) -> float:
    """Best time of ``wc -l``; nan for a compressed trace."""
    if path.suffix in (".gz", ".xz", ".zst"):
        return float("nan")
    times = []
    for _ in range(RUNS):
        begin = time.perf_counter()
        subprocess.run(["wc", "-l", path], check=True, stdout=subprocess.DEVNULL)
        times.append(time.perf_counter() - begin)
    return min(times)


def main() -> None:
    for name in sys.argv[1:]:
        path = Path(name)
        trace = read_trace(name)
        policy = Policy.parse(trace_facts(trace).policy_hint[0])
        times = []
        for _ in range(RUNS):
            begin = time.perf_counter()
            result = replay_trace(trace, policy, Options())
            times.append(time.perf_counter() - begin)
        replay = min(times)
        print(
            f"{path.name}: {trace.events} events, {replay:.3f} s, {trace.events / replay / 1e6:.1f} M/s, "
            f"{replay / seconds_of_wc(path):.1f} x wc -l, {result.counters['split']} splits"
        )


if __name__ == "__main__":
    main()
