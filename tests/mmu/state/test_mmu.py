"""Rows and hashing."""

from __future__ import annotations

import numpy as np
import pytest

from replay.mmu.kernel.role import ACC_ALL, ACCESS_SHIFT, make_key
from replay.mmu.state import mmu
from replay.schema import Role

KEY = make_key(Role.DIRECT | ACC_ALL << ACCESS_SHIFT | 1, 0, 0)


@pytest.mark.parametrize("take", [mmu.alloc_table, mmu.alloc_block], ids=["table", "block"])
def test_rows_taken_from_a_free_list_are_empty(m: mmu.Mmu, take: object) -> None:
    give, rows = (mmu.free_table, m.spt) if take is mmu.alloc_table else (mmu.free_block, m.block)
    first, second = take(m), take(m)  # type: ignore[operator]
    rows[first] = rows[second] = 9
    give(m, first)
    give(m, second)
    assert [take(m), take(m)] == [second, first]  # type: ignore[operator]
    assert not np.any(rows[[first, second]])


def test_pages_of_one_gfn_share_a_bucket_whatever_their_role() -> None:
    buckets = {
        mmu.page_bucket(0x40000, make_key(role, variant, 1), 2048) for role in (1, 2) for variant in (0, 3)
    }
    assert len(buckets) == 1
    assert all(0 <= mmu.mix(key) < 1 << 63 for key in (0, 1, (1 << 63) - 1))
    spread = {mmu.page_bucket(512 * number, KEY, 2048) for number in range(512)}
    assert len(spread) > 400
