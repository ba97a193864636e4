"""Golden files: one attempt a line, stable, and refused when they are not what they should be."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from replay.errors import GoldenError, OutputError
from replay.options import Options, SplitAt
from replay.policy import PRESETS, ClearEnd, RmapOrder
from replay.verdict.golden import Golden, golden_of, golden_path, policy_of, read_golden, write_golden


@pytest.fixture
def golden(make_replay: Any) -> Golden:
    return golden_of(PRESETS["v2"], Options(SplitAt.parse("end"), max_mmu_pages=64), make_replay())


def test_what_is_written_is_read_back(golden: Golden, tmp_path: Path) -> None:
    path = tmp_path / "t.txt.expected.json"
    write_golden(path, golden)
    assert read_golden(path) == golden
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_one_attempt_a_line_in_hex(golden: Golden, tmp_path: Path) -> None:
    path = tmp_path / "g.json"
    write_golden(path, golden)
    text = path.read_text()
    assert list(json.loads(text)) == [
        "schema", "policy", "knobs", "options", "totals", "flushes", "outcomes_digest", "outcomes",
    ]  # fmt: skip
    lines = [line for line in text.splitlines() if '"gfn"' in line]
    assert len(lines) == 4
    assert lines[1].rstrip(",") == (
        '{"window": 0, "vm": 0, "mmu": "shadow", "gfn": "0x40200", "level": 2, "role": "0xf82", '
        '"spte": "0x8000000100000ee7", "outcome": "split", "installed": 500, "nonpresent": 12, '
        '"reused": 0, "child_created": true, "retries": 0, "flush": true}'
    )
    write_golden(path, golden)
    assert path.read_text() == text


def test_no_attempt_at_all(make_replay: Any, tmp_path: Path) -> None:
    empty = golden_of(PRESETS["v2"], Options(), make_replay(attempts=[]))
    write_golden(tmp_path / "g.json", empty)
    assert read_golden(tmp_path / "g.json").outcomes == []


def test_rows_that_were_only_recorded_are_left_out(make_replay: Any) -> None:
    rows = make_replay().outcomes.to_pylist()
    rows[3] |= {"outcome": None, "match": "unexpected"}
    assert len(golden_of(PRESETS["v2"], Options(), make_replay(attempts=rows)).outcomes) == 3


def test_path_is_beside_the_trace() -> None:
    assert golden_path("traces/x.txt.zst") == Path("traces/x.txt.zst.expected.json")


def test_policy_by_name_or_by_knobs(golden: Golden) -> None:
    assert policy_of(golden) == PRESETS["v2"]
    knobs = {"min_free_pages": 7, "flush": "on_link_always"}
    own = Golden(**(vars(golden) | {"policy": "mine", "knobs": knobs}))
    policy = policy_of(own)
    assert policy.name == "mine"
    assert policy.knobs() == PRESETS["v2"].knobs() | knobs


def test_knobs_that_are_gone_mean_nothing(golden: Golden, tmp_path: Path) -> None:
    path = tmp_path / "g.json"
    old = {"on_error": "next_head", "tdp_order": "before"}
    write_golden(path, replace(golden, policy="v2:tdp_order=before", knobs=golden.knobs | old))
    read = read_golden(path)
    assert read == replace(golden, policy="v2:tdp_order=before")
    assert policy_of(read) == replace(PRESETS["v2"], name="v2:tdp_order=before")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not JSON"),
        (b'{"schema": "replay.expected/1",\n"policy": }', "g.json:2: not JSON"),
        (b"\xff\x00", "not UTF-8"),
        (b"[]", "schema is None, not 'replay.expected/1'"),
        (b'{"schema": "replay.expected/2"}', "schema is 'replay.expected/2'"),
        (b'{"schema": "replay.expected/1"}', "'policy' is missing"),
        (b'{"a": ' + b"[" * 100_000, "nested too deep"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not JSON: "),
        (b'{"schema": "\\ud800"}', "half a surrogate pair"),
        (b'{"schema": "' + b"x" * 5000 + b'"}', "..., not 'replay.expected/1'"),
    ],
)
def test_bad_files(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "g.json"
    path.write_bytes(content)
    with pytest.raises(GoldenError) as error:
        read_golden(path)
    assert message in str(error.value)


@pytest.mark.parametrize("outcomes", ["3", "[3]", '{"a": 1}'])
def test_bad_outcomes(golden: Golden, tmp_path: Path, outcomes: str) -> None:
    path = tmp_path / "g.json"
    write_golden(path, golden)
    content = json.loads(path.read_text()) | {"outcomes": json.loads(outcomes)}
    path.write_text(json.dumps(content))
    with pytest.raises(GoldenError, match="outcomes"):
        read_golden(path)


@pytest.mark.parametrize("options", [{"split_at": 5}, {"max_mmu_pages": "64"}, {"colour": "red"}])
def test_bad_options(golden: Golden, tmp_path: Path, options: dict[str, Any]) -> None:
    path = tmp_path / "g.json"
    write_golden(path, Golden(**(vars(golden) | {"options": options})))
    with pytest.raises(GoldenError, match=f"option '{next(iter(options))}' is unknown or of another type"):
        read_golden(path)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("options", {"split_at": "9.3e9"}, "--split-at 9.3e9"),
        ("options", {"split_at": "nan"}, "--split-at nan"),
        ("options", {"resched": f"every={2**70}"}, "--resched every="),
        ("options", {"max_mmu_pages": 2**63}, "--max-mmu-pages"),
        ("options", {"max_mmu_pages": -1}, "--max-mmu-pages -1"),
        ("options", {"max_mmu_pages": True}, "option 'max_mmu_pages' is unknown or of another type"),
        ("totals", {"attempts": [1]}, "'totals' is not of counts"),
        ("totals", {"attempts": 1.5}, "'totals' is not of counts"),
        ("totals", {"a": {"b": {"c": {}}}}, "'totals' is not of counts"),
        ("totals", {"attempts": 2**64}, "'totals' is not of counts"),
        ("flushes", {"total": "4"}, "'flushes' is not of counts"),
        ("flushes", {"total": {}}, "'flushes' is not of counts"),
        ("knobs", {"unsync": []}, "'knobs' is not of words and numbers"),
        ("outcomes", [{}, {"gfn": [1]}], "entry 1 of 'outcomes' is not of words and numbers"),
    ],
)
def test_values_of_other_types(golden: Golden, tmp_path: Path, name: str, value: Any, message: str) -> None:
    path = tmp_path / "g.json"
    write_golden(path, golden)
    path.write_text(json.dumps(json.loads(path.read_text()) | {name: value}))
    with pytest.raises(GoldenError) as error:
        read_golden(path)
    assert message in str(error.value)


@pytest.mark.parametrize("path", ["/dev/zero", "/dev/null", "/dev", "a\0b"])
def test_what_is_no_file_of_text(path: str) -> None:
    with pytest.raises(GoldenError):
        read_golden(path)


def test_missing_file_and_unwritable_directory(golden: Golden, tmp_path: Path) -> None:
    with pytest.raises(GoldenError, match="No such file"):
        read_golden(tmp_path / "none.json")
    with pytest.raises(OutputError, match="No such file"):
        write_golden(tmp_path / "none" / "g.json", golden)


def test_policy_has_the_knobs_of_the_recording_kernel(golden: Golden) -> None:
    """And no other that the file tells: a policy that has changed since is to be seen."""
    knobs = golden.knobs | {"rmap_order": "head", "clear_end": "exclusive", "min_free_pages": 7}
    assert policy_of(replace(golden, knobs=knobs)) == replace(
        PRESETS["v2"], rmap_order=RmapOrder.HEAD, clear_end=ClearEnd.EXCLUSIVE
    )
