"""Plays the timeline of a scenario: runs the synthetic KVM to the end, with room as it needs it."""

from __future__ import annotations

import os
import random
import tempfile

import numpy as np

from replay.errors import InputError, OutputError
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
            if self.model.ctl[st.CTL_ERRNO]:
                number = int(self.model.ctl[st.CTL_ERRNO])
                raise OutputError(tempfile.gettempdir(), os.strerror(number))
            if result == play.GROW:
                self.model = st.grow(self.model)
            elif result not in (play.DONE, play.PAUSED):
                raise self.error(result)
        self.lines = int(self.model.ctl[st.CTL_LINES])

    def error(self, result: int) -> InputError:
        """What the instruction at hand came to, at the line of its step."""
        pc = int(self.model.ctl[st.CTL_PC])
        step = self.program.steps[pc]
        assert step is not None
        args, place = step.args, int(self.model.ctl[st.CTL_DETAIL])
        access = VERBS[self.model.ctl[st.CTL_ACCESS]]
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
        ctl = np.zeros(st.CTL_SIZE, np.int64)
        ctl[st.CTL_CLOCK], ctl[st.CTL_FD], ctl[st.CTL_LINE_MAX] = START_US, fd, line_max
        ctl[st.CTL_NEXT_TABLE], ctl[st.CTL_NEXT_DATA] = TABLE_PFN, program.next_data
        for free in (st.CTL_SP_FREE, st.CTL_LINK_FREE, st.CTL_NUMBER):
            ctl[free] = st.NONE

        def rows(content: list[list[int]], columns: int) -> np.ndarray:
            return np.array(content, np.int64).reshape(-1, columns)

        def heads() -> np.ndarray:
            return np.full(FIRST_ROWS, st.NONE, np.int64)

        def room(columns: int) -> np.ndarray:
            return np.zeros((FIRST_ROWS, columns), np.int64)

        vcpus = max(len(vm.vcpus) for vm in self.scenario.vms)
        return st.Model(
            ctl=ctl,
            layout=np.array(program.layout, np.int64),
            vm=rows(program.vm_rows, st.VM_COLUMNS),
            slot=rows(program.slot_rows, st.SLOT_COLUMNS),
            root=rows(program.root_rows, st.ROOT_COLUMNS),
            mapping=rows(program.mapping_rows, st.MAP_COLUMNS),
            loaded=np.zeros((len(program.root_rows), vcpus), np.int64),
            sp=room(st.SP_COLUMNS),
            spte=room(st.TABLE_SPTES),
            page_heads=heads(),
            link=room(st.LINK_COLUMNS),
            table=room(st.TABLE_COLUMNS),
            table_heads=heads(),
            chunk=room(st.CHUNK_COLUMNS),
            chunk_heads=heads(),
            moved=np.zeros((0, st.TABLE_SPTES), np.int64),
            program=rows(program.rows, play.PROGRAM_COLUMNS),
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
        try:
            return np.empty(count, np.int64)
        except (MemoryError, ValueError):
            assert step is not None
            message = f"[[step]] touch: {count} addresses in random order need too much memory"
            raise self.scenario.error(step.line, message) from None
