"""Small text files that a user may have written, read up to a reasonable size."""

from __future__ import annotations

import json
import os
import re
import tomllib
from typing import Any

from replay.regular import open_regular

_BLOCK = 1 << 20
_DIGITS = 19
_SHOWN = 80
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


class TextFileError(Exception):
    """A file cannot be read as text; ``str()`` says why."""


def read_text_file(path: str | os.PathLike[str], limit: int, is_named: bool = True) -> str:
    """The UTF-8 text of a file of ``limit`` bytes at most.  Raises ``TextFileError``.

    ``is_named``: the user named it, so that it may be a pipe.
    """
    try:
        with open(path, "rb", buffering=0) if is_named else open_regular(path) as file:
            blocks, size = [], 0
            while block := file.read(min(_BLOCK, limit + 1 - size)):
                blocks.append(block)
                size += len(block)
                if size > limit:
                    raise TextFileError(f"larger than {limit >> 20} MiB")
    except OSError as error:
        raise TextFileError(error.strerror or str(error)) from error
    except ValueError as error:  # a path with a NUL
        raise TextFileError(str(error)) from error
    try:
        return b"".join(blocks).decode()
    except UnicodeDecodeError as error:
        raise TextFileError("not UTF-8 text") from error


def parse_json(text: str) -> Any:
    """The content of ``text``.  Raises ``ValueError``, also for what Python can read but not print."""
    try:
        content = json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deep") from error
    if _SURROGATE.search(text):
        _check_pairs(content)
    return content


def parse_toml(text: str) -> dict[str, Any]:
    """The content of ``text``.  Raises ``ValueError``."""
    try:
        return tomllib.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deep") from error


def decimal_number(text: str) -> int | None:
    """The number in ``text``; None if it is not digits or too long for 64 bits."""
    return int(text) if text.isdecimal() and len(text) <= _DIGITS else None


def shown(value: object) -> str:
    """``value`` for an error message, shortened if it is long."""
    try:
        text = str(value)
    except ValueError:  # a number of thousands of digits
        text = "a number too large"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _check_pairs(content: Any) -> None:
    """Raises ``ValueError`` for half a surrogate pair, which is no character."""
    try:
        json.dumps(content, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise ValueError("half a surrogate pair, which is no character") from error
