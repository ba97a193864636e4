"""What a replay counts: the keys of ``totals`` and ``divergences``, in lower case."""

from __future__ import annotations

from enum import IntEnum, auto


class Counter(IntEnum):
    """Numbers of ``Mmu.counter``; from ``ADOPTED_PAGES`` on they are divergences."""

    @staticmethod
    def _generate_next_value_(name: str, start: int, count: int, last_values: list[int]) -> int:
        return count

    ATTEMPTS_2M = auto()
    ATTEMPTS_1G = auto()
    SPLIT_2M = auto()
    SPLIT_1G = auto()
    PARTIAL = auto()
    RETRIES = auto()
    RETRIES_CACHE = auto()
    RETRIES_RESCHED = auto()
    SPTES_INSTALLED = auto()
    SPTES_LEFT_NONPRESENT = auto()
    SPTES_REUSED = auto()
    SHADOW_PAGES_CREATED = auto()
    SHADOW_PAGES_REUSED = auto()
    SHADOW_PAGES_LEAKED = auto()
    TDP_ATTEMPTS = auto()
    TDP_SPLIT = auto()
    TDP_FAILED = auto()
    TDP_HUGE_SPTES = auto()
    EXPECTED_ATTEMPTS = auto()
    ENV_LOCK_DROPS = auto()
    ENV_YIELDS = auto()
    ENV_ALLOC_FAILURES = auto()
    FAULTS_AVOIDED = auto()
    FAULTS_WRITE_PROTECTED = auto()
    FAULTS_NONPRESENT = auto()
    FAULTS_LAZY_SPLITS = auto()
    TDP_FAULTS_AVOIDED = auto()
    TDP_FAULTS_WRITE_PROTECTED = auto()
    TDP_FAULTS_NONPRESENT = auto()
    TDP_FAULTS_LAZY_SPLITS = auto()
    ADOPTED_PAGES = auto()
    ADOPTED_TDP_TABLES = auto()
    PAGES_SPLIT_ALREADY = auto()
    PAGES_NOT_SPLIT = auto()
    UNKNOWN_ZAPS = auto()
    UNKNOWN_PAGES_EXISTING = auto()
    ALREADY_LIVE_PAGES_NEW = auto()
    USED_PAGES_DIFFER = auto()
    UNCOUNTED_PAGES = auto()
    VARIANT_MOVES = auto()
    PFN_CHANGES = auto()
    UNPLACED_SPTES = auto()
    FAULT_TIME_TDP_SPLITS = auto()
    SPLITS_OUTSIDE_WINDOWS = auto()
    WINDOWS_CUT_SHORT = auto()
    SWAPPED_TDP_CHANGES = auto()


FIRST_DIVERGENCE = Counter.ADOPTED_PAGES
