"""Fuzzers: inputs of one kind, changed at random, taken through the whole of ``replay``.

    python -m tools.fuzz text --seconds 1800 [--seed N] [--corpus DIR] [--bounds] [--failures DIR]
    python -m tools.fuzz text --again failures/text-1.txt

An input that ends the process, takes longer than 20 s, or raises what is no error of the user's is a failure,
so is a result whose figures do not add up.  It is made smaller and kept; the exit code is then 1.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random

from tools.fuzz.child import Case, Child, Failure
from tools.fuzz.shrink import Recipe, build, shrink
from tools.fuzz.targets import TARGETS, Seed, given_seeds

_SHOWN_SECONDS = 60


def main() -> int:
    arguments = _arguments()
    if arguments.bounds:
        os.environ["NUMBA_BOUNDSCHECK"] = "1"
    with Child(arguments.target) as child:
        if arguments.again is not None:
            failure = child.run(_kept(arguments.again))
            print(failure.text if failure else "nothing goes wrong")
            return int(failure is not None)
        return _fuzz(arguments, child)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tools.fuzz", description=__doc__.splitlines()[0])
    parser.add_argument("target", choices=TARGETS)
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--seconds", type=float, default=60, help="how long (60)")
    length.add_argument("--runs", type=int, help="how many inputs, whatever time that takes")
    parser.add_argument("--seed", type=int, default=0, help="the same seed makes the same inputs")
    parser.add_argument("--corpus", type=Path, help="directory of inputs to begin with, instead of ours")
    parser.add_argument("--failures", type=Path, default=Path("fuzz-failures"), help="where they are kept")
    parser.add_argument("--bounds", action="store_true", help="check every index of compiled code")
    parser.add_argument("--again", type=Path, help="run one input that was kept")
    return parser.parse_args()


def _fuzz(arguments: argparse.Namespace, child: Child) -> int:
    target = TARGETS[arguments.target]
    seeds = list(given_seeds(arguments.corpus, target) if arguments.corpus else target.seeds())
    rng = Random(arguments.seed)
    seen: Counter[str] = Counter()
    child.start()
    begun = shown = time.monotonic()
    count = 0
    for recipe in _recipes(rng, seeds):
        if count == arguments.runs:
            break
        now = time.monotonic()
        if arguments.runs is None and now - begun >= arguments.seconds:
            break
        if arguments.runs is None and now - shown >= _SHOWN_SECONDS:
            shown = now
            print(f"{now - begun:.0f} s, {count} inputs, {len(seen)} failures", file=sys.stderr, flush=True)
        count += 1
        failure = child.run(build(recipe, target, seeds))
        if failure is not None:
            seen[failure.kind] += 1
            if seen[failure.kind] == 1:
                print(f"FAILURE {failure.kind}", flush=True)
                small = shrink(recipe, target, seeds, child, failure)
                _keep(arguments.failures, f"{arguments.target}-{arguments.seed}-{count}", small, failure)
    print(f"{arguments.target}: {count} inputs in {time.monotonic() - begun:.0f} s, {len(seen)} failures")
    for kind, times in seen.most_common():
        print(f"  {times} times: {kind}")
    return int(bool(seen))


def _recipes(rng: Random, seeds: list[Seed]) -> Iterator[Recipe]:
    """Each good input as it is, then changed ones for ever."""
    for number in range(len(seeds)):
        yield Recipe(number, rng.getrandbits(32), (), rng.getrandbits(32))
    while True:
        changes = tuple(rng.getrandbits(32) for _ in range(rng.choice((1, 1, 2, 3, 5, 8, 15))))
        yield Recipe(rng.randrange(len(seeds)), rng.getrandbits(32), changes, rng.getrandbits(32))


def _keep(directory: Path, name: str, case: Case, failure: Failure) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{name}{case.suffix}"
    path.write_bytes(case.data)
    about = {"companion": case.companion, "options": case.options, "kind": failure.kind, "text": failure.text}
    path.with_name(f"{path.name}.about").write_text(json.dumps(about, indent=1) + "\n")
    print(f"  kept as {path} ({len(case.data)} bytes)", flush=True)


def _kept(path: Path) -> Case:
    about = json.loads(path.with_name(f"{path.name}.about").read_text())
    return Case(path.read_bytes(), path.suffix, about["companion"], about["options"])


if __name__ == "__main__":
    sys.exit(main())
