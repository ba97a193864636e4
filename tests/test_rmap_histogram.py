"""``replay run --rmap-histogram``: moments, address spaces, VMs, and the kernel's form."""

from __future__ import annotations

import json
from typing import Any

import pytest

from replay.errors import UsageError
from replay.run import Request, run_trace
from tests.test_cli import EVENTS, error_of, replay, trace_text

MARK = "tracing_mark_write: probe"
MARKED = [*EVENTS[:8], f"{MARK} one of 1", EVENTS[8], f"{MARK} two of 1"]
SLOT = 0x8000
"""Pages of the slot in EVENTS: 64 regions of 2M, half of a GiB."""


def columns(histogram: dict[str, Any], level: str) -> dict[str, int | None]:
    """The columns that are not 0."""
    return {title: heads for title, heads in histogram["levels"][level].items() if heads != 0}


def histograms(tmp_path: Any, events: list[str], *at: str, **options: Any) -> list[dict[str, Any]]:
    path = tmp_path / "t.txt"
    path.write_text(trace_text(events))
    return run_trace(str(path), Request(rmap_histogram=at, **options)).document["rmap_histogram"]


def test_kernel_form(tmp_path: Any) -> None:
    path = tmp_path / "t.txt"
    path.write_text(trace_text())
    result = replay("run", path, "--rmap-histogram", "end")
    assert result.returncode == 0
    assert (
        "rmaps of VM guest at end, after line 15\n"
        "Rmap_Count:\t0\t1\t2-3\t4-7\t8-15\t16-31\t32-63\t64-127\t128-255\t256-511\t512-1023\t\n"
        "Level=4K:\t32256\t512\t0\t0\t0\t0\t0\t0\t0\t0\t0\t\n"
        "Level=2M:\t64\t0\t0\t0\t0\t0\t0\t0\t0\t0\t0\t\n"
        "Level=1G:\t1\t0\t0\t0\t0\t0\t0\t0\t0\t0\t0\t\n"
        "\n"
        "verdict match"
    ) in result.stdout
    document = json.loads(replay("run", path, "--rmap-histogram", "end", "--json").stdout)
    assert document["rmap_histogram"][0]["levels"]["4k"]["1"] == 512
    assert json.loads(replay("run", path, "--json").stdout)["rmap_histogram"] == []


def test_moments_stand_in_the_order_of_the_trace(tmp_path: Any) -> None:
    found = histograms(tmp_path, MARKED, "end", "probe", "probe one", "11.0065", "10", "99", split_at="end")
    assert [(entry["at"], entry["line"]) for entry in found] == [
        ("10", None),
        ("11.0065", 11),
        ("probe", 13),
        ("probe one", 13),
        ("probe", 15),
        ("99", 15),
        ("end", 15),
    ]
    huge = [columns(entry, "2m") for entry in found]
    none, one = {"0": SLOT >> 9}, {"0": (SLOT >> 9) - 1, "1": 1}
    assert huge == [{}, none, one, one, one, none, none]  # the window at the end has split it
    assert columns(found[0], "1g") == {}
    assert columns(found[-1], "4k") == {"0": SLOT - 512, "1": 512}


def test_marker_lines_of_replay_are_found_with_and_without_their_prefix(tmp_path: Any) -> None:
    whole, part = (histograms(tmp_path, EVENTS, at) for at in ("replay: memslot id=1", "flags=0x1"))
    assert [entry["line"] for entry in whole] == [6, 13]
    assert [entry["line"] for entry in part] == [13]
    for words in ("memslot id", "", "replay:", "flags=0x2"):
        with pytest.raises(UsageError, match="--rmap-histogram"):
            histograms(tmp_path, EVENTS, words)


def test_unusable_calls(tmp_path: Any) -> None:
    path = tmp_path / "t.txt"
    path.write_text(trace_text())
    assert "noon: use end, seconds, or words" in error_of(replay("run", path, "--rmap-histogram", "noon"))
    assert "--rmap-columns abs: use auto, fls or ffs" in error_of(
        replay("run", path, "--rmap-columns", "abs")
    )


def aliased(times: int) -> list[str]:
    """``times`` roots of different access that map the same huge page."""
    accesses = ["wux", "-ux", "w-x", "wu-", "--x", "-u-"][:times]
    events = EVENTS[:2]
    for number, access in enumerate(accesses):
        roles = [line.replace("direct wux", f"direct {access}") for line in EVENTS[2:8]]
        events += [line.replace("10052fa5", f"10052fa{number + 6:x}") for line in roles]
    return events


@pytest.mark.parametrize(
    ("times", "fls", "ffs"),
    [(1, "1", "1"), (2, "2-3", "2-3"), (3, "2-3", "1"), (4, "4-7", "4-7"), (6, "4-7", "2-3")],
)
def test_column_of_a_length(tmp_path: Any, times: int, fls: str, ffs: str) -> None:
    for rule, title in (("fls", fls), ("ffs", ffs)):
        (entry,) = histograms(tmp_path, aliased(times), "end", rmap_columns=rule, split_at="never")
        assert columns(entry, "2m") == {"0": (SLOT >> 9) - 1, title: 1}
        assert entry["columns_by"] == rule


def test_slots_count_whole_and_only_while_they_live(tmp_path: Any) -> None:
    uneven = "tracing_mark_write: replay: memslot id=2 base_gfn=0x801ff npages=0x202 flags=0x0"
    smm = "tracing_mark_write: replay: memslot id=0x10000 base_gfn=0x40000 npages=0x8000 flags=0x0"
    gone = "tracing_mark_write: replay: memslot id=1 base_gfn=0x40000 npages=0 flags=0x0"
    (entry,) = histograms(tmp_path, [*EVENTS[:8], uneven], "end", split_at="never")
    assert columns(entry, "4k") == {"0": SLOT + 0x202}
    assert columns(entry, "2m") == {"0": 63 + 3, "1": 1}
    assert columns(entry, "1g") == {"0": 2}
    (entry,) = histograms(tmp_path, [*EVENTS[:8], smm], "end", split_at="never")
    assert columns(entry, "2m") == {"0": 63 + 64, "1": 1}
    (entry,) = histograms(tmp_path, [*EVENTS[:8], uneven, gone], "end", split_at="never")
    assert columns(entry, "2m") == {"0": 3}


def test_without_memslots_the_number_of_empty_heads_is_unknown(tmp_path: Any) -> None:
    (entry,) = histograms(tmp_path, EVENTS[2:8], "end", split_at="never")
    assert columns(entry, "2m") == {"0": None, "1": 1}
    path = tmp_path / "t.txt"
    out = replay("run", path, "--rmap-histogram", "end", "--split-at", "never").stdout
    assert "Level=2M:\t?\t1\t0\t" in out


def test_a_vm_of_the_tdp_mmu_has_none(tmp_path: Any) -> None:
    linked = "kvm_tdp_mmu_spte_changed: as id 0 gfn 0 level 4 old_spte 0 new_spte 105a01907"
    (entry,) = histograms(tmp_path, [*EVENTS[:3], linked], "end", split_at="never")
    assert entry["levels"] is None
    out = replay("run", tmp_path / "t.txt", "--rmap-histogram", "end").stdout
    assert "at end, after line 8\nnone: only the TDP MMU maps its memory\n" in out


def test_two_vms(tmp_path: Any) -> None:
    text = trace_text([*EVENTS[:8], "tracing_mark_write: here"])
    other = text.replace("vmm-157     (    157)", "vmm-158     (    158)").replace(
        "vm=guest pid=157", "vm=b pid=158"
    )
    other = "".join(line for line in other.splitlines(keepends=True) if "mmu" not in line and line[0] != "#")
    path = tmp_path / "t.txt"
    path.write_text(text + other)
    found = run_trace(str(path), Request(rmap_histogram=("here", "end"), split_at="never")).document
    assert found["trace"]["vms"] == ["guest", "b"]
    assert [(entry["at"], entry["vm"], columns(entry, "2m")) for entry in found["rmap_histogram"]] == [
        ("here", 0, {"0": 63, "1": 1}),
        ("here", 1, {"0": 64}),
        ("end", 0, {"0": 63, "1": 1}),
        ("end", 1, {"0": 64}),
    ]
