"""One run of one trace: read it, choose the policy, replay, compare.  All commands are built on this."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from replay.options import Nested, Options
from replay.policy import Policy

if TYPE_CHECKING:
    import pyarrow as pa

    from replay.kernel import Choice, KernelVersion
    from replay.mmu.engine import Replay
    from replay.mmu.evidence.facts import TraceFacts
    from replay.trace.trace import Trace
    from replay.verdict.compare import Comparison
    from replay.verdict.golden import Golden

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
        from replay.kernel import Choice
        from replay.verdict.document import run_document

        return run_document(
            trace=self.trace,
            policy=self.policy,
            choice=Choice(self.policy.name, self.policy_reason, self.alternative),
            replay=self.replay,
            comparison=self.comparison,
            notes=self.notes,
        )

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
    return _run(trace, request, parse_options(request), progress)


def _run(trace: str | Trace, request: Request, asked: Options, progress: Progress | None = None) -> Run:
    golden = _golden(trace if isinstance(trace, str) else trace.path, request)
    policy, choice = _chosen_policy(request, asked.kernel, golden)

    from replay.mmu.engine import compile_in_other_process, replay_trace, trace_facts
    from replay.verdict.compare import compare_recorded, unchecked
    from replay.verdict.compare_golden import compare_golden
    from replay.verdict.doubt import doubtful_from, doubts_of
    from replay.verdict.golden import golden_of

    if isinstance(trace, str):
        compile_in_other_process()  # while the parser is compiled here
        trace = _read(trace, request, progress)
    facts = None
    is_asked_for = policy is not None
    if policy is None:
        policy, choice, facts = _policy_of_trace(trace, asked.kernel)
    policy = policy.with_settings(request.settings)
    options = asked if golden is None else _given(Options().with_given(**golden.options), request)
    options.split_at.check_reached(trace.last_ts_ns)
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
    if (
        policy.enabled
        and policy.nested_only
        and options.nested is Nested.AUTO
        and shown is None
        and has_pages
    ):
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
    asked = parse_options(request)
    for each in requests:  # no long read before a wrong name is told
        _chosen_policy(each, asked.kernel, None)
    if isinstance(trace, str):
        trace = _read(trace, request, progress)
    return [_run(trace, each, asked) for each in requests]


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


def _chosen_policy(
    request: Request, kernel: KernelVersion | None, golden: Golden | None
) -> tuple[Policy | None, Choice]:
    """The policy and why, ``kernel`` being that of the request; None where the trace itself has to tell."""
    from replay.kernel import Choice
    from replay.verdict.golden import policy_of

    if isinstance(request.policy, Policy):
        return request.policy, Choice(request.policy.name, "as asked for")
    if request.policy is not None and request.policy != "auto":
        policy = named_policy(request.policy, kernel)
        return policy, Choice(policy.name, "as asked for")
    if golden is not None and kernel is None:
        policy = policy_of(golden)
        return policy, Choice(policy.name, "the golden file was made with it")
    return None, Choice("", "")


def named_policy(text: str, kernel: KernelVersion | None) -> Policy:
    """The policy that ``text`` names, with the knobs that the age of a kernel that was asked for decides.

    Raises as ``Policy.parse`` does.
    """
    return Policy.parse(text, kernel.knobs if kernel else None)


def _policy_of_trace(trace: Trace, asked: KernelVersion | None) -> tuple[Policy, Choice, TraceFacts]:
    """The policy that the trace speaks for, by its outcomes and its kernel or that asked for, and why."""
    from replay.kernel import choose_policy, parse_kernel_version
    from replay.mmu.engine import trace_facts

    facts = trace_facts(trace)
    kernel = asked or parse_kernel_version(trace.kernel)
    choice = choose_policy(kernel, *facts.policy_evidence, asked=asked is not None)
    knobs = (kernel.knobs if kernel else {}) | facts.kernel_knobs
    return Policy.parse(choice.policy).with_knobs(knobs, "the trace"), choice, facts


def parse_options(request: Request) -> Options:
    """The options of a request, those that it leaves open at their defaults.

    Raises ``UsageError`` where one has a value that means nothing.
    """
    from replay.trace.formats import check_format

    check_format(request.file_format)
    return _given(Options(), request)


def _given(options: Options, request: Request) -> Options:
    """``options`` with those of the request."""
    given = options.with_given(
        kernel=request.kernel,
        split_at=request.split_at,
        nested=request.nested,
        rmap_columns=request.rmap_columns,
        resched=request.resched,
        max_mmu_pages=request.max_mmu_pages,
    )
    return replace(
        given,
        compare_recorded=request.expect != "none",
        rmap_histogram=request.rmap_histogram,
        census=request.census,
    )


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
