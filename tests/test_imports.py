"""Imports go one way: each part of the package imports only those below it, and no two modules each other."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import replay

PACKAGE = Path(replay.__file__).parent
ROOMS = [
    *("__main__", "ending", "interrupt", "cli", "pytest_plugin", "warmup", "api"),
    *("bulk", "info", "review", "check", "run", "report", "verdict"),
    *("synth", "mmu", "trace", "jit", "arrow", "schema"),
    *("policy", "options", "kernel", "output", "text_files", "memory", "regular", "printable", "errors"),
]
"""Files and directories of the package, from what stands on top of all others to what stands on none."""


def modules() -> dict[str, Path]:
    """The modules of the package by their names."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(path: Path, names: set[str]) -> Iterator[str]:
    """The modules among ``names`` that a file imports, those for type checkers included."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module in names:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in names else node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in names)


@pytest.fixture(scope="module")
def imports() -> dict[str, set[str]]:
    """What each module imports of the package; the package itself only names its public parts."""
    found = modules()
    names = found.keys() - {"replay"}
    return {name: set(imported(found[name], names)) - {name} for name in names}


def room(module: str) -> str:
    return module.split(".")[1]


def test_every_part_has_its_place(imports: dict[str, set[str]]) -> None:
    assert {room(module) for module in imports} == set(ROOMS)


def test_imports_go_down(imports: dict[str, set[str]]) -> None:
    up = [
        f"{module} imports {other}"
        for module, others in imports.items()
        for other in others
        if ROOMS.index(room(other)) < ROOMS.index(room(module))
    ]
    assert up == []


def test_no_modules_import_each_other(imports: dict[str, set[str]]) -> None:
    def reached(module: str, seen: set[str]) -> set[str]:
        for other in imports[module] - seen:
            seen.add(other)
            reached(other, seen)
        return seen

    assert [module for module in imports if module in reached(module, set())] == []
