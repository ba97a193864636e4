"""Other forms of trace text, rewritten to what the scanner reads, line by line.

The scanner reads the kernel's own text.  A line that it cannot read may be of another form; each form is
a *stage*, a function from text to text that keeps the number of lines and leaves alone what is not its.
A stage is used from the first line on that needs it.  Forms:

- PAGE events as libtraceevent's kvm plugin prints them (``replay.trace.pages``);
- headers without CPU or task, with the time since the last event, with latency columns of trace-cmd;
- entities of HTML, as archives of mailing lists have them;
- colours of a terminal and strange blanks among the words (see ``replay.trace.decorations``);
- a prefix in front of each line: quotes of mail, times of dmesg, syslog, what grep and cat -n print;
- lines that a mailer has wrapped (see ``replay.trace.wrapped``), or that someone has shortened.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Collection

from replay.trace.text.decorations import is_decorated, undecorate
from replay.trace.text.plugin_pages import WITHOUT, rewrite_pages
from replay.trace.text.wrapped import unwrap

Stage = Callable[[bytes], bytes]

WRAPPED = "wrapped"
"""The stage that no line asks for alone."""
DECORATED = "decorated"
"""The stage that is used whatever the form is said to be."""

_DMESG = rb"(?:<\d+>)?\[ *\d+\.\d+\](?:\[ *[CT]\d+\])? ?"
_FILE = rb"[^\s:]{0,200}[./][^\s:]{0,200}"
# the kernel puts a blank before each task, and a word and a colon before the text of an event alone
_TASK_FOLLOWS = (
    rb"(?=[ \t]{1,20}[^\n\[]{1,80}[- ]\d{1,9}(?:/\d{1,9})?[ \t]{1,20}(?:\([ \d-]{1,20}\) +)?(?:\[|$))"
)
_GREP = rb"(?:" + _FILE + rb"[:-])?\d+[:-](?=[ \t#>]|\w+: )|" + _FILE + rb"[:-]" + _TASK_FOLLOWS
_PREFIX = (
    rb"(?:(?:[ \t|]*>)+[ \t]?|(?:[^\n\[]{1,80} kernel: )?"
    + _DMESG
    + rb"|"
    + _GREP
    + rb"|[+*|](?=[ \t])|\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d\S* )"
)
_MAX_PREFIXES = rb"{1,3}"
"""As where grep printed what a mail quotes."""
_TIME = rb"(?<!\d)\d{1,12}\.\d{6,9}"
_NUMBER = re.compile(rb"\n *\d+\t")
_LINE_PREFIX = re.compile(rb"\n" + _PREFIX + _MAX_PREFIXES)
_FOREIGN = re.compile(rb" *\d+\t|" + _PREFIX)
_ENTITY = re.compile(rb"&(?:lt|gt|amp|quot|apos|nbsp|#\d{1,6}|#[xX][0-9A-Fa-f]{1,5});")
_LOST = re.compile(rb"\n[^\n\[]*(CPU:\d+ \[[^\n\]]{0,40}EVENTS[^\n\]]{0,20}\])")
_PERF_LOST = re.compile(
    rb"\n(?:[^\n\[]*\[(\d+)\])?[^\n]*?PERF_RECORD_LOST(?:_SAMPLES)?[^\n\d]{0,20}(\d+)[^\n]*"
)
_LATENCY_FLAGS = rb"(?:([.dDbX][^ \n]{3,4})|-0x[0-9a-f]{1,4})"  # the latter of trace-cmd report -R -l
_LATENCY = re.compile(rb"(\n[^\n\[]*?-\d+) +(\d{1,4})" + _LATENCY_FLAGS + rb" +(?=" + _TIME + rb":)")
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


def _entity(match: re.Match[bytes]) -> bytes:
    text = html.unescape(match[0].decode())
    return text.encode(errors="replace") if text.isprintable() or text == "\xa0" else b" "


def _without_entities(text: bytes) -> bytes:
    return _ENTITY.sub(_entity, text) if b"&" in text else text


def has_foreign(header: bytes) -> bool:
    """What stands before an event's CPU column has something that is not the task's."""
    if _FOREIGN.match(header) or is_decorated(header):
        return True
    return b"&" in header and _ENTITY.search(header) is not None


def stages() -> dict[str, Stage]:
    """All stages, in the order in which they are used."""
    return {
        "number": _in_lines(_NUMBER, b"\n"),
        "entities": _without_entities,
        DECORATED: undecorate,
        "prefix": _in_lines(_LINE_PREFIX, b"\n"),
        WRAPPED: unwrap,
        "lost": _lost,
        "difference": lambda text: _DIFFERENCE.sub(rb"\1:", text),
        "period": lambda text: _PERIOD.sub(rb"\1", text),
        "latency": _in_lines(_LATENCY, rb"\1 [\2] \3 "),
        "no_cpu": _in_lines(_NO_CPU, rb"\1 [-1] "),
        "pages": rewrite_pages,
        "shortened": lambda text: _NO_RIP.sub(rb"\1 rip 0", _NO_SPTEP.sub(_WITHOUT_SPTEP, text)),
    }


class Forms:
    """The stages that a trace needs, found as its lines ask for them."""

    def __init__(self) -> None:
        self._stages = stages()
        self.used: set[str] = set()

    def learn(self, line: bytes, names: Collection[str] | None = None) -> bool:
        """Take in the stages that change ``line``, a line that cannot be read; False if there is none.

        ``names`` are those that may be used, None for all.
        """
        found = set()
        for name, stage in stages().items():
            changed = stage(line) if names is None or name in names else line
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
