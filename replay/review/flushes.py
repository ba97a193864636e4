"""TLB flushes: when they are pending, how many each rule costs, and which could be batched."""

from __future__ import annotations

import numpy as np

from replay.policy import Flush
from replay.review.answer import Answer, Cell, Table, many
from replay.review.runs import Result, Runs, groups, rows_of
from replay.schema import FlushCause

CAUSES = tuple(cause.name.lower() for cause in FlushCause)
DROP_RATES = ("every=16", "every=4", "every=1")
"""Lock drops that may be asked about: at every n-th attempt."""
SHADOW_PART_ONLY = (
    "flushes outside of the window's shadow part: the TDP part, and the memslot flush after both"
)


def _counts(result: Result) -> list[Cell]:
    return [result["flushes_total"], *(result[f"flushes_{cause}"] for cause in CAUSES)]


def before_lock_drop(runs: Runs) -> Answer:
    """A6."""
    rules = {
        "deferred": runs.varied("flush=deferred_if_partial"),
        "at once if needed": runs.varied("flush=on_link_if_nonleaf"),
        "always": runs.varied("flush=on_link_always"),
    }
    rates = {rate: runs.varied("flush=deferred_if_partial", resched=rate, alone=True) for rate in DROP_RATES}
    exposed = int(rules["deferred"].attempts["owed"].sum())
    figures: dict[str, Cell] = {
        "partial_splits": rules["deferred"]["partial"],
        "lock_drops": rules["deferred"]["retries"],
        "drops_with_a_flush_owed": rules["deferred"]["flushes_lost"],
        "attempts_with_a_flush_owed": exposed,
        "flushes_deferred": rules["deferred"]["flushes_total"],
        "flushes_at_once": rules["at once if needed"]["flushes_total"],
        "flushes_always": rules["always"]["flushes_total"],
    }
    owed = figures["drops_with_a_flush_owed"]
    return Answer(
        f"{'No' if owed else 'In this trace yes'}: {many(rules['deferred']['flushes_lost'], 'lock drop')} of "
        f"{rules['deferred']['retries']:,} found the flush of an earlier rmap head still pending; a drop at "
        f"{exposed:,} of {many(rules['deferred']['attempts'], 'attempt')} would. Flushes: "
        f"{figures['flushes_deferred']:,} deferred, {figures['flushes_at_once']:,} at once, "
        f"{figures['flushes_always']:,} always.",
        figures,
        "the policy under review with each flush rule; then deferred with lock drops at every n-th attempt, "
        "each window on its own. A drop counts if another head has left SPTEs non-present "
        "since the last flush. The attempts are those at which this is so",
        [
            Table(
                "flushes by rule",
                ("flush", "total", *CAUSES, "drops with a flush pending"),
                [(name, *_counts(run), run["flushes_lost"]) for name, run in rules.items()],
            ),
            Table(
                "drops with a flush pending, by rate",
                ("lock drops", "attempts", "drops", "with a flush pending"),
                [(rate, run["attempts"], run["retries"], run["flushes_lost"]) for rate, run in rates.items()],
            ),
        ],
        [SHADOW_PART_ONLY],
    )


def reuse(runs: Runs) -> Answer:
    """B7."""
    alias = runs.preset("v2-alias")
    reused = alias.splits["child_exists"] != 0
    nonleaf = alias.splits["child_nonleaf"] > 0
    results = {name: runs.preset(name) for name in ("v2", "v2-desc", "v2-alias", "linux-6.0", "linux-2026")}
    rows = [
        (name, run["split"], run["shadow_pages_reused"], run["flushes_total"], _batched(run))
        for name, run in results.items()
    ]
    figures: dict[str, Cell] = {
        "splits": alias["split"],
        "splits_with_existing_child": int(reused.sum()),
        "splits_with_nonleaf_child": int((reused & nonleaf).sum()),
        "flushes": alias["flushes_total"],
        "flushes_batched": _batched(alias),
    }
    return Answer(
        f"{many(alias['split'], 'split')}, {figures['splits_with_existing_child']:,} found an existing "
        "child, "
        f"{figures['splits_with_nonleaf_child']:,} of these with a present non-leaf SPTE; "
        f"{many(alias['flushes_total'], 'flush', 'flushes')}, {_batched(alias):,} if deferred until the "
        "lock drop.",
        figures,
        "the present SPTEs of each existing child before it is reused (v2-alias); flushes under each policy; "
        "batched: at most one flush for all splits between two lock drops",
        [Table("flushes by policy", ("policy", "split", "reused", "flushes", "batched"), rows)],
        [SHADOW_PART_ONLY, *_nothing_nested(results["linux-6.0"])],
    )


def _batched(result: Result) -> int:
    """Flushes if all of one hold of the lock were joined; zaps by look-ups are not deferred."""
    if result.policy.flush == Flush.DEFERRED_IF_PARTIAL:
        return result["flushes_total"]
    owing = rows_of(result.splits, result.splits["flush"] != 0)
    return len(np.unique(groups(owing, "window", "hold"))) + result["flushes_zap"]


def every_link(runs: Runs) -> Answer:
    """B20."""
    flagged, always = runs.preset("linux-6.0"), runs.preset("linux-2026")
    before, after = flagged["flushes_total"], always["flushes_total"]
    factor = round(after / before, 2) if before else None
    figures: dict[str, Cell] = {
        "splits": always["split"],
        "flushes_flagged": before,
        "flushes_always": after,
        "factor": factor,
        "more": after - before,
    }
    times = f"a factor of {factor}" if factor is not None else "no factor, since there was none before"
    return Answer(
        f"{after - before:,} more: {after:,} instead of {before:,} for {many(always['split'], 'split')}, "
        f"{times}.",
        figures,
        "linux-2026 (__link_shadow_page always flushes) against linux-6.0 (only if there was a present "
        "non-leaf SPTE)",
        [],
        ["what a flush costs in time", *_nothing_nested(always)],
    )


def _nothing_nested(result: Result) -> list[str]:
    skipped = result["skipped_not_nested"]
    return (
        [f"{many(skipped, 'huge SPTE')} outside of nested MMUs, which merged kernels skip"] if skipped else []
    )
