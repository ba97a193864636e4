"""Role words as recorded, ``union kvm_mmu_page_role``, turned into the one layout of ``schema.Role``.

Text without the kernel's own role words tells a page's role by its bits: raw fields (``role=1937`` of
``trace-cmd report -R``, ``[FAILED TO PARSE]`` lines) have all of them, the words of libtraceevent's kvm
plugin the lower 16.  What a bit means depends on the kernel (arch/x86/include/asm/kvm_host.h):

    up to 5.17    bit 4 is set for 8-byte guest PTEs
    since 5.18    bit 4 is set for 4-byte guest PTEs
    since 7.2     also: four access bits 8 to 11, what stood above access is one bit higher up to bit 15

Which one a trace has is told by its words: a page that a guest gets is never invalid, so bit 11 is the
fourth access bit; tables of level 3 and higher have no 4-byte entries.  The kernel's version, where it is
known, decides what the words leave open.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from replay.schema import Columns, Kind, Role

RAW_WORD, PLUGIN_WORD = 1 << 31, 1 << 30
"""Marks of a word in the column ``role`` until ``RoleWords.convert`` was there: all bits, the lower 16."""

_MARKS = RAW_WORD | PLUGIN_WORD
_PAGE_KINDS = (Kind.GET_PAGE, Kind.SYNC_PAGE, Kind.UNSYNC_PAGE, Kind.PREPARE_ZAP_PAGE)
_LOW_BITS = int(Role.LEVEL | Role.HAS_4_BYTE_GPTE | Role.QUADRANT | Role.DIRECT)
_SMM_BITS = 0x3F << 24  # all of its bits that the marks leave

# of the layouts with three access bits: bit of the word, bit of Role
_NARROW_BITS = (
    (1 << 8, Role.ACC_EXEC),
    (1 << 9, Role.ACC_WRITE),
    (1 << 10, Role.ACC_USER),
    (1 << 11, Role.INVALID),
    (1 << 12, Role.EFER_NX),
    (1 << 13, Role.CR0_WP),
    (1 << 14, Role.SMEP),  # smep_andnot_wp
    (1 << 15, Role.SMAP_ANDNOT_WP),
)
_SAME_BITS = int(Role.AD_DISABLED | Role.GUEST_MODE | Role.PASSTHROUGH | Role.IS_MIRROR | Role.GEN)


def version_of(kernel: str | None) -> tuple[int, int] | None:
    """(major, minor) of a kernel version such as ``6.1.0-49-amd64``; None where it has none."""
    found = re.match(r"(\d+)\.(\d+)", kernel or "")
    return (int(found[1]), int(found[2])) if found else None


class RoleLayout(NamedTuple):
    """What the bits of role words mean in one age of kernels."""

    four_access_bits: bool = False
    set_for_8_bytes: bool = False  # bit 4

    def roles(self, words: np.ndarray) -> np.ndarray:
        """Bits of ``schema.Role``, uint32, for role words with or without their marks."""
        words = words.astype(np.uint32)
        roles = words & np.uint32(_LOW_BITS)
        if self.set_for_8_bytes:
            roles ^= np.uint32(Role.HAS_4_BYTE_GPTE)
        if self.four_access_bits:
            roles |= words & np.uint32(0xFF00 | _SAME_BITS | Role.SMEP)
        else:
            roles |= words & np.uint32(_SAME_BITS) | np.uint32(Role.ACC_READ)
            for bit, role in _NARROW_BITS:
                roles[(words & np.uint32(bit)) != 0] |= np.uint32(role)
        roles[(words & np.uint32(_SMM_BITS)) != 0] |= np.uint32(Role.SMM)
        return roles

    def bytewise(self) -> np.ndarray:
        """uint32[4, 256]: what each value of each byte of a word adds to ``roles``."""
        roles = self.roles(np.arange(256) << 8 * np.arange(4)[:, np.newaxis])
        roles[1:] &= ~self.roles(np.zeros(1))
        return roles


@dataclass
class RoleWords:
    """The role words of one trace: evidence while it is read, conversion of its batches afterwards."""

    seen: bool = False
    whole: bool = False
    """Words with all bits were seen."""
    layout: RoleLayout = field(default_factory=RoleLayout)
    _valid_gen: dict[int, int] = field(default_factory=dict)  # VM: generation of the pages that it gets

    def note(self, batch: Columns) -> None:
        """Take in what the words of ``batch`` tell about their layout."""
        if batch.role.max() < PLUGIN_WORD:
            return
        words = batch.role[(batch.role & _MARKS) != 0]
        self.seen = True
        self.whole = self.whole or bool((words & RAW_WORD).any())
        got = batch.role[(batch.kind == Kind.GET_PAGE) & ((batch.role & _MARKS) != 0)]
        is_upper = (words & int(Role.LEVEL)) >= 3
        has_bit_4 = words[is_upper] & int(Role.HAS_4_BYTE_GPTE)
        self._add(bool((got & (1 << 11)).any()), bool(has_bit_4.any()))

    def _add(self, four_access_bits: bool, set_for_8_bytes: bool) -> None:
        before = self.layout
        self.layout = RoleLayout(
            before.four_access_bits or four_access_bits, before.set_for_8_bytes or set_for_8_bytes
        )

    def settle(self, kernel: str | None) -> None:
        """Call once behind the last ``note``: the kernel's version decides what the words left open."""
        version = version_of(kernel)
        if version is not None:
            self._add(version >= (7, 2), version < (5, 18))

    def begin(self) -> None:
        """Call before the first batch is converted (again)."""
        self._valid_gen = {}

    def convert(self, batch: Columns) -> None:
        """Turn the words in the column ``role`` into ``schema.Role``; the column vm is filled already.

        Words of the plugin lack the generation: it is the one after the last ``kvm_mmu_zap_all_fast``.
        """
        marks = batch.role & _MARKS
        rows = np.flatnonzero(marks)
        if not len(rows):
            return
        batch.role[rows] = self.layout.roles(batch.role[rows])
        toggles = np.flatnonzero(batch.kind == Kind.ZAP_ALL_FAST).tolist()
        without_gen = rows[marks[rows] == PLUGIN_WORD]
        changes = [(-1, vm, gen) for vm, gen in self._valid_gen.items()]
        changes += [(row, int(batch.vm[row]), int(~batch.code[row] & np.uint64(1))) for row in toggles]
        for row, vm, gen in changes:
            later = without_gen[(without_gen > row) & (batch.vm[without_gen] == vm)]
            batch.role[later] &= ~np.uint32(Role.GEN)
            batch.role[later] |= np.uint32(Role.GEN if gen else 0)
            self._valid_gen[vm] = gen
