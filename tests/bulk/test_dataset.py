"""The dataset's files: whatever moment a run ends at, the next one makes the same of them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from replay.bulk.dataset import Dataset
from replay.bulk.manifest import MAX_MANIFEST_BYTES, results_version
from replay.bulk.plan import Task, find_tasks
from replay.bulk.storage import STAGING, Storage, write_staged
from replay.bulk.work import Job, work
from replay.errors import OutputError, UsageError
from replay.run import Request
from replay.schema import BULK_TABLES
from tests.bulk.conftest import content, rows_of
from tests.test_cli import EVENTS, trace_text

POLICIES = {"v2": None, "linux-6.0": None}


class Killed(Exception):
    """Stands for the end of the process."""


class Failing:
    """A file system on which the process ends at the n-th change; nothing is changed after that."""

    def __init__(self, fs: Any, changes: int) -> None:
        self._fs = fs
        self.left = changes

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._fs, name)
        if name not in ("move", "delete_file", "open_output_stream"):
            return method

        def call(*arguments: Any) -> Any:
            self.left -= 1
            if self.left < 0:
                raise Killed
            return method(*arguments)

        return call


def dataset(directory: Path) -> Dataset:
    storage = Storage(str(directory))
    storage.make_directory(STAGING)
    return Dataset(storage, {}, POLICIES)


def stage(open_dataset: Dataset, task: Task, known: Any = None) -> None:
    labels = {label: label for label in POLICIES}
    job = Job(open_dataset.storage.url, open_dataset.key, labels, Request(expect="none"))
    open_dataset.keep(work(job, task, known or {}))


@pytest.fixture
def half_done(corpus: Path, tmp_path: Path) -> Path:
    """A dataset of three traces, one of which and two others are staged anew."""
    directory = tmp_path / "half"
    opened = dataset(directory)
    kinds = corpus / "kinds"
    for name in ("two-vms", "full-split", "rule4-occupied-rmap"):
        stage(opened, find_tasks([str(kinds / f"{name}.txt")])[0])
    opened.commit()
    shutil.copy(kinds / "what-if.txt", kinds / "full-split.txt")
    for name in ("full-split", "tdp-only", "rule2-unsync"):
        stage(opened, find_tasks([str(kinds / f"{name}.txt")])[0])
    return directory


def test_killed_at_any_change(half_done: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    shutil.copytree(half_done, whole)
    dataset(whole)
    expected = content(whole)
    changes = 0
    while True:
        directory = tmp_path / f"killed-{changes}"
        shutil.copytree(half_done, directory)
        storage = Storage(str(directory))
        storage.fs = Failing(storage.fs, changes)
        try:
            Dataset(storage, {}, POLICIES)
        except Killed:
            dataset(directory)
            assert content(directory) == expected, f"after {changes} changes"
            assert not list((directory / STAGING).iterdir())
            for table in BULK_TABLES:
                assert len(list(directory.glob(f"{table}/*/*"))) == len(POLICIES)
            shutil.rmtree(directory)
            changes += 1
            continue
        break
    assert changes > 20


def test_full_disk_leaves_what_was(half_done: Path) -> None:
    storage = Storage(str(half_done))
    before = content(half_done)

    class Full:
        def __getattr__(self, name: str) -> Any:
            if name == "move":
                raise OSError(28, "No space left on device")
            return getattr(fs, name)

    fs = storage.fs
    storage.fs = Full()
    with pytest.raises(OutputError, match="No space left on device"):
        Dataset(storage, {}, POLICIES)
    assert content(half_done) == before


@pytest.mark.parametrize("damage", [b"", b"ARROW", b"\0" * 100])
def test_damaged_staged_file_is_passed_over(half_done: Path, damage: bytes) -> None:
    (half_done / STAGING / "0123.arrow").write_bytes(damage)
    cut = next((half_done / STAGING).glob("[1-9a-f]*.arrow"))
    cut.write_bytes(cut.read_bytes()[:-300])
    dataset(half_done)
    assert not list((half_done / STAGING).iterdir())
    assert rows_of(half_done)["path"].n_unique() >= 4


def test_rows_of_another_key_are_not_taken(half_done: Path) -> None:
    rows = rows_of(half_done).height
    storage = Storage(str(half_done))
    for file in (half_done / STAGING).iterdir():
        file.unlink()
    stage(dataset(half_done), Task("x", "x", 0, 0, "plain"))
    opened = dataset(half_done)
    assert rows_of(half_done).height == rows + len(POLICIES)
    write_staged(storage, "another", "y", [])
    job = Job(storage.url, "another", {"v2": "v2"}, Request())
    work(job, Task("z", "z", 0, 0, "plain"), {})
    opened.commit()
    assert "z" not in rows_of(half_done)["path"]


def test_two_traces_of_one_content_share_their_rows(corpus: Path, tmp_path: Path) -> None:
    opened = dataset(tmp_path / "out")
    for name in ("a.txt", "b.txt"):
        (corpus / name).write_text(trace_text())
        stage(opened, find_tasks([str(corpus / name)])[0])
    opened.commit()
    assert rows_of(tmp_path / "out").height == 4
    assert rows_of(tmp_path / "out", "outcomes").height == 1  # v2 alone looks at it
    (corpus / "a.txt").write_text(trace_text(EVENTS[:-1]))
    opened = dataset(tmp_path / "out")
    stage(opened, find_tasks([str(corpus / "a.txt")])[0])
    opened.commit()
    contents = rows_of(tmp_path / "out", "outcomes")["content"]
    assert contents.n_unique() == 2


def test_known_contents_take_their_rows_along(corpus: Path, tmp_path: Path) -> None:
    opened = dataset(tmp_path / "out")
    (first,) = find_tasks([str(corpus / "good.txt")])
    stage(opened, first)
    opened.commit()
    shutil.copy(corpus / "good.txt", corpus / "again.txt")
    (task,) = find_tasks([str(corpus / "again.txt")])
    known = {label: sizes[task.file_bytes] for label, sizes in opened.known(POLICIES).items()}
    stage(opened, task, known)
    assert not list((tmp_path / "out" / STAGING).glob("*.arrow"))
    opened.commit()
    rows = rows_of(tmp_path / "out").sort("path", "policy").drop("path").to_dicts()
    assert len(rows) == 4
    assert rows[:2] == rows[2:]


def test_manifest_of_something_else(tmp_path: Path) -> None:
    (tmp_path / "_replay.json").write_text('{"schema": "other/1"}')
    with pytest.raises(UsageError, match="use another directory"):
        dataset(tmp_path)


def test_version_is_that_of_the_sources() -> None:
    assert results_version() == results_version()
    assert len(results_version()) == 16


def test_lock_of_a_remote_file_system(tmp_path: Path, corpus: Path, request: pytest.FixtureRequest) -> None:
    pytest.importorskip("fsspec", reason="needs fsspec, of the extra dask")
    storage = Storage(f"memory://{request.node.name}")
    storage.make_directory(STAGING)
    with storage.lock(), pytest.raises(UsageError, match="in use by another bulk run"), storage.lock():
        pass
    with storage.lock():
        opened = Dataset(storage, {}, POLICIES)
        stage(opened, find_tasks([str(corpus / "good.txt")])[0])
        opened.finish()
    assert len(storage.names("runs")) == len(POLICIES)
    assert not storage.names(STAGING)
    assert len(opened.runs(POLICIES, [str(corpus / "good.txt")])) == len(POLICIES)


def test_unknown_scheme() -> None:
    pytest.importorskip("fsspec", reason="needs fsspec, of the extra dask")
    with pytest.raises(UsageError, match="nothing://"):
        Storage("nothing://x/y")


# -- damage ----------------------------------------------------------------------------------------------


@pytest.fixture
def done(corpus: Path, tmp_path: Path) -> Path:
    """A dataset of two traces."""
    opened = dataset(tmp_path / "done")
    for name in ("good", "wrong"):
        stage(opened, find_tasks([str(corpus / f"{name}.txt")])[0])
    opened.commit()
    return tmp_path / "done"


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-50])


def empty(file: Path) -> None:
    file.write_bytes(b"")


def other(file: Path) -> None:
    pl.DataFrame({"a": [1]}).write_parquet(file)


DAMAGES = [(table, damage) for table in BULK_TABLES for damage in (cut, empty, other)]
DAMAGES += [(table, Path.unlink) for table in BULK_TABLES[1:]]  # without its rows of runs there is no part


@pytest.mark.parametrize(("table", "damage"), DAMAGES)
def test_a_damaged_part_is_said_and_made_again(
    done: Path, corpus: Path, table: str, damage: Callable[[Path], None]
) -> None:
    (file,) = (done / table / "policy=v2").iterdir()
    before = content(done)
    damage(file)
    said: list[str] = []
    opened = Dataset(Storage(str(done)), {}, POLICIES, said.append)
    assert len(said) == 1
    assert said[0].startswith(f"{file}: ")
    assert said[0].endswith("it is removed, what it held is made anew")
    known = opened.known(POLICIES)
    assert not known["v2"]
    assert sum(map(len, known["linux-6.0"].values())) == 2
    for name in ("good", "wrong"):
        (task,) = find_tasks([str(corpus / f"{name}.txt")])
        stage(opened, task, {label: known[label].get(task.file_bytes, frozenset()) for label in POLICIES})
    opened.commit()
    assert content(done) == before
    said.clear()
    Dataset(Storage(str(done)), {}, POLICIES, said.append)
    assert said == []


def test_rows_that_cannot_be_decoded_end_in_one_line(done: Path, corpus: Path) -> None:
    (file,) = (done / "windows" / "policy=v2").iterdir()
    data = file.read_bytes()
    footer = int.from_bytes(data[-8:-4], "little") + 8
    file.write_bytes(b"\xff" * (len(data) - footer) + data[-footer:])
    opened = dataset(done)
    (corpus / "good.txt").write_text(trace_text(EVENTS[:-1]))
    stage(opened, find_tasks([str(corpus / "good.txt")])[0])
    with pytest.raises(OutputError, match="the same command makes anew what it held") as caught:
        opened.commit()
    assert str(caught.value).startswith(str(file))
    opened = dataset(done)
    assert not any(done.glob(f"*/policy=v2/{file.name}"))
    opened.commit()


def test_files_that_are_no_parts_are_left_alone(done: Path) -> None:
    foreign = [
        done / table / "policy=v2" / name for table in BULK_TABLES for name in ("notes.txt", "x.parquet")
    ]
    for file in foreign:
        file.write_text("mine")
    opened = dataset(done)
    opened.commit()
    assert all(file.read_text() == "mine" for file in foreign)


@pytest.mark.parametrize(
    "manifest",
    [
        b"",
        b"\xff",
        b"[]",
        b"[" * 100_000,
        b'{"schema": "replay.dataset/1"}',
        b'{"schema": "replay.dataset/1", "version": 1, "options": {}, "policies": {}}',
        b'{"schema": "replay.dataset/1", "version": "x", "options": [], "policies": {}}',
        b'{"schema": "replay.dataset/1", "version": "x", "options": {}, "policies": null}',
        b'{"schema": "replay.dataset/1", "version": "x", "options": {}, "policies": {"v2": "knobs"}}',
        b" " * MAX_MANIFEST_BYTES + b"{}",
    ],
    ids=lambda manifest: manifest[:80].decode(errors="replace"),
)
def test_manifests_of_another_form(done: Path, manifest: bytes) -> None:
    (done / "_replay.json").write_bytes(manifest)
    with pytest.raises(UsageError, match=r"_replay\.json is not of schema"):
        dataset(done)
