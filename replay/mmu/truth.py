"""Lines of a window that state what the kernel did, beside the same lines as the walk would print them.

Two queues a window: the simulated lines, which the walk appends as it comes past the places of the
probes (and of kvm_mmu_get_page and kvm_flush_remote_tlbs), and the recorded ones.  Both are in the order
of the kernel's code, so that they are compared from the front.  Only kinds that the recording has are
queued.  Sources: the probes of the v2 recordings, kvm_mmu_get_page of kvm_mmu_find_shadow_page() and
tdp_mmu_init_sp(), the flushes of slot_handle_level_range(), __link_shadow_page() and
kvm_mmu_commit_zap_page().
"""

from __future__ import annotations

from replay.jit import jit
from replay.mmu.kinds import (
    FLUSH_REMOTE_TLBS,
    GET_PAGE,
    V2_ALIAS_SP,
    V2_FIRST,
    V2_LOCK_DROPPED,
    V2_PREPARE,
    V2_RESTART,
)
from replay.mmu.layout import (
    CTL_DIRECT_MAP,
    CTL_TRUTH_FREE,
    CTL_TRUTH_TOP,
    TRUTH_A,
    TRUTH_B,
    TRUTH_GFN,
    TRUTH_KIND,
    TRUTH_LEVEL,
    TRUTH_NEXT,
    VM_TRUTHS,
)
from replay.mmu.mmu_pages import learn_available
from replay.mmu.state import Mmu
from replay.mmu.window import (
    PHASE_SHADOW,
    WIN_ALIGNED,
    WIN_FLUSH_LINES,
    WIN_GET_PAGES,
    WIN_PHASE,
    WIN_PROBES,
    WIN_RECORDED_LINES,
    WIN_SIMULATED_LINES,
    WIN_TDP_GET_PAGES,
    WIN_VM,
    note_difference,
    record_flush,
)

ANY = -(1 << 62)
"""A simulated field that cannot be known: agrees with every recorded one."""

TDP_GET_PAGE = GET_PAGE + 128
"""kvm_mmu_get_page of the TDP MMU, counted apart."""

GET_PAGE_BIT = 1 << 62
"""In ``VM_TRUTHS``: the trace has kvm_mmu_get_page lines; the other bits count from ``V2_FIRST``."""

FLUSH_BIT = 1 << 61
"""In ``VM_TRUTHS``: the trace has lines of kvm_flush_remote_tlbs, and shows which are of the shadow part."""

SHOW_LOCK_DROPS = (
    1 << (V2_LOCK_DROPPED - V2_FIRST) | 1 << (V2_PREPARE - V2_FIRST) | 1 << (V2_RESTART - V2_FIRST)
)
"""In ``VM_TRUTHS``: kinds of which each has a line at every lock drop of the v2 series."""

# a queue in a row of Mmu.window: first row + 1, last row + 1
_FIRST, _LAST = 0, 1
# the counts of WIN_GET_PAGES, WIN_PROBES and WIN_FLUSH_LINES
RECORDED, MATCHED, ABSENT, UNKNOWN = 0, 1, 2, 3


@jit
def truth_bit(kind: int) -> int:
    """The bit of ``VM_TRUTHS`` for lines of ``kind``."""
    if kind == FLUSH_REMOTE_TLBS:
        return FLUSH_BIT
    return GET_PAGE_BIT if kind == GET_PAGE or kind == TDP_GET_PAGE else 1 << (kind - V2_FIRST)


@jit
def append_line(m: Mmu, w: int, queue: int, kind: int, gfn: int, level: int, a: int, b: int) -> None:
    """Add a line to the end of a queue of window ``w``; :func:`room.has_rows` has seen to its row."""
    row = m.ctl[CTL_TRUTH_FREE] - 1
    if row >= 0:
        m.ctl[CTL_TRUTH_FREE] = m.truth[row, TRUTH_NEXT]
    else:
        row = m.ctl[CTL_TRUTH_TOP]
        m.ctl[CTL_TRUTH_TOP] += 1
    line = m.truth[row]
    line[TRUTH_NEXT] = 0
    line[TRUTH_KIND] = kind
    line[TRUTH_GFN] = gfn
    line[TRUTH_LEVEL] = level
    line[TRUTH_A] = a
    line[TRUTH_B] = b
    last = m.window[w, queue + _LAST] - 1
    if last >= 0:
        m.truth[last, TRUTH_NEXT] = row + 1
    else:
        m.window[w, queue + _FIRST] = row + 1
    m.window[w, queue + _LAST] = row + 1


@jit
def drop_first(m: Mmu, w: int, queue: int) -> None:
    """Take the first line off a queue that has one."""
    row = m.window[w, queue + _FIRST] - 1
    m.window[w, queue + _FIRST] = m.truth[row, TRUTH_NEXT]
    if m.truth[row, TRUTH_NEXT] == 0:
        m.window[w, queue + _LAST] = 0
    m.truth[row, TRUTH_NEXT] = m.ctl[CTL_TRUTH_FREE]
    m.ctl[CTL_TRUTH_FREE] = row + 1


@jit
def drop_simulated(m: Mmu, w: int) -> None:
    """Forget the simulated lines of window ``w`` that are not compared yet."""
    while m.window[w, WIN_SIMULATED_LINES]:
        drop_first(m, w, WIN_SIMULATED_LINES)


@jit
def simulated_line(m: Mmu, w: int, kind: int, gfn: int, level: int, a: int, b: int) -> None:
    """The walk comes past a place where the kernel prints a line of ``kind``; fields are those of schema.py.

    It is compared if window ``w`` is, and if the recording has lines of that kind.
    """
    if m.window[w, WIN_ALIGNED] and m.vm[m.window[w, WIN_VM], VM_TRUTHS] & truth_bit(kind):
        append_line(m, w, WIN_SIMULATED_LINES, kind, gfn, level, a, b)
        compare_lines(m, w, False)


@jit
def recorded_line(m: Mmu, w: int, kind: int, gfn: int, level: int, a: int, b: int) -> None:
    """A recorded line of ``kind`` by the task of window ``w``."""
    m.window[w, counts_of(kind) + RECORDED] += 1
    append_line(m, w, WIN_RECORDED_LINES, kind, gfn, level, a, b)
    compare_lines(m, w, False)


@jit
def simulated_flush(m: Mmu, w: int, cause: int, start: int, end: int) -> None:
    """The walk flushes TLBs over gfns [start, end): kvm_flush_remote_tlbs()."""
    record_flush(m, w, cause, start, end)
    if m.window[w, WIN_PHASE] == PHASE_SHADOW:
        simulated_line(m, w, FLUSH_REMOTE_TLBS, 0, 0, 0, 0)


@jit
def recorded_flush(m: Mmu, w: int) -> None:
    """The task of window ``w`` flushes TLBs; only flushes of the shadow part are compared."""
    if m.window[w, WIN_PHASE] != PHASE_SHADOW:
        return
    if m.window[w, WIN_ALIGNED]:
        recorded_line(m, w, FLUSH_REMOTE_TLBS, 0, 0, 0, 0)
    else:
        m.window[w, WIN_FLUSH_LINES + RECORDED] += 1


@jit
def counts_of(kind: int) -> int:
    """Column of the three counts of lines of ``kind`` in a row of ``Mmu.window``."""
    if kind == TDP_GET_PAGE:
        return WIN_TDP_GET_PAGES
    if kind == FLUSH_REMOTE_TLBS:
        return WIN_FLUSH_LINES
    return WIN_GET_PAGES if kind == GET_PAGE else WIN_PROBES


@jit
def same_sptep(m: Mmu, physical: int, pointer: int) -> bool:
    """Whether the kernel's ``pointer`` is to the SPTE at ``physical``, by where memory is mapped directly.

    The first pointer of a trace tells that, since the mapping is aligned to a GiB (page_offset_base).
    ``physical`` is -1 - offset where only the SPTE's offset in its table is known.
    """
    if physical < 0:
        return pointer & 0xFFF == -1 - physical
    if m.ctl[CTL_DIRECT_MAP] == 0 and (pointer - physical) & ((1 << 30) - 1) == 0:
        m.ctl[CTL_DIRECT_MAP] = pointer - physical
    return pointer - physical == m.ctl[CTL_DIRECT_MAP]


@jit
def equal_lines(m: Mmu, simulated: int, recorded: int) -> bool:
    """Whether two rows of ``m.truth`` say the same."""
    for column in range(TRUTH_KIND, TRUTH_A + 1):
        value = m.truth[simulated, column]
        if value != m.truth[recorded, column] and value != ANY:
            return False
    if m.truth[simulated, TRUTH_KIND] == V2_ALIAS_SP:
        return same_sptep(m, m.truth[simulated, TRUTH_B], m.truth[recorded, TRUTH_B])
    return m.truth[simulated, TRUTH_B] == m.truth[recorded, TRUTH_B]


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
            simulated = m.truth[simulated, TRUTH_NEXT] - 1
        else:
            recorded = m.truth[recorded, TRUTH_NEXT] - 1
    return -1


@jit
def recorded_role(m: Mmu, w: int, gfn: int) -> int:
    """The role of the last kvm_mmu_get_page line that waits to be compared, if it is at ``gfn``; else -1."""
    row = m.window[w, WIN_RECORDED_LINES] - 1
    role = -1
    while row >= 0:
        if m.truth[row, TRUTH_KIND] == GET_PAGE:
            role = m.truth[row, TRUTH_A] if m.truth[row, TRUTH_GFN] == gfn else -1
        row = m.truth[row, TRUTH_NEXT] - 1
    return role


@jit
def drop_different(m: Mmu, w: int) -> None:
    """The first recorded line is not among the simulated ones."""
    row = m.window[w, WIN_RECORDED_LINES] - 1
    if not note_difference(m, w):
        m.window[w, counts_of(m.truth[row, TRUTH_KIND]) + UNKNOWN] += 1
        learn_from_line(m, w, row)
    drop_first(m, w, WIN_RECORDED_LINES)


@jit
def learn_from_line(m: Mmu, w: int, recorded: int) -> None:
    """A recorded line that rests on unknown state was compared: it shows some of that state."""
    simulated = m.window[w, WIN_SIMULATED_LINES] - 1
    if (
        simulated >= 0
        and m.truth[recorded, TRUTH_KIND] == V2_PREPARE
        and m.truth[simulated, TRUTH_KIND] == V2_PREPARE
        and m.truth[simulated, TRUTH_GFN] == m.truth[recorded, TRUTH_GFN]
        and m.truth[simulated, TRUTH_LEVEL] == m.truth[recorded, TRUTH_LEVEL]
    ):
        learn_available(m, m.window[w, WIN_VM], m.truth[recorded, TRUTH_A] - m.truth[simulated, TRUTH_A])


@jit
def drop_absent(m: Mmu, w: int) -> None:
    """The first simulated line has no counterpart in the recording."""
    row = m.window[w, WIN_SIMULATED_LINES] - 1
    if note_difference(m, w):
        m.window[w, counts_of(m.truth[row, TRUTH_KIND]) + ABSENT] += 1
    drop_first(m, w, WIN_SIMULATED_LINES)


@jit
def compare_lines(m: Mmu, w: int, complete: bool) -> None:
    """Compare the queues of window ``w`` from the front, and take off what is compared.

    Where lines differ the rest waits until both queues are ``complete`` up to the same place of the code;
    then the recorded line is looked for among the simulated ones, so that one that is absent or too many
    makes no others differ.  What is left then has no counterpart.
    """
    win = m.window[w]
    while win[WIN_SIMULATED_LINES] and win[WIN_RECORDED_LINES]:
        simulated, recorded = win[WIN_SIMULATED_LINES] - 1, win[WIN_RECORDED_LINES] - 1
        if not equal_lines(m, simulated, recorded):
            if not complete:
                return
            absent = lines_until_equal(m, simulated, recorded, True)
            for _ in range(absent):
                drop_absent(m, w)
            if absent < 0:
                # one line with another field, rather than one too many and one that is absent
                is_altered = m.truth[simulated, TRUTH_KIND] == m.truth[recorded, TRUTH_KIND]
                is_altered &= lines_until_equal(m, simulated, recorded, False) < 0
                drop_different(m, w)
                if is_altered:
                    drop_first(m, w, WIN_SIMULATED_LINES)
            continue
        win[counts_of(m.truth[recorded, TRUTH_KIND]) + MATCHED] += 1
        drop_first(m, w, WIN_SIMULATED_LINES)
        drop_first(m, w, WIN_RECORDED_LINES)
    if not complete:
        return
    while win[WIN_SIMULATED_LINES]:
        drop_absent(m, w)
    while win[WIN_RECORDED_LINES]:
        drop_different(m, w)
