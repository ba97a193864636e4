"""Records and enums in compiled code, which has to do what the same code does as plain Python."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROGRAM = """
import sys
from enum import IntEnum
from typing import Any, NamedTuple

import numpy as np

from replay.jit import by_reference, clear, jit, kernel, new_records

THING = np.dtype([("gfn", np.int64), ("pte", np.int64, 6), ("flags_", np.int32), ("small", np.int16)])


class Kind(IntEnum):
    FIRST = 3
    SECOND = 4


class State(NamedTuple):
    things: Any
    numbers: Any
    ctl: Any


@jit
def kind_of(number: int) -> int:
    return Kind.FIRST if number == Kind.FIRST else number


@jit
def raised(row: np.ndarray, place: int, by: int) -> int:
    row[place] += by
    return row[place]


@jit
def work(m: State, place: int) -> int:
    one, two = m.things[1], m.things[2]
    one.gfn = 5
    one.gfn |= 1 << 40
    one.flags_ |= Kind.FIRST | Kind.SECOND
    one.small -= 2
    one.pte[3] = 7
    total = raised(one.pte, 3, Kind.SECOND) + raised(m.ctl.pte, place, 2)
    m.things[0] = one
    clear(two)
    m.ctl.gfn = kind_of(3) + kind_of(9)
    m.numbers[Kind.FIRST] += m.things[0].pte[3]
    return total + (m.ctl.gfn if one.flags_ & Kind.SECOND else 0)


@kernel
def run(state: State, place: int) -> int:
    return work(by_reference(state), place)


state = State(new_records(3, THING), np.zeros(8, np.int64), new_records(1, THING)[0])
state.things.gfn = 9
print(run(state, int(sys.argv[1])))
for thing in (state.things[i] for i in range(3)):
    print(thing.gfn, thing.pte.tolist(), thing.flags_, thing.small)
print(state.numbers.tolist(), state.ctl.gfn, state.ctl.pte.tolist())
"""
EXPECTED = [
    "25",
    f"{5 | 1 << 40} [0, 0, 0, 11, 0, 0] 7 -2",
    f"{5 | 1 << 40} [0, 0, 0, 11, 0, 0] 7 -2",
    "0 [0, 0, 0, 0, 0, 0] 0 0",
    "[0, 0, 0, 11, 0, 0, 0, 0] 12 [0, 0, 0, 0, 2, 0]",
]


def output(directory: Path, place: int, **environment: str) -> subprocess.CompletedProcess[str]:
    program = directory / "program.py"
    program.write_text(PROGRAM)
    settings = os.environ | {"PYTHONPATH": str(ROOT)} | environment
    command = [sys.executable, str(program), str(place)]
    return subprocess.run(command, env=settings, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    "environment",
    [{"NUMBA_DISABLE_JIT": "0"}, {"NUMBA_DISABLE_JIT": "1"}, {"NUMBA_BOUNDSCHECK": "1"}],
    ids=["compiled", "python", "checked"],
)
def test_fields_of_records(tmp_path: Path, environment: dict[str, str]) -> None:
    done = output(tmp_path, 4, **environment)
    assert (done.returncode, done.stdout.splitlines()) == (0, EXPECTED), done.stderr


def test_index_beyond_the_numbers_of_a_field(tmp_path: Path) -> None:
    done = output(tmp_path, 6, NUMBA_BOUNDSCHECK="1")
    assert done.returncode != 0
    assert "index 6 of 6" in done.stderr
