"""Growth keeps everything."""

from __future__ import annotations

from replay.mmu.kernel import rmap, shadow_page
from replay.mmu.kernel.rmap import ORDER_APPEND
from replay.mmu.kernel.role import ACC_ALL, ACCESS_SHIFT, make_key
from replay.mmu.state import growth, mmu
from replay.schema import Role

KEY = make_key(Role.DIRECT | ACC_ALL << ACCESS_SHIFT | 1, 0, 0)


def test_growth_keeps_every_page_and_finds_it_again(m: mmu.Mmu) -> None:
    pages: list[int] = []
    while growth.has_room(m):
        pages.append(int(shadow_page.alloc_shadow_page(m, 512 * len(pages), KEY, 0)))
        shadow_page.bind_page(m, pages[-1], 1000 + len(pages))
    shadow_page.free_shadow_page(m, pages[3])
    grown = growth.grow(m)
    assert growth.has_room(grown)
    assert grown.sp.shape[0] >= 2 * m.sp.shape[0]
    assert (grown.hash.shape[0], grown.spt.shape[0]) == (4 * m.hash.shape[0], m.spt.shape[0])
    for number, sp in enumerate(pages):
        expected = -1 if number == 3 else sp
        assert shadow_page.find_shadow_page(grown, 512 * number, KEY) == expected
        assert shadow_page.find_bound(grown, 1001 + number) == expected
    assert shadow_page.alloc_shadow_page(grown, 0, KEY, 0) == pages[3]


def test_growth_keeps_sptes_blocks_and_descriptors(m: mmu.Mmu) -> None:
    sptes: dict[tuple[int, int], int] = {}
    while m.ctl.spt_top + 20 < m.spt.shape[0]:
        sp = int(shadow_page.alloc_shadow_page(m, 512 * len(sptes), KEY, 0))
        shadow_page.set_spte(m, sp, sp % 512, 0x1000E67 + (sp << 12))
        sptes[sp, sp % 512] = 0x1000E67 + (sp << 12)
    while growth.has_room(m):
        shadow_page.set_spte(m, int(shadow_page.alloc_shadow_page(m, 0, KEY, 0)), 0, 0)
        rmap.rmap_add(m, 0, int(m.ctl.sp_top) % 512, 1, int(m.ctl.sp_top), ORDER_APPEND)
    heads = [[rmap.pte_list_get(m, rmap.rmap_head(m, 0, gfn, 1), i) for i in range(3)] for gfn in range(512)]
    grown = growth.grow(m)
    assert growth.has_room(grown)
    assert {place: shadow_page.get_spte(grown, *place) for place in sptes} == sptes
    assert [
        [rmap.pte_list_get(grown, rmap.rmap_head(grown, 0, gfn, 1), i) for i in range(3)]
        for gfn in range(512)
    ] == heads


def test_growth_keeps_memory_and_tasks(m: mmu.Mmu) -> None:
    regions: dict[tuple[int, int], int] = {}
    tasks: dict[int, int] = {}
    for number in range(400):
        while not growth.has_room(m):
            m = growth.grow(m)
        vm, gfn = number % 2, number // 2 << 18
        r = mmu.find_region(m, vm, gfn + 512, True)
        m.region[r].head = number + 1
        regions[vm, gfn + 512] = number + 1
        t = mmu.find_task(m, 7 * number)
        m.task[t].root = number
        tasks[7 * number] = number
    assert m.gib.shape[0] >= 1024
    for (vm, gfn), head in regions.items():
        assert m.region[mmu.find_region(m, vm, gfn, False)].head == head
    assert {pid: m.task[mmu.find_task(m, pid)].root for pid in tasks} == tasks
    assert m.ctl.tasks == 400


def test_nothing_grows_without_need(m: mmu.Mmu) -> None:
    grown = growth.grow(m)
    assert all(old is new for old, new in zip(m, grown, strict=True))
