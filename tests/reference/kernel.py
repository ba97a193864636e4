"""Which kernel recorded this, as far as the split differs (read from the recording itself)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .parse import Event


@dataclass(frozen=True)
class Kernel:
    """`late` is 6.10 or newer: full rmap descriptors at the tail (6.4), exclusive end of CLEAR (6.8), and
    non-present SPTEs that print as bit 63. `with_read` is 7.x: role.access has a read bit, a TDP page is
    traced before its SPTEs.
    """

    policy: str
    late: bool
    with_read: bool

    @property
    def always_flush(self) -> bool:
        return self.policy == "linux-2026"


def detect(events: Sequence[Event]) -> Kernel:
    """v2 leaves probes, -95 or -22, and never -11. Of the others, 2026 kernels flush for each shadow
    split.
    """
    errors, splits, flushes = set[str](), 0, 0
    probed = late = with_read = in_shadow = False
    for event in events:
        if event.name == "kvm_mmu_split_huge_page":
            errors.add(event.text.rsplit(" ", 1)[1])
            splits += in_shadow and event.text.endswith(" 0")
        elif event.name == "flush_remote_tlbs":
            flushes += in_shadow
        elif event.name in ("shadow_try_split", "tdp_try_split", "slot_try_split_ret"):
            in_shadow = event.name == "shadow_try_split"
        elif event.name == "kvm_tdp_mmu_spte_changed":
            late = late or "_spte 8000000000000000" in event.text
        elif event.name == "kvm_mmu_get_page":
            with_read = with_read or "direct rwux " in event.text
        probed = probed or event.name.startswith("v2_")
    if probed or errors & {"-95", "-22"} or "-11" not in errors:
        return Kernel("v2", late, with_read)
    return Kernel("linux-2026" if flushes >= splits else "linux-6.0", late, with_read)
