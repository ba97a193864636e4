"""Closed and full standard streams, an interrupt of the compiler: a code, a line at most, no traceback."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

TRACES = Path(__file__).parents[1] / "traces"
TRACE = TRACES / "by-hand" / "n1-rwx.txt"
COMMANDS = {
    "run": "run a.txt",
    "run --json": "run a.txt --json",
    "info": "info a.txt",
    "parse": "parse a.txt -o a.parquet",
    "query": "query ds 'select * from runs'",
    "query --json": "query ds 'select * from runs' --json",
    "query --csv": "query ds 'select * from runs' --csv",
    "bulk": "bulk a.txt -o ds",
    "check": "check a.txt",
    "synth": f"synth {shlex.quote(str(TRACES / 'synthetic' / 'full-split.toml'))} -o s.txt",
}
REDIRECTIONS = {
    "2>&-": 0,
    "<&-": 0,
    ">&-": 0,
    ">&- 2>&-": 0,
    "<&- >&- 2>&-": 0,
    ">/dev/full": 2,
    "2>/dev/full": 0,
    ">/dev/full 2>/dev/full": 2,
}


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("streams")
    shutil.copy(TRACE, made / "a.txt")
    shutil.copy(f"{TRACE}.expected.json", made / "a.txt.expected.json")
    assert shell("bulk a.txt -o ds --quiet", "", made).returncode == 0
    return made


def shell(command: str, redirection: str, directory: Path) -> subprocess.CompletedProcess[str]:
    line = f"exec {shlex.quote(sys.executable)} -m replay {command} {redirection}"
    return subprocess.run(
        ["/bin/sh", "-c", line], cwd=directory, capture_output=True, text=True, timeout=600, check=False
    )


@pytest.mark.parametrize("redirection", REDIRECTIONS)
@pytest.mark.parametrize("command", ["run --json", "query", "check"])
def test_standard_streams(directory: Path, command: str, redirection: str) -> None:
    check_streams(directory, command, redirection)


@pytest.mark.parametrize("redirection", ["<&- >&- 2>&-", ">/dev/full"])
@pytest.mark.parametrize("command", sorted(COMMANDS.keys() - {"run --json", "query", "check"}))
def test_standard_streams_of_other_commands(directory: Path, command: str, redirection: str) -> None:
    check_streams(directory, command, redirection)


def check_streams(directory: Path, command: str, redirection: str) -> None:
    result = shell(COMMANDS[command], redirection, directory)
    assert result.returncode == REDIRECTIONS[redirection], result
    full = "replay: error: standard output: No space left on device\n"
    assert result.stderr == (full if redirection == ">/dev/full" else "")


@pytest.mark.parametrize("command", ["run -", "info -", "bulk - -o other"])
def test_a_trace_from_closed_standard_input(directory: Path, command: str) -> None:
    result = shell(command, "<&-", directory)
    assert result.returncode == 2
    assert result.stderr.endswith("standard input is closed\n")
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    "command",
    ["expect a.txt -o full", "check a.txt --junit full", "run a.txt -o full", "bulk a.txt -o full"],
)
def test_output_to_a_full_device(directory: Path, command: str) -> None:
    link = directory / "full"
    link.unlink(missing_ok=True)
    link.symlink_to("/dev/full")
    result = shell(f"{command} --quiet", "", directory)
    assert result.returncode == 2, result
    assert len(result.stderr.splitlines()) == 1
    assert link.is_char_device()


@pytest.mark.skipif("NUMBA_DISABLE_JIT" in os.environ, reason="nothing is compiled")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_while_kernels_are_compiled(directory: Path, tmp_path: Path, number: int) -> None:
    """It says that it compiles, which lasts: the kernels of a run take many seconds."""
    with subprocess.Popen(
        [sys.executable, "-m", "replay", "run", "a.txt"],
        cwd=directory,
        env=os.environ | {"REPLAY_CACHE_DIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        assert process.stderr.readline().startswith("replay: compiling kernels, once for this version")
        process.send_signal(number)
        output, said = process.communicate()
    assert process.returncode == 128 + number
    assert (output, said) == ("", "")
