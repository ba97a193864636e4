"""docs/fidelity.md: its rows are what tools/fidelity.py prints, and none is missing."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[1]
RECORDED = PROJECT / "traces" / "recorded"
CHECKED = (
    "v2/C3-mixed4k",
    "v2/V-clear-npt2m-back1g",
    "linux-6.1/C4-enospc",
    "linux-5.10/C1-nested-2m",
    "intel-7.3.4/C6-ept-perm-nxhp",
    "intel-6.1.176/E7-ept-slotmove",
)


def table(text: str) -> list[list[str]]:
    """The rows below the title row of the comparison, as cells."""
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line[:1] == "|"]
    begin = next(number for number, row in enumerate(rows) if row[0] == "recording")
    return rows[begin + 2 :]


def fidelity(*paths: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, PROJECT / "tools" / "fidelity.py", *map(str, paths)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=PROJECT)


@pytest.fixture(scope="module")
def documented() -> list[list[str]]:
    return table((PROJECT / "docs" / "fidelity.md").read_text())


def test_rows_are_what_the_command_prints(documented: list[list[str]]) -> None:
    result = fidelity(*(RECORDED / f"{name}.txt.zst" for name in CHECKED))
    assert (result.returncode, result.stderr) == (0, "")
    *rows, sums = table(result.stdout)
    assert [row[0] for row in rows] == list(CHECKED)
    assert all(row in documented for row in rows)
    assert sums[0] == f"{len(CHECKED)} recordings"


def test_every_recording_has_a_row_and_the_sums_are_theirs(documented: list[list[str]]) -> None:
    *rows, sums = documented
    traces = (path.relative_to(RECORDED).as_posix() for path in RECORDED.glob("*/*.txt.zst"))
    assert sorted(row[0] for row in rows) == sorted(trace.removesuffix(".txt.zst") for trace in traces)
    for column in range(4, 9):
        pairs = [row[column].replace(",", "").split(" of ") for row in rows if row[column]]
        equal, recorded = (sum(map(int, numbers)) for numbers in zip(*pairs, strict=True))
        assert sums[column] == f"{equal:,} of {recorded:,}"


def test_a_directory_and_what_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "notes.md").write_text("no trace")
    (tmp_path / "empty.txt").touch()
    result = fidelity(tmp_path)
    assert result.returncode == 1
    assert result.stderr == f"fidelity: error: {tmp_path}/empty.txt: empty file\n"


def test_cuts_and_missing_kinds_have_columns() -> None:
    trace = RECORDED / "linux-6.1" / "C1-nested-la57.txt.zst"
    result = fidelity(trace, "--cuts", 3, "--missing")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.splitlines()[0].endswith("| verdict | cut | kinds missing |")
    row, sums = table(result.stdout)
    assert row[-2:] == sums[-2:]
    shares, words = zip(*(cell.split("; ") for cell in row[-2:]), strict=True)
    for share in shares:
        compared, of, equal = map(int, re.findall(r"\d+", re.sub(r"(?<=\d),(?=\d)", "", share)))
        assert 0 < compared == equal <= of
    verdicts = [sum(int(count.split()[0]) for count in text.split(", ")) for text in words]
    assert verdicts[0] == 3
    assert verdicts[1] > 20
    assert "mismatch" not in result.stdout
