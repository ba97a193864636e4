"""Output files appear whole or not at all."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from replay.errors import OutputError
from replay.output import make_directory, replacing, write_text


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, SystemExit, ValueError])
def test_interrupted_write_leaves_the_old_file(tmp_path: Path, interruption: type[BaseException]) -> None:
    path = tmp_path / "out.parquet"
    path.write_text("old")

    def write_half() -> None:
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise interruption

    with pytest.raises(interruption):
        write_half()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_temporary_name_has_the_same_ending_and_directory(tmp_path: Path) -> None:
    with replacing(tmp_path / "events.parquet") as temporary:
        assert temporary.suffix == ".parquet"
        assert temporary.parent == tmp_path
        assert not (tmp_path / "events.parquet").exists()
        temporary.write_text("whole")
    assert (tmp_path / "events.parquet").read_text() == "whole"


def test_symbolic_link_is_followed(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_text("old")
    link.symlink_to(target)
    write_text(link, "new")
    assert link.is_symlink()
    assert target.read_text() == "new"


def test_device_is_written_in_place() -> None:
    write_text("/dev/null", "gone")
    assert Path("/dev/null").is_char_device()


def test_full_disk() -> None:
    with pytest.raises(OutputError, match="/dev/full: No space left on device"):
        write_text("/dev/full", "text")


def test_directory_in_the_way(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="Is a directory"):
        write_text(tmp_path, "text")
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="File exists"):
        make_directory(tmp_path / "file")
    with pytest.raises(OutputError, match="Not a directory"):
        write_text(tmp_path / "file" / "below", "text")


def test_pipe_behind_the_name_of_standard_output() -> None:
    program = "from replay.output import write_text; write_text('/dev/stdout', 'text')"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "text"
    assert Path("/dev/stdout").is_symlink()
