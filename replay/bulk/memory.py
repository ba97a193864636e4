"""How much memory there is, how much processes use, and how much a trace will need."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path

from replay.bulk.plan import Task
from replay.errors import UsageError

NEED_BYTES = 32 << 20
"""What a small trace needs in addition to an idle process."""
_RATIOS = {"plain": 2.0, "zstd": 1.2, "gzip": 1.2, "xz": 1.2}
"""First estimate of bytes of memory per byte of text: columns of events and, if plain, the mapped file."""
_LEARN_BYTES = 16 << 20
"""Ratios are learned from texts of at least this size."""
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", re.IGNORECASE)


def parse_size(text: str) -> int:
    """Bytes of ``4G``, ``512M``, ``1.5GiB``.  Raises ``UsageError``."""
    found = _SIZE.fullmatch(text.strip())
    if not found or not (size := int(float(found[1]) * _UNITS[found[2].upper()])):
        raise UsageError(f"--memory {text}: use a size like 4G or 800M")
    return size


def default_memory() -> int:
    """Four fifths of what the machine or the control group leaves to this process."""
    sizes = [_meminfo()]
    with suppress(OSError, ValueError):
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
        sizes.append(max(0, limit - used))
    return min(sizes) * 4 // 5


def _meminfo() -> int:
    with suppress(OSError):
        if found := re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text()):
            return int(found[1]) << 10
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def resident(pid: int | str = "self") -> int:
    """Bytes of a process in memory; 0 if it is gone.  Pages of files do not count: they can be dropped."""
    return _status(pid, "RssAnon") + _status(pid, "RssShmem")


def begin_peak() -> None:
    """Let ``peak`` start again from now, if the kernel allows it."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak() -> int:
    """The most bytes that this process had in memory, including mapped files."""
    return _status("self", "VmHWM")


def _status(pid: int | str, name: str) -> int:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    found = re.search(rf"^{name}:\s+(\d+) kB", status, re.MULTILINE)
    return int(found[1]) << 10 if found else 0


class Estimate:
    """What traces need, estimated from their size and from what earlier ones used."""

    def __init__(self) -> None:
        self._ratios = dict(_RATIOS)

    def need(self, task: Task) -> int:
        """Bytes in addition to those of an idle process."""
        return NEED_BYTES + int(task.text_bytes * self._ratios[task.kind])

    def learn(self, task: Task, taken: int) -> None:
        """Learn that a trace used so many bytes more than an idle process."""
        if task.text_bytes >= _LEARN_BYTES:
            seen = 1.1 * (taken - NEED_BYTES) / task.text_bytes
            self._ratios[task.kind] = max(self._ratios[task.kind], seen)
