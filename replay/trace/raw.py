"""Events as raw fields, ``kvm_mmu_spte_requested:  gfn=10 pfn=118a71 level=1``, rewritten for the scanner.

``trace-cmd report -R`` prints them, and libtraceevent where it cannot parse an event's print format.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from operator import itemgetter
from typing import NamedTuple

from replay.schema import EVENT_NAMES
from replay.trace.pages import FIELD, HEX_LETTER

# raw fields of each event, struct trace_event_raw_*, in the kernel's print format; x: hex, d: decimal
_RAW_TEXTS = {
    "kvm_mmu_pagetable_walk": "addr {addr:x} pferr {pferr:x}",
    "kvm_mmu_paging_element": "pte {pte:x} level {level:d}",
    "kvm_mmu_set_accessed_bit": "gpa {gpa:x}",
    "kvm_mmu_set_dirty_bit": "gpa {gpa:x}",
    "kvm_mmu_walker_error": "pferr {pferr:x}",
    "mark_mmio_spte": "sptep:{sptep:p} gfn {gfn:x} access {access:x} gen {gen:x}",
    "handle_mmio_page_fault": "addr:{addr:x} gfn {gfn:x} access {access:x}",
    "fast_page_fault": "vcpu {vcpu_id:d} gva {cr2_or_gpa:x} error_code {error_code:e} sptep {sptep:p} "
    "old {old_spte:x} new {new_spte:x} spurious {spurious:d} fixed {fixed:d}",
    "kvm_mmu_zap_all_fast": "kvm-mmu-valid-gen {mmu_valid_gen:d} used_pages {mmu_used_pages:x}",
    "kvm_mmu_invalidate_zap_all_pages": "kvm-mmu-valid-gen {mmu_valid_gen:x} used_pages {mmu_used_pages:x}",
    "check_mmio_spte": "spte {spte:x} kvm_gen {kvm_gen:x} spte-gen {spte_gen:x} valid {valid:d}",
    "kvm_mmu_set_spte": "gfn {gfn:x} spte {spte:x} (----) level {level:d} at {sptep:x}",
    "kvm_mmu_spte_requested": "gfn {gfn:x} pfn {pfn:x} level {level:d}",
    "kvm_tdp_mmu_spte_changed": "as id {as_id:d} gfn {gfn:x} level {level:d} old_spte {old_spte:x} "
    "new_spte {new_spte:x}",
    "kvm_mmu_split_huge_page": "gfn {gfn:x} spte {spte:x} level {level:d} errno {errno:d}",
    "kvm_page_fault": "vcpu {vcpu_id:d} rip {guest_rip:p} address {fault_address:x} "
    "error_code {error_code:x}",
    "kvm_unmap_hva_range": "mmu notifier unmap range: {start:x} -- {end:x}",
}
_FAILED = b"[FAILED TO PARSE]"
_SPEC = re.compile(r"\{(\w+):(\w)\}")
RAW = re.compile(rb"(: +(?:\w++:(?! ))?(\w++): +)(?=\w+=|\[F)([^\n]*)")
BARE_RAW = re.compile(rb"(\n *(?:\w++:(?! ))?(\w++): +)(?=\w+=|\[F)([^\n]*)")
_RAW_PRINT = re.compile(rb"ip=(\S+) buf=")
_RAW_PROBE = re.compile(rb"__probe_ip=(\S+) ?")
_RAW_RETURN_PROBE = re.compile(rb"__probe_func=(\S+) __probe_ret_ip=(\S+) ?")
_NUMBERS = re.compile(rb"[ _](?:spte|sptep|pfn|pte|addr|gpa|address)=([0-9a-f]+)\b")
_ENOUGH_DIGITS = 16
"""So many digits of numbers without a letter among them are not hex."""
_SAMPLE_BYTES = 1 << 20


class _RawForm(NamedTuple):
    """How the raw fields of one event become its text."""

    template: bytes  # with %(field)b
    hex_fields: tuple[bytes, ...]


def _raw_form(form: str) -> _RawForm:
    fields = tuple(field.encode() for field, spec in _SPEC.findall(form) if spec == "x")
    return _RawForm(_SPEC.sub(lambda spec: f"%({spec[1]})b", form).encode(), fields)


_RAW_FORMS = {name.encode(): _raw_form(form) for name, form in _RAW_TEXTS.items()}
_OLD_PAGE_FAULT = _raw_form("address {fault_address:x} error_code {error_code:x}")
_PROBES = frozenset(name.encode() for kind, name in EVENT_NAMES.items() if 30 <= kind < 90)


_TEMPLATE_FIELD = re.compile(rb"%\((\w+)\)b")
_DERIVED = (b"check_mmio_spte", b"fast_page_fault")


def _derived(name: bytes, fields: dict[bytes, bytes]) -> None:
    """Fields that the kernel's text shows and the record holds otherwise."""
    if name == b"check_mmio_spte":
        fields[b"valid"] = b"%d" % (fields[b"kvm_gen"] == fields[b"spte_gen"])
    elif name == b"fast_page_fault":
        fields.setdefault(b"cr2_or_gpa", fields.get(b"gva", b"0"))
        if fields[b"error_code"][:1].isdigit() and not fields[b"error_code"].startswith(b"0x"):
            fields[b"error_code"] = b"0x" + fields[b"error_code"]
        # the numbers of RET_PF_FIXED and RET_PF_SPURIOUS differ by kernel: a fixed SPTE has changed
        is_fixed = int(fields[b"old_spte"], 16) != int(fields[b"new_spte"], 16)
        fields[b"fixed"] = b"%d" % is_fixed
        fields[b"spurious"] = b"%d" % (not is_fixed and int(fields.get(b"ret", b"0")) >= 4)


class _Order(NamedTuple):
    """Raw fields in the order in which the last line of an event had them: no need to look for each."""

    fields: re.Pattern[bytes]
    template: bytes
    pick: Callable[[tuple[bytes, ...]], tuple[bytes, ...] | bytes]


def _order(form: _RawForm, names: list[bytes]) -> _Order:
    wanted = _TEMPLATE_FIELD.findall(form.template)
    fields = rb"\s+".join(name + rb"=(\S+)" for name in names)
    pick = itemgetter(*(names.index(name) for name in wanted))
    return _Order(re.compile(rb"\s*" + fields + rb"\s*"), _TEMPLATE_FIELD.sub(b"%b", form.template), pick)


class RawFields:
    """Events as raw fields; ``pattern`` finds name and fields.

    Older versions of libtraceevent print them in decimal, newer ones as the event's print format has them;
    which one it is shows in the first text that has any, by the letters in its numbers.
    """

    def __init__(self, pattern: re.Pattern[bytes]) -> None:
        self._pattern = pattern
        self._hex: bool | None = None
        self._orders: dict[bytes, _Order] = {}

    def __call__(self, text: bytes) -> bytes:
        if self._hex is None and self._pattern.search(text):
            digits = b"".join(_NUMBERS.findall(text[:_SAMPLE_BYTES]))
            self._hex = HEX_LETTER.search(digits) is not None or len(digits) < _ENOUGH_DIGITS
        return self._pattern.sub(self._event, text)

    def _event(self, match: re.Match[bytes]) -> bytes:
        head, name, text = match.groups()
        form = _RAW_FORMS.get(name)
        order = self._orders.get(name)
        if order and (found := order.fields.fullmatch(text)):
            changed = order.template % order.pick(found.groups())
        elif form:
            changed = self._text(name, form, text)
        elif name in _PROBES:
            changed = _RAW_PROBE.sub(rb"(\1) ", text, count=1)
            changed = _RAW_RETURN_PROBE.sub(rb"(\1 <- \2) ", changed, count=1)
        elif name == b"print" or name == b"bprint":
            changed = _RAW_PRINT.sub(rb"\1: ", text, count=1)
        else:
            return match[0]
        return head + changed

    def _text(self, name: bytes, form: _RawForm, text: bytes) -> bytes:
        fields = dict(FIELD.findall(text))
        try:
            if not self._hex or text.startswith(_FAILED):
                for field in form.hex_fields:
                    if field in fields and not fields[field].startswith(b"0x"):
                        fields[field] = b"%x" % int(fields[field])
            if name in _DERIVED:
                _derived(name, fields)
            if name == b"kvm_page_fault" and b"vcpu_id" not in fields:
                form = _OLD_PAGE_FAULT
            if self._hex and name not in _DERIVED and not text.startswith(_FAILED):
                self._orders[name] = _order(form, list(fields))
            return form.template % fields
        except (KeyError, ValueError):
            return text
