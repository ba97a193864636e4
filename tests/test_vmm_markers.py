"""QEMU's own markers open the windows that ``replay:`` markers would, before the ioctl or after it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import zstandard

from replay.run import Request, Run, run_trace
from tests.test_cli import EVENTS, trace_text
from tests.vmm_markers import as_qemu, without_probes

RECORDED = Path(__file__).parents[1] / "traces" / "recorded"
RECORDINGS = ("v2/B-shadow-2m-manual", "linux-6.1/A-tdp-2m-manual")


def run(tmp_path: Path, lines: list[str], **options: Any) -> Run:
    path = tmp_path / "t.txt"
    path.write_text("\n".join(lines) + "\n")
    return run_trace(str(path), Request(**options))


def lines_of(name: str) -> list[str]:
    packed = (RECORDED / f"{name}.txt.zst").read_bytes()
    return zstandard.ZstdDecompressor().decompress(packed, 1 << 28).decode().splitlines()


def windows(result: Run) -> list[tuple[Any, ...]]:
    keys = ("cause", "slot", "start_gfn", "end_gfn", "attempts", "split")
    return [tuple(window[key] for key in keys) for window in result.document["windows"]]


@pytest.mark.parametrize("name", RECORDINGS)
def test_as_the_markers_of_replay(tmp_path: Path, name: str) -> None:
    lines = without_probes(lines_of(name))
    expected = run(tmp_path, lines)
    assert len(windows(expected)) > 10
    for options in ({}, {"in_bytes": True}, {"after": True}, {"after": True, "in_bytes": True}):
        found = run(tmp_path, as_qemu(lines, **options))
        assert windows(found) == windows(expected), options
        assert found.comparison.matched == expected.comparison.matched, options


def set_memory(flags: int, size: int = 0x8000000, ret: int = 0) -> str:
    return (
        f"tracing_mark_write: kvm_set_user_memory Slot#1 flags={flags:#x} gpa=0x40000000 size={size:#x} "
        f"ua=0x7f0000000000 ret={ret}"
    )


ON, OFF = set_memory(1), set_memory(0)
VM, _, *MAPPED, _, CHILD, SPLIT = EVENTS
CLEAR = "tracing_mark_write: kvm_clear_dirty_log slot#1 start 0x0 size 0x8000"


def totals(tmp_path: Path, events: list[str]) -> tuple[int, int | None, str]:
    """(windows, attempts that are as recorded, verdict)"""
    result = run(tmp_path, trace_text([VM, *events]).splitlines())
    return len(windows(result)), result.comparison.matched, result.comparison.verdict


def test_logging_goes_on(tmp_path: Path) -> None:
    assert totals(tmp_path, [OFF, *MAPPED, ON, CHILD, SPLIT]) == (1, 1, "match")
    assert totals(tmp_path, [OFF, *MAPPED, CHILD, SPLIT, ON]) == (1, 1, "match")


def test_a_call_that_failed_did_nothing(tmp_path: Path) -> None:
    windows_found, matched, _ = totals(tmp_path, [OFF, *MAPPED, set_memory(1, ret=-22), CHILD, SPLIT, OFF])
    assert (windows_found, matched) == (1, 1)  # the recorded split alone speaks of it
    assert (
        run(tmp_path, trace_text([VM, OFF, *MAPPED, set_memory(1, ret=-22)]).splitlines()).document[
            "windows"
        ][0]["cause"]
        == "end"
    )


def test_a_deleted_slot_is_made_anew_without_a_split(tmp_path: Path) -> None:
    gone = set_memory(0, size=0)
    found = run(tmp_path, trace_text([VM, OFF, *MAPPED, gone, ON]).splitlines())
    assert windows(found) == []


def test_clear_lines_mean_that_all_is_set_at_first(tmp_path: Path) -> None:
    """Logging goes on without a window; the clear opens one, whether it stands before its lines or after."""
    for events in ([CLEAR, CHILD, SPLIT], [CHILD, SPLIT, CLEAR]):
        assert totals(tmp_path, [OFF, *MAPPED, ON, *events]) == (1, 1, "match")
    # another slot's
    other = CLEAR.replace("slot#1", "slot#65537")
    assert not totals(tmp_path, [OFF, *MAPPED, ON, other, CHILD, SPLIT])[1]
