"""The fuzzers, for a moment each, and inputs that they found."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from replay.run import Request, run_trace
from replay.trace.reader import read_trace
from tests.test_cli import trace_text

ROOT = Path(__file__).parents[1]
INPUTS = {"text": 100, "dat": 12, "tables": 40, "golden": 40, "toml": 40}


@pytest.mark.parametrize("target", INPUTS)
def test_a_moment_of_each_fuzzer(target: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tools.fuzz", target, "--runs", str(INPUTS[target])]
    done = subprocess.run(
        [*command, "--seed", "13", "--failures", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    kept = "\n".join(path.read_text() for path in tmp_path.glob("*.about"))
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + kept
    assert f"{target}: {INPUTS[target]} inputs in " in done.stdout
    assert done.stdout.endswith(", 0 failures\n")


# -- what the fuzzers themselves must see ----------------------------------------------------------------

CUSTOM = """
import sys
if any("spawn_main" in word for word in sys.orig_argv):
    import defects
    from tools.fuzz import pipeline
    pipeline.run, pipeline.warm_up = defects.run, lambda: None
"""
DEFECTS = """
import os, time

def run(target, path, companion, seed):
    data = path.read_bytes()
    if b"crash" in data:
        os.abort()
    if b"raise" in data:
        raise KeyError("x")
    if b"sleep" in data:
        time.sleep(10**6)
"""
INDEX = """
from typing import NamedTuple
import numpy as np
from replay.jit import by_reference, jit, kernel

class State(NamedTuple):
    rows: np.ndarray
    table: np.ndarray

@jit
def look(state, i):
    return state.rows[i]

@jit
def of_row(row, i):
    return row[i]

@kernel
def begin(state, i, in_row):
    if in_row:
        return of_row(by_reference(state).table[1], i)
    return look(by_reference(state), i)

def run(target, path, companion, seed):
    begin(State(np.arange(5), np.zeros((9, 5), np.int64)), seed, bool(path.read_bytes()))
"""


@pytest.fixture
def broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A pipeline with defects, which processes load in place of the real one."""
    (tmp_path / "sitecustomize.py").write_text(CUSTOM)
    (tmp_path / "defects.py").write_text(DEFECTS)
    paths = [str(tmp_path), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    return tmp_path


@pytest.mark.parametrize(
    ("word", "kind"), [(b"crash", "dies SIGABRT"), (b"raise", "raises KeyError"), (b"sleep", "hangs")]
)
def test_a_failure_is_seen_and_made_small(
    broken: Path, word: bytes, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tools.fuzz import child, shrink
    from tools.fuzz.targets import TARGETS, Seed

    monkeypatch.setattr(child, "STUCK_SECONDS", 1 if word == b"sleep" else 600)
    monkeypatch.setattr(shrink, "SHRINK_SECONDS", 600)
    lines = b"one\ntwo\n%s three\nfour\n" % word
    seeds = [Seed(lines), Seed(b"good\n" * 9)]
    recipe = shrink.Recipe(0, 0, (), 7)
    with child.Child("text") as process:
        assert process.run(shrink.build(shrink.Recipe(1, 0, (), 7), TARGETS["text"], seeds)) is None
        failure = process.run(shrink.build(recipe, TARGETS["text"], seeds))
        assert failure is not None
        assert failure.kind.startswith(kind)
        if word != b"sleep":
            small = shrink.shrink(recipe, TARGETS["text"], seeds, process, failure)
            assert small.data == word + b" three\n"
        assert process.run(shrink.build(shrink.Recipe(1, 0, (), 7), TARGETS["text"], seeds)) is None


@pytest.mark.parametrize("row", [b"", b"row"])
def test_an_index_out_of_bounds_is_seen(row: bytes, broken: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of compiled code, in a table and in one row of it, under NUMBA_BOUNDSCHECK."""
    from tools.fuzz import child

    (broken / "defects.py").write_text(INDEX)
    monkeypatch.setenv("NUMBA_BOUNDSCHECK", "1")
    monkeypatch.setenv("REPLAY_CACHE_DIR", str(broken / "cache"))
    with child.Child("text") as process:
        assert process.run(child.Case(row, ".txt", "", 4)) is None
        failure = process.run(child.Case(row, ".txt", "", 5))
    assert failure is not None
    assert failure.kind.startswith("dies SIGABRT")
    assert "index 5 of 5" in failure.text


# -- what they found -------------------------------------------------------------------------------------


def test_no_histogram_of_a_trace_without_a_vm(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_text(trace_text(["tracing_mark_write: replay: memslot id=1 base_gfn=0 npages=0x800 flags=1"]))
    assert read_trace(str(path)).vms == []
    assert run_trace(str(path), Request(rmap_histogram=("end",))).document["rmap_histogram"] == []
