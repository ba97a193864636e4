"""Kernel versions: what a trace or a user says about the recorded kernel, and the policy of each version.

Sources: eager page splitting of the TDP MMU came with 5.18 (cb00a70bd4b7), that of shadow pages of
nested guests with 6.0 (ada51a9de737); a new pte_list_desc becomes the head of its list since 6.4
(141705b78381); KVM_CLEAR_DIRTY_LOG passes an exclusive end since 6.8; the 2026 security fix
(0cb2af2ea66a) makes every link flush; recordings show which releases have it (``_RECORDED``).
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import NamedTuple

from replay.errors import UsageError
from replay.text_files import shown as printed

_VERSION = re.compile(r"v?(\d{1,2})\.(\d{1,4})(?:\.(\d{1,4}))?(?![\d.])")
_ABI_NAME = re.compile(r"v?\d+\.\d+\.0-\d+-[a-z]")
"""Debian up to 12 and Ubuntu: 6.1.0-56-amd64 is any 6.1.y."""
_DEBIAN_PACKAGE = re.compile(r"(?:#\d.*|^\S+) Debian (\d+\.\d+\.\d+)")
"""After the build number of a banner (its beginning names a Debian compiler), or after the release."""
_BACKPORTED_KVM = re.compile(r"\.el\d")
"""Red Hat's kernels contain the KVM of a later version than their name says."""
_FIRST_KVM = (2, 6)
_RECORDED: dict[tuple[int, int], tuple[int | None, int | None]] = {
    (6, 1): (None, 176),
    (6, 12): (43, 107),
    (6, 16): (12, None),
    (6, 18): (15, None),
    (7, 2): (13, None),
    (7, 3): (4, None),
}
"""By series: the last release recorded without the fix of 2026, and the first one recorded with it."""
KERNEL_KNOBS = ("rmap_order", "clear_end")
"""Knobs that the version of the recorded kernel decides, whatever its policy."""
HOST = "host"
MERGED = "linux-6.0"
POSTED = "v2"


@dataclass(frozen=True)
class KernelVersion:
    """``major.minor.patch``; ``patch`` is None if a distribution's name does not contain it."""

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
            return MERGED, "it splits only in the TDP MMU, as linux-6.0 does"
        series = ".".join(map(str, self.series))
        if self.series not in _RECORDED:
            return MERGED, f"merged code, from 6.0; no recording shows whether {series} has the fix of 2026"
        without, fixed = _RECORDED[self.series]
        if self.patch is None:
            return MERGED, "merged code, if it is older than the security fix of 2026"
        if fixed is not None and self.patch >= fixed:
            return "linux-2026", "merged code with the security fix of 2026"
        if without is not None and self.patch <= without:
            return MERGED, "merged code without the security fix of 2026"
        seen = [f"{series}.{without} was recorded without it"] if without is not None else []
        seen += [f"{series}.{fixed} with it"] if fixed is not None else []
        return MERGED, f"merged code, if it is older than the security fix of 2026: {', '.join(seen)}"

    @property
    def knobs(self) -> dict[str, str]:
        """Knobs that its version decides, whatever its policy."""
        return {
            "rmap_order": "head" if self.series >= (6, 4) else "append",
            "clear_end": "exclusive" if self.series >= (6, 8) else "inclusive",
        }


class Choice(NamedTuple):
    """The policy that ``--policy auto`` chooses, and why; ``alternative``: another that fits equally well."""

    policy: str
    reason: str
    alternative: str | None = None


def choose_policy(
    kernel: KernelVersion | None, evidence: tuple[str, ...], shown: str, asked: bool = False
) -> Choice:
    """The policy that ``--policy auto`` chooses: by the outcomes, otherwise by the kernel's version.

    ``evidence`` are the policies that the outcomes support, the likeliest first, and ``shown`` says why.
    ``asked``: the version is given by the user, not by the trace.  With neither version nor evidence,
    nothing decides between the patch as posted and the merged code.
    """
    if kernel is None and not evidence:
        return Choice(
            POSTED,
            f"nothing identifies the kernel ({shown}, and no version); {POSTED} is only the default: "
            f"the patch as posted, which no release contains; {MERGED} is the merged code",
            MERGED,
        )
    if kernel is None:
        return Choice(evidence[0], shown, POSTED if POSTED in evidence[1:] else None)
    source = f"--kernel {kernel}" if asked else f"recorded by Linux {kernel}"
    released, reason = kernel.policy
    if not evidence:
        return Choice(released, f"{source}: {reason}")
    if released in evidence:
        return Choice(released, f"{source}: {reason}; {shown}")
    return Choice(evidence[0], f"{shown}; {source}, which is {released} as released")


def asked_kernel(text: str | None) -> KernelVersion | None:
    """The version that ``--kernel`` names: a release, a banner, or ``host``.  Raises ``UsageError``."""
    if text is None:
        return None
    release = host_release() if text == HOST else text
    kernel = parse_kernel_version(release)
    if kernel is None:
        what = f"{HOST} ({release})" if text == HOST else printed(text)
        raise UsageError(
            f"--kernel {what}: no version of KVM in it: use a release (for example 6.12.117) or host"
        )
    return kernel


def host_release() -> str:
    """The release of this machine's kernel, with the version of the package if Debian names it."""
    host = os.uname()
    return f"{host.release} {host.version}"


def parse_kernel_version(text: str | None) -> KernelVersion | None:
    """The version in a release (``uname -r``) or in a banner, ``Linux version ...``; None if there is none.

    In a Debian banner the version of the package comes after the release, and counts instead of it.
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
