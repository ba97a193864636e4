"""The forms that a trace can have: the words of ``--format``, and what tells one text from another."""

from __future__ import annotations

import re

from replay.errors import UsageError

AUTO = "auto"
TEXT_FORMATS: dict[str, tuple[str, ...]] = {
    "ftrace": (),
    "trace-cmd": ("lost", "difference", "latency", "pages"),
    "perf-script": ("lost", "period", "no_cpu", "pages"),
    "dmesg": ("prefix", "lost"),
}
"""Forms of text, and the stages of ``replay.trace.forms`` that one needs."""
BINARY_FORMATS: dict[str, tuple[str, ...]] = {
    "trace-dat": ("trace.dat",),
    "perf-data": ("perf.data",),
    "table": ("parquet", "arrow"),
}
"""Other forms, and the names of ``Source.format`` that they have."""
FORMATS = (AUTO, *TEXT_FORMATS, *BINARY_FORMATS)

# each begins with a literal, which is found many times faster than anything else
_PERF_SCRIPT = re.compile(rb"\.(?<=\d\.)\d{6,9}: +(?:\d+ +)?[\w-]+:\w+: ")
_TRACE_CMD = re.compile(rb"\n(?:cpus=\d+$|version = \d|CPU \d+ is empty$)", re.MULTILINE)
_TRACE_CMD_EVENT = re.compile(rb"\.(?<=\d\.)\d{6,9}: \w+: {2,}\S")
_LATENCY = re.compile(rb"us.: ")
_DMESG = re.compile(rb"^[^\n\[]*\[ *\d+\.\d{6}\][^\n]* \d+us.: ", re.MULTILINE)
# a banner, with the package's version of a Debian kernel, or a marker "replay: kernel version=..."
BANNER = r"(?:Linux version |^kernel version=)(\d\S*)(?:.*#\d.*( Debian \d\S*))?"
_KERNEL = re.compile(BANNER.encode() + rb"|[Tt]ainted(?:: [A-Z ]+?)? +(\d+\.\d+\.\S+) #")
_KERNEL_WORDS = (b"Linux version ", b"kernel version=", b"ainted")


def check_format(word: str | None) -> None:
    """Raises ``UsageError`` for a word that is none of ``FORMATS``; None is ``auto``."""
    if word is not None and word not in FORMATS:
        raise UsageError(f"--format {word}: use {', '.join(FORMATS)}")


def is_of_format(word: str | None, source_format: str) -> bool:
    """An input that its first bytes tell to be ``source_format`` may be of the format that was asked for."""
    if word is None or word == AUTO:
        return True
    return source_format in BINARY_FORMATS.get(word, ("text",))


_BETTER_FORMS = {
    "trace-cmd": "trace-cmd report -N shows pages, vm_create markers show VMs",
    "perf-script": "perf without libtraceevent's plugin shows pages, perf script -F +pid,+tid shows VMs",
    "perf.data": "perf without libtraceevent's plugin shows pages",
    "ftrace": "option record-tgid or vm_create markers show VMs",
}


def better_form(trace_format: str) -> str:
    """How to have of a trace of ``trace_format`` what it leaves out."""
    return _BETTER_FORMS.get(trace_format, "the kernel's own text with option record-tgid shows everything")


def text_format(text: bytes) -> str:
    """The key of ``TEXT_FORMATS`` that the beginning of a trace looks like."""
    if _PERF_SCRIPT.search(text):
        return "perf-script"
    if _TRACE_CMD.search(b"\n" + text) or _TRACE_CMD_EVENT.search(text):
        return "trace-cmd"
    if _LATENCY.search(text) and _DMESG.search(text):
        return "dmesg"
    return "ftrace"


def text_kernel(text: bytes) -> str | None:
    """The kernel version that a banner or an oops at the beginning of a log tells."""
    if not any(words in text for words in _KERNEL_WORDS):
        return None
    found = _KERNEL.search(text)
    if not found:
        return None
    return (found[3] or found[1] + (found[2] or b"")).decode(errors="replace")
