"""The walk over rmap heads: how long the lock is held, what it skips, what KVM_CLEAR_DIRTY_LOG costs."""

from __future__ import annotations

import numpy as np

from replay.review.answer import Answer, Cell, Table, many
from replay.review.runs import Result, Runs, first_of, groups, sums
from replay.schema import Kind

ENTRIES = (1, 2, 3, 4, 8, 15)
"""Last length of each row of the table of list lengths but the last."""
SPLIT_PROBES = (Kind.TRY_SPLIT, Kind.SHADOW_TRY_SPLIT, Kind.TDP_TRY_SPLIT, Kind.V2_TRY_SPLIT_BEGIN)


def lock_holds(runs: Runs) -> Answer:
    """B5."""
    run = runs.reviewed
    attempts = run.attempts
    hold = groups(attempts, "window", "hold")
    installed = sums(hold, attempts["installed"])
    heads = first_of(groups(attempts, "window", "range", "level", "gfn"))
    lengths = attempts["rmap_length"][heads]
    lows = (1, *(n + 1 for n in ENTRIES))
    rows = [
        (
            str(low) if low == high else f"{low}..{high}" if high else f"{low}+",
            int(((lengths >= low) & ((lengths <= high) if high else True)).sum()),
        )
        for low, high in zip(lows, (*ENTRIES, 0), strict=True)
    ]
    figures = {
        "most_sptes_between_possible_drops": int(attempts["installed"].max(initial=0)),
        "holds": len(installed),
        "most_sptes_in_a_hold": int(installed.max(initial=0)),
        "most_attempts_in_a_hold": int(np.bincount(hold).max()) if len(hold) else 0,
        "heads_tried": len(lengths),
        "longest_rmap": int(lengths.max(initial=0)),
    }
    return Answer(
        f"At most {figures['most_sptes_between_possible_drops']:,} SPTEs are installed between two places "
        "where the lock can be dropped (one split); as the lock was dropped here, "
        f"{figures['most_sptes_in_a_hold']:,} SPTEs and "
        f"{many(figures['most_attempts_in_a_hold'], 'attempt')} in the longest of "
        f"{many(len(installed), 'hold')}. The longest rmap has "
        f"{many(figures['longest_rmap'], 'entry', 'entries')}.",
        figures,
        "the lock can be dropped before each attempt; holds: attempts of a window between the lock drops "
        "and yields that were simulated; rmap: entries of each 2M or 1G head when it is first tried in a "
        "walk",
        [Table("heads tried, by entries", ("entries", "heads"), rows)],
        [
            "how long vCPUs wait: the trace has counts, not the time under the lock",
            *(
                ["holds of VMs that split at the same time: each interrupts the other's"]
                if _interleave(run)
                else []
            ),
            *(
                ["which ranges of KVM_CLEAR_DIRTY_LOG share one hold: each counts as its own"]
                if run.is_clear.any() and runs.has(*SPLIT_PROBES)
                else []
            ),
        ],
    )


def _interleave(run: Result) -> bool:
    """Whether attempts of one window are between those of another."""
    return bool((np.diff(run.attempts["window"]) < 0).any())


def nested_only(runs: Runs) -> Answer:
    """B9."""
    name = runs.reviewed.policy.name
    results = {
        (label, restricted): run
        for label, vary in ((name, runs.varied), ("linux-6.0", lambda s: runs.preset("linux-6.0", s)))
        for restricted, run in ((True, vary("nested_only=true")), (False, vary("nested_only=false")))
    }
    rows = [
        (label, "yes" if restricted else "no", run["attempts"], run["split"], run["skipped_not_nested"])
        for (label, restricted), run in results.items()
    ]
    with_rule, without = results["linux-6.0", True], results["linux-6.0", False]
    figures: dict[str, Cell] = {
        "attempts_nested_only": with_rule["attempts"],
        "split_nested_only": with_rule["split"],
        "not_nested": without["attempts"] - with_rule["attempts"],
        "attempts_all": without["attempts"],
        "split_all": without["split"],
        "reviewed_split_nested_only": results[name, True]["split"],
        "reviewed_split_all": results[name, False]["split"],
    }
    return Answer(
        f"{with_rule['split']:,} of {without['split']:,} splits remain under linux-6.0, "
        f"{results[name, True]['split']:,} of {results[name, False]['split']:,} under {name}.",
        figures,
        "the knob nested_only on and off; with it the kernel does nothing if tdp_mmu=N; if tdp_mmu=Y, all "
        "pages of the shadow MMU belong to nested guests, unless their role says otherwise",
        [Table("splits", ("policy", "nested only", "attempts", "split", "not_nested"), rows)],
        ["guest_mode itself, which printed roles lack"],
    )


def _no_clear() -> Answer:
    return Answer(
        "The trace does not show it: KVM_CLEAR_DIRTY_LOG splits nothing.",
        {"windows": 0},
        "windows by cause",
        not_known=["the cost of KVM_CLEAR_DIRTY_LOG: it splits only with initially-all-set"],
    )


def clear_end(runs: Runs) -> Answer:
    """B19."""
    if not runs.reviewed.is_clear.any():
        return _no_clear()
    return _recorded_end(runs) if runs.has(*SPLIT_PROBES) else _simulated_end(runs)


def _simulated_end(runs: Runs) -> Answer:
    """Ranges are made from marker lines, with either end."""
    inclusive, exclusive = (
        _clear_counts(runs.varied(f"clear_end={end}")) for end in ("inclusive", "exclusive")
    )
    figures = {
        "windows": inclusive["windows"],
        "ranges": inclusive["ranges"],
        "pages_missed": exclusive["pages"] - inclusive["pages"],
        "huge_pages_missed": exclusive["last_alone"],
        "ranges_of_no_page": inclusive["no_page"],
        "splits_before": inclusive["split"],
        "splits_after": exclusive["split"],
    }
    return Answer(
        f"{many(figures['pages_missed'], 'page')}, one for each of {many(inclusive['ranges'], 'range')}, "
        f"and with them {many(exclusive['last_alone'], 'huge page')} that the range touches nowhere else; "
        f"{inclusive['split']:,} splits before, {exclusive['split']:,} after.",
        figures,
        "the knob clear_end: before 6.8 the last gfn of a 64-page mask was taken as the end, exclusive. The "
        "first rmap head is visited even if the range has no page",
        [
            Table(
                "KVM_CLEAR_DIRTY_LOG",
                ("end", "ranges", "pages", "without a page", "heads visited", "attempts", "split"),
                [
                    (
                        name,
                        *(
                            counts[key]
                            for key in ("ranges", "pages", "no_page", "heads", "attempts", "split")
                        ),
                    )
                    for name, counts in (("inclusive", inclusive), ("exclusive", exclusive))
                ],
            )
        ],
        ["the TDP MMU, which does not split in a range of no page"],
    )


def _clear_counts(result: Result) -> dict[str, int]:
    clear = result.is_clear
    counts = {name: int(column[clear].sum()) for name, column in result.census.windows.items()}
    counts |= {name: int(column[clear].sum()) for name, column in result.windows("attempts", "split").items()}
    return counts | {"windows": int(clear.sum())}


def _recorded_end(runs: Runs) -> Answer:
    """Probes show the ranges that the recorded kernel walked."""
    run = runs.reviewed
    start, end = (run.windows(name)[name][run.is_clear] for name in ("start_gfn", "end_gfn"))
    bases = runs.events(lambda batch: np.isin(batch.kind, (Kind.SET_REGION, Kind.MARK_MEMSLOT)))["gfn"]
    word = None if (bases & 63).any() else end_word(start, end)
    pages = len(start) if word == "inclusive" else 0
    huge = int(((end > start) & (end & 511 == 0)).sum()) if word == "inclusive" else 0
    figures = {
        "ranges": len(start),
        "pages_missed": None if word is None else pages,
        "huge_pages_missed": None if word is None else huge,
        "ranges_of_no_page": int((end <= start).sum()),
        "splits": int(run.windows("split")["split"][run.is_clear].sum()),
    }
    return Answer(
        f"The recorded kernel's end is {word}: {many(pages, 'page')} missed in "
        f"{many(len(start), 'range')}, {many(huge, 'huge page')} that the range touches nowhere "
        f"else; {figures['ranges_of_no_page']:,} ranges without a page."
        if word
        else "The trace does not show which end the recorded kernel passes.",
        figures,
        "the probes of each range: an end on a 64-page boundary is one past the mask (6.8 and later), one "
        "just before it, or equal to the start, the last page of it",
        [],
        ["what the other end would have split: the ranges are the recorded kernel's"],
    )


def end_word(start: np.ndarray, end: np.ndarray) -> str | None:
    """Whether a range ends with its last gfn or one past it; slots begin on a 64-page boundary."""
    if ((end & 63 == 0) & (end > start)).any():
        return "exclusive"
    return "inclusive" if ((end & 63 == 63) | (end == start)).any() else None


def repeated_clear(runs: Runs) -> Answer:
    """B22."""
    run = runs.reviewed
    clear = run.is_clear
    if not clear.any():
        return _no_clear()
    call = "range" if runs.has(*SPLIT_PROBES) else "call"
    tried = run.windows("attempts")["attempts"][clear] > 0
    windows = {name: column[clear] for name, column in run.census.windows.items()}
    rows: list[tuple[Cell, ...]] = []
    for name, mask in (("huge pages tried", tried), ("nothing huge found", ~tried)):
        ranges, heads, empty = (int(windows[key][mask].sum()) for key in ("ranges", "heads", "empty_heads"))
        rows.append(
            (
                name,
                int(mask.sum()),
                ranges,
                heads,
                empty,
                round(heads / int(mask.sum()), 2) if mask.any() else None,
            )
        )
    heads, empty = (int(windows[key].sum()) for key in ("heads", "empty_heads"))
    figures: dict[str, Cell] = {
        f"{call}s": int(clear.sum()),
        "ranges": int(windows["ranges"].sum()),
        "head_visits": heads,
        "empty_head_visits": empty,
        f"{call}s_that_found_nothing": int((~tried).sum()),
        "head_visits_that_found_nothing": rows[1][3],
    }
    return Answer(
        f"{many(int((~tried).sum()), call)} of {int(clear.sum()):,} found nothing huge and visited "
        f"{rows[1][3]:,} rmap heads, {rows[1][4]:,} of them empty.",
        figures,
        "rmap heads that the walk visits: the first of each level in a range even if it is empty, then "
        "those that are not; a VM that never used a shadow page has no rmaps",
        [
            Table(
                "visits of rmap heads",
                (f"{call}s", "number", "ranges", "heads", "empty", f"heads per {call}"),
                rows,
            )
        ],
        ["the time of a visit, and of the TDP MMU's walk"],
    )
