"""A trace without splits becomes one with them: the lines that the model predicts, as the kernel prints."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

from replay.schema import KVM_PAGES_PER_HPAGE_SHIFT
from tests.reference.through import Predicted

FIRST_TABLE = 0x700000
TDP_TABLES = {
    "amd": (0x827, "wux"),
    "2022": (0x907, "wux"),
    "2026": (0x8000000000000D07, "rwux"),
}
"""By CPU or SPTE layout: bits of an SPTE that leads to a table of the TDP MMU, access of that table."""
DETAIL = re.compile(r"(gfn|spte|errno) (-?[0-9a-f]+)")


def recorded_lines(
    window: Predicted, start: str, tables: itertools.count[int], layout: str = "amd"
) -> list[str]:
    """What a v2 kernel leaves of a window; ``start`` is a line of the task up to the name of the event."""
    nonleaf, access = TDP_TABLES[layout]
    lines: list[str] = []
    for kind, *values in window.steps:
        if kind == "get_page":
            lines.append(f"kvm_mmu_get_page: {values[0]}")
        elif kind in ("split", "tdp_split"):
            gfn, spte, level, errno = map(int, values)
            if kind == "tdp_split":
                child = f"sp gen 0 gfn {gfn:x} l{level - 1} 8-byte q0 direct {access} nxe ad root 0 sync new"
                table = next(tables) << 12 | nonleaf
                change = f"as id 0 gfn {gfn:x} level {level} old_spte {spte:x} new_spte {table:x}"
                lines += [f"kvm_mmu_get_page: {child}", f"kvm_tdp_mmu_spte_changed: {change}"]
            lines.append(f"kvm_mmu_split_huge_page: gfn {gfn:x} spte {spte:x} level {level} errno {errno}")
    return [start + line + "\n" for line in lines]


def with_recorded_lines(
    trace: Path, windows: list[Predicted], output: Path, layout: str = "amd"
) -> list[int]:
    """Write ``trace`` up to its last window, each window followed by its lines and in the end by its end.

    Gives the rows of ``output``, counted from 0, that a replay predicts: split lines of both MMUs and
    kvm_mmu_get_page lines of the shadow MMU.
    """
    lines = trace.read_text().splitlines(keepends=True)
    tables = itertools.count(FIRST_TABLE)
    written: list[str] = []
    rows: list[int] = []
    ends: dict[int, str] = {}
    done = 0
    for window in windows:
        written += lines[done : window.line]
        done = window.line
        start = written[-1].partition("tracing_mark_write:")[0]
        added = recorded_lines(window, start, tables, layout)
        for number, line in enumerate(added):
            following = added[number + 1] if number + 1 < len(added) else ""
            if "split_huge_page" in line or ("get_page" in line and "tdp_mmu_spte_changed" not in following):
                rows.append(len(written) + number)
        written += added
        ends[window.pid] = start + "tracing_mark_write: replay: scenario random end\n"
    written += ends.values()
    output.write_text("".join(written))
    return rows


def mutated(line: str, choice: int) -> str:
    """The line with another gfn, SPTE or errno, which one by ``choice``; errnos stay those of v2 without
    failed allocations.
    """
    details = list(DETAIL.finditer(line.partition(": ")[2]))
    name, value = details[choice % len(details)].groups()
    if name == "errno":
        changed = "-95" if value != "-95" else "0"
    elif name == "gfn":
        changed = f"{int(value, 16) ^ 1 << KVM_PAGES_PER_HPAGE_SHIFT:x}"
    else:
        changed = f"{int(value, 16) ^ 1 << 21:x}"
    return line.replace(f"{name} {value}", f"{name} {changed}", 1)
