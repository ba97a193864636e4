"""Where everything is in the state: columns of its rows, bits of their flags, places in ``Mmu.ctl``.

Objects are rows and refer to each other by row number.  A *sptep* is one number, ``sp * 512 + index``:
the address of an SPTE, as in the kernel.
"""

from __future__ import annotations

# -- shadow pages (struct kvm_mmu_page): a row is 64 bytes, in two tables; row 0 is no page --------
# Mmu.sp
SP_GFN = 0
SP_KEY = 1  # role (schema.Role) | variant << 32 | vm << 40; TDP_KEY set for tables of the TDP MMU
SP_BASE = 2  # UNIFORM: SPTE 0, the others follow from it
SP_PARENTS = 3  # parent_ptes, encoded as an rmap head
SP_PAGE = 4  # page frame of the table (set_spte "at" >> 12), 0 unknown
SP_COLUMNS = 5
# Mmu.sp32
SP32_NEXT = 0  # next page in the hash chain, or in the free list
SP32_PAGE_NEXT = 1
SP32_FLAGS = 2
SP32_SPT = 3  # row of Mmu.spt with the 512 SPTEs; NO_TABLE none is present; UNIFORM all are, see SP_BASE
SP32_TRANSLATION = 4  # row of Mmu.spt with shadowed_translation (gfn << 4 | access), else NO_TABLE
SP32_BIRTH = 5
SP32_COLUMNS = 6

FLAG_LIVE = 1
FLAG_UNSYNC = 2
FLAG_INVALID = 4  # role.invalid: zapped while it is a root in use
FLAG_ROOT = 8
FLAG_ADOPTED = 16  # older than the trace, or its creation was lost
FLAG_SPLIT = 32  # made by a simulated split; SP32_TRANSLATION marks the SPTEs that faults have set since
FLAG_RECORDED = 64  # of those: the recording has the page, too
FLAG_GUESSED = 128  # of those adopted: no line has shown the role yet, see guessed.py
FLAG_CLEARED = 256  # UNIFORM: FLAG_CLEARED << n is set where SPTEs 64 * n to 64 * n + 63 are write-protected
ALL_CLEARED = 255 * FLAG_CLEARED
FLOOD_SHIFT = 16  # writes to the shadowed table since a fault last walked it, up to 3
FLAG_FLOOD = 3 << FLOOD_SHIFT

NO_TABLE = -1
UNIFORM = -2
TDP_KEY = 1 << 60
KEY_VARIANT_SHIFT = 32
KEY_VM_SHIFT = 40

# -- rmap regions of 2 MiB, Mmu.region (512 rows for each touched GiB) ---------------------------
REGION_HEAD = 0  # rmap head of the 2M level
REGION_BLOCK = 1  # row of Mmu.block with the 512 4K heads; NO_TABLE all empty; UNIFORM one page maps all
REGION_SP = 2  # that shadow page
REGION_HOST = 3  # largest level at which the host was seen to map this region
REGION_TABLES = 4  # indirect shadow pages whose gfn lies here (disallow_lpage)
REGION_COLUMNS = 5

# -- GiB of guest memory, Mmu.gib ----------------------------------------------------------------
GIB_KEY = 0  # (gfn >> 18) << 16 | vm, -1 a free row
KEY_OF_HOST = 1 << 15  # in a key: host memory, by hva, of which the host's page sizes are kept
GIB_HEAD = 1  # rmap head of the 1G level
GIB_REGION = 2  # first of its 512 rows in Mmu.region
GIB_HOST = 3
GIB_TABLES = 4
GIB_COLUMNS = 5

# -- pte_list_desc, Mmu.desc ---------------------------------------------------------------------
PTE_LIST_EXT = 14
DESC_COUNT = 14
DESC_MORE = 15  # next descriptor or -1; also the free list
DESC_COLUMNS = 16

# -- memslots, Mmu.slot --------------------------------------------------------------------------
SLOT_VM = 0
SLOT_ID = 1
SLOT_BASE = 2
SLOT_NPAGES = 3
SLOT_FLAGS = 4
SLOT_HVA = 5
SLOT_LIVE = 6
SLOT_BITMAP = 7  # first word of its dirty bitmap in Mmu.bitmap + 1, 0 none was needed yet
SLOT_BITMAP_WORDS = 8
SLOT_COLUMNS = 9
SLOT_DIRTY_LOG = 1
SLOT_READONLY = 2

# -- virtual machines, Mmu.vm --------------------------------------------------------------------
VM_USED = 0  # n_used_mmu_pages
VM_MAX = 1  # n_max_mmu_pages
VM_MAX_KNOWN = 2  # set by a limit in the trace or by the caller, no longer derived from the memslots
MAX_GIVEN = 1  # by the caller
MAX_REQUESTED = 2  # by KVM_SET_NR_MMU_PAGES
VM_GOAL_TASK = 3  # task + 1 whose change_mmu_pages still zaps
VM_HAS_TDP = 4
VM_LAYOUT = 5  # of its SPTEs: spte.LEGACY, EPT or EPT_2026
VM_OBSOLETE = 6  # mmu_valid_gen + 1 of the pages that kvm_mmu_zap_all_fast made obsolete, 0 none
VM_MANUAL = 7  # KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2 argument
VM_PROBES = 8  # PROBES_* bits: which control probes the trace has of this VM
VM_RESCHED = 9  # need_resched is raised
VM_DESC = 10  # objects in split_desc_cache
VM_HEADERS = 11  # objects in split_page_header_cache
VM_PAGES = 12  # objects in split_shadow_page_cache
VM_PEAK = 13
VM_WINDOW = 14  # number of the open window, -1 none
VM_ROOT_NEXT = 15
VM_ROOTS = 16  # the indirect roots got last, sp + 1, a ring of ROOTS
ROOTS = 32
VM_BY_CONTROL = VM_ROOTS + ROOTS  # windows are opened by probes and markers
VM_BY_RECORD = VM_BY_CONTROL + 1  # windows are opened by recorded split lines
VM_SPLIT_DUE = VM_BY_RECORD + 1  # all of its memory is to be split at CTL_SPLIT_TIME
VM_HAS_FAULTS = VM_SPLIT_DUE + 1  # kvm_page_fault lines tell the access of its faults
VM_SEEN = VM_HAS_FAULTS + 1  # the census has counted its rmaps
VM_END = VM_SEEN + 1  # no gfn from here on was ever mapped, whatever the memslots say
VM_TRUTHS = VM_END + 1  # kinds of lines that are compared in order, see truth.truth_bit
VM_OLDER = VM_TRUTHS + 1  # first line that showed state older than the trace, 0 none did
VM_BORN = VM_OLDER + 1  # a root of this VM was made in the trace
VM_DIFFERS = VM_BORN + 1  # a recorded line differed although all state was known
VM_BEGUN = VM_DIFFERS + 1  # the first events of this VM are in the trace, or are known not to be
VM_RAW_ROLES = VM_BEGUN + 1  # its roles have guest_mode
VM_DOUBT_LINE = VM_RAW_ROLES + 1  # what differs from this line on proves nothing
VM_TDP_ROLE = VM_DOUBT_LINE + 1  # role of the TDP MMU's tables less its level, 0 unknown
VM_HAS_RMAPS = VM_TDP_ROLE + 1  # kvm_memslots_have_rmaps(): the VM has had a shadow page
VM_TOLD_BIRTH = VM_HAS_RMAPS + 1  # CTL_BIRTH when kvm_mmu_zap_all_fast last told n_used_mmu_pages
VM_KEPT = VM_TOLD_BIRTH + 1  # pages made until then that it counts and that live
VM_UNSEEN = VM_KEPT + 1  # pages that it counts beside those: older than the trace, or their lines were lost
VM_VMM_BYTES = VM_UNSEEN + 1  # its VMM's own markers give ranges of slots in bytes
VM_SMM_RANGE = VM_VMM_BYTES + 1  # first gfn + 1 of the last window taken for SMM's since nothing followed
VM_PML = VM_SMM_RANGE + 1  # the CPU logs what is written, as far as the trace shows
VM_NX_HUGE = VM_PML + 1  # nx_huge_pages is on: huge pages were seen to lose X
VM_HOST_LEVELS = VM_NX_HUGE + 1  # something was noted of it by hva, see host_pages.py
VM_UNPROVEN = VM_HOST_LEVELS + 1  # first line at which a window differed although that proves nothing, 0 none
VM_INDIRECT_ROLE = VM_UNPROVEN + 1  # role + 1 of the indirect page got last, less what differs; 0 none
VM_TDP_MMU = VM_INDIRECT_ROLE + 1  # kvm.tdp_mmu=Y
VM_CACHES = VM_TDP_MMU + 1  # what is known of its split caches: CACHES_*
CACHES_KNOWN = 0
CACHES_UNKNOWN = 1  # they may have been filled before the trace
CACHES_BOUNDED = 2  # VM_DESC, VM_HEADERS and VM_PAGES are the most that they can hold
VM_TDP_SIMULATED = VM_CACHES + 1  # rows of simulated tables of its TDP MMU, see tdp_simulated.py
VM_FAULT_SPLIT = VM_TDP_SIMULATED + 1  # policy.FaultSplit, as its kernel or its faults show
VM_AVAILABLE_SHOWN = VM_FAULT_SPLIT + 1  # how many pages are available is known, how many are used is not
VM_LAST_UNPROVEN = VM_AVAILABLE_SHOWN + 1  # the last such line
VM_WHOLE = VM_LAST_UNPROVEN + 1  # the line at which all state became known, though some had been older
VM_COLUMNS = VM_WHOLE + 1
PROBES_REGION = 1  # set_region and commit_region: memslot markers are not needed
PROBES_SPLIT = 2  # the split functions: windows open and close by them
PROBES_LIMIT = 4  # change_mmu_pages
PROBES_PROTECT = 8  # slot_remove_write_access
PROBES_COLLAPSE = 16  # zap_collapsible or recover_huge
PROBES_CLEAR_DIRTY = 32  # slot_leaf_clear_dirty
PROBES_RETURN = 64  # the ends of slot_try_split or try_split
PROBES_FAST_FAULT = 128  # the tracepoint fast_page_fault
MANUAL_PROTECT = 1  # KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE, of VM_MANUAL
INITIALLY_SET = 2  # KVM_DIRTY_LOG_INITIALLY_SET
UNLIMITED = 1 << 40

# -- tasks, Mmu.task -----------------------------------------------------------------------------
TASK_PID = 0  # pid + 1, 0 a free row
TASK_ROOT = 1  # indirect root in use, -1
TASK_DIRECT_ROOT = 2
TASK_VARIANT = 3  # what the printed role does not tell of the indirect root
TASK_FAULT_ADDR = 4
TASK_FAULT_CODE = 5
TASK_STATE = 6
TASK_WALK_ADDR = 7
TASK_WALK_CODE = 8
TASK_WALK_TOP = 9  # level of the first guest entry read, 0 no walk
TASK_WALK_LEAF = 10
TASK_PTE = 11  # guest entries by level: TASK_PTE + level
TASK_REQ_GFN = 17
TASK_REQ_LEVEL = 18
TASK_CHAIN = 19  # shadow page by level in this fault: TASK_CHAIN + level, -2 not looked up
TASK_TDP_OLD = 25  # the last kvm_tdp_mmu_spte_changed, if it was the last kvmmmu event
TASK_TDP_NEW = 26
TASK_TDP_GFN = 27
TASK_TDP_LEVEL = 28
TASK_REGION = 29  # slot of the set_region that is not committed yet: slot id + 1
TASK_REGION_BASE = 30
TASK_REGION_NPAGES = 31
TASK_REGION_FLAGS = 32
TASK_REGION_HVA = 33
TASK_SLOT = 34  # row of the slot last committed + 1
TASK_LEAF_ACCESS = 35  # walk.leaf_access of the walk + 1, 0 not worked out yet
TASK_LINKED = 36  # this fault had to link a table into the tree
TASK_PREV_ROOTS = 37  # the roots used before, sp + 1, the last one first (mmu->prev_roots)
PREV_ROOTS = 3  # KVM_MMU_NUM_PREV_ROOTS
TASK_WRITE = 40  # WRITE_*: whose the walk for writing is that has been read last
TASK_LAST_KIND = 41  # of the last kvmmmu event, and its gfn
TASK_LAST_GFN = 42
TASK_LAZY = 43  # gfn + 1 of the huge page that the last page got in a fault replaced
TASK_COLUMNS = 44

WRITE_WALKED = 1  # the emulator's, unless the next event shows that it was the fault's own
WRITE_OF_FAULT = 2  # the next walk is that of the fault which kvm_page_fault tells of

STATE_IDLE = 0
STATE_FAULT = 1  # kvm_page_fault or pagetable_walk seen
STATE_REQUESTED = 2  # spte_requested seen
STATE_DONE = 3  # the fault set its SPTE

# -- lines compared in order, Mmu.truth: see truth.py --------------------------------------------
TRUTH_NEXT = 0  # row + 1 of the next line of the queue, 0 none; also the free list
TRUTH_KIND = 1
TRUTH_GFN = 2
TRUTH_LEVEL = 3
TRUTH_A = 4
TRUTH_B = 5
TRUTH_COLUMNS = 6

# -- one number each, Mmu.ctl ----------------------------------------------------------------------
CTL_SP_FREE = 0  # free list of shadow pages, -1 end
CTL_SP_TOP = 1
CTL_SPT_FREE = 2
CTL_SPT_TOP = 3
CTL_BLOCK_FREE = 4
CTL_BLOCK_TOP = 5
CTL_DESC_FREE = 6
CTL_DESC_TOP = 7
CTL_GIB_TOP = 8
CTL_REGION_TOP = 9
CTL_OUT_TOP = 10
CTL_FLUSH_TOP = 11
CTL_WINDOW_TOP = 12
CTL_BIRTH = 13
CTL_SLOT_TOP = 14
CTL_TASKS = 15
CTL_BITMAP_TOP = 16
CTL_LAST_GIB = 17  # row of the GiB found last
CTL_ROW = 18  # where an interrupted run of the event loop goes on
CTL_TS = 19
CTL_LINE = 20
CTL_ATTEMPTS_SEEN = 21  # attempts since the start: --resched every=N
CTL_RNG = 22
CTL_LAST_TDP = 23  # TDP table found last
CTL_DESC_USED = 24  # descriptors in use by rmaps
CTL_RUN = 25  # window + 1 that runs through without recorded lines
CTL_HAS_RECORDED = 26  # the trace holds recorded outcomes to compare with
CTL_BITMAP_WANT = 27  # words of a dirty bitmap that is to be made
CTL_LAST_TASK = 30  # row of the task found last
CTL_TRUTH_FREE = 153  # first free row of Mmu.truth + 1, 0 none
CTL_TRUTH_TOP = 154
CTL_DIRECT_MAP = 155  # virtual address of physical 0, as probes print pointers; 0 unknown
CTL_LAST_BOUND = 150  # shadow page found last by the page frame of its table
CTL_SPLIT_TIME = 28  # ns at which all guest memory is split where VM_SPLIT_DUE
CTL_ROOM = 31  # events for which rows were found to suffice
CTL_SCANNED = 151  # shadow pages that the census looked at
CTL_SOURCE_TOP = 152
CTL_COUNTERS = 32  # the counters of window.py begin here
CTL_SIZE = 160
