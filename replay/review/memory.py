"""pte_list_desc: how many a split needs, in which lists they are, and what caching them costs."""

from __future__ import annotations

import numpy as np

from replay.review.answer import Answer, Cell, Table, many, percent, share
from replay.review.runs import Result, Runs, groups, last_of

UP_FRONT = 513
"""Descriptors that a split can need at most: 512 children and one parent."""
DESC_BYTES = 128
POINTER_BYTES = 8
PAGE_BYTES = 4096
HEADER_BYTES = "152 to 200 bytes each, by kernel"
CAPACITIES = (513, 553, 1026)
UNBOUNDED_PAGES = "page_capacity=2147483648"
LENGTH_COLUMNS = (1, 2, 3, 4, 8, 15)
"""Last length of each column of the table of rmap lengths but the last."""


def _demand(runs: Runs) -> np.ndarray:
    """Descriptors that each split takes if rmaps may grow and existing children are reused."""
    return runs.preset("v2-alias").splits["descriptors"]


def up_front(runs: Runs) -> Answer:
    """A5."""
    need = _demand(runs)
    total, allocated = int(need.sum()), UP_FRONT * len(need)
    bounds = {"0": (0, 0), "1": (1, 1), "2..511": (2, 511), "512": (512, 512), "513": (513, 513)}
    rows = [(name, int(((need >= low) & (need <= high)).sum())) for name, (low, high) in bounds.items()]
    figures: dict[str, Cell] = {
        "splits": len(need),
        "descriptors": total,
        "most": int(need.max(initial=0)),
        "splits_without": int((need == 0).sum()),
        "up_front": allocated,
        "up_front_bytes": allocated * DESC_BYTES,
        "used_share": share(total, allocated),
    }
    return Answer(
        f"{allocated:,} descriptors for {many(len(need), 'split')}, of which {total:,} are used "
        f"({percent(total, allocated)}); {figures['splits_without']:,} splits need none, the maximum is "
        f"{figures['most']:,}.",
        figures,
        "v2-alias; descriptors that each split takes for its children's rmaps and parent_ptes, against "
        f"{UP_FRONT} for each",
        [Table("descriptors that a split needs", ("descriptors", "splits"), rows)],
        [] if len(need) else ["no split"],
    )


def exact_or_full(runs: Runs) -> Answer:
    """B1."""
    splits = runs.preset("v2-alias").splits
    need = splits["descriptors"]
    last = last_of(groups(splits, "window", "range"))
    idle = int((UP_FRONT - need[last]).sum())
    figures: dict[str, Cell] = {
        "splits": len(need),
        "exact_sum": int(need.sum()),
        "exact_most": int(need.max(initial=0)),
        "walks": len(last),
        "idle_at_end": idle,
        "idle_bytes": idle * DESC_BYTES,
        "rmap_probes_saved": 512 * len(need),
    }
    return Answer(
        f"Exact: {figures['exact_sum']:,} descriptors, {figures['exact_most']:,} at most, and "
        f"{figures['rmap_probes_saved']:,} more rmap look-ups. Always filled to {UP_FRONT}: {idle:,} more "
        "are "
        f"allocated and freed unused at the end of {many(len(last), 'walk')}.",
        figures,
        f"v2-alias; the cache is filled to {UP_FRONT} before each split and freed after each walk, so the "
        "unused ones are those that the last split of a walk left; computing the exact need looks at 512 "
        "rmaps for each split",
        [],
        ["the time of a look-up against that of an allocation"],
    )


def capacity(runs: Runs) -> Answer:
    """B11."""
    given = runs.preset("linux-6.0").policy.desc_capacity
    rows: list[list[Cell]] = []
    figures: dict[str, Cell] = {}
    splits = used = 0
    for size in sorted({*CAPACITIES, given}):
        settings = ("nested_only=false", f"desc_capacity={size}")
        run = runs.preset("linux-6.0", *settings, resched="never", alone=True)
        by_descriptors = runs.preset("linux-6.0", *settings, UNBOUNDED_PAGES, resched="never", alone=True)
        splits, used = run["split"], int(run.splits["descriptors"].sum())
        figures[f"drops_{size}"] = run["retries_cache"]
        figures[f"drops_by_descriptors_{size}"] = by_descriptors["retries_cache"]
        rows.append([size, run["retries_cache"], by_descriptors["retries_cache"]])
    drops = ", ".join(f"{row[2]:,} at {row[0]:,}" for row in rows)
    return Answer(
        f"Lock drops for descriptors: {drops}; {many(splits, 'split')} took {many(used, 'descriptor')}.",
        {"splits": splits, "descriptors": used, **figures},
        "linux-6.0 without its nested-only rule, refilled below desc_min, no other lock drops: -EAGAIN in "
        "all, and with a page cache that never runs out. The first attempt of each VM always drops the lock",
        [Table("-EAGAIN by capacity", ("capacity", "with the page cache", "only for descriptors"), rows)],
        ["lock drops for rescheduling, which refill the caches as well"],
    )


def rmap_lengths(runs: Runs) -> Answer:
    """B12."""
    census = runs.reviewed.census
    lengths = census.lengths
    bounds = list(
        zip((1, *(n + 1 for n in LENGTH_COLUMNS)), (*LENGTH_COLUMNS, lengths.shape[1]), strict=True)
    )
    titles = [str(low) if low == high else f"{low}..{high}" for low, high in bounds[:-1]] + [
        f"{bounds[-1][0]}+"
    ]
    rows: list[list[Cell]] = [
        [name, *(int(lengths[level, low - 1 : high].sum()) for low, high in bounds)]
        for level, name in enumerate(("4K", "2M", "1G"))
    ]
    mapped, aliased = int(lengths.sum()), int(lengths[:, 1:].sum())
    used = int(census.windows["descriptors"].max(initial=0))
    figures: dict[str, Cell] = {
        "rmap_heads": mapped,
        "with_more_than_one_entry": aliased,
        "share": share(aliased, mapped),
        "descriptors_in_use": used if mapped else None,
        "descriptor_bytes": used * DESC_BYTES if mapped else None,
        "idle_cache_bytes": UP_FRONT * DESC_BYTES,
    }
    return Answer(
        f"{aliased:,} of {mapped:,} non-empty rmaps ({percent(aliased, mapped)}) have more than one entry; "
        f"{used:,} descriptors in use ({used * DESC_BYTES:,} bytes), in addition to "
        f"{UP_FRONT * DESC_BYTES:,} bytes in a cache of 513."
        if mapped
        else "The trace does not show it: there was no attempt to split a huge SPTE.",
        figures,
        "all rmap lists of a VM at its first attempt, before anything is split; descriptors of parent_ptes "
        "count as in use",
        [Table("rmap heads by number of entries", ("level", *titles), rows)],
        ["SPTEs that were set before the trace began"],
    )


def per_vm(runs: Runs) -> Answer:
    """B13."""
    run: Result = runs.preset("linux-6.0", "nested_only=false")
    caches = run.census.caches
    size = run.policy.desc_capacity
    pointers = POINTER_BYTES * size
    filled = caches["descriptors"] * DESC_BYTES
    tables = caches["pages"] * PAGE_BYTES
    figures: dict[str, Cell] = {
        "v2_pointer_bytes": POINTER_BYTES * UP_FRONT,
        "v2_filled_bytes": UP_FRONT * DESC_BYTES,
        "pointer_bytes": pointers,
        "descriptors": caches["descriptors"],
        "descriptor_bytes": filled,
        "pages": caches["pages"],
        "page_bytes": tables,
        "headers": caches["headers"],
        "bytes": pointers + filled + tables,
    }
    rows: list[tuple[Cell, ...]] = [
        ("v2: array of 513 pointers", 1, figures["v2_pointer_bytes"]),
        ("v2: descriptors, while it splits", UP_FRONT, figures["v2_filled_bytes"]),
        (f"linux-6.0: array of {size} pointers", 1, pointers),
        ("linux-6.0: descriptors, at the end of the trace", caches["descriptors"], filled),
        ("linux-6.0: shadow pages, at the end of the trace", caches["pages"], tables),
    ]
    return Answer(
        f"4 KiB is only the array of pointers ({figures['v2_pointer_bytes']:,} bytes); when full, it holds "
        f"{figures['v2_filled_bytes']:,} bytes of descriptors. Merged code keeps "
        f"{pointers + filled + tables:,} bytes at the end of this trace.",
        figures,
        "objects that the simulated caches of linux-6.0 (without its nested-only rule) hold at the end, "
        f"over all VMs, times {DESC_BYTES} or {PAGE_BYTES} bytes; the v2 series frees its cache after each "
        "walk",
        [Table("memory", ("of", "objects", "bytes"), rows)],
        [f"{many(caches['headers'], 'page header')} in cache: {HEADER_BYTES}", "slab overhead"],
    )
