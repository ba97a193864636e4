"""Counts add up, whatever a trace lacks: whole recordings, cut ones, and such as lost or repeat lines."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import zstandard

from replay.run import Request, Run, run_trace
from replay.schema import COLUMN_TYPES, SKIP_WORDS, Kind
from replay.trace.reader import Trace, read_trace

TRACES = Path(__file__).parents[1] / "traces"
ALL = sorted(
    path.relative_to(TRACES).as_posix()
    for directory in ("recorded", "synthetic", "trace-cmd")
    for path in (TRACES / directory).rglob("*")
    if path.name.endswith((".txt", ".txt.zst", ".dat.zst"))
)
CUT = [
    "recorded/v2/C1-nested-2m-enomem.txt.zst",
    "recorded/v2/C1-nested-2m-nowaitfail-fixed.txt.zst",
    "recorded/v2/C1-nested-2m-reload.txt.zst",
    "recorded/v2/V-clear-1g.txt.zst",
    "recorded/v2/V-1g-alias-ro-injresched50.txt.zst",
    "recorded/v2/D-two-vms.txt.zst",
    "recorded/v2/A-legacy-2m.txt.zst",
    "recorded/linux-6.1/C4-enospc.txt.zst",
    "recorded/linux-6.12.107/C1-nested-2m.txt.zst",
    "recorded/linux-7.3.4/C7-npt1g-back1g.txt.zst",
    "recorded/linux-5.10/C1-nested-2m.txt.zst",
    "synthetic/zap-unmap.txt",
    "synthetic/direct-legacy.txt",
]
REQUESTS = [
    Request(expect="recorded"),
    Request(policy="v2", expect="recorded", split_at="recorded"),
    Request(policy="v2", expect="none", resched="every=3", max_mmu_pages=100),
    Request(policy="v2-desc", expect="none", resched="seed=1", max_mmu_pages=1),
    Request(policy="v2-alias", expect="none", split_at="end", resched="every=1"),
    Request(policy="linux-6.0", expect="none", resched="every=1", max_mmu_pages=1000),
    Request(policy="linux-2026", expect="none", resched="every=2"),
]
SILENT = ("unsync", "invalid", "not_nested")
"""Skipped before there is an attempt."""


def assert_adds_up(run: Run) -> None:
    """What holds of every document, within it and with its tables."""
    document = run.document
    totals, windows = document["totals"], document["windows"]
    assert 0 <= totals["shadow_pages_used_end"] <= totals["shadow_pages_used_peak"]
    assert totals["retries"] == totals["retries_cache"] + totals["retries_resched"]
    skipped = {word: count for word, count in totals["skipped"].items() if word not in SILENT}
    assert totals["attempts"] == totals["split"] + sum(skipped.values())
    children = totals["sptes_installed"] + totals["sptes_left_nonpresent"] + totals["sptes_reused"]
    assert 512 * totals["split"] == children
    assert totals["split"] == totals["shadow_pages_created"] + totals["shadow_pages_reused"]
    assert totals["partial"] <= totals["split"]
    for word in ("attempts", "split"):
        assert totals[word] == sum(level[word] for level in totals["by_level"].values())
    causes = {cause: count for cause, count in totals["flushes"].items() if cause not in ("total", "lost")}
    assert totals["flushes"]["total"] == sum(causes.values()) == run.replay.flushes.num_rows
    for word in ("attempts", "split", "retries"):
        assert totals[word] == sum(window[word] for window in windows), word
    for part in ("skipped", "flushes"):
        assert totals[part] == {word: sum(window[part][word] for window in windows) for word in totals[part]}
    tdp = document["tdp"]
    assert tdp["attempts"] == tdp["split"] + tdp["failed"]
    for word in ("attempts", "split", "failed"):
        assert tdp[word] == sum(window["tdp"][word] for window in windows), word
    assert min(_numbers(document)) >= 0
    assert_rows_add_up(run, totals | {"tdp": tdp["attempts"]})


def _numbers(part: Any) -> Iterator[int]:
    """All numbers of a document but those of its head: none is ever negative."""
    if isinstance(part, dict):
        for name, value in part.items():
            if name not in ("knobs", "trace"):
                yield from _numbers(value)
    elif isinstance(part, list):
        yield from itertools.chain.from_iterable(map(_numbers, part))
    elif isinstance(part, int):
        yield part


def assert_rows_add_up(run: Run, totals: dict[str, Any]) -> None:
    """The table of outcomes has a row for each attempt and retry, and each split makes 512 children."""
    names = ["mmu", "outcome", "installed", "nonpresent", "reused"]
    rows = zip(*(run.replay.outcomes[name].to_pylist() for name in names), strict=True)
    simulated = [row for row in rows if row[1] is not None]
    outcomes = Counter(outcome for mmu, outcome, *_ in simulated if mmu == "shadow")
    assert outcomes.pop("retry", 0) <= totals["retries"]
    assert outcomes.pop("split", 0) == totals["split"]
    traced = {word: totals["skipped"][word] for word in SKIP_WORDS if word not in SILENT}
    assert outcomes == {word: count for word, count in traced.items() if count}
    assert sum(mmu == "tdp" for mmu, *_ in simulated) == totals["tdp"]
    for mmu, outcome, *children in simulated:
        if mmu == "shadow":
            assert sum(children) == (512 if outcome == "split" else 0)


def assert_all_add_up(trace: Trace, requests: list[Request]) -> None:
    for request in requests:
        assert_adds_up(run_trace(trace, request))


@pytest.mark.parametrize("name", ALL)
def test_whole(name: str) -> None:
    trace = read_trace(str(TRACES / name))
    number = ALL.index(name)
    chosen = [REQUESTS[0], REQUESTS[1 + number % 3], REQUESTS[4 + number % 3]]
    assert_all_add_up(trace, REQUESTS if trace.events < 1_000 else chosen)


def lines_of(name: str) -> list[bytes]:
    content = (TRACES / name).read_bytes()
    if name.endswith(".zst"):
        content = zstandard.ZstdDecompressor().decompressobj().decompress(content)
    return content.splitlines(keepends=True)


def read_lines(tmp_path: Path, lines: list[bytes]) -> Trace:
    path = tmp_path / "trace.txt"
    path.write_bytes(b"".join(lines))
    return read_trace(str(path))


@pytest.mark.parametrize("name", CUT)
def test_cut(tmp_path: Path, name: str) -> None:
    lines = lines_of(name)
    head, body = lines[:12], lines[12:]
    for number, tenths in enumerate((1, 3, 5, 6, 7, 8, 9)):
        at = len(body) * tenths // 10
        for cut in (body[at:], body[:at], body[: at // 2] + body[at:]):
            trace = read_lines(tmp_path, [*head, *cut])
            assert_all_add_up(trace, [REQUESTS[0], REQUESTS[1 + number % (len(REQUESTS) - 1)]])


@pytest.mark.parametrize("name", CUT)
def test_lines_dropped_and_doubled(tmp_path: Path, name: str) -> None:
    lines = lines_of(name)
    chance = random.Random(name)
    for number, share in enumerate((0.001, 0.01, 0.05, 0.3)):
        for times in ((0, 1), (2, 1), (0, 2, 1)):
            copies = [chance.choice(times[:-1]) if chance.random() < share else 1 for _ in lines]
            altered = [line for line, n in zip(lines, copies, strict=True) for line in [line] * n]
            trace = read_lines(tmp_path, altered)
            assert_all_add_up(trace, [REQUESTS[0], REQUESTS[1 + number]])


# -- pages in use, where the kernel tells their number (kvm_mmu_zap_all_fast) --------------------------


def lines(*payloads: str) -> list[bytes]:
    return [
        f"             vmm-151     (    151) [000] ...1.    10.{number:06}: {payload}\n".encode()
        for number, payload in enumerate(payloads, 1)
    ]


def page(event: str, gfn: int, level: int, end: str = "root 0 sync", gen: int = 0) -> str:
    return f"kvm_mmu_{event}: sp gen {gen} gfn {gfn:x} l{level} 8-byte q0 direct wux nxe ad {end}"


def told(used: int) -> str:
    return f"kvm_mmu_zap_all_fast: kvm-mmu-valid-gen 0 used_pages {used:x}"


NEW = "root 0 sync new"
PAGES = [(0, 4), (0, 3), (0x40000, 2)]
THREE_NEW = [page("get_page", *place, NEW) for place in PAGES]
THREE_ZAPPED = [page("prepare_zap_page", *place) for place in reversed(PAGES)]
OTHER_ZAPPED = [page("prepare_zap_page", gfn, 1) for gfn in (0x10000, 0x20000, 0x30000)]
NEXT_ROOT = page("get_page", 0, 4, NEW, gen=1)


@pytest.mark.parametrize(
    ("payloads", "end", "peak", "divergences"),
    [
        ([*THREE_NEW, told(3), *THREE_ZAPPED], 0, 3, {}),
        # which were not counted is unknown until there are no others left
        ([*THREE_NEW, told(0), *THREE_ZAPPED], 0, 3, {"used_pages_differ": 1, "uncounted_pages": 3}),
        ([*THREE_NEW, told(2), *THREE_ZAPPED], 0, 3, {"used_pages_differ": 1, "uncounted_pages": 1}),
        ([*THREE_NEW, told(2), THREE_ZAPPED[0]], 1, 3, {"used_pages_differ": 1}),
        # a page made later is counted, whatever became of those
        (
            [*THREE_NEW, told(1), NEXT_ROOT, *THREE_ZAPPED],
            1,
            3,
            {"used_pages_differ": 1, "uncounted_pages": 2},
        ),
        # more than were seen: zaps of unknown pages are theirs, as many as there are
        ([*THREE_NEW, told(5)], 5, 5, {"used_pages_differ": 1}),
        ([*THREE_NEW, told(5), OTHER_ZAPPED[0]], 4, 5, {"used_pages_differ": 1, "unknown_zaps": 1}),
        (
            [*THREE_NEW, told(5), *OTHER_ZAPPED, *THREE_ZAPPED],
            0,
            5,
            {"used_pages_differ": 1, "unknown_zaps": 3},
        ),
        # a root in use goes on until its second line
        (
            [told(1), page("prepare_zap_page", 0, 4, "root 2 sync")],
            1,
            1,
            {"used_pages_differ": 1, "unknown_zaps": 1},
        ),
        # an older page that is seen at last was counted already
        (
            [*THREE_NEW, told(5), page("get_page", 0, 4, "root 0 sync existing", gen=1)],
            5,
            5,
            {"used_pages_differ": 1, "unknown_pages_existing": 1},
        ),
        # nothing was told: the pages that were seen count
        ([OTHER_ZAPPED[0], *THREE_NEW], 3, 3, {"unknown_zaps": 1}),
        ([told(1 << 62), *THREE_NEW], (1 << 40) + 3, (1 << 40) + 3, {"used_pages_differ": 1}),
    ],
)
def test_pages_in_use(
    tmp_path: Path, payloads: list[str], end: int, peak: int, divergences: dict[str, int]
) -> None:
    document = run_trace(read_lines(tmp_path, lines(*payloads)), Request(split_at="never")).document
    totals = document["totals"]
    assert (totals["shadow_pages_used_end"], totals["shadow_pages_used_peak"]) == (end, peak)
    assert document["divergences"] == divergences


def test_a_failed_allocation_is_no_retry(tmp_path: Path) -> None:
    """The caches cannot be filled: the attempt ends with -ENOMEM, and nothing is tried anew."""
    fault = [
        "kvm_mmu_spte_requested: gfn 40000 pfn 140000 level 2",
        "kvm_mmu_set_spte: gfn 40000 spte 140000ee7 (rwxu) level 2 at 20004000",
    ]
    split = "kvm_mmu_split_huge_page: gfn 40000 spte 140000ee7 level 2 errno"
    trace = read_lines(tmp_path, lines(*THREE_NEW, *fault, f"{split} -11", f"{split} -12"))
    request = Request(
        policy="linux-6.0", settings=("nested_only=false",), expect="recorded", max_mmu_pages=99
    )
    run = run_trace(trace, request)
    assert run.replay.outcomes["outcome"].to_pylist() == ["retry", "no_memory"]
    totals = run.document["totals"]
    assert (totals["attempts"], totals["skipped"]["no_memory"]) == (1, 1)
    assert (totals["retries"], totals["retries_cache"], totals["retries_resched"]) == (1, 1, 0)
    assert_adds_up(run)


def test_lock_drops_of_v2_are_retries_of_their_window(tmp_path: Path) -> None:
    run = run_trace(str(TRACES / "recorded/v2/C1-nested-2m-injresched.txt.zst"), Request(expect="recorded"))
    assert run.document["totals"]["retries"] == 63
    assert [window["retries"] for window in run.document["windows"]] == [31, 32]


def test_as_many_vms_as_a_table_can_have(tmp_path: Path) -> None:
    """What is asked of each VM must not look at all of them anew: this took hours."""
    vms = 32_766
    columns = {name: np.zeros(vms, kind) for name, kind in COLUMN_TYPES.items()}
    columns["kind"][:], columns["level"][:] = Kind.SET_SPTE, 1
    columns["vm"], columns["line"] = np.arange(vms, dtype=np.int16), np.arange(1, vms + 1)
    words = [pl.lit("").alias(name) for name in ("comm", "text")]
    frame = pl.DataFrame(columns).with_columns(words)
    frame.write_parquet(tmp_path / "many.parquet")
    assert run_trace(str(tmp_path / "many.parquet"), Request()).document["trace"]["events"] == vms
