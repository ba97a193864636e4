"""Plays the timeline of a scenario: runs the synthetic KVM to the end, with room as it needs it."""

from __future__ import annotations

import os
import random
import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np

from replay.errors import InputError, OutputError
from replay.jit import new_records
from replay.synth.kvm import fault, play
from replay.synth.kvm import state as st
from replay.synth.kvm.lines import NUMBERS_MAX
from replay.synth.program import Program
from replay.synth.scenario import Scenario
from replay.synth.steps import Step

START_US = 100 * 1000000
TABLE_PFN = 0x20000
"""Where the host's frames for page tables begin."""
OUT_BYTES = 1 << 20
FIRST_ROWS = 256
VERBS = ("read", "write", "exec")

MOST_SHUFFLED = 1 << 26
"""Addresses of one touch in random order, 256 GiB of 4K pages: they are shuffled at once, in some seconds."""


class Timeline:
    """All VMs of a scenario and the trace they leave in the file ``fd``."""

    def __init__(self, scenario: Scenario, fd: int, seed: int) -> None:
        self.scenario = scenario
        self.program = Program(scenario)
        self.cpus = self.program.cpus
        self.lines = 0
        self.model = self._make_model(fd, seed)

    def play(self) -> None:
        """The whole trace: creation of the VMs, every step, the end.

        ``InputError`` says which step cannot be played, ``OutputError`` why lines cannot be written.
        """
        result = fault.OK
        while result != play.DONE:
            result = play.play(self.model)
            if self.model.ctl.errno:
                number = int(self.model.ctl.errno)
                raise OutputError(tempfile.gettempdir(), os.strerror(number))
            if result == play.GROW:
                self.model = st.grow(self.model)
            elif result not in (play.DONE, play.PAUSED):
                raise self.error(result)
        self.lines = int(self.model.ctl.lines)

    def error(self, result: int) -> InputError:
        """What the instruction at hand came to, at the line of its step."""
        pc = int(self.model.ctl.pc)
        step = self.program.steps[pc]
        assert step is not None
        args, place = step.args, int(self.model.ctl.detail)
        access = VERBS[self.model.ctl.access]
        slot_pages = self._slot_pages(step)
        message = {
            fault.NOT_MAPPED: f"nothing is mapped at {place:#x}",
            fault.NO_SLOT: f"gfn {place:#x} is in no slot",
            fault.READ_ONLY: f"a write to gfn {place:#x}, in a read-only slot, leaves for user space",
            fault.EMULATED: f"a write to gfn {place:#x}, an upper guest page table, is emulated; "
            "the model cannot do that",
            fault.FORBIDDEN: f"the guest page tables forbid to {access} gfn {place:#x}",
            fault.NO_TABLES: f"VM '{step.vm}': guest page tables reach gfn {place:#x}, outside every slot",
            play.NO_VCPU: f"VM '{step.vm}' has no vCPU {args.get('vcpu')}",
            play.NOT_LOADED: f"root '{args.get('root')}' is not loaded",
            play.TDP_STAYS: "the root of the TDP MMU stays",
            play.DELETED: f"slot {args.get('slot')} was deleted",
            play.NOT_LOGGED: f"slot {args.get('slot')} has no dirty log",
            play.BEYOND_SLOT: f"pages {args.get('first_page')} + {args.get('num_pages')} exceed "
            f"the {slot_pages} pages of the slot",
            play.NO_ADDRESS: "addresses go beyond 60 bits",
        }[result]
        return self.scenario.error(step.line, f"[[step]] {step.do}: {message}")

    def _slot_pages(self, step: Step) -> int | None:
        slots = (slot for vm in self.scenario.vms if vm.name == step.vm for slot in vm.slots)
        return next((slot.npages for slot in slots if slot.id == step.args.get("slot")), None)

    def _make_model(self, fd: int, seed: int) -> st.Model:
        program = self.program
        line_max = NUMBERS_MAX + 2 * program.texts.longest
        ctl = new_records(1, st.CONTROL)[0]
        ctl.clock, ctl.fd, ctl.line_max = START_US, fd, line_max
        ctl.next_table, ctl.next_data = TABLE_PFN, program.next_data
        ctl.sp_free = ctl.link_free = ctl.number = st.NONE

        def rows(content: Sequence[Any], dtype: np.dtype) -> Any:
            made = new_records(len(content), dtype)
            for i, row in enumerate(content):
                made[i] = row
            return made

        def heads() -> np.ndarray:
            return np.full(FIRST_ROWS, st.NONE, np.int64)

        def room(dtype: np.dtype) -> Any:
            return new_records(FIRST_ROWS, dtype)

        vcpus = max(len(vm.vcpus) for vm in self.scenario.vms)
        return st.Model(
            ctl=ctl,
            layout=np.array(program.layout, np.int64),
            vm=rows(program.vm_rows, st.VM),
            slot=rows(program.slot_rows, st.MEMSLOT),
            root=rows(program.root_rows, st.ROOT),
            mapping=rows(program.mapping_rows, st.MAPPING),
            loaded=np.zeros((len(program.root_rows), vcpus), np.int64),
            sp=room(st.SHADOW_PAGE),
            spte=np.zeros((FIRST_ROWS, st.TABLE_SPTES), np.int64),
            page_heads=heads(),
            link=room(st.LINK),
            table=room(st.GUEST_TABLE),
            table_heads=heads(),
            chunk=room(st.CHUNK),
            chunk_heads=heads(),
            moved=np.zeros((0, st.TABLE_SPTES), np.int64),
            program=np.array(program.rows, np.int64).reshape(-1, play.PROGRAM_COLUMNS),
            rounds=np.zeros(program.depths + 1, np.int64),
            order=self._order(),
            twister=np.array(random.Random(seed).getstate()[1], np.int64),
            text=np.frombuffer(bytes(program.texts.bytes), np.uint8).reshape(1, -1),
            words=np.array(program.words, np.int64),
            out=np.empty((1, OUT_BYTES + line_max), np.uint8),
        )

    def _order(self) -> np.ndarray:
        """Room for the longest touch in random order, which takes memory only where there is one."""
        count, step = self.program.longest_shuffle
        if count > MOST_SHUFFLED:
            assert step is not None
            message = f"[[step]] touch: {count:,} addresses in random order; {MOST_SHUFFLED:,} are possible"
            raise self.scenario.error(step.line, message)
        return np.empty(count, np.int64)
