"""Runs of alike faults written at once: byte by byte what the faults give one by one."""

from __future__ import annotations

from pathlib import Path

import pytest

from replay.synth import timeline, write_trace

SCENARIO = """
name = "runs"
description = "faults in long rows"
step = [
    { do = "touch", root = "l1", start = 0x40000000, size = 0x80000000, stride = "2m", access = "read" },
    { do = "touch", root = "l1", start = 0, size = 0x3000000, access = "exec" },
    { do = "touch", root = "a", start = 0x1000200000, size = "1g", stride = "2m", access = "write" },
    { do = "touch", root = "b", start = 0x1000000000, size = 0x80000000, stride = "2m", access = "read" },
    { do = "touch", root = "b", start = 0x1000000000, size = 0x80000000, stride = "2m", access = "write" },
    { do = "repeat", times = 3, steps = [
        { do = "touch", root = "c", start = 0x200000000, size = "1g", stride = "2m", access = "read" },
        { do = "unmap", hva = 0x7f1040200000, size = 0x400000 },
    ] },
    { do = "touch", root = "a", start = 0x1000000000, size = 0x80000000, stride = "2m", access = "write" },
    { do = "dirty_log", slot = 1, on = true },
    { do = "touch", root = "a", start = 0x1000000000, size = "1g", stride = "2m", access = "write" },
    { do = "slot_delete", slot = 1 },
]
[[vm]]
pid = 4200
comm = "50% x: 1.5"
table_gfn = 0x100
[[vm.slot]]
id = 0
base_gfn = 0
npages = 0x10000
[[vm.slot]]
id = 1
base_gfn = 0x40000
npages = 0x140000
hva = 0x7f1040000000
backing = "2m"
[[vm.root]]
name = "l1"
kind = "tdp"
[[vm.root]]
name = "a"
kind = "nested"
map = [ { addr = 0x1000000000, gfn = 0x40000, size = 0x80000000, page = "2m" } ]
[[vm.root]]
name = "b"
kind = "nested"
map = [
    { addr = 0x1000000000, gfn = 0x40000, size = 0x3fe00000, page = "2m" },
    { addr = 0x103fe00000, gfn = 0x7fe00, size = 0x40200000, page = "2m", access = "rw" },
]
[[vm.root]]
name = "c"
kind = "nested"
user = false
map = [ { addr = 0x200000000, gfn = 0x80000, size = 0xc0000000, page = "2m" } ]
"""
SHADOW = """
name = "shadow"
description = "npt=0, few pages"
step = [
    { do = "limit", n = 64 },
    { do = "touch", root = "a", start = 0x1000000000, size = 0x1000000000, stride = "2m", access = "write" },
]
[[vm]]
pid = 4200
table_gfn = 0x100
[[vm.slot]]
id = 0
base_gfn = 0
npages = 0x1000
[[vm.slot]]
id = 1
base_gfn = 0x1000000
npages = 0x1000000
backing = "2m"
[[vm.root]]
name = "a"
kind = "shadow"
map = [ { addr = 0x1000000000, gfn = 0x1000000, size = 0x1000000000, page = "2m" } ]
"""


@pytest.mark.parametrize("text", [SCENARIO, SHADOW], ids=["nested", "shadow"])
def test_runs_are_what_single_faults_give(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scenario = tmp_path / "runs.toml"
    scenario.write_text(text)
    handled = []
    map_run = timeline.map_run

    def noted(*arguments: object) -> int:
        handled.append(map_run(*arguments))  # type: ignore[arg-type]
        return handled[-1]

    monkeypatch.setattr(timeline, "map_run", noted)
    write_trace(scenario, tmp_path / "runs.txt")
    assert sum(handled) > 1000
    monkeypatch.setattr(timeline, "map_run", lambda *arguments: 0)
    write_trace(scenario, tmp_path / "single.txt")
    assert (tmp_path / "runs.txt").read_bytes() == (tmp_path / "single.txt").read_bytes()
