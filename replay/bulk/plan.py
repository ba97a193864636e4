"""What to replay: the traces that paths name, and the estimated cost of each."""

from __future__ import annotations

import glob
import os
import stat
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from replay.errors import InputError, UsageError
from replay.trace.files import shown_path, trace_files
from replay.verdict.golden import GOLDEN_SUFFIX

TRACE_COST = 1 << 21
"""The fixed cost of a trace, in bytes of text."""
_UNKNOWN_RATIO = {"gzip": 15, "zstd": 20, "xz": 25}
"""Bytes of text per byte of a file that does not contain its uncompressed size."""
_HEADER_BYTES = 18
_MAX_PATH = 1 << 16
"""Most bytes of a line in a list of paths."""


@dataclass(frozen=True)
class Task:
    """One trace to replay."""

    path: str
    """As given, escaped if it is not text; this is its name in the dataset."""
    file: str
    """Its absolute path."""
    file_bytes: int
    """0 if unknown."""
    text_bytes: int
    """Estimated size of its decompressed text."""
    kind: str
    """``plain``, or the compression."""

    @property
    def cost(self) -> int:
        """The cost of replaying it, in bytes of text."""
        return self.text_bytes + TRACE_COST


def find_tasks(paths: Iterable[str], leave_out: str | None = None) -> list[Task]:
    """The traces that ``paths`` name, the largest first, each once.

    A path may be a file, a directory, a pattern of the shell, or ``-`` for a list of these on standard
    input, one a line.  Directories are walked for files that are named as traces; hidden files, links
    to directories, datasets and the directory ``leave_out`` are passed over.  A path that does not
    exist becomes a task, too, and fails as one.  Raises ``InputError`` where there is no trace at all.
    """
    given = list(_listed(paths))
    left_out = None if leave_out is None else os.path.realpath(leave_out)
    found = dict.fromkeys(path for each in given for path in _expanded(each, left_out))
    if not found:
        raise InputError(", ".join(given) or "-", 0, "no trace")
    return sorted(map(_task, found), key=lambda task: (-task.cost, task.path))


def _listed(paths: Iterable[str]) -> Iterator[str]:
    for path in paths:
        if path != "-":
            yield path
            continue
        if sys.stdin is None:
            raise UsageError("standard input is closed")
        # bytes, as names of files are
        while line := sys.stdin.buffer.readline(_MAX_PATH):
            if len(line) == _MAX_PATH or b"\0" in line:
                raise InputError("-", 0, "a list of paths is expected, not a trace")
            if name := os.fsdecode(line.rstrip(b"\r\n")):
                yield name


def _expanded(path: str, left_out: str | None) -> Iterator[str]:
    if os.path.isdir(path):
        yield from trace_files(path, left_out)
    elif not os.path.lexists(path) and glob.has_magic(path):
        for match in sorted(glob.glob(path, recursive=True)):
            if os.path.isdir(match):
                yield from trace_files(match, left_out)
            elif not match.endswith(GOLDEN_SUFFIX):
                yield match
    else:
        yield path


def _task(given: str) -> Task:
    path, file_path = shown_path(given), os.path.abspath(given)
    try:
        status = os.stat(given)
        if not stat.S_ISREG(status.st_mode):
            return Task(path, file_path, 0, 0, "plain")
        with open(given, "rb") as file:
            head = file.read(_HEADER_BYTES)
            file.seek(max(0, status.st_size - 4))
            tail = file.read(4)
    except (OSError, ValueError):  # reported when it is replayed
        return Task(path, file_path, 0, 0, "plain")
    kind, text_bytes = _text_bytes(head, tail, status.st_size)
    return Task(path, file_path, status.st_size, text_bytes, kind)


def _text_bytes(head: bytes, tail: bytes, size: int) -> tuple[str, int]:
    """The compression of a file and the bytes of its text, by its first and last bytes and its size."""
    if head.startswith(b"\x28\xb5\x2f\xfd"):
        import zstandard

        try:
            told = zstandard.get_frame_parameters(head).content_size
        except zstandard.ZstdError:
            told = 0
        known = told if told not in (zstandard.CONTENTSIZE_UNKNOWN, zstandard.CONTENTSIZE_ERROR) else 0
        return "zstd", max(known, size) if known else size * _UNKNOWN_RATIO["zstd"]
    if head.startswith(b"\x1f\x8b"):
        told = int.from_bytes(tail, "little")  # size of the last member, modulo 4 GiB
        return "gzip", told if told > size else size * _UNKNOWN_RATIO["gzip"]
    if head.startswith(b"\xfd7zXZ\x00"):
        return "xz", size * _UNKNOWN_RATIO["xz"]
    return "plain", size
