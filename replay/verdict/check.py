"""What came of checking one trace against its golden file."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from replay.errors import ReplayError
    from replay.verdict.compare import Difference


@dataclass(frozen=True)
class Check:
    """The result for one trace."""

    trace: Path
    status: str
    """``passed``, ``failed``, ``updated``, ``error`` or ``no_golden``."""
    seconds: float = 0.0
    attempts: int | None = None
    policy: str = ""
    lost_events: int = 0
    reasons: list[str] = field(default_factory=list)
    differences: list[Difference] = field(default_factory=list)
    error: ReplayError | None = None
