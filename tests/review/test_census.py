"""What the census says of each look-up, against the plain-Python model of tests/reference."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Generator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from replay.review.runs import Result
from replay.run import Request, run_trace
from tests.reference import through
from tests.reference.parse import ACC_WRITE, Role, Step
from tests.reference.split_merged import needs_parent_desc
from tests.reference.split_v2 import SplitV2, SplitV2Alias, child_role
from tests.reference.state import PT_WRITABLE, SPTES, ShadowPage, Vm, pages_per
from tests.scenarios import Table, make_trace, scenarios

FIELDS = (
    "gfn", "level", "child_exists", "child_parents", "child_present", "child_nonleaf", "occupied",
    "rmap_length",
)  # fmt: skip


def find(vm: Vm, gfn: int, role: Role, variant: int) -> ShadowPage | None:
    found = [sp for sp in vm.by_gfn.get(gfn, ()) if (sp.gen, sp.role, sp.variant) == (vm.gen, role, variant)]
    return found[-1] if found else None


def look_up(vm: Vm, huge_sp: ShadowPage, index: int, spte: int, gfn: int) -> Step:
    """The facts of one look-up, in the order of ``FIELDS``, then descriptors needed and W missing."""
    level = huge_sp.role.level
    role = child_role(huge_sp, index)
    child = find(vm, gfn, role, huge_sp.variant) or ShadowPage(vm.gen, gfn, role, huge_sp.variant)
    gfns = [gfn + at * pages_per(level - 1) for at in range(SPTES)]
    need = sum(vm.rmap.needs_desc(level - 1, gfns[at]) for at in range(SPTES) if at not in child.sptes)
    return (
        "look_up",
        gfn,
        level,
        int(find(vm, gfn, role, huge_sp.variant) is not None),
        len(child.parents),
        len(child.sptes),
        sum(isinstance(below, ShadowPage) for below in child.sptes.values()),
        sum(vm.rmap.used(level - 1, at) for at in gfns),
        len(vm.rmap.at(level, gfn)),
        need + needs_parent_desc(child),
        int(bool(role.access & ACC_WRITE) and not spte & PT_WRITABLE),
    )


class CountedV2(SplitV2):
    def _split(self, huge_sp: ShadowPage, index: int, spte: int, gfn: int) -> Generator[Step, None, int]:
        yield look_up(self.vm, huge_sp, index, spte, gfn)
        return (yield from super()._split(huge_sp, index, spte, gfn))


class CountedAlias(SplitV2Alias):
    def _split(self, huge_sp: ShadowPage, index: int, spte: int, gfn: int) -> Generator[Step, None, int]:
        yield look_up(self.vm, huge_sp, index, spte, gfn)
        return (yield from super()._split(huge_sp, index, spte, gfn))


COUNTED = {"v2": CountedV2, "v2-alias": CountedAlias}


@pytest.mark.parametrize("policy", COUNTED)
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(table=scenarios())
def test_look_ups_of_random_traces(policy: str, table: Table) -> None:
    with tempfile.TemporaryDirectory() as directory, pytest.MonkeyPatch.context() as patch:
        patch.setitem(through.SPLITS_V2, policy, COUNTED[policy])
        trace = make_trace(table, Path(directory))
        predicted = through.run_through(trace, policy)
        request = Request(policy=policy, expect="none", split_at="control", census=True)
        result = Result(run_trace(str(trace), request))
    lines = result.windows("begin_line")["begin_line"]
    found = result.looked_up
    for window in itertools.takewhile(lambda window: window.understood, predicted):
        expected = [step[1:] for step in window.steps if step[0] == "look_up"]
        rows = np.flatnonzero(lines[found["window"]] == window.line)
        assert [tuple(int(found[name][row]) for name in FIELDS) for row in rows] == [
            facts[: len(FIELDS)] for facts in expected
        ]
        missing = found["guest_access"] & ~found["spte_access"] & 2 != 0
        assert [int(missing[row]) for row in rows] == [facts[-1] for facts in expected]
        if policy == "v2-alias":
            assert [int(found["descriptors"][row]) for row in rows] == [facts[-2] for facts in expected]
