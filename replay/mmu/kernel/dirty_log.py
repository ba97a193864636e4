"""Dirty bitmaps and KVM_CLEAR_DIRTY_LOG: its ranges, one for each 64-page word (kvm_main.c, mmu.c).

A bitmap is needed only where markers tell of the ioctl; with initially-all-set it begins all ones,
a clear processes only the bits that are still set, and a writable 4K SPTE sets them again.
"""

from __future__ import annotations

from replay.jit import jit
from replay.mmu.events.pages import CLEAR_DIRTY, protect_pages, write_protect_gfn
from replay.mmu.kernel.slot_passes import uses_pml
from replay.mmu.kernel.spte import WRITE_PROTECTED
from replay.mmu.state.growth import NO_ROOM, OK
from replay.mmu.state.mmu import Mmu
from replay.mmu.tdp.simulated import protect_cleared_pages, protect_huge
from replay.policy import ClearEnd, KnobCodes

KVM_MEM_MAX_NR_PAGES = (1 << 31) - 1
"""The largest slot that KVM accepts (kvm_host.h): of larger ones, which a trace may claim, no log is kept."""


@jit
def walks_shadow_mmu(m: Mmu, vm: int, k: KnobCodes) -> bool:
    """Whether eager splitting looks at the shadow MMU: merged code returns first where tdp_mmu=N."""
    return k.enabled != 0 and (not k.nested_only or m.vm[vm].tdp_mmu != 0)


@jit
def need_bitmap(m: Mmu, s: int) -> int:
    """Give slot ``s`` a bitmap, all ones, if it has none; NO_ROOM asks for its words first."""
    if m.slot[s].bitmap:
        return OK
    words = (m.slot[s].npages + 63) >> 6
    top = m.ctl.bitmap_top
    if top + words > m.bitmap.shape[0]:
        m.ctl.bitmap_want = words
        return NO_ROOM
    m.ctl.bitmap_want = 0
    m.ctl.bitmap_top += words
    m.slot[s].bitmap = top + 1
    m.slot[s].bitmap_words = words
    fill_bitmap(m, s)
    return OK


@jit
def fill_bitmap(m: Mmu, s: int) -> None:
    """Set all bits of the dirty bitmap of slot ``s``."""
    first = m.slot[s].bitmap - 1
    for i in range(first, first + m.slot[s].bitmap_words):
        m.bitmap[i] = -1


@jit
def mark_page_dirty(m: Mmu, s: int, gfn: int) -> None:
    """mark_page_dirty_in_slot()."""
    page = gfn - m.slot[s].base_gfn
    m.bitmap[m.slot[s].bitmap - 1 + (page >> 6)] |= 1 << (page & 63)


@jit
def lowest_bit(bits: int) -> int:
    """Index of the lowest bit that is set; there must be one."""
    i = 0
    while not (bits >> i) & 1:
        i += 1
    return i


@jit
def highest_bit(bits: int) -> int:
    """Index of the highest bit that is set; there must be one."""
    i = 63
    while not (bits >> i) & 1:
        i -= 1
    return i


@jit
def protect_cleared(m: Mmu, vm: int, s: int, start: int, end: int, bits: int, k: KnobCodes) -> None:
    """What follows the split of one range: its pages are write-protected, huge ones at both ends first.

    ``bits`` tells which gfns, counted from ``start``, are cleared; 0 where no marker told: all of them.

    Before 6.8 the range ends with the last gfn, since then one behind it; an end on a 64-page
    boundary of the slot tells the latter.
    """
    space = m.slot[s].id >> 16 if s >= 0 else 0
    base = m.slot[s].base_gfn if s >= 0 else 0
    last = end
    if last > start and (last - base) & 63 == 0:
        last -= 1
    if bits == 0:
        bits = -1 if last - start >= 63 else (2 << (last - start)) - 1
    kept = CLEAR_DIRTY if uses_pml(m, vm, k) else WRITE_PROTECTED
    if m.vm[vm].tdp_simulated:
        protect_huge(m, vm, space, start)
        protect_huge(m, vm, space, last)
        protect_cleared_pages(m, vm, space, start, bits, kept)
    if space:
        return  # the rmaps of SMM's slots are empty
    write_protect_gfn(m, vm, start, 2)
    if last >> 9 != start >> 9:
        write_protect_gfn(m, vm, last, 2)
    protect_pages(m, vm, start, bits, kept)


@jit
def next_word(m: Mmu, w: int, k: KnobCodes) -> bool:
    """Set the window to the range of its next word that has bits to clear; False after the last.

    The range before it, if there was one, is write-protected first.
    """
    win = m.window[w]
    s = win.slot
    base = m.slot[s].base_gfn
    if win.tdp_gfn < 1 << 41:
        protect_cleared(m, win.vm, s, win.start, win.end, win.bits, k)
    while win.word < win.words:
        word = win.first_word + win.word
        win.word += 1
        bits = m.bitmap[m.slot[s].bitmap - 1 + word] & win.mask
        first = win.first_page - (word << 6)
        last = win.last_page - (word << 6)
        if first > 0:
            bits = bits >> first << first
        if last < 64:
            bits &= (1 << last) - 1
        if bits == 0:
            continue
        m.bitmap[m.slot[s].bitmap - 1 + word] &= ~bits
        start = base + (word << 6) + lowest_bit(bits)
        end = base + (word << 6) + highest_bit(bits)
        win.start = start
        lowest = lowest_bit(bits)
        win.bits = (bits >> lowest) & ((1 << (64 - lowest)) - 1) if lowest else bits
        win.end = end if k.clear_end == ClearEnd.INCLUSIVE else end + 1
        win.level = 3
        win.gfn = -1
        win.walk_done = 0 if walks_shadow_mmu(m, win.vm, k) and not win.space else 1
        win.tdp_gfn = 0
        return True
    win.tdp_gfn = 1 << 41
    return False
