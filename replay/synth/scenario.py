"""A scenario: what a synthetic trace is to show, read from TOML and checked.

Every error is one :class:`replay.errors.InputError` that names the file, the line and the key.
The keys are explained in ``traces/synthetic/README.md``.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field

from replay.errors import InputError
from replay.synth.steps import Known, Step, read_steps
from replay.synth.toml import LEVELS, PAGE_SHIFT, Source, Table, pages
from replay.text_files import TextFileError, parse_toml, read_text_file

MAX_SCENARIO_BYTES = 16 << 20
KERNELS = ("6.1",)
CPUS = ("amd", "intel")
SPTE_LAYOUTS = ("2022", "2026")
PHYSICAL_BITS = 52
ROOT_KINDS = ("shadow", "nested", "direct", "tdp")
ACCESS_LETTERS = {"x": 1, "w": 2, "r": 4}
"""Access bits of ``role.access``: ACC_EXEC_MASK, ACC_WRITE_MASK, and ACC_USER_MASK for what can be read."""


@dataclass(frozen=True)
class Slot:
    """A memslot: ``npages`` frames at ``base_gfn``, backed by host pages of ``backing`` level at ``hva``."""

    id: int
    base_gfn: int
    npages: int
    backing: int
    hva: int
    readonly: bool

    @property
    def end(self) -> int:
        """First gfn after the slot."""
        return self.base_gfn + self.npages


@dataclass(frozen=True)
class Mapping:
    """Guest pages of ``level`` map ``size`` bytes at ``addr`` (gva, or L2 gpa) to ``gfn``."""

    addr: int
    gfn: int
    size: int
    level: int
    access: int
    dirty: bool


@dataclass(frozen=True)
class Cpu:
    """The host's CPU and how its KVM uses it: the layout of SPTEs is Intel's alone, as is PML."""

    vendor: str
    spte_layout: str
    pml: bool

    @property
    def is_intel(self) -> bool:
        return self.vendor == "intel"


@dataclass(frozen=True)
class Root:
    """A root page table: guest page tables to shadow, or the gpa space itself (tdp, direct).

    ``ad`` tells whether L1's EPTP of a nested root on Intel has A/D bits on.
    """

    name: str
    kind: str
    user: bool
    ad: bool
    mappings: tuple[Mapping, ...]


@dataclass(frozen=True)
class Vcpu:
    """A vCPU thread."""

    index: int
    pid: int
    comm: str


@dataclass(frozen=True)
class Vm:
    """A virtual machine; ``pid`` is its tgid and the thread that calls the ioctls."""

    name: str
    pid: int
    comm: str
    vcpus: tuple[Vcpu, ...]
    table_gfn: int
    slots: tuple[Slot, ...]
    roots: tuple[Root, ...]


@dataclass(frozen=True)
class Scenario:
    """The whole file."""

    path: str
    name: str
    description: str
    kernel: str
    cpu: Cpu
    vms: tuple[Vm, ...]
    steps: tuple[Step, ...] = field(repr=False)

    def error(self, line: int, message: str) -> InputError:
        """An error at ``line`` of this scenario."""
        return InputError(self.path, line, message)


def load_scenario(path: str | os.PathLike[str]) -> Scenario:
    """Read and check a scenario file; ``InputError`` with file and line when it cannot be used."""
    name = os.fspath(path)
    try:
        text = read_text_file(path, MAX_SCENARIO_BYTES)
        content = parse_toml(text)
    except TextFileError as error:
        raise InputError(name, 0, str(error)) from None
    except ValueError as error:
        place = re.search(r"line (\d+)", str(error))
        raise InputError(name, int(place.group(1)) if place else 0, f"not TOML: {error}") from None

    top = Source(name, text).table("", content)
    title = top.get("name", str)
    if not re.fullmatch(r"[\w.-]+", title):
        raise top.error("name", f"{title!r} is not one word")
    description = top.get("description", str)
    kernel = top.choice("kernel", KERNELS, KERNELS[0])
    cpu = _read_cpu(top)
    vms = _read_vms(top, cpu)
    known: Known = {
        vm.name: {"root": [root.name for root in vm.roots], "slot": [slot.id for slot in vm.slots]}
        for vm in vms
    }
    steps = read_steps(top.tables("step"), known)
    top.done()
    return Scenario(name, title, description, kernel, cpu, vms, steps)


def _read_cpu(top: Table) -> Cpu:
    vendor = top.choice("cpu", CPUS, CPUS[0])
    if vendor != "intel":
        _refuse(top, ("spte_layout", "pml"), 'needs cpu = "intel"')
    layout = top.choice("spte_layout", SPTE_LAYOUTS, SPTE_LAYOUTS[0])
    return Cpu(vendor, layout, top.get("pml", bool, vendor == "intel"))


def _refuse(table: Table, keys: tuple[str, ...], reason: str) -> None:
    """Complain about the first of ``keys`` that the table has."""
    for key in keys:
        if key in table.content:
            raise table.error(key, reason)


def _read_vms(top: Table, cpu: Cpu) -> tuple[Vm, ...]:
    vms: list[Vm] = []
    for table in top.tables("vm"):
        name = table.get("name", str, "vm")
        pid = table.get("pid", int)
        comm = table.get("comm", str, "qemu-system-x86")
        vcpu_pids = table.get("vcpu_pids", list, [pid + 1])
        if not vcpu_pids or not all(isinstance(value, int) for value in vcpu_pids):
            raise table.error("vcpu_pids", "expected a list of thread ids")
        vcpu_comm = table.get("vcpu_comm", str, "CPU {}/KVM")
        vcpus = tuple(Vcpu(i, value, vcpu_comm.replace("{}", str(i))) for i, value in enumerate(vcpu_pids))
        table_gfn = table.get("table_gfn", int, 0x200)
        if any(name == vm.name or pid == vm.pid for vm in vms):
            raise table.error("name", f"another VM has the name '{name}' or the pid {pid}")
        slots = _read_slots(table)
        vm = Vm(name, pid, comm, vcpus, table_gfn, slots, _read_roots(table, slots, cpu))
        if any(root.mappings for root in vm.roots) and not _inside(slots, table_gfn, 1):
            raise table.error("table_gfn", f"guest page tables at gfn {table_gfn:#x} are outside every slot")
        table.done()
        vms.append(vm)
    if not vms:
        raise top.error(None, "no [[vm]]")
    return tuple(vms)


def _inside(slots: tuple[Slot, ...], gfn: int, npages: int) -> bool:
    return any(slot.base_gfn <= gfn and gfn + npages <= slot.end for slot in slots)


def _read_slots(vm: Table) -> tuple[Slot, ...]:
    slots: list[Slot] = []
    for table in vm.tables("slot"):
        slot_id = table.get("id", int)
        base_gfn = table.get("base_gfn", int)
        backing = LEVELS[table.choice("backing", tuple(LEVELS), "4k")]
        natural_hva = 0x7F0000000000 + (slot_id << 36) + ((base_gfn << PAGE_SHIFT) & 0xFFFFFFFFF)
        hva = table.get("hva", int, natural_hva)
        npages, readonly = table.get("npages", int), table.get("readonly", bool, False)
        slot = Slot(slot_id, base_gfn, npages, backing, hva, readonly)
        if npages == 0:
            raise table.error("npages", "a slot has at least one page")
        if slot.end > 1 << PHYSICAL_BITS - PAGE_SHIFT:
            raise table.error("npages", f"the slot ends beyond {PHYSICAL_BITS} bits of physical address")
        if (hva >> PAGE_SHIFT) % pages(backing) != base_gfn % pages(backing):
            raise table.error("hva", "hva and base_gfn differ within a host page: KVM would map nothing huge")
        for other in slots:
            if other.id == slot.id:
                raise table.error("id", f"slot {slot.id} is declared twice")
            if slot.base_gfn < other.end and other.base_gfn < slot.end:
                raise table.error("base_gfn", f"slot {slot.id} overlaps slot {other.id}")
        table.done()
        slots.append(slot)
    return tuple(slots)


def _read_roots(vm: Table, slots: tuple[Slot, ...], cpu: Cpu) -> tuple[Root, ...]:
    roots: list[Root] = []
    for table in vm.tables("root"):
        name = table.get("name", str)
        kind = table.choice("kind", ROOT_KINDS)
        user = table.get("user", bool, kind == "nested")
        if any(name == other.name for other in roots):
            raise table.error("name", f"root '{name}' is declared twice")
        is_ept = cpu.is_intel and kind == "nested"
        if cpu.is_intel and kind == "shadow":
            raise table.error("kind", "shadow roots (ept=0) are as those of npt=0: leave out cpu")
        if not is_ept:
            _refuse(table, ("ad",), 'needs a nested root and cpu = "intel"')
        ad = table.get("ad", bool, not is_ept)
        mappings = _read_mappings(table, slots, is_ept, ad)
        if bool(mappings) != (kind in ("shadow", "nested")):
            needs = "needs" if not mappings else "maps guest memory as it is and takes no"
            raise table.error("kind", f"a {kind} root {needs} [[vm.root.map]]")
        table.done()
        roots.append(Root(name, kind, user, ad, mappings))
    kinds = [root.kind for root in roots]
    if kinds.count("tdp") + kinds.count("direct") > 1:
        raise vm.error("root", "a VM has one tdp or direct root")
    if "nested" in kinds and not {"tdp", "direct"} & set(kinds):
        raise vm.error("root", "a nested root needs the VM's own tdp or direct root")
    if "shadow" in kinds and {"tdp", "direct", "nested"} & set(kinds):
        raise vm.error("root", "shadow roots (npt=0) and two-dimensional paging exclude each other")
    return tuple(roots)


def _read_mappings(root: Table, slots: tuple[Slot, ...], is_ept: bool, ad: bool) -> tuple[Mapping, ...]:
    mappings: list[Mapping] = []
    for table in root.tables("map"):
        level = LEVELS[table.choice("page", tuple(LEVELS), "4k")]
        letters = table.get("access", str, "rwx")
        if not re.fullmatch(r"rw?x?|x" if is_ept else r"rw?x?", letters):
            raise table.error("access", f"'{letters}' is none of r, rw, rx, rwx" + ", x" * is_ept)
        access = sum(ACCESS_LETTERS[letter] for letter in letters)
        dirty = table.get("dirty", bool, True)
        if not dirty and not ad:
            raise table.error("dirty", "leaf entries of this root have no D bit")
        addr, gfn, size = table.get("addr", int), table.get("gfn", int), table.size("size")
        mapping = Mapping(addr, gfn, size, level, access, dirty)
        page = pages(level) << PAGE_SHIFT
        if mapping.addr % page or mapping.gfn % pages(level) or mapping.size % page or not mapping.size:
            raise table.error(None, f"addr, gfn and size are not multiples of the page size {page:#x}")
        if mapping.addr + mapping.size > 1 << 48:
            raise table.error("addr", "beyond 48 bits")
        if not _inside(slots, mapping.gfn, mapping.size >> PAGE_SHIFT):
            end = mapping.gfn + (mapping.size >> PAGE_SHIFT)
            raise table.error("gfn", f"gfns {mapping.gfn:#x} to {end:#x} are not inside one slot")
        if any(mapping.addr < m.addr + m.size and m.addr < mapping.addr + mapping.size for m in mappings):
            raise table.error("addr", "overlaps another mapping of this root")
        table.done()
        mappings.append(mapping)
    return tuple(mappings)
