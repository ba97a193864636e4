"""The arrays that the scanner fills and keeps: new ones, and copies that know more."""

from __future__ import annotations

import numpy as np

from replay.trace import scan as scanning
from replay.trace.dialect import SEEN, SLOTS, parse_task
from replay.trace.lex import added, new_strings
from replay.trace.payload import FIELDS, WIDE
from replay.trace.scan import Rows, Scanner


def new_scanner() -> Scanner:
    """A scanner that knows the names of the events, and has read nothing."""
    names = new_strings(scanning.MAX_NAMES, scanning.MAX_NAMES * scanning.MAX_NAME)
    kinds = np.full((scanning.MAX_NAMES, 2), scanning.OTHER, np.int64)
    for number, (name, kind) in enumerate(scanning.NAMES.items()):
        names = added(names, name.encode())
        kinds[number, 0] = kind
    return Scanner(
        added(new_strings(256, 256 * 64), b""),  # NO_TASK
        np.zeros((256, 2), np.int64),
        names,
        kinds,
        new_strings(1024, 1 << 16),
        np.zeros((2, SLOTS, SEEN), np.int64),
        np.zeros(FIELDS, np.uint64),
        np.zeros(scanning.STATE, np.int64),
        np.zeros((scanning.MAX_MALFORMED, 3), np.int64),
    )


def new_rows(count: int) -> Rows:
    """Zeroed rows; memory that no line writes to is never touched."""
    return Rows(
        kind=np.zeros(count, np.uint8),
        task=np.zeros(count, np.int32),
        cpu=np.zeros(count, np.int16),
        level=np.zeros(count, np.uint8),
        flags=np.zeros(count, np.uint8),
        role=np.zeros(count, np.uint32),
        ts_ns=np.zeros(count, np.int64),
        line=np.zeros(count, np.int64),
        text=np.zeros(count, np.int32),
        wide=np.zeros((len(WIDE), count), np.uint64),
    )


def with_task(scanner: Scanner, number: int, header: bytes) -> Scanner:
    """``scanner`` with ``header`` as what is printed of task ``number``, the next one."""
    if number == len(scanner.tasks):
        scanner = scanner._replace(tasks=np.concatenate([scanner.tasks, np.zeros_like(scanner.tasks)]))
    scanner.tasks[number] = (0 if parse_task(header.decode(errors="replace")) else -1), 0
    return scanner._replace(headers=added(scanner.headers, header))
