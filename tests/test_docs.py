"""README and docs: each command with its output below it prints that output, and what they name exists."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

PROJECT = Path(__file__).parents[1]
PAGES = [PROJECT / "README.md", *sorted((PROJECT / "docs").glob("*.md"))]
_BLOCK = re.compile(r"^```\n(.*?)^```\n", re.MULTILINE | re.DOTALL)
_INDENTED = re.compile(r"^    (\.venv/bin/replay .*)\n", re.MULTILINE)
_REPLAY = ".venv/bin/replay "
_MODULE = re.compile(r"-m (tools\.[a-z.]+)")
_FILE = re.compile(r"(?<![\w./-])((?:replay|tests|tools|traces|docs)/[\w./-]+\.[a-z0-9]+)\b")
_LINK = re.compile(r"\]\(([^)#:]+)(#[^)]*)?\)")
_FUNCTION = re.compile(r"`([a-z_]+)\(\)`")


class Example(NamedTuple):
    """One command and what a page says that it prints; a line ``...`` stands for any lines."""

    page: str
    command: str
    output: str


def examples(page: Path) -> list[Example]:
    """Blocks of one replay command that the next block follows with nothing but blank lines between."""
    text = page.read_text()
    blocks = list(_BLOCK.finditer(text))
    # an indented line is a block, too: the model's page gives its commands so
    indented = [
        (match[1], match.end()) for match in re.finditer(r"^    (\.venv/bin/replay .*)\n", text, re.M)
    ]
    fenced = [(match[1], match.end()) for match in blocks]
    found = []
    for command, end in [*fenced, *indented]:
        following = next((block for block in blocks if block.start() >= end), None)
        if following is None or text[end : following.start()].strip():
            continue
        if command.startswith(_REPLAY) and command.strip().count("\n") == 0:
            found.append(Example(page.name, command.strip(), following[1]))
    return found


EXAMPLES = [example for page in PAGES for example in examples(page)]


def test_there_are_examples() -> None:
    assert len(EXAMPLES) >= 4
    assert {example.page for example in EXAMPLES} >= {"README.md", "review.md"}


@pytest.mark.parametrize("example", EXAMPLES, ids=[f"{each.page}: {each.command}" for each in EXAMPLES])
def test_a_command_prints_what_the_page_says(example: Example) -> None:
    command = [sys.executable, "-m", "replay", *shlex.split(example.command.removeprefix(_REPLAY))]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=PROJECT)
    assert result.returncode == 0, result.stderr
    parts = [re.escape(part) for part in re.split(r"^\.\.\.\n", example.output, flags=re.MULTILINE)]
    assert re.fullmatch("(?:.*\n)*".join(parts), result.stdout), result.stdout


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_names_files_that_there_are(page: Path) -> None:
    text = page.read_text()
    named = {PROJECT / name for name in _FILE.findall(text)}
    named |= {page.parent / link for link, _ in _LINK.findall(text)}
    for module in _MODULE.findall(text):
        place = PROJECT / module.replace(".", "/")
        named.add(place if place.is_dir() else place.with_suffix(".py"))
    assert sorted(str(path.relative_to(PROJECT)) for path in named if not path.exists()) == []


def test_architecture_names_functions_that_there_are() -> None:
    source = "\n".join(path.read_text() for path in (PROJECT / "replay").rglob("*.py"))
    named = set(_FUNCTION.findall((PROJECT / "docs" / "ARCHITECTURE.md").read_text()))
    assert len(named) > 20
    assert named - set(re.findall(r"\bdef (\w+)\(", source)) == set()
