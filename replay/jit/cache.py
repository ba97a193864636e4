"""The directory in which compiled kernels are kept, and what is read from it and written to it.

numba notices an edit only in the file of the function itself, not in a function that it calls
from another file.  Kernels therefore live in a directory named by a hash of all kernel sources:
an edit or an upgrade starts a new, empty directory and stale code cannot run.

The directory is the first usable of ``$REPLAY_CACHE_DIR``, ``$XDG_CACHE_HOME/kvm-replay``,
``~/.cache/kvm-replay`` and a private directory under the temporary one.  Where none can be
written, kernels are compiled on each run and not kept.
"""

from __future__ import annotations

import atexit
import fcntl
import hashlib
import inspect
import os
import pickle
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import llvmlite
import numba
from numba.core import config
from numba.core.caching import (
    CompileResultCacheImpl,
    FunctionCache,
    IndexDataCacheFile,
    NullCache,
    UserProvidedCacheLocator,
)

from replay.regular import open_regular

KEPT_DIRECTORIES = 4
KEPT_SECONDS = 2 * 3600
"""A directory is removed only if it is not among the last ``KEPT_DIRECTORIES`` used, and unused this long."""

_CHECKSUM_BYTES = hashlib.sha256().digest_size

_on_compile: Callable[[str], None] | None = None
_meanwhile: tuple[Callable[[], None], tuple[Any, ...]] | None = None
_other: subprocess.Popen[bytes] | None = None
_made_by_other: tuple[Any, ...] = ()


def announce_compile(show: Callable[[str], None]) -> None:
    """Call ``show`` with one line when a kernel has to be compiled, at most once in this process.

    It is not called while every kernel is found in the cache.
    """
    global _on_compile
    _on_compile = show


def compile_meanwhile(function: Callable[[], None], *kernels: Any) -> None:
    """Should this process have to compile, let another one call ``function`` meanwhile.

    It compiles ``kernels``, which are needed later: whoever needs one of them waits for the other process.
    """
    global _meanwhile
    _meanwhile = function, kernels


def _start_other() -> None:
    global _meanwhile, _other, _made_by_other
    target, _meanwhile = _meanwhile, None
    if target is None or cache_directory() is None or os.cpu_count() == 1:
        return
    function, _made_by_other = target
    call = f"from {function.__module__} import {function.__name__} as compile; compile()"
    with suppress(OSError):
        _other = subprocess.Popen(
            [sys.executable, "-IB", "-c", f"import sys; sys.path[:] = {sys.path!r}; {call}"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        atexit.register(_other.kill)


def _wait_for_other(function: Callable[..., Any]) -> bool:
    """True if another process has compiled the kernel ``function``."""
    global _other
    if _other is None or all(function is not kernel.py_func for kernel in _made_by_other):
        return False
    _other.wait()
    atexit.unregister(_other.kill)
    _other = None
    return True


def _compile_begins() -> None:
    global _on_compile
    _start_other()
    show, _on_compile = _on_compile, None
    if show is None:
        return
    directory = cache_directory()
    if directory is None:
        show("compiling kernels, on every run: no cache directory is writable (set REPLAY_CACHE_DIR)")
    else:
        show(f"compiling kernels, once for this version (kept in {directory})")


def kernel_hash(package: Path) -> str:
    """Hash of all sources that jitted code may depend on, and of what else decides the machine code.

    ``package`` is the directory of the package.  Kernels and their constants live in ``trace/``,
    ``mmu/``, ``synth/kvm/``, ``schema.py`` and ``policy.py``; any other file counts if it names this module.
    """
    digest = hashlib.sha256()
    settings = (config.OPT, config.BOUNDSCHECK, config.DEBUGINFO_DEFAULT)
    digest.update(repr((numba.__version__, llvmlite.__version__, settings)).encode())
    for path in sorted(package.rglob("*.py")):
        name = path.relative_to(package).as_posix()
        source = path.read_bytes()
        if (
            name.startswith(("jit/", "trace/", "mmu/", "synth/kvm/"))
            or name in ("schema.py", "policy.py")
            or b"replay.jit" in source
        ):
            digest.update(f"\0{name}\0{len(source)}\0".encode())
            digest.update(source)
    return digest.hexdigest()[:24]


def _roots() -> Iterator[tuple[Path, bool]]:
    """Directories that may hold the hash directories, best first; true where it must be our own."""
    override = os.environ.get("REPLAY_CACHE_DIR")
    if override:
        yield Path(override), False
    xdg = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(xdg):
        yield Path(xdg, "kvm-replay"), True
    home = os.path.expanduser("~")
    if os.path.isabs(home):
        yield Path(home, ".cache", "kvm-replay"), True
    for temporary in (os.environ.get("TMPDIR", ""), "/tmp", "/var/tmp"):
        if os.path.isabs(temporary):
            yield Path(temporary, f"kvm-replay-{os.geteuid()}"), True


def _prepare(directory: Path, root: Path, own: bool) -> bool:
    """Make ``directory`` under ``root``; false if it cannot be written or another user could have.

    Cache entries are pickles, that is code: a directory that somebody else may write is refused,
    unless the user named it.
    """
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        if own:
            status = os.lstat(root)
            if (
                not stat.S_ISDIR(status.st_mode)
                or status.st_uid != os.geteuid()
                or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
            ):
                return False
        directory.mkdir(mode=0o700, exist_ok=True)
        tempfile.TemporaryFile(dir=directory).close()
        os.utime(directory)
    except OSError:
        return False
    return True


def _is_filled(directory: Path) -> bool:
    """True if kernels are kept there: one that the user named serves even where it cannot be written."""
    try:
        return next(directory.rglob("*.nbi"), None) is not None
    except OSError:
        return False


def _prune(root: Path, keep: Path) -> None:
    """Remove hash directories of other sources that have not been used lately."""
    try:
        entries = [(path.stat().st_mtime, path) for path in root.iterdir() if path.is_dir() and path != keep]
    except OSError:
        return
    entries.sort(reverse=True)
    for used, path in entries[KEPT_DIRECTORIES - 1 :]:
        if len(path.name) == len(keep.name) and used < time.time() - KEPT_SECONDS:
            shutil.rmtree(path, ignore_errors=True)


@cache
def cache_directory() -> Path | None:
    """The directory of compiled kernels for the sources as they are now; None where none is usable."""
    try:
        name = kernel_hash(Path(__file__).parent.parent)
    except OSError:
        return None
    for root, own in _roots():
        directory = root / name
        is_new = not os.path.exists(directory)
        if _prepare(directory, root, own) or (not own and _is_filled(directory)):
            if is_new:
                _prune(root, directory)
            return directory
    return None


class _KernelLocator(UserProvidedCacheLocator):
    """Places a kernel's entry in ``cache_directory()`` without touching numba's global settings."""

    def __init__(self, py_func: Callable[..., Any], py_file: str, directory: Path) -> None:
        self._py_file = py_file
        self._lineno = py_func.__code__.co_firstlineno
        self._cache_path = os.path.join(directory, self.get_suitable_cache_subpath(py_file))


class _KernelCacheImpl(CompileResultCacheImpl):
    def __init__(self, py_func: Callable[..., Any]) -> None:
        directory = cache_directory()
        assert directory is not None
        source = inspect.getfile(py_func)
        self._lineno = py_func.__code__.co_firstlineno
        self._locator = _KernelLocator(py_func, source, directory)
        name = f"{Path(source).stem}.{py_func.__qualname__}"
        self._filename_base = self.get_filename_base(name, getattr(sys, "abiflags", ""))


class _CheckedFiles(IndexDataCacheFile):
    """The index and the entries of one kernel, each after a checksum of its name and content.

    What is loaded is code: one flipped bit of it may crash the process or change a result.
    """

    def _load_index(self) -> dict[Any, str]:
        try:
            stamp, overloads = self._read(self._index_name)
        except FileNotFoundError:
            return {}
        except OSError as error:  # what lies there is no file
            raise ValueError(f"{self._index_name}: {error}") from error
        return overloads if stamp == self._source_stamp else {}

    def _save_index(self, overloads: dict[Any, str]) -> None:
        self._write(self._index_name, (self._source_stamp, overloads))

    def _load_data(self, name: str) -> Any:
        return self._read(name)

    def _save_data(self, name: str, data: Any) -> None:
        self._write(name, data)

    def _read(self, name: str) -> Any:
        """What was written under ``name``.  Raises ``ValueError`` if the file is damaged."""
        with open_regular(self._data_path(name)) as file:
            content = file.read()
        checksum, kept = content[:_CHECKSUM_BYTES], content[_CHECKSUM_BYTES:]
        if checksum != _checksum(name, kept):
            raise ValueError(f"{name}: damaged")
        return pickle.loads(kept)

    def _write(self, name: str, content: Any) -> None:
        kept = self._dump(content)
        _remove_other(self._data_path(name), stat.S_ISREG)
        with self._open_for_write(self._data_path(name)) as file:
            file.write(_checksum(name, kept) + kept)


def _remove_other(path: str, is_right: Callable[[int], bool]) -> None:
    """Remove what lies in the place of a file or directory of the cache and is none."""
    with suppress(FileNotFoundError):
        mode = os.lstat(path).st_mode
        if stat.S_ISDIR(mode) and not is_right(mode):
            shutil.rmtree(path)
        elif not is_right(mode):
            os.unlink(path)


def _checksum(name: str, kept: bytes) -> bytes:
    return hashlib.sha256(f"{name}\0".encode() + kept).digest()


class KernelCache(FunctionCache):
    """numba's cache of one function, made safe for several processes, full disks and damaged entries.

    numba replaces files atomically but takes the number of a new entry from an index that another
    process may be rewriting: two processes that compile different signatures of one function could
    leave an index that names the other's machine code.  A lock around the saving prevents that.
    """

    _impl_class = _KernelCacheImpl

    def __init__(self, py_func: Callable[..., Any]) -> None:
        super().__init__(py_func)
        stamp = self._impl.locator.get_source_stamp()
        self._cache_file = _CheckedFiles(self._cache_path, self._impl.filename_base, stamp)

    def stamp(self) -> int:
        """A number that changes when an entry is saved, by this process or another."""
        try:
            return os.stat(self._cache_file._index_path).st_mtime_ns
        except OSError:
            return 0

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        found = self._load_kept(sig, target_context)
        if found is None and _wait_for_other(self._py_func):
            found = self._load_kept(sig, target_context)
        if found is None:
            _compile_begins()
        return found

    def _load_kept(self, sig: Any, target_context: Any) -> Any:
        try:
            # numba's own load_overload first fills its typing tables, which only compiling needs
            return self._load_overload(sig, target_context)
        except Exception:  # a damaged or unreadable entry: the kernel is compiled again
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        lock_path = os.path.join(self._cache_path, ".lock")
        try:
            _remove_other(self._cache_path, stat.S_ISDIR)
            self._impl.locator.ensure_cache_path()
            _remove_other(lock_path, stat.S_ISREG)
            with open(lock_path, "ab") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                self._save_anew(sig, data)
        except OSError:
            pass  # a full disk, or a file system without locks: the kernel is just not kept

    def _save_anew(self, sig: Any, data: Any) -> None:
        try:
            super().save_overload(sig, data)
        except OSError:
            raise
        except Exception:  # a damaged index: begin a new one
            self.flush()
            super().save_overload(sig, data)


class NoCache(NullCache):
    """Stands for the cache where no directory is usable."""

    def load_overload(self, sig: Any, target_context: Any) -> None:
        _compile_begins()
