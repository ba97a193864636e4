"""The events that are printed: the formats of Linux 6.1, arch/x86/kvm/{trace,mmu/mmutrace}.h.

One function puts all lines together, by the pieces of a format: one for each event is more to compile.
"""

from __future__ import annotations

import re

from replay.jit import jit
from replay.synth.kvm.lines import BLANK, ZERO, Texts, flush, put, put_decimal, put_hex
from replay.synth.kvm.spte import (
    ACC_EXEC,
    ACC_READ,
    ACC_USER,
    ACC_WRITE,
    EPT,
    FOUR_LETTERS,
    NONPRESENT,
)
from replay.synth.kvm.state import Model

UNLOCKED, LOCKED, LOCKED_TWICE, IRQS_OFF = 0, 1, 2, 3
"""How a task's line begins: outside of mmu_lock, under it, under mmu_unsync_pages_lock too, irqs disabled."""
FLAGS = (".....", "...1.", "...2.", "d....")
PFERR_P, PFERR_W, PFERR_U, PFERR_F = 1, 2, 4, 0x10

TEXTS = Texts()
WORDS: list[int] = []
"""What ``Model.words`` begins with: texts, and formats as text, conversion, text, conversion .. text, 0."""
_CONVERSIONS = {"%x": 1, "%016x": 2, "%d": 3, "%s": 4, "": 0}
_HEX, _HEX16, _DECIMAL = 1, 2, 3
SECOND_US = 1000000
NEWLINE, POINT = 10, 46


def _format(text: str) -> int:
    """Place in ``WORDS`` of a format; ``%s`` takes the place of a text in ``WORDS``."""
    place = len(WORDS)
    pieces = [*re.split(r"(%(?:016)?[xds])", f": {text}"), ""]
    for before, conversion in zip(pieces[::2], pieces[1::2], strict=True):
        WORDS.extend((TEXTS.add(before), _CONVERSIONS[conversion]))
    return place


def _texts(*texts: str) -> int:
    """Place in ``WORDS`` of the first of some texts."""
    place = len(WORDS)
    WORDS.extend(map(TEXTS.add, texts))
    return place


TEXT = _format("%s")
PAGE_FAULT = _format("kvm_page_fault: vcpu %d rip 0x%x address 0x%016x error_code 0x%x")
WALK = _format("kvm_mmu_pagetable_walk: addr %x pferr %x %s")
ELEMENT = _format("kvm_mmu_paging_element: pte %x level %d")
FAST_PAGE_FAULT = _format(
    "fast_page_fault: vcpu %d gva %x error_code %s sptep %016x old 0x%x new %x spurious 0 fixed %d"
)
REQUESTED = _format("kvm_mmu_spte_requested: gfn %x pfn %x level %d")
REQUESTED_ACCESS = _format("kvm_mmu_spte_requested: gfn %x pfn %x level %d access %x")
DIRTY_BIT = _format("kvm_mmu_set_dirty_bit: gpa %x")
SPLIT = _format("kvm_mmu_split_huge_page: gfn %x spte %x level %d errno %d")
SET_SPTE = _format("kvm_mmu_set_spte: gfn %x spte %x (%s) level %d at %x")
_SPTE_CHANGED = _format("kvm_tdp_mmu_spte_changed: as id 0 gfn %x level %d old_spte %x new_spte %x")
ZAP_ALL_FAST = _format("kvm_mmu_zap_all_fast: kvm-mmu-valid-gen %d used_pages %x")
_PAGE = "sp gen %d gfn %x l%d 8-byte q0%s root %d %s"
GET_PAGE = _format(f"kvm_mmu_get_page: {_PAGE}")
ZAP_PAGE = _format(f"kvm_mmu_prepare_zap_page: {_PAGE}")
SYNC_PAGE = _format(f"kvm_mmu_sync_page: {_PAGE}")
UNSYNC_PAGE = _format(f"kvm_mmu_unsync_page: {_PAGE}")

_WUX = ((ACC_WRITE, "w"), (ACC_USER, "u"), (ACC_EXEC, "x"))
_RWUX = ((ACC_READ, "r"), *_WUX)
_RWXU = ((ACC_READ, "r"), (ACC_WRITE, "w"), (ACC_EXEC, "x"), (ACC_USER, "u"))
NOTHING = _texts("sync", "unsync")
NEW = _texts("sync new", "unsync new")
EXISTING = _texts("sync existing", "unsync existing")
"""How the line of a page ends; that of an unsync one follows."""
PFERR_TEXT = _texts(
    *("|".join(name for bit, name in ((1, "P"), (2, "W"), (4, "U"), (16, "F")) if n & bit) for n in range(32))
)
"""__print_flags() of kvm_mmu_trace_pferr_flags."""
RWXU = _texts(*("".join(letter if n & bit else "-" for bit, letter in _RWXU) for n in range(16)))
"""By ACC_* bits."""
_ROLE_TEXT = _texts(
    *(
        f"{direct} {''.join(letter if n & bit else '-' for bit, letter in letters)}{invalid} {bits}"
        for letters in (_WUX, _RWUX)
        for bits in ("nxe ad", "!nxe ad", "!nxe !ad")
        for direct in ("", " direct")
        for invalid in ("", " invalid")
        for n in range(16)
    )
)


@jit
def print_event(
    m: Model, task: int, lock: int, event: int, a: int, b: int, c: int, d: int, e: int, f: int, g: int
) -> None:
    """A line of a task: the format ``event`` with as many of the values as it takes.

    The clock goes one microsecond a line.
    """
    ctl = m.ctl
    if ctl.out + ctl.line_max > m.out.shape[1]:
        flush(m)
    ctl.lines += 1
    ctl.clock += 1
    at = put(m, ctl.out, m.words[task + lock])
    second = ctl.clock // SECOND_US
    at = put_decimal(m, at, second, 5, BLANK)
    m.out[0, at] = POINT
    at = put_decimal(m, at + 1, ctl.clock - second * SECOND_US, 6, ZERO)
    ctl.args[0] = a
    ctl.args[1] = b
    ctl.args[2] = c
    ctl.args[3] = d
    ctl.args[4] = e
    ctl.args[5] = f
    ctl.args[6] = g
    at = put(m, at, m.words[event])
    arg = 0
    conversion = m.words[event + 1]
    while conversion:
        value = ctl.args[arg]
        if conversion <= _HEX16:
            at = put_hex(m, at, value, 16 if conversion == _HEX16 else 1)
        elif conversion == _DECIMAL:
            at = put_decimal(m, at, value, 1, ZERO)
        else:
            at = put(m, at, m.words[value])
        arg += 1
        event += 2
        at = put(m, at, m.words[event])
        conversion = m.words[event + 1]
    m.out[0, at] = NEWLINE
    ctl.out = at + 1


@jit
def print_spte_changed(m: Model, task: int, gfn: int, level: int, old: int, new: int) -> None:
    """A kvm_tdp_mmu_spte_changed line; an empty SPTE (0) is printed as the host's non-present value."""
    nonpresent = m.layout[NONPRESENT]
    old = old if old != 0 else nonpresent
    new = new if new != 0 else nonpresent
    print_event(m, task, LOCKED, _SPTE_CHANGED, gfn, level, old, new, 0, 0, 0)


@jit
def print_page(m: Model, task: int, lock: int, event: int, sp: int, word: int) -> None:
    """KVM_MMU_PAGE_PRINTK of Linux 5.5 to 7.x."""
    page = m.sp[sp]
    bits = page.guest_mode if m.layout[EPT] else 0
    role = _ROLE_TEXT + 192 * m.layout[FOUR_LETTERS] + 64 * bits
    role += 32 * page.direct + 16 * page.invalid + page.access
    roots, end = page.root_count, word + page.unsync
    print_event(m, task, lock, event, page.gen, page.gfn, page.level, role, roots, end, 0)
