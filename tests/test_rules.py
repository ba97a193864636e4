"""tools/rules.py and tools/tree.py: the project keeps its rules, and a breach of each is found."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tools.rules import problems, read_modules
from tools.tree import BEGIN, END, with_tree

PROJECT = Path(__file__).parents[1]
DESCRIBED = '@jit\ndef part(a):\n    """Double."""\n    return a + a\n'


@pytest.mark.parametrize("command", [["tools.rules"], ["tools.tree", "--check"]], ids=" ".join)
def test_the_project_keeps_them(command: list[str]) -> None:
    result = subprocess.run(
        [sys.executable, "-m", *command], capture_output=True, text=True, check=False, cwd=PROJECT
    )
    assert result.returncode == 0, result.stdout + result.stderr


def found(project: Path, **sources: str) -> list[str]:
    for name, text in sources.items():
        path = project / "replay" / f"{name.replace('__', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return [f"{each.module}: {each.what}" for each in problems(read_modules(project))]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (DESCRIBED, []),
        ("@jit\ndef part(a):\n    return a\n", ["mmu.walk: part() has no docstring"]),
        ("@kernel\ndef whole(a):\n    return a\n", ["mmu.walk: whole() has no docstring"]),
        (
            '@jit\ndef part(a, b):\n    """Return b."""\n    return b\n',
            ["mmu.walk: part() does not use its parameter a"],
        ),
        ("def plain(a):\n    return 1\n", []),
    ],
)
def test_jitted_functions(tmp_path: Path, text: str, expected: list[str]) -> None:
    assert found(tmp_path, mmu__walk=text) == expected


def test_a_function_that_another_module_imports_has_a_docstring(tmp_path: Path) -> None:
    sources = {
        "errors": "def one():\n    pass\n\n\ndef two():\n    pass\n",
        "policy": "def three():\n    from replay.errors import one\n\n    return one\n",
    }
    assert found(tmp_path, **sources) == ["errors: one() has no docstring"]


@pytest.mark.parametrize(
    ("importer", "statement", "problem"),
    [
        ("mmu__walk", "from replay.errors import ReplayError", None),
        ("mmu__walk", "from replay.mmu import rmap", None),
        ("mmu__walk", "import replay.trace.reader", "mmu.walk: imports trace"),
        ("mmu__walk", "from replay.trace import reader", "mmu.walk: imports trace"),
        ("trace__text__lines", "from replay.mmu.walk import look_up", "trace.text.lines: imports mmu"),
        ("verdict__golden", "def late():\n    from replay.run import Request", "verdict.golden: imports run"),
        ("verdict__golden", "if TYPE_CHECKING:\n    from replay.run import Request", None),
        ("new", "import replay.errors", "new: imports errors"),
        ("run", "import os", None),
    ],
)
def test_imports_go_one_way(tmp_path: Path, importer: str, statement: str, problem: str | None) -> None:
    others = {"errors": "", "mmu__rmap": "", "trace__reader": ""}
    assert found(tmp_path, **others, **{importer: statement}) == ([problem] if problem else [])


def test_no_two_modules_import_each_other(tmp_path: Path) -> None:
    sources = {
        "mmu__rmap": "from replay.mmu.walk import a\n",
        "mmu__walk": "def b():\n    import replay.mmu.rmap\n",
    }
    assert found(tmp_path, **sources) == ["mmu.rmap: imports mmu.walk, which imports it"]


def test_the_tree_has_one_line_a_file(tmp_path: Path) -> None:
    for name, text in {
        "replay/__init__.py": '"""All of it."""\n',
        "replay/run.py": '"""One run.\n\nMore.\n"""\n',
        "replay/mmu/walk.py": "",
        "tools/tree.py": '"""This."""\n',
        "tests/reference/oracle.py": '"""Slow."""\n',
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    page = with_tree(f"before\n{BEGIN}old\n{END}after\n", tmp_path)
    expected = [
        "replay/                  All of it",
        "  run.py                 One run",
        "  mmu/",
        "    walk.py",
        "tools/",
        "  tree.py                This",
        "tests/reference/",
        "  oracle.py              Slow",
    ]
    assert page == "\n".join([f"before\n{BEGIN}```", *expected, f"```\n{END}after\n"])
    with pytest.raises(ValueError, match="no <!-- tree"):
        with_tree("no place for it", tmp_path)
