"""Other forms of trace text, rewritten to what the scanner reads, line by line.

The scanner reads the kernel's own text.  A line that it cannot read may be of another form; each form is
a *stage*, a function from text to text that keeps the number of lines and leaves alone what is not its.
A stage is used from the first line on that needs it.  Forms:

- ``trace-cmd report`` and ``perf script`` where libtraceevent's kvm plugin prints the PAGE events
  (plugins/plugin_kvm.c), where no plugin does (``[FAILED TO PARSE] field=value ...``), and raw fields of all
  events (``trace-cmd report -R``);
- headers without CPU or task, with the time since the last event, with latency columns of trace-cmd;
- a prefix in front of each line: quotes of mail, times of dmesg, syslog;
- lines that a mailer has wrapped (see ``replay.trace.wrapped``), or that someone has shortened.

A page's role goes on as the word that the form tells (see ``replay.trace.roles``).  A PAGE event without
gfn cannot be replayed: it gets a name of its own, with ``WITHOUT`` in it, and is counted as lost.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from operator import itemgetter
from typing import NamedTuple

from replay.schema import EVENT_NAMES
from replay.trace.roles import PLUGIN_WORD, RAW_WORD
from replay.trace.wrapped import unwrap

Stage = Callable[[bytes], bytes]

WITHOUT = "_without_"
"""Between the name of an event and the field that its lines lack."""
INCOMPLETE_NAMES = (
    "kvm_mmu_sync_page_without_gfn",
    "kvm_mmu_unsync_page_without_gfn",
    "kvm_mmu_prepare_zap_page_without_gfn",
    "kvm_mmu_set_spte_without_sptep",
)
WRAPPED = "wrapped"
"""The stage that no line asks for alone."""

# plugin_kvm.c: kvm_mmu_print_role; the levels of guest tables and "pge" are those of its first version
_PLUGIN_PAGE = re.compile(
    rb"(?:(?P<created>new|existing) sp gfn (?P<gfn>[0-9a-f]+) )?"
    rb"(?:(?P<level>\d+)(?:/\d+)? q(?P<quadrant>\d)(?P<direct> direct)?"
    rb" (?P<access>[-wux]{3})(?P<invalid> invalid)?"
    rb" (?P<pae>!?)p[ag]e (?P<nxe>!?)nxe(?: (?P<wp>!?)wp)?(?P<smep> smep)?(?P<smap> smap)?(?P<smm> smm)?"
    rb" root (?P<root>-?\d+) (?P<sync>un)?sync|WORD: (?P<word>[0-9a-f]+))[\0\s]*"
)
_PAGE = re.compile(
    rb"(kvm_mmu_(?:get|sync|unsync|prepare_zap)_page)(: +)"
    rb"(?=new |existing |\d+(?:/\d+)? q|WORD|\[F|\w+=)([^\n]*)"
)
_FAILED = b"[FAILED TO PARSE]"
_PAIR = re.compile(rb"(\w+)=(\S+)")
_HEX_LETTER = re.compile(rb"[a-f]")
_NEW_WORDS = (b"1", b"true", b"Y", b"y")


def _number(text: bytes) -> int:
    """A raw field: decimal as libtraceevent prints it, or hex with 0x or seen to be hex."""
    return int(text, 16 if _HEX_LETTER.search(text) or text.startswith(b"0x") else 10)


def _plugin_word(page: re.Match[bytes]) -> int:
    """The lower 16 bits of the role, and smm, that a text of the plugin was printed from."""
    if page["word"]:  # a file of the other byte order
        return RAW_WORD | int(page["word"], 16) & ~(RAW_WORD | PLUGIN_WORD)
    word = PLUGIN_WORD | int(page["level"]) & 15 | int(page["quadrant"]) << 5
    flags = (not page["pae"], page["direct"], page["invalid"], not page["nxe"], page["wp"] == b"")
    for bit, is_set in zip((4, 7, 11, 12, 13), flags, strict=True):
        word |= 1 << bit if is_set else 0
    for bit, name in ((14, "smep"), (15, "smap"), (24, "smm")):
        word |= 1 << bit if page[name] else 0
    for bit, letter in ((8, b"x"), (9, b"w"), (10, b"u")):
        word |= 1 << bit if letter in page["access"] else 0
    return word


def _page_text(match: re.Match[bytes]) -> bytes:
    """One PAGE event in the words that the scanner reads: ``sp [gen G ]gfn X role WORD root R sync ...``."""
    name, colon, text = match.groups()
    page = _PLUGIN_PAGE.fullmatch(text)
    if page:
        gfn = page["gfn"]
        tail = b"role %x root %s %s" % (
            _plugin_word(page),
            page["root"] or b"0",
            (page["sync"] or b"") + b"sync",
        )
        created = page["created"] or b""
    else:
        fields = dict(_PAIR.findall(text))
        try:
            gfn = b"%x" % _number(fields[b"gfn"])
            tail = b"gen %x " % _number(fields[b"mmu_valid_gen"]) if b"mmu_valid_gen" in fields else b""
            word = RAW_WORD | _number(fields[b"role"]) & 0xFFFFFFFF & ~PLUGIN_WORD
            root = _number(fields.get(b"root_count", b"0"))
            unsync = fields[b"unsync"] in _NEW_WORDS
            created = (b"new" if fields[b"created"] in _NEW_WORDS else b"existing") if b"get" in name else b""
        except (KeyError, ValueError):
            return match[0]
        sync = b"unsync" if unsync else b"sync"
        return b"%s%ssp %sgfn %s role %x root %d %s %s" % (name, colon, tail, gfn, word, root, sync, created)
    if gfn is None and b"get" in name:
        return match[0]
    if gfn is None:
        return name + WITHOUT.encode() + b"gfn: ?"
    return b"%s%ssp gfn %s %s %s" % (name, colon, gfn, tail, created)


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
_SPEC = re.compile(r"\{(\w+):(\w)\}")
_RAW = re.compile(rb"(: +(?:\w++:(?! ))?(\w++): +)(?=\w+=|\[F)([^\n]*)")
_BARE_RAW = re.compile(rb"(\n *(?:\w++:(?! ))?(\w++): +)(?=\w+=|\[F)([^\n]*)")
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


class _RawFields:
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
            self._hex = _HEX_LETTER.search(digits) is not None or len(digits) < _ENOUGH_DIGITS
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
        fields = dict(_PAIR.findall(text))
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


_DMESG = rb"(?:<\d+>)?\[ *\d+\.\d+\](?:\[ *[CT]\d+\])? ?"
_PREFIX = rb"(?:(?:[ \t|]*>)+[ \t]?|(?:[^\n\[]{1,80} kernel: )?" + _DMESG + rb")"
_TIME = rb"(?<!\d)\d{1,12}\.\d{6,9}"
_LINE_PREFIX = re.compile(rb"\n" + _PREFIX)
_LOST = re.compile(rb"\n[^\n\[]*(CPU:\d+ \[[^\n\]]{0,40}EVENTS[^\n\]]{0,20}\])")
_PERF_LOST = re.compile(
    rb"\n(?:[^\n\[]*\[(\d+)\])?[^\n]*?PERF_RECORD_LOST(?:_SAMPLES)?[^\n\d]{0,20}(\d+)[^\n]*"
)
_LATENCY = re.compile(rb"(\n[^\n\[]*?-\d+) +(\d{1,4})([.dDbX][^ \n]{3,4}) +(?=" + _TIME + rb":)")
_NO_CPU = re.compile(rb"(\n[^\n\[]*?)(?<![ \t])[ \t]++(?=" + _TIME + rb": )")
_DIFFERENCE = re.compile(rb"(" + _TIME + rb")(?::?[ \t]+\(\+\d+\)[ \t]*:?|[ \t]+:)(?=[ \t])")
_PERIOD = re.compile(rb"(" + _TIME + rb": +)\d+ +(?:[\w/:-]+:? +)?(?=\w+:\w+: )")
_NO_SPTEP = re.compile(rb"(kvm_mmu_set_spte)(: +gfn [^\n]*level \d+)[ \t\r]*$", re.MULTILINE)
_WITHOUT_SPTEP = rb"\1" + WITHOUT.encode() + rb"sptep\2"
_NO_RIP = re.compile(rb"(kvm_page_fault: +vcpu \d+)(?= address )")


def _in_lines(pattern: re.Pattern[bytes], change: bytes | Callable[[re.Match[bytes]], bytes]) -> Stage:
    """Change what ``pattern`` finds behind the newline with which it begins, the first line included."""
    return lambda text: pattern.sub(change, b"\n" + text)[1:]


def _lost_records(match: re.Match[bytes]) -> bytes:
    return b"\nCPU:%d [LOST %d EVENTS]" % (int(match[1] or 0), int(match[2]))


def _lost(text: bytes) -> bytes:
    if b"EVENTS" in text:
        text = _LOST.sub(rb"\n\1", b"\n" + text)[1:]
    if b"PERF_RECORD_LOST" in text:
        text = _PERF_LOST.sub(_lost_records, b"\n" + text)[1:]
    return text


def has_prefix(header: bytes) -> bool:
    """What stands before an event's CPU column begins with something that is not the task's."""
    return re.match(_PREFIX, header) is not None


def _stages() -> dict[str, Stage]:
    """All stages, in the order in which they are used."""
    bare = _RawFields(_BARE_RAW)
    return {
        "prefix": _in_lines(_LINE_PREFIX, b"\n"),
        WRAPPED: unwrap,
        "lost": _lost,
        "difference": lambda text: _DIFFERENCE.sub(rb"\1:", text),
        "period": lambda text: _PERIOD.sub(rb"\1", text),
        "latency": _in_lines(_LATENCY, rb"\1 [\2] \3 "),
        "no_cpu": _in_lines(_NO_CPU, rb"\1 [-1] "),
        "pages": lambda text: _PAGE.sub(_page_text, text),
        "raw": _RawFields(_RAW),
        "bare": lambda text: bare(b"\n" + text)[1:],
        "shortened": lambda text: _NO_RIP.sub(rb"\1 rip 0", _NO_SPTEP.sub(_WITHOUT_SPTEP, text)),
    }


class Forms:
    """The stages that a trace needs, found as its lines ask for them."""

    def __init__(self) -> None:
        self._stages = _stages()
        self.used: set[str] = set()

    def use_all(self) -> None:
        """Use all stages, as if the trace had asked for them."""
        self.used = set(self._stages)

    def learn(self, line: bytes) -> bool:
        """Take in the stages that change ``line``, a line that cannot be read; False if there is none."""
        found = set()
        for name, stage in _stages().items():
            changed = stage(line)
            if changed != line:
                found.add(name)
                line = changed
        new = found - self.used
        self.used |= new
        return bool(new)

    def rewrite(self, text: bytes) -> bytes:
        """``text``, whole lines, as the scanner reads it: as many lines."""
        for name, stage in self._stages.items():
            if name in self.used:
                text = stage(text)
        return text
