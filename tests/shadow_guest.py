"""Lines of a small guest under shadow paging (npt=0): page table walks, faults, emulated writes, INVLPG."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from replay.run import Request, Run, run_trace
from tests.test_cli import trace_text

W, F = 2, 16
"""Bits of a walk's access code; 1 is set where a fault met a present entry."""
SLOT = "tracing_mark_write: replay: memslot id=0 base_gfn=0x0 npages=0x8000 flags=0x0"


def page(
    event: str, gfn: int, level: int, *, direct: bool = False, access: str = "rwux", end: str = "sync"
) -> str:
    """A PAGE line."""
    role = f"8-byte q0 {'direct ' if direct else ''}{access} nxe ad root 0"
    return f"kvm_mmu_{event}: sp gen 0 gfn {gfn:x} l{level} {role} {end}"


@dataclass
class ShadowGuest:
    """The lines of its trace so far.  Tables are known by their gfns, from the root's down."""

    lines: list[str] = field(default_factory=lambda: [SLOT])

    def root(self, gfn: int, how: str = "new") -> None:
        """The guest loads CR3, and KVM has no such root in its cache."""
        self.lines.append(page("get_page", gfn, 4, end=f"sync {how}"))

    def walk(self, addr: int, tables: Sequence[int], leaf: int, code: int = 0, huge: bool = False) -> None:
        """A walk through ``tables``, those below the root, to the page at gfn ``leaf``."""
        self.lines.append(f"kvm_mmu_pagetable_walk: addr {addr:x} pferr {code:x} ")
        for number, gfn in enumerate([*tables, leaf]):
            pte = gfn << 12 | (0xE7 if huge and gfn == leaf else 0x67)
            self.lines.append(f"kvm_mmu_paging_element: pte {pte:x} level {4 - number}")

    def fault(
        self,
        addr: int,
        tables: Sequence[int],
        leaf: int,
        *,
        got: Sequence[str] = (),
        direct: Sequence[str] = (),
        at: int | None = None,
        level: int = 1,
        code: int = 0,
    ) -> None:
        """A fault that maps ``leaf``, a huge page where there are fewer than three ``tables``.

        ``at``: page frame of the table that gets the SPTE; ``got`` and ``direct``: lines of pages, those of
        the guest's tables and those below its leaf.
        """
        huge = len(tables) < 3
        self.lines.append(f"kvm_page_fault: vcpu 0 rip 0x1000 address {addr:#018x} error_code {code:#x}")
        self.walk(addr, tables, leaf, code, huge)
        target = leaf + (addr >> 12 & 511) if huge else leaf
        self.lines += [
            *got,
            f"kvm_mmu_spte_requested: gfn {target:x} pfn {target + 0x100000:x} level {level}",
        ]
        self.lines += direct
        if at is not None:
            base = target & -(1 << 9 * (level - 1))
            spte = (base + 0x100000) << 12 | (0xEE7 if level > 1 else 0xE67)
            place = at << 12 | (addr >> 12 + 9 * (level - 1) & 511) << 3
            self.lines.append(
                f"kvm_mmu_set_spte: gfn {base:x} spte {spte:x} (rwxu) level {level} at {place:x}"
            )

    def write(self, addr: int, tables: Sequence[int], leaf: int) -> None:
        """The guest writes at ``addr`` to a table that is shadowed; the instruction is emulated."""
        self.lines.append(f"kvm_page_fault: vcpu 0 rip 0x1000 address {addr:#018x} error_code 0x3")
        self.walk(addr, tables, leaf, W | 1)
        self.walk(addr, tables, leaf, W)

    def flush(self, gfn: int, pages: int) -> None:
        """A ranged flush, by its probe."""
        self.lines.append(
            "flush_remote_tlbs_range: (kvm_flush_remote_tlbs_range+0x4/0x40 [kvm]) "
            f"start_gfn={gfn:#x} pages={pages}"
        )

    def run(self, tmp_path: Path) -> Run:
        """Replay it all."""
        path = tmp_path / "guest.txt"
        path.write_text(trace_text(self.lines))
        return run_trace(str(path), Request(rmap_histogram=("end",), split_at="never", policy="off"))

    def mapped(self, tmp_path: Path, level: str) -> dict[str, Any]:
        """The columns of the rmap histogram at the end that are not 0, less that of gfns not mapped."""
        levels = self.run(tmp_path).document["rmap_histogram"][0]["levels"][level]
        return {column: heads for column, heads in levels.items() if heads and column != "0"}
