"""Parts of the engine, as plain Python: collected with NUMBA_DISABLE_JIT=1 only (tests/test_mmu_parts.py)."""

from __future__ import annotations

import os

import pytest

from replay.mmu.state import growth, mmu

if os.environ.get("NUMBA_DISABLE_JIT") != "1":
    collect_ignore_glob = ["*/test_*.py"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The hash wraps around, which numpy's scalars warn of."""
    for item in items:
        if os.path.dirname(__file__) in str(item.path):
            item.add_marker(pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning"))


@pytest.fixture
def m() -> mmu.Mmu:
    """Two VMs without pages, with room for everything."""
    return make_mmu()


def make_mmu() -> mmu.Mmu:
    m = mmu.make(2)
    while not growth.has_room(m):
        m = growth.grow(m)
    return m
