"""The cache of compiled kernels: never stale, never in the way, safe for many processes."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import replay
from replay.jit import cache

PACKAGE = Path(replay.__file__).parent
HASH_LENGTH = 24

CALLEE = """
from replay.jit import jit

@jit
def callee(x):
    return x + {constant}
"""
CALLER = """
from replay.jit import kernel
from replay.callee import callee

@kernel
def caller(values):
    total = 0.0
    for i in range(len(values)):
        total += callee(values[i])
    return total
"""
MAIN = """
import sys
import numpy as np
from replay import jit
from replay.caller import caller

jit.announce_compile(lambda line: print(line, file=sys.stderr))
print(caller(np.arange(3, dtype=sys.argv[1] if len(sys.argv) > 1 else "int64")))
print(jit.cache_directory())
"""

DAMAGE = """
import random
from pathlib import Path
import numpy as np
from replay.caller import caller
from replay.jit import cache_directory, kernel

chance = random.Random(7)
values = np.arange(3)
caller(values)
for _ in range(24):
    file = chance.choice(sorted(cache_directory().rglob("*.nb?")))
    content = bytearray(file.read_bytes())
    if chance.random() < 0.3:
        del content[chance.randrange(len(content)) :]
    for _ in range(chance.choice((1, 1, 20))):
        if content:
            content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    file.write_bytes(content)
    for expected in ((0, 1), (1, 0)):
        again = kernel(caller.py_func)
        assert again(values) == 6.0
        found, made = (sum(count.values()) for count in (again.stats.cache_hits, again.stats.cache_misses))
        assert (found, made) == expected, file
print(caller(values))
print(cache_directory())
"""

OTHER = """
import numpy as np
from replay.jit import kernel

@kernel
def other(values):
    return values.sum()

def compile_kernels():
    other(np.arange(3))

def fail():
    raise SystemExit(1)
"""
MEANWHILE = """
import sys
import numpy as np
from replay import jit
from replay.caller import caller
from replay.other import compile_kernels, fail, other

jit.compile_meanwhile({"compile": compile_kernels, "fail": fail}[sys.argv[1]], other)
print(caller(np.arange(3)), other(np.arange(3)))
print(sum(other.stats.cache_hits.values()), sum(other.stats.cache_misses.values()))
"""


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A copy of the installed package with two small kernels in two files, beside a main program."""
    copy = tmp_path / "site" / "replay"
    copy.mkdir(parents=True)
    for name in ("__init__.py", "errors.py", "policy.py", "regular.py", "schema.py"):
        shutil.copy(PACKAGE / name, copy / name)
    shutil.copytree(PACKAGE / "jit", copy / "jit", ignore=shutil.ignore_patterns("__pycache__"))
    (copy / "__init__.py").write_text("")
    (copy / "callee.py").write_text(CALLEE.format(constant=1))
    (copy / "caller.py").write_text(CALLER)
    (copy.parent / "main.py").write_text(textwrap.dedent(MAIN))
    return copy


def start(
    package: Path,
    *arguments: str,
    preexec_fn: Callable[[], None] | None = None,
    **environment: str,
) -> subprocess.Popen[str]:
    """Run the main program with nothing in its environment but ``environment``."""
    return subprocess.Popen(
        [sys.executable, "-B", str(package.parent / "main.py"), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={"PATH": os.environ["PATH"], **environment},
        preexec_fn=preexec_fn,
    )


def finish(process: subprocess.Popen[str]) -> tuple[str, str, str]:
    """The number that was computed, the cache directory in use, and standard error."""
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    number, directory = out.splitlines()
    return number, directory, err


def test_second_run_compiles_nothing(package: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    first = finish(start(package, REPLAY_CACHE_DIR=str(cache)))
    second = finish(start(package, REPLAY_CACHE_DIR=str(cache)))
    assert first[0] == second[0] == "6.0"
    assert first[2].splitlines() == [f"compiling kernels, once for this version (kept in {first[1]})"]
    assert second[2] == ""
    assert Path(first[1]).parent == cache


@pytest.mark.skipif(os.cpu_count() == 1, reason="one processor compiles one thing at a time")
def test_first_run_compiles_in_two_processes(package: Path, tmp_path: Path) -> None:
    (package / "other.py").write_text(OTHER)
    (package.parent / "main.py").write_text(MEANWHILE)
    first = finish(start(package, "compile", REPLAY_CACHE_DIR=str(tmp_path / "cache")))
    assert first == ("6.0 3", "1 0", "")  # the kernel was there when it was needed
    failed = finish(start(package, "fail", REPLAY_CACHE_DIR=str(tmp_path / "another")))
    assert failed == ("6.0 3", "0 1", "")


def test_edited_callee_in_another_file_is_not_stale(package: Path, tmp_path: Path) -> None:
    cache = str(tmp_path / "cache")
    before = finish(start(package, REPLAY_CACHE_DIR=cache))
    (package / "callee.py").write_text(CALLEE.format(constant=5))
    after = finish(start(package, REPLAY_CACHE_DIR=cache))
    assert (before[0], after[0]) == ("6.0", "18.0")
    assert before[1] != after[1]


def test_edit_of_a_file_without_kernels_keeps_the_cache(package: Path, tmp_path: Path) -> None:
    cache = str(tmp_path / "cache")
    before = finish(start(package, REPLAY_CACHE_DIR=cache))
    (package / "errors.py").write_text("# nothing jitted here\n")
    assert finish(start(package, REPLAY_CACHE_DIR=cache))[1:] == (before[1], "")


def test_damaged_entries_are_compiled_again(package: Path, tmp_path: Path) -> None:
    cache = str(tmp_path / "cache")
    directory = Path(finish(start(package, REPLAY_CACHE_DIR=cache))[1])
    damaged = list(directory.rglob("*.nb?"))
    assert {file.suffix for file in damaged} == {".nbi", ".nbc"}
    for file in damaged:
        file.write_bytes(file.read_bytes()[:20])
    assert finish(start(package, REPLAY_CACHE_DIR=cache))[0] == "6.0"
    assert finish(start(package, REPLAY_CACHE_DIR=cache))[2] == ""


def in_place_of(path: Path, kind: str) -> None:
    path.unlink()
    if kind == "directory":
        path.mkdir()
        (path / "x").touch()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind != "missing":
        path.write_bytes(b"" if kind == "empty" else bytes(range(256)) * 9)


DAMAGES = ("empty", "garbage", "missing", "directory", "pipe")


@pytest.mark.parametrize(
    ("index", "entry"), list(zip(DAMAGES, (*DAMAGES[1:], DAMAGES[0]), strict=True)), ids=DAMAGES
)
def test_after_any_damage_the_second_run_compiles_nothing(
    package: Path, tmp_path: Path, index: str, entry: str
) -> None:
    cache = str(tmp_path / "cache")
    directory = Path(finish(start(package, REPLAY_CACHE_DIR=cache))[1])
    for file in [*directory.rglob("*.nbi")]:
        in_place_of(file, index)
    for file in [*directory.rglob("*.nbc")]:
        in_place_of(file, entry)
    for file in [*directory.rglob(".lock")]:
        in_place_of(file, entry)
    again = finish(start(package, REPLAY_CACHE_DIR=cache))
    assert again[:2] == ("6.0", str(directory))
    assert again[2].startswith("compiling kernels")
    assert finish(start(package, REPLAY_CACHE_DIR=cache)) == ("6.0", str(directory), "")


def test_a_file_in_the_place_of_a_directory_of_entries(package: Path, tmp_path: Path) -> None:
    cache = str(tmp_path / "cache")
    directory = Path(finish(start(package, REPLAY_CACHE_DIR=cache))[1])
    (entries,) = directory.iterdir()
    shutil.rmtree(entries)
    entries.write_text("")
    assert finish(start(package, REPLAY_CACHE_DIR=cache))[0] == "6.0"
    assert finish(start(package, REPLAY_CACHE_DIR=cache)) == ("6.0", str(directory), "")


@pytest.mark.parametrize("unusable", ["/dev/null", "/dev/null/below", "x" * 300, "/proc/self/fdinfo", "loop"])
def test_an_unusable_directory_that_is_named(package: Path, tmp_path: Path, unusable: str) -> None:
    (tmp_path / "loop").symlink_to("loop")
    place = str(tmp_path / unusable)
    found = finish(start(package, REPLAY_CACHE_DIR=place, HOME=str(tmp_path)))
    assert found[0] == "6.0"
    assert Path(found[1]).parent == tmp_path / ".cache" / "kvm-replay"


@pytest.mark.parametrize("mode", [0, 0o111, 0o444, 0o555])
@pytest.mark.parametrize("below", [False, True])
def test_a_directory_that_cannot_be_read_or_written(
    package: Path, tmp_path: Path, mode: int, below: bool
) -> None:
    cache = tmp_path / "cache"
    environment = {"REPLAY_CACHE_DIR": str(cache), "HOME": str(tmp_path / "home")}
    cache.mkdir()
    closed = cache
    if below:
        closed = Path(finish(start(package, **environment))[1])
        shutil.rmtree(closed)
        closed.mkdir()
    closed.chmod(mode)
    try:
        found = finish(start(package, preexec_fn=drop_dac_override, **environment))
    finally:
        closed.chmod(0o755)
    assert found[0] == "6.0"
    assert Path(found[1]).parent == tmp_path / "home" / ".cache" / "kvm-replay"


def test_random_damage_never_reaches_a_result(package: Path, tmp_path: Path) -> None:
    """Bits flipped and ends cut off, anywhere: the entry is made again, and good the next time."""
    (package.parent / "main.py").write_text(DAMAGE)
    assert finish(start(package, REPLAY_CACHE_DIR=str(tmp_path / "cache")))[0] == "6.0"


def test_an_entry_under_the_name_of_another_is_not_loaded(package: Path, tmp_path: Path) -> None:
    cache = str(tmp_path / "cache")
    for element in ("int64", "int32"):
        directory = Path(finish(start(package, element, REPLAY_CACHE_DIR=cache))[1])
    first, second = sorted(directory.rglob("*.nbc"))
    shutil.copy(first, second)
    number, _, err = finish(start(package, "int32", REPLAY_CACHE_DIR=cache))
    assert number == "6.0"
    assert err != ""
    assert finish(start(package, "int32", REPLAY_CACHE_DIR=cache))[2] == ""


def test_concurrent_first_runs_of_several_signatures(package: Path, tmp_path: Path) -> None:
    cache = str(tmp_path / "cache")
    types = ["int64", "float64", "int32", "int64", "float32"]
    results = [
        finish(process) for process in [start(package, element, REPLAY_CACHE_DIR=cache) for element in types]
    ]
    assert [number for number, _, _ in results] == ["6.0"] * len(types)
    for element in types:
        number, _, err = finish(start(package, element, REPLAY_CACHE_DIR=cache))
        assert (number, err) == ("6.0", "")
    left_over = list(Path(cache).rglob("*.tmp.*"))
    assert left_over == []


def drop_dac_override() -> None:
    """Make root obey the mode bits of files, as everybody else does (prctl PR_CAPBSET_DROP)."""
    ctypes.CDLL(None).prctl(24, 1, 0, 0, 0)


def test_read_only_install_uses_the_home_cache(package: Path, tmp_path: Path) -> None:
    closed = (package, package.parent)
    for path in closed:
        path.chmod(0o555)
    try:
        process = start(package, preexec_fn=drop_dac_override, HOME=str(tmp_path / "home"))
        _, directory, _ = finish(process)
    finally:
        for path in closed:
            path.chmod(0o755)
    assert Path(directory).parent == tmp_path / "home" / ".cache" / "kvm-replay"


def test_a_filled_cache_serves_where_it_cannot_be_written(package: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    environment = {"REPLAY_CACHE_DIR": str(cache), "HOME": str(tmp_path / "home")}
    first = finish(start(package, **environment))
    closed = [cache, *filter(Path.is_dir, cache.rglob("*"))]
    for path in closed:
        path.chmod(0o555)
    try:
        second = finish(start(package, preexec_fn=drop_dac_override, **environment))
    finally:
        for path in closed:
            path.chmod(0o755)
    assert second == (first[0], first[1], "")


def test_unwritable_home_uses_the_temporary_directory(package: Path, tmp_path: Path) -> None:
    home, temporary = tmp_path / "home", tmp_path / "tmp"
    home.mkdir(mode=0o555)
    temporary.mkdir()
    process = start(package, preexec_fn=drop_dac_override, HOME=str(home), TMPDIR=str(temporary))
    assert Path(finish(process)[1]).parent == temporary / f"kvm-replay-{os.geteuid()}"


def test_no_home_and_no_passwd_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_entry(uid: int) -> None:
        raise KeyError(uid)

    for name in ("HOME", "XDG_CACHE_HOME", "REPLAY_CACHE_DIR", "TMPDIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", no_entry)
    name = f"kvm-replay-{os.geteuid()}"
    assert [root for root, _ in cache._roots()] == [Path("/tmp", name), Path("/var/tmp", name)]


def test_nothing_is_written_beside_the_sources(package: Path, tmp_path: Path) -> None:
    before = sorted(package.rglob("*"))
    finish(start(package, XDG_CACHE_HOME=str(tmp_path / "xdg")))
    assert sorted(package.rglob("*")) == before


def test_order_of_directories(package: Path, tmp_path: Path) -> None:
    def directory(**environment: str) -> Path:
        return Path(finish(start(package, **environment))[1]).parent

    home, xdg, override = (str(tmp_path / name) for name in ("home", "xdg", "override"))
    assert directory(HOME=home) == Path(home, ".cache", "kvm-replay")
    assert directory(HOME=home, XDG_CACHE_HOME=xdg) == Path(xdg, "kvm-replay")
    assert directory(HOME=home, XDG_CACHE_HOME=xdg, REPLAY_CACHE_DIR=override) == Path(override)
    assert directory(HOME=home, XDG_CACHE_HOME="/dev/null/x", REPLAY_CACHE_DIR="/dev/null/x") == Path(
        home, ".cache", "kvm-replay"
    )


def test_no_home_uses_a_private_temporary_directory(package: Path, tmp_path: Path) -> None:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    number, directory, _ = finish(start(package, HOME="/dev/null/none", TMPDIR=str(temporary)))
    assert number == "6.0"
    root = Path(directory).parent
    assert root == temporary / f"kvm-replay-{os.geteuid()}"
    assert root.stat().st_mode & 0o777 == 0o700


def test_directory_that_others_may_write_is_refused(package: Path, tmp_path: Path) -> None:
    open_to_all = tmp_path / "xdg" / "kvm-replay"
    open_to_all.mkdir(parents=True)
    open_to_all.chmod(0o777)
    _, directory, _ = finish(
        start(package, XDG_CACHE_HOME=str(tmp_path / "xdg"), HOME=str(tmp_path / "home"))
    )
    assert Path(directory).parent == tmp_path / "home" / ".cache" / "kvm-replay"


def test_nothing_writable_runs_uncached(package: Path, tmp_path: Path) -> None:
    code = textwrap.dedent(
        """
        import sys, runpy
        from pathlib import Path
        from replay.jit import cache
        cache._roots = lambda: iter([(Path("/dev/null/a"), True), (Path("/proc/self/b"), False)])
        runpy.run_path(sys.argv[0], run_name="__main__")
        """
    )
    main = package.parent / "main.py"
    main.write_text(code.replace("sys.argv[0]", repr(str(main.with_name("real.py")))))
    main.with_name("real.py").write_text(MAIN)
    number, directory, err = finish(start(package))
    assert (number, directory) == ("6.0", "None")
    assert err.splitlines() == [
        "compiling kernels, on every run: no cache directory is writable (set REPLAY_CACHE_DIR)"
    ]


def test_jit_switched_off(package: Path, tmp_path: Path) -> None:
    number, _, err = finish(start(package, NUMBA_DISABLE_JIT="1", REPLAY_CACHE_DIR=str(tmp_path / "cache")))
    assert (number, err) == ("6.0", "")


def test_old_directories_are_pruned_but_not_recent_ones(package: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    now = time.time()
    for age in range(8):
        old = cache / f"{age:0{HASH_LENGTH}}"
        old.mkdir(parents=True)
        (old / "kernel.nbc").write_bytes(b"")
        used = now - (60 if age < 5 else 10 * 24 * 3600 + age)
        os.utime(old, (used, used))
    (cache / "not ours").mkdir()
    os.utime(cache / "not ours", (0, 0))
    directory = Path(finish(start(package, REPLAY_CACHE_DIR=str(cache)))[1])
    left = {path.name for path in cache.iterdir()}
    assert left == {f"{age:0{HASH_LENGTH}}" for age in range(5)} | {"not ours", directory.name}
