"""Compile every kernel of the package and store it, so that no later command has to compile."""

from __future__ import annotations

import importlib
import pkgutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from numba.core import config

import replay.mmu
import replay.synth
import replay.trace
from replay.errors import UsageError
from replay.jit import KERNELS, cache_directory
from replay.mmu.engine import compile_in_other_process

_SCENARIO = 'name = "none"\ndescription = ""\n[[vm]]\npid = 1\n'
_LINE = "vmm-1 ( 1) [000] ..... 1.000000: "
_TEXT = (
    f"{_LINE}kvm_mmu_set_accessed_bit: gpa 1000\n"
    f"{_LINE}tracing_mark_write: kvm_set_user_memory Slot#0 flags=0x0 gpa=0x0 size=0x1000 ua=0x1000 ret=0\n"
)


@dataclass(frozen=True)
class Warmup:
    """What was done: names of kernels, as ``module.function``."""

    directory: Path
    compiled: list[str]
    found: list[str]
    """Already stored."""


def warm_up() -> Warmup:
    """Bring all kernels into the cache.  Raises ``UsageError`` if they cannot be stored."""
    directory = cache_directory()
    if directory is None:
        raise UsageError("no cache directory is writable, so nothing can be stored: set REPLAY_CACHE_DIR")
    if config.DISABLE_JIT:
        raise UsageError("NUMBA_DISABLE_JIT is set: nothing is compiled")
    for package in (replay.trace, replay.mmu, replay.synth):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            importlib.import_module(module.name)
    before = [kernel._cache.stamp() for kernel in KERNELS]
    compile_in_other_process()  # they take as long as all others together
    with tempfile.TemporaryDirectory() as temporary:
        _use_all(Path(temporary))
    compiled, found = [], []
    for kernel, stamp in zip(KERNELS, before, strict=True):
        name = f"{kernel.py_func.__module__.removeprefix('replay.')}.{kernel.py_func.__name__}"
        if kernel._cache.stamp() != stamp:
            compiled.append(name)
        elif kernel.stats.cache_hits:
            found.append(name)
    return Warmup(directory, compiled, found)


def _use_all(directory: Path) -> None:
    """Call every kernel as the commands do, with next to nothing to work on."""
    from replay.mmu.state import growth, mmu
    from replay.run import Request, run_trace
    from replay.synth import write_trace
    from replay.trace.reader import read_trace

    text, binary, scenario = directory / "trace.txt", directory / "trace.dat", directory / "scenario.toml"
    scenario.write_text(_SCENARIO)
    write_trace(scenario, directory / "synthetic.txt")
    text.write_text(_TEXT)
    binary.write_bytes(_trace_dat())
    read_trace(str(binary))
    read_trace(str(text))
    full = mmu.make(1)
    full.ctl.sp_top = full.ctl.gib_top = full.ctl.tasks = len(full.hash)
    growth.grow(full)
    run_trace(str(text), Request(rmap_histogram=("end",), census=True))


def _trace_dat() -> bytes:
    """A trace.dat file, version 6, of one CPU that recorded nothing."""

    def sized(size: int, data: bytes) -> bytes:
        return len(data).to_bytes(size, "little") + data

    fields = (("u64 timestamp", 0, 8), ("local_t commit", 8, 8), ("char data", 16, 4080))
    page = "".join(f"\tfield: {name};\toffset:{at};\tsize:{size};\tsigned:1;\n" for name, at, size in fields)
    head = b"\x17\x08\x44tracing6\0\0\x08" + (4096).to_bytes(4, "little")
    head += b"header_page\0" + sized(8, page.encode()) + b"header_event\0" + sized(8, b"type_len : 5 bits\n")
    head += bytes(4 + 4 + 4 + 4 + 8)  # no formats of ftrace, systems, addresses, formats of printk, tasks
    head += (1).to_bytes(4, "little") + b"flyrecord\0"
    return head + (len(head) + 16).to_bytes(8, "little") + bytes(8)
