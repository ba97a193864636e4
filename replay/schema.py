"""The ground floor: event kinds, the Arrow schema of events, role bits, and the schema of results.

This is the one place that names columns and codes.  The parser (``replay.trace``) fills these
columns, the simulated MMU (``replay.mmu``) reads them, and neither knows the other.

Text formats: Linux arch/x86/kvm/mmu/mmutrace.h, 5.4 to 7.x (PAGE lines since 3.11).
"""

from __future__ import annotations

from enum import IntEnum
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

    import numpy as np
    import pyarrow as pa

KVM_PAGES_PER_HPAGE_SHIFT = 9
"""log2 of the SPTEs of one shadow page: a level is worth 9 bits of gfn."""


class Kind(IntEnum):
    """Code of an event; ``EVENT_NAMES`` has the text before the colon of a line.

    Behind each member: which columns of the event table the payload fills.  A column that a
    kind does not name is 0 in its rows.
    """

    # the 18 events of trace system kvmmmu
    PAGETABLE_WALK = 1  # addr, code=pferr
    PAGING_ELEMENT = 2  # spte=guest pte, level
    SET_ACCESSED_BIT = 3  # addr=gpa
    SET_DIRTY_BIT = 4  # addr=gpa
    WALKER_ERROR = 5  # code=pferr
    GET_PAGE = 6  # gfn, role, num=root_count, flags CREATED|UNSYNC
    SYNC_PAGE = 7  # gfn, role, num=root_count, flags UNSYNC
    UNSYNC_PAGE = 8  # gfn, role, num=root_count, flags UNSYNC
    PREPARE_ZAP_PAGE = 9  # gfn, role, num=root_count, flags UNSYNC
    MARK_MMIO_SPTE = 10  # sptep, gfn, code=access, num=gen
    HANDLE_MMIO_PAGE_FAULT = 11  # addr, gfn, code=access
    FAST_PAGE_FAULT = 12  # num=vcpu, addr=gva, code=error_code, sptep, old_spte, spte, flags SPURIOUS|FIXED
    ZAP_ALL_FAST = 13  # code=mmu_valid_gen, num=used_pages
    CHECK_MMIO_SPTE = 14  # spte, num=kvm_gen, code=spte_gen, flags VALID
    SET_SPTE = 15  # gfn, spte, level, sptep=physical address of the SPTE
    SPTE_REQUESTED = 16  # gfn, num=pfn, level=goal level
    TDP_MMU_SPTE_CHANGED = 17  # num=as_id, gfn, level, old_spte, spte=new
    SPLIT_HUGE_PAGE = 18  # gfn, spte, level, num=errno (0 or negative)
    # trace system kvm
    PAGE_FAULT = 20  # num=vcpu (-1 where not printed), addr, code=error_code
    UNMAP_HVA_RANGE = 21  # addr=start, end
    # control kprobes (contract, section 2)
    SET_REGION = 30  # num=slot, code=flags, gfn=gpa>>12, end=gfn+(size>>12), addr=uaddr
    COMMIT_REGION = 31  # num=change (0 create, 1 delete, 2 move, 3 flags)
    SLOT_TRY_SPLIT = 32  # level=target_level
    SLOT_TRY_SPLIT_RET = 33
    TRY_SPLIT = 34  # gfn=start, end, level=target_level
    TRY_SPLIT_RET = 35
    SHADOW_TRY_SPLIT = 36  # gfn=start, end, level=target_level
    TDP_TRY_SPLIT = 37  # gfn=start, end, level=target_level
    CHANGE_MMU_PAGES = 38  # num=goal
    FLUSH_REMOTE_TLBS = 39
    FLUSH_REMOTE_TLBS_ADDR = 40  # gfn=start_gfn, end=start_gfn+pages
    FLUSH_REMOTE_TLBS_RANGE = 41  # gfn=start_gfn, end=start_gfn+pages
    FLUSH_REMOTE_TLBS_MEMSLOT = 42
    SLOT_REMOVE_WRITE_ACCESS = 43  # level=start_level
    TOPUP_CACHE = 44  # num=capacity, code=min
    ZAP_COLLAPSIBLE = 45
    RECOVER_HUGE = 46
    SLOT_LEAF_CLEAR_DIRTY = 47
    # probes of the seed patch (v2 recordings)
    V2_LOCK_DROPPED = 60  # gfn, level, code=reason, num=flush
    V2_RANGE_YIELD = 61  # gfn, level, num=flush
    V2_ALLOC_FAILED = 62  # gfn, num=locked
    V2_SPLIT_NONPRESENT = 63  # gfn, level, addr=huge_gfn
    V2_SPLIT_DONE = 64  # gfn=huge_gfn, level=huge_level, num=present, code=nonpresent
    V2_ALIAS_SP = 65  # gfn, level, code=role word as printed, sptep=huge_sptep
    V2_SP_LEAKED = 66  # gfn, level
    V2_SP_FREED_UNUSED = 67
    V2_DROP_FLUSH = 68  # gfn=base_gfn, end=base_gfn+npages
    V2_FINAL_FLUSH = 69  # gfn=base_gfn, end=base_gfn+npages
    V2_PREPARE = 70  # gfn, level, num=available
    V2_TRY_SPLIT_BEGIN = 71  # gfn=start, end, level=target_level
    V2_TRY_SPLIT_END = 72  # gfn=start, end, num=flush
    V2_LEVEL_BEGIN = 73  # level, num=flush
    V2_RESTART = 74  # gfn, level, code=why
    # marker lines "replay: WORD key=value ..."; text = what follows "replay: "
    MARK_VM_CREATE = 90  # num=pid (0 where not given)
    # num=id|as<<16, gfn=base_gfn, end=base_gfn+npages, code=flags, addr=hva, level=as, flags VMM
    MARK_MEMSLOT = 91
    MARK_MANUAL_PROTECT = 92  # num=arg
    # num=slot, gfn=first_page, end=first_page+num_pages, code=mask (all ones where not given), flags VMM
    MARK_CLEAR_DIRTY_LOG = 93
    MARK_GET_DIRTY_LOG = 94  # num=slot
    MARK_NR_MMU_PAGES = 95  # num=n
    MARK_RESCHED = 96
    MARK_SCENARIO = 97
    MARK_UNKNOWN = 98  # a "replay:" line with another word: counted and kept
    MARK_TEXT = 99  # any other marker text; text = the whole payload
    LOST_EVENTS = 110  # "CPU:n [LOST m EVENTS]": num=m (-1 where not printed)


EVENT_NAMES: dict[Kind, str] = (
    {
        Kind.PAGETABLE_WALK: "kvm_mmu_pagetable_walk",
        Kind.PAGING_ELEMENT: "kvm_mmu_paging_element",
        Kind.SET_ACCESSED_BIT: "kvm_mmu_set_accessed_bit",
        Kind.SET_DIRTY_BIT: "kvm_mmu_set_dirty_bit",
        Kind.WALKER_ERROR: "kvm_mmu_walker_error",
        Kind.GET_PAGE: "kvm_mmu_get_page",
        Kind.SYNC_PAGE: "kvm_mmu_sync_page",
        Kind.UNSYNC_PAGE: "kvm_mmu_unsync_page",
        Kind.PREPARE_ZAP_PAGE: "kvm_mmu_prepare_zap_page",
        Kind.MARK_MMIO_SPTE: "mark_mmio_spte",
        Kind.HANDLE_MMIO_PAGE_FAULT: "handle_mmio_page_fault",
        Kind.FAST_PAGE_FAULT: "fast_page_fault",
        Kind.ZAP_ALL_FAST: "kvm_mmu_zap_all_fast",
        Kind.CHECK_MMIO_SPTE: "check_mmio_spte",
        Kind.SET_SPTE: "kvm_mmu_set_spte",
        Kind.SPTE_REQUESTED: "kvm_mmu_spte_requested",
        Kind.TDP_MMU_SPTE_CHANGED: "kvm_tdp_mmu_spte_changed",
        Kind.SPLIT_HUGE_PAGE: "kvm_mmu_split_huge_page",
        Kind.PAGE_FAULT: "kvm_page_fault",
        Kind.UNMAP_HVA_RANGE: "kvm_unmap_hva_range",
        Kind.LOST_EVENTS: "lost_events",
    }
    | {kind: kind.name.lower() for kind in Kind if 30 <= kind < 90}
    | {
        Kind.MARK_VM_CREATE: "replay:vm_create",
        Kind.MARK_MEMSLOT: "replay:memslot",
        Kind.MARK_MANUAL_PROTECT: "replay:manual_dirty_log_protect2",
        Kind.MARK_CLEAR_DIRTY_LOG: "replay:clear_dirty_log",
        Kind.MARK_GET_DIRTY_LOG: "replay:get_dirty_log",
        Kind.MARK_NR_MMU_PAGES: "replay:nr_mmu_pages",
        Kind.MARK_RESCHED: "replay:resched",
        Kind.MARK_SCENARIO: "replay:scenario",
        Kind.MARK_UNKNOWN: "replay:",
        Kind.MARK_TEXT: "tracing_mark_write",
    }
)
"""The text before the colon of a line, or the word of a marker."""


LAST_KVMMMU = Kind.SPLIT_HUGE_PAGE
"""The last of the tracepoints of system kvmmmu."""

NOWAIT_FAILED = 3
"""Reason of v2_lock_dropped: no page without waiting."""


class Flag(IntEnum):
    """Bits of the column ``flags``."""

    CREATED = 1  # get_page: "new"
    UNSYNC = 2  # PAGE lines: "unsync"
    SPURIOUS = 4  # fast_page_fault
    FIXED = 8  # fast_page_fault
    VALID = 16  # check_mmio_spte
    VMM = 32  # markers: a trace event of the VMM itself, which may come before or after the ioctl's lines


class Role(IntEnum):
    """Bits of the column ``role``: a shadow page's role as far as a line shows it.

    The layout is the kernel's of 2026 (four access bits) for every input, so that pages of all
    kernels compare alike; bits that the printed text does not show are 0.  Three-letter access
    (``wux``) has no read bit: it is set.
    """

    LEVEL = 0xF
    HAS_4_BYTE_GPTE = 1 << 4
    QUADRANT = 3 << 5
    DIRECT = 1 << 7
    ACC_READ = 1 << 8
    ACC_WRITE = 1 << 9
    ACC_USER = 1 << 10
    ACC_EXEC = 1 << 11
    ACCESS = 0xF << 8
    INVALID = 1 << 12
    EFER_NX = 1 << 13
    CR0_WP = 1 << 14
    SMAP_ANDNOT_WP = 1 << 15
    AD_DISABLED = 1 << 16
    GUEST_MODE = 1 << 17
    PASSTHROUGH = 1 << 18
    IS_MIRROR = 1 << 19
    SMEP = 1 << 20
    GEN = 1 << 21  # mmu_valid_gen & 1, which is no role bit in the kernel but part of a page's identity
    SMM = 1 << 24


ROLE_QUADRANT_SHIFT = 5
ROLE_ACCESS_SHIFT = 8


class Columns(NamedTuple):
    """The event table as flat arrays of equal length, one row per event, in file order.

    The jitted code takes this tuple as it is.  Units: gfn and ``end`` of gfn ranges in 4 KiB
    frames, addresses in bytes, time in ns.
    """

    kind: np.ndarray  # uint8, class Kind
    vm: np.ndarray  # int16, index of the VM in the trace, -1 if the VM is unknown
    pid: np.ndarray  # int32, the task
    tgid: np.ndarray  # int32, -1 where the trace has no such column
    cpu: np.ndarray  # int16, -1 where not printed
    level: np.ndarray  # uint8
    flags: np.ndarray  # uint8, class Flag
    role: np.ndarray  # uint32, class Role
    gfn: np.ndarray  # uint64
    addr: np.ndarray  # uint64
    spte: np.ndarray  # uint64
    old_spte: np.ndarray  # uint64
    sptep: np.ndarray  # uint64
    end: np.ndarray  # uint64
    code: np.ndarray  # uint64
    num: np.ndarray  # int64
    ts_ns: np.ndarray  # int64
    line: np.ndarray  # int64, 1-based
    comm: np.ndarray  # int32, index into the dictionary of task names, -1 none
    text: np.ndarray  # int32, index into the dictionary of marker texts, -1 none


COLUMN_TYPES: dict[str, str] = {
    "kind": "uint8",
    "vm": "int16",
    "pid": "int32",
    "tgid": "int32",
    "cpu": "int16",
    "level": "uint8",
    "flags": "uint8",
    "role": "uint32",
    "gfn": "uint64",
    "addr": "uint64",
    "spte": "uint64",
    "old_spte": "uint64",
    "sptep": "uint64",
    "end": "uint64",
    "code": "uint64",
    "num": "int64",
    "ts_ns": "int64",
    "line": "int64",
    "comm": "int32",
    "text": "int32",
}
"""numpy type of each column; ``comm`` and ``text`` are dictionary-encoded strings in Arrow."""


def event_schema() -> pa.Schema:
    """The Arrow schema of an event table as ``replay parse`` writes it."""
    import pyarrow as pa

    fields = []
    for name, type_name in COLUMN_TYPES.items():
        if name in ("comm", "text"):
            arrow_type = pa.dictionary(pa.int32(), pa.string())
        else:
            arrow_type = pa.type_for_alias(type_name)
        fields.append(pa.field(name, arrow_type, nullable=name in ("comm", "text")))
    return pa.schema(fields)


class Outcome(IntEnum):
    """What came of one look at a huge page; the words are those of the JSON and of result tables."""

    SPLIT = 0
    NO_FREE_PAGES = 1  # -ENOSPC
    NO_MEMORY = 2  # -ENOMEM
    EXISTING_CHILD = 3  # -EOPNOTSUPP
    STALE_PARENT = 4  # -EINVAL
    UNSYNC = 5  # silent in the kernel
    INVALID = 6  # silent in the kernel
    NOT_NESTED = 7  # silent in the kernel
    RETRY = 8  # -EAGAIN
    BUSY = 9  # -EBUSY, TDP MMU only


OUTCOME_ERRNO: dict[Outcome, int | None] = {
    Outcome.SPLIT: 0,
    Outcome.NO_FREE_PAGES: -28,
    Outcome.NO_MEMORY: -12,
    Outcome.EXISTING_CHILD: -95,
    Outcome.STALE_PARENT: -22,
    Outcome.UNSYNC: None,
    Outcome.INVALID: None,
    Outcome.NOT_NESTED: None,
    Outcome.RETRY: -11,
    Outcome.BUSY: -16,
}
SKIP_WORDS: tuple[str, ...] = (
    "no_free_pages",
    "no_memory",
    "existing_child",
    "stale_parent",
    "unsync",
    "invalid",
    "not_nested",
)


class Match(IntEnum):
    """How one attempt compares with what the kernel recorded."""

    UNCHECKED = 0  # nothing recorded to compare with
    MATCHED = 1
    MISMATCHED = 2  # the recorded line at this place says something else
    MISSING = 3  # recorded, but not simulated; the simulated columns are null
    UNEXPECTED = 4  # simulated, but the recording has no such line
    UNKNOWN = 5  # not as recorded, but the outcome rests on state that is older than the trace


class FlushCause(IntEnum):
    """Why the simulated MMU flushed TLBs: the keys of ``totals.flushes``."""

    LOCK_DROP = 0
    YIELD = 1
    WINDOW_END = 2
    LINK = 3
    ZAP = 4


class WindowCause(IntEnum):
    """What opened a window: the words of ``windows[].cause``."""

    MEMSLOT_FLAGS = 0
    CLEAR_DIRTY_LOG = 1
    KPROBE = 2
    RECORDED = 3
    END = 4
    TIME = 5


EAGAIN, ENOMEM, EBUSY, EINVAL, ENOSPC, EOPNOTSUPP = 11, 12, 16, 22, 28, 95


def outcome_schema() -> pa.Schema:
    """Arrow schema of ``outcomes.parquet``: one row per attempt, shadow MMU and TDP MMU, in order."""
    import pyarrow as pa

    words = pa.dictionary(pa.int8(), pa.string())
    return pa.schema(
        [
            ("window", pa.int32()),
            ("vm", pa.int16()),
            ("mmu", words),  # "shadow" or "tdp"
            ("ts_ns", pa.int64()),
            ("line", pa.int64()),  # of the recorded split line, else of the line that opened the window
            ("gfn", pa.uint64()),
            ("level", pa.uint8()),
            ("spte", pa.uint64()),
            ("sptep", pa.uint64()),  # null where the table's address is not known
            ("role", pa.uint32()),  # of the shadow page that holds the huge SPTE, class Role
            ("outcome", words),  # the words of class Outcome, lower case; null where only recorded
            ("errno", pa.int16()),
            ("installed", pa.int16()),  # SPTEs installed in the child
            ("nonpresent", pa.int16()),  # SPTEs left non-present
            ("reused", pa.int16()),  # SPTEs that an existing child already held
            ("child_created", pa.bool_()),
            ("retries", pa.int32()),  # lock drops at this SPTE before this attempt
            ("flush", pa.bool_()),  # the attempt owes or did a flush
            ("recorded_gfn", pa.uint64()),
            ("recorded_spte", pa.uint64()),
            ("recorded_level", pa.uint8()),
            ("recorded_errno", pa.int16()),
            ("match", words),  # the words of class Match, lower case
        ]
    )


def flush_schema() -> pa.Schema:
    """Arrow schema of ``flushes.parquet``: one row per simulated flush of a window's shadow part."""
    import pyarrow as pa

    return pa.schema(
        [
            ("window", pa.int32()),
            ("vm", pa.int16()),
            ("ts_ns", pa.int64()),
            ("line", pa.int64()),
            ("cause", pa.dictionary(pa.int8(), pa.string())),  # lower-case words of class FlushCause
            ("start_gfn", pa.uint64()),
            ("end_gfn", pa.uint64()),
        ]
    )


def window_schema() -> pa.Schema:
    """Arrow schema of ``windows.parquet``: one row per window, the numbers of ``windows[]`` in the JSON."""
    import pyarrow as pa

    counts = [
        "attempts",
        "split",
        *(f"skipped_{word}" for word in SKIP_WORDS),
        "retries",
        "flushes_total",
        "flushes_lock_drop",
        "flushes_yield",
        "flushes_window_end",
        "flushes_link",
        "flushes_zap",
        "flushes_lost",
        "tdp_attempts",
        "tdp_split",
        "tdp_failed",
        "flushes_recorded",
    ]
    return pa.schema(
        [
            ("index", pa.int32()),
            ("vm", pa.int16()),
            ("cause", pa.dictionary(pa.int8(), pa.string())),  # lower-case words of class WindowCause
            ("slot", pa.int32()),
            ("start_gfn", pa.uint64()),
            ("end_gfn", pa.uint64()),
            ("target_level", pa.uint8()),
            ("begin_ts_ns", pa.int64()),
            ("begin_line", pa.int64()),
            *((name, pa.int64()) for name in counts),  # flushes_recorded: null without flush probes
            ("doubted", pa.bool_()),  # not all of the state was known: a difference proves nothing
        ]
    )


class RunError(IntEnum):
    """Why a trace of many could not be replayed; the lower-case words are those of ``runs.error_code``."""

    TRACE = 0  # no trace, damaged
    MALFORMED_LINE = 1  # under --strict
    GOLDEN = 2  # its golden file cannot be used
    USAGE = 3  # an option means nothing for it
    UNREADABLE = 4  # missing, a directory, no permission
    MEMORY = 5
    WORKER_DIED = 6  # its process was killed or crashed, twice
    INTERNAL = 7  # a defect of the simulator


BULK_TABLES = ("runs", "outcomes", "windows", "flushes")
"""The tables of a dataset of many runs."""


def _names_of_totals() -> list[str]:
    """Columns of ``runs`` that have the numbers of ``totals``."""
    flushes = ("total", *(cause.name.lower() for cause in FlushCause), "lost")
    return [
        *("attempts", "split", "partial"),
        *("by_level_1g_attempts", "by_level_1g_split", "by_level_2m_attempts", "by_level_2m_split"),
        *(f"skipped_{word}" for word in SKIP_WORDS),
        *("retries", "retries_cache", "retries_resched"),
        *("sptes_installed", "sptes_left_nonpresent", "sptes_reused"),
        *("shadow_pages_created", "shadow_pages_reused", "shadow_pages_leaked"),
        *("shadow_pages_used_end", "shadow_pages_used_peak", "max_mmu_pages"),
        *(f"flushes_{word}" for word in flushes),
    ]


_FAULTS = ("avoided", "write_protected", "nonpresent", "lazy_splits")
_NUMBERS_OF_SECTIONS = {
    "expected": (
        *("recorded", "compared", "compared_from"),
        *("attempts", "matched", "mismatched", "missing", "unexpected"),
        *("get_page_recorded", "get_page_compared", "get_page_matched", "get_page_absent"),
        *("probes_expected", "probes_recorded", "probes_matched", "probes_absent"),
        *("flushes_expected", "flushes_simulated"),
    ),
    "environment": ("lock_drops", "yields", "alloc_failures"),
    "tdp": ("huge_sptes", "attempts", "split", "failed"),
    "recorded": ("attempts", "split", "retries"),
    "tdp_faults": _FAULTS,
    "faults": _FAULTS,
}
"""Columns of ``runs`` that have the numbers of other sections of the document, by section."""


@cache
def runs_schema() -> pa.Schema:
    """Arrow schema of ``runs`` in a dataset: one row per trace and policy.

    Names are the keys of the ``replay.run/1`` document joined by ``_``, those of ``trace`` and
    ``totals`` without their section.  What has no fixed keys (``losses``, ``policy_knobs``,
    ``expected_not_compared``, ``expected_whole_from``, ``recorded_skipped``, ``divergences``) is JSON text.
    Where a trace could not be replayed, all is null but the first columns and ``error_code``, ``error_line``
    and ``error_message``.
    """
    import pyarrow as pa

    def counts(names: Iterable[str]) -> list[pa.Field]:
        return [pa.field(name, pa.int64()) for name in names]

    def text(*names: str) -> list[pa.Field]:
        return [pa.field(name, pa.string()) for name in names]

    return pa.schema(
        [
            *text("path"),  # as it was given
            *text("content"),  # XXH64 of the trace, and of a golden file that was used
            *counts(["file_bytes"]),
            *text("format"),
            *counts(["bytes", "lines", "events", "kvmmmu_events", "ignored_lines", "malformed_lines"]),
            *counts(["lost_events", "first_ts_ns", "last_ts_ns"]),
            *text("losses"),
            pa.field("vms", pa.list_(pa.string())),
            *text("kernel"),  # its version, null if the trace does not contain it
            *text("policy_name", "policy_reason", "policy_alternative", "policy_knobs"),
            *counts(["windows", *_names_of_totals()]),
            pa.field("tdp_mmu_taken_as", pa.bool_()),
            pa.field("tdp_mmu_shown", pa.bool_()),
            *text("tdp_mmu_by", "expected_source", "expected_not_compared", "expected_whole_from"),
            *counts(f"{section}_{name}" for section, names in _NUMBERS_OF_SECTIONS.items() for name in names),
            *text("recorded_skipped", "divergences", "verdict"),
            pa.field("verdict_reasons", pa.list_(pa.string())),
            *text("error_code"),  # the words of class RunError
            *counts(["error_line"]),
            *text("error_message"),
        ]
    )


@cache
def bulk_schema(table: str) -> pa.Schema:
    """Arrow schema of one of ``BULK_TABLES`` as its Parquet files have it.

    The tables of a run have ``content`` before their own columns, which names the rows of ``runs``
    they belong to, and words as plain strings.  The policy as it was asked for is no column of the
    files but the directory that they are in, ``policy=...``.
    """
    import pyarrow as pa

    if table == "runs":
        return runs_schema()
    schema = {"outcomes": outcome_schema, "windows": window_schema, "flushes": flush_schema}[table]()
    plain = [
        pa.field(column.name, pa.string() if pa.types.is_dictionary(column.type) else column.type)
        for column in schema
    ]
    return pa.schema([pa.field("content", pa.string()), *plain])
