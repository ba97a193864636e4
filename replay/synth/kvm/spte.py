"""Bits of SPTEs (spte.h), in the three layouts of x86, and how the model stores links to tables."""

from __future__ import annotations

import numpy as np

from replay.jit import jit

PAGE_SHIFT = 12
SPTE_W, SPTE_PS, SPTE_MMU_PRESENT = 1 << 1, 1 << 7, 1 << 11
EPT_READ, EPT_EXEC, EPT_USER_EXEC = 1 << 0, 1 << 2, 1 << 10
ACC_EXEC, ACC_WRITE, ACC_USER, ACC_READ = 1, 2, 4, 8
_WRITE_BACK = 6 << 3 | 1 << 6  # memory type of EPT, and the guest's PAT is ignored
_SUPPRESS_VE = 1 << 63
_MMIO_REMOVED = 0x5A0  # what the TDP MMU leaves while it replaces an entry
_FROZEN = _SUPPRESS_VE | 0x1A0  # the same since 7.x

# -- Model.layout: what differs between the layouts ------------------------------------------------
EPT = 0
PRESENT = 1  # bits of every leaf
READ = 2  # granted with ACC_READ
USER = 3  # with ACC_USER
EXEC = 4  # with ACC_EXEC
NO_EXEC = 5  # without ACC_EXEC
ACCESSED = 6
DIRTY = 7
HOST_WRITABLE = 8
MMU_WRITABLE = 9
NONLEAF = 10  # bits of an SPTE that leads to a table
REMOVED = 11
NONPRESENT = 12  # how the value of a non-present SPTE is printed
AD_DISABLED = 13  # type of SPTEs that have no A/D bits
AD_WRPROT_ONLY = 14  # of those that PML does not log
SAVED = 15  # bits that access tracking keeps, SAVED_SHIFT higher
SAVED_SHIFT = 16
AD_WITHOUT_TYPE = 17  # 1: make_spte() sets A and D in SPTEs without A/D bits too
ACC_ALL = 18  # role.access of a page below which everything is granted
ACC_TABLE = 19  # what an entry of a guest table grants that leads to another table
ACC_CAN_READ = 20  # bit without which a walk forbids to read, 0: none
FOUR_LETTERS = 21  # 1: access prints as rwux, and the TDP MMU's lines come in the order of 7.2
PML = 22
LAYOUT_SIZE = 23


def _layout(**values: int) -> tuple[int, ...]:
    row = [0] * LAYOUT_SIZE
    for name, value in values.items():
        row[globals()[name]] = value - (1 << 64) if value >> 63 else value
    return tuple(row)


_LEGACY_TABLE = SPTE_MMU_PRESENT | SPTE_W | 1 << 0 | 1 << 2 | 1 << 5
LEGACY = _layout(
    PRESENT=SPTE_MMU_PRESENT | 1 << 0,
    USER=1 << 2,
    NO_EXEC=1 << 63,
    ACCESSED=1 << 5,
    DIRTY=1 << 6,
    HOST_WRITABLE=1 << 9,
    MMU_WRITABLE=1 << 10,
    NONLEAF=_LEGACY_TABLE,
    REMOVED=_MMIO_REMOVED,
    AD_WITHOUT_TYPE=1,
    ACC_ALL=ACC_EXEC | ACC_WRITE | ACC_USER,
    ACC_TABLE=ACC_EXEC | ACC_WRITE | ACC_USER,
)
EPT_2022 = _layout(
    EPT=1,
    PRESENT=SPTE_MMU_PRESENT | _WRITE_BACK,
    USER=EPT_READ,
    EXEC=EPT_EXEC,
    ACCESSED=1 << 8,
    DIRTY=1 << 9,
    HOST_WRITABLE=1 << 57,
    MMU_WRITABLE=1 << 58,
    NONLEAF=SPTE_MMU_PRESENT | EPT_READ | SPTE_W | EPT_EXEC | 1 << 8,
    REMOVED=_MMIO_REMOVED,
    AD_DISABLED=1 << 52,
    AD_WRPROT_ONLY=2 << 52,
    SAVED=EPT_READ | EPT_EXEC,
    SAVED_SHIFT=54,
    ACC_ALL=ACC_EXEC | ACC_WRITE | ACC_USER,
    ACC_TABLE=ACC_EXEC | ACC_WRITE | ACC_USER,
    ACC_CAN_READ=ACC_USER,
)
EPT_2026 = _layout(
    EPT=1,
    PRESENT=SPTE_MMU_PRESENT | _WRITE_BACK | _SUPPRESS_VE,
    READ=EPT_READ,
    USER=EPT_USER_EXEC,
    EXEC=EPT_EXEC,
    ACCESSED=1 << 8,
    DIRTY=1 << 9,
    HOST_WRITABLE=1 << 53,
    MMU_WRITABLE=1 << 55,
    NONLEAF=_SUPPRESS_VE | SPTE_MMU_PRESENT | EPT_READ | SPTE_W | EPT_EXEC | EPT_USER_EXEC | 1 << 8,
    REMOVED=_FROZEN,
    NONPRESENT=_SUPPRESS_VE,
    AD_DISABLED=1 << 60,
    AD_WRPROT_ONLY=2 << 60,
    SAVED=EPT_READ | EPT_EXEC | EPT_USER_EXEC,
    SAVED_SHIFT=52,
    AD_WITHOUT_TYPE=1,
    ACC_ALL=ACC_EXEC | ACC_WRITE | ACC_USER | ACC_READ,
    ACC_TABLE=ACC_EXEC | ACC_WRITE | ACC_READ,
    ACC_CAN_READ=ACC_READ,
    FOUR_LETTERS=1,
)
# -- whose memory a page maps, Model.sp[SP_GUEST_MODE] ---------------------------------------------
L1, NESTED, NESTED_WITHOUT_AD = 0, 1, 2


@jit
def pages(level: int) -> int:
    """4 KiB frames of one page of ``level`` (KVM_PAGES_PER_HPAGE)."""
    return 1 << (9 * (level - 1))


@jit
def is_leaf(spte: int) -> bool:
    """Whether the SPTE maps a page."""
    return spte & SPTE_MMU_PRESENT != 0


@jit
def is_child(spte: int) -> bool:
    """Whether the SPTE leads to a lower table."""
    return spte != 0 and spte & SPTE_MMU_PRESENT == 0


@jit
def child_of(spte: int) -> int:
    """The shadow page below a non-leaf SPTE."""
    return (spte >> PAGE_SHIFT) - 1


@jit
def link_to(child: int) -> int:
    """The non-leaf SPTE that leads to a shadow page."""
    return (child + 1) << PAGE_SHIFT


@jit
def make_spte(layout: np.ndarray, pfn: int, access: int, mode: int, prefetch: bool) -> int:
    """make_spte() of a 4K page that the host maps read-only; huge and writable bits are the caller's."""
    spte = pfn << PAGE_SHIFT | layout[PRESENT]
    if mode == NESTED_WITHOUT_AD:
        spte |= layout[AD_DISABLED]
    elif mode == NESTED and layout[PML]:
        spte |= layout[AD_WRPROT_ONLY]
    keeps = mode != NESTED_WITHOUT_AD or layout[AD_WITHOUT_TYPE] != 0
    if keeps and not prefetch:
        spte |= layout[ACCESSED]
    if access & ACC_READ:
        spte |= layout[READ]
    if access & ACC_USER:
        spte |= layout[USER]
    spte |= layout[EXEC] if access & ACC_EXEC else layout[NO_EXEC]
    if access & ACC_WRITE:
        spte |= SPTE_W | layout[MMU_WRITABLE]
        if keeps:
            spte |= layout[DIRTY]
    if prefetch and mode == NESTED_WITHOUT_AD:
        spte = mark_for_access_track(layout, spte)
    return spte


@jit
def mark_for_access_track(layout: np.ndarray, spte: int) -> int:
    """mark_spte_for_access_track(): without A bits, the next access has to fault."""
    saved = layout[SAVED]
    return spte & ~(saved | SPTE_W) | (spte & saved) << layout[SAVED_SHIFT]


@jit
def clear_dirty(layout: np.ndarray, spte: int) -> int:
    """__rmap_clear_dirty(): what PML does not log loses W, all else D."""
    if spte & (layout[AD_DISABLED] | layout[AD_WRPROT_ONLY]):
        return spte & ~SPTE_W
    return spte & ~layout[DIRTY]


@jit
def can_fetch(layout: np.ndarray, spte: int) -> bool:
    """Whether the hardware fetches instructions through a leaf."""
    return spte != 0 and spte & layout[EXEC] == layout[EXEC] and spte & layout[NO_EXEC] == 0
