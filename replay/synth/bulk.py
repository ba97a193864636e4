"""Runs of faults that differ in numbers alone: page after page of one table, each mapped for the first time.

Two such faults handled one after the other tell the lines of all that follow in the table: a number in them
that differs goes on in steps.  So do the SPTEs that they install.
"""

from __future__ import annotations

import re
from itertools import repeat
from typing import NamedTuple

from replay.synth.digits import Number, Piece, Time
from replay.synth.kvm import KVM_MIN_FREE_MMU_PAGES, Kvm, ShadowPage
from replay.synth.memory import MemSlot
from replay.synth.scenario import Root
from replay.synth.toml import PAGE_SHIFT, pages

TABLE_SPTES = 512
_WORD = re.compile(r"(\W+)")
_HEX = re.compile(r"((?:0x)?)([0-9a-f]+)")


class Fault(NamedTuple):
    """A fault that was handled: the leaf that it installed, and its lines as (start, event)."""

    addr: int
    sp: ShadowPage
    place: int  # index of the leaf in ``sp``
    lines: list[tuple[str, str]]


def pattern_of(one: Fault, other: Fault) -> list[Piece] | None:
    """The lines that go on as those of ``one`` and then ``other`` do; None if these are not alike."""
    if len(one.lines) != len(other.lines):
        return None
    pieces: list[Piece] = []
    for (start, before), (other_start, event) in zip(one.lines, other.lines, strict=True):
        olds, words = _WORD.split(before), _WORD.split(event)
        if start != other_start or len(words) != len(olds):
            return None
        pieces += [start, Time(), ": "]
        for old, new in zip(olds, words, strict=True):
            first, then = _HEX.fullmatch(old), _HEX.fullmatch(new)
            if old == new:
                pieces.append(new)
            elif first is None or then is None or first[1] != then[1]:
                return None
            else:
                width = 16 if len(first[2]) == len(then[2]) == 16 else 0
                pieces += [then[1], Number(int(then[2], 16), int(then[2], 16) - int(first[2], 16), width)]
        pieces.append("\n")
    return pieces


def map_run(kvm: Kvm, root: Root, one: Fault, other: Fault, slot: MemSlot, most: int, pause_us: int) -> int:
    """Handle faults that go on as ``one`` and ``other`` did, ``most`` at most: how many were handled.

    Accesses go from page to page, and ``slot`` is that of ``other``.
    """
    sp, level = other.sp, other.sp.level
    gfn, step = sp.leaf_gfn(other.place), pages(level)
    if one.sp is not sp or one.place + 1 != other.place or sp.leaf_gfn(one.place) + step != gfn:
        return 0
    count = min(most, TABLE_SPTES - 1 - other.place, (slot.end - gfn) // step - 1)
    if root.mappings:
        mapping = kvm.guest[root.name].mapping(other.addr)
        assert mapping is not None
        if mapping.level != level:
            return 0
        count = min(count, (mapping.addr + mapping.size - other.addr - 1) >> PAGE_SHIFT + 9 * (level - 1))
    indexes = range(other.place + 1, other.place + 1 + max(0, count))
    if not indexes or not _stays(kvm, slot, sp, gfn, indexes):
        return 0
    pieces = pattern_of(one, other)
    if pieces is None:
        return 0
    gfns = range(gfn + step, gfn + step + step * len(indexes), step)
    spte = sp.leaves[other.place]
    change = spte - sp.leaves[one.place]
    sp.leaves.update(
        zip(indexes, range(spte + change, spte + change * (1 + len(indexes)), change), strict=True)
    )
    heads = slot.rmaps[level]
    if heads.keys().isdisjoint(gfns):
        heads.update(zip(gfns, ([leaf] for leaf in zip(repeat(sp), indexes)), strict=True))
    else:
        for head, index in zip(gfns, indexes, strict=True):
            heads.setdefault(head, []).append((sp, index))
    if not sp.direct:
        sp.gfns.update(zip(indexes, gfns, strict=True))
    slot.resident.update(range(gfns[0] >> slot.shift, (gfns[-1] >> slot.shift) + 1))
    kvm.writer.emit_run(pieces, len(one.lines), len(indexes), pause_us)
    return len(indexes)


def _stays(kvm: Kvm, slot: MemSlot, sp: ShadowPage, gfn: int, indexes: range) -> bool:
    """Nothing is in the way of faults at ``indexes``, behind ``gfn``, or makes them differ."""
    level = sp.level
    if slot.dirty_log or slot.slot.readonly or slot.moved or (level == 1 and not sp.tdp):
        return False
    if not sp.tdp and kvm.n_max - kvm.n_used < KVM_MIN_FREE_MMU_PAGES:
        return False
    if not sp.leaves.keys().isdisjoint(indexes) or not sp.children.keys().isdisjoint(indexes):
        return False
    frames = range((gfn >> 9 * (level - 1)) + 1, (gfn >> 9 * (level - 1)) + 1 + len(indexes))
    if level == 1:
        return kvm.shadowed.keys().isdisjoint(frames)
    return level == slot.slot.backing and kvm.huge_disallowed[level].isdisjoint(frames)
