"""Random scenarios for the trace generator: small VMs with huge pages, aliases, limits and dirty logging."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from replay.errors import InputError
from replay.synth import write_trace

Table = dict[str, Any]
Draw = Callable[[st.SearchStrategy[Any]], Any]

DATA, HIGH = 0x40000, 0x80000
"""First gfns of the two data slots, both at a multiple of 1 GiB."""
REGION, GIB, WORD = 0x200, 0x40000, 64
KINDS = ("shadow", "tdp", "direct")
STRIDES = {"4k": 1 << 12, "2m": 1 << 21}


def slots(draw: Draw) -> list[Table]:
    """The slot of the guest page tables and one or two of data, not always whole regions long."""
    made: list[Table] = [{"id": 0, "base_gfn": 0, "npages": 0x400}]
    for number, base in ((1, DATA), (2, HIGH))[: draw(st.integers(1, 2))]:
        backing = draw(st.sampled_from(("2m", "2m", "2m", "2m", "2m", "2m", "1g", "4k")))
        regions = draw(st.integers(2, 6))
        extra = draw(st.sampled_from((0, 0, 0, 0x10)))
        npages = GIB if backing == "1g" else regions * REGION + extra
        slot = {"id": number, "base_gfn": base, "npages": npages, "backing": backing}
        made.append(slot | {"hva": 0x7F0000000000 + (base << 12)})
    return made


def target(draw: Draw, slot: Table) -> Table:
    """Guest memory that roots map: a whole slot or its first regions."""
    pages = ("4k", "2m", "2m", "2m") if slot["npages"] < GIB else ("1g", "1g", "2m")
    page = draw(st.sampled_from(pages))
    regions = GIB // REGION if page == "1g" else draw(st.integers(1, min(slot["npages"] // REGION, 6)))
    return {"gfn": slot["base_gfn"], "size": regions << 21, "page": page}


def mappings(draw: Draw, targets: list[Table]) -> list[Table]:
    """What one root maps, each in a GiB of addresses of its own; targets repeat in and between roots."""
    return [
        {
            "addr": (number + 1) << 30,
            **draw(st.sampled_from(targets)),
            "access": draw(st.sampled_from(("rwx", "rwx", "rwx", "rw", "rx"))),
        }
        for number in range(draw(st.integers(1, 3)))
    ]


def roots(draw: Draw, kind: str, data: list[Table]) -> list[Table]:
    """Roots of shadow paging (npt=0), or the VM's own root and those of nested guests."""
    targets = [target(draw, slot) for slot in data for _ in range(draw(st.integers(1, 2)))]
    if kind != "shadow":
        made = [{"name": "l1", "kind": kind}]
        inner, count = "nested", draw(st.sampled_from((0, 1, 2, 2, 3)))
    else:
        made, inner, count = [], "shadow", draw(st.sampled_from((1, 2, 2, 3)))
    for number in range(count):
        root: Table = {"name": f"r{number}", "kind": inner, "map": mappings(draw, targets)}
        if inner == "shadow":
            root["map"].append({"addr": 0, "gfn": 0, "size": 0x400000})
            root["user"] = draw(st.booleans())
        made.append(root)
    return made


def touch(draw: Draw, vm: Table) -> Table:
    """Accesses to one mapping of a root, or to a slot through the VM's own root."""
    root = draw(st.sampled_from(vm["root"] + vm["root"][1:]))
    access = draw(st.sampled_from(("write", "write", "read", "exec")))
    if "map" in root:
        target = draw(st.sampled_from(root["map"]))
        start, size = target["addr"], target["size"]
    else:
        slot = draw(st.sampled_from(vm["slot"]))
        start, size = slot["base_gfn"] << 12, slot["npages"] << 12
    stride = draw(st.sampled_from(("4k", "2m", "2m", "2m", "2m")))
    step = STRIDES[stride]
    first = draw(st.sampled_from((0, 0, 0, 1, 3))) % -(-size // step)
    count = min(draw(st.integers(1, 6)), -(-size // step) - first)
    return {
        "do": "touch",
        "root": root["name"],
        "start": start + first * step,
        "size": (count - 1) * step + 0x1000,
        "stride": stride,
        "access": access,
        "vcpu": draw(st.integers(0, len(vm["vcpu_pids"]) - 1)),
    }


def other_step(draw: Draw, vm: Table) -> Table:
    """Everything but touches and dirty logging."""
    slot = draw(st.sampled_from(vm["slot"][1:]))
    page = draw(st.integers(0, min(slot["npages"], 0x800) - 1))
    root = draw(st.sampled_from(vm["root"]))["name"]
    return draw(
        st.sampled_from(
            (
                {"do": "limit", "n": draw(st.integers(64, 72))},
                {"do": "resched"},
                {
                    "do": "unmap",
                    "hva": slot["hva"] + (page << 12),
                    "size": draw(st.sampled_from(("4k", "2m"))),
                },
                {"do": "zap", "root": root},
                {"do": "load", "root": root},
            )
        )
    )


def clear(draw: Draw, vm: Table) -> Table:
    """KVM_CLEAR_DIRTY_LOG of some words of a slot."""
    number = draw(st.integers(1, len(vm["slot"]) - 1))
    words = min(vm["slot"][number]["npages"] // WORD, 40)
    first = draw(st.sampled_from((0, 0, 1, 7, 8))) % words
    mask = draw(st.sampled_from(((1 << WORD) - 1, (1 << WORD) - 1, 1, 1 << 63, 0xFF00)))
    count = draw(st.integers(1, 17))
    return {
        "do": "clear_dirty_log",
        "slot": number,
        "first_page": first * WORD,
        "num_pages": min(count, words - first) * WORD,
        "mask": mask,
    }


def timeline(draw: Draw, vms: list[Table]) -> list[Table]:
    """Touches of all VMs, other steps in between, then dirty logging; perhaps another round."""
    steps: list[Table] = []
    for vm in vms:
        if any(slot.get("backing") == "1g" for slot in vm["slot"]) or draw(st.booleans()):
            steps.append({"vm": vm["name"], "do": "limit", "n": draw(st.integers(64, 72))})
        if draw(st.integers(0, 3)) == 0:
            steps.append({"vm": vm["name"], "do": "manual_protect", "arg": 3})
    for _ in range(draw(st.integers(1, 2))):
        for _ in range(draw(st.integers(5, 12))):
            vm = draw(st.sampled_from(vms))
            make = draw(st.sampled_from((touch, touch, touch, touch, other_step)))
            steps.append({"vm": vm["name"], **make(draw, vm)})
        for _ in range(draw(st.integers(1, 3))):
            vm = draw(st.sampled_from(vms))
            slot = draw(st.sampled_from((1, 1, 1, 2, 0))) % len(vm["slot"])
            on = draw(st.sampled_from((True, True, True, True, False)))
            steps.append({"vm": vm["name"], "do": "dirty_log", "slot": slot, "on": on})
            for _ in range(draw(st.sampled_from((0, 0, 1, 2)))):
                steps.append({"vm": vm["name"], **clear(draw, vm)})
    return steps


@st.composite
def scenarios(draw: Draw, kinds: tuple[str, ...] = KINDS) -> Table:
    """A scenario as the tables of its TOML file."""
    vms: list[Table] = []
    for number in range(draw(st.sampled_from((1, 1, 1, 2)))):
        made = slots(draw)
        pid = 100 * (number + 1)
        vms.append(
            {
                "name": f"vm{number}",
                "pid": pid,
                "vcpu_pids": [pid + 1 + i for i in range(draw(st.integers(1, 2)))],
                "table_gfn": draw(st.sampled_from((0x200, 0x200, DATA))),
                "slot": made,
                "root": roots(draw, draw(st.sampled_from(kinds)), made[1:]),
            }
        )
    return {"name": "random", "description": "made by a test", "vm": vms, "step": timeline(draw, vms)}


@st.composite
def intel_scenarios(draw: Draw) -> Table:
    """A scenario of an Intel host: either SPTE layout, PML on or off, L1's EPT with and without A/D."""
    table = draw(scenarios(kinds=("tdp", "direct")))
    for vm in table["vm"]:
        for root in vm["root"]:
            if root["kind"] != "nested":
                continue
            root["ad"] = draw(st.booleans())
            for item in root["map"]:
                item["access"] = draw(st.sampled_from(("rwx", "rwx", "rw", "rx", "r", "x")))
                if root["ad"]:
                    item["dirty"] = draw(st.booleans())
    layout = draw(st.sampled_from(("2022", "2026")))
    return table | {"cpu": "intel", "spte_layout": layout, "pml": draw(st.booleans())}


def toml(table: Table) -> str:
    """The tables as TOML, one step a line."""
    lines = [f"{key} = {_value(value)}" for key, value in table.items() if key not in ("vm", "step")]
    lines += ["step = [", *(f"    {_value(step)}," for step in table["step"]), "]"]
    for vm in table["vm"]:
        lines += ["[[vm]]", *(f"{key} = {_value(vm[key])}" for key in vm if key not in ("slot", "root"))]
        for kind in ("slot", "root"):
            for item in vm[kind]:
                lines += [f"[[vm.{kind}]]", *(f"{key} = {_value(value)}" for key, value in item.items())]
    return "\n".join(lines) + "\n"


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_value(item)}" for key, item in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(_value, value)) + "]"
    return hex(value) if isinstance(value, int) and not isinstance(value, bool) else json.dumps(value)


def make_trace(table: Table, directory: Path) -> Path:
    """Write the trace of a scenario; steps that the generator refuses are left out."""
    scenario, trace = directory / "scenario.toml", directory / "trace.txt"
    kept = {**table, "step": list(table["step"])}
    while True:
        scenario.write_text(toml(kept))
        try:
            write_trace(scenario, trace)
        except InputError as error:
            del kept["step"][_refused(error, kept)]
        else:
            return trace


def _refused(error: InputError, table: Table) -> int:
    """Which step an error names; any other error is the test's own mistake."""
    found = re.match(r"[^:]+:(\d+): ", str(error))
    first = toml(table).splitlines().index("step = [") + 2
    number = int(found[1]) - first if found else -1
    if not 0 <= number < len(table["step"]):
        raise error
    return number
