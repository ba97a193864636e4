"""Policies: which kernel's eager page splitting is simulated, as data.

A policy is a set of knobs, each with one meaning, so that a question of a review can be asked by
changing one of them.  This is the only place where kernel versions differ.

Sources: the v2 series "Extend Eager Page Splitting to the shadow MMU", patches 20, 23, 24 and 25
of 26; the merged code of Linux 6.0 (ada51a9de737, 0378739401cf, b9b71f43683a); its 2026 security
fix (0cb2af2ea66a, in 6.1.176, 6.1.192 and 6.12.107).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import IntEnum
from pathlib import Path
from typing import Any, NamedTuple

from replay.errors import InputError, UsageError
from replay.text_files import TextFileError, decimal_number, parse_toml, read_text_file, shown

MAX_POLICY_BYTES = 1 << 20
"""Limit for a policy file: a knob takes fifty bytes."""


class Unsync(IntEnum):
    """What happens to a huge SPTE in an unsync shadow page."""

    SKIP = 0
    SPLIT = 1


class ExistingChild(IntEnum):
    """What happens if the lower table of a split already exists, with the same gfn and role."""

    SKIP = 0  # -EOPNOTSUPP, the SPTE stays huge
    REUSE = 1  # link the existing table, fill its non-present SPTEs


class OccupiedRmap(IntEnum):
    """What happens if the rmap of a child gfn already has an entry, so that adding one needs memory."""

    LEAVE_NONPRESENT = 0  # the child SPTE stays non-present
    GROW = 1  # take a pte_list_desc


class Flush(IntEnum):
    """When a successful split flushes TLBs."""

    DEFERRED_IF_PARTIAL = 0  # pending if a child was left non-present, until a lock drop, yield or window end
    ON_LINK_ALWAYS = 1  # immediately, on every split
    ON_LINK_IF_NONLEAF = 2  # immediately, if the child had a present non-leaf SPTE


class SplitCaches(IntEnum):
    """Memory of a split."""

    NONE = 0  # one shadow page allocated per attempt, under the lock with GFP_NOWAIT
    MERGED = 1  # header, page and descriptor caches, refilled with the lock dropped


class ClearEnd(IntEnum):
    """The ``end`` that KVM_CLEAR_DIRTY_LOG passes to the split of one 64-page mask."""

    INCLUSIVE = 0  # last gfn of the mask, taken as exclusive (before 6.8)
    EXCLUSIVE = 1  # one past it


class RmapOrder(IntEnum):
    """Where a new pte_list_desc goes in an rmap chain."""

    APPEND = 0  # at the tail (up to 6.3)
    HEAD = 1  # at the head (6.4 onward)


class SparePage(IntEnum):
    """An allocated shadow page that was not used when the next attempt allocates one."""

    LEAK = 0  # overwritten and lost
    KEEP = 1  # used by the next attempt


class AllocFailure(IntEnum):
    """A GFP_NOWAIT allocation under the lock fails."""

    UNCHECKED = 0  # not noticed: the kernel continues with a NULL page
    DROP_LOCK = 1  # allocate again with the lock dropped


class Pml(IntEnum):
    """Whether the CPU logs writes of the guest (page modification logging of Intel, EPT only)."""

    AUTO = 0  # as the trace shows: by its probes, otherwise by the SPTEs of nested MMUs
    OFF = 1  # dirty logging write-protects 4K SPTEs
    ON = 2  # it clears their D bit instead, and write-protects those of nested MMUs only


class FaultSplit(IntEnum):
    """What a write fault does with a huge page of the TDP MMU while dirty logging is on."""

    AUTO = 0  # as the kernel's version or a recorded fault shows, otherwise as SPLIT
    ZAP = 1  # before 6.2: it maps one 4K page, and all others fault later
    SPLIT = 2  # since 6.2: it maps them all


class KnobCodes(NamedTuple):
    """A policy as plain integers, for jitted code: enum values, 0 or 1, and sizes in objects.

    The names are those of ``Policy``, in the same order.
    """

    enabled: int
    min_free_pages: int
    unsync: int
    existing_child: int
    occupied_rmap: int
    flush: int
    nested_only: int
    split_caches: int
    desc_min: int
    desc_capacity: int
    page_capacity: int
    clear_end: int
    rmap_order: int
    spare_page: int
    lock_drop_traced: int
    alloc_failure: int
    pml: int
    fault_split: int


@dataclass(frozen=True)
class Policy:
    """The knobs of eager page splitting; the defaults are those of ``v2``, the patch as posted."""

    name: str = "v2"
    enabled: bool = True
    """Module parameter eager_page_split."""
    min_free_pages: int = 5
    """An attempt fails with -ENOSPC when no more than this many shadow pages are available."""
    unsync: Unsync = Unsync.SKIP
    existing_child: ExistingChild = ExistingChild.SKIP
    occupied_rmap: OccupiedRmap = OccupiedRmap.LEAVE_NONPRESENT
    flush: Flush = Flush.DEFERRED_IF_PARTIAL
    nested_only: bool = False
    """Only shadow pages of nested MMUs are split, and only with tdp_mmu=Y."""
    split_caches: SplitCaches = SplitCaches.NONE
    desc_min: int = 513
    """Descriptors that must be cached before a split, if split_caches=merged."""
    desc_capacity: int = 553
    """Descriptors that a refill fills up to."""
    page_capacity: int = 40
    """Shadow page headers, and pages, that a refill fills up to."""
    clear_end: ClearEnd = ClearEnd.INCLUSIVE
    rmap_order: RmapOrder = RmapOrder.APPEND
    spare_page: SparePage = SparePage.LEAK
    lock_drop_traced: bool = False
    """A lock drop leaves a split line with -EAGAIN."""
    alloc_failure: AllocFailure = AllocFailure.UNCHECKED
    pml: Pml = Pml.AUTO
    fault_split: FaultSplit = FaultSplit.AUTO

    def codes(self) -> KnobCodes:
        """The knobs as plain integers."""
        return KnobCodes(*(int(getattr(self, name)) for name in KnobCodes._fields))

    def knobs(self) -> dict[str, str | int | bool]:
        """The knobs as words, numbers and booleans, in the order of their declaration."""
        return {name: _plain(getattr(self, name)) for name in KnobCodes._fields}

    def with_knobs(self, knobs: Mapping[str, object], where: str) -> Policy:
        """This policy with some knobs changed; ``where`` names their source in error messages.

        Values are words, numbers or booleans, or text that spells one.  Raises ``UsageError``.
        """
        values: dict[str, Any] = {name: _knob_value(name, value, where) for name, value in knobs.items()}
        changed = replace(self, **values)
        if changed.desc_capacity < changed.desc_min or changed.page_capacity < 1:
            raise UsageError(
                f"{where}: the caches never fill: use desc_capacity >= desc_min, page_capacity >= 1"
            )
        return changed

    @staticmethod
    def parse(text: str, preset_knobs: Mapping[str, object] | None = None) -> Policy:
        """A policy from ``NAME``, ``NAME:knob=value[,knob=value]`` or the path of a ``.toml`` file.

        ``preset_knobs`` change the preset that it names or is based on; knobs in the text take precedence.
        Raises ``UsageError``, or ``InputError`` for a file that cannot be read.
        """
        name, _, settings = text.partition(":")
        if name.endswith(".toml"):
            policy = _read_toml(Path(name), preset_knobs or {})
        elif name in PRESETS:
            policy = PRESETS[name].with_knobs(preset_knobs, name) if preset_knobs else PRESETS[name]
        else:
            known = ", ".join(PRESETS)
            raise UsageError(f"unknown policy {name!r}: use auto, {known}, or a .toml file")
        if ":" not in text:
            return policy
        changed = policy.with_knobs(dict(map(_setting, settings.split(","))), f"policy {text!r}")
        return replace(changed, name=text)

    def with_settings(self, settings: Iterable[str]) -> Policy:
        """This policy with ``KNOB=VALUE`` settings applied in order; they become part of its name."""
        settings = list(settings)
        if not settings:
            return self
        joint = "," if ":" in self.name else ":"
        changed = self.with_knobs(dict(map(_setting, settings)), "--set")
        return replace(changed, name=f"{self.name}{joint}{','.join(settings)}")


def allowed_values(knob: str) -> tuple[str, ...]:
    """The words that a knob accepts; empty if it takes a number."""
    default = getattr(PRESETS["v2"], knob)
    if isinstance(default, bool):
        return ("false", "true")
    if isinstance(default, IntEnum):
        return tuple(member.name.lower() for member in type(default))
    return ()


def _plain(value: bool | int | IntEnum) -> str | int | bool:
    return value.name.lower() if isinstance(value, IntEnum) else value


def _setting(text: str) -> tuple[str, str]:
    knob, equals, value = text.partition("=")
    if not equals:
        raise UsageError(f"{text!r} is not of the form KNOB=VALUE")
    return knob.strip(), value.strip()


def _knob_value(knob: str, value: object, where: str) -> bool | int | IntEnum:
    if knob in RETIRED_KNOBS:
        raise UsageError(f"{where}: knob {knob!r} is gone, it never had an effect: leave it out")
    if knob not in KnobCodes._fields:
        raise UsageError(f"{where}: unknown knob {knob!r}: use one of {', '.join(KnobCodes._fields)}")
    default = getattr(PRESETS["v2"], knob)
    word = shown(value).lower()
    words = allowed_values(knob)
    if words:
        if word not in words:
            raise UsageError(f"{where}: {knob}={shown(value)}: use {' or '.join(words)}")
        return word == "true" if isinstance(default, bool) else type(default)[word.upper()]
    number = decimal_number(word)
    if isinstance(value, bool) or number is None or number > 1 << 31:
        raise UsageError(f"{where}: {knob}={shown(value)}: use a number, 0 to {1 << 31}")
    return number


def _read_toml(path: Path, preset_knobs: Mapping[str, object]) -> Policy:
    """A policy file: knobs, or a table ``[knobs]``; ``base``, a preset (default v2); ``name``."""
    try:
        content = parse_toml(read_text_file(path, MAX_POLICY_BYTES))
    except TextFileError as error:
        raise InputError(path, 0, f"not a policy file: {error}") from error
    except ValueError as error:
        raise InputError(path, 0, f"not a TOML file: {error}") from error
    base = content.pop("base", "v2")
    name = content.pop("name", path.stem)
    knobs: Any = content.pop("knobs", {})
    if not isinstance(base, str) or base not in PRESETS:
        raise InputError(path, 0, f"unknown base {shown(repr(base))}: use one of {', '.join(PRESETS)}")
    if not isinstance(name, str) or not isinstance(knobs, dict):
        raise InputError(path, 0, "name must be text, and knobs a table")
    return replace(PRESETS[base].with_knobs({**preset_knobs, **content, **knobs}, str(path)), name=name)


_V2 = Policy()
_V2_DESC = replace(
    _V2,
    name="v2-desc",
    occupied_rmap=OccupiedRmap.GROW,
    spare_page=SparePage.KEEP,
    alloc_failure=AllocFailure.DROP_LOCK,
)
_LINUX_6_0 = Policy(
    name="linux-6.0",
    existing_child=ExistingChild.REUSE,
    occupied_rmap=OccupiedRmap.GROW,
    flush=Flush.ON_LINK_IF_NONLEAF,
    nested_only=True,
    split_caches=SplitCaches.MERGED,
    spare_page=SparePage.KEEP,
    lock_drop_traced=True,
    alloc_failure=AllocFailure.DROP_LOCK,
)

PRESETS: dict[str, Policy] = {
    policy.name: policy
    for policy in (
        _V2,
        _V2_DESC,
        replace(
            _V2_DESC,
            name="v2-alias",
            existing_child=ExistingChild.REUSE,
            flush=Flush.ON_LINK_IF_NONLEAF,
        ),
        _LINUX_6_0,
        replace(_LINUX_6_0, name="linux-2026", flush=Flush.ON_LINK_ALWAYS),
        replace(_V2, name="off", enabled=False),
    )
}

LATER_KNOBS: dict[str, str | int | bool] = {"pml": "auto", "fault_split": "auto"}
"""What a golden file means that is older than the knobs."""
RETIRED_KNOBS = ("on_error", "tdp_order")
"""Knobs that no code ever read: an older golden file may have them, and means nothing by them."""

DESCRIPTIONS: dict[str, str] = {
    "v2": "patch 20 of the v2 series, exactly as posted",
    "v2-desc": "v2 with patch 23: child rmaps may grow, every split is full",
    "v2-alias": "v2 with patches 23 to 25: an existing child is reused",
    "linux-6.0": "merged code, from 6.0: nested MMUs only, caches, -EAGAIN",
    "linux-2026": "merged code with the security fix of 2026: every split flushes",
    "off": "eager_page_split=N: nothing is split in advance",
}


def policies_document() -> dict[str, Any]:
    """The document ``replay.policies/1``: every preset, what it models, and its knobs."""
    listed = [
        {"name": name, "models": DESCRIPTIONS[name], "knobs": policy.knobs()}
        for name, policy in PRESETS.items()
    ]
    return {"schema": "replay.policies/1", "policies": listed}
