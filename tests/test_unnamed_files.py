"""Whatever lies in the place of a file that is looked for without being named: no wait, one line, exit 2."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from replay.bulk.plan import find_tasks
from replay.check import check_trace, find_traces, without_golden
from replay.errors import InputError
from replay.trace.files import trace_files

TRACE = Path(__file__).parents[1] / "traces" / "by-hand" / "n1-rwx.txt"
GOLDEN = Path(f"{TRACE}.expected.json")
HANGS = 120
"""Seconds after which a command is taken to wait for ever."""


def replay(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "replay", *map(str, arguments)]
    return subprocess.run(
        command, cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=HANGS, check=False
    )


def a_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        here = Path.cwd()
        os.chdir(path.parent)  # a socket's name is short
        try:
            listener.bind(path.name)
        finally:
            os.chdir(here)


OTHERS: dict[str, tuple[Callable[[Path], None], str]] = {
    "pipe": (os.mkfifo, "not a regular file"),
    "socket": (a_socket, "not a regular file"),
    "device": (lambda path: path.symlink_to("/dev/zero"), "not a regular file"),
    "directory": (Path.mkdir, "Is a directory"),
    "link to nowhere": (lambda path: path.symlink_to("nowhere"), "No such file or directory"),
}


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    return Path(shutil.copy(TRACE, tmp_path / "a.txt"))


def assert_unusable(result: subprocess.CompletedProcess[str], *said: str) -> None:
    assert result.returncode == 2, result
    assert len(result.stderr.splitlines()) == 1
    for words in said:
        assert words in result.stderr


@pytest.mark.parametrize("other", OTHERS)
def test_in_place_of_a_golden_file(trace: Path, other: str) -> None:
    make, why = OTHERS[other]
    make(Path(f"{trace}.expected.json"))
    for command in (["run", trace.name], ["check", trace.name], ["bulk", trace.name, "-o", "ds"]):
        assert_unusable(replay(*command, "--quiet", cwd=trace.parent), "a.txt.expected.json", why)


def test_a_golden_file_is_not_written_into_a_pipe(trace: Path) -> None:
    os.mkfifo(f"{trace}.expected.json")
    assert_unusable(replay("expect", trace.name, cwd=trace.parent), "a.txt.expected.json: not a regular file")


def test_results_are_not_written_into_a_pipe(trace: Path) -> None:
    (trace.parent / "out").mkdir()
    os.mkfifo(trace.parent / "out" / "run.json")
    result = replay("run", trace.name, "-o", "out", "--quiet", cwd=trace.parent)
    assert_unusable(result, "out/run.json: not a regular file")


@pytest.mark.parametrize("other", ["pipe", "device", "directory"])
def test_in_place_of_a_trace_that_a_golden_file_stands_for(trace: Path, other: str) -> None:
    make, why = OTHERS[other]
    shutil.copy(GOLDEN, f"{trace}.expected.json")
    make(trace.parent / "b.txt")
    shutil.copy(GOLDEN, trace.parent / "b.txt.expected.json")
    result = replay("check", ".", cwd=trace.parent)
    assert_unusable(result, f"b.txt: {why}")
    assert "PASS a.txt" in result.stdout


def test_a_golden_file_that_is_named_may_be_a_pipe(trace: Path) -> None:
    pipe = trace.parent / "golden"
    os.mkfifo(pipe)
    command = [sys.executable, "-m", "replay", "run", trace.name, "--expect", "golden", "--json"]
    with subprocess.Popen(command, cwd=trace.parent, stdout=subprocess.PIPE) as process:
        pipe.write_bytes(GOLDEN.read_bytes())
        output, _ = process.communicate()
    assert process.returncode == 0
    assert b'"source": "file"' in output


def test_a_golden_file_names_no_policy_file(trace: Path) -> None:
    os.mkfifo(trace.parent / "p.toml")
    golden = GOLDEN.read_text()
    altered = golden.replace('"policy": "linux-6.0"', '"policy": "p.toml"')
    assert altered != golden
    Path(f"{trace}.expected.json").write_text(altered)
    assert replay("run", trace.name, "--quiet", cwd=trace.parent).returncode == 0


@pytest.mark.parametrize("ending", ["arrow", "parquet"])
def test_tables_are_not_read_from_pipes(trace: Path, ending: str) -> None:
    assert replay("parse", trace.name, "-o", f"a.{ending}", cwd=trace.parent).returncode == 0
    os.mkfifo(trace.parent / "pipe")
    command = [sys.executable, "-m", "replay", "info", "pipe"]
    with subprocess.Popen(command, cwd=trace.parent, stderr=subprocess.PIPE, text=True) as process:
        (trace.parent / "pipe").write_bytes((trace.parent / f"a.{ending}").read_bytes())
        _, said = process.communicate()
    assert process.returncode == 2
    assert said == f"replay: error: pipe: {ending} cannot be read from a pipe: give the path of a file\n"


@pytest.mark.parametrize("other", ["pipe", "directory"])
@pytest.mark.parametrize("table", ["runs", "outcomes"])
def test_in_place_of_a_part_of_a_dataset(trace: Path, other: str, table: str) -> None:
    make, _ = OTHERS[other]
    assert replay("bulk", trace.name, "-o", "ds", "--quiet", cwd=trace.parent).returncode == 0
    (part,) = (trace.parent / "ds" / table).glob("*/*")
    part.unlink()
    make(part)
    for _ in range(2):
        again = replay("bulk", trace.name, "-o", "ds", "--json", cwd=trace.parent)
        assert again.returncode == 0, again
        asked = replay("query", "ds", f"select count(*) as n from {table}", "--csv", cwd=trace.parent)
        assert asked.returncode == 0, asked
        assert int(asked.stdout.split()[1]) >= 1
    assert '"kept": 1' in again.stdout
    assert other != "directory" or part.is_dir()


@pytest.mark.parametrize("other", ["pipe", "directory", "socket"])
def test_in_place_of_the_manifest(trace: Path, other: str) -> None:
    (trace.parent / "ds").mkdir()
    OTHERS[other][0](trace.parent / "ds" / "_replay.json")
    assert_unusable(replay("query", "ds", "select 1", cwd=trace.parent), "not a dataset")


def test_synth_writes_a_device_in_place(tmp_path: Path) -> None:
    scenario = TRACE.parents[1] / "synthetic" / "full-split.toml"
    (tmp_path / "full").symlink_to("/dev/full")
    assert_unusable(replay("synth", scenario, "-o", "full", cwd=tmp_path), "full: No space left on device")
    assert (tmp_path / "full").is_char_device()


# -- directories that cannot be listed ------------------------------------------------------------------


@pytest.fixture
def unlisted(trace: Path) -> Path:
    """A directory with one below that nobody can list, not even root: its path is too long."""
    begin = os.open(trace.parent, os.O_RDONLY | os.O_DIRECTORY)
    name, at = "d" * 250, begin
    for _ in range(18):
        os.mkdir(name, dir_fd=at)
        below = os.open(name, os.O_RDONLY | os.O_DIRECTORY, dir_fd=at)
        if at != begin:
            os.close(at)
        at = below
    os.close(at)
    os.close(begin)
    return trace.parent


def test_bulk_goes_on_with_the_others(unlisted: Path) -> None:
    result = replay("bulk", unlisted, "-o", "ds", "--json", cwd=unlisted)
    assert result.returncode == 1, result
    assert "File name too long" in result.stdout
    assert '"failed": 1' in result.stdout
    assert '"replayed": 2' in result.stdout


def test_check_goes_on_with_the_others(unlisted: Path) -> None:
    shutil.copy(GOLDEN, unlisted / "a.txt.expected.json")
    result = replay("check", unlisted, cwd=unlisted)
    assert_unusable(result, "File name too long")
    assert "PASS" in result.stdout


def test_a_directory_without_permission(trace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    locked = trace.parent / "locked"
    locked.mkdir()
    shutil.copy(GOLDEN, trace.parent / "a.txt.expected.json")
    listed = os.scandir

    def scandir(path: str) -> Iterator[os.DirEntry[str]]:
        if Path(path) == locked:
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert list(trace_files(trace.parent)) == [str(trace), str(locked)]
    assert sorted(task.path for task in find_tasks([str(trace.parent)])) == [str(trace), str(locked)]
    assert find_traces([trace.parent]) == [trace, locked]
    assert without_golden([trace.parent]) == []
    with pytest.raises(InputError, match="locked: Permission denied"):
        check_trace(locked)
