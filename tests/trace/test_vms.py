"""Which VM an event belongs to."""

from __future__ import annotations

from pathlib import Path

import pytest

from replay.errors import TraceError
from replay.trace.reader import Trace, read_trace
from replay.trace.vms import MAX_VMS

WALK = "kvm_mmu_walker_error: pferr 1"
UNMAP = "kvm_unmap_hva_range: mmu notifier unmap range: 0x0000000000001000 -- 0x0000000000002000"
SLOT = "tracing_mark_write: replay: memslot id=0 base_gfn=0 npages=16 flags=0"


def line(pid: int, tgid: int | str | None, text: str) -> str:
    column = "" if tgid is None else f"({tgid:>7}) "
    return f"  a b-{pid:<7} {column}[000] ..... 1.000000: {text}\n"


def read(tmp_path: Path, *lines: str, **options: int) -> tuple[list[str], list[int]]:
    path = tmp_path / "t"
    path.write_text("".join(lines))
    trace: Trace = read_trace(str(path), **options)  # type: ignore[arg-type]
    return trace.vms, [vm for batch in trace.batches() for vm in batch.vm.tolist()]


@pytest.mark.parametrize("options", [{}, {"batch_rows": 2}, {"batch_rows": 2, "memory_bytes": 0}])
def test_two_processes(tmp_path: Path, options: dict[str, int]) -> None:
    lines = [
        line(7, 7, UNMAP),
        line(22, 20, WALK),
        line(11, 10, WALK),
        line(21, 20, UNMAP),
        line(10, 10, UNMAP),
        line(7, 7, UNMAP),
        line(11, "-------", WALK),
    ]
    assert read(tmp_path, *lines, **options) == (["tgid 20", "tgid 10"], [-1, 0, 1, 0, 1, -1, 1])


def test_one_process_owns_all(tmp_path: Path) -> None:
    assert read(tmp_path, line(7, 7, UNMAP), line(11, 10, WALK)) == (["tgid 10"], [0, 0])


def test_no_vm_activity(tmp_path: Path) -> None:
    assert read(tmp_path, line(7, 7, UNMAP)) == ([], [-1])


def test_a_script_names_the_vms(tmp_path: Path) -> None:
    lines = [
        line(7, 7, "tracing_mark_write: replay: vm_create vm=east pid=10"),
        line(7, 7, "tracing_mark_write: replay: vm_create vm=west pid=21"),
        line(7, 7, f"{SLOT} vm=west"),
        line(7, 7, f"{SLOT} vm=north"),
        line(11, 10, WALK),
        line(21, 20, WALK),
    ]
    assert read(tmp_path, *lines) == (["east", "west"], [0, 1, 1, -1, 0, 1])


def test_without_tgid_and_markers_there_is_one_vm(tmp_path: Path) -> None:
    lines = [line(7, None, UNMAP), line(11, None, WALK), line(22, None, WALK)]
    assert read(tmp_path, *lines) == (["vm0"], [0, 0, 0])


def test_without_tgid_one_marker_names_the_vm(tmp_path: Path) -> None:
    create = line(10, None, "tracing_mark_write: replay: vm_create")
    assert read(tmp_path, create, line(11, None, WALK)) == (["pid 10"], [0, 0])


def test_without_tgid_markers_tell(tmp_path: Path) -> None:
    lines = [
        line(30, None, WALK),
        line(10, None, "tracing_mark_write: replay: vm_create vm=east"),
        line(30, None, WALK),
        line(20, None, "tracing_mark_write: replay: vm_create vm=west"),
        line(30, None, WALK),
        line(10, None, WALK),
        line(30, None, f"{SLOT} vm=east"),
    ]
    assert read(tmp_path, *lines) == (["east", "west"], [0, 0, 0, 1, 1, 0, 0])


SET_REGION = "set_region: (f) slot={} flags={} gpa=0x0 size={} uaddr={}"


@pytest.mark.parametrize(
    ("regions", "several"),
    [
        ([(7, 0, 0, 4096, 65536), (8, 0, 0, 4096, 131072)], True),
        ([(7, 0, 0, 4096, 65536), (8, 0, 0, 4096, 65536)], True),
        ([(7, 0, 0, 4096, 65536), (8, 0, 1, 4096, 65536)], False),
        ([(7, 0, 0, 4096, 65536), (8, 1, 0, 4096, 131072)], False),
        ([(7, 0, 0, 4096, 65536), (7, 0, 0, 4096, 131072)], False),
        ([(7, 0, 0, 4096, 65536), (8, 0, 0, 0, 0), (8, 0, 0, 4096, 131072)], False),
    ],
)
def test_several_vms_without_a_process(regions: list[tuple[int, ...]], several: bool, tmp_path: Path) -> None:
    """Two tasks that give one slot two addresses, or the same twice, have two VMs."""
    lines = [
        f"     vmm-{pid}  [000] .....  1.00000{number}: {SET_REGION.format(*region)}\n"
        for number, (pid, *region) in enumerate(regions)
    ]
    path = tmp_path / "trace.txt"
    path.write_text("".join(lines))
    trace = read_trace(str(path))
    assert trace.losses == ({"events of several VMs without process": len(regions)} if several else {})


def test_more_vms_than_can_be_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    for count, is_refused in ((MAX_VMS, False), (MAX_VMS + 1, True)):
        marks = (
            f"vmm-{pid} [000] 1.0: tracing_mark_write: replay: vm_create vm=v{pid} pid={pid}\n"
            for pid in range(1, count + 1)
        )
        path.write_text("".join(marks))
        if is_refused:
            with pytest.raises(TraceError, match="32,768 VMs, of which 32,767 at most"):
                read_trace(str(path))
        else:
            assert len(read_trace(str(path)).vms) == count
