"""A replay depends on no column that it does not ask for: tables read only what is asked for."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

import numpy as np
import pytest

from replay.kernel import choose_policy
from replay.mmu.engine import REPLAYED_COLUMNS, Options, replay_trace, trace_facts
from replay.mmu.evidence.facts import FACT_COLUMNS
from replay.policy import Policy
from replay.schema import COLUMN_TYPES, Columns
from replay.trace.reader import Trace, read_trace

RECORDED = Path(__file__).parents[1] / "traces" / "recorded"
TRACES = ("v2/C3-mixed4k", "v2/V-occ4k", "linux-6.1/C1-nested-2m", "linux-7.3.4/C2-alias")
MARKER = "replay: vm_create"


def garbled(trace: Trace, asked: set[str]) -> Trace:
    """``trace`` with nonsense in all columns that are not needed; adds those that are to ``asked``."""
    batches = trace._batches
    random = np.random.default_rng(1)

    def columns(needed: Collection[str]) -> Iterator[Columns]:
        asked.update(needed)
        for batch in batches(needed):
            nonsense = {
                name: random.integers(0, 100, len(batch.kind), dtype=kind)
                for name, kind in COLUMN_TYPES.items()
                if name not in needed
            }
            yield batch._replace(**nonsense)

    trace._batches = columns
    return trace


@pytest.mark.parametrize("name", TRACES)
def test_nonsense_in_other_columns_changes_nothing(name: str) -> None:
    path = str(RECORDED / f"{name}.txt.zst")
    asked: set[str] = set()
    trace, other = read_trace(path), garbled(read_trace(path), asked)
    facts, others = trace_facts(trace), trace_facts(other)
    assert asked == set(FACT_COLUMNS)
    assert np.array_equal(facts.kinds, others.kinds)
    assert np.array_equal(facts.facts, others.facts)
    policy = Policy.parse(choose_policy(None, *facts.policy_evidence).policy)
    options = Options(rmap_histogram=("end", MARKER), census=True)
    one, two = replay_trace(trace, policy, options), replay_trace(other, policy, options)
    assert asked == {*REPLAYED_COLUMNS, "text"}
    assert one.counters == two.counters
    assert one.outcomes.equals(two.outcomes)
    assert one.windows.equals(two.windows)
    assert one.flushes.equals(two.flushes)
    assert [h.line for h in one.rmap_histograms] == [h.line for h in two.rmap_histograms]
    assert len(one.rmap_histograms) > 1
