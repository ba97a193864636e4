"""The command line as a user meets it: exit codes, one-line errors, and what is left on the disk."""

from __future__ import annotations

import ctypes
import json
import lzma
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from replay.cli import app
from replay.ending import CommandError
from replay.errors import ReplayError

HEADER = """# tracer: nop
#
#           TASK-PID       TGID    CPU#  |||||  TIMESTAMP  FUNCTION
#              | |           |       |   |||||     |         |
"""
ROLE = "8-byte q0 direct wux nxe ad root 0 sync new"
SPTE = "15800ee7"
SPLIT_LINE = f"kvm_mmu_split_huge_page: gfn 40000 spte {SPTE} level 2 errno 0"
EVENTS = [
    "tracing_mark_write: replay: vm_create vm=guest pid=157",
    "tracing_mark_write: replay: memslot id=1 base_gfn=0x40000 npages=0x8000 flags=0x0",
    f"kvm_mmu_get_page: sp gen 0 gfn 0 l4 {ROLE}",
    "kvm_page_fault: vcpu 0 rip 0x100219 address 0x0000000040000000 error_code 0x100000006",
    "kvm_mmu_spte_requested: gfn 40000 pfn 15800 level 2",
    f"kvm_mmu_get_page: sp gen 0 gfn 0 l3 {ROLE}",
    f"kvm_mmu_get_page: sp gen 0 gfn 40000 l2 {ROLE}",
    f"kvm_mmu_set_spte: gfn 40000 spte {SPTE} (rwxu) level 2 at 10052fa5000",
    "tracing_mark_write: replay: memslot id=1 base_gfn=0x40000 npages=0x8000 flags=0x1",
    f"kvm_mmu_get_page: sp gen 0 gfn 40000 l1 {ROLE}",
    SPLIT_LINE,
]


PROBE_OF_V2 = "v2_restart: (v2_restart+0x0/0x10 [kvm]) gfn=0x40000 level=2 why=0"
"""Without it, or a TDP MMU, nothing shows that a kernel splits the pages of a direct shadow MMU."""


def trace_text(events: list[str] = EVENTS) -> str:
    lines = [
        f"             vmm-157     (    157) [000] ...1. {11 + index / 1000:12.6f}: {event}\n"
        for index, event in enumerate(events)
    ]
    return HEADER + "".join(lines)


def replay(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "replay", *map(str, arguments)]
    options = {"capture_output": True, "text": True, "check": False, "timeout": 600} | options
    return subprocess.run(command, **options)


def obey_mode_bits() -> None:
    """Take CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH from root (prctl PR_CAPBSET_DROP)."""
    for capability in (1, 2):
        ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)


def error_of(result: subprocess.CompletedProcess[str]) -> str:
    """The one line on standard error of a call that could not be used."""
    assert result.returncode == 2, result.stderr
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    prefix = "replay: error: "
    assert line.startswith(prefix)
    return line.removeprefix(prefix)


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    path = tmp_path / "t.txt"
    path.write_text(trace_text())
    return path


def test_help_imports_nothing_heavy() -> None:
    code = """
import sys
sys.argv = ["replay", "--help"]
from replay.__main__ import main
try:
    main()
except SystemExit as end:
    heavy = {"numba", "llvmlite", "numpy", "polars", "pyarrow", "distributed"} & sys.modules.keys()
    sys.exit(f"imports {heavy}" if heavy or end.code else 0)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    assert "Usage: replay" in result.stdout


def test_run_imports_only_what_it_needs(trace: Path) -> None:
    code = f"""
import sys
sys.argv = ["replay", "run", "--json", {str(trace)!r}]
from replay.__main__ import main
try:
    main()
except SystemExit as end:
    unneeded = {{"polars", "pandas", "pyarrow.parquet", "pyarrow.compute"}} & sys.modules.keys()
    sys.exit(f"imports {{unneeded}}" if unneeded or end.code else 0)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")


def test_help_without_arguments() -> None:
    assert replay().stdout == replay("--help").stdout


def test_match(trace: Path) -> None:
    result = replay("run", trace)
    assert (result.returncode, result.stderr) == (0, "")
    assert "verdict match" in result.stdout
    assert "1 of 1 attempts split" in result.stdout


def test_mismatch_shows_the_line_and_both_sides(trace: Path) -> None:
    trace.write_text(trace_text([*EVENTS[:-2], SPLIT_LINE.replace("errno 0", "errno -28"), PROBE_OF_V2]))
    result = replay("run", trace)
    assert result.returncode == 1
    assert "verdict mismatch" in result.stdout
    assert f"expected  gfn 40000 spte {SPTE} level 2 errno -28" in result.stdout
    assert f"got       gfn 40000 spte {SPTE} level 2 errno 0" in result.stdout


def test_json(trace: Path) -> None:
    result = replay("run", trace, "--json")
    assert result.stderr == ""
    document = json.loads(result.stdout)
    assert document["schema"] == "replay.run/1"
    assert document["trace"]["events"] == len(EVENTS)
    assert document["policy"]["name"] == "v2"
    assert document["policy"]["reason"]
    assert document["totals"]["by_level"] == {
        "1g": {"attempts": 0, "split": 0},
        "2m": {"attempts": 1, "split": 1},
    }
    assert document["totals"]["sptes_installed"] == 512
    assert document["expected"]["source"] == "recorded"
    assert document["expected"]["matched"] == 1
    assert document["expected"]["flushes_expected"] is None
    assert document["verdict"] == "match"
    (window,) = document["windows"]
    assert (window["cause"], window["slot"], window["start_gfn"]) == ("memslot_flags", 1, 0x40000)


def test_nothing_to_compare_with(trace: Path) -> None:
    document = json.loads(replay("run", trace, "--json", "--expect", "none").stdout)
    assert document["verdict"] == "unchecked"
    assert document["expected"]["matched"] is None


def test_a_trace_without_any_event_of_the_mmu(trace: Path) -> None:
    trace.write_text(trace_text([EVENTS[0], EVENTS[3], "kvm_entry: vcpu 0, rip 0xffffffff8100beef"]))
    result = replay("run", trace)
    line, *rest = result.stdout.splitlines()
    assert ("(0 kvmmmu)" in line, result.returncode) == (True, 0)
    assert rest[1:] == [
        "note: there is no event of the system kvmmmu: nothing was replayed",
        "",
        "verdict unchecked",
    ]
    told = replay("info", trace).stdout
    assert "cannot   anything: there is no event of the system kvmmmu" in told
    assert "windows  none" in told


def test_why_a_trace_without_events_is_not_as_expected(trace: Path) -> None:
    golden = trace.with_name(trace.name + ".expected.json")
    assert replay("expect", trace, "-o", golden).returncode == 0
    trace.write_text(trace_text([EVENTS[0], "kvm_entry: vcpu 0, rip 0xffffffff8100beef"]))
    result = replay("run", trace)
    assert result.returncode == 1
    verdict, *reasons = result.stdout.split("\n\n")[1].splitlines()
    assert verdict == "verdict mismatch"
    assert reasons[0] == "  1 attempt expected but not simulated"
    assert "  totals.split: expected 1, got 0" in reasons


def test_standard_input() -> None:
    result = replay("run", "-", "--json", input=trace_text())
    assert result.returncode == 0
    assert json.loads(result.stdout)["trace"]["path"] == "-"


def test_quiet(trace: Path) -> None:
    result = replay("run", trace, "--quiet")
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_knobs_change_the_run(trace: Path) -> None:
    trace.write_text(trace_text([*EVENTS, PROBE_OF_V2]))
    changed = replay(
        "run", trace, "--json", "--policy", "v2", "--set", "min_free_pages=100000", "--max-mmu-pages", 90
    )
    assert changed.returncode == 1
    document = json.loads(changed.stdout)
    assert document["policy"]["name"] == "v2:min_free_pages=100000"
    assert document["policy"]["knobs"]["min_free_pages"] == 100000
    assert document["totals"]["skipped"]["no_free_pages"] == 1


def test_compare_prints_a_column_for_each_policy(trace: Path) -> None:
    policies = ["--policy", "v2", "--policy", "v2:min_free_pages=100000", "--policy", "off"]
    result = replay("compare", trace, *policies)
    assert (result.returncode, result.stderr) == (0, "")
    rows = [line.rsplit(maxsplit=3) for line in result.stdout.splitlines()]
    assert ["split", "1", "0", "0"] in rows
    assert ["left huge: no_free_pages", "0", "1", "0"] in rows
    assert ["page-table bytes of splits", "4,280", "0", "0"] in rows
    assert "retries" not in result.stdout
    document = json.loads(replay("compare", trace, *policies, "--json").stdout)
    assert document["schema"] == "replay.compare/1"
    assert [run["totals"]["split"] for run in document["runs"]] == [1, 0, 0]
    assert document["runs"][0] == json.loads(replay("run", trace, "--json", "--policy", "v2").stdout)


@pytest.mark.parametrize(
    ("split_at", "causes", "verdict", "split"),
    [
        ("control", ["memslot_flags"], "match", 1),
        ("recorded", ["recorded"], "match", 1),
        ("end", ["end"], "unchecked", 0),
        ("11.0075", ["time"], "unchecked", 1),
        ("never", [], "unchecked", 0),
    ],
)
def test_split_at(trace: Path, split_at: str, causes: list[str], verdict: str, split: int) -> None:
    document = json.loads(replay("run", trace, "--json", "--split-at", split_at).stdout)
    assert [window["cause"] for window in document["windows"]] == causes
    assert document["verdict"] == verdict
    assert document["totals"]["split"] == split


def test_without_word_or_record_the_question_is_what_if(trace: Path) -> None:
    trace.write_text(trace_text(EVENTS[2:8]))
    document = json.loads(replay("run", trace, "--json").stdout)
    assert [window["cause"] for window in document["windows"]] == ["end"]
    assert (document["totals"]["split"], document["verdict"]) == (1, "unchecked")
    assert document["expected"]["source"] == "none"


def test_result_tables(trace: Path, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    from replay.schema import flush_schema, outcome_schema, window_schema

    directory = tmp_path / "new" / "out"
    assert replay("run", trace, "-o", directory).returncode == 0
    assert sorted(path.name for path in directory.iterdir()) == [
        "flushes.parquet",
        "outcomes.parquet",
        "run.json",
        "windows.parquet",
    ]
    assert json.loads((directory / "run.json").read_text())["schema"] == "replay.run/1"
    assert pq.read_schema(directory / "outcomes.parquet").equals(outcome_schema())
    assert pq.read_schema(directory / "flushes.parquet").equals(flush_schema())
    assert pq.read_schema(directory / "windows.parquet").equals(window_schema())


@pytest.mark.parametrize("ending", ["parquet", "arrow", "feather"])
def test_parsed_table_runs_like_the_text(trace: Path, tmp_path: Path, ending: str) -> None:
    table = tmp_path / f"events.{ending}"
    assert replay("parse", trace, "-o", table).returncode == 0
    from_table = json.loads(replay("run", table, "--json").stdout)
    from_text = json.loads(replay("run", trace, "--json").stdout)
    for part in ("windows", "totals", "expected", "verdict"):
        assert from_table[part] == from_text[part]


def test_golden_file_round_trip(trace: Path) -> None:
    golden = trace.with_name("t.txt.expected.json")
    assert replay("expect", trace).returncode == 0
    assert replay("check", trace.parent).stdout.splitlines() == [
        f"PASS {trace}: 1 attempts, policy v2",
        "1 passed, 0 failed",
    ]
    assert json.loads(replay("run", trace, "--json").stdout)["expected"]["source"] == "file"

    right = golden.read_text()
    golden.write_text(right.replace('"installed": 512', '"installed": 511'))
    failed = replay("check", trace)
    assert failed.returncode == 1
    assert f"FAIL {trace}" in failed.stdout
    assert "expected  installed 511" in failed.stdout
    assert "got       installed 512" in failed.stdout
    assert replay("run", trace).returncode == 1

    updated = replay("check", trace, "--update")
    assert updated.returncode == 0
    assert "expected  installed 511" in updated.stdout
    assert golden.read_text() == right


def test_golden_file_remembers_policy_and_options(trace: Path) -> None:
    made = replay("expect", trace, "--policy", "v2:min_free_pages=100000", "--max-mmu-pages", 90)
    assert made.returncode == 0
    assert replay("check", trace).returncode == 0
    document = json.loads(replay("run", trace, "--json").stdout)
    assert document["verdict"] == "match"
    assert document["policy"]["name"] == "v2:min_free_pages=100000"
    assert document["totals"]["skipped"]["no_free_pages"] == 1
    assert replay("run", trace, "--policy", "v2").returncode == 1


def test_check_goes_on_behind_a_trace_that_cannot_be_used(trace: Path) -> None:
    assert replay("expect", trace).returncode == 0
    empty = trace.with_name("a.txt")
    empty.write_text("")
    empty.with_name("a.txt.expected.json").write_text(trace.with_name("t.txt.expected.json").read_text())
    orphan = trace.with_name("b.txt.expected.json")
    orphan.write_text(trace.with_name("t.txt.expected.json").read_text())
    result = replay("check", trace.parent)
    assert result.returncode == 2
    assert [line.split()[0] for line in result.stdout.splitlines()] == ["ERROR", "ERROR", "PASS", "1"]
    assert result.stderr == f"replay: error: {empty}: empty file\n"


def test_lost_events_cannot_match(trace: Path) -> None:
    lines = trace_text().splitlines(keepends=True)
    trace.write_text("".join([*lines[:8], "CPU:0 [LOST 6 EVENTS]\n", *lines[8:]]))
    result = replay("run", trace)
    assert result.returncode == 0
    assert "6 EVENTS LOST" in result.stdout
    assert "verdict partial" in result.stdout
    assert "verdict match" in replay("run", trace, "--allow-lost").stdout


def test_malformed_line(trace: Path) -> None:
    text = trace_text().replace("pfn 15800 level 2", "pfn ?")
    trace.write_text(text)
    result = replay("run", trace)
    assert result.returncode == 0
    assert "1 MALFORMED LINES" in result.stdout
    assert "verdict partial" in result.stdout
    line = 1 + text[: text.index("pfn ?")].count("\n")
    assert error_of(replay("run", trace, "--strict")).startswith(f"{trace}:{line}: ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run"], "Missing argument 'TRACE'. (replay --help)"),
        (["walk"], "No such command 'walk'. (replay --help)"),
        (["run", "TRACE", "--colour"], "No such option: --colour"),
        (["run", "TRACE", "--policy", "v9"], "unknown policy 'v9': use auto, v2, "),
        (["run", "TRACE", "--set", "flush=red"], "--set: flush=red: use deferred_if_partial or "),
        (["run", "TRACE", "--split-at", "noon"], "--split-at noon: use auto, recorded, "),
        (["run", "TRACE", "--resched", "every=0"], "--resched every=0: use recorded, never, "),
        (["run", "TRACE", "--expect", "none.json"], "none.json: No such file or directory"),
        (["run", "none.txt"], "none.txt: "),
        (["run", "/"], "/: "),
        (["run", "/dev/null"], "/dev/null: empty file"),
        (["compare", "TRACE"], "Missing option '--policy'. (replay --help)"),
        (["compare", "none.txt", "--policy", "v2", "--policy", "v9"], "unknown policy 'v9'"),
        (["review", "TRACE", "A4", "B4"], "unknown question 'B4': use A2, A3, "),
        (["review", "none.txt", "A9"], "unknown question 'A9'"),
        (["review", "none.txt"], "none.txt: "),
        (["review", "TRACE", "--policy", "v9"], "unknown policy 'v9'"),
        (["review", "TRACE", "--resched", "every=0"], "--resched every=0: use recorded, never, "),
        (["check", "none"], "none: No such file or directory"),
        (["check", "TRACE"], "No such file or directory"),
        (["expect", "-"], "standard input has no golden file beside it: use -o FILE"),
        (["expect", "TRACE", "-o", "/dev/null/x"], "/dev/null/x: Not a directory"),
        (["run", "TRACE", "-o", "/dev/null"], "/dev/null: File exists"),
        (["parse", "TRACE", "-o", "events.csv"], "events.csv: the file name must end in .parquet, "),
        (["parse", "TRACE", "-o", "/dev/null/e.parquet"], "/dev/null/e.parquet: Not a directory"),
        (["synth", "none.toml", "-o", "t.txt"], "none.toml: "),
    ],
)
def test_unusable_call(trace: Path, arguments: list[str], message: str) -> None:
    line = error_of(
        replay(*[str(trace) if word == "TRACE" else word for word in arguments], cwd=trace.parent)
    )
    assert message in line
    assert [path.name for path in trace.parent.iterdir()] == [trace.name]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("e.txt", b"", "empty file"),
        ("b.txt", b"\x7fELF\0\0\0\0" * 100, "not a trace"),
        ("p.txt", b"The quick brown fox\n" * 50, "not a trace"),
        ("c.txt.xz", lzma.compress(trace_text(EVENTS * 50).encode())[:-40], ""),
        ("g.txt.gz", b"not gzip at all", ""),
        ("z.txt.zst", b"not zstd at all", ""),
        ("q.parquet", b"PAR1 but no more", ""),
    ],
)
def test_unusable_file(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    line = error_of(replay("run", path))
    assert line.startswith(f"{path}:")
    assert message in line


def test_unreadable_file(trace: Path) -> None:
    trace.chmod(0)
    assert error_of(replay("run", trace, preexec_fn=obey_mode_bits)) == f"{trace}: Permission denied"


def test_golden_file_of_another_schema(trace: Path) -> None:
    golden = trace.with_name("t.txt.expected.json")
    golden.write_text('{"schema": "replay.expected/9"}')
    assert error_of(replay("run", trace)).startswith(f"{golden}: schema is 'replay.expected/9'")


def test_full_disk(trace: Path) -> None:
    with open("/dev/full", "w") as full:
        result = replay("run", trace, capture_output=False, stdout=full, stderr=subprocess.PIPE)
    assert result.returncode == 2
    assert result.stderr == "replay: error: standard output: No space left on device\n"


def test_closed_pipe_is_quiet(trace: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    result = replay("run", trace, capture_output=False, stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert result.returncode == 128 + signal.SIGPIPE
    assert result.stderr == ""


@pytest.mark.parametrize(
    ("arguments", "output"), [(["parse", "-", "-o"], "events.parquet"), (["run", "-", "-o"], "out")]
)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_run_leaves_nothing(
    tmp_path: Path, arguments: list[str], output: str, number: signal.Signals
) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "replay", *arguments, output],
        cwd=tmp_path,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdin is not None
        # more than a pipe holds: when it is written, the run has begun to read
        process.stdin.write(trace_text(EVENTS * 1000).encode())
        process.stdin.flush()
        process.send_signal(number)
        out, err = process.communicate(timeout=600)
    assert process.returncode == 128 + number
    assert (out, err) == (b"", b"")
    assert list(tmp_path.iterdir()) == []


def test_review_as_json(trace: Path) -> None:
    result = replay("review", trace, "B7", "A4", "--json")
    assert (result.returncode, result.stderr) == (0, "")
    document = json.loads(result.stdout)
    assert document["schema"] == "replay.review/1"
    assert (document["policy"]["name"], document["policy"]["reason"]) == ("v2", "the default of a review")
    assert document["trace"]["events"] == len(EVENTS)
    assert [answer["question"] for answer in document["answers"]] == ["A4", "B7"]
    for answer in document["answers"]:
        keys = {"question", "asks", "answer", "figures", "tables", "computed", "not_known"}
        assert answer.keys() == keys
    assert document["answers"][0]["figures"]["lookups"] == 1


def test_review_on_a_terminal(trace: Path) -> None:
    result = replay("review", trace, "A8", "--max-mmu-pages", "8", "--policy", "linux-6.0")
    assert (result.returncode, result.stderr) == (0, "")
    assert "under review: policy linux-6.0, as asked for" in result.stdout
    assert "A8  What does the limit of shadow pages leave huge?" in result.stdout
    assert "A4" not in result.stdout
    assert "    computed: a split is refused if min_free_pages or fewer are available" in result.stdout
    assert all(line == line.rstrip() for line in result.stdout.splitlines())
    assert replay("review", trace, "A8", "--quiet").stdout == ""


def test_review_answers_every_question(trace: Path) -> None:
    with trace.open() as text:
        result = replay("review", "-", stdin=text)
    assert (result.returncode, result.stderr) == (0, "")
    asked = [line.split()[0] for line in result.stdout.splitlines() if line[:1] in ("A", "B")]
    assert asked == [
        "A2", "A3", "A4", "A5", "A6", "A7", "A8", "B1", "B5", "B7", "B9", "B11", "B12", "B13", "B18", "B19",
        "B20", "B21", "B22",
    ]  # fmt: skip


def test_policies() -> None:
    document = json.loads(replay("policies", "--json").stdout)
    assert [policy["name"] for policy in document["policies"]] == [
        "v2",
        "v2-desc",
        "v2-alias",
        "linux-6.0",
        "linux-2026",
        "off",
    ]
    table = replay("policies").stdout
    assert all(knob in table for knob in document["policies"][0]["knobs"])


# -- absurd values ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "values"),
    [
        ("--split-at", ["9.3e9", "1e300", "nan", "inf", "-1", ""]),
        (
            "--resched",
            [f"seed={2**64}", f"every={2**70}", "every=0", "seed=", "every=-1", "seed=" + "9" * 5000],
        ),
        ("--max-mmu-pages", [str(2**63), "-1", "0", "9" * 5000]),
        ("--set", ["min_free_pages=" + "9" * 5000, "min_free_pages=-1", "=", "flush="]),
        ("--rmap-histogram", ["9.3e9", "nan", ""]),
    ],
)
def test_option_values_out_of_range(
    trace: Path, option: str, values: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    for value in values:
        command = ["run", str(trace), "-q", "--expect", "none", f"{option}={value}"]
        with pytest.raises((ReplayError, CommandError)) as caught:
            app(command, standalone_mode=False)
        told = getattr(caught.value, "format_message", caught.value.__str__)()
        assert option in told or option == "--set"
    assert capsys.readouterr() == ("", "")


def test_a_time_at_which_the_trace_has_ended(trace: Path) -> None:
    message = error_of(replay("run", trace, "--split-at", "1e6", "--expect", "none"))
    assert message.startswith("--split-at 1e6: the trace ends at ")
    last = message.split()[6].rstrip(";")
    assert replay("run", trace, "--split-at", last, "--expect", "none").returncode == 0


@pytest.mark.parametrize("size", [1 << 20, 1 << 30])
def test_files_are_read_up_to_a_size(tmp_path: Path, trace: Path, size: int) -> None:
    path = tmp_path / "p.toml"
    with path.open("wb") as file:
        file.truncate(size + 1)
    message = error_of(replay("run", trace, "--policy", path, "--expect", "none"))
    assert message == f"{path}: not a policy file: larger than 1 MiB"


@pytest.mark.parametrize(
    "path", ["/dev/zero", "/dev/null", "/dev", "none"], ids=["endless", "empty", "directory", "missing"]
)
def test_scenarios_that_are_none(path: str, tmp_path: Path) -> None:
    assert error_of(replay("synth", path, "-o", tmp_path / "t")).startswith(f"{path}:")


# -- names and ends --------------------------------------------------------------------------------------


def test_a_name_that_is_no_text(trace: Path, tmp_path: Path) -> None:
    path = os.fsencode(trace.parent) + b"/b\xff.txt"
    os.rename(trace, path)
    path = os.fsdecode(path)
    shown = f"{trace.parent}/b\\xff.txt"
    result = replay("run", path, "--json")
    assert (result.returncode, json.loads(result.stdout)["trace"]["path"]) == (0, shown)
    assert replay("run", path).returncode == 0
    out = tmp_path / "out"
    (tmp_path / "good.txt").write_text(trace_text())
    result = replay("bulk", path, tmp_path / "good.txt", "-o", out, "--expect", "none")
    assert (result.returncode, result.stderr) == (0, "")
    answer = replay("query", out, "SELECT path, verdict FROM runs ORDER BY path", "--json")
    assert json.loads(answer.stdout) == [
        {"path": shown, "verdict": "unchecked"},
        {"path": f"{tmp_path}/good.txt", "verdict": "unchecked"},
    ]
    listed = subprocess.run(
        [sys.executable, "-m", "replay", "bulk", "-", "-o", out, "--expect", "none", "--json"],
        input=os.fsencode(path) + b"\n",
        capture_output=True,
        check=False,
    )
    assert json.loads(listed.stdout)["kept"] == 1


@pytest.mark.parametrize("command", [["run", "--json"], ["run"], ["info"], ["--help"]], ids=str)
def test_nobody_reads_standard_output(trace: Path, command: list[str]) -> None:
    arguments = command if command == ["--help"] else [*command, str(trace)]
    read, write = os.pipe()
    os.close(read)
    full = [sys.executable, "-m", "replay", *arguments]
    piped = subprocess.run(full, stdout=write, stderr=subprocess.PIPE, check=False)
    os.close(write)
    assert (piped.returncode, piped.stderr) == (141, b"")
    closed = subprocess.run(["sh", "-c", 'exec "$@" >&-', "sh", *full], stderr=subprocess.PIPE, check=False)
    assert (closed.returncode, closed.stderr) == (0, b"")


@pytest.mark.parametrize("module", ["replay.ending", "typer", "replay.cli", "replay.run", "numba"])
def test_interrupted_while_modules_are_imported(trace: Path, module: str) -> None:
    code = f"""
import os, signal, sys
class Interrupts:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            sys.meta_path.remove(self)
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupts())
sys.argv = ["replay", "run", {str(trace)!r}]
from replay.__main__ import main
main()
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (130, "", "")
