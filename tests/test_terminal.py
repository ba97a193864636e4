"""What comes from a trace, a file name or a query is shown on a terminal, never obeyed by it."""

from __future__ import annotations

import io
import os
import shutil
from pathlib import Path

import pytest

from replay.printable import printable, printable_lines
from tests.test_cli import EVENTS, replay, trace_text

ESCAPE = "\x1b[31m\x1b]0;title\x07\x9b2J\u202e"
NAME = "t\x1b[2J\n\x9b\u202e.txt"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain é 漢 words", "plain é 漢 words"),
        ("\x1b[31m\x07\x7f\r\n\t", r"\x1b[31m\x07\x7f\r\n\t"),
        ("\x9b2J\x85", r"\x9b2J\x85"),
        ("\u202eabc\u2066\u200b\u2028", r"\u202eabc\u2066\u200b\u2028"),
        ("\udcff\ud800\U000e0001", r"\xff\ud800\U000e0001"),
        ("\u00a0", r"\xa0"),
    ],
)
def test_printable(text: str, shown: str) -> None:
    assert printable(text) == shown
    assert printable_lines(f"{text}\n{text}") == f"{printable_lines(text)}\n{printable_lines(text)}"
    assert printable_lines("a\nb\x1b") == "a\nb\\x1b"


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """A trace whose VM, task, markers and malformed lines, and whose own name, would write to a terminal."""
    events = [event.replace("vm=guest", f"vm=g\x9b{chr(0x202E)}t") for event in EVENTS]
    events[2:2] = ["tracing_mark_write: \x9b2J\u202e word", "kvm_mmu_set_spte: gfn \x9b2J\u202e\x85"]
    text = trace_text(events).replace("vmm-157", "v\x9bm-157")
    path = tmp_path / NAME
    path.write_text(text, "utf-8", newline="")
    return path


def assert_harmless(result: object, code: int, *shown: str) -> None:
    for text in (result.stdout, result.stderr):  # type: ignore[attr-defined]
        assert [line for line in text.splitlines() if not line.isprintable()] == []
        assert all(line == line.rstrip("\r") for line in text.split("\n"))
    assert result.returncode == code, result.stderr  # type: ignore[attr-defined]
    both = result.stdout + result.stderr  # type: ignore[attr-defined]
    assert [text for text in shown if text not in both] == []


SHOWN = r"t\x1b[2J\n\x9b\u202e.txt"


@pytest.mark.parametrize(
    ("arguments", "code", "shown"),
    [
        (("run",), 0, [SHOWN]),
        (("info",), 0, [SHOWN, r"malformed line 8: v\x9bm-157"]),
        (("compare", "--policy", "v2", "--policy", "off"), 0, [SHOWN]),
        (("review",), 0, [SHOWN]),
        (("run", "--strict"), 2, [r"t\x1b[2J \x9b\u202e.txt:8", r"malformed event: v\x9bm-157"]),
        (("run", "--policy", ESCAPE), 2, [r"\x1b[31m"]),
        (("run", "--split-at", ESCAPE), 2, [r"\x1b[31m"]),
        (("run", "--set", ESCAPE), 2, [r"\x1b[31m"]),
        (("run", "--format", ESCAPE), 2, [r"\x1b[31m"]),
        (("run", "--expect", f"/nowhere/{ESCAPE}"), 2, [r"\x1b[31m"]),
        (("run", "--rmap-histogram", ESCAPE), 2, [r"\x1b[31m"]),
        (("run", f"--{ESCAPE}"), 2, [r"\x1b[31m"]),
        (("run", "-o", f"/proc/{ESCAPE}"), 2, [r"\x1b[31m"]),
    ],
)
def test_commands(trace: Path, arguments: tuple[str, ...], code: int, shown: list[str]) -> None:
    assert_harmless(replay(arguments[0], trace, *arguments[1:]), code, *shown)


def test_commands_that_write(trace: Path) -> None:
    directory = trace.parent
    assert_harmless(replay("parse", trace, "-o", directory / f"{ESCAPE}.arrow"), 0, r"\x1b[31m")
    assert_harmless(replay("expect", trace), 0, SHOWN)
    assert_harmless(replay("check", directory), 0, f"PASS {directory}/{SHOWN}")
    golden = directory / f"{NAME}.expected.json"
    golden.write_text(golden.read_text().replace('"attempts": 1', '"attempts": 2'))
    junit = directory / "junit.xml"
    assert_harmless(replay("check", directory, "--junit", junit), 1, SHOWN)
    assert [line for line in junit.read_text().splitlines() if not line.isprintable()] == []
    assert SHOWN in junit.read_text()
    assert_harmless(replay("check", directory / ESCAPE.replace("/", "")), 2, r"\x1b[31m")
    assert_harmless(replay("synth", directory / f"{ESCAPE}.toml", "-o", "x"), 2, r"\x1b[31m")


def test_bulk_and_query(trace: Path) -> None:
    directory = trace.parent / "out\x1b[1m"
    shutil.copy(trace, trace.parent / "bad\x07.txt")
    (trace.parent / "bad\x07.txt").write_text("\x1b[31m no trace")
    assert_harmless(replay("bulk", trace.parent, "-o", directory, "-j", "1"), 1, r"bad\x07.txt")
    answer = replay("query", directory, "SELECT path, vms FROM runs")
    assert_harmless(answer, 0, r"['g\x9bt']", r"\n\x9b\u202e.txt")
    assert_harmless(replay("query", directory, f"SELECT '{ESCAPE}'"), 0, r"\x1b[31m")
    assert_harmless(replay("query", directory, f'SELECT 1 AS "{ESCAPE}"'), 0, r"\x1b[31m")
    assert_harmless(replay("query", directory, f'SELECT "{ESCAPE}" FROM runs'), 2)
    assert_harmless(replay("query", trace.parent / ESCAPE, "SELECT 1"), 2, r"\x1b[31m")


def test_a_name_that_is_no_utf_8(tmp_path: Path) -> None:
    path = os.fsencode(tmp_path / "t") + b"\xff.txt"
    with open(path, "w") as file:
        file.write(trace_text())
    for command in ("run", "info"):
        result = replay(command, os.fsdecode(path))
        assert (result.returncode, r"t\xff.txt: ftrace" in result.stdout) == (0, True)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_csv_is_escaped_on_a_terminal_alone() -> None:
    import polars as pl

    from replay.bulk.query import write_csv

    answer = pl.DataFrame({"path": ["a\x1b[1m", "b"]})
    for file, text in ((Terminal(), "path\na\\x1b[1m\nb\n"), (io.StringIO(), "path\na\x1b[1m\nb\n")):
        write_csv(answer, file)
        assert file.getvalue() == text
