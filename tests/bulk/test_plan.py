"""What paths name, what traces cost, and what memory they are given."""

from __future__ import annotations

import gzip
import io
import lzma
from pathlib import Path

import pytest
import zstandard

from replay.bulk.memory import NEED_BYTES, Estimate, default_memory, parse_size, peak, resident
from replay.bulk.plan import Task, find_tasks
from replay.errors import InputError, UsageError
from replay.trace.files import is_trace_name
from tests.test_cli import trace_text

NAMES = (
    "a.txt", "a.txt.zst", "b.trace.gz", "c.dat", "d.data.xz", "e.parquet", "trace", "trace.zst", "log.log",
    "trace_pipe.out",
)  # fmt: skip
OTHERS = ("README.md", "LICENSE", "a.txt.expected.json", ".hidden.txt", "x.toml", "y.info.json", "z.html")


def paths(*given: object, leave_out: Path | None = None) -> list[str]:
    tasks = find_tasks(map(str, given), None if leave_out is None else str(leave_out))
    return sorted(task.path for task in tasks)


def test_names_of_traces() -> None:
    assert [name for name in (*NAMES, *OTHERS) if is_trace_name(name)] == list(NAMES)


def test_directories_patterns_and_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.txt", "deep/b.txt", "deep/er/c.txt", ".git/d.txt", "set/runs/e.parquet", "README.md"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text("x")
    Path("set/_replay.json").write_text("{}")
    assert paths(".") == ["./a.txt", "./deep/b.txt", "./deep/er/c.txt"]
    assert paths("**/*.txt") == ["a.txt", "deep/b.txt", "deep/er/c.txt"]
    assert paths("deep/*") == ["deep/b.txt", "deep/er/c.txt"]
    assert paths("README.md", "README.md", "gone") == ["README.md", "gone"]
    assert paths(".", leave_out=Path("deep")) == ["./a.txt"]
    with pytest.raises(InputError, match="no trace"):
        find_tasks(["x*"])


def test_size_of_the_text_is_told_by_the_file(tmp_path: Path) -> None:
    text = trace_text().encode() * 50
    size = len(text)
    streamed = io.BytesIO()
    with zstandard.ZstdCompressor().stream_writer(streamed, closefd=False) as writer:
        writer.write(text)
    contents = {
        "plain": (text, size),
        "gzip": (gzip.compress(text), size),
        "zstd": (zstandard.compress(text), size),
        "xz": (lzma.compress(text), len(lzma.compress(text)) * 25),
    }
    for kind, (data, expected) in contents.items():
        (tmp_path / kind).write_bytes(data)
        (task,) = find_tasks([str(tmp_path / kind)])
        assert (task.kind, task.file_bytes, task.text_bytes) == (kind, len(data), expected)
    (tmp_path / "streamed").write_bytes(streamed.getvalue())
    (task,) = find_tasks([str(tmp_path / "streamed")])
    assert (task.kind, task.text_bytes) == ("zstd", len(streamed.getvalue()) * 20)


def test_largest_first(tmp_path: Path) -> None:
    for name, size in (("a", 10), ("b", 3000), ("c", 200)):
        (tmp_path / f"{name}.txt").write_bytes(b"x" * size)
    assert [Path(task.path).stem for task in find_tasks([str(tmp_path)])] == ["b", "c", "a"]


@pytest.mark.parametrize(
    ("text", "size"), [("4G", 4 << 30), ("800M", 800 << 20), ("1.5GiB", 3 << 29), ("64kB", 1 << 16), ("9", 9)]
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "4X", "-1G", "0", "G"])
def test_no_sizes(text: str) -> None:
    with pytest.raises(UsageError, match="--memory"):
        parse_size(text)


def test_memory_of_processes() -> None:
    assert 0 < resident() <= peak()
    assert resident(1 << 30) == 0
    assert default_memory() > 0


def test_estimate_grows_with_what_traces_take() -> None:
    estimate = Estimate()
    task = Task("a", "/a", 1 << 26, 1 << 26, "plain")
    first = estimate.need(task)
    assert first >= NEED_BYTES + (1 << 26)
    estimate.learn(task, first // 2)
    assert estimate.need(task) == first
    estimate.learn(task, 3 * first)
    assert estimate.need(task) >= 3 * first
    other = Task("b", "/b", 1 << 26, 1 << 26, "zstd")
    assert estimate.need(other) == Estimate().need(other)
