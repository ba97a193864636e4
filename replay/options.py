"""The options of a replay: the one place where their words are parsed and checked.

A command line and a golden file have them as text; what is built from it here is what the engine takes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum, StrEnum

from replay.errors import UsageError
from replay.kernel import KernelVersion, asked_kernel
from replay.text_files import decimal_number, shown

MAX_NUMBER = 2**63 - 1
"""Of ``--resched``."""
MAX_MMU_PAGES = 2**32 - 1
"""More than 16 TiB of page tables; the kernel's ioctl takes 32 bits."""
MAX_SECONDS = 4.6e9
"""Nanoseconds of 62 bits, 145 years."""
RMAP_COLUMNS = ("auto", "fls", "ffs")
"""What picks the column of a list by its length; ``auto``: what the kernel that recorded took."""


class SplitKind(Enum):
    """What turns dirty logging on; the values are the words of ``--split-at``."""

    AUTO = "auto"
    RECORDED = "recorded"
    CONTROL = "control"
    END = "end"
    NEVER = "never"
    TIME = "SECONDS"
    """No word: a number of seconds stands for it."""


_SPLIT_WORDS = {kind.value: kind for kind in SplitKind if kind is not SplitKind.TIME}


@dataclass(frozen=True)
class SplitAt:
    """When dirty logging is turned on."""

    kind: SplitKind = SplitKind.AUTO
    ns: int = 0
    """Of the trace's clock, where ``kind`` is ``TIME``."""
    text: str = SplitKind.AUTO.value
    """As it was given: golden files keep it."""

    @staticmethod
    def parse(text: str) -> SplitAt:
        """What ``--split-at`` means.  Raises ``UsageError``."""
        if text in _SPLIT_WORDS:
            return SplitAt(_SPLIT_WORDS[text], 0, text)
        ns = nanoseconds(text)
        if ns is None:
            words = ", ".join(_SPLIT_WORDS)
            raise UsageError(f"--split-at {text}: use {words}, or seconds of the trace's clock")
        return SplitAt(SplitKind.TIME, ns, text)

    def check_reached(self, last_ns: int | None) -> None:
        """Raises ``UsageError`` where a trace has ended by then, at ``last_ns``, or has no times (None)."""
        if self.kind is SplitKind.TIME and (last_ns is None or self.ns > last_ns):
            end = "has no times" if last_ns is None else f"ends at {last_ns / 1e9:.6f}"
            raise UsageError(f"--split-at {self.text}: the trace {end}; 'end' splits there")


class ReschedKind(Enum):
    """Which attempts drop the lock; the values are the words of ``--resched``."""

    RECORDED = "recorded"
    NEVER = "never"
    EVERY = "every"
    SEED = "seed"


@dataclass(frozen=True)
class Resched:
    """Where the environment makes the kernel drop the lock."""

    kind: ReschedKind = ReschedKind.RECORDED
    number: int = 0
    """Attempts from one drop to the next, or the seed of random drops."""
    text: str = ReschedKind.RECORDED.value
    """As it was given: golden files keep it."""

    @staticmethod
    def parse(text: str) -> Resched:
        """What ``--resched`` means.  Raises ``UsageError``."""
        if text in (ReschedKind.RECORDED.value, ReschedKind.NEVER.value):
            return Resched(ReschedKind(text), 0, text)
        word, _, count = text.partition("=")
        number = decimal_number(count)
        if word in (ReschedKind.EVERY.value, ReschedKind.SEED.value) and number is not None:
            kind = ReschedKind(word)
            if number <= MAX_NUMBER and not (kind is ReschedKind.EVERY and number == 0):
                return Resched(kind, number, text)
        raise UsageError(
            f"--resched {shown(text)}: use recorded, never, every=N or seed=S, numbers up to {MAX_NUMBER}"
        )

    @property
    def codes(self) -> tuple[int, int]:
        """For jitted code: drop the lock at every n-th attempt (0 as recorded, -1 never); seed or -1."""
        if self.kind is ReschedKind.NEVER:
            return -1, -1
        return (
            self.number if self.kind is ReschedKind.EVERY else 0,
            self.number if self.kind is ReschedKind.SEED else -1,
        )


class Nested(StrEnum):
    """Whether kvm.tdp_mmu is on, so that shadow pages are those of nested guests."""

    AUTO = "auto"
    YES = "yes"
    NO = "no"

    @staticmethod
    def parse(text: str) -> Nested:
        """What ``--nested`` means.  Raises ``UsageError``."""
        if text not in list(Nested):
            raise UsageError(f"--nested {text}: use auto, yes or no")
        return Nested(text)


@dataclass(frozen=True)
class Options:
    """How to replay."""

    split_at: SplitAt = SplitAt()
    resched: Resched = Resched()
    max_mmu_pages: int | None = None
    nested: Nested = Nested.AUTO
    compare_recorded: bool = True
    rmap_histogram: tuple[str, ...] = ()
    """Moments at which rmaps are counted, see ``Moments``."""
    rmap_columns: str = RMAP_COLUMNS[0]
    census: bool = False
    kernel: KernelVersion | None = None
    """The kernel that recorded, where the trace does not name it."""

    def with_given(
        self,
        *,
        kernel: str | None = None,
        split_at: str | None = None,
        nested: str | None = None,
        rmap_columns: str | None = None,
        resched: str | None = None,
        max_mmu_pages: int | None = None,
    ) -> Options:
        """These options with those of a command line or a golden file; None leaves one as it is.

        Raises ``UsageError`` where one has a value that means nothing.
        """
        return replace(
            self,
            kernel=self.kernel if kernel is None else asked_kernel(kernel),
            split_at=self.split_at if split_at is None else SplitAt.parse(split_at),
            nested=self.nested if nested is None else Nested.parse(nested),
            rmap_columns=self.rmap_columns if rmap_columns is None else _rmap_columns(rmap_columns),
            resched=self.resched if resched is None else Resched.parse(resched),
            max_mmu_pages=self.max_mmu_pages if max_mmu_pages is None else _mmu_pages(max_mmu_pages),
        )


def nanoseconds(text: str) -> int | None:
    """The time that a number of seconds names, None where no clock of a trace can show it."""
    try:
        seconds = float(text)
    except ValueError:
        return None
    return round(seconds * 1e9) if 0 <= seconds <= MAX_SECONDS else None


def _rmap_columns(text: str) -> str:
    if text not in RMAP_COLUMNS:
        raise UsageError(f"--rmap-columns {text}: use auto, fls or ffs")
    return text


def _mmu_pages(pages: int) -> int:
    if not 1 <= pages <= MAX_MMU_PAGES:
        raise UsageError(f"--max-mmu-pages {shown(pages)}: use 1 to {MAX_MMU_PAGES}")
    return pages
