"""XXH64, against published values and a plain reading of its specification."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from replay.bulk import digest
from replay.bulk.digest import file_digest


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", "ef46db3751d8e999"),
        (b"a", "d24ec4f1a98c6e5b"),
        (b"abc", "44bc2cf5ad770999"),
        (b"Nobody inspects the spammish repetition", "fbcea83c8a378bf1"),
    ],
)
def test_published_values(tmp_path: Path, data: bytes, expected: str) -> None:
    (tmp_path / "file").write_bytes(data)
    assert file_digest(tmp_path / "file") == expected


@pytest.mark.parametrize("size", [31, 32, 33, 63, 64, 1000, (1 << 18) - 1, 1 << 18, (1 << 18) + 45, 600_000])
def test_lanes_of_any_length(tmp_path: Path, size: int) -> None:
    data = random.Random(size).randbytes(size)
    (tmp_path / "file").write_bytes(data)
    p1, p2 = digest.PRIME_1, digest.PRIME_2
    lanes = [(p1 + p2) % 2**64, p2, 0, -p1 % 2**64]
    whole = size - size % 32
    for at in range(0, whole, 8):
        word = int.from_bytes(data[at : at + 8], "little")
        lane = (lanes[at // 8 % 4] + word * p2) % 2**64
        lanes[at // 8 % 4] = ((lane << 31 | lane >> 33) * p1) % 2**64
    assert file_digest(tmp_path / "file") == f"{digest._finished(lanes, size, data[whole:]):016x}"
