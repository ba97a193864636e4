"""Text to parse, made up for the purpose."""

from __future__ import annotations

from pathlib import Path


def write_synthetic(path: Path, lines: int) -> None:
    """A trace of ``lines`` lines in the proportions of a guest that touches its memory."""
    with path.open("w") as file:
        file.write("# tracer: nop\n#\n")
        for number in range(lines - 2):
            vcpu = number >> 12 & 1
            head = f" CPU {vcpu}/KVM-{4242 + vcpu}    (   4200) [{number & 7:03d}] ...1. "
            at = f"{100 + number * 1e-6:12.6f}: "
            gfn = 0x40000 + number // 6
            spte = gfn << 12 | 0xE67
            text = (
                f"kvm_page_fault: vcpu 0 rip 0xffffffff81001000 address 0x{gfn << 12:016x} error_code 0x6",
                f"kvm_mmu_spte_requested: gfn {gfn:x} pfn {gfn + 0x9A000:x} level 1",
                f"kvm_mmu_get_page: sp gen 0 gfn {gfn & ~511:x} l1 8-byte q0 direct wux nxe ad root 0 sync new",  # noqa: E501
                f"kvm_tdp_mmu_spte_changed: as id 0 gfn {gfn:x} level 1 old_spte 0 new_spte {spte:x}",
                f"kvm_mmu_set_spte: gfn {gfn:x} spte {spte:x} (rwxu) level 1 at {gfn * 8 + 0x2717A000:x}",
                f"kvm_mmu_split_huge_page: gfn {gfn:x} spte {spte:x} level 2 errno 0",
            )[number % 6]
            file.write(f"{head}{at}{text}\n")
