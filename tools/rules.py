"""Rules of the house that no linter knows: imports go one way, and jitted and shared functions are described.

    python -m tools.rules

prints one line for each place that breaks a rule. The exit code is 1 if ``tools/rules_allowed.txt`` does not
list one of them, or lists one that is gone: that list may only shrink.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

PROJECT = Path(__file__).parents[1]
PACKAGE = "replay"

LAYERS: tuple[tuple[str, ...], ...] = (
    ("", "errors", "interrupt", "memory", "printable", "regular", "schema"),
    ("arrow", "output", "text_files"),
    ("jit", "kernel", "policy"),
    ("options",),
    ("mmu", "synth.kvm", "trace"),
    ("verdict",),
    ("run", "synth"),
    ("api", "check", "info", "review", "warmup"),
    ("report",),
    ("bulk", "pytest_plugin"),
    ("cli",),
    ("ending",),
    ("__main__",),
)
"""The rooms, the lowest first; ``""`` is ``replay/__init__.py``. A room imports only rooms of lower layers.

What is imported only under ``TYPE_CHECKING`` does not count.
"""


class Module(NamedTuple):
    """One source file: its dotted name without ``replay.``, and what it says."""

    name: str
    tree: ast.Module

    @property
    def room(self) -> str:
        """The room that it is or lies in; its own name if ``LAYERS`` does not know it."""
        return room_of(self.name)

    @property
    def functions(self) -> list[ast.FunctionDef]:
        """The functions at its top level."""
        return [node for node in self.tree.body if isinstance(node, ast.FunctionDef)]


class Problem(NamedTuple):
    """One place that breaks a rule."""

    module: str
    what: str

    @property
    def key(self) -> str:
        """How the list of allowed ones names it: by room, so that a module may be moved within it."""
        return f"{room_of(self.module)}: {self.what}"


def room_of(name: str) -> str:
    """The room of a module: the longest name in ``LAYERS`` that it is or begins with."""
    rooms = [room for layer in LAYERS for room in layer if f"{name}.".startswith(f"{room}.")]
    return max(rooms, key=len, default=name)


def read_modules(project: Path) -> list[Module]:
    """All modules of the package in ``project``."""
    modules = []
    for path in sorted((project / PACKAGE).rglob("*.py")):
        parts = path.relative_to(project / PACKAGE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        modules.append(Module(name, ast.parse(path.read_text(), str(path))))
    return modules


def problems(modules: Iterable[Module]) -> Iterator[Problem]:
    """Everything in ``modules`` that breaks a rule."""
    by_name = {module.name: module for module in modules}
    imports = {name: list(_imports(module.tree, by_name)) for name, module in by_name.items()}
    shared = {each for name, taken in imports.items() for each in taken if each[0] != name}
    for module in by_name.values():
        for function in module.functions:
            is_shared = (module.name, function.name) in shared
            yield from _function_problems(module.name, function, is_shared)
    sources = {name: {source for source, _ in taken} for name, taken in imports.items()}
    for name, of_module in sources.items():
        for source in sorted(of_module):
            if not _may_import(room_of(name), room_of(source)):
                yield Problem(name, f"imports {room_of(source)}")
            if name < source and name in sources[source]:
                yield Problem(name, f"imports {source}, which imports it")


def _function_problems(module: str, function: ast.FunctionDef, is_shared: bool) -> Iterator[Problem]:
    is_jitted = bool({"jit", "kernel"} & set(map(ast.unparse, function.decorator_list)))
    if (is_jitted or is_shared) and not ast.get_docstring(function):
        yield Problem(module, f"{function.name}() has no docstring")
    used = {node.id for node in ast.walk(function) if isinstance(node, ast.Name)}
    for parameter in function.args.args if is_jitted else ():
        if parameter.arg not in used:
            yield Problem(module, f"{function.name}() does not use its parameter {parameter.arg}")


def _imports(tree: ast.AST, by_name: dict[str, Module]) -> Iterator[tuple[str, str]]:
    """The modules that a tree imports when it runs, each with the name that it takes of it, if any."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [each.name for each in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{each.name}" for each in node.names]
        for name in names:
            if not f"{name}.".startswith(f"{PACKAGE}."):
                continue
            inner = name.removeprefix(PACKAGE).removeprefix(".")
            module, _, member = inner.rpartition(".")
            yield (inner, "") if inner in by_name else (module, member)
        yield from _imports(node, by_name)


def _may_import(room: str, other: str) -> bool:
    levels = {name: level for level, layer in enumerate(LAYERS) for name in layer}
    return room == other or (room in levels and other in levels and levels[other] < levels[room])


def main() -> int:
    """Print what breaks a rule and is not allowed, and what is allowed for nothing; 1 if there is any."""
    found = list(problems(read_modules(PROJECT)))
    allowed = set((PROJECT / "tools" / "rules_allowed.txt").read_text().splitlines())
    wrong = [f"{PACKAGE}.{each.module}: {each.what}" for each in found if each.key not in allowed]
    gone = allowed - {each.key for each in found}
    wrong += [f"tools/rules_allowed.txt: strike out what is gone: {key}" for key in sorted(gone)]
    print("\n".join(wrong) or "all rules kept")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
