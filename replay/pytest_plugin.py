"""A plugin of pytest: ``pytest --replay-traces DIR`` checks each trace below DIR against its golden file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from replay.verdict.check import Check


class CheckFailed(Exception):
    """A trace that is not as its golden file expects."""

    def __init__(self, check: Check) -> None:
        self.check = check
        super().__init__(check)


class TraceItem(pytest.Item):
    """The test of one trace."""

    def __init__(self, *, trace: Path, **options: Any) -> None:
        super().__init__(**options)
        self.trace = trace

    def runtest(self) -> None:
        """Fail if the run differs, skip if there is no golden file."""
        from replay.verdict.check import check_trace
        from replay.verdict.golden import has_golden

        if not has_golden(self.trace):
            pytest.skip("no golden file")
        check = check_trace(self.trace)
        if check.status != "passed":
            raise CheckFailed(check)

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        """What ``replay check`` prints, in place of a traceback."""
        from replay.errors import ReplayError
        from replay.report.check import check_text

        if isinstance(excinfo.value, CheckFailed):
            return check_text(excinfo.value.check)
        if isinstance(excinfo.value, ReplayError):
            return f"ERROR {excinfo.value}"
        return super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[Path, None, str]:
        """The trace."""
        return self.trace, None, self.name


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds ``--replay-traces``."""
    parser.getgroup("replay").addoption(
        "--replay-traces",
        metavar="DIR",
        action="append",
        default=[],
        help="check the traces below DIR against their golden files; repeatable",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(
    session: pytest.Session, config: pytest.Config, items: list[pytest.Item]
) -> None:
    """Adds one test a trace."""
    directories = [Path(directory) for directory in config.getoption("replay_traces")]
    if not directories:
        return
    from replay.errors import InputError
    from replay.verdict.check import find_traces, without_golden

    try:
        traces = [*find_traces(directories), *without_golden(directories)]
    except InputError as error:
        raise pytest.UsageError(f"--replay-traces {error}") from error
    items += [TraceItem.from_parent(session, name=str(trace), trace=trace) for trace in traces]
