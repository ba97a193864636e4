"""Damaged trace.dat files: one clear error or a trace, never a crash, and little memory.

Damage is random with a fixed seed.  What is claimed is what holds for any damage; that a cut file is always
told is claimed of those whose end names the events.
"""

from __future__ import annotations

import os
import random
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from replay.errors import TraceError
from replay.trace.reader import read_trace
from tests.trace.dat_files import (
    PRINT,
    Buffer,
    Contents,
    Event,
    marker,
    number,
    page,
    record,
    version_6,
    version_7,
)

GET_PAGE = Event(
    "kvm_mmu_get_page",
    100,
    "u64 gfn, u32 role, u32 root_count, u8 mmu_valid_gen, u8 unsync, u8 created",
    '"has_4_byte_gpte"',
)
SPLIT = Event("kvm_mmu_split_huge_page", 101, "u64 gfn, u64 spte, s32 level, s32 errno")
REGION = Event("set_region", 102, "u64 __probe_ip, u32 slot, u32 flags, u64 gpa, u64 size, u64 uaddr")
FORMS: dict[str, Callable[[Contents], bytes]] = {
    "6": version_6,
    "7": version_7,
    "7 zlib": lambda contents: version_7(contents, "zlib"),
    "7 zstd": lambda contents: version_7(contents, "zstd"),
}
SEEDS = range(8)
MAX_MEMORY = 256 << 20


def whole(form: str) -> bytes:
    formats = [("ftrace", PRINT), *(("kvm", event.format()) for event in (GET_PAGE, SPLIT, REGION))]
    cpus = {}
    for cpu in range(3):
        pages = b""
        for n in range(6):
            records = [
                record(marker("replay: nr_mmu_pages n=64"), 5),
                record(REGION.data(1, 2, 0, 0, 1 << 20, 9), 3),
            ]
            for gfn in range(20):
                records.append(record(GET_PAGE.data(gfn << 9, 0x1E1, 0, 0, 0, 1, pid=70 + gfn), 7))
                records.append(record(SPLIT.data(gfn << 9, 0xEE7, 2, -11), 3))
            pages += page(1000 * n, records, lost=4 if n == 3 else None)
        cpus[cpu] = pages
    buffers = [Buffer(cpus), Buffer({0: cpus[1]}, "second")]
    return FORMS[form](
        Contents(formats, buffers, options=[(5, b"Linux h 6.1.0 x86_64\0"), (2, b"overrun: 1\0")])
    )


def outcome(path: Path, data: bytes) -> str | None:
    """The error of reading ``data``; None if it was read."""
    path.write_bytes(data)
    try:
        trace = read_trace(str(path))
        trace.table()
    except TraceError as error:
        line = str(error)
    else:
        line = ""
    if line:
        assert line.startswith(f"{path}: ")
        assert "\n" not in line
        return line.removeprefix(f"{path}: ")
    assert trace.lines == trace.events + trace.ignored_lines + trace.malformed_lines
    return None


@pytest.fixture(scope="module", params=FORMS)
def data(request: pytest.FixtureRequest) -> bytes:
    return whole(request.param)


def test_undamaged(tmp_path: Path, data: bytes) -> None:
    assert outcome(tmp_path / "t", data) is None


def test_cut(tmp_path: Path, data: bytes) -> None:
    chance = random.Random(1)
    for size in [11, 12, 17, 40, len(data) - 1, *(chance.randrange(18, len(data)) for _ in range(30))]:
        message = outcome(tmp_path / "t", data[:size])
        assert message is not None
        assert "trace.dat" in message


@pytest.mark.parametrize("seed", SEEDS)
def test_flipped(tmp_path: Path, data: bytes, seed: int) -> None:
    chance = random.Random(seed)
    tracemalloc.start()
    for _ in range(25):
        damaged = bytearray(data)
        for _ in range(chance.choice((1, 1, 4, 40))):
            # headers and options are few bytes among many: half of the damage goes there
            places = chance.choice((range(10, 60), range(len(data)), range(len(data) - 500, len(data))))
            damaged[chance.choice(places)] = chance.choice((0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)))
        outcome(tmp_path / "t", bytes(damaged))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < MAX_MEMORY


@pytest.mark.parametrize("seed", SEEDS)
def test_pages_of_noise(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    pages = b"".join(
        chance.randbytes(8) + (chance.randrange(4081) & ~3).to_bytes(8, "little") + chance.randbytes(4080)
        for _ in range(3)
    )
    formats = [("ftrace", PRINT), ("kvm", GET_PAGE.format())]
    contents = Contents(
        formats, [Buffer({0: page(1, [record(GET_PAGE.data(0, 0x1E1, 0, 0, 0, 1))]) + pages})]
    )
    message = outcome(tmp_path / "t", version_7(contents))
    assert message is None or "CPU 0" in message


@pytest.mark.parametrize("algorithm", ["zlib", "zstd"])
def test_a_part_that_claims_too_much(tmp_path: Path, algorithm: str) -> None:
    data = whole(f"7 {algorithm}")
    place = data.index(b"1.0\0") + 4 + 8 + 16 + 4  # how large the first section is uncompressed
    for size in (1 << 31, 1 << 27, 5):
        damaged = data[:place] + size.to_bytes(4, "little") + data[place + 4 :]
        message = outcome(tmp_path / "t", damaged)
        assert message is not None
        assert "corrupt" in message


HUGE = (
    "99999999999999999999",
    "9" * 5000,
    "-1",
    "18446744073709551615",
    "4294967296",
    "65536",
    "1000000",
    "0",
)


@pytest.mark.parametrize("huge", HUGE)
@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"ID: 100\n", b"ID: %s\n"),
        (b"common_pid;\toffset:4;", b"common_pid;\toffset:%s;"),
        (b"gfn;\toffset:8;\tsize:8;", b"gfn;\toffset:%s;\tsize:8;"),
        (b"gfn;\toffset:8;\tsize:8;", b"gfn;\toffset:8;\tsize:%s;"),
        (b"buf[];\toffset:16;", b"buf[];\toffset:%s;"),
    ],
)
def test_numbers_of_formats(tmp_path: Path, old: bytes, new: bytes, huge: str) -> None:
    formats = [("ftrace", PRINT), *(("kvm", event.format()) for event in (GET_PAGE, SPLIT))]
    changed = [(system, text.replace(old.decode(), new.decode() % huge)) for system, text in formats]
    assert changed != formats
    records = [record(marker("replay: resched")), record(GET_PAGE.data(0, 0x1E1, 0, 0, 0, 1))]
    data = version_7(Contents(changed, [Buffer({0: page(1, records)})]))
    assert outcome(tmp_path / "t", data) is None


@pytest.mark.parametrize("huge", HUGE)
@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (1, "%s"),
        (7, "%s"),
        (2, "overrun: %s\n"),
        (32, "7 %s\n%s 7\n"),
        (32, "77 %s\n"),
        (5, "%s"),
        (14, "%s"),
    ],
)
def test_numbers_of_options(tmp_path: Path, kind: int, text: str, huge: str) -> None:
    formats = [("kvm", SPLIT.format())]
    pages = page(1, [record(SPLIT.data(1, 2, 2, 0))])
    value = text.replace("%s", huge).encode() + b"\0"
    data = version_7(Contents(formats, [Buffer({0: pages})], f"77 a\n{huge} b\n", [(kind, value)]))
    message = outcome(tmp_path / "t", data)
    assert message is None or "trace.dat" in message


@pytest.mark.parametrize(
    "form", ["%9999999999d", "%*.*d", "%99d", "%-+ #08.3llx %s %s", "%c%hhd%hu%p%%", "%", "%z"]
)
def test_hostile_printk(tmp_path: Path, form: str) -> None:
    bprint = Event("bprint", 6, "u64 ip, u64 fmt").format()
    bprint += "\tfield:u32 buf[];\toffset:24;\tsize:0;\tsigned:0;\n"
    data = number(6, 2) + bytes(6) + number(1, 8) + number(0x10, 8)
    records = [record(data + arguments) for arguments in (b"", b"\xff" * 40, b"\x7f" * 40)]
    contents = Contents(
        [("ftrace", bprint)], [Buffer({0: page(1, records)})], printk=f'0x10 : "replay: a {form}"\n'
    )
    assert outcome(tmp_path / "t", version_7(contents)) is None


def test_damage_inside_a_compressed_file_is_told_as_its(tmp_path: Path) -> None:
    packed = zstandard.compress(whole("7"))
    assert outcome(tmp_path / "t", packed[:-20]) == "truncated zstd file"


@pytest.mark.parametrize("form", ["6", "7 zstd"])
def test_a_file_cut_off_while_it_is_read_is_told(tmp_path: Path, form: str) -> None:
    chance = random.Random(1)
    pages = page(10, [record(SPLIT.data(chance.getrandbits(64), 0, 2, 0)) for _ in range(100)])
    buffers = [Buffer(dict.fromkeys(range(2), pages * 400))]
    path = tmp_path / "trace.dat"
    path.write_bytes(FORMS[form](Contents([("kvm", SPLIT.format())], buffers)))
    size = path.stat().st_size
    with pytest.raises(TraceError, match="cut off while it was read"):
        read_trace(str(path), progress=lambda done, total: os.truncate(path, size // 2))
