"""From a scenario to what the synthetic KVM plays: VMs as rows of arrays, steps as instructions, texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from replay.jit import new_records
from replay.synth.kvm import events, fault, play, spte
from replay.synth.kvm import state as st
from replay.synth.kvm.lines import Texts
from replay.synth.scenario import Mapping, Root, Scenario, Slot, Vm
from replay.synth.steps import ALL_ONES, Step
from replay.synth.toml import PAGE_SHIFT, pages

DATA_PFN = 0x100000
"""Where the frames for guest memory begin."""
KVM_DIRTY_LOG_INITIALLY_SET = 2
KINDS = {"tdp": st.KIND_TDP, "direct": st.KIND_DIRECT, "nested": st.KIND_NESTED, "shadow": st.KIND_SHADOW}
ACCESSES = {"read": fault.READ, "write": fault.WRITE, "exec": fault.EXEC, "random": play.ACCESS_RANDOM}
LAYOUTS = {"2022": spte.EPT_2022, "2026": spte.EPT_2026}
LARGE = 1 << 61
"""Stands for all larger numbers: none of them is ever valid."""


class Program:
    """All VMs of a scenario and its timeline."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        cpu = scenario.cpu
        self.layout = list(LAYOUTS[cpu.spte_layout] if cpu.is_intel else spte.LEGACY)
        self.layout[spte.PML] = cpu.pml
        self.steps: list[Step | None] = []  # of each instruction
        self.rows: list[list[int]] = []
        self.texts = Texts(bytes(events.TEXTS.bytes))
        self.words = list(events.WORDS)
        self.vms: dict[str, int] = {}
        self.slots: dict[tuple[str, int], int] = {}
        self.roots: dict[tuple[str, str], int] = {}
        self.cpus = 0
        self.depth = self.depths = 0
        self.longest_shuffle: tuple[int, Step | None] = (0, None)
        self.next_data = DATA_PFN
        self.vm_rows: list[Any] = []
        self.slot_rows: list[Any] = []
        self.root_rows: list[Any] = []
        self.mapping_rows: list[tuple[int, ...]] = []
        for vm in scenario.vms:
            self._add_vm(vm)
        for vm in scenario.vms:
            self._begin(vm)
        for step in scenario.steps:
            self._add_step(step)
        for vm in scenario.vms:
            self._mark(vm.name, f"replay: scenario {scenario.name} end")
        self._add(play.END, "")

    # -- VMs ---------------------------------------------------------------------------------------

    def _add_vm(self, vm: Vm) -> None:
        row = new_records(1, st.VM)[0]
        row.task, row.vcpus = len(self.words), len(vm.vcpus)
        self._add_task(vm.comm, vm.pid, vm.pid, self.cpus)
        for vcpu in vm.vcpus:
            self._add_task(vcpu.comm, vcpu.pid, vm.pid, self.cpus + vcpu.index)
        self.cpus += len(vm.vcpus)
        row.slot = len(self.slot_rows)
        for slot in vm.slots:
            self.slots[vm.name, slot.id] = len(self.slot_rows)
            self.slot_rows.append(self._slot_row(slot))
        row.slot_end = len(self.slot_rows)
        row.root = len(self.root_rows)
        for root in vm.roots:
            self.roots[vm.name, root.name] = len(self.root_rows)
            self.root_rows.append(self._root_row(root))
        row.root_end = len(self.root_rows)
        row.table_gfn = min(vm.table_gfn, LARGE)
        row.n_max_mmu_pages = max(st.KVM_MIN_ALLOC_MMU_PAGES, sum(slot.npages for slot in vm.slots) // 50)
        row.last_slot = row.oldest = row.newest = row.invalid_root = row.last_invalid_root = row.tdp = st.NONE
        self.vms[vm.name] = len(self.vm_rows)
        self.vm_rows.append(row)

    def _add_task(self, comm: str, pid: int, tgid: int, cpu: int) -> None:
        """What the lines of a thread begin with, up to the time."""
        start = f"{comm[:15]:>16}-{pid:<7d} ({tgid:7d}) [{cpu:03d}] "
        self.words += [self.texts.add(f"{start}{flags} ") for flags in events.FLAGS]

    def _slot_row(self, slot: Slot) -> Any:
        row = new_records(1, st.MEMSLOT)[0]
        row.base_gfn, row.end = slot.base_gfn, slot.end
        row.backing, row.readonly = slot.backing, slot.readonly
        # aligned as the gfn is within a 1 GiB page
        row.pfn = self.next_data + (slot.base_gfn - self.next_data) % pages(3)
        self.next_data = int(row.pfn) + slot.npages
        row.is_live, row.chunk = 1, st.NONE
        return row

    def _root_row(self, root: Root) -> Any:
        row = new_records(1, st.ROOT)[0]
        row.kind, row.user = KINDS[root.kind], root.user or root.kind == "nested"
        row.sp, row.map = st.NONE, len(self.mapping_rows)
        if root.kind == "nested":
            ad = root.ad or not self.scenario.cpu.is_intel
            row.mode = spte.NESTED if ad else spte.NESTED_WITHOUT_AD
        self.mapping_rows += sorted(
            (m.addr, m.gfn, m.size, m.level, self._access(m), not m.dirty) for m in root.mappings
        )
        row.map_end = len(self.mapping_rows)
        return row

    def _access(self, mapping: Mapping) -> int:
        """ACC_* bits of a leaf entry: what permits to read is the user bit but in the layout of 2026."""
        access = mapping.access
        if self.layout[spte.ACC_CAN_READ] == spte.ACC_READ and access & spte.ACC_USER:
            access ^= spte.ACC_USER | spte.ACC_READ
        return access

    # -- steps -------------------------------------------------------------------------------------

    def _add(
        self, do: int, vm: str, text: str = "", args: Sequence[int] = (), step: Step | None = None
    ) -> None:
        self.words.append(self.texts.add(text))
        row = [do, self.depth, self.vms.get(vm, 0), len(self.words) - 1]
        row += [min(arg, LARGE) for arg in args]
        self.rows.append(row + [0] * (play.PROGRAM_COLUMNS - len(row)))
        self.steps.append(step)

    def _mark(
        self, vm: str, text: str, do: int = play.MARK, args: Sequence[int] = (), step: Step | None = None
    ) -> None:
        """A line that the VMM writes into trace_marker, and what follows from it."""
        self._add(do, vm, f"tracing_mark_write: {text}", args, step)

    def _begin(self, vm: Vm) -> None:
        self._mark(vm.name, f"replay: scenario {self.scenario.name} begin")
        self._mark(vm.name, f"replay: vm_create vm={vm.name} pid={vm.pid}")
        for slot in vm.slots:
            self._mark(vm.name, _memslot(slot, slot.npages, False))

    def _add_step(self, step: Step) -> None:
        args = step.args
        if step.do == "repeat":
            self._repeat(step)
        elif step.do == "touch":
            self._touch(step)
        elif step.do in ("load", "zap"):
            do = play.LOAD if step.do == "load" else play.ZAP
            self._add(do, step.vm, args=[self.roots[step.vm, args["root"]], args["vcpu"]], step=step)
        elif step.do in ("dirty_log", "clear_dirty_log", "slot_delete"):
            self._slot_step(step)
        elif step.do == "limit":
            self._mark(step.vm, f"replay: nr_mmu_pages n={args['n']}", play.LIMIT, [args["n"]], step)
        elif step.do == "manual_protect":
            all_set = bool(args["arg"] & KVM_DIRTY_LOG_INITIALLY_SET)
            text = f"replay: manual_dirty_log_protect2 arg={args['arg']}"
            self._mark(step.vm, text, play.MANUAL, [all_set], step)
        elif step.do == "resched":
            self._mark(step.vm, "replay: resched")
        elif step.do == "marker":
            self._mark(step.vm, args["text"])
        elif step.do == "unmap":
            self._unmap(step)

    def _repeat(self, step: Step) -> None:
        begin = len(self.rows)
        self._add(play.REPEAT, "", args=[step.args["times"], 0], step=step)
        self.depth += 1
        self.depths = max(self.depths, self.depth)
        for inner in step.steps:
            self._add_step(inner)
        self.depth -= 1
        self._add(play.AGAIN, "", args=[step.args["times"], begin + 1], step=step)
        self.rows[begin][play.ARGS + 1] = len(self.rows)

    def _touch(self, step: Step) -> None:
        args = step.args
        count = len(range(0, args["size"], args["stride"])) if args["size"] < LARGE else LARGE
        how = ACCESSES[args["access"]] | (args["order"] == "random") << 2
        if args["order"] == "random" and count > self.longest_shuffle[0]:
            self.longest_shuffle = (count, step)
        values = [self.roots[step.vm, args["root"]], args["vcpu"], args["start"], count, args["stride"], how]
        values += [args["advance"], args["start"] + args["size"]]
        self._add(play.TOUCH, step.vm, args=values, step=step)

    def _slot_step(self, step: Step) -> None:
        args = step.args
        number = self.slots[step.vm, args["slot"]]
        vm = next(vm for vm in self.scenario.vms if vm.name == step.vm)
        slot = next(slot for slot in vm.slots if slot.id == args["slot"])
        if step.do == "dirty_log":
            text = _memslot(slot, slot.npages, args["on"])
            self._mark(step.vm, text, play.DIRTY_LOG, [number, args["on"]], step)
        elif step.do == "slot_delete":
            self._mark(step.vm, _memslot(slot, 0, False), play.DELETE, [number], step)
        else:
            first, count, mask = args["first_page"], args["num_pages"], args["mask"]
            text = f"replay: clear_dirty_log slot={slot.id} first_page={first} num_pages={count}"
            text += f" mask={mask:#x}" if mask != ALL_ONES else ""
            signed = mask - (1 << 64) if mask >> 63 else mask
            self._mark(step.vm, text, play.CLEAR, [number, first, count], step)
            self.rows[-1][play.ARGS + 3] = signed

    def _unmap(self, step: Step) -> None:
        start = step.args["hva"]
        end = start + step.args["size"]
        text = f"kvm_unmap_hva_range: mmu notifier unmap range: {start:#016x} -- {end:#016x}"
        self._add(play.UNMAP, step.vm, text, step=step)
        vm = next(vm for vm in self.scenario.vms if vm.name == step.vm)
        for slot in vm.slots:
            first = max(slot.base_gfn, slot.base_gfn + (start - slot.hva >> PAGE_SHIFT))
            last = min(slot.end, slot.base_gfn + (end - slot.hva >> PAGE_SHIFT))
            if first < last:
                self._add(
                    play.UNMAP_SLOT, step.vm, args=[self.slots[step.vm, slot.id], first, last], step=step
                )


def _memslot(slot: Slot, npages: int, dirty_log: bool) -> str:
    """The marker of KVM_SET_USER_MEMORY_REGION; no pages delete the slot."""
    flags = dirty_log | slot.readonly << 1 if npages else 0
    place = f"id={slot.id} base_gfn={slot.base_gfn:#x} npages={npages:#x}"
    return f"replay: memslot {place} flags={flags:#x} hva={slot.hva:#x}"
