"""The place of a line among those of its task: flushes, lines of the TDP part, lock drops without a line."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import zstandard

from replay.policy import Policy
from replay.run import Request, run_trace
from replay.trace.reader import read_trace
from replay.verdict.compare import Comparison

RECORDED = Path(__file__).parents[2] / "traces" / "recorded"
STAMPED = re.compile(rb"(.*? \d+\.\d+: )(.*)", re.DOTALL)
REFUSED = b"errno -95"
PROBES = re.compile(rb": (v2_\w+): ")


def lines_of(name: str) -> list[bytes]:
    content = (RECORDED / f"{name}.txt.zst").read_bytes()
    return zstandard.ZstdDecompressor().decompressobj().decompress(content).splitlines(keepends=True)


@pytest.fixture
def compared(tmp_path: Path) -> Callable[..., Comparison]:
    def compare(lines: Sequence[bytes], policy: str | None = None) -> Comparison:
        path = tmp_path / "trace.txt"
        path.write_bytes(b"".join(lines))
        chosen = Policy.parse(policy) if policy else None
        return run_trace(read_trace(str(path)), Request(policy=chosen, expect="recorded")).comparison

    return compare


def swapped(lines: Sequence[bytes], first: int, second: int) -> list[bytes]:
    """Two events in each other's place; times and tasks stay."""
    one, other = STAMPED.fullmatch(lines[first]), STAMPED.fullmatch(lines[second])
    assert one is not None
    assert other is not None
    changed = list(lines)
    changed[first], changed[second] = one[1] + other[2], other[1] + one[2]
    return changed


def numbers(lines: Sequence[bytes], event: bytes) -> list[int]:
    return [number for number, line in enumerate(lines) if b": " + event + b": " in line]


def flush_after(lines: Sequence[bytes], event: bytes) -> int:
    """The number of the first flush right after a line of ``event``."""
    return next(n for n in numbers(lines, b"flush_remote_tlbs") if b": " + event + b": " in lines[n - 1])


@pytest.mark.parametrize(
    ("name", "event", "policy"),
    [
        ("linux-6.1.192/C2-alias", b"kvm_mmu_get_page", None),
        ("v2/C2-alias-contend", b"v2_drop_flush", "v2"),
        ("v2/C2-alias", b"v2_final_flush", "v2"),
        ("v2/V-occ4k-spin", b"v2_range_yield", "v2"),
    ],
)
def test_a_flush_has_its_place(
    compared: Callable[..., Comparison], name: str, event: bytes, policy: str | None
) -> None:
    lines = lines_of(name)
    flush = flush_after(lines, event)
    for other in (flush - 1, flush + 1):
        assert compared(swapped(lines, flush, other), policy).verdict == "mismatch", lines[other]


def test_a_flush_moved_within_its_window(compared: Callable[..., Comparison]) -> None:
    """As many flushes as before, and every other line where it was."""
    lines = lines_of("linux-6.12.107/C1-nested-2m")
    first, second = [n for n in numbers(lines, b"flush_remote_tlbs") if b"get_page" in lines[n - 1]][3:5]
    time = STAMPED.fullmatch(lines[second])
    event = STAMPED.fullmatch(lines[first])
    assert time is not None
    assert event is not None
    moved = [*lines[:first], *lines[first + 1 : second], time[1] + event[2], *lines[second:]]
    comparison = compared(moved)
    assert comparison.verdict == "mismatch"
    assert comparison.reasons == ["1 of 128 flushes recorded in a different place"]


def test_the_shadow_part_ends_before_the_tdp_part(compared: Callable[..., Comparison]) -> None:
    lines = lines_of("v2/C1-nested-2m")
    end = numbers(lines, b"v2_try_split_end")[0]
    assert b": tdp_try_split: " in lines[end + 1]
    assert compared(swapped(lines, end, end + 1)).verdict == "mismatch"


def test_the_line_of_a_tdp_split_follows_its_change(compared: Callable[..., Comparison]) -> None:
    lines = lines_of("linux-6.1/A-tdp-2m-manual")
    splits = numbers(lines, b"kvm_mmu_split_huge_page")
    for other in (b"kvm_tdp_mmu_spte_changed", b"flush_remote_tlbs_memslot"):
        split = next(n for n in splits if b": " + other + b": " in lines[n + 1])
        assert compared(swapped(lines, split, split + 1)).verdict == "mismatch"


# -- lock drops that leave no line -------------------------------------------------------------------

SILENT = ("v2/C2-alias-contend", "v2/C2-alias-injresched9", "v2/C2-alias8-spin", "v2/B-shadow-2m-spin")


def without_probes(name: str) -> list[bytes]:
    return [line for line in lines_of(name) if not PROBES.search(line)]


@pytest.mark.parametrize("name", SILENT)
def test_a_lock_drop_without_a_line(compared: Callable[..., Comparison], name: str) -> None:
    """SPTEs that were refused are attempted again, which only v2's own probes explain."""
    comparison = compared(without_probes(name))
    assert comparison.verdict == "partial"
    assert comparison.recorded is not None
    assert comparison.compared is not None
    assert comparison.not_compared == {"missing_kind": comparison.recorded - comparison.compared}
    assert comparison.reasons[0] == ("no v2_lock_dropped line was recorded, but SPTEs are attempted again")
    assert (comparison.mismatched, comparison.missing, comparison.unexpected) == (0, 0, 0)


@pytest.mark.parametrize("name", SILENT)
def test_what_a_lock_drop_does_not_explain(compared: Callable[..., Comparison], name: str) -> None:
    lines = without_probes(name)
    splits = numbers(lines, b"kvm_mmu_split_huge_page")
    refused = [n for n in splits if REFUSED in lines[n] and b" level 2 " in lines[n]]
    done = [n for n in splits if b"errno 0" in lines[n]]
    for number in (refused[0], refused[-1]):
        for old, new in (
            (rb"spte ([0-9a-f]+)ee", rb"spte \g<1>1ee"),
            (REFUSED, b"errno 0"),
            (b"l 2", b"l 3"),
        ):
            changed = [*lines]
            changed[number] = re.sub(old, new, lines[number])
            if changed[number] != lines[number]:
                assert compared(changed).verdict == "mismatch", changed[number]
    assert compared([*lines[: done[0]], *lines[done[0] + 1 :]]).verdict == "mismatch"


def test_a_refusal_that_is_not_recorded_is_no_lock_drop(compared: Callable[..., Comparison]) -> None:
    lines = without_probes("v2/C2-alias")
    assert compared(lines).verdict == "match"
    refused = [n for n in numbers(lines, b"kvm_mmu_split_huge_page") if REFUSED in lines[n]]
    assert compared([*lines[: refused[3]], *lines[refused[3] + 1 :]]).verdict == "mismatch"
    # one line twice is what a lock drop would leave, where no probe would show it
    assert (
        compared([*lines[: refused[3]], *lines[refused[3] :][:1], *lines[refused[3] :]]).verdict == "partial"
    )


def test_a_repeated_refusal_needs_a_lock_drop_where_probes_would_show_it(
    compared: Callable[..., Comparison],
) -> None:
    lines = lines_of("v2/C2-alias")
    refused = [n for n in numbers(lines, b"kvm_mmu_split_huge_page") if REFUSED in lines[n]]
    twice = [*lines[: refused[3]], lines[refused[3]], *lines[refused[3] :]]
    assert compared(twice, "v2").verdict == "mismatch"


# -- what else shows that a kind is missing ------------------------------------------------------------


def without(lines: Sequence[bytes], *events: bytes) -> list[bytes]:
    return [line for line in lines if not any(b": " + event + b": " in line for event in events)]


def test_a_flush_at_a_yield_that_was_not_recorded(compared: Callable[..., Comparison]) -> None:
    lines = lines_of("v2/V-occ4k-spin")
    assert compared(without(lines, b"v2_range_yield")).verdict == "partial"
    assert compared(without(lines, b"v2_range_yield", b"v2_restart")).verdict == "partial"
    # the last flush needs no yield
    assert compared(without(lines_of("v2/C2-alias"), b"v2_final_flush")).verdict == "match"


@pytest.mark.parametrize("other", [b"v2_restart", b"v2_prepare"])
def test_lock_drops_that_other_probes_show(compared: Callable[..., Comparison], other: bytes) -> None:
    lines = without(lines_of("v2/C2-alias-contend"), b"v2_lock_dropped", other)
    comparison = compared(lines)
    assert comparison.verdict == "partial"
    assert comparison.reasons[0].startswith("no v2_lock_dropped line was recorded, which the model needs")


def test_refused_attempts_alone_show_that_split_lines_are_missing(
    compared: Callable[..., Comparison],
) -> None:
    lines = without(lines_of("v2/B-shadow-2m-enospc"), b"kvm_mmu_split_huge_page")
    comparison = compared(lines)
    assert comparison.verdict == "partial"
    assert comparison.reasons[0] == "no kvm_mmu_split_huge_page line was recorded, which the model needs"


def test_a_line_too_many_is_no_sign_of_a_missing_kind(compared: Callable[..., Comparison]) -> None:
    """Where no lock was dropped: v2_prepare twice, and another reason to begin a head anew."""
    lines = lines_of("v2/C2-alias")
    first = numbers(lines, b"v2_prepare")[0]
    assert compared([*lines[:first], lines[first], *lines[first:]]).verdict == "mismatch"
    restart = numbers(lines, b"v2_restart")[0]
    lines[restart] = lines[restart].replace(b"why=0", b"why=1")
    assert compared(lines).verdict == "mismatch"
