"""Parts of the JSON document of a run: the tables and counters of a replay under fixed keys.

All counts are integers; a number that cannot be known is null, never 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from replay.schema import EAGAIN, EINVAL, ENOMEM, ENOSPC, EOPNOTSUPP, SKIP_WORDS, FlushCause

if TYPE_CHECKING:
    import numpy as np

    from replay.mmu.engine import Replay

FLUSH_WORDS = tuple(cause.name.lower() for cause in FlushCause)
FAULT_WORDS = ("avoided", "write_protected", "nonpresent", "lazy_splits")
ERRNO_WORDS = {
    -ENOSPC: "no_free_pages",
    -ENOMEM: "no_memory",
    -EOPNOTSUPP: "existing_child",
    -EINVAL: "stale_parent",
}
Counters = Mapping[str, int | None]

_TOTALS = (
    "retries",
    "retries_cache",
    "retries_resched",
    "sptes_installed",
    "sptes_left_nonpresent",
    "sptes_reused",
    "shadow_pages_created",
    "shadow_pages_reused",
    "shadow_pages_leaked",
    "shadow_pages_used_end",
    "shadow_pages_used_peak",
    "max_mmu_pages",
)


def totals(counters: Counters) -> dict[str, Any]:
    """``totals`` of the document: the shadow MMU's part of all windows."""
    return {
        "attempts": counters["attempts"],
        "split": counters["split"],
        "partial": counters["partial"],
        "by_level": {
            level: {"attempts": counters[f"attempts_{level}"], "split": counters[f"split_{level}"]}
            for level in ("1g", "2m")
        },
        "skipped": {word: counters[f"skipped_{word}"] for word in SKIP_WORDS},
        **{name: counters[name] for name in _TOTALS},
        "flushes": {word: counters[f"flushes_{word}"] for word in ("total", *FLUSH_WORDS, "lost")},
    }


def windows(replay: Replay) -> list[dict[str, Any]]:
    """``windows`` of the document: one entry per window, in order."""
    return [
        {
            "index": row["index"],
            "vm": row["vm"],
            "cause": row["cause"],
            "slot": row["slot"],
            "start_gfn": row["start_gfn"],
            "end_gfn": row["end_gfn"],
            "target_level": row["target_level"],
            "begin_ts_ns": row["begin_ts_ns"],
            "attempts": row["attempts"],
            "split": row["split"],
            "skipped": {word: row[f"skipped_{word}"] for word in SKIP_WORDS},
            "retries": row["retries"],
            "flushes": {word: row[f"flushes_{word}"] for word in ("total", *FLUSH_WORDS, "lost")},
            "tdp": {word: row[f"tdp_{word}"] for word in ("attempts", "split", "failed")},
        }
        for row in replay.windows.to_pylist()
    ]


def recorded(replay: Replay) -> dict[str, Any] | None:
    """``recorded`` of the document: what the recorded kernel did in the shadow MMU; None if not recorded."""
    if not replay.has_recorded:
        return None
    counts = dict(replay.recorded_errnos)
    retries = counts.pop(-EAGAIN, 0)
    return {
        "attempts": sum(counts.values()),
        "split": counts.pop(0, 0),
        "skipped": {ERRNO_WORDS.get(errno, str(errno)): count for errno, count in sorted(counts.items())},
        "retries": retries,
    }


def rmap_histograms(replay: Replay) -> list[dict[str, Any]]:
    """``rmap_histogram`` of the document: one entry per VM and requested moment."""
    return [
        {
            "at": histogram.at,
            "vm": histogram.vm,
            "ts_ns": histogram.ts_ns,
            "line": histogram.line,
            "columns_by": histogram.columns_by,
            "levels": None if histogram.counts is None else _levels(histogram.counts),
        }
        for histogram in replay.rmap_histograms
    ]


def _levels(counts: np.ndarray) -> dict[str, dict[str, int | None]]:
    """Heads by level and by the kernel's column titles; null if the number is unknown."""
    titles = ["0", "1", *(f"{1 << n}-{(2 << n) - 1}" for n in range(1, counts.shape[1] - 1))]
    return {
        level: {title: None if heads < 0 else heads for title, heads in zip(titles, row, strict=True)}
        for level, row in zip(("4k", "2m", "1g"), counts.tolist(), strict=True)
    }
