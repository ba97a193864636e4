"""Child roles and split SPTEs against the plain-Python model."""

from __future__ import annotations

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from replay.mmu.kernel.role import (
    ACCESS_SHIFT,
    QUADRANT_SHIFT,
    child_key,
    key_access,
    key_level,
    key_variant,
    key_vm,
    make_key,
)
from replay.mmu.kernel.spte import LEGACY, make_huge_page_split_spte, make_nonleaf_spte, spte_child
from replay.schema import Role
from tests.reference.parse import ACC_EXEC, ACC_READ, ACC_USER, ACC_WRITE
from tests.reference.parse import Role as ReferenceRole
from tests.reference.split_v2 import child_role, child_spte
from tests.reference.spte import LEGACY as REFERENCE_LEGACY
from tests.reference.state import ShadowPage

QUICK = settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
BITS = ((ACC_READ, 1), (ACC_WRITE, 2), (ACC_USER, 4), (ACC_EXEC, 8))
"""Access bits of the model, and those of the engine."""


def engine_access(access: int) -> int:
    return sum(mine for theirs, mine in BITS if access & theirs)


def engine_role(role: Role) -> int:
    bits = role.level | engine_access(role.access) << ACCESS_SHIFT | role.quadrant << QUADRANT_SHIFT
    bits |= (Role.DIRECT if role.direct else 0) | (Role.HAS_4_BYTE_GPTE if role.gpte_bytes == 4 else 0)
    return bits | (Role.EFER_NX if role.efer_nx else 0)


roles = st.builds(
    ReferenceRole,
    level=st.integers(2, 4),
    gpte_bytes=st.just(8),
    quadrant=st.just(0),
    direct=st.booleans(),
    access=st.integers(0, 15),
    efer_nx=st.booleans(),
    ad=st.just(True),
) | st.builds(
    ReferenceRole,
    level=st.just(2),
    gpte_bytes=st.just(4),
    quadrant=st.integers(0, 3),
    direct=st.just(False),
    access=st.integers(0, 15),
    efer_nx=st.booleans(),
    ad=st.just(True),
)


@QUICK
@given(role=roles, index=st.integers(0, 511), access=st.integers(0, 15), variant=st.integers(0, 255))
def test_child_key_is_the_kernels_child_role(role: Role, index: int, access: int, variant: int) -> None:
    parent = ShadowPage(0, 0, role, 0)
    parent.accesses[index] = access
    expected = child_role(parent, index)
    key = make_key(engine_role(role), variant, 3)
    child = child_key(key | Role.PASSTHROUGH, index, True, engine_access(parent.access_at(index)))
    assert child == make_key(engine_role(expected), variant, 3)
    assert (key_level(child), key_access(child)) == (role.level - 1, engine_access(expected.access))
    assert (key_variant(child), key_vm(child)) == (variant, 3)


@QUICK
@given(
    bits=st.integers(0, 0xFFF),
    frame=st.integers(0, (1 << 21) - 1),
    nx=st.booleans(),
    index=st.integers(0, 511),
    level=st.integers(1, 2),
    access=st.integers(0, 7),
)
def test_split_sptes(bits: int, frame: int, nx: bool, index: int, level: int, access: int) -> None:
    huge = frame << 30 | bits | 0x880 | (1 << 63 if nx else 0)
    role = ReferenceRole(level, 8, 0, True, access, True, True)
    signed = huge - (1 << 64) if nx else huge
    found = make_huge_page_split_spte(signed, index, level, engine_access(access), LEGACY)
    assert int(found) % (1 << 64) == child_spte(REFERENCE_LEGACY, huge, index, role)


def test_nonleaf_spte_names_its_child() -> None:
    assert [spte_child(make_nonleaf_spte(child)) for child in (0, 1, 1 << 30)] == [0, 1, 1 << 30]
