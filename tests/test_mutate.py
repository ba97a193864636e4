"""tools/mutate: the changes it makes, and which of them the tests of a tiny project do not notice."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tools.mutate.__main__ import jobs_of
from tools.mutate.mutants import mutants

PROJECT = Path(__file__).parents[1]
TINY = """\
def at_least(value, low):
    if value < low:
        return low
    return value
"""
TESTS = """\
from pkg.tiny import at_least

def test_at_least():
    assert (at_least(1, 3), at_least(5, 3)) == (3, 5)
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    for name, text in (("pkg/tiny.py", TINY), ("tests/test_tiny.py", TESTS)):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(text)
    return tmp_path


def mutate(project: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tools.mutate", "--project", str(project), "--tests", "tests"]
    return subprocess.run(
        [*command, "--only", "pkg/*.py", *arguments], capture_output=True, text=True, check=False, cwd=PROJECT
    )


def test_survivor_is_printed_and_the_others_are_not(project: Path) -> None:
    before = {path: path.read_text() for path in project.rglob("*.py")}
    result = mutate(project, "--jobs", "2")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.splitlines() == [
        "pkg/tiny.py:2: value < low -> value <= low",  # the value is the same either way
        "pkg/tiny.py: 1 of 4 survived",
        "1 of 4 mutants survived",
    ]
    assert {path: path.read_text() for path in project.rglob("*.py")} == before


def test_without_the_test_that_kills_it_a_mutant_survives(project: Path) -> None:
    tests = project / "tests" / "test_tiny.py"
    tests.write_text(TESTS.replace("at_least(5, 3)", "5"))
    lines = mutate(project).stdout.splitlines()
    assert lines[:2] == [
        "pkg/tiny.py:2: if value < low: -> if True:",
        "pkg/tiny.py:2: value < low -> value <= low",
    ]
    assert lines[-1] == "2 of 4 mutants survived"


def test_seed_chooses_which_mutants_are_tested(project: Path) -> None:
    chosen = {seed: tuple(jobs_of(project, ["pkg/*.py"], 2, seed)) for seed in range(20)}
    assert {len(jobs) for jobs in chosen.values()} == {2}
    assert len(set(chosen.values())) > 1
    assert tuple(jobs_of(project, ["pkg/*.py"], 2, 7)) == chosen[7]
    assert len(jobs_of(project, ["pkg/*.py"], None, 0)) == 4


def test_tests_that_fail_by_themselves_are_an_error(project: Path) -> None:
    (project / "pkg" / "tiny.py").write_text(TINY.replace("<", ">"))
    result = mutate(project)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "mutate: tests fail without any change: tests/test_tiny.py\n"


@pytest.mark.parametrize(
    ("line", "changes"),
    [
        ("return a and b or c", ["c", "a and b", "b", "a"]),
        ("return a != b", ["a == b"]),
        ("return a > b", ["a <= b", "a >= b"]),
        ("return not a", ["a"]),
        ("return 7", ["8"]),
        ("return a if b else c", ["a", "c"]),
        ("a[b] += c", ["nothing"]),
        ("a.count(b)", ["nothing"]),
        ("a = b", ["nothing"]),
        ("d = b", []),  # the name would be missing
    ],
)
def test_changes_of_a_line(line: str, changes: list[str]) -> None:
    found = list(mutants(f'LIMIT = 3\n\ndef f(a, b, c):\n    """Says 4."""\n    {line}\n'))
    assert [mutant.change.split(" -> ")[1] for mutant in found] == changes
    assert all(mutant.line == 5 for mutant in found)
    assert len({mutant.text for mutant in found}) == len(changes)
