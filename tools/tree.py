"""The tree in docs/ARCHITECTURE.md: one line a file, the first line of its docstring.

python -m tools.tree            # renew the tree in the page
python -m tools.tree --check    # exit code 1 if it has to be renewed
"""

from __future__ import annotations

import argparse
import ast
import sys
from collections.abc import Iterator
from pathlib import Path

PROJECT = Path(__file__).parents[1]
PAGE = PROJECT / "docs" / "ARCHITECTURE.md"
BEGIN, END = "<!-- tree: python -m tools.tree -->\n", "<!-- end of tree -->\n"
ROOTS = ("replay", "tools", "tests/reference")
WIDTH = 24
"""Columns before the text: of a file's name with its indentation, if it is no longer."""


def tree_lines(root: Path, indent: str = "") -> Iterator[str]:
    """The lines of a directory: its files, then its directories, each with what is in it."""
    for path in sorted(root.iterdir(), key=lambda each: (each.is_dir(), each.name)):
        if path.suffix == ".py" and path.name != "__init__.py":
            yield _line(f"{indent}{path.name}", path)
        elif path.is_dir() and any(path.rglob("*.py")):
            yield _line(f"{indent}{path.name}/", path / "__init__.py")
            yield from tree_lines(path, indent + "  ")


def _line(name: str, module: Path) -> str:
    said = ast.get_docstring(ast.parse(module.read_text())) if module.exists() else None
    return f"{name:{WIDTH}} {said.splitlines()[0].rstrip('.') if said else ''}".rstrip()


def with_tree(page: str, project: Path) -> str:
    """``page`` with the tree of ``project`` between its two comments."""
    head, _, rest = page.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not end:
        raise ValueError(f"no {BEGIN.strip()} and {END.strip()}")
    lines = []
    for root in ROOTS:
        lines += [_line(f"{root}/", project / root / "__init__.py"), *tree_lines(project / root, "  ")]
    return f"{head}{BEGIN}```\n{chr(10).join(lines)}\n```\n{END}{tail}"


def main() -> int:
    """Renew the tree; with ``--check`` only say whether that changes the page."""
    parser = argparse.ArgumentParser(prog="python -m tools.tree", description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing; exit code 1 if the tree is old")
    check = parser.parse_args().check
    old = PAGE.read_text()
    new = with_tree(old, PROJECT)
    if old == new:
        return 0
    if check:
        print("docs/ARCHITECTURE.md: the tree is old: run python -m tools.tree", file=sys.stderr)
        return 1
    PAGE.write_text(new)
    return 0


if __name__ == "__main__":
    sys.exit(main())
