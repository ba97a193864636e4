"""True recordings that lack something: what cannot be known is no mismatch, and no match either."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import pytest
import zstandard

from replay.run import Request, run_trace
from replay.trace.reader import read_trace
from replay.verdict.compare import Comparison

RECORDED = Path(__file__).parents[2] / "traces" / "recorded"
HEAD = 12  # lines of ftrace's own before the first event


def lines_of(name: str) -> list[bytes]:
    content = (RECORDED / f"{name}.txt.zst").read_bytes()
    return zstandard.ZstdDecompressor().decompressobj().decompress(content).splitlines(keepends=True)


def without(lines: Iterable[bytes], event: bytes) -> list[bytes]:
    return [line for line in lines if b": " + event + b": " not in line]


def compared(tmp_path: Path, lines: Iterable[bytes]) -> Comparison:
    path = tmp_path / "trace.txt"
    path.write_bytes(b"".join(lines))
    return run_trace(read_trace(str(path)), Request(expect="recorded")).comparison


@pytest.mark.parametrize(
    "name", ["linux-6.1/C1-nested-la57", "intel-6.1.176/D-two-vms-s", "v2/V-clear-npt2m-back1g"]
)
def test_the_flush_after_the_end_of_a_trace_is_no_difference(tmp_path: Path, name: str) -> None:
    lines = lines_of(name)
    splits = [number for number, line in enumerate(lines) if b"kvm_mmu_split_huge_page" in line]
    for number in splits[len(splits) // 3 :: len(splits) // 3][:2]:
        for end in (number - 1, number, number + 1):
            comparison = compared(tmp_path, lines[:end])
            assert comparison.verdict in ("match", "partial"), comparison.reasons
    assert compared(tmp_path, lines).verdict == "match"


def test_a_trace_that_begins_in_a_split(tmp_path: Path) -> None:
    """The child of a split, whose window is not in the trace, is no root that shows a VM's beginning."""
    lines = lines_of("v2/V-1g-alias-same")
    first = next(number for number, line in enumerate(lines) if b"gfn 76e00 l1" in line and b"new" in line)
    comparison = compared(tmp_path, lines[:HEAD] + lines[first:])
    assert comparison.verdict == "unchecked"
    assert comparison.not_compared
    assert comparison.compared == 0


def test_a_line_of_another_thread_leaves_a_doubt(tmp_path: Path) -> None:
    """The window lacks the line, and the stranger's shows a page that nothing has made: no match."""
    lines = lines_of("intel-6.1.176/C4-ept-enospc")
    pages = [
        number
        for number, line in enumerate(lines)
        if b"direct" in line and b"existing" in line and b" l1 " in line and b"split" in lines[number - 1]
    ]
    number = pages[-1]
    lines[number] = re.sub(rb"-\d+", b"-4242421", lines[number], count=1)
    comparison = compared(tmp_path, lines)
    assert comparison.verdict == "partial"
    assert comparison.reasons[0].startswith("the trace begins in the middle of a VM's life: line 7,")
    assert comparison.reasons[1:] == [
        "lines that were simulated but not recorded prove nothing: they depend on state older than the trace"
    ]


@pytest.mark.parametrize(
    ("name", "event"),
    [
        ("v2/V-1g-alias-ro-injresched50", b"kvm_tdp_mmu_spte_changed"),
        ("v2/V-occ4k-spin", b"kvm_mmu_split_huge_page"),
    ],
)
def test_a_kind_that_the_v2_kernel_cannot_do_without(tmp_path: Path, name: str, event: bytes) -> None:
    comparison = compared(tmp_path, without(lines_of(name), event))
    assert comparison.verdict == "partial"
    assert comparison.reasons[0] == f"no {event.decode()} line was recorded, which the model needs"


def test_two_recordings_in_one_file(tmp_path: Path) -> None:
    """The second one's times go back; that its tasks and pages have the same numbers is no mismatch."""
    first, second = lines_of("v2/V-1g-alias-same"), lines_of("v2/V-occ4k")
    comparison = compared(tmp_path, first + second)
    assert comparison.verdict == "partial"
    assert comparison.reasons[0] == (
        f"time goes back, first at line {len(first) + HEAD + 1:,}: what follows may be from another recording"
    )
