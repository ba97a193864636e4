"""Which files of a directory are traces, by their names."""

from __future__ import annotations

import os
from collections.abc import Iterator

COMPRESSED = (".gz", ".zst", ".xz")
SUFFIXES = (".txt", ".trace", ".log", ".out", ".dat", ".data", ".perf", ".parquet", ".arrow", ".feather")
"""Endings of traces in directories, before that of a compression; a path of its own may have any name."""
MANIFEST = "_replay.json"
"""Marks the directory of a dataset, whose tables are no traces."""


def shown_path(path: str) -> str:
    """``path`` as text that can be printed and stored: bytes of a name that are no UTF-8 as ``\\xff``."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def trace_files(directory: str | os.PathLike[str], left_out: str | None = None) -> Iterator[str]:
    """The files below ``directory`` that are named as traces, sorted.

    After them the directories that cannot be listed, for the error to be met again.
    """
    unlisted: list[OSError] = []
    for parent, directories, names in os.walk(directory, onerror=unlisted.append):
        if MANIFEST in names or (left_out is not None and os.path.realpath(parent) == left_out):
            directories.clear()
            continue
        directories[:] = sorted(name for name in directories if not name.startswith("."))
        for name in sorted(filter(is_trace_name, names)):
            yield os.path.join(parent, name)
    yield from (error.filename for error in unlisted)


def is_trace_name(name: str) -> bool:
    """A file in a directory is taken for a trace by its ending; without one, if it begins with "trace"."""
    stem, suffix = os.path.splitext(name)
    if suffix in COMPRESSED:
        stem, suffix = os.path.splitext(stem)
    if not suffix:
        return stem.startswith("trace")
    return not name.startswith(".") and suffix in SUFFIXES
