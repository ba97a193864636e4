"""trace.dat files: rows and outcomes as the text of the same run gives them, in every form of the file."""

from __future__ import annotations

import gzip
import lzma
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest
import zstandard

from replay.run import Request, run_trace
from replay.schema import Role
from replay.trace.reader import Trace, read_trace
from tests.trace.dat_files import Contents, contents_of, version_6, version_7

RECORDED = Path(__file__).parents[2] / "traces" / "trace-cmd"
NAMES = ("linux-5.10/C1-nested-2m", "linux-6.1/C1-nested-thp", "linux-6.1/D-two-vms")
KERNELS = {"linux-5.10": "5.10.0-46-amd64", "linux-6.1": "6.1.0-50-amd64"}
PRINTED = int(
    Role.LEVEL
    | Role.HAS_4_BYTE_GPTE
    | Role.QUADRANT
    | Role.DIRECT
    | Role.ACCESS
    | Role.INVALID
    | Role.EFER_NX
    | Role.AD_DISABLED
    | Role.GEN
)
"""The role bits that the kernel's text shows."""
TGID_COLUMN = re.compile(rb"^(.{16}-\d+ +)\([ \d-]{7}\) ", re.MULTILINE)
FORMS: dict[str, Callable[[Contents], bytes]] = {
    "6": version_6,
    "7": version_7,
    "7 zlib": lambda contents: version_7(contents, "zlib"),
    "7 zstd": lambda contents: version_7(contents, "zstd"),
}
COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "plain": lambda data: data,
    "gzip": gzip.compress,
    "xz": lzma.compress,
    "zstd": zstandard.compress,
}


def unpacked(name: str) -> bytes:
    return zstandard.ZstdDecompressor().decompress((RECORDED / name).read_bytes(), 1 << 28)


@pytest.fixture(scope="module", params=NAMES)
def recording(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A trace.dat file, and the kernel's text of the same ring, less its TGID column that the file lacks."""
    directory = tmp_path_factory.mktemp("recording")
    (directory / "trace.dat").write_bytes(unpacked(f"{request.param}.dat.zst"))
    text, columns = TGID_COLUMN.subn(rb"\1", unpacked(f"{request.param}.txt.zst"))
    assert columns > 2000
    (directory / "trace.txt").write_bytes(text)
    return directory / "trace.dat", directory / "trace.txt"


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sample") / "trace.dat"
    path.write_bytes(unpacked("linux-6.1/D-two-vms.dat.zst"))
    return path


def masked(table: pa.Table) -> pa.Table:
    """``table`` with what both forms tell: printed role bits, times in us, no line numbers."""
    roles = pc.bit_wise_and(table["role"], pa.scalar(PRINTED, pa.uint32()))
    times = pc.multiply(pc.divide(pc.add(table["ts_ns"], 500), 1000), 1000)
    table = table.set_column(table.column_names.index("role"), "role", roles)
    return table.set_column(table.column_names.index("ts_ns"), "ts_ns", times).drop_columns(["line"])


def facts(trace: Trace) -> dict[str, object]:
    names = ("events", "kvmmmu_events", "ignored_events", "malformed_lines", "lost_events", "vms", "comms")
    return {name: getattr(trace, name) for name in names}


def test_the_rows_are_those_of_the_text(recording: tuple[Path, Path]) -> None:
    binary, text = (read_trace(str(path)) for path in recording)
    assert facts(binary) == facts(text)
    one, other = (trace.table().combine_chunks() for trace in (binary, text))
    assert masked(one) == masked(other)
    headers = pc.subtract(other["line"], one["line"])  # lines that are no records all come first
    assert pc.unique(headers).to_pylist() == [text.lines - binary.lines]
    assert (binary.format, binary.lines) == ("trace.dat", binary.events + binary.ignored_lines)


def test_the_roles_have_more_than_text(sample: Path) -> None:
    trace = read_trace(str(sample))
    roles = {role for role in trace.table()["role"].to_pylist() if role}
    assert {bool(role & Role.GUEST_MODE) for role in roles} == {True, False}
    assert len({role & PRINTED for role in roles}) < len(roles)
    assert not {role for role in roles if role & Role.GUEST_MODE and not role & Role.LEVEL}


def test_the_kernel_is_told(recording: tuple[Path, Path]) -> None:
    assert read_trace(str(recording[0])).kernel in KERNELS.values()
    assert read_trace(str(recording[1])).kernel is None


def test_the_outcomes_are_those_of_the_text(recording: tuple[Path, Path]) -> None:
    binary, text = (run_trace(str(path), Request(expect="recorded")) for path in recording)
    dropped = ["ts_ns", "line", "role"]
    one, other = (run.replay.outcomes.combine_chunks() for run in (binary, text))
    assert one.drop_columns(dropped) == other.drop_columns(dropped)
    assert [role & PRINTED for role in one["role"].to_pylist() if role] == [
        role for role in other["role"].to_pylist() if role
    ]
    documents = [run.document for run in (binary, text)]
    for name in ("totals", "expected", "environment", "tdp", "divergences", "verdict"):
        assert documents[0][name] == documents[1][name]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("options", [{}, {"batch_rows": 1000, "memory_bytes": 0}])
def test_forms_of_the_file(tmp_path: Path, sample: Path, form: str, options: dict[str, int]) -> None:
    (tmp_path / "t").write_bytes(FORMS[form](contents_of(sample)))
    trace, expected = read_trace(str(tmp_path / "t"), **options), read_trace(str(sample))  # type: ignore[arg-type]
    assert (facts(trace), trace.kernel) == (facts(expected), expected.kernel)
    assert trace.table().combine_chunks() == expected.table().combine_chunks()


@pytest.mark.parametrize("compression", COMPRESS)
def test_compressed_as_a_whole(tmp_path: Path, sample: Path, compression: str) -> None:
    (tmp_path / "t").write_bytes(COMPRESS[compression](sample.read_bytes()))
    trace = read_trace(str(tmp_path / "t"))
    assert trace.bytes == sample.stat().st_size
    assert trace.table().combine_chunks() == read_trace(str(sample)).table().combine_chunks()


def test_from_standard_input(sample: Path) -> None:
    code = "from replay.trace.reader import read_trace; t = read_trace('-'); print(t.format, t.events, t.vms)"
    result = subprocess.run(
        [sys.executable, "-c", code], input=sample.read_bytes(), capture_output=True, check=True
    )
    assert result.stdout.decode().strip() == "trace.dat 7633 ['pid 370', 'pid 372']"


def test_progress_reaches_the_end(sample: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    read_trace(str(sample), progress=lambda done, size: seen.append((done, size)))
    assert seen
    assert seen == sorted(seen)
    assert seen[-1] == (sample.stat().st_size, sample.stat().st_size)
