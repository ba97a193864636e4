"""How fast given traces are parsed and replayed, on one core, beside ``wc -l`` on the same text.

    python -m tools.bench.traces TRACE...

Processor time, the best of some runs, with compiled code warm and the files in the page cache.
"""

from __future__ import annotations

import sys
from pathlib import Path

from replay.kernel import choose_policy
from replay.mmu.engine import replay_trace, trace_facts
from replay.options import Options
from replay.policy import Policy
from replay.trace.reader import read_trace
from tools.bench.timing import best_call, best_command

RUNS = 5


def measure(path: Path) -> None:
    """Print the speeds of one trace."""
    trace = read_trace(str(path))
    policy = Policy.parse(choose_policy(None, *trace_facts(trace).policy_evidence).policy)
    splits = replay_trace(trace, policy, Options()).counters["split"]
    parsing = best_call(lambda: read_trace(str(path), threads=1), RUNS).cpu
    replaying = best_call(lambda: replay_trace(trace, policy, Options()), RUNS).cpu
    counting = best_command(["wc", "-l", path], RUNS).cpu
    print(f"{path}: {trace.lines} lines, {trace.events} events, {splits} splits")
    for word, count, seconds in (("parse", trace.lines, parsing), ("replay", trace.events, replaying)):
        speed = f"{count / seconds / 1e6:.1f} M/s, {seconds / counting:.1f} x wc -l"
        print(f"  {word:<6}  {seconds:.3f} s, {speed}")


def main() -> None:
    """Measure what the command line names."""
    for name in sys.argv[1:]:
        measure(Path(name))


if __name__ == "__main__":
    main()
