"""Plays the timeline of a scenario: accesses of the guests, ioctls of the VMMs, markers."""

from __future__ import annotations

import random
from collections.abc import Sequence

from replay.errors import InputError
from replay.synth.bulk import Fault, map_run
from replay.synth.fault import host_level, lookup, page_fault, permits, remove_table
from replay.synth.guest import ROOT_LEVEL
from replay.synth.kvm import NONLEAF, REMOVED_SPTE, SPTE_W, Kvm, ShadowPage
from replay.synth.memory import Host, MemSlot
from replay.synth.scenario import Root, Scenario
from replay.synth.steps import ALL_ONES, Step
from replay.synth.toml import PAGE_SHIFT, pages
from replay.synth.write import TraceWriter

IOCTL_US, FAULT_US = 1000, 40
"""Time that passes before an ioctl of the VMM and before an access."""
KVM_DIRTY_LOG_INITIALLY_SET = 2
CHUNK_PAGES = 64


class Timeline:
    """All VMs of a scenario and the trace they leave."""

    def __init__(self, scenario: Scenario, writer: TraceWriter, seed: int) -> None:
        self.scenario = scenario
        self.writer = writer
        self.random = random.Random(seed)
        host = Host()
        self.vms: dict[str, Kvm] = {}
        self.cpus = 0
        for vm in scenario.vms:
            self.vms[vm.name] = Kvm(scenario, vm, self.cpus, host, writer)
            self.cpus += len(vm.vcpus)

    def play(self) -> None:
        """The whole trace: creation of the VMs, every step, the end."""
        for kvm in self.vms.values():
            self.mark(kvm, f"replay: scenario {self.scenario.name} begin")
            self.mark(kvm, f"replay: vm_create vm={kvm.vm.name} pid={kvm.vm.pid}")
            for slot in kvm.slots.values():
                self.memslot(kvm, slot, slot.slot.npages)
        for step in self.scenario.steps:
            self.step(step, 0)
        for kvm in self.vms.values():
            self.mark(kvm, f"replay: scenario {self.scenario.name} end")

    def mark(self, kvm: Kvm, text: str) -> None:
        """A line that the VMM writes into trace_marker."""
        self.writer.pause(IOCTL_US)
        kvm.emit(kvm.vmm.unlocked, f"tracing_mark_write: {text}")

    def memslot(self, kvm: Kvm, slot: MemSlot, npages: int) -> None:
        """The marker of KVM_SET_USER_MEMORY_REGION."""
        place = f"id={slot.slot.id} base_gfn={slot.base_gfn:#x} npages={npages:#x}"
        flags = slot.flags() if npages else 0
        self.mark(kvm, f"replay: memslot {place} flags={flags:#x} hva={slot.slot.hva:#x}")

    def step(self, step: Step, round_number: int) -> None:
        """Play one step; ``round_number`` counts the rounds of the innermost repeat around it."""
        if step.do == "repeat":
            for number in range(step.args["times"]):
                for inner in step.steps:
                    self.step(inner, number)
            return
        kvm = self.vms[step.vm]
        if step.do == "touch":
            self.touch(kvm, step, round_number)
        elif step.do in ("load", "zap"):
            self.root_step(kvm, step)
        elif step.do in ("dirty_log", "clear_dirty_log", "slot_delete"):
            slot = kvm.slots.get(step.args["slot"])
            if slot is None:
                raise self.error(step, f"slot {step.args['slot']} was deleted")
            self.slot_step(kvm, step, slot)
        elif step.do == "limit":
            self.mark(kvm, f"replay: nr_mmu_pages n={step.args['n']}")
            kvm.change_mmu_pages(kvm.vmm, step.args["n"])
        elif step.do == "manual_protect":
            self.mark(kvm, f"replay: manual_dirty_log_protect2 arg={step.args['arg']}")
            kvm.initially_all_set = bool(step.args["arg"] & KVM_DIRTY_LOG_INITIALLY_SET)
        elif step.do == "resched":
            self.mark(kvm, "replay: resched")
        elif step.do == "marker":
            self.mark(kvm, step.args["text"])
        elif step.do == "unmap":
            self.unmap(kvm, step.args["hva"], step.args["hva"] + step.args["size"])

    def error(self, step: Step, message: str) -> InputError:
        """``message`` at the line of ``step``."""
        return self.scenario.error(step.line, f"[[step]] {step.do}: {message}")

    def root(self, kvm: Kvm, step: Step) -> tuple[Root, int]:
        """The root and the vCPU that a step names."""
        vcpu: int = step.args["vcpu"]
        if vcpu >= len(kvm.vcpus):
            raise self.error(step, f"VM '{kvm.vm.name}' has no vCPU {vcpu}")
        return next(root for root in kvm.vm.roots if root.name == step.args["root"]), vcpu

    def touch(self, kvm: Kvm, step: Step, round_number: int) -> None:
        """Accesses of a vCPU, one every ``stride`` bytes."""
        args = step.args
        root, vcpu = self.root(kvm, step)
        start = args["start"] + round_number * args["advance"]
        addresses: Sequence[int] = range(start, start + args["size"], args["stride"])
        if args["order"] == "random":
            addresses = list(addresses)
            self.random.shuffle(addresses)
        access = args["access"]
        steady = args["order"] == "ascending" and access != "random"
        top = kvm.load_root(kvm.vcpus[vcpu], root)
        last: Fault | None = None
        number = 0
        while number < len(addresses):
            addr = addresses[number]
            number += 1
            kind = self.random.choice(("read", "write")) if access == "random" else access
            spte = lookup(top, addr)[2]
            if permits(spte, kind):
                continue
            self.writer.pause(FAULT_US)
            with kvm.noted_lines() as lines:
                refusal = page_fault(kvm, vcpu, root, top, addr, kind, spte)
            if refusal is not None:
                raise self.error(step, refusal)
            sp, index, _ = lookup(top, addr)
            fault = Fault(addr, sp, index, lines)
            if steady and last is not None and not spte and args["stride"] == pages(sp.level) << PAGE_SHIFT:
                slot = kvm.slot_of(sp.leaf_gfn(index))
                number += map_run(kvm, root, last, fault, slot, len(addresses) - number, FAULT_US)
            last = fault

    def root_step(self, kvm: Kvm, step: Step) -> None:
        """The guest loads a root anew (its page tables are synced), or a root is dropped and recycled."""
        self.writer.pause(IOCTL_US)
        root, vcpu = self.root(kvm, step)
        task = kvm.vcpus[vcpu]
        sp = kvm.roots.get(root.name)
        if sp is None or sp.invalid:
            if step.do == "zap":
                raise self.error(step, f"root '{root.name}' is not loaded")
            kvm.load_root(task, root)
            return
        if sp.tdp:
            raise self.error(step, "the root of the TDP MMU stays")
        if step.do == "zap":
            kvm.put_root(sp)
            kvm.prepare_zap_page(task, sp)
            return
        sp.root_count -= (task, sp) in kvm.loaded
        kvm.emit(task.locked, f"kvm_mmu_get_page: {sp.text()} existing")
        kvm.hold_root(task, sp)
        unsync = kvm.unsync_children(sp)
        for page in unsync:
            kvm.write_protect_gfn(task, page.gfn, 1)
        for page in unsync:
            kvm.emit(task.locked, f"kvm_mmu_sync_page: {page.text()}")
            page.unsync = False

    def slot_step(self, kvm: Kvm, step: Step, slot: MemSlot) -> None:
        """Dirty logging and deletion of a memslot."""
        if step.do == "dirty_log":
            slot.dirty_log = step.args["on"]
            self.memslot(kvm, slot, slot.slot.npages)
            if not slot.dirty_log:
                self.zap_collapsible(kvm, slot)
            elif kvm.initially_all_set:
                slot.dirty = (1 << slot.slot.npages) - 1
            else:
                for sp, index, gfn in kvm.leaves_of(slot, (1, 2, 3)):
                    kvm.change_leaf(kvm.vmm, sp, index, gfn, sp.leaves[index] & ~SPTE_W)
        elif step.do == "slot_delete":
            self.memslot(kvm, slot, 0)
            self.zap_all_fast(kvm)
            del kvm.slots[slot.slot.id]
            kvm.last_slot = None
            kvm.default_mmu_pages()
        else:
            self.clear_dirty_log(kvm, step, slot)

    def clear_dirty_log(self, kvm: Kvm, step: Step, slot: MemSlot) -> None:
        """KVM_CLEAR_DIRTY_LOG: kvm_arch_mmu_enable_log_dirty_pt_masked() for each 64 pages."""
        first, count, mask = step.args["first_page"], step.args["num_pages"], step.args["mask"]
        if first + count > slot.slot.npages:
            raise self.error(step, f"pages {first} + {count} exceed the {slot.slot.npages} pages of the slot")
        if not slot.dirty_log:
            raise self.error(step, f"slot {slot.slot.id} has no dirty log")
        range_text = f"slot={slot.slot.id} first_page={first} num_pages={count}"
        mask_text = f" mask={mask:#x}" if mask != ALL_ONES else ""
        self.mark(kvm, f"replay: clear_dirty_log {range_text}{mask_text}")
        for page in range(first, first + count, CHUNK_PAGES):
            bits = slot.dirty >> page & mask & (1 << min(CHUNK_PAGES, first + count - page)) - 1
            slot.dirty &= ~(bits << page)
            if bits:
                self.enable_log_dirty(kvm, slot, slot.base_gfn + page, bits)

    def enable_log_dirty(self, kvm: Kvm, slot: MemSlot, base: int, bits: int) -> None:
        """Write-protect the pages of one mask, and what is huge around them."""
        if kvm.initially_all_set:
            start, end = base + (bits & -bits).bit_length() - 1, base + bits.bit_length() - 1
            for gfn in (start,) if start >> 9 == end >> 9 else (start, end):
                kvm.write_protect_gfn(kvm.vmm, gfn, 2)
        for bit in range(CHUNK_PAGES):
            for sp, index in slot.rmaps[1].get(base + bit, ()) if bits >> bit & 1 else ():
                kvm.change_leaf(kvm.vmm, sp, index, base + bit, sp.leaves[index] & ~SPTE_W)

    def zap_collapsible(self, kvm: Kvm, slot: MemSlot) -> None:
        """kvm_mmu_zap_collapsible_sptes(): what could be mapped huge again goes."""
        for sp, index, gfn in list(kvm.leaves_of(slot, (1, 2))):
            if sp.direct and not sp.tdp and sp.level < host_level(kvm, slot, gfn):
                kvm.drop_leaf(sp, index)
        for top in kvm.roots.values():
            if top.tdp:
                self.tdp_zap_collapsible(kvm, slot, top)

    def tdp_zap_collapsible(self, kvm: Kvm, slot: MemSlot, sp: ShadowPage) -> None:
        """zap_collapsible_spte_range(): tables of the TDP MMU below an entry that could be huge."""
        for index, child in sorted(sp.children.items()):
            inside = slot.base_gfn < child.gfn + pages(sp.level) and child.gfn < slot.end
            if inside and sp.level <= 3 and sp.level <= host_level(kvm, slot, child.gfn):
                del sp.children[index]
                kvm.spte_changed(kvm.vmm, child.gfn, sp.level, child.spt | NONLEAF, REMOVED_SPTE)
                remove_table(kvm, kvm.vmm, child)
            elif inside and sp.level > 2:
                self.tdp_zap_collapsible(kvm, slot, child)

    def zap_all_fast(self, kvm: Kvm) -> None:
        """kvm_mmu_zap_all_fast(): every page of the old generation, oldest first; then the TDP MMU."""
        text = f"kvm-mmu-valid-gen {kvm.gen} used_pages {kvm.n_used:x}"
        kvm.emit(kvm.vmm.locked, f"kvm_mmu_zap_all_fast: {text}")
        kvm.gen ^= 1
        while kvm.active:
            kvm.prepare_zap_page(kvm.vmm, next(iter(kvm.active)))
        for name, top in list(kvm.roots.items()):
            if top.tdp:
                for level in (ROOT_LEVEL - 1, ROOT_LEVEL):
                    self.tdp_zap_level(kvm, top, level)
                del kvm.roots[name]

    def tdp_zap_level(self, kvm: Kvm, sp: ShadowPage, level: int) -> None:
        """__tdp_mmu_zap_root(): entries at one level of the tree."""
        for index, child in sorted(sp.children.items()):
            if sp.level > level:
                self.tdp_zap_level(kvm, child, level)
                continue
            del sp.children[index]
            kvm.spte_changed(kvm.vmm, child.gfn, level, child.spt | NONLEAF, 0)
            remove_table(kvm, kvm.vmm, child)
        for index in sorted(sp.leaves) if sp.level == level else ():
            kvm.spte_changed(kvm.vmm, sp.gfn + index * pages(level), level, sp.leaves[index], 0)
            kvm.drop_leaf(sp, index)

    def unmap(self, kvm: Kvm, start: int, end: int) -> None:
        """An mmu notifier takes a range of host addresses away."""
        self.writer.pause(IOCTL_US)
        event = f"kvm_unmap_hva_range: mmu notifier unmap range: {start:#016x} -- {end:#016x}"
        kvm.emit(kvm.vmm.locked, event)
        for slot in kvm.slots.values():
            base = slot.base_gfn
            first = max(base, base + (start - slot.slot.hva >> PAGE_SHIFT))
            last = min(slot.end, base + (end - slot.slot.hva >> PAGE_SHIFT))
            if first >= last:
                continue
            for sp, index, gfn in list(kvm.leaves_of(slot, (1, 2, 3))):
                if gfn < last and first < gfn + pages(sp.level):
                    if sp.tdp:
                        kvm.spte_changed(kvm.vmm, gfn, sp.level, sp.leaves[index], 0)
                    kvm.drop_leaf(sp, index)
            for page in sorted(slot.resident):
                if first < (page + 1) << slot.shift and page << slot.shift < last:
                    slot.evict(page << slot.shift)
