"""A trace with ``replay:`` markers as QEMU's ftrace backend would have written it."""

from __future__ import annotations

import re
from collections.abc import Iterable

CONTROL = re.compile(
    r": (?:v2_|flush_remote|slot_|try_split|shadow_try|tdp_try|topup|zap_coll|recover|set_region|commit_reg"
    r"|change_mmu)\w*: "
)
OF_SPLIT = re.compile(
    r": kvm_(?:mmu_get_page|mmu_split_huge_page|tdp_mmu_spte_changed|mmu_prepare_zap_page|mmu_sync_page): "
)
MARKER = re.compile(r"tracing_mark_write: replay: (\w+)(.*)")
TASK = re.compile(r".*?-(\d+) ")
TIME = re.compile(r"\d\.\d{6}: ")


def without_probes(lines: Iterable[str]) -> list[str]:
    """``lines`` less the probes and the masks of CLEAR, which QEMU does not print."""
    return [re.sub(r" mask=\S+", "", line) for line in lines if not CONTROL.search(line)]


def _numbers(text: str) -> dict[str, int]:
    return {key: int(value, 0) for key, value in re.findall(r"(\w+)=(0x\w+|\d+)", text)}


def _qemu_text(word: str, values: dict[str, int], bytes_of_page: int) -> str:
    if word == "clear_dirty_log":
        start, size = (values[key] * bytes_of_page for key in ("first_page", "num_pages"))
        return f"kvm_clear_dirty_log slot#{values['slot']} start {start:#x} size {size:#x}"
    place = f"AddrSpace#{values.get('as', 0)} Slot#{values['id']} flags={values['flags']:#x}"
    memory = (
        f"gpa={values['base_gfn'] << 12:#x} size={values['npages'] << 12:#x} ua={values.get('hva', 0):#x}"
    )
    return f"kvm_set_user_memory {place} {memory} ret=0"


def as_qemu(lines: Iterable[str], *, in_bytes: bool = False, after: bool = False) -> list[str]:
    """``lines`` with QEMU's events for markers; ``after``: each behind the lines of its ioctl.

    ``in_bytes``: ranges of slots in bytes, as other programs may give them.
    """
    made: list[str] = []
    waiting: dict[str, list[str]] = {}  # by task: a marker, and the header of the last line of its ioctl
    for line in lines:
        task = match[1] if (match := TASK.match(line)) else ""
        marker = MARKER.search(line)
        if task in waiting and not OF_SPLIT.search(line):
            made.append("".join(waiting.pop(task)))
        if marker and marker[1] == "manual_dirty_log_protect2":
            continue
        if marker and marker[1] in ("memslot", "clear_dirty_log"):
            text = _qemu_text(marker[1], _numbers(marker[2]), 4096 if in_bytes else 1)
            pieces = [line[: marker.start()], f"tracing_mark_write: {text}"]
            if after:
                waiting[task] = pieces
            else:
                made.append("".join(pieces))
            continue
        made.append(line)
        if task in waiting and (time := TIME.search(line)):
            waiting[task][0] = line[: time.end()]
    return made + ["".join(pieces) for pieces in waiting.values()]
