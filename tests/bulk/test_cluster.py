"""A Dask cluster of separate processes gives the dataset that local processes give."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from replay.bulk.storage import STAGING
from tests.bulk.conftest import content
from tests.test_cli import EVENTS, error_of, replay, trace_text

pytest.importorskip("distributed", reason="needs Dask: pip install 'kvm-replay[dask]'")

CLUSTER = """
import sys, time
from distributed import LocalCluster
if __name__ == "__main__":
    with LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster:
        print(cluster.scheduler_address, *(w.pid for w in cluster.workers.values()), flush=True)
        sys.stdin.read()
"""


@contextmanager
def cluster() -> Iterator[tuple[str, list[int]]]:
    """A cluster of two worker processes: the address of its scheduler, the processes."""
    with subprocess.Popen(
        [sys.executable, "-c", CLUSTER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdout is not None
        address, *workers = process.stdout.readline().split()
        yield address, [int(worker) for worker in workers]
        process.communicate("")


def test_same_dataset_though_a_worker_is_killed(corpus: Path, tmp_path: Path) -> None:
    for number in range(30):
        (corpus / f"more-{number}.txt").write_text(trace_text(EVENTS * 20) + f"# {number}\n")
    options = ["--policy", "auto", "--policy", "v2-alias", "--expect", "recorded"]
    replay("bulk", corpus, "-o", tmp_path / "local", *options)
    out = tmp_path / "dask"
    command = [sys.executable, "-m", "replay", "bulk", corpus, "-o", f"file://{out}", "--json", *options]
    with (
        cluster() as (address, (first, _)),
        subprocess.Popen([*map(str, command), "--scheduler", address], stdout=subprocess.PIPE) as process,
    ):
        deadline = time.monotonic() + 100
        while len(list((out / STAGING).glob("*.arrow"))) < 3 and time.monotonic() < deadline:
            time.sleep(0.002)
        assert process.poll() is None
        os.kill(first, signal.SIGKILL)
        printed, _ = process.communicate(timeout=200)
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
