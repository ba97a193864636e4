"""Lines of probes and markers: they tell of memslots and limits, and when a window opens and closes.

Control kprobes are placed by the user, v2 probes are those of the seed patch, markers are written to
trace_marker; docs/traces.md lists all of them.
"""

from __future__ import annotations

import numpy as np

from replay.jit import jit
from replay.mmu.events import guest_tables, windows
from replay.mmu.kernel import memslots, slot_passes
from replay.mmu.kernel.mmu_pages import change_mmu_pages
from replay.mmu.kernel.role import role_of_word
from replay.mmu.recorded import split_lines
from replay.mmu.recorded.lines import compare_lines, recorded_flush, recorded_line
from replay.mmu.split import address_spaces
from replay.mmu.split.window import count, note_begun_before
from replay.mmu.state.counters import Counter
from replay.mmu.state.growth import NO_ROOM, OK
from replay.mmu.state.mmu import Mmu
from replay.mmu.state.records import LimitFrom, ManualProtect, MemFlag, Phase, ProbeSet
from replay.policy import KnobCodes, Pml
from replay.schema import NOWAIT_FAILED, Columns, Flag, Kind, WindowCause


@jit
def probe_event(m: Mmu, c: Columns, i: int, t: int, vm: int, w: int, own: bool, k: KnobCodes) -> int:
    """Control kprobes."""
    kind = c.kind[i]
    pid = np.int64(c.pid[i])
    gfn, end, level = np.int64(c.gfn[i]), np.int64(c.end[i]), min(max(np.int64(c.level[i]), 1), 3)
    if gfn >> 40 or end >> 40:
        count(m, Counter.UNPLACED_SPTES, 1)
        return OK
    by_control = m.vm[vm].by_control != 0
    if kind == Kind.FLUSH_REMOTE_TLBS:
        if own:
            recorded_flush(m, w)
    elif kind == Kind.FLUSH_REMOTE_TLBS_RANGE:
        if not own and end == gfn + 1:
            guest_tables.one_page_flushed(m, t, vm, gfn, k.rmap_order)
        elif not own and end == gfn + 512:
            guest_tables.huge_page_flushed(m, t, vm, gfn, k.rmap_order)
    elif kind == Kind.SET_REGION:
        npages = end - gfn
        memslots.set_region(m, t, c.num[i], gfn, npages, np.int64(c.code[i]), np.int64(c.addr[i]))
    elif kind == Kind.COMMIT_REGION:
        result = memslots.commit_region(m, t, vm, c.num[i], k.rmap_order)
        if result == memslots.LOG_ON and by_control and not m.vm[vm].probes & ProbeSet.SPLIT:
            if not m.vm[vm].manual & ManualProtect.INITIALLY_SET:
                s = m.task[t].slot - 1
                windows.begin_slot_window(m, vm, pid, WindowCause.MEMSLOT_FLAGS, s, 1, False, k)
        elif result == NO_ROOM:
            return NO_ROOM
    elif kind == Kind.CHANGE_MMU_PAGES:
        if not m.vm[vm].max_known:
            change_mmu_pages(m, vm, t, c.num[i])
    elif Kind.SLOT_TRY_SPLIT <= kind <= Kind.TDP_TRY_SPLIT and not by_control:
        return OK
    elif kind == Kind.SLOT_TRY_SPLIT:
        s = m.task[t].slot - 1
        windows.begin_slot_window(m, vm, pid, WindowCause.MEMSLOT_FLAGS, s, level, True, k)
    elif kind == Kind.TRY_SPLIT:
        s = address_spaces.any_slot_of_range(m, vm, gfn, end)
        w = windows.begin_window(m, vm, pid, WindowCause.CLEAR_DIRTY_LOG, s, gfn, end, level, True, k)
        address_spaces.leave_undecided(m, w)
    elif kind == Kind.SHADOW_TRY_SPLIT or kind == Kind.TDP_TRY_SPLIT:
        # where the callers are inlined, ranges of one KVM_CLEAR_DIRTY_LOG follow each other directly
        begun = Phase.SHADOW if kind == Kind.SHADOW_TRY_SPLIT else Phase.TDP
        if own and m.window[w].open_ended and m.window[w].phase >= begun:
            if windows.close_window(m, w, k) == NO_ROOM:
                return NO_ROOM
            w = -1
        if w < 0:
            w = windows.begin_range_window(m, vm, pid, gfn, end, level, k)
        if kind == Kind.TDP_TRY_SPLIT:
            return windows.tdp_part_begins(m, w, True, k)
        windows.shadow_part_begins(m, w, gfn, end)
        split_lines.peek_next(m, w, k)
    elif kind == Kind.SLOT_TRY_SPLIT_RET or kind == Kind.TRY_SPLIT_RET:
        if own:
            return windows.close_window(m, w, k)
        note_begun_before(m, vm)  # what ends here began before the trace
    elif kind == Kind.SLOT_LEAF_CLEAR_DIRTY or kind == Kind.SLOT_REMOVE_WRITE_ACCESS:
        if m.task[t].slot:
            return slot_pass_line(m, vm, m.task[t].slot - 1, kind, level, k)
    elif (kind == Kind.ZAP_COLLAPSIBLE or kind == Kind.RECOVER_HUGE) and m.task[t].slot:
        return slot_passes.zap_collapsible(m, vm, m.task[t].slot - 1, k.rmap_order)
    return OK


@jit
def slot_pass_line(m: Mmu, vm: int, s: int, kind: int, level: int, k: KnobCodes) -> int:
    """slot_leaf_clear_dirty or slot_remove_write_access: the passes that follow once dirty logging is on.

    A knob that asks for PML, or for none, replaces the kernel's choice.
    """
    if kind == Kind.SLOT_LEAF_CLEAR_DIRTY:
        return slot_passes.clear_dirty_slot(m, vm, s) if slot_passes.uses_pml(m, vm, k) else OK
    if k.pml != Pml.AUTO:
        return slot_passes.protect_slot(m, vm, s, slot_passes.uses_pml(m, vm, k))
    if level > 1 and not m.vm[vm].probes & ProbeSet.CLEAR_DIRTY:
        # 4K SPTEs are left out, so that the other pass has been over them
        return slot_passes.protect_slot(m, vm, s, True)
    return slot_passes.write_protect_slot(m, vm, s, level)


@jit
def v2_event(m: Mmu, c: Columns, i: int, w: int, k: KnobCodes) -> int:
    """The probes of the seed patch: environment, and truth to compare with."""
    kind = c.kind[i]
    gfn, level = np.int64(c.gfn[i]), np.int64(c.level[i])
    win = m.window[w]
    if kind == Kind.V2_LOCK_DROPPED:
        if np.int64(c.code[i]) == NOWAIT_FAILED:
            win.env_fail_nowait = 1  # the line of the failure came before, if it was recorded
        return split_lines.lock_dropped(m, w, k, gfn, level, c.num[i])
    if kind == Kind.V2_RANGE_YIELD:
        return split_lines.range_yield(m, w, k, gfn, level, c.num[i])
    end, num, code = np.int64(c.end[i]), c.num[i], np.int64(c.code[i])
    if kind == Kind.V2_TRY_SPLIT_BEGIN:
        recorded_line(m, w, kind, gfn, level, end, 0)
        windows.shadow_part_begins(m, w, gfn, end)
        win.has_v2_probes = 1
    elif kind == Kind.V2_TRY_SPLIT_END:
        if split_lines.finish_shadow(m, w, k) == NO_ROOM:
            return NO_ROOM
        recorded_line(m, w, kind, gfn, 0, end, num)
        compare_lines(m, w, True)
        win.phase = Phase.SHADOW_DONE
    elif kind == Kind.V2_ALLOC_FAILED:
        count(m, Counter.ENV_ALLOC_FAILURES, 1)
        if num:
            win.env_fail_nowait = 1
        else:
            win.env_fail_kernel = 1
        recorded_line(m, w, kind, gfn, 0, num, 0)
    elif kind == Kind.V2_SPLIT_NONPRESENT:
        recorded_line(m, w, kind, gfn, level, np.int64(c.addr[i]), 0)
    elif kind == Kind.V2_ALIAS_SP:
        recorded_line(m, w, kind, gfn, level, role_of_word(code), np.int64(c.sptep[i]))
    elif kind == Kind.V2_DROP_FLUSH or kind == Kind.V2_FINAL_FLUSH:
        recorded_line(m, w, kind, gfn, 0, end, 0)
    elif kind == Kind.V2_RESTART:
        recorded_line(m, w, kind, gfn, level, code, 0)
    else:  # split_done, sp_leaked, sp_freed_unused, prepare, level_begin
        recorded_line(m, w, kind, gfn, level, num, code)
    return OK


@jit
def in_bytes(m: Mmu, vm: int, s: int, first: int, last: int) -> bool:
    """True if the VMM's own markers give ranges of slots in bytes, not in pages as QEMU does.

    A range that does not fit into slot ``s`` as pages shows it.
    """
    if last > m.slot[s].npages and not (first | last) & 0xFFF:
        m.vm[vm].vmm_bytes = 1
    return m.vm[vm].vmm_bytes != 0


@jit
def marker_event(m: Mmu, c: Columns, i: int, t: int, vm: int, k: KnobCodes) -> int:
    """Marker lines; those that repeat what probes of this VM tell are not needed."""
    kind = c.kind[i]
    by_marker = m.vm[vm].by_control != 0 and not m.vm[vm].probes & ProbeSet.SPLIT
    if kind == Kind.MARK_MANUAL_PROTECT:
        m.vm[vm].manual = c.num[i]
    elif kind == Kind.MARK_RESCHED:
        m.vm[vm].resched = 1
    elif kind == Kind.MARK_NR_MMU_PAGES:
        if not m.vm[vm].probes & ProbeSet.LIMIT and m.vm[vm].max_known != LimitFrom.CALLER:
            m.vm[vm].max_known = LimitFrom.VMM
            change_mmu_pages(m, vm, t, c.num[i])
    elif kind == Kind.MARK_MEMSLOT and not m.vm[vm].probes & ProbeSet.REGION:
        base, flags = np.int64(c.gfn[i]), np.int64(c.code[i])
        npages = np.int64(c.end[i]) - base
        if base >> 40 or npages < 0 or npages >> 40:
            return OK
        s = memslots.find_slot(m, vm, c.num[i])
        in_place = s >= 0 and m.slot[s].base_gfn == base and m.slot[s].npages == npages
        old = m.slot[s].mem_flags if s >= 0 else 0
        if (
            in_place
            and old & ~flags & MemFlag.LOG_DIRTY_PAGES
            and slot_passes.zap_collapsible(m, vm, s, k.rmap_order) == NO_ROOM
        ):
            return NO_ROOM
        hva = np.int64(c.addr[i])
        if memslots.leave_memory(m, vm, s, base, npages, hva) == NO_ROOM:
            return NO_ROOM
        s = memslots.set_slot(m, vm, t, c.num[i], base, npages, flags, hva)
        switched_on = in_place and memslots.log_switched_on(old, flags)
        if switched_on and by_marker and not m.vm[vm].manual & ManualProtect.INITIALLY_SET:
            pid = np.int64(c.pid[i])
            windows.begin_slot_window(m, vm, pid, WindowCause.MEMSLOT_FLAGS, s, 1, False, k)
    elif kind == Kind.MARK_CLEAR_DIRTY_LOG and by_marker and m.vm[vm].manual & ManualProtect.INITIALLY_SET:
        s = memslots.find_slot(m, vm, c.num[i])
        if s >= 0 and m.slot[s].mem_flags & MemFlag.LOG_DIRTY_PAGES:
            first, last, mask = np.int64(c.gfn[i]), np.int64(c.end[i]), np.int64(c.code[i])
            if c.flags[i] & Flag.VMM and in_bytes(m, vm, s, first, last):
                first, last = first >> 12, last >> 12
            return windows.begin_clear_window(m, vm, np.int64(c.pid[i]), s, first, last, mask, k)
    return OK
