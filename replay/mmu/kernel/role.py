"""Roles of shadow pages as one int64 key: printed role bits, inferred variant, VM.

The printed role lacks cr0_wp, smep, smap and guest_mode; a *variant* stands for them.  It is a
property of a root that its children inherit, as the bits it stands for are.
"""

from __future__ import annotations

from replay.jit import jit
from replay.mmu.state.records import KEY_VARIANT_SHIFT, KEY_VM_SHIFT
from replay.schema import ROLE_ACCESS_SHIFT, ROLE_QUADRANT_SHIFT, Role

ACCESS_SHIFT = ROLE_ACCESS_SHIFT
QUADRANT_SHIFT = ROLE_QUADRANT_SHIFT
ACC_READ = int(Role.ACC_READ) >> ROLE_ACCESS_SHIFT
ACC_WRITE = int(Role.ACC_WRITE) >> ROLE_ACCESS_SHIFT
ACC_USER = int(Role.ACC_USER) >> ROLE_ACCESS_SHIFT
ACC_EXEC = int(Role.ACC_EXEC) >> ROLE_ACCESS_SHIFT
ACC_ALL = ACC_READ | ACC_WRITE | ACC_USER | ACC_EXEC

ROLE_MASK = (1 << KEY_VARIANT_SHIFT) - 1
UNPRINTED = int(
    Role.CR0_WP
    | Role.SMAP_ANDNOT_WP
    | Role.GUEST_MODE
    | Role.PASSTHROUGH
    | Role.IS_MIRROR
    | Role.SMEP
    | Role.SMM
)
"""Bits that the text of a PAGE line does not show."""
DIRECT_FAMILY = 0x80
"""Variant bit of pages below a direct root, which differs from an indirect one in unprinted bits."""


@jit
def make_key(role: int, variant: int, vm: int) -> int:
    """The key of a page with this role (without ``invalid``), variant and VM."""
    return (role & ~Role.INVALID) | (variant << KEY_VARIANT_SHIFT) | (vm << KEY_VM_SHIFT)


@jit
def key_level(key: int) -> int:
    """Level of the role in a key."""
    return key & Role.LEVEL


@jit
def key_access(key: int) -> int:
    """ACC_* bits of the role in a key."""
    return (key & Role.ACCESS) >> ACCESS_SHIFT


@jit
def key_variant(key: int) -> int:
    """Variant in a key."""
    return (key >> KEY_VARIANT_SHIFT) & 0xFF


@jit
def key_vm(key: int) -> int:
    """VM in a key."""
    return (key >> KEY_VM_SHIFT) & 0xFFFF


@jit
def child_key(parent_key: int, index: int, direct: bool, access: int) -> int:
    """kvm_mmu_child_role(): the key of the page below SPTE ``index`` of a page with ``parent_key``."""
    key = parent_key & ~(Role.LEVEL | Role.QUADRANT | Role.DIRECT | Role.ACCESS | Role.PASSTHROUGH)
    key |= ((parent_key & Role.LEVEL) - 1) | (access << ACCESS_SHIFT)
    if direct:
        key |= Role.DIRECT
    if key & Role.HAS_4_BYTE_GPTE:
        key |= (index & 1) << QUADRANT_SHIFT
    return key


@jit
def role_of_word(word: int) -> int:
    """The printed bits of a role word of the v2 kernel, 5.18 to 7.1: three access bits from bit 8 on."""
    role = word & (Role.LEVEL | Role.HAS_4_BYTE_GPTE | Role.QUADRANT | Role.DIRECT | Role.AD_DISABLED)
    role |= ACC_READ << ACCESS_SHIFT
    role |= ACC_EXEC << ACCESS_SHIFT if word & 0x100 else 0
    role |= ACC_WRITE << ACCESS_SHIFT if word & 0x200 else 0
    role |= ACC_USER << ACCESS_SHIFT if word & 0x400 else 0
    role |= Role.INVALID if word & 0x800 else 0
    return role | (Role.EFER_NX if word & 0x1000 else 0)
