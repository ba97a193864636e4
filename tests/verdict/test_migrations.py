"""Migrations: logging of a VM from its first slot's on to its last slot's off, with all that it cost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from replay.run import Request, run_trace
from tests.test_cli import EVENTS, HEADER, replay, trace_text
from tests.vmm_markers import as_qemu, without_probes

RECORDED = Path(__file__).parents[2] / "traces" / "recorded"
VM = EVENTS[0]
SMM = 1 << 16
SIZE = 0x8000


def of(tmp_path: Path, events: list[str], **options: Any) -> list[dict[str, Any]]:
    path = tmp_path / "t.txt"
    path.write_text(trace_text([VM, *events]))
    return list(run_trace(str(path), Request(expect="none", **options)).document["migrations"])


def marker(slot: int, flags: int, npages: int = SIZE) -> str:
    space, number = divmod(slot, SMM)
    return (
        f"tracing_mark_write: replay: memslot id={number} base_gfn=0x40000 npages={npages:#x} flags={flags} "
        f"as={space}"
    )


def probes(slot: int, flags: int, change: int = 3) -> list[str]:
    region = f"slot={slot} flags={flags:#x} gpa=0x40000000 size=0x8000000 uaddr=0x7f0000000000"
    return [
        f"set_region: (__kvm_set_memory_region+0x4/0x530 [kvm]) {region}",
        f"commit_region: (kvm_arch_commit_memory_region+0x4/0x230 [kvm]) change={change}",
    ]


def lines(found: list[dict[str, Any]]) -> list[tuple[int, int | None]]:
    """Lines of on and off, counted from the first event after that of the VM."""
    first = HEADER.count("\n") + 2
    return [
        (each["on_line"] - first, None if each["off_line"] is None else each["off_line"] - first)
        for each in found
    ]


def test_from_the_first_on_to_the_last_off(tmp_path: Path) -> None:
    found = of(
        tmp_path,
        [
            *(marker(slot, 0) for slot in (1, 2)),
            *(marker(slot, 1) for slot in (1, 2)),
            *(marker(slot, 0) for slot in (1, 2)),
            marker(2, 1),
        ],
    )
    assert lines(found) == [(2, 5), (6, None)]
    assert [each["slots"] for each in found] == [2, 1]
    assert [each["index"] for each in found] == [0, 1]
    assert found[0]["off_ts_ns"] - found[0]["on_ts_ns"] == 3_000_000
    assert found[1]["off_ts_ns"] is None


def test_probes_win_over_markers_and_a_call_that_fails_does_nothing(tmp_path: Path) -> None:
    failed = probes(1, 1)[:1]
    found = of(tmp_path, [*probes(1, 0, 0), *failed, marker(1, 1), *probes(1, 1), *probes(1, 0)])
    assert lines(found) == [(4, 7)]


@pytest.mark.parametrize("gone", [[marker(1, 1, 0)], [marker(1, 0)]])
def test_a_slot_that_goes_ends_its_logging(tmp_path: Path, gone: list[str]) -> None:
    assert lines(of(tmp_path, [marker(1, 0), marker(1, 1), *gone])) == [(1, 2)]


def test_the_log_of_a_display_is_no_migration(tmp_path: Path) -> None:
    """It is there before, and stays."""
    twice = [marker(1, 1), marker(2, 1), marker(1, 0), marker(2, 0)] * 2
    assert lines(of(tmp_path, [marker(7, 1), *twice])) == [(1, 4), (5, 8)]
    assert lines(of(tmp_path, [marker(7, 1)])) == [(0, None)]


def test_two_vms_are_two_migrations(tmp_path: Path) -> None:
    slot = "tracing_mark_write: replay: memslot id=1 base_gfn=0x40000 npages=0x8000"
    events = [f"{slot} flags={flags} vm={vm}" for flags in (0, 1) for vm in ("guest", "other")]
    found = of(tmp_path, ["tracing_mark_write: replay: vm_create vm=other pid=158", *events])
    assert [(each["vm"], each["slots"]) for each in found] == [(0, 1), (1, 1)]


def test_rounds(tmp_path: Path) -> None:
    """A gfn is cleared once a round in each address space whose slots are logged."""
    manual = "tracing_mark_write: replay: manual_dirty_log_protect2 arg=3"
    clear = "tracing_mark_write: replay: clear_dirty_log slot={} first_page={} num_pages=64"
    get = "tracing_mark_write: replay: get_dirty_log slot=1"
    spaces = (1, SMM + 1)
    sweep = [clear.format(slot, page) for slot in spaces for page in (0, 64, 128)]
    events = [
        manual,
        *(marker(slot, flags) for flags in (0, 1) for slot in spaces),
        *sweep,
        *sweep[:1],
        *sweep[3:4],
        *[get] * 3,
    ]
    (found,) = of(tmp_path, events)
    assert (found["windows"], found["clear_dirty_log"], found["get_dirty_log"]) == (8, 2, 3)


@pytest.mark.parametrize(
    "name", ["v2/C3-mixed4k", "v2/V-clear-1g", "linux-6.1/A-tdp-2m-manual", "linux-6.12.107/C1-nested-2m"]
)
def test_totals_are_those_of_the_windows(name: str) -> None:
    run = run_trace(str(RECORDED / f"{name}.txt.zst"), Request(expect="recorded"))
    document = run.document
    found = document["migrations"]
    assert sum(each["windows"] for each in found) == len(document["windows"]) > 0
    for word in ("attempts", "split", "retries"):
        assert sum(each[word] for each in found) == document["totals"][word]
    assert sum(each["flushes"] for each in found) == document["totals"]["flushes"]["total"]
    for word in ("attempts", "split", "failed"):
        assert sum(each["tdp"][word] for each in found) == document["tdp"][word]


def test_markers_that_the_vmm_writes_afterwards(tmp_path: Path) -> None:
    """Their windows begin before they are written."""
    import zstandard

    packed = (RECORDED / "v2" / "C1-nested-2m.txt.zst").read_bytes()
    text = without_probes(zstandard.ZstdDecompressor().decompress(packed, 1 << 28).decode().splitlines())
    found = []
    for after in (False, True):
        path = tmp_path / f"{after}.txt"
        path.write_text("\n".join(as_qemu(text, after=after)) + "\n")
        document = run_trace(str(path), Request()).document
        found.append([(each["windows"], each["split"]) for each in document["migrations"]])
        assert sum(windows for windows, _ in found[-1]) == len(document["windows"]) > 0
    assert found[0] == found[1]


def test_on_a_terminal(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_text(trace_text())
    shown = replay("run", path, "--kernel", "6.12.117").stdout.splitlines()
    title = next(index for index, line in enumerate(shown) if line.startswith("migration "))
    assert shown[title].split()[:6] == ["migration", "vm", "log", "on", "log", "off"]
    assert shown[title + 1].split() == ["0", "0", "11.008000", "never", "1", "0", "1", "1", "1", "0", "0"]


def test_a_trace_without_times(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_text("".join(f"{event.replace(' vm=guest pid=157', ' vm=guest')}\n" for event in EVENTS))
    (found,) = run_trace(str(path), Request()).document["migrations"]
    assert (found["on_ts_ns"], found["on_line"]) == (None, 9)
    assert "line 9" in replay("run", path).stdout
