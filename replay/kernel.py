"""Kernel versions: what a trace may tell of the kernel that recorded it, and the policy of each version.

Sources: eager page splitting of the TDP MMU came with 5.18 (cb00a70bd4b7), that of shadow pages of
nested guests with 6.0 (ada51a9de737); a new pte_list_desc is the head of its list since 6.4
(141705b78381); KVM_CLEAR_DIRTY_LOG passes an exclusive end since 6.8; the 2026 security fix
(0cb2af2ea66a) makes every link flush, which recordings show of 6.1.176, 6.1.192 and 6.12.107.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_VERSION = re.compile(r"v?(\d{1,2})\.(\d{1,4})(?:\.(\d{1,4}))?(?![\d.])")
_ABI_NAME = re.compile(r"v?\d+\.\d+\.0-\d+-[a-z]")
"""Debian up to 12 and Ubuntu: 6.1.0-56-amd64 is some 6.1."""
_DEBIAN_PACKAGE = re.compile(r"(?:#\d.*|^\S+) Debian (\d+\.\d+\.\d+)")
"""Behind the build number of a banner, whose beginning names a Debian compiler, or behind the release."""
_BACKPORTED_KVM = re.compile(r"\.el\d")
"""Kernels of Red Hat have the KVM of a later version than their name says."""
_FIRST_KVM = (2, 6)
_FIXED_2026 = {(6, 1): 176, (6, 12): 107}
"""Stable series that have the fix of 2026: the first release that was seen to have it."""


@dataclass(frozen=True)
class KernelVersion:
    """``major.minor.patch``; ``patch`` is None where a distribution's name does not tell it."""

    major: int
    minor: int
    patch: int | None

    def __str__(self) -> str:
        patch = "x" if self.patch is None else self.patch
        return f"{self.major}.{self.minor}.{patch}"

    @property
    def series(self) -> tuple[int, int]:
        return self.major, self.minor

    @property
    def policy(self) -> tuple[str, str]:
        """The policy of this kernel as released, and why."""
        if self.series < (5, 18):
            return "off", "eager page splitting came with 5.18"
        if self.series < (6, 0):
            return "linux-6.0", "it splits in the TDP MMU alone, which linux-6.0 does alike"
        first = _FIXED_2026.get(self.series)
        if first is None:
            return "linux-6.0", "merged code, 6.0 onward"
        if self.patch is None:
            return "linux-6.0", "merged code, if it is older than the security fix of 2026"
        if self.patch < first:
            return "linux-6.0", "merged code before the security fix of 2026"
        return "linux-2026", "merged code with the security fix of 2026"

    @property
    def knobs(self) -> dict[str, str]:
        """Knobs that its age decides, whatever its policy."""
        return {
            "rmap_order": "head" if self.series >= (6, 4) else "append",
            "clear_end": "exclusive" if self.series >= (6, 8) else "inclusive",
        }


def choose_policy(kernel: KernelVersion | None, evidence: tuple[str, ...], shown: str) -> tuple[str, str]:
    """The policy of ``--policy auto``, and why: that of the outcomes, else the kernel's, else ``v2``.

    ``evidence`` are the policies that outcomes speak for, the likeliest first, and ``shown`` says why.
    """
    if kernel is None:
        return (evidence[0] if evidence else "v2"), shown
    released, reason = kernel.policy
    if not evidence:
        return released, f"recorded by Linux {kernel}: {reason}"
    if released in evidence:
        return released, f"recorded by Linux {kernel}: {reason}; {shown}"
    return evidence[0], f"{shown}; recorded by Linux {kernel}, which is {released} as released"


def parse_kernel_version(text: str | None) -> KernelVersion | None:
    """The version in a release (``uname -r``) or in a banner, ``Linux version ...``; None if it tells none.

    A banner of Debian names the package's version behind that of the release, which then counts.
    """
    if not text or _BACKPORTED_KVM.search(text):
        return None
    package = _DEBIAN_PACKAGE.search(text)
    release = text.strip().removeprefix("Linux version ")
    version = _VERSION.match(package[1] if package else release)
    if version is None or (int(version[1]), int(version[2])) < _FIRST_KVM:
        return None
    named_by_abi = package is None and _ABI_NAME.match(release)
    patch = None if named_by_abi else int(version[3] or 0)
    return KernelVersion(int(version[1]), int(version[2]), patch)
