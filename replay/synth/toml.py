"""TOML tables that know their place in the file, so that every complaint can name file, line and key."""

from __future__ import annotations

import re
from typing import Any

from replay.errors import InputError

LEVELS = {"4k": 1, "2m": 2, "1g": 3}
"""Words for page sizes and the level that KVM gives them."""
PAGE_SHIFT = 12


def pages(level: int) -> int:
    """4 KiB frames of one page of ``level`` (KVM_PAGES_PER_HPAGE)."""
    return 1 << (9 * (level - 1))


class Table:
    """A TOML table that knows its line and finds keys that were never read."""

    def __init__(self, source: Source, kind: str, content: dict[str, Any], line: int, end: int) -> None:
        self.source = source
        self.kind = kind
        self.line, self.end = line, end
        self.content = content
        self.asked: set[str] = set()

    def error(self, key: str | None, message: str) -> InputError:
        line = self.line if key is None else self.source.key_line(key, self.line, self.end)
        where = f"[[{self.kind}]] " if self.kind else ""
        return InputError(self.source.path, line, f"{where}{key}: {message}" if key else f"{where}{message}")

    def get(self, key: str, kind: type[Any], default: Any = None) -> Any:
        """The value of ``key``; without a default the key is required."""
        self.asked.add(key)
        if key not in self.content:
            if default is None:
                raise self.error(None, f"key '{key}' is missing")
            return default
        value: Any = self.content[key]
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise self.error(key, f"expected {kind.__name__}, got {value!r}")
        if isinstance(value, int) and value < 0:
            raise self.error(key, f"{value} is negative")
        return value

    def choice(self, key: str, words: tuple[str, ...], default: str | None = None) -> str:
        """A word out of ``words``."""
        value: str = self.get(key, str, default)
        if value not in words:
            raise self.error(key, f"'{value}' is none of {', '.join(words)}")
        return value

    def size(self, key: str, default: int | str | None = None) -> int:
        """Bytes: a number, or ``"4k"``, ``"2m"``, ``"1g"``."""
        self.asked.add(key)
        value = self.content.get(key, default)
        if isinstance(value, str) and value in LEVELS:
            return pages(LEVELS[value]) << PAGE_SHIFT
        if isinstance(value, str):
            raise self.error(key, f"'{value}' is none of 4k, 2m, 1g")
        return int(self.get(key, int, default))

    def tables(self, key: str) -> list[Table]:
        """The tables of an array of tables below this one."""
        kind = f"{self.kind}.{key}" if self.kind else key
        return [self.source.table(kind, item, self) for item in self.get(key, list, [])]

    def done(self) -> None:
        """Complain about the first key that is not known."""
        for key in self.content:
            if key not in self.asked:
                raise self.error(key, "unknown key")


class Source:
    """The text of the file; finds the line of a table and of a key (tomllib does not keep positions).

    A table has a header line of its own, ``[[vm.slot]]``, or is an inline table ``{...}`` that
    begins a line below ``slot = [``.
    """

    def __init__(self, path: str, text: str) -> None:
        self.path = path
        self.lines = text.splitlines()
        self.starts: list[tuple[int, str]] = []  # line and kind; of inline tables the last word of their kind
        self.seen: dict[str, int] = {}
        arrays: list[str] = []
        for number, line in enumerate(self.lines, 1):
            if header := re.match(r"\s*\[\[?\s*([\w.]+)\s*\]\]?", line):
                self.starts.append((number, header.group(1)))
            elif arrays and line.lstrip().startswith("{"):
                self.starts.append((number, arrays[-1]))
            elif arrays and line.lstrip().startswith("]"):
                arrays.pop()
            if opening := re.search(r"(\w+)\s*=\s*\[\s*$", line):
                arrays.append(opening.group(1))

    def table(self, kind: str, content: Any, parent: Table | None = None) -> Table:
        """The next table of its kind, in the order of the file."""
        number = self.seen.get(kind, 0)
        self.seen[kind] = number + 1
        first, last = self.place(kind, number, parent)
        if not isinstance(content, dict):
            raise InputError(self.path, first, f"{kind}: expected a table, got {content!r}")
        return Table(self, kind, content, first, last)

    def place(self, kind: str, number: int, parent: Table | None) -> tuple[int, int]:
        """First and last line of the ``number``-th table of this kind; its parent's where it has no line."""
        lines = [line for line, _ in self.starts]
        if not kind:
            return 1, (lines[0] - 1 if lines else len(self.lines))
        same = [i for i, (_, name) in enumerate(self.starts) if name in (kind, kind.rpartition(".")[2])]
        if number >= len(same):
            return (parent.line, parent.end) if parent else (1, len(self.lines))
        following = same[number] + 1
        return lines[same[number]], (lines[following] - 1 if following < len(lines) else len(self.lines))

    def key_line(self, key: str, first: int, last: int) -> int:
        """The line between ``first`` and ``last`` that sets ``key``, else ``first``."""
        pattern = re.compile(rf"(^|[\s{{,]){re.escape(key)}\s*=")
        for number in range(first, last + 1):
            if pattern.search(self.lines[number - 1]):
                return number
        return first
