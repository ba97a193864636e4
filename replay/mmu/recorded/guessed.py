"""Pages older than the trace whose role no line has shown yet, and the lines that show it.

A kvm_mmu_set_spte line names the frame of a table, not its role.  Pages that were never printed get
the role that is the likeliest, and PageFlag.GUESSED until a line prints them, or one like them.
"""

from __future__ import annotations

from replay.jit import jit
from replay.mmu.kernel.role import DIRECT_FAMILY, ROLE_MASK, key_variant, key_vm, make_key
from replay.mmu.state.mmu import Mmu, page_bucket
from replay.mmu.state.records import TDP_KEY, PageFlag
from replay.schema import Role

OF_A_PAGE = Role.LEVEL | Role.QUADRANT | Role.ACCESS | Role.DIRECT | Role.INVALID
"""Bits of a role that differ between pages below one root."""


@jit
def find_guessed(m: Mmu, vm: int, gfn: int, role: int) -> int:
    """The page at ``gfn`` that may be the one that prints ``role``, since its own role is guessed; or -1."""
    i = int(m.hash[page_bucket(gfn, make_key(role, 0, vm), m.hash.shape[0])])
    while i:
        key = m.sp[i].key
        flags = PageFlag.LIVE | PageFlag.GUESSED
        same = m.sp[i].gfn == gfn and key_vm(key) == vm and not (key ^ role) & (Role.LEVEL | Role.DIRECT)
        if same and m.sp[i].page_flags & flags == flags:
            return i
        i = m.sp[i].next
    return -1


@jit
def name_page(m: Mmu, sp: int, role: int) -> None:
    """A line prints the role of page ``sp``: what it shares with others below its root is theirs, too."""
    key = m.sp[sp].key
    set_role(m, sp, role)
    if (key ^ role) & ROLE_MASK & ~OF_A_PAGE:
        name_all(m, key_vm(key), key_variant(key) & DIRECT_FAMILY, role)


@jit
def set_role(m: Mmu, sp: int, role: int) -> None:
    """Page ``sp`` has ``role``; where it is in the hash does not depend on that."""
    key = m.sp[sp].key
    m.sp[sp].key = (key & ~ROLE_MASK) | (role & ~Role.INVALID)
    m.sp[sp].page_flags &= ~PageFlag.GUESSED


@jit
def name_all(m: Mmu, vm: int, family: int, role: int) -> None:
    """What all pages of one ``family``, DIRECT_FAMILY or 0, share with a page of ``role``."""
    for sp in range(1, m.ctl.sp_top):
        key = m.sp[sp].key
        if (
            m.sp[sp].page_flags & PageFlag.GUESSED
            and not key & TDP_KEY
            and key_vm(key) == vm
            and key_variant(key) & DIRECT_FAMILY == family
        ):
            m.sp[sp].key = (key & ~(ROLE_MASK & ~OF_A_PAGE)) | (role & ~OF_A_PAGE)
