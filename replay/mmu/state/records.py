"""The things of the simulated MMU as records: one numpy dtype a thing, one field a fact.

Objects are rows of the tables of ``state.Mmu`` and refer to each other by row number.  A *sptep* is one
number, ``sp * 512 + index``: the address of an SPTE, as in the kernel.  Fields are int64, but where their
width decides how much of the cache a thing takes.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np

_Fields = list[tuple[str, type] | tuple[str, type, int]]

# -- shadow pages

_SHADOW_PAGE: _Fields = [
    ("gfn", np.int64),
    ("key", np.int64),  # role (schema.Role) | variant << 32 | vm << 40; TDP_KEY set for tables of the TDP MMU
    ("first_spte", np.int64),  # UNIFORM: SPTE 0, the others follow from it
    ("parent_ptes", np.int64),  # encoded as an rmap head
    ("frame", np.int64),  # page frame of the table (set_spte "at" >> 12), 0 unknown
    ("next", np.int32),  # next page in the hash chain, or in the free list
    ("next_in_frame", np.int32),
    ("page_flags", np.int32),  # class PageFlag
    # spt: row of Mmu.spt with the 512 SPTEs; NO_TABLE none is present; UNIFORM all are, see ``first_spte``
    ("spt", np.int32),
    ("shadowed_translation", np.int32),  # row of Mmu.spt with gfn << 4 | access, else NO_TABLE
    ("birth", np.int32),
]
SHADOW_PAGE = np.dtype(_SHADOW_PAGE)
"""struct kvm_mmu_page, 64 bytes: a cache line.  Row 0 is no page."""


class PageFlag(IntEnum):
    """Bits of ``page_flags``."""

    LIVE = 1
    UNSYNC = 2
    INVALID = 4
    """role.invalid: zapped while it is a root in use."""
    ROOT = 8
    ADOPTED = 16
    """Older than the trace, or its creation was lost."""
    SPLIT = 32
    """Made by a simulated split; ``shadowed_translation`` marks the SPTEs that faults have set since."""
    RECORDED = 64
    """Of those: the recording has the page, too."""
    GUESSED = 128
    """Of those adopted: no line has shown the role yet, see guessed.py."""
    CLEARED = 256
    """UNIFORM: CLEARED << n is set where SPTEs 64 * n to 64 * n + 63 are write-protected."""
    FLOOD = 3 << 16
    ALL_CLEARED = 255 * CLEARED


FLOOD_SHIFT = 16
NO_TABLE = -1
UNIFORM = -2
TDP_KEY = 1 << 60
KEY_VARIANT_SHIFT = 32
KEY_VM_SHIFT = 40

# -- rmaps

_REGION: _Fields = [
    ("head", np.int64),  # rmap head of the 2M level
    # block: row of Mmu.block with the 512 4K heads; NO_TABLE all empty; UNIFORM one page maps all
    ("block", np.int64),
    ("sp", np.int64),  # that shadow page
    ("host", np.int64),  # largest level at which the host was seen to map this region
    ("tables", np.int64),  # indirect shadow pages whose gfn lies here (disallow_lpage)
]
REGION = np.dtype(_REGION)
"""2 MiB of guest memory; there are 512 for each GiB that was touched."""

_GIB: _Fields = [
    ("key", np.int64),  # (gfn >> 18) << 16 | vm, -1 a free row
    ("head", np.int64),  # rmap head of the 1G level
    ("region", np.int64),  # first of its 512 rows in Mmu.region
    ("host", np.int64),
    ("tables", np.int64),
]
GIB = np.dtype(_GIB)
"""A GiB of guest memory, found by open addressing."""
KEY_OF_HOST = 1 << 15  # in a key: host memory, by hva, of which the host's page sizes are kept

PTE_LIST_EXT = 14
_DESCRIPTOR: _Fields = [
    ("sptes", np.int64, PTE_LIST_EXT),
    ("spte_count", np.int64),
    ("more", np.int64),  # next descriptor or -1; also the free list
]
DESCRIPTOR = np.dtype(_DESCRIPTOR)
"""struct pte_list_desc."""

# -- memslots

_MEMSLOT: _Fields = [
    ("vm", np.int64),
    ("id", np.int64),
    ("base_gfn", np.int64),
    ("npages", np.int64),
    ("mem_flags", np.int64),  # class MemFlag
    ("hva", np.int64),
    ("is_live", np.int64),
    ("bitmap", np.int64),  # first word of its dirty bitmap in Mmu.bitmap + 1, 0 none was needed yet
    ("bitmap_words", np.int64),
]
MEMSLOT = np.dtype(_MEMSLOT)
"""struct kvm_memory_slot."""


class MemFlag(IntEnum):
    """KVM_MEM_*: bits of ``mem_flags``."""

    LOG_DIRTY_PAGES = 1
    READONLY = 2


# -- virtual machines

ROOTS = 32
UNLIMITED = 1 << 40

_VM: _Fields = [
    ("n_used_mmu_pages", np.int64),
    ("n_max_mmu_pages", np.int64),
    ("max_known", np.int64),  # class LimitFrom: no longer derived from the memslots
    ("goal_task", np.int64),  # task + 1 whose change_mmu_pages still zaps
    ("has_tdp", np.int64),
    ("layout", np.int64),  # of its SPTEs: spte.LEGACY, EPT or EPT_2026
    ("obsolete", np.int64),  # mmu_valid_gen + 1 of the pages that kvm_mmu_zap_all_fast made obsolete, 0 none
    ("manual", np.int64),  # KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2 argument, class ManualProtect
    ("probes", np.int64),  # class ProbeSet: which control probes the trace has of this VM
    ("resched", np.int64),  # need_resched is raised
    ("desc_cache", np.int64),  # objects in split_desc_cache
    ("header_cache", np.int64),  # objects in split_page_header_cache
    ("page_cache", np.int64),  # objects in split_shadow_page_cache
    ("peak", np.int64),
    ("window", np.int64),  # number of the open window, -1 none
    ("root_next", np.int64),
    ("roots", np.int64, ROOTS),  # the indirect roots got last, sp + 1: a ring
    ("by_control", np.int64),  # windows are opened by probes and markers
    ("by_record", np.int64),  # windows are opened by recorded split lines
    ("split_due", np.int64),  # all of its memory is to be split at ``split_time``
    ("has_faults", np.int64),  # kvm_page_fault lines tell the access of its faults
    ("seen", np.int64),  # the census has counted its rmaps
    ("end", np.int64),  # no gfn from here on was ever mapped, whatever the memslots say
    ("truths", np.int64),  # kinds of lines that are compared in order, see truth.truth_bit
    ("older", np.int64),  # first line that showed state older than the trace, 0 none did
    ("born", np.int64),  # a root of this VM was made in the trace
    ("differs", np.int64),  # a recorded line differed although all state was known
    ("begun", np.int64),  # the first events of this VM are in the trace, or are known not to be
    ("raw_roles", np.int64),  # its roles have guest_mode
    ("doubt_line", np.int64),  # what differs from this line on proves nothing
    ("tdp_role", np.int64),  # role of the TDP MMU's tables less its level, 0 unknown
    ("has_rmaps", np.int64),  # kvm_memslots_have_rmaps(): the VM has had a shadow page
    ("told_birth", np.int64),  # ``birth`` when kvm_mmu_zap_all_fast last told n_used_mmu_pages
    ("kept", np.int64),  # pages made until then that it counts and that live
    ("unseen", np.int64),  # pages that it counts beside those: older than the trace, or their lines were lost
    ("vmm_bytes", np.int64),  # its VMM's own markers give ranges of slots in bytes
    ("smm_range", np.int64),  # first gfn + 1 of the last window taken for SMM's since nothing followed
    ("pml", np.int64),  # the CPU logs what is written, as far as the trace shows
    ("nx_huge", np.int64),  # nx_huge_pages is on: huge pages were seen to lose X
    ("host_levels", np.int64),  # something was noted of it by hva, see host_pages.py
    ("unproven", np.int64),  # first line at which a window differed although that proves nothing, 0 none
    ("indirect_role", np.int64),  # role + 1 of the indirect page got last, less what differs; 0 none
    ("tdp_mmu", np.int64),  # kvm.tdp_mmu=Y
    ("caches", np.int64),  # what is known of its split caches, class CacheKnown
    ("tdp_simulated", np.int64),  # rows of simulated tables of its TDP MMU, see tdp_simulated.py
    ("fault_split", np.int64),  # policy.FaultSplit, as its kernel or its faults show
    ("available_shown", np.int64),  # how many pages are available is known, how many are used is not
    ("last_unproven", np.int64),  # the last such line
    ("whole", np.int64),  # the line at which all state became known, though some had been older
]
VM = np.dtype(_VM)
"""struct kvm, and what the trace shows of one."""


class LimitFrom(IntEnum):
    """What set the limit of shadow pages."""

    CALLER = 1
    """The caller, by an option."""
    VMM = 2
    """The VMM, by KVM_SET_NR_MMU_PAGES."""


class ProbeSet(IntEnum):
    """Bits of ``probes``."""

    REGION = 1
    """set_region and commit_region: memslot markers are not needed."""
    SPLIT = 2
    """The split functions: windows open and close by them."""
    LIMIT = 4
    """change_mmu_pages."""
    PROTECT = 8
    """slot_remove_write_access."""
    COLLAPSE = 16
    """zap_collapsible or recover_huge."""
    CLEAR_DIRTY = 32
    """slot_leaf_clear_dirty."""
    RETURN = 64
    """The ends of slot_try_split or try_split."""
    FAST_FAULT = 128
    """The tracepoint fast_page_fault."""


class ManualProtect(IntEnum):
    """KVM_DIRTY_LOG_*: bits of ``manual``."""

    ENABLE = 1
    """KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE."""
    INITIALLY_SET = 2
    """KVM_DIRTY_LOG_INITIALLY_SET."""


class CacheKnown(IntEnum):
    """What is known of the split caches of a VM."""

    KNOWN = 0
    UNKNOWN = 1
    """They may have been filled before the trace."""
    BOUNDED = 2
    """``desc_cache``, ``header_cache`` and ``page_cache`` are the most that they can hold."""


# -- tasks

PREV_ROOTS = 3  # KVM_MMU_NUM_PREV_ROOTS

_TASK: _Fields = [
    ("pid", np.int64),  # pid + 1, 0 a free row
    ("root", np.int64),  # indirect root in use, -1
    ("direct_root", np.int64),
    ("variant", np.int64),  # what the printed role does not tell of the indirect root
    ("fault_addr", np.int64),
    ("fault_code", np.int64),
    ("fault_state", np.int64),  # class FaultState
    ("walk_addr", np.int64),
    ("walk_code", np.int64),
    ("walk_top", np.int64),  # level of the first guest entry read, 0 no walk
    ("walk_leaf", np.int64),
    ("pte", np.int64, 6),  # guest entries by level
    ("req_gfn", np.int64),
    ("chain", np.int64, 6),  # shadow page by level in this fault, -2 not looked up
    ("tdp_old", np.int64),  # the last kvm_tdp_mmu_spte_changed, if it was the last kvmmmu event
    ("tdp_new", np.int64),
    ("tdp_gfn", np.int64),
    ("tdp_level", np.int64),
    ("region", np.int64),  # slot of the set_region that is not committed yet: slot id + 1
    ("region_base", np.int64),
    ("region_npages", np.int64),
    ("region_flags", np.int64),
    ("region_hva", np.int64),
    ("slot", np.int64),  # row of the slot last committed + 1
    ("leaf_access", np.int64),  # walk.leaf_access of the walk + 1, 0 not worked out yet
    ("linked", np.int64),  # this fault had to link a table into the tree
    # prev_roots: the roots used before, sp + 1, the last one first (mmu->prev_roots)
    ("prev_roots", np.int64, PREV_ROOTS),
    ("write", np.int64),  # class WriteWalk: whose the walk for writing is that has been read last
    ("last_kind", np.int64),  # of the last kvmmmu event, and its gfn
    ("last_gfn", np.int64),
    ("lazy", np.int64),  # gfn + 1 of the huge page that the last page got in a fault replaced
]
TASK = np.dtype(_TASK)
"""A thread, mostly a vCPU, and the fault that it is in; found by open addressing."""


class FaultState(IntEnum):
    """How far the fault of a task has come."""

    IDLE = 0
    FAULT = 1
    """kvm_page_fault or pagetable_walk seen."""
    REQUESTED = 2
    """spte_requested seen."""
    DONE = 3
    """The fault set its SPTE."""


class WriteWalk(IntEnum):
    """Whose a walk for writing is."""

    WALKED = 1
    """The emulator's, unless the next event shows that it was the fault's own."""
    OF_FAULT = 2
    """The next walk is that of the fault which kvm_page_fault tells of."""


# -- lines compared in order, see truth.py

_LINE: _Fields = [
    ("next", np.int64),  # row + 1 of the next line of the queue, 0 none; also the free list
    ("kind", np.int64),
    ("gfn", np.int64),
    ("level", np.int64),
    ("a", np.int64),
    ("b", np.int64),
]
LINE = np.dtype(_LINE)
"""One line of a queue."""

# -- changes that the TDP MMU printed out of order, see tdp.py

SWAPS = 8
_SWAP: _Fields = [
    ("gfn", np.int64),  # + 1, 0 none
    ("level", np.int64),
    ("old", np.int64),
    ("before", np.int64),  # what the entry was, as far as the lines before had it
    ("ts", np.int64),
]
SWAP = np.dtype(_SWAP)
"""A change that did not start from the entry's value."""

# -- windows, see window.py

_WINDOW: _Fields = [
    ("vm", np.int64),
    ("task", np.int64),  # pid
    ("cause", np.int64),  # schema.WindowCause
    ("slot", np.int64),  # row of Mmu.slot, -1 none
    ("start", np.int64),
    ("end", np.int64),  # as the kernel's walk takes it: exclusive
    ("target", np.int64),
    ("ts", np.int64),
    ("line", np.int64),
    ("phase", np.int64),  # class Phase
    ("aligned", np.int64),  # 1 if recorded lines drive the walk, 0 if it runs through at once
    ("level", np.int64),  # of the heads walked: 3, then 2
    ("gfn", np.int64),  # of the head, -1 before the first
    ("in_head", np.int64),
    ("position", np.int64),  # next entry of the head's list
    ("spare", np.int64),  # *spp is allocated
    ("head_flush", np.int64),  # owed by this head
    ("flush", np.int64),  # owed by earlier heads
    ("dropped", np.int64),  # the lock was dropped in prepare; the blocking allocation is to come
    ("snap_sptep", np.int64),  # huge SPTE of the attempt that dropped it
    ("snap_spte", np.int64),
    ("retries", np.int64),
    ("pending", np.int64),  # out row + 1 of an attempt whose recorded line is still to come
    ("skip_unsync", np.int64),  # silent skips of the pass over this head that is under way
    ("skip_invalid", np.int64),
    ("skip_not_nested", np.int64),
    ("env_drop", np.int64),  # place + 1 of the attempt that drops the lock, ANY_PLACE the next one
    ("env_yield", np.int64),  # place + 1 of the head after which the walk yields
    ("env_fail_nowait", np.int64),
    ("env_fail_kernel", np.int64),
    ("tdp_gfn", np.int64),  # next gfn to look at
    ("tdp_pending", np.int64),
    ("attempts", np.int64),
    ("split", np.int64),
    ("skipped", np.int64, 7),  # in the order of schema.SKIP_WORDS
    ("retried", np.int64),
    ("flushes", np.int64, 5),  # by schema.FlushCause
    ("flushes_lost", np.int64),
    ("tdp_attempts", np.int64),
    ("tdp_split", np.int64),
    ("bits", np.int64),  # which gfns of the word's range are cleared, counted from its first
    ("leaked", np.int64),
    ("restarted", np.int64),  # the head is to be begun anew after a split
    ("retry_place", np.int64),  # place + 1 of the last recorded -EAGAIN line
    ("retry_ts", np.int64),
    ("has_v2_probes", np.int64),
    ("zapped", np.int64),  # pages that lookups of the split zapped and whose lines are still to come
    ("walk_done", np.int64),  # the walk over the shadow MMU is at its end
    ("by_probe", np.int64),  # a probe will tell where the window ends
    ("words", np.int64),  # number of words, 0 for a window with one range
    ("word", np.int64),  # next word
    ("first_word", np.int64),  # of the slot's bitmap
    ("first_page", np.int64),  # of the slot
    ("last_page", np.int64),  # exclusive
    ("mask", np.int64),
    ("owed", np.int64),  # SPTEs that earlier heads took away may still be in TLBs
    ("drop_idle", np.int64),  # the lock was dropped and nothing of this head has been split since
    ("child", np.int64),  # the child page, -1
    # simulated_lines: lines compared in order, see truth.py: first and last row of Mmu.truth + 1
    ("simulated_lines", np.int64, 2),
    ("recorded_lines", np.int64, 2),
    # get_pages: kvm_mmu_get_page lines: recorded, equal, simulated only, resting on unknown state
    ("get_pages", np.int64, 4),
    ("probes", np.int64, 4),  # probe lines: the same
    ("tdp_get_pages", np.int64, 4),  # kvm_mmu_get_page lines of the TDP MMU: the same
    ("different_line", np.int64),  # the first trace line that differs, 0 none does
    ("open_ended", np.int64),  # opened by a range probe: the task's next other event closes it
    ("cut", np.int64),  # the trace ends in it: what the walk is ahead has no counterpart
    ("doubted", np.int64),  # at its end, not all of the state was known; or the trace ends in it
    ("space", np.int64),  # address space: 0, 1 that of SMM, -1 not known yet
    ("flush_lines", np.int64, 4),  # lines of kvm_flush_remote_tlbs in the shadow part: as ``get_pages``
    ("repeated", np.int64),  # split lines that a lock drop repeats which left no line itself
    ("restored", np.int64),  # split lines whose SPTE a fault made writable without a line
]
WINDOW = np.dtype(_WINDOW)
"""One eager split of a slot or range."""


class Phase(IntEnum):
    """Which part of the split a window is at."""

    OPEN = 0
    SHADOW = 1
    SHADOW_DONE = 2
    TDP = 3
    CLOSED = 4


# -- what comes of windows

_ATTEMPT: _Fields = [
    ("gfn", np.int64),
    ("spte", np.int64),
    ("sptep", np.int64),  # -1 unknown
    ("window", np.int32),
    ("role", np.int32),
    ("retries", np.int32),
    ("source", np.int32),  # row of Mmu.source
    ("attempt_flags", np.int16),  # class AttemptFlag
    ("level", np.int16),
    ("outcome", np.int16),  # schema.Outcome, -1 where only recorded
    ("errno", np.int16),
    ("installed", np.int16),
    ("nonpresent", np.int16),
    ("reused", np.int16),
    ("match", np.int16),  # schema.Match
]
ATTEMPT = np.dtype(_ATTEMPT)
"""One look at a huge page: ``schema.outcome_schema()``, 56 bytes."""


class AttemptFlag(IntEnum):
    """Bits of ``attempt_flags``."""

    TDP = 1
    """Of the TDP MMU."""
    CREATED = 2
    """It made the child page."""
    FLUSHED = 4
    """It owes or did a flush."""
    RESTORED = 8
    """The SPTE became writable again, and no line shows how."""


_SOURCE: _Fields = [
    ("ts", np.int64),
    ("line", np.int64),
    ("recorded", np.int64),  # it is a recorded split line, and the rest is what it says
    ("mmu", np.int64),
    ("gfn", np.int64),
    ("spte", np.int64),
    ("level", np.int64),
    ("errno", np.int64),
]
SOURCE = np.dtype(_SOURCE)
"""A trace line that attempts stand for: one for each recorded split line, one for all others of an event."""

_FLUSH: _Fields = [
    ("window", np.int64),
    ("vm", np.int64),
    ("ts", np.int64),
    ("line", np.int64),
    ("cause", np.int64),
    ("start", np.int64),
    ("end", np.int64),
]
FLUSH = np.dtype(_FLUSH)
"""One TLB flush."""

# -- the census, see census.py

LENGTHS = 16
_ATTEMPT_CENSUS: _Fields = [
    ("huge_spte", np.int64),  # identity of the huge SPTE: birth of its page * 512 + index
    ("guest_access", np.int64),  # what the guest allows: the access of the child's role
    ("spte_access", np.int64),  # the same cut down to what the huge SPTE itself allows
    ("child_exists", np.int64),  # a page of the child's gfn and role is there
    ("other_exists", np.int64),  # one with the SPTE's access is there
    ("child_parents", np.int64),  # of the existing child: parent SPTEs,
    ("child_present", np.int64),  # present SPTEs,
    ("child_nonleaf", np.int64),  # present SPTEs that lead to a table below
    ("occupied", np.int64),  # child gfns whose rmap is not empty, 0..512
    ("rmap_length", np.int64),  # entries of the huge page's rmap head
    ("collisions", np.int64),  # pages of other gfns before the child in the kernel's hash, -1 not counted
    ("hold", np.int64),  # lock drops and yields so far: attempts of one number share a hold
    ("leaked", np.int64),  # pages that the window has leaked so far
    ("used", np.int64),  # n_used_mmu_pages
    ("limit", np.int64),  # n_max_mmu_pages
    ("layout", np.int64),  # of the SPTEs, see spte.py
    ("range", np.int64),  # which range of the window, 1..
    ("owed", np.int64),  # a lock drop here would find an earlier head's flush owed
    ("descriptors", np.int64),  # pte_list_desc that the split took
]
ATTEMPT_CENSUS = np.dtype(_ATTEMPT_CENSUS)
"""What an attempt found."""

_WINDOW_CENSUS: _Fields = [
    ("ranges", np.int64),  # ranges walked: one, or one for each 64-page word of a marker's CLEAR
    ("pages", np.int64),  # 4K pages in them
    ("no_page", np.int64),  # ranges of no page: the kernel still visits their first rmap heads
    ("end_alone", np.int64),  # ranges whose ``end`` is the first page of another 2M page
    ("last_alone", np.int64),  # ranges whose last page is the first of another 2M page
    ("heads", np.int64),  # rmap heads visited
    ("empty_heads", np.int64),
    ("descriptors", np.int64),  # in use when a VM's first attempt is made here
    ("lengths", np.int64, 3 * LENGTHS),  # for each level, rmap heads with 1, 2 .. LENGTHS entries (or more)
]
WINDOW_CENSUS = np.dtype(_WINDOW_CENSUS)
"""What a window walked."""

# -- one number each

_CONTROL: _Fields = [
    ("sp_free", np.int64),  # free list of shadow pages, -1 end
    ("sp_top", np.int64),
    ("spt_free", np.int64),
    ("spt_top", np.int64),
    ("block_free", np.int64),
    ("block_top", np.int64),
    ("desc_free", np.int64),
    ("desc_top", np.int64),
    ("gib_top", np.int64),
    ("region_top", np.int64),
    ("attempt_top", np.int64),
    ("flush_top", np.int64),
    ("window_top", np.int64),
    ("birth", np.int64),
    ("slot_top", np.int64),
    ("tasks", np.int64),
    ("bitmap_top", np.int64),
    ("last_gib", np.int64),  # row of the GiB found last
    ("row", np.int64),  # where an interrupted run of the event loop goes on
    ("ts", np.int64),
    ("line", np.int64),
    ("attempts_seen", np.int64),  # attempts since the start: --resched every=N
    ("rng", np.int64),
    ("last_tdp", np.int64),  # TDP table found last
    ("desc_used", np.int64),  # descriptors in use by rmaps
    ("run", np.int64),  # window + 1 that runs through without recorded lines
    ("has_recorded", np.int64),  # the trace holds recorded outcomes to compare with
    ("bitmap_want", np.int64),  # words of a dirty bitmap that is to be made
    ("last_task", np.int64),  # row of the task found last
    ("truth_free", np.int64),  # first free row of Mmu.truth + 1, 0 none
    ("truth_top", np.int64),
    ("direct_map", np.int64),  # virtual address of physical 0, as probes print pointers; 0 unknown
    ("last_bound", np.int64),  # shadow page found last by the page frame of its table
    ("split_time", np.int64),  # ns at which all guest memory is split where ``split_due``
    ("room", np.int64),  # events for which rows were found to suffice
    ("scanned", np.int64),  # shadow pages that the census looked at
    ("source_top", np.int64),
    ("next_swap", np.int64),  # row of Mmu.swap to be used next
    ("has_census", np.int64),
]
CONTROL = np.dtype(_CONTROL)
"""Free lists, how much of each table is in use, and where the replay is."""
