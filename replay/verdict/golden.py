"""Golden files, schema ``replay.expected/1``: the expected result of a run.

One attempt stands on one line, gfns in hex, keys in a fixed order, so that a difference reads well
in a review.  Policy, knobs and options are those needed to run the trace again.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any

from replay.errors import GoldenError, ReplayError, UsageError
from replay.kernel import KERNEL_KNOBS
from replay.options import Nested, Options
from replay.output import write_text
from replay.policy import LATER_KNOBS, PRESETS, RETIRED_KNOBS, Policy
from replay.text_files import TextFileError, parse_json, read_text_file, shown
from replay.verdict.outcome import totals

if TYPE_CHECKING:
    import pyarrow as pa

    from replay.mmu.engine import Replay

GOLDEN_SCHEMA = "replay.expected/1"
GOLDEN_SUFFIX = ".expected.json"
_OPTION_TYPES = {"split_at": (str,), "resched": (str,), "max_mmu_pages": (int, NoneType), "nested": (str,)}
"""The options of a run that a golden file keeps, and their types; ``nested`` only where it is not auto."""

_IDENTITY = ("window", "vm", "mmu", "gfn", "level", "role", "spte")
_RESULT = ("outcome", "installed", "nonpresent", "reused", "child_created", "retries", "flush")
_HEX = ("gfn", "role", "spte")
MAX_GOLDEN_BYTES = 256 << 20
"""More than a million attempts."""
_DEPTHS = {"totals": 2, "flushes": 0}
"""Tables in tables."""
_TYPES: dict[str, type] = {
    "policy": str,
    "knobs": dict,
    "options": dict,
    "totals": dict,
    "flushes": dict,
    "outcomes_digest": str,
    "outcomes": list,
}

Attempt = dict[str, Any]


@dataclass(frozen=True)
class Golden:
    """The content of a golden file.

    ``totals`` are those of the run document without their ``flushes``, which stand apart;
    ``outcomes`` has one dictionary a simulated attempt, gfn, role and SPTE as hex text.
    """

    policy: str
    knobs: dict[str, Any]
    options: dict[str, Any]
    totals: dict[str, Any]
    flushes: dict[str, Any]
    outcomes: list[Attempt]
    outcomes_digest: str


def golden_path(trace: str | os.PathLike[str]) -> Path:
    """Where the golden file of a trace is: beside it, with ``.expected.json`` appended."""
    return Path(f"{os.fspath(trace)}{GOLDEN_SUFFIX}")


def has_golden(trace: str | os.PathLike[str]) -> bool:
    """Whether something is in the place of the golden file of a trace, even a broken link."""
    return os.path.lexists(golden_path(trace))


def golden_of(policy: Policy, options: Options, replay: Replay) -> Golden:
    """The golden file that expects exactly this run."""
    figures = totals(replay.counters)
    flushes = figures.pop("flushes")
    outcomes = attempts(replay.outcomes)
    return Golden(
        policy=policy.name,
        knobs=policy.knobs(),
        options=_option_texts(options),
        totals=figures,
        flushes=flushes,
        outcomes=outcomes,
        outcomes_digest=_digest(outcomes),
    )


def _option_texts(options: Options) -> dict[str, Any]:
    """The options of a run as a golden file has them, in the order of ``_OPTION_TYPES``."""
    texts: dict[str, Any] = {
        "split_at": options.split_at.text,
        "resched": options.resched.text,
        "max_mmu_pages": options.max_mmu_pages,
    }
    return texts if options.nested is Nested.AUTO else texts | {"nested": options.nested.value}


def attempts(outcomes: pa.Table) -> list[Attempt]:
    """The simulated attempts of an outcome table, in order; rows that were only recorded are left out."""
    columns = outcomes.select([*_IDENTITY, *_RESULT]).to_pylist()
    return [_readable(row) for row in columns if row["outcome"] is not None]


def _readable(row: Attempt) -> Attempt:
    for name in _HEX:
        if row[name] is not None:
            row[name] = f"{row[name]:#x}"
    return row


def _digest(outcomes: list[Attempt]) -> str:
    digest = hashlib.sha256()
    for attempt in outcomes:
        digest.update(json.dumps(attempt).encode() + b"\n")
    return f"sha256:{digest.hexdigest()}"


def policy_of(golden: Golden) -> Policy:
    """The policy that a golden file was made with: by its name, otherwise from its knobs alone.

    Knobs that the age of the recording kernel decides are the golden file's.
    """
    kernel = {name: golden.knobs[name] for name in KERNEL_KNOBS if name in golden.knobs}
    try:
        if golden.policy.partition(":")[0] in PRESETS:  # never a file, which nobody named here
            return Policy.parse(golden.policy).with_knobs(kernel, "golden file")
        return Policy(name=golden.policy).with_knobs(golden.knobs, f"golden file, policy {golden.policy!r}")
    except ReplayError:
        return Policy(name=golden.policy).with_knobs(golden.knobs, f"golden file, policy {golden.policy!r}")


def write_golden(path: str | os.PathLike[str], golden: Golden, is_named: bool = True) -> None:
    """Write a golden file completely or not at all (see ``replacing``).  Raises ``OutputError``."""
    write_text(path, "".join(_lines(golden)), is_named)


def _lines(golden: Golden) -> Iterator[str]:
    content = asdict(golden)
    outcomes = content.pop("outcomes")
    yield f'{{\n"schema": {json.dumps(GOLDEN_SCHEMA)},\n'
    for name, value in content.items():
        text = json.dumps(value, indent=1) if name in ("knobs", "totals") else json.dumps(value)
        yield f'"{name}": {text},\n'
    yield '"outcomes": ['
    for index, attempt in enumerate(outcomes):
        yield f"{',' if index else ''}\n{json.dumps(attempt)}"
    yield "\n]}\n"


def read_golden(path: str | os.PathLike[str], is_named: bool = True) -> Golden:
    """Read a golden file.  Raises ``GoldenError`` if it is missing, not JSON, or of another form.

    ``is_named``: the user named it, so that it may be a pipe.
    """
    try:
        content = parse_json(read_text_file(path, MAX_GOLDEN_BYTES, is_named))
    except TextFileError as error:
        raise GoldenError(path, 0, str(error)) from error
    except json.JSONDecodeError as error:
        raise GoldenError(path, error.lineno, f"not JSON: {error.msg}") from error
    except ValueError as error:
        raise GoldenError(path, 0, f"not JSON: {error}") from error
    schema = content.get("schema") if isinstance(content, dict) else None
    if schema != GOLDEN_SCHEMA:
        raise GoldenError(path, 0, f"schema is {shown(repr(schema))}, not {GOLDEN_SCHEMA!r}")
    for name, kind in _TYPES.items():
        if not isinstance(content.get(name), kind):
            raise GoldenError(path, 0, f"{name!r} is missing or of another type")
    for name, value in content["options"].items():
        if isinstance(value, bool) or not isinstance(value, _OPTION_TYPES.get(name, ())):
            raise GoldenError(path, 0, f"option {shown(name)!r} is unknown or of another type")
    for number, attempt in enumerate(content["outcomes"]):
        if not isinstance(attempt, dict) or not all(map(_is_value, attempt.values())):
            raise GoldenError(path, 0, f"entry {number} of 'outcomes' is not of words and numbers")
    if not all(map(_is_value, content["knobs"].values())):
        raise GoldenError(path, 0, "'knobs' is not of words and numbers")
    for name, depth in _DEPTHS.items():
        if not _are_counts(content[name], depth):
            raise GoldenError(path, 0, f"{name!r} is not of counts")
    _check_options(path, content["options"])
    knobs = {name: value for name, value in content["knobs"].items() if name not in RETIRED_KNOBS}
    known = {name: content[name] for name in _TYPES}
    return Golden(**known | {"knobs": LATER_KNOBS | knobs})


def _is_value(value: object) -> bool:
    return isinstance(value, (str, bool)) or _is_count(value)


def _is_count(value: object) -> bool:
    return value is None or (type(value) is int and abs(value) < 1 << 64)


def _are_counts(content: dict[str, Any], depth: int) -> bool:
    return all(
        _are_counts(value, depth - 1) if depth and isinstance(value, dict) else _is_count(value)
        for value in content.values()
    )


def _check_options(path: str | os.PathLike[str], options: dict[str, Any]) -> None:
    try:
        Options().with_given(**options)
    except UsageError as error:
        raise GoldenError(path, 0, f"its options: {error}") from error
