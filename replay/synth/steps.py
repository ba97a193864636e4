"""The timeline of a scenario: what kinds of steps there are and which keys they take."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from replay.synth.kvm.state import KVM_MIN_ALLOC_MMU_PAGES
from replay.synth.toml import Table

ACCESSES = ("read", "write", "exec", "random")
ORDERS = ("ascending", "random")
ALL_ONES = (1 << 64) - 1
Known = dict[str, dict[str, list[Any]]]
"""Of each VM by name: the names of its roots, the ids of its slots."""


@dataclass(frozen=True)
class Step:
    """One step of the timeline; ``args`` holds the keys of its kind, with defaults filled in."""

    do: str
    vm: str
    args: dict[str, Any]
    line: int
    steps: tuple[Step, ...] = ()


def _touch(table: Table) -> dict[str, Any]:
    args = {
        "start": table.get("start", int),
        "size": table.size("size"),
        "stride": table.size("stride", "4k"),
        "access": table.choice("access", ACCESSES),
        "order": table.choice("order", ORDERS, "ascending"),
        "vcpu": table.get("vcpu", int, 0),
        "advance": table.size("advance", 0),
    }
    if args["stride"] == 0:
        raise table.error("stride", "a stride is at least one byte")
    return args


def _clear_dirty_log(table: Table) -> dict[str, Any]:
    args = {
        "first_page": table.get("first_page", int),
        "num_pages": table.get("num_pages", int),
        "mask": table.get("mask", int, ALL_ONES),
    }
    if args["first_page"] % 64:
        raise table.error("first_page", "KVM_CLEAR_DIRTY_LOG takes multiples of 64")
    if args["mask"] > ALL_ONES:
        raise table.error("mask", "wider than 64 bits")
    return args


def _limit(table: Table) -> dict[str, Any]:
    n = table.get("n", int)
    if n < KVM_MIN_ALLOC_MMU_PAGES:
        raise table.error("n", f"KVM_SET_NR_MMU_PAGES takes at least {KVM_MIN_ALLOC_MMU_PAGES}")
    return {"n": n}


READERS: dict[str, Callable[[Table], dict[str, Any]]] = {
    "touch": _touch,
    "load": lambda table: {"vcpu": table.get("vcpu", int, 0)},
    "zap": lambda table: {"vcpu": table.get("vcpu", int, 0)},
    "limit": _limit,
    "dirty_log": lambda table: {"on": table.get("on", bool)},
    "manual_protect": lambda table: {"arg": table.get("arg", int)},
    "clear_dirty_log": _clear_dirty_log,
    "resched": lambda table: {},
    "unmap": lambda table: {"hva": table.get("hva", int), "size": table.size("size")},
    "slot_delete": lambda table: {},
    "marker": lambda table: {"text": table.get("text", str)},
}
NAMES = {
    "touch": "root",
    "load": "root",
    "zap": "root",
    "dirty_log": "slot",
    "clear_dirty_log": "slot",
    "slot_delete": "slot",
}
"""Which steps name a root or a slot of their VM."""


def read_steps(tables: list[Table], known: Known) -> tuple[Step, ...]:
    """The steps in ``tables``; ``InputError`` names the key that cannot be used."""
    return tuple(_read_step(table, known) for table in tables)


def _read_step(table: Table, known: Known) -> Step:
    do = table.choice("do", (*READERS, "repeat"))
    if do == "repeat":
        times = table.get("times", int)
        inner = read_steps(table.tables("steps"), known)
        table.done()
        return Step(do, "", {"times": times}, table.line, inner)
    vm = table.get("vm", str, next(iter(known)) if len(known) == 1 else None)
    if vm not in known:
        raise table.error("vm", f"no VM is called '{vm}'")
    args = READERS[do](table)
    if do in NAMES:
        key = NAMES[do]
        args[key] = table.get(key, int if key == "slot" else str)
        if args[key] not in known[vm][key]:
            raise table.error(key, f"VM '{vm}' has no {key} {args[key]!r}")
    table.done()
    return Step(do, vm, args, table.line)
