"""What is done with an input, and what must hold of the results whatever the input is.

``run`` returns when all is well or the input was refused as a user's error is; anything that it raises is a
defect.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any
from unittest import mock

from replay import warmup
from replay.check import check_traces
from replay.errors import ReplayError, UsageError
from replay.info import info_document
from replay.policy import PRESETS, KnobCodes, Policy, allowed_values
from replay.report.check import print_check
from replay.report.console import console, print_run
from replay.report.info import print_info
from replay.report.review import print_review
from replay.report.side_by_side import print_side_by_side
from replay.review.questions import review_trace
from replay.run import Request, Run, run_policies, run_trace, write_run
from replay.schema import SKIP_WORDS
from replay.synth import write_trace
from replay.synth.kvm import play as synth_play
from replay.trace.reader import read_trace, write_table
from replay.trace.trace import Trace
from replay.verdict.golden import golden_path, write_golden
from replay.verdict.outcome import ERRNO_WORDS

CHILD_SPTES = 512
_MOST_TEXT = 4 << 20
_MOST_PAUSES = 1


def run(target: str, path: Path, companion: str, seed: int) -> None:
    """Take the input at ``path`` all the way; ``seed`` chooses the options.

    ``companion`` is the trace that a golden file or a policy is used with; without one, TOML is a scenario.
    """
    rng = Random(seed)
    try:
        if target == "golden":
            _golden(path, companion, rng)
        elif target != "toml":
            _trace(path, rng)
        elif companion:
            _policy(path, companion, rng)
        else:
            _scenario(path, rng)
    except ReplayError as error:
        message = str(error)
        message.encode()  # it is to be printed
        if "\n" in message:
            raise AssertionError(f"an error of several lines: {message!r}") from error


def warm_up() -> None:
    """Have all kernels ready, so that no input takes the time of a compilation."""
    with contextlib.suppress(UsageError):  # no cache: the first inputs compile
        warmup.warm_up()


def _trace(path: Path, rng: Random) -> None:
    request = _request(rng)
    trace = read_trace(str(path), threads=1)
    # the lines of a table or of a trace.dat file are not told apart by their kind
    if trace.format not in ("arrow", "parquet", "trace.dat", "table"):
        told = trace.events + trace.ignored_lines + trace.malformed_lines
        _must(trace.lines >= told, f"{trace.lines} lines, {told} told apart")
    print_info(console(io.StringIO()), _as_json(info_document(trace)))
    policies: list[str | Policy] = [*PRESETS, "auto", _any_policy(rng)]
    runs = run_policies(trace, policies, replace(request, expect=None))
    for each in runs:
        _check(each)
    print_side_by_side(console(io.StringIO()), [each.document for each in runs])
    number = rng.randrange(len(runs))
    request = replace(request, policy=policies[number])
    for variant in rng.sample(_VARIANTS, 2):
        variant(trace, path, request, runs[number], rng)


def _request(rng: Random) -> Request:
    seconds = rng.choice(("0", "1.5", "11.005", "100.0041", "1e3", "4e9"))
    return Request(
        split_at=rng.choice((None, None, None, "auto", "recorded", "control", "end", "never", seconds)),
        resched=rng.choice((None, None, None, "recorded", "never", "every=1", "every=3", "seed=7")),
        max_mmu_pages=rng.choice((None, None, None, 1, 2, 6, 12, 40, 1 << 31, (1 << 62) + 1)),
        rmap_histogram=rng.choice(((), (), ("end",), ("scenario", "1.5", "end"))),
        census=rng.random() < 0.2,
        allow_lost=rng.random() < 0.5,
    )


def _any_policy(rng: Random) -> Policy:
    """Knobs that no kernel has together."""
    knobs: dict[str, str] = {}
    for name in KnobCodes._fields:
        if name != "enabled" and rng.random() < 0.4:
            numbers = ("0", "1", "5", "513", "600") if name != "page_capacity" else ("1", "2", "40")
            knobs[name] = rng.choice(allowed_values(name) or numbers)
    if {"desc_min", "desc_capacity"} & knobs.keys():
        knobs |= {"desc_min": rng.choice(("0", "1", "513")), "desc_capacity": rng.choice(("513", "600"))}
    return PRESETS["v2"].with_knobs(knobs, "fuzz")


# -- what else is done with a run ----------------------------------------------------------------------


def _in_small_pieces(trace: Trace, path: Path, request: Request, expected: Run, rng: Random) -> None:
    """The sizes in which a trace is read do not show in the results."""
    again = read_trace(
        str(path),
        threads=rng.choice((1, 2)),
        chunk_bytes=rng.choice((200, 1000, 4096)),
        batch_rows=rng.choice((16, 61, 1000)),
    )
    _same(expected, run_trace(again, replace(request, expect="recorded")), "in small pieces")


def _by_way_of_a_table(trace: Trace, path: Path, request: Request, expected: Run, rng: Random) -> None:
    table = path.with_name(f"table{rng.choice(('.arrow', '.parquet'))}")
    write_table(trace, table)
    _same(
        expected, run_trace(read_trace(str(table)), replace(request, expect="recorded")), "by way of a table"
    )


def _by_way_of_a_golden_file(trace: Trace, path: Path, request: Request, expected: Run, rng: Random) -> None:
    """A run matches the golden file that was made from it."""
    golden = path.with_name("golden.json")
    write_golden(golden, expected.golden)
    request = replace(request, expect=str(golden))
    again = run_trace(trace, request)
    _must(again.comparison.verdict != "mismatch", f"differs from its own golden file: {again.comparison}")


def _review(trace: Trace, path: Path, request: Request, expected: Run, rng: Random) -> None:
    print_review(console(io.StringIO()), _as_json(review_trace(trace, (), request)))


def _results(trace: Trace, path: Path, request: Request, expected: Run, rng: Random) -> None:
    write_run(path.with_name("results"), expected)


_VARIANTS: list[Callable[[Trace, Path, Request, Run, Random], None]] = [
    _in_small_pieces,
    _by_way_of_a_table,
    _by_way_of_a_golden_file,
    _review,
    _results,
]


def _same(expected: Run, got: Run, how: str) -> None:
    for name, value in expected.document.items():
        if name not in ("trace", "policy"):
            _must(got.document[name] == value, f"{how}: {name} is {got.document[name]}, not {value}")
    for name, table in expected.tables().items():
        _must(got.tables()[name].equals(table), f"{how}: another table {name}")


# -- what must hold -------------------------------------------------------------------------------------


def _check(run: Run) -> None:
    document = run.document
    print_run(console(io.StringIO()), _as_json(document), run.comparison.differences)
    totals = document["totals"]
    peak, end = totals["shadow_pages_used_peak"], totals["shadow_pages_used_end"]
    _must(peak is None or end is None or peak >= end >= 0, f"pages in use: {end}, at most {peak}")
    failed = sum(totals["skipped"][word] for word in ERRNO_WORDS.values())
    _equal(totals["attempts"], totals["split"] + failed, "attempts and what became of them")
    for word in ("attempts", "split"):
        levels = sum(level[word] for level in totals["by_level"].values())
        _equal(totals[word], levels, f"{word} and those of the levels")
        _equal(totals[word], sum(window[word] for window in document["windows"]), f"{word} and windows")
    failed = document["environment"]["alloc_failures"]
    reasons = totals["retries_cache"] + totals["retries_resched"]
    _must(
        reasons <= totals["retries"] <= reasons + failed, f"{totals['retries']} retries: {totals}, {failed}"
    )
    children = ("sptes_installed", "sptes_left_nonpresent", "sptes_reused")
    _equal(sum(totals[name] for name in children), CHILD_SPTES * totals["split"], "child SPTEs")
    flushes = dict(totals["flushes"])
    del flushes["lost"]
    _equal(flushes.pop("total"), sum(flushes.values()), "flushes and their causes")
    _rows(run)
    expected = document["expected"]
    if expected["recorded"] is not None:
        left = sum(expected["not_compared"].values())
        _equal(expected["recorded"], expected["compared"] + left, "recorded lines and those compared")
    if expected["matched"] is not None:
        _must(expected["matched"] <= expected["attempts"], f"more matched than there are: {expected}")


def _rows(run: Run) -> None:
    """Each split has 512 children, and the rows add up to the totals."""
    outcomes = run.replay.outcomes
    names = ["mmu", "outcome", "installed", "nonpresent", "reused"]
    rows = [row for row in outcomes.select(names).to_pylist() if row["mmu"] == "shadow"]
    for row in rows:
        if row["outcome"] == "split":
            _equal(row["installed"] + row["nonpresent"] + row["reused"], CHILD_SPTES, f"children of {row}")
    totals = run.document["totals"]
    for word in ("split", *SKIP_WORDS):
        count = sum(row["outcome"] == word for row in rows)
        if word == "split" or count:  # what the kernel does not attempt has no row
            figure = totals["split"] if word == "split" else totals["skipped"][word]
            _equal(figure, count, f"rows of outcome {word}")


def _as_json(document: Mapping[str, Any]) -> Any:
    """The document as its reader gets it: JSON, and text that can be written."""
    text = json.dumps(document, allow_nan=False)
    text.encode()
    return json.loads(text)


def _equal(one: object, other: object, what: str) -> None:
    _must(one == other, f"{what}: {one} against {other}")


def _must(holds: bool, what: str) -> None:
    if not holds:
        raise AssertionError(what)


# -- golden files and TOML ------------------------------------------------------------------------------


def _golden(path: Path, companion: str, rng: Random) -> None:
    """Beside a copy of its trace, as ``run`` and ``check`` take it."""
    trace = path.with_name("trace.txt")
    trace.write_bytes(Path(companion).read_bytes())
    golden_path(trace).write_bytes(path.read_bytes())
    for check in check_traces([trace], False, rng.random() < 0.2, None):
        print_check(console(io.StringIO()), check)
    golden_path(trace).write_bytes(path.read_bytes())
    finished = run_trace(str(trace), Request())
    print_run(console(io.StringIO()), _as_json(finished.document), finished.comparison.differences)


def _policy(path: Path, companion: str, rng: Random) -> None:
    policy = Policy.parse(str(path))
    _as_json(policy.knobs())
    _check(run_trace(companion, Request(policy=policy, expect=rng.choice(("none", "recorded")))))


def _short(play: Callable[[Any], int]) -> Callable[[Any], int]:
    """Ends a scenario that asks for more touches than are of use here."""
    paused = 0

    def some(model: Any) -> int:
        nonlocal paused
        result = play(model)
        paused += result == synth_play.PAUSED
        if paused > _MOST_PAUSES:
            raise UsageError("a long scenario")
        return result

    return some


def _scenario(path: Path, rng: Random) -> None:
    made = path.with_name("trace.txt")
    with mock.patch.object(synth_play, "play", _short(synth_play.play)):
        write_trace(path, made, rng.randrange(3))
    if made.stat().st_size < _MOST_TEXT:
        trace = read_trace(str(made), strict=True)
        for policy in ("v2", "linux-6.0"):
            _check(run_trace(trace, Request(policy=policy)))
