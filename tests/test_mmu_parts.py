"""The engine as plain Python: its parts, which jitted code alone can call, and one recording as a whole."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

ROOT = Path(__file__).parents[1]
RECORDING = ROOT / "traces" / "recorded" / "v2" / "C1-nested-2m.txt.zst"
RUN = ("run", str(RECORDING), "--policy", "v2", "--expect", "recorded", "--quiet", "-o")


def run_python(*arguments: str, jit: bool) -> None:
    environment = os.environ | {"NUMBA_DISABLE_JIT": "0" if jit else "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]


def test_parts() -> None:
    run_python("-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", "0", "tests/mmu", jit=False)


def test_whole_engine_does_the_same_without_compilation(tmp_path: Path) -> None:
    tables: dict[bool, dict[str, pa.Table]] = {}
    for jit in (True, False):
        output = tmp_path / f"jit-{jit}"
        run_python("-W", "ignore::RuntimeWarning", "-m", "replay", *RUN, str(output), jit=jit)
        tables[jit] = {
            name: pq.read_table(output / f"{name}.parquet") for name in ("outcomes", "flushes", "windows")
        }
    assert tables[True]["outcomes"].num_rows > 100
    for name, table in tables[True].items():
        assert table.equals(tables[False][name]), name
