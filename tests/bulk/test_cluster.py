"""A Dask cluster of separate processes gives the dataset that local processes give."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.bulk.conftest import content
from tests.bulk.gate import ENVIRONMENT, HANGS_SECONDS, PROGRAM, Gate
from tests.test_cli import EVENTS, error_of, replay, trace_text

pytest.importorskip("distributed", reason="needs Dask: pip install 'kvm-replay[dask]'")

CLUSTER = """
import sys
from distributed import LocalCluster
if __name__ == "__main__":
    with LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, preload=sys.argv[1]
    ) as cluster:
        print(cluster.scheduler_address, flush=True)
        sys.stdin.read()
"""


@contextmanager
def cluster() -> Iterator[str]:
    """A cluster of two worker processes, which know gates: the address of its scheduler."""
    with subprocess.Popen(
        [sys.executable, "-c", CLUSTER, str(PROGRAM)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=ENVIRONMENT,
    ) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
        process.communicate("")


def test_same_dataset_though_a_worker_is_killed(corpus: Path, tmp_path: Path) -> None:
    for number in range(30):
        (corpus / f"more-{number}.txt").write_text(trace_text(EVENTS * 20) + f"# {number}\n")
    options = ["--policy", "auto", "--policy", "v2-alias", "--expect", "recorded"]
    replay("bulk", corpus, "-o", tmp_path / "local", *options)
    out = tmp_path / "dask"
    command = [sys.executable, "-m", "replay", "bulk", corpus, "-o", f"file://{out}", "--json", *options]
    with (
        cluster() as address,
        Gate(corpus / "more-7.txt") as gate,
        subprocess.Popen([*map(str, command), "--scheduler", address], stdout=subprocess.PIPE) as process,
    ):
        killed = gate.holds(process)
        os.kill(killed, signal.SIGKILL)
        assert gate.holds(process) != killed
        gate.let_go()
        printed, _ = process.communicate(timeout=HANGS_SECONDS)
        assert process.returncode == 1
        summary = json.loads(printed)
        assert (summary["traces"], summary["replayed"]) == (46, 46)
        assert summary["failed"] == 2
        assert content(out) == content(tmp_path / "local")
        again = replay("bulk", corpus, "-o", out, "--json", "--scheduler", address, *options)
        assert json.loads(again.stdout)["kept"] == 46
    assert content(out) == content(tmp_path / "local")


def test_no_scheduler(corpus: Path, tmp_path: Path) -> None:
    result = replay("bulk", corpus, "-o", tmp_path / "out", "--scheduler", "tcp://127.0.0.1:9")
    assert error_of(result) == "--scheduler tcp://127.0.0.1:9: no scheduler answers there"
