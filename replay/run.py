"""One run of one trace: read it, choose the policy, replay, compare.  All commands are built on this."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from replay.errors import UsageError
from replay.policy import Policy
from replay.text_files import decimal_number, shown

if TYPE_CHECKING:
    import pyarrow as pa

    from replay.kernel import Choice
    from replay.mmu.engine import Options, Replay
    from replay.mmu.evidence.facts import TraceFacts
    from replay.trace.trace import Trace
    from replay.verdict.compare import Comparison
    from replay.verdict.golden import Golden

MAX_RESCHED = 2**63 - 1
MAX_MMU_PAGES = 2**32 - 1
"""More than 16 TiB of page tables; the kernel's ioctl takes 32 bits."""
SPLIT_AT_WORDS = ("auto", "recorded", "control", "end", "never")
Progress = Callable[[int, int | None], None]
"""Called with the number of bytes read so far, and the size of the trace, None if it is not known."""


@dataclass(frozen=True)
class Request:
    """What to run a trace with.  None means: as the golden file says, otherwise the default."""

    policy: str | Policy | None = None
    """A policy, ``auto``, or a text for ``Policy.parse``."""
    kernel: str | None = None
    """The recorded kernel: a release, a banner, or ``host``."""
    settings: tuple[str, ...] = ()
    """``KNOB=VALUE`` applied on top of the policy."""
    split_at: str | None = None
    resched: str | None = None
    max_mmu_pages: int | None = None
    nested: str | None = None
    """Whether the shadow MMU's pages belong to nested guests with tdp_mmu=Y: auto, yes or no."""
    expect: str | None = None
    """``recorded``, ``none``, or the path of a golden file; None means the one beside the trace."""
    strict: bool = False
    allow_lost: bool = False
    rmap_histogram: tuple[str, ...] = ()
    """Moments: ``end``, seconds, or words of marker lines."""
    rmap_columns: str = "auto"
    census: bool = False
    """Keep the facts that ``replay review`` needs."""
    file_format: str | None = None
    """The format of the input, a word of ``replay.trace.formats.FORMATS``; None detects it."""


@dataclass(frozen=True)
class Run:
    """A finished run."""

    trace: Trace
    policy: Policy
    policy_reason: str
    options: Options
    replay: Replay
    comparison: Comparison
    notes: tuple[str, ...] = ()
    """What a reader has to know about the figures."""
    alternative: str | None = None
    """Another policy that fits the trace equally well, if nothing identifies the kernel."""

    @cached_property
    def document(self) -> dict[str, Any]:
        """The ``replay.run/1`` document."""
        from replay.verdict.document import run_document

        return run_document(self)

    @cached_property
    def golden(self) -> Golden:
        """The golden file that expects exactly this run."""
        from replay.verdict.golden import golden_of

        return golden_of(self.policy, self.options, self.replay)

    def tables(self) -> dict[str, pa.Table]:
        """The result tables by name."""
        return {name: getattr(self.replay, name) for name in ("outcomes", "flushes", "windows")}


def run_trace(trace: str | Trace, request: Request, progress: Progress | None = None) -> Run:
    """Run one trace, given as a path (``-`` for standard input) or already read.

    Raises ``ReplayError`` for every error that a user can cause.
    """
    check_options(request)
    golden = _golden(trace if isinstance(trace, str) else trace.path, request)
    policy, choice = _chosen_policy(request, golden)

    from replay.mmu.engine import compile_in_other_process, replay_trace, trace_facts
    from replay.verdict.compare import compare_golden, compare_recorded, unchecked
    from replay.verdict.doubt import doubtful_from, doubts_of
    from replay.verdict.golden import golden_of

    if isinstance(trace, str):
        compile_in_other_process()  # while the parser is compiled here
        trace = _read(trace, request, progress)
    facts = None
    is_asked_for = policy is not None
    if policy is None:
        policy, choice, facts = _policy_of_trace(trace, request)
    policy = policy.with_settings(request.settings)
    options = _options(request, golden)
    check_split_time(options.split_at, trace)
    facts = facts or trace_facts(trace)
    doubts = doubts_of(trace, facts, request.allow_lost, is_asked_for and not policy.nested_only)
    replay = replay_trace(trace, policy, options, facts, doubtful_from(doubts, facts.vms))
    if request.expect == "none":
        comparison = unchecked()
    elif golden is None:
        comparison = compare_recorded(replay, doubts)
    else:
        # malformed lines are the same in every run of this text
        lost = [doubt.text for doubt in doubts if doubt.reason == "lost_events"]
        comparison = compare_golden(golden, golden_of(policy, options, replay), lost)
    notes = tuple(_notes(trace, policy, options, replay))
    return Run(trace, policy, choice.reason, options, replay, comparison, notes, choice.alternative)


def run_alternative(finished: Run, request: Request) -> Run | None:
    """The same run under the other policy if nothing identifies the kernel; None if they cannot differ.

    They cannot differ if the shadow MMU has no huge SPTE: both treat the TDP MMU in the same way.
    """
    counters = finished.replay.counters
    met = [count for name, count in counters.items() if name == "attempts" or name.startswith("skipped_")]
    if finished.alternative is None or not any(met):
        return None
    from replay.kernel import KERNEL_KNOBS

    knobs = {name: finished.policy.knobs()[name] for name in KERNEL_KNOBS}
    policy = Policy.parse(finished.alternative, knobs)
    return run_trace(finished.trace, replace(request, policy=policy, rmap_histogram=()))


def _notes(trace: Trace, policy: Policy, options: Options, replay: Replay) -> Iterator[str]:
    """Figures that look like results, and why they are not."""
    if not trace.kvmmmu_events:
        yield "there is no event of the system kvmmmu: nothing was replayed"
    shown, why = replay.tdp_mmu_shown
    has_pages = replay.counters["shadow_pages_used_peak"] != 0
    if policy.enabled and policy.nested_only and options.nested == "auto" and shown is None and has_pages:
        yield (
            f"the trace does not show whether kvm.tdp_mmu is on ({why}): assumed to be off, so {policy.name} "
            "splits no shadow page; use --nested yes or --nested no"
        )


def run_policies(
    trace: str | Trace, policies: Sequence[str | Policy], request: Request, progress: Progress | None = None
) -> list[Run]:
    """Run one trace once with each policy, and compare each with what the trace recorded.

    Raises ``ReplayError`` for every error that a user can cause.
    """
    requests = [replace(request, policy=policy, expect="recorded") for policy in policies]
    for each in requests:  # report a wrong name before a long read
        check_options(each)
        _chosen_policy(each, None)
    if isinstance(trace, str):
        trace = _read(trace, request, progress)
    return [run_trace(trace, each) for each in requests]


def _read(path: str, request: Request, progress: Progress | None) -> Trace:
    from replay.trace.reader import read_trace

    return read_trace(path, file_format=request.file_format, strict=request.strict, progress=progress)


def _golden(path: str, request: Request) -> Golden | None:
    from replay.verdict.golden import golden_path, has_golden, read_golden

    if request.expect in ("recorded", "none"):
        return None
    if request.expect is None and request.kernel is not None:
        return None  # it was made with the policy of another kernel
    if request.expect is not None:
        return read_golden(request.expect)
    return read_golden(golden_path(path), is_named=False) if path != "-" and has_golden(path) else None


def _chosen_policy(request: Request, golden: Golden | None) -> tuple[Policy | None, Choice]:
    """The policy and why; None if the trace itself has to decide."""
    from replay.kernel import Choice
    from replay.verdict.golden import policy_of

    if isinstance(request.policy, Policy):
        return request.policy, Choice(request.policy.name, "as asked for")
    if request.policy is not None and request.policy != "auto":
        policy = named_policy(request.policy, request)
        return policy, Choice(policy.name, "as asked for")
    if golden is not None and request.kernel is None:
        policy = policy_of(golden)
        return policy, Choice(policy.name, "the golden file was made with it")
    return None, Choice("", "")


def named_policy(text: str, request: Request) -> Policy:
    """The policy that ``text`` names, with the knobs that the version of the kernel of ``request`` decides.

    Raises as ``Policy.parse`` does.
    """
    from replay.kernel import asked_kernel

    kernel = asked_kernel(request.kernel)
    return Policy.parse(text, kernel.knobs if kernel else None)


def _policy_of_trace(trace: Trace, request: Request) -> tuple[Policy, Choice, TraceFacts]:
    """The policy that the trace supports by its outcomes and its kernel, and why."""
    from replay.kernel import asked_kernel, choose_policy, parse_kernel_version
    from replay.mmu.engine import trace_facts

    facts = trace_facts(trace)
    asked = asked_kernel(request.kernel)
    kernel = asked or parse_kernel_version(trace.kernel)
    choice = choose_policy(kernel, *facts.policy_evidence, asked=asked is not None)
    knobs = (kernel.knobs if kernel else {}) | facts.kernel_knobs
    return Policy.parse(choice.policy).with_knobs(knobs, "the trace"), choice, facts


def _options(request: Request, golden: Golden | None) -> Options:
    from replay.kernel import asked_kernel
    from replay.mmu.engine import Options
    from replay.verdict.golden import OPTION_NAMES

    chosen: dict[str, Any] = {} if golden is None else dict(golden.options)
    for name in OPTION_NAMES:
        if getattr(request, name) is not None:
            chosen[name] = getattr(request, name)
    return Options(
        **chosen,
        compare_recorded=request.expect != "none",
        rmap_histogram=request.rmap_histogram,
        rmap_columns=request.rmap_columns,
        census=request.census,
        kernel=asked_kernel(request.kernel),
    )


def check_options(request: Request) -> None:
    """Raises ``UsageError`` if an option has an invalid value."""
    from replay.kernel import asked_kernel
    from replay.mmu.results.moments import is_seconds
    from replay.trace.formats import check_format

    check_format(request.file_format)
    asked_kernel(request.kernel)
    at = request.split_at
    if at is not None and at not in SPLIT_AT_WORDS and not is_seconds(at):
        raise UsageError(f"--split-at {at}: use {', '.join(SPLIT_AT_WORDS)}, or seconds of the trace's clock")
    if request.nested not in (None, "auto", "yes", "no"):
        raise UsageError(f"--nested {request.nested}: use auto, yes or no")
    if request.rmap_columns not in ("auto", "fls", "ffs"):
        raise UsageError(f"--rmap-columns {request.rmap_columns}: use auto, fls or ffs")
    if request.resched not in (None, "recorded", "never"):
        word, _, count = request.resched.partition("=")
        number = decimal_number(count)
        known = word in ("every", "seed") and number is not None and number <= MAX_RESCHED
        if not known or (word == "every" and number == 0):
            raise UsageError(
                f"--resched {shown(request.resched)}: use recorded, never, every=N or seed=S, "
                f"numbers up to {MAX_RESCHED}"
            )
    pages = request.max_mmu_pages
    if pages is not None and not 1 <= pages <= MAX_MMU_PAGES:
        raise UsageError(f"--max-mmu-pages {shown(pages)}: use 1 to {MAX_MMU_PAGES}")


def check_split_time(split_at: str, trace: Trace) -> None:
    """Raises ``UsageError`` if ``trace`` ends before the time ``split_at``."""
    if split_at in SPLIT_AT_WORDS:
        return
    last = trace.last_ts_ns
    if last is None or float(split_at) * 1e9 > last:
        end = "has no times" if last is None else f"ends at {last / 1e9:.6f}"
        raise UsageError(f"--split-at {split_at}: the trace {end}; use 'end' to split at its end")


def write_run(directory: str | os.PathLike[str], run: Run) -> Path:
    """Write the result tables and ``run.json``, each completely or not at all.  Raises ``OutputError``."""
    import json

    import pyarrow.parquet as pq

    from replay.output import make_directory, replacing, write_text

    made = make_directory(directory)
    for name, table in run.tables().items():
        with replacing(made / f"{name}.parquet", is_named=False) as temporary:
            pq.write_table(table, temporary, compression="zstd")
    write_text(made / "run.json", json.dumps(run.document, indent=1) + "\n", is_named=False)
    return made
