"""What opens windows."""

from __future__ import annotations

import pytest

from replay.mmu.events import windows
from replay.mmu.kernel.dirty_log import KVM_MEM_MAX_NR_PAGES
from replay.mmu.kernel.memslots import set_slot
from replay.mmu.state import mmu
from replay.mmu.state.growth import NO_ROOM, OK
from tests.mmu.splits import V2


@pytest.mark.parametrize(("npages", "asks"), [(KVM_MEM_MAX_NR_PAGES, NO_ROOM), (1 << 36, OK)])
def test_no_bitmap_is_made_for_a_slot_that_kvm_refuses(m: mmu.Mmu, npages: int, asks: int) -> None:
    s = set_slot(m, 0, mmu.find_task(m, 7), 1, 0, npages, 1, 0)
    assert windows.begin_clear_window(m, 0, 7, s, 0, 64, -1, V2) == asks
    assert m.ctl.bitmap_want == (KVM_MEM_MAX_NR_PAGES + 63 >> 6 if asks == NO_ROOM else 0)
    assert m.vm[0].window == -1
