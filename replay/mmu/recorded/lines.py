"""Lines of a window that state what the kernel did, beside the same lines as the walk would print them.

Two queues a window: the simulated lines, which the walk appends as it comes past the places of the
probes (and of kvm_mmu_get_page and kvm_flush_remote_tlbs), and the recorded ones.  Both are in the order
of the kernel's code, so that they are compared from the front.  Only kinds that the recording has are
queued.  Sources: the probes of the v2 recordings, kvm_mmu_get_page of kvm_mmu_find_shadow_page() and
tdp_mmu_init_sp(), the flushes of slot_handle_level_range(), __link_shadow_page() and
kvm_mmu_commit_zap_page().
"""

from __future__ import annotations

import numpy as np

from replay.jit import jit
from replay.mmu.kernel.mmu_pages import learn_available
from replay.mmu.split.window import note_difference, record_flush
from replay.mmu.state.mmu import Mmu
from replay.mmu.state.records import Phase
from replay.schema import Kind

ANY = -(1 << 62)
"""A simulated field that cannot be known: agrees with every recorded one."""

TDP_GET_PAGE = int(Kind.GET_PAGE) + 128
"""kvm_mmu_get_page of the TDP MMU, counted apart."""

GET_PAGE_BIT = 1 << 62
"""In ``truths``: the trace has kvm_mmu_get_page lines; the other bits count from ``V2_LOCK_DROPPED``."""

FLUSH_BIT = 1 << 61
"""In ``truths``: the trace has lines of kvm_flush_remote_tlbs, and shows which are of the shadow part."""

SHOW_LOCK_DROPS = (
    1 << (Kind.V2_LOCK_DROPPED - Kind.V2_LOCK_DROPPED)
    | 1 << (Kind.V2_PREPARE - Kind.V2_LOCK_DROPPED)
    | 1 << (Kind.V2_RESTART - Kind.V2_LOCK_DROPPED)
)
"""In ``truths``: kinds of which each has a line at every lock drop of the v2 series."""

# a queue of a window: first row + 1, last row + 1
_FIRST, _LAST = 0, 1
# the counts of ``get_pages``, ``probes`` and ``flush_lines``
RECORDED, MATCHED, ABSENT, UNKNOWN = 0, 1, 2, 3


@jit
def truth_bit(kind: int) -> int:
    """The bit of ``truths`` for lines of ``kind``."""
    if kind == Kind.FLUSH_REMOTE_TLBS:
        return FLUSH_BIT
    return (
        GET_PAGE_BIT if kind == Kind.GET_PAGE or kind == TDP_GET_PAGE else 1 << (kind - Kind.V2_LOCK_DROPPED)
    )


@jit
def append_line(m: Mmu, queue: np.ndarray, kind: int, gfn: int, level: int, a: int, b: int) -> None:
    """Add a line to the end of a queue of a window; :func:`room.has_rows` has seen to its row."""
    row = m.ctl.truth_free - 1
    if row >= 0:
        m.ctl.truth_free = m.truth[row].next
    else:
        row = m.ctl.truth_top
        m.ctl.truth_top += 1
    line = m.truth[row]
    line.next = 0
    line.kind = kind
    line.gfn = gfn
    line.level = level
    line.a = a
    line.b = b
    last = queue[_LAST] - 1
    if last >= 0:
        m.truth[last].next = row + 1
    else:
        queue[_FIRST] = row + 1
    queue[_LAST] = row + 1


@jit
def drop_first(m: Mmu, queue: np.ndarray) -> None:
    """Take the first line off a queue that has one."""
    row = queue[_FIRST] - 1
    line = m.truth[row]
    queue[_FIRST] = line.next
    if line.next == 0:
        queue[_LAST] = 0
    line.next = m.ctl.truth_free
    m.ctl.truth_free = row + 1


@jit
def drop_simulated(m: Mmu, w: int) -> None:
    """Forget the simulated lines of window ``w`` that are not compared yet."""
    while m.window[w].simulated_lines[0]:
        drop_first(m, m.window[w].simulated_lines)


@jit
def simulated_line(m: Mmu, w: int, kind: int, gfn: int, level: int, a: int, b: int) -> None:
    """The walk comes past a place where the kernel prints a line of ``kind``; fields are those of schema.py.

    It is compared if window ``w`` is, and if the recording has lines of that kind.
    """
    win = m.window[w]
    if win.aligned and m.vm[win.vm].truths & truth_bit(kind):
        append_line(m, win.simulated_lines, kind, gfn, level, a, b)
        compare_lines(m, w, False)


@jit
def recorded_line(m: Mmu, w: int, kind: int, gfn: int, level: int, a: int, b: int) -> None:
    """A recorded line of ``kind`` by the task of window ``w``."""
    counts_of(m, w, kind)[RECORDED] += 1
    append_line(m, m.window[w].recorded_lines, kind, gfn, level, a, b)
    compare_lines(m, w, False)


@jit
def simulated_flush(m: Mmu, w: int, cause: int, start: int, end: int) -> None:
    """The walk flushes TLBs over gfns [start, end): kvm_flush_remote_tlbs()."""
    record_flush(m, w, cause, start, end)
    if m.window[w].phase == Phase.SHADOW:
        simulated_line(m, w, Kind.FLUSH_REMOTE_TLBS, 0, 0, 0, 0)


@jit
def recorded_flush(m: Mmu, w: int) -> None:
    """The task of window ``w`` flushes TLBs; only flushes of the shadow part are compared."""
    if m.window[w].phase != Phase.SHADOW:
        return
    if m.window[w].aligned:
        recorded_line(m, w, Kind.FLUSH_REMOTE_TLBS, 0, 0, 0, 0)
    else:
        m.window[w].flush_lines[RECORDED] += 1


@jit
def counts_of(m: Mmu, w: int, kind: int) -> np.ndarray:
    """The four counts of lines of ``kind`` in window ``w``, a reference."""
    win = m.window[w]
    if kind == TDP_GET_PAGE:
        return win.tdp_get_pages
    if kind == Kind.FLUSH_REMOTE_TLBS:
        return win.flush_lines
    return win.get_pages if kind == Kind.GET_PAGE else win.probes


@jit
def same_sptep(m: Mmu, physical: int, pointer: int) -> bool:
    """Whether the kernel's ``pointer`` is to the SPTE at ``physical``, by where memory is mapped directly.

    The first pointer of a trace tells that, since the mapping is aligned to a GiB (page_offset_base).
    ``physical`` is -1 - offset where only the SPTE's offset in its table is known.
    """
    if physical < 0:
        return pointer & 0xFFF == -1 - physical
    if m.ctl.direct_map == 0 and (pointer - physical) & ((1 << 30) - 1) == 0:
        m.ctl.direct_map = pointer - physical
    return pointer - physical == m.ctl.direct_map


@jit
def equal_lines(m: Mmu, simulated: int, recorded: int) -> bool:
    """Whether two rows of ``m.truth`` say the same."""
    ours, theirs = m.truth[simulated], m.truth[recorded]
    if ours.kind != theirs.kind:
        return False
    same = ours.gfn == theirs.gfn or ours.gfn == ANY
    same &= ours.level == theirs.level or ours.level == ANY
    same &= ours.a == theirs.a or ours.a == ANY
    if not same:
        return False
    return same_sptep(m, ours.b, theirs.b) if ours.kind == Kind.V2_ALIAS_SP else ours.b == theirs.b


@jit
def lines_until_equal(m: Mmu, simulated: int, recorded: int, look_in_simulated: bool) -> int:
    """How many lines of a queue stand before one that equals the first of the other queue; -1 if none does.

    The queues begin with rows ``simulated`` and ``recorded``.
    """
    n = 0
    while simulated >= 0 and recorded >= 0:
        if equal_lines(m, simulated, recorded):
            return n
        n += 1
        if look_in_simulated:
            simulated = m.truth[simulated].next - 1
        else:
            recorded = m.truth[recorded].next - 1
    return -1


@jit
def recorded_role(m: Mmu, w: int, gfn: int) -> int:
    """The role of the last kvm_mmu_get_page line that waits to be compared, if it is at ``gfn``; else -1."""
    row = m.window[w].recorded_lines[0] - 1
    role = -1
    while row >= 0:
        if m.truth[row].kind == Kind.GET_PAGE:
            role = m.truth[row].a if m.truth[row].gfn == gfn else -1
        row = m.truth[row].next - 1
    return role


@jit
def drop_different(m: Mmu, w: int) -> None:
    """The first recorded line is not among the simulated ones."""
    row = m.window[w].recorded_lines[0] - 1
    if not note_difference(m, w):
        counts_of(m, w, m.truth[row].kind)[UNKNOWN] += 1
        learn_from_line(m, w, row)
    drop_first(m, m.window[w].recorded_lines)


@jit
def learn_from_line(m: Mmu, w: int, recorded: int) -> None:
    """A recorded line that rests on unknown state was compared: it shows some of that state."""
    simulated = m.window[w].simulated_lines[0] - 1
    if (
        simulated >= 0
        and m.truth[recorded].kind == Kind.V2_PREPARE
        and m.truth[simulated].kind == Kind.V2_PREPARE
        and m.truth[simulated].gfn == m.truth[recorded].gfn
        and m.truth[simulated].level == m.truth[recorded].level
    ):
        learn_available(m, m.window[w].vm, m.truth[recorded].a - m.truth[simulated].a)


@jit
def drop_absent(m: Mmu, w: int) -> None:
    """The first simulated line has no counterpart in the recording."""
    row = m.window[w].simulated_lines[0] - 1
    if note_difference(m, w):
        counts_of(m, w, m.truth[row].kind)[ABSENT] += 1
    drop_first(m, m.window[w].simulated_lines)


@jit
def compare_lines(m: Mmu, w: int, complete: bool) -> None:
    """Compare the queues of window ``w`` from the front, and take off what is compared.

    Where lines differ the rest waits until both queues are ``complete`` up to the same place of the code;
    then the recorded line is looked for among the simulated ones, so that one that is absent or too many
    makes no others differ.  What is left then has no counterpart.
    """
    win = m.window[w]
    while win.simulated_lines[0] and win.recorded_lines[0]:
        simulated, recorded = win.simulated_lines[0] - 1, win.recorded_lines[0] - 1
        if not equal_lines(m, simulated, recorded):
            if not complete:
                return
            absent = lines_until_equal(m, simulated, recorded, True)
            for _ in range(absent):
                drop_absent(m, w)
            if absent < 0:
                # one line with another field, rather than one too many and one that is absent
                is_altered = m.truth[simulated].kind == m.truth[recorded].kind
                is_altered &= lines_until_equal(m, simulated, recorded, False) < 0
                drop_different(m, w)
                if is_altered:
                    drop_first(m, win.simulated_lines)
            continue
        counts_of(m, w, m.truth[recorded].kind)[MATCHED] += 1
        drop_first(m, win.simulated_lines)
        drop_first(m, win.recorded_lines)
    if not complete:
        return
    while win.simulated_lines[0]:
        drop_absent(m, w)
    while win.recorded_lines[0]:
        drop_different(m, w)
