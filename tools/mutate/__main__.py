"""Which small changes to replay/mmu its tests do not notice.

    python -m tools.mutate [--only FILE ...] [--limit N] [--seed S] [--jobs N]

Each mutant has one change: an operand of and/or dropped, a comparison negated or its bound moved by one,
a constant one larger, a condition always true or false, a statement dropped.  The tests run as plain
Python in a copy of the project; those that survive are printed, one a line.  Not every survivor is a gap:
some changes make no difference.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tools.mutate.mutants import mutants
from tools.mutate.runner import BaselineError, Job, Run

PROJECT = Path(__file__).parents[2]
SOURCES = (
    "replay/mmu/split/walk.py",
    "replay/mmu/split/huge_page.py",
    "replay/mmu/split/prepare.py",
    "replay/mmu/split/rmap_heads.py",
    "replay/mmu/kernel/rmap.py",
    "replay/mmu/events/set_spte.py",
    "replay/mmu/kernel/shadow_page.py",
)


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tools.mutate", description=__doc__.splitlines()[0])
    parser.add_argument("--only", metavar="FILE", action="append", help="mutate this file (repeatable)")
    parser.add_argument("--limit", metavar="N", type=int, help="N mutants chosen at random, not all")
    parser.add_argument("--seed", metavar="S", type=int, default=0, help="of that choice (default: 0)")
    parser.add_argument("--jobs", metavar="N", type=int, default=1, help="mutants tested at the same time")
    parser.add_argument("--tests", metavar="PATH", action="append", help="repeatable (default: tests/mmu)")
    parser.add_argument("--project", metavar="DIR", type=Path, default=PROJECT, help="default: this one")
    return parser.parse_args(argv)


def jobs_of(project: Path, only: Sequence[str] | None, limit: int | None, seed: int) -> list[Job]:
    """The mutants to test, in the order of files and lines."""
    found = sorted(path for pattern in only or SOURCES for path in project.glob(pattern))
    jobs = [
        Job(str(path.relative_to(project)), mutant) for path in found for mutant in mutants(path.read_text())
    ]
    if limit is not None and limit < len(jobs):
        chosen = random.Random(seed).sample(range(len(jobs)), limit)
        jobs = [jobs[number] for number in sorted(chosen)]
    return jobs


def tests_of(project: Path, paths: Sequence[str]) -> list[str]:
    """The test files that ``paths`` are or hold."""
    found: list[Path] = []
    for path in (project / name for name in paths):
        found += sorted(path.rglob("test_*.py")) if path.is_dir() else [path]
    return [str(test.relative_to(project)) for test in found]


def main(argv: Sequence[str]) -> int:
    options = arguments(argv)
    project = options.project.resolve()
    jobs = jobs_of(project, options.only, options.limit, options.seed)
    tests = tests_of(project, options.tests or ["tests/mmu"])
    if not jobs or not tests:
        print("mutate: no function to change" if tests else "mutate: no tests", file=sys.stderr)
        return 2
    survived: Counter[str] = Counter()

    def report(job: Job, survives: bool) -> None:
        if survives:
            survived[job.source] += 1
            print(f"{job.source}:{job.mutant.line}: {job.mutant.change}", flush=True)

    with tempfile.TemporaryDirectory() as directory:
        try:
            Run(project, tests, jobs, options.jobs, report).in_copy(Path(directory) / "copy")
        except BaselineError as error:
            print(f"mutate: {error}", file=sys.stderr)
            return 2
    tested = Counter(job.source for job in jobs)
    for source in tested:
        print(f"{source}: {survived[source]} of {tested[source]} survived")
    print(f"{survived.total()} of {len(jobs)} mutants survived")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
