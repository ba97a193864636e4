"""``replay info``: what a trace holds, and what can be replayed from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from replay.info import info_document
from replay.trace.reader import read_trace
from tests.test_cli import EVENTS, SPLIT_LINE, error_of, replay, trace_text

FORMS = Path(__file__).parents[1] / "traces" / "forms"
KEYS = {
    "schema", "path", "format", "kernel", "bytes", "lines", "events", "kvmmmu_events", "ignored_lines",
    "first_ts_ns", "last_ts_ns", "lost_events", "losses", "notes", "malformed_lines", "malformed", "kinds",
    "ignored_events", "vms", "control", "windows", "columns", "policy", "compared", "can", "cannot",
}  # fmt: skip


def info(tmp_path: Path, text: str) -> dict[str, Any]:
    path = tmp_path / "trace.txt"
    path.write_text(text)
    return info_document(read_trace(str(path)))


def test_a_recording_with_everything() -> None:
    document = info_document(read_trace(str(FORMS / "linux-6.1" / "trace.txt.zst")))
    assert set(document) == KEYS
    assert document["schema"] == "replay.info/1"
    assert document["kinds"]["kvm_mmu_split_huge_page"] == document["control"]["recorded_splits"] == 130
    assert sum(document["kinds"].values()) == document["events"]
    assert document["windows"] == {"total": 2, "by_cause": {"memslot_flags": 2}}
    assert document["vms"] == [
        {"name": "tgid 152", "events": 5460, "windows": 2, "spte_layout": "legacy", "pml": None}
    ]
    assert document["can"] == [
        "2 windows, when dirty logging was enabled",
        "comparison with 258 of 258 recorded lines that state an outcome",
        "comparison of TLB flushes",
    ]
    assert document["cannot"] == []
    assert document["columns"] == {"time": True, "task": True, "process": True, "cpu": True}
    assert document["policy"]["name"] == "linux-2026"


def test_what_a_form_leaves_out_is_said() -> None:
    document = info_document(read_trace(str(FORMS / "linux-6.1" / "tc-report.txt.zst")))
    assert document["losses"] == {"kvm_mmu_prepare_zap_page without gfn": 74}
    lost = document["cannot"][0]
    assert lost.startswith(
        "a comparison that counts every difference: kvm_mmu_prepare_zap_page without gfn: 74 lines"
    )
    assert lost.endswith("trace-cmd report -N shows pages, vm_create markers show VMs")
    compared = document["compared"]
    assert compared["recorded"] == compared["compared"] + sum(compared["not_compared"].values())
    assert compared["not_compared"].keys() <= {"form"}


def test_a_trace_that_tells_little(tmp_path: Path) -> None:
    text = "kvm_mmu_get_page: sp gen 0 gfn 0 l4 8-byte q0 direct wux nxe ad root 0 sync new\n"
    document = info(tmp_path, text + "kvm_mmu_set_dirty_bit: gpa\nCPU:0 [LOST 5 EVENTS]\n")
    assert document["malformed"] == [{"line": 2, "text": "kvm_mmu_set_dirty_bit: gpa"}]
    assert document["first_ts_ns"] is None
    assert document["columns"] == {"time": False, "task": False, "process": False, "cpu": True}
    assert [text.split(":")[0] for text in document["cannot"]] == [
        "splits", "a match", "a match", "when dirty logging was enabled", "comparison", "VMs apart",
        "--split-at SECONDS",
    ]  # fmt: skip
    assert document["can"] == []


def test_no_event_of_the_mmu(tmp_path: Path) -> None:
    document = info(tmp_path, "  vmm-7  [000] .....  1.000001: sched_switch: prev_comm=a\n")
    assert document["ignored_events"] == {"sched_switch": 1}
    assert document["cannot"][0] == "anything: there is no event of the system kvmmmu"


def test_a_what_if(tmp_path: Path) -> None:
    events = [event for event in EVENTS if event != SPLIT_LINE and "flags=0x1" not in event]
    document = info(tmp_path, trace_text(events))
    assert document["windows"] == {"total": 1, "by_cause": {"end": 1}}
    assert document["can"] == ["what if dirty logging were enabled at the end of the trace"]


def test_command_line(tmp_path: Path) -> None:
    path = tmp_path / "trace.txt"
    path.write_text(trace_text())
    shown = replay("info", path)
    assert shown.returncode == 0
    assert shown.stdout.startswith(f"{path}: ftrace, {len(EVENTS)} events")
    assert "kvm_mmu_split_huge_page" in shown.stdout
    assert "1: 1 memslot_flags" in shown.stdout
    document = json.loads(replay("info", path, "--json").stdout)
    assert document["windows"]["total"] == 1
    assert replay("info", path, "--quiet").stdout == ""
    assert error_of(replay("info", tmp_path / "none")) == f"{tmp_path}/none: No such file or directory"


@pytest.mark.parametrize("command", ["run", "info", "expect", "parse", "compare"])
def test_an_unknown_format(command: str, tmp_path: Path) -> None:
    path = tmp_path / "trace.txt"
    path.write_text(trace_text())
    more = {"parse": ["-o", tmp_path / "t.parquet"], "compare": ["--policy", "v2"]}.get(command, [])
    message = error_of(replay(command, path, "--format", "ftrace2", "--quiet", *more))
    words = "auto, ftrace, trace-cmd, perf-script, dmesg, trace-dat, perf-data, table"
    assert message == f"--format ftrace2: use {words}"
    assert not (tmp_path / "t.parquet").exists()


def test_a_format_that_the_file_does_not_have(tmp_path: Path) -> None:
    path = tmp_path / "trace.txt"
    path.write_text(trace_text())
    message = error_of(replay("info", path, "--format", "perf-data", "--quiet"))
    assert message == f"{path}: --format perf-data, but this is text"
