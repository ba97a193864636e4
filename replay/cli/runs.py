"""The commands that replay one trace: ``run``, ``compare`` and ``review``."""

from __future__ import annotations

import typer

from replay.cli.options import (
    ComparedPoliciesOption,
    ExpectOption,
    FormatOption,
    JsonOption,
    KernelOption,
    LostOption,
    MaxPagesOption,
    NestedOption,
    PolicyOption,
    QuestionsArgument,
    QuietOption,
    RequireOption,
    ReschedOption,
    ResultsOption,
    RmapColumnsOption,
    RmapHistogramOption,
    SetOption,
    SplitAtOption,
    StrictOption,
    TraceArgument,
)
from replay.cli.show import check_require, code_of_verdict, reading, show_json, standard_output


def run(
    trace: TraceArgument,
    policy: PolicyOption = None,
    kernel: KernelOption = None,
    settings: SetOption = None,
    split_at: SplitAtOption = None,
    expect: ExpectOption = None,
    require: RequireOption = None,
    max_mmu_pages: MaxPagesOption = None,
    resched: ReschedOption = None,
    nested: NestedOption = None,
    as_json: JsonOption = False,
    output: ResultsOption = None,
    rmap_histogram: RmapHistogramOption = None,
    rmap_columns: RmapColumnsOption = "auto",
    quiet: QuietOption = False,
    strict: StrictOption = False,
    allow_lost: LostOption = False,
    file_format: FormatOption = None,
) -> None:
    """Replay a trace and compare it with the expected outcomes.

    Simulates eager page splitting whenever dirty logging is enabled, and prints a summary and a verdict.

    Exit code 0: everything that could be compared matched, or nothing could be compared. 1: something did
    not match. 2: the command line or an input cannot be used.
    """
    from replay.run import Request, run_alternative, run_trace, write_run

    check_require(require)
    request = Request(
        policy=policy,
        kernel=kernel,
        settings=tuple(settings or ()),
        split_at=split_at,
        resched=resched,
        max_mmu_pages=max_mmu_pages,
        nested=nested,
        expect=expect,
        strict=strict,
        allow_lost=allow_lost,
        rmap_histogram=tuple(rmap_histogram or ()),
        rmap_columns=rmap_columns,
        file_format=file_format,
    )
    with reading(quiet) as progress:
        finished = run_trace(trace, request, progress)
        other = None if as_json or quiet else run_alternative(finished, request)
    if output is not None:
        write_run(output, finished)
    if as_json:
        show_json(finished.document)
    elif not quiet:
        from replay.report.console import print_run
        from replay.report.side_by_side import print_alternative

        out = standard_output()
        print_run(out, finished.document, finished.comparison.differences)
        print_alternative(out, finished.document, other.document if other else None)
    raise typer.Exit(code_of_verdict(finished.comparison.verdict, require))


def compare(
    trace: TraceArgument,
    policies: ComparedPoliciesOption,
    kernel: KernelOption = None,
    settings: SetOption = None,
    split_at: SplitAtOption = None,
    max_mmu_pages: MaxPagesOption = None,
    resched: ReschedOption = None,
    nested: NestedOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    strict: StrictOption = False,
    file_format: FormatOption = None,
) -> None:
    """Replay a trace under several policies, side by side.

    Exit code 0, whatever the results are. 2: the command line or an input cannot be used.
    """
    from replay.run import Request, run_policies

    request = Request(
        kernel=kernel,
        settings=tuple(settings or ()),
        split_at=split_at,
        resched=resched,
        max_mmu_pages=max_mmu_pages,
        nested=nested,
        expect="recorded",
        strict=strict,
        file_format=file_format,
    )
    with reading(quiet) as progress:
        documents = [run.document for run in run_policies(trace, policies, request, progress)]
    if as_json:
        show_json({"schema": "replay.compare/1", "runs": documents})
    elif not quiet:
        from replay.report.side_by_side import print_side_by_side

        print_side_by_side(standard_output(), documents)


def review(
    trace: TraceArgument,
    questions: QuestionsArgument = None,
    policy: PolicyOption = None,
    kernel: KernelOption = None,
    settings: SetOption = None,
    split_at: SplitAtOption = None,
    max_mmu_pages: MaxPagesOption = None,
    resched: ReschedOption = None,
    nested: NestedOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    strict: StrictOption = False,
    file_format: FormatOption = None,
) -> None:
    """Answer questions of the patch review with numbers from a trace.

    --policy is the policy under review, by default v2. If a question compares policies, the others are run
    as well, with the same --set.

    Exit code 0, whatever the answers are. 2: the command line or an input cannot be used.
    """
    from replay.review.questions import review_trace
    from replay.run import Request

    request = Request(
        policy=policy,
        kernel=kernel,
        settings=tuple(settings or ()),
        split_at=split_at,
        resched=resched,
        max_mmu_pages=max_mmu_pages,
        nested=nested,
        expect="recorded",
        strict=strict,
        file_format=file_format,
    )
    with reading(quiet) as progress:
        document = review_trace(trace, questions or (), request, progress)
    if as_json:
        show_json(document)
    elif not quiet:
        from replay.report.review import print_review

        print_review(standard_output(), document)
