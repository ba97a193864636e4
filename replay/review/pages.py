"""Shadow pages: leaked, missing, slow to find, or allocated for memory that is never written."""

from __future__ import annotations

import numpy as np

from replay.mmu.kernel.spte import PT_WRITABLE_MASK
from replay.mmu.state.records import UNLIMITED
from replay.options import MAX_MMU_PAGES
from replay.review.answer import Answer, Cell, Table, many, percent, share
from replay.review.flushes import DROP_RATES
from replay.review.memory import HEADER_BYTES, PAGE_BYTES
from replay.review.runs import Arrays, Result, Runs, first_of, groups, last_of, rows_of, sums
from replay.schema import Columns, Flag, Kind, Outcome

SHOWN_PLACES = 8
REGION_PAGES = 512


def leaked(runs: Runs) -> Answer:
    """A2."""
    run = runs.reviewed
    places, pages = _leaks(run)
    rates = {"as recorded": run, "never": runs.varied(resched="never", alone=True)}
    rates |= {rate: runs.varied(resched=rate, alone=True) for rate in DROP_RATES}
    total = run["shadow_pages_leaked"]
    figures: dict[str, Cell] = {
        "leaked": total,
        "leaked_bytes": total * PAGE_BYTES,
        "rmap_heads": len(pages),
        "existing_child": run["skipped_existing_child"],
        "lock_drops": run["retries"],
    }
    most = np.argsort(-pages, kind="stable")[:SHOWN_PLACES]
    return Answer(
        f"{'Yes' if total else 'Not in this trace'}: {many(total, 'page')} leaked ({total * PAGE_BYTES:,} "
        f"bytes and their headers) at {many(len(pages), 'rmap head')}, after "
        f"{run['skipped_existing_child']:,} -EOPNOTSUPP and {many(run['retries'], 'lock drop')}.",
        figures,
        "allocations while *spp already held a page; lock drops at every n-th attempt: each window on its "
        "own",
        [
            Table(
                "pages leaked by lock drops",
                ("lock drops", "attempts", "existing_child", "drops", "leaked"),
                [
                    (name, r["attempts"], r["skipped_existing_child"], r["retries"], r["shadow_pages_leaked"])
                    for name, r in rates.items()
                ],
            ),
            Table(
                "where most pages are leaked",
                ("gfn", "level", "leaked"),
                [(f"{places['gfn'][i]:x}", int(places["level"][i]), int(pages[i])) for i in most],
            ),
        ],
        [f"the size of a header: {HEADER_BYTES}"],
    )


def _leaks(run: Result) -> tuple[Arrays, np.ndarray]:
    """(one row for each rmap head that leaked, pages that it leaked)."""
    # windows of several VMs can interleave
    shown = rows_of(run.shown, np.argsort(run.shown["window"], kind="stable"))
    new = first_of(shown["window"])
    before = np.concatenate([[0], shown["leaked"][:-1]]) if len(shown["leaked"]) else shown["leaked"]
    before[new] = 0
    lost = rows_of(shown | {"pages": shown["leaked"] - before}, shown["leaked"] > before)
    group = groups(lost, "vm", "level", "gfn")
    return rows_of(lost, first_of(group)), sums(group, lost["pages"])


def limit(runs: Runs) -> Answer:
    """A8."""
    run, free = runs.reviewed, runs.varied(max_mmu_pages=MAX_MMU_PAGES)
    used = free.attempts["used"]
    needed = int(used.max() + run.policy.min_free_pages + 1) if len(used) else None
    refused = rows_of(run.attempts, run.attempts["outcome"] == Outcome.NO_FREE_PAGES)
    huge, tried, left = _huge_pages(run.attempts)
    by_level = {
        level: int((free.splits["child_created"] * (free.splits["level"] == level)).sum()) for level in (2, 3)
    }
    figures: dict[str, Cell] = {
        "limit": _smallest_limit(run),
        "refused": len(refused["gfn"]),
        "first_refused_gfn": f"{refused['gfn'][0]:x}" if len(refused["gfn"]) else None,
        "refused_share": share(tried, huge),
        "left_huge_share": share(left, huge),
        "pages_needed": free["shadow_pages_created"],
        "pages_needed_for_2m": by_level[2],
        "pages_needed_for_1g": by_level[3],
        "limit_needed": needed,
        "pages_for_one_4k_mapping": -(-huge // REGION_PAGES),
    }
    results = {"as given": run}
    if needed is not None:
        results |= {
            "as needed": runs.varied(max_mmu_pages=needed),
            "one less": runs.varied(max_mmu_pages=needed - 1),
        }
    return Answer(
        f"{many(len(refused['gfn']), 'attempt')} of {run['attempts']:,} refused with -ENOSPC"
        + (f", first at gfn {figures['first_refused_gfn']}; " if figures["refused"] else "; ")
        + f"{percent(tried, huge)} of the huge memory tried was refused, "
        f"{percent(left, huge)} is still refused at its last attempt. All splits need "
        f"{free['shadow_pages_created']:,} pages, a limit of {'?' if needed is None else f'{needed:,}'}.",
        figures,
        "a split is refused if min_free_pages or fewer are available; huge memory: 2M regions of rmap heads "
        "for which any attempt, or the last one, was refused; needed: the same run without a limit, one page "
        "for each new (gfn, role). Limits are per VM",
        [
            Table(
                "by limit",
                ("limit", "smallest met", "attempts", "split", "refused", "memory refused", "at last"),
                [_limit_row(name, result) for name, result in results.items()],
            )
        ],
        []
        if _smallest_limit(run) is not None
        else ["the limit: no probe, marker, memslot or --max-mmu-pages gives it"],
    )


def _smallest_limit(result: Result) -> int | None:
    """The smallest n_max_mmu_pages at any attempt; at the end if there was no attempt."""
    limits = result.attempts["limit"]
    if not len(limits):
        return result.run.replay.counters["max_mmu_pages"]
    return int(limits.min()) if limits.min() < UNLIMITED else None


def _limit_row(name: str, result: Result) -> tuple[Cell, ...]:
    huge, tried, left = _huge_pages(result.attempts)
    return (
        name,
        _smallest_limit(result),
        result["attempts"],
        result["split"],
        result["skipped_no_free_pages"],
        percent(tried, huge),
        percent(left, huge),
    )


def _huge_pages(attempts: Arrays) -> tuple[int, int, int]:
    """4K pages in huge pages that were tried, refused for lack of free pages, refused at the last attempt."""
    refused = attempts["outcome"] == Outcome.NO_FREE_PAGES
    last = last_of(groups(attempts, "vm", "level", "gfn"))
    tried, any_refused, last_refused = (
        len(_regions(rows_of(attempts, chosen))) * REGION_PAGES
        for chosen in (last, refused, last[refused[last]])
    )
    return tried, any_refused, last_refused


def _regions(attempts: Arrays) -> np.ndarray:
    """The 2M regions, as vm << 40 | region, that the huge pages of ``attempts`` cover."""
    first = attempts["vm"] << 40 | attempts["gfn"] >> 9
    covers = np.where(attempts["level"] == 3, REGION_PAGES, 1)
    offsets = np.arange(int(covers.sum())) - np.repeat(np.cumsum(covers) - covers, covers)
    return np.unique(np.repeat(first, covers) + offsets)


def collisions(runs: Runs) -> Answer:
    """B18."""
    found = runs.reviewed.looked_up
    counted = found["collisions"][found["collisions"] >= 0]
    most = int(counted.max(initial=0))
    figures: dict[str, Cell] = {
        "lookups": len(found["collisions"]),
        "counted": len(counted),
        "collisions": int(counted.sum()),
        "mean": round(float(counted.mean()), 4) if len(counted) else None,
        "most": most if len(counted) else None,
        "shadow_pages_used_peak": runs.reviewed["shadow_pages_used_peak"],
    }
    rows: list[tuple[Cell, int]] = [(n, int((counted == n).sum())) for n in range(min(most, 7) + 1)]
    if most > 7:
        rows.append(("8+", int((counted > 7).sum())))
    return Answer(
        f"{many(int(counted.sum()), 'collision')} in {many(len(counted), 'look-up')}, {most:,} at most in "
        f"one, with up to {many(runs.reviewed['shadow_pages_used_peak'], 'shadow page')} in 4,096 buckets.",
        figures,
        "the kernel's hash_64(gfn, 12) over the live shadow pages at each look-up: valid pages of other "
        "gfns before the child in its bucket, newest first",
        [Table("look-ups by collisions", ("collisions", "look-ups"), rows)],
        [
            *(
                []
                if len(counted) == len(found["collisions"])
                else ["look-ups after those counted: too many pages"]
            ),
            "look-ups of faults",
        ],
    )


def never_written(runs: Runs) -> Answer:
    """B21."""
    splits = rows_of(runs.reviewed.splits, runs.reviewed.splits["level"] == 2)
    writes = runs.events(_maps_writable)
    fast = writes["kind"] == Kind.FAST_PAGE_FAULT
    written = writes["vm"] << 40 | np.where(fast, writes["addr"] >> 12, writes["gfn"]) >> 9
    region = splits["vm"] << 40 | splits["gfn"] >> 9
    regions, first = np.unique(region, return_index=True)
    never = ~_hit_later(regions, splits["line"][first], written, writes["line"])
    pages = sums(np.searchsorted(regions, region), splits["child_created"])
    spent, made = int(pages[never].sum()), int(pages.sum())
    later = len(first) > 0 and bool((writes["line"] > splits["line"].min()).any())
    unwritten = int(never.sum())
    part = percent(unwritten, len(regions))
    figures: dict[str, Cell] = {
        "regions_split": len(regions),
        "never_written": unwritten if later else None,
        "share": share(unwritten, len(regions)) if later else None,
        "page_table_bytes": spent * PAGE_BYTES if later else None,
        "page_tables": made,
        "all_page_table_bytes": made * PAGE_BYTES,
    }
    return Answer(
        f"{unwritten:,} of {many(len(regions), '2M region')} that were split ({part}) are not written later; "
        f"{spent * PAGE_BYTES:,} of {made * PAGE_BYTES:,} bytes of page tables were spent on them."
        if later
        else f"The trace does not show it: no write after the first of {many(len(first), '2M split')}.",
        figures,
        "2M regions that the shadow MMU split, against writable 4K SPTEs that were set in them after their "
        "first split (kvm_mmu_set_spte, fast_page_fault), whatever table they are in",
        [],
        [
            *([] if later else ["later writes: no writable 4K SPTE is set after the window"]),
            "writes that do not fault: through an SPTE that is already writable, with PML, without logging",
            "the cost of TLB misses",
        ],
    )


def _maps_writable(batch: Columns) -> np.ndarray:
    writable = batch.spte & np.uint64(PT_WRITABLE_MASK) != 0
    installed = (batch.kind == Kind.SET_SPTE) & (batch.level == 1)
    fixed = (batch.kind == Kind.FAST_PAGE_FAULT) & (batch.flags & Flag.FIXED != 0)
    return np.asarray(writable & (installed | fixed) & (batch.vm >= 0))


def _hit_later(regions: np.ndarray, since: np.ndarray, written: np.ndarray, lines: np.ndarray) -> np.ndarray:
    """Whether each of the sorted ``regions`` is among ``written`` at a line after its own."""
    latest = np.zeros(len(regions), np.int64)
    if len(regions):
        at = np.minimum(np.searchsorted(regions, written), len(regions) - 1)
        same = regions[at] == written
        np.maximum.at(latest, at[same], lines[same])
    return latest > since
