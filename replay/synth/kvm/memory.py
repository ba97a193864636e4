"""The guests' memory in the host: memslots, frames, which pages are resident, dirty bitmaps."""

from __future__ import annotations

from replay.jit import jit
from replay.synth.kvm.spte import pages
from replay.synth.kvm.state import DIRTY, DISALLOW, NONE, OWNER_SHIFT, RESIDENT, Model, find_chunk, make_chunk

GIB_FRAMES = 1 << 18


@jit
def gfn_to_memslot(m: Model, vm: int, gfn: int) -> int:
    """Row of the slot, or -1."""
    last = m.vm[vm].last_slot
    if last >= 0 and m.slot[last].base_gfn <= gfn < m.slot[last].end:
        return last
    for slot in range(m.vm[vm].slot, m.vm[vm].slot_end):
        if m.slot[slot].is_live and m.slot[slot].base_gfn <= gfn < m.slot[slot].end:
            m.vm[vm].last_slot = slot
            return slot
    return NONE


@jit
def host_level(m: Model, vm: int, slot: int, gfn: int) -> int:
    """kvm_mmu_max_mapping_level(): what the host's pages and lpage_info allow."""
    for level in range(m.slot[slot].backing, 1, -1):
        base = gfn & -pages(level)
        inside = m.slot[slot].base_gfn <= base and base + pages(level) <= m.slot[slot].end
        if inside:
            tables = find_chunk(m, DISALLOW, vm, level << 36 | gfn >> 9 * (level - 1))
            if tables < 0 or m.chunk[tables].value == 0:
                return level
    return 1


@jit
def disallow_huge(m: Model, vm: int, gfn: int, by: int) -> None:
    """One more guest page table is shadowed, or (-1) one less."""
    for level in range(2, 4):
        chunk = make_chunk(m, DISALLOW, vm, level << 36 | gfn >> 9 * (level - 1))
        m.chunk[chunk].value += by


# -- frames of guest memory ------------------------------------------------------------------------


@jit
def backing_shift(m: Model, slot: int) -> int:
    """log2 of the gfns in one host page of the slot: 0, 9 or 18."""
    return 9 * (m.slot[slot].backing - 1)


@jit
def host_pfn(m: Model, slot: int, gfn: int) -> int:
    """The host's frame of ``gfn``; makes its host page resident."""
    shift = backing_shift(m, slot)
    page = gfn >> shift
    chunk = m.slot[slot].chunk
    if chunk < 0 or m.chunk[chunk].key != RESIDENT | slot << OWNER_SHIFT | page >> 9:
        chunk = make_chunk(m, RESIDENT, slot, page >> 9)
        m.slot[slot].chunk = chunk
    m.chunk[chunk].words[page >> 5 & 15] |= 1 << (page & 31)
    block = m.chunk[chunk].value - 1
    if block >= 0 and m.moved[block, page & 511]:
        return m.moved[block, page & 511] + (gfn & ((1 << shift) - 1))
    return m.slot[slot].pfn + gfn - m.slot[slot].base_gfn


@jit
def is_resident(m: Model, slot: int, gfn: int) -> bool:
    """Whether the host page of ``gfn`` has a frame."""
    page = gfn >> backing_shift(m, slot)
    chunk = find_chunk(m, RESIDENT, slot, page >> 9)
    return chunk >= 0 and m.chunk[chunk].words[page >> 5 & 15] >> (page & 31) & 1 != 0


@jit
def evict(m: Model, slot: int, first: int, last: int) -> None:
    """The host takes the pages from gfn ``first`` to ``last`` away; the next faults get other frames."""
    ctl = m.ctl
    shift = backing_shift(m, slot)
    page, stop = first >> shift, ((last - 1) >> shift) + 1
    while page < stop:
        chunk = find_chunk(m, RESIDENT, slot, page >> 9)
        end = min(stop, (page | 511) + 1)
        while chunk >= 0 and page < end:
            word = page >> 5 & 15
            if m.chunk[chunk].words[word] >> (page & 31) & 1:
                m.chunk[chunk].words[word] &= ~(1 << (page & 31))
                if m.chunk[chunk].value == 0:
                    ctl.moved_top += 1
                    m.chunk[chunk].value = ctl.moved_top
                # contiguous frames, aligned as the gfn is within a 1 GiB page
                pfn = ctl.next_data + ((page << shift) - ctl.next_data & GIB_FRAMES - 1)
                ctl.next_data = pfn + (1 << shift)
                m.moved[m.chunk[chunk].value - 1, page & 511] = pfn
            page += 1
        page = end


# -- dirty bitmaps ---------------------------------------------------------------------------------


@jit
def _dirty_chunk(m: Model, slot: int, page: int) -> int:
    """The part of the bitmap around ``page`` of the slot; made if need be, as the last filling left it."""
    chunk = make_chunk(m, DIRTY, slot, page >> 9)
    filling = m.slot[slot].filling
    if m.chunk[chunk].value != filling:
        m.chunk[chunk].value = filling
        for i in range(16):
            m.chunk[chunk].words[i] = 0xFFFFFFFF
    return chunk


@jit
def mark_page_dirty(m: Model, slot: int, gfn: int) -> None:
    """mark_page_dirty_in_slot()"""
    if m.slot[slot].dirty_log:
        page = gfn - m.slot[slot].base_gfn
        chunk = _dirty_chunk(m, slot, page)
        m.chunk[chunk].words[page >> 5 & 15] |= 1 << (page & 31)


@jit
def is_dirty(m: Model, slot: int, page: int, clear: bool) -> bool:
    """Whether ``page`` of the slot is; if ``clear``, it is so no more."""
    if m.slot[slot].filling == 0 and find_chunk(m, DIRTY, slot, page >> 9) < 0:
        return False
    words, word = m.chunk[_dirty_chunk(m, slot, page)].words, page >> 5 & 15
    bits = words[word]
    if clear:
        words[word] = bits & ~(1 << (page & 31))
    return bits >> (page & 31) & 1 != 0
