"""At which level the host maps the memory of a VM, as far as its faults have shown.

The kernel reads the host's page tables at an hva.  What a fault shows is noted by gfn, the cheapest place; it
moves to the hva when a slot goes, and from there to every gfn that maps the same memory.
"""

from __future__ import annotations

from replay.jit import jit
from replay.mmu.kernel.rmap import region_of
from replay.mmu.state.growth import NO_ROOM, OK, has_room_for_next
from replay.mmu.state.mmu import Mmu, find_gib, find_host_gib

PAGES_2M = 1 << 9
PAGES_1G = 1 << 18


@jit
def note_host_level(m: Mmu, vm: int, gfn: int, level: int) -> int:
    """The host maps the memory around ``gfn`` at ``level`` or larger; returns the row of its GiB."""
    g = find_gib(m, vm, gfn, True)
    if level == 3:
        m.gib[g].host = 3
    r = region_of(m, g, gfn)
    if m.region[r].host < level:
        m.region[r].host = level
    return g


@jit
def host_level(m: Mmu, g: int, r: int) -> int:
    """The largest level at which the host was seen to map region ``r`` of row ``g``."""
    return max(m.region[r].host, m.gib[g].host)


@jit
def in_step(m: Mmu, s: int, pages: int) -> bool:
    """Whether gfn and hva of slot ``s`` lie alike in pages of this size; False where there is no hva."""
    hva = m.slot[s].hva
    return hva != 0 and (m.slot[s].base_gfn - (hva >> 12)) & (pages - 1) == 0


@jit
def save_host_levels(m: Mmu, vm: int, s: int, forget: bool) -> int:
    """Note by hva what was seen of the memory of slot ``s``; ``forget`` leaves nothing known of its gfns."""
    base = m.slot[s].base_gfn
    end = min(base + m.slot[s].npages, m.vm[vm].end)
    to_hva = (m.slot[s].hva >> 12) - base
    gfn = base & -PAGES_2M
    while gfn < end:
        g = find_gib(m, vm, gfn, False)
        if g < 0:
            gfn = ((gfn >> 18) + 1) << 18
            continue
        if not has_room_for_next(m):
            return NO_ROOM
        r = m.gib[g].region + ((gfn >> 9) & 511)
        level = host_level(m, g, r)
        if level > 1 and in_step(m, s, PAGES_2M):
            m.vm[vm].host_levels = 1
            h = find_host_gib(m, vm, gfn + to_hva, True)
            at = region_of(m, h, gfn + to_hva)
            m.region[at].host = max(m.region[at].host, min(level, 2))
            if level == 3 and in_step(m, s, PAGES_1G):
                m.gib[h].host = 3
        if forget:
            m.region[r].host = 0
            m.gib[g].host = 0
        gfn += PAGES_2M
    return OK


@jit
def load_host_levels(m: Mmu, vm: int, s: int) -> None:
    """Note by gfn what is known of the memory of slot ``s``, where anything was mapped."""
    base = m.slot[s].base_gfn
    end = min(base + m.slot[s].npages, m.vm[vm].end)
    to_hva = (m.slot[s].hva >> 12) - base
    gfn = base & -PAGES_2M
    while gfn < end:
        g = find_gib(m, vm, gfn, False)
        h = find_host_gib(m, vm, gfn + to_hva, False)
        if g < 0:
            gfn = ((gfn >> 18) + 1) << 18
            continue
        if h >= 0:
            level = m.region[region_of(m, h, gfn + to_hva)].host
            if m.gib[h].host == 3 and in_step(m, s, PAGES_1G):
                level = 3
                m.gib[g].host = 3
            r = m.gib[g].region + ((gfn >> 9) & 511)
            m.region[r].host = max(m.region[r].host, level)
        gfn += PAGES_2M


@jit
def share_host_levels(m: Mmu, vm: int, s: int) -> int:
    """Bring together what was seen of the memory of slot ``s`` through other gfns: OK or NO_ROOM."""
    if not in_step(m, s, PAGES_2M):
        return OK
    for other in range(m.ctl.slot_top):
        live = m.slot[other].is_live and m.slot[other].vm == vm and other != s
        if live and share_memory(m, s, other) and save_host_levels(m, vm, other, False) == NO_ROOM:
            return NO_ROOM
    if m.vm[vm].host_levels:
        load_host_levels(m, vm, s)
    return OK


@jit
def share_memory(m: Mmu, s: int, other: int) -> bool:
    """Whether two slots map some of the same host memory."""
    first, second = m.slot[s].hva, m.slot[other].hva
    return (
        second != 0
        and first < second + (m.slot[other].npages << 12)
        and second < first + (m.slot[s].npages << 12)
    )
