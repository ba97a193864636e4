"""The golden-file gate for CI systems: traces without golden files, JUnit XML, the plugin of pytest."""

from __future__ import annotations

import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from replay.errors import TraceError
from replay.report.check import junit_text
from replay.verdict.check import Check
from tests.test_cli import error_of, replay, trace_text

SYNTHETIC = Path(__file__).parents[2] / "traces" / "synthetic"


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Three traces: one is as its golden file says, one is not, one has none."""
    made = tmp_path / "corpus"
    made.mkdir()
    for name in ("two-vms.txt", "full-split.txt"):
        shutil.copy(SYNTHETIC / name, made)
        shutil.copy(SYNTHETIC / f"{name}.expected.json", made)
    golden = made / "full-split.txt.expected.json"
    golden.write_text(golden.read_text().replace('"installed": 512', '"installed": 511', 1))
    (made / "new.txt").write_text(trace_text())
    return made


def test_junit(corpus: Path, tmp_path: Path) -> None:
    result = replay("check", corpus, "--junit", tmp_path / "junit.xml")
    assert result.returncode == 1
    assert result.stdout.splitlines()[-2:] == [
        f"NONE {corpus}/new.txt: no golden file",
        "1 passed, 1 failed, 1 without a golden file",
    ]
    suite = ET.parse(tmp_path / "junit.xml").getroot()[0]
    assert {name: suite.get(name) for name in ("tests", "failures", "errors", "skipped")} == {
        "tests": "3",
        "failures": "1",
        "errors": "0",
        "skipped": "1",
    }
    cases = {str(case.get("name")): [child.tag for child in case] for case in suite}
    assert cases == {
        f"{corpus}/full-split.txt": ["failure"],
        f"{corpus}/two-vms.txt": [],
        f"{corpus}/new.txt": ["skipped"],
    }
    failure = suite.find("testcase/failure")
    assert failure is not None
    assert failure.get("message") == "1 attempt not as expected"
    assert "installed 511" in str(failure.text)


def test_junit_is_written_though_a_trace_cannot_be_used(corpus: Path, tmp_path: Path) -> None:
    (corpus / "two-vms.txt").write_bytes(b"\0\1\2")
    refused = replay("check", corpus, "--junit", tmp_path / "junit.xml", "--quiet")
    assert "two-vms.txt: not a trace" in error_of(refused)
    suite = ET.parse(tmp_path / "junit.xml").getroot()[0]
    assert (suite.get("failures"), suite.get("errors")) == ("1", "1")


def test_junit_holds_any_text() -> None:
    error = TraceError("a\x00<b>", 3, "bad \x1b text & more")
    text = junit_text([Check(Path("a\x00<b>"), "error", error=error)])
    (case,) = ET.fromstring(text)[0]
    assert case.get("name") == r"a\x00<b>"
    assert case[0].get("message") == r"a\x00<b>:3: bad \x1b text & more"


def pytest_run(directory: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-p", "replay.pytest_plugin", "-rs", *map(str, arguments)]
    return subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False, timeout=600)


def test_pytest_plugin(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "test_mine.py").write_text("def test_mine():\n    pass\n")
    result = pytest_run(tmp_path, "--replay-traces", "corpus")
    assert result.returncode == 1, result.stdout + result.stderr
    assert "1 failed, 2 passed, 1 skipped" in result.stdout
    assert "FAIL corpus/full-split.txt: policy v2" in result.stdout
    assert "Traceback" not in result.stdout
    assert "no golden file" in result.stdout
    chosen = pytest_run(tmp_path, "--replay-traces", "corpus", "-k", "two-vms")
    assert "1 passed, 3 deselected" in chosen.stdout


def test_pytest_plugin_without_traces(tmp_path: Path) -> None:
    result = pytest_run(tmp_path, "--replay-traces", ".")
    assert result.returncode == 4
    assert "--replay-traces .: no trace with a golden file" in result.stderr


def test_pytest_plugin_imports_nothing_heavy_without_its_option(tmp_path: Path) -> None:
    (tmp_path / "test_imports.py").write_text(
        "import sys\n"
        "def test_imports():\n"
        "    assert 'replay.pytest_plugin' in sys.modules\n"
        "    assert not {'numba', 'numpy', 'polars', 'pyarrow', 'dask', 'typer'} & sys.modules.keys()\n"
    )
    result = pytest_run(tmp_path, "-p", "no:hypothesispytest", "-p", "no:xdist")
    assert result.returncode == 0, result.stdout


def test_golden_files_of_this_repository_are_up_to_date() -> None:
    result = replay("check", Path(__file__).parents[2] / "traces", "--quiet")
    assert (result.returncode, result.stdout) == (0, ""), result.stdout
