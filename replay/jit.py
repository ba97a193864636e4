"""The one owner of jit options and of the directory in which compiled kernels are kept.

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
import gc
import hashlib
import inspect
import itertools
import os
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
from typing import Any, TypeVar, cast, overload

import llvmlite
import numba
from llvmlite import ir
from llvmlite.binding import Linkage
from numba import types
from numba.core import cgutils, config
from numba.core.caching import CompileResultCacheImpl, FunctionCache, NullCache, UserProvidedCacheLocator
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import CompilerBase
from numba.core.compiler_machinery import PassManager
from numba.core.imputils import lower_getattr_generic
from numba.core.typed_passes import (
    IRLegalization,
    NativeLowering,
    NoPythonBackend,
    NopythonTypeInference,
    PreLowerStripPhis,
)
from numba.core.types.functions import BaseFunction
from numba.core.typing.templates import AttributeTemplate, infer_getattr
from numba.core.untyped_passes import FixupArgs, IRProcessing, ReconstructSSA, TranslateByteCode
from numba.extending import intrinsic, models, register_model

KEPT_DIRECTORIES = 4
KEPT_SECONDS = 2 * 3600
"""A directory is removed only if it is not among the last ``KEPT_DIRECTORIES`` used, and unused this long."""

Function = TypeVar("Function", bound=Callable[..., Any])

_on_compile: Callable[[str], None] | None = None
_meanwhile: tuple[str, str] | None = None
_other: subprocess.Popen[bytes] | None = None


def announce_compile(show: Callable[[str], None]) -> None:
    """Call ``show`` with one line when a kernel has to be compiled, at most once in this process.

    It is not called while every kernel is found in the cache.
    """
    global _on_compile
    _on_compile = show


def compile_meanwhile(module: str, function: str) -> None:
    """Should this process have to compile, let another one call ``function`` of ``module`` meanwhile.

    That function compiles kernels that are needed later: whoever needs one waits for the other process.
    """
    global _meanwhile
    _meanwhile = module, function


def _start_other() -> None:
    global _meanwhile, _other
    target, _meanwhile = _meanwhile, None
    if target is None or cache_directory() is None or os.cpu_count() == 1:
        return
    module, function = target
    code = f"import sys; sys.path[:] = {sys.path!r}; from {module} import {function} as compile; compile()"
    with suppress(OSError):
        _other = subprocess.Popen(
            [sys.executable, "-IB", "-c", code],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        atexit.register(_other.kill)


def _wait_for_other() -> bool:
    """True if another process compiled something that may be what is needed now."""
    global _other
    if _other is None:
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
    ``mmu/``, ``schema.py`` and ``policy.py``; any other file counts if it names this module.
    """
    digest = hashlib.sha256()
    settings = (config.OPT, config.BOUNDSCHECK, config.DEBUGINFO_DEFAULT)
    digest.update(repr((numba.__version__, llvmlite.__version__, settings)).encode())
    for path in sorted(package.rglob("*.py")):
        name = path.relative_to(package).as_posix()
        source = path.read_bytes()
        if (
            name.startswith(("trace/", "mmu/"))
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
        name = kernel_hash(Path(__file__).parent)
    except OSError:
        return None
    for root, own in _roots():
        directory = root / name
        is_new = not directory.exists()
        if _prepare(directory, root, own):
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


class _KernelCache(FunctionCache):
    """numba's cache of one function, made safe for several processes, full disks and damaged entries.

    numba replaces files atomically but takes the number of a new entry from an index that another
    process may be rewriting: two processes that compile different signatures of one function could
    leave an index that names the other's machine code.  A lock around the saving prevents that.
    """

    _impl_class = _KernelCacheImpl

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        found = self._load_kept(sig, target_context)
        if found is None and _wait_for_other():
            found = self._load_kept(sig, target_context)
        if found is None:
            _compile_begins()
        return found

    def _load_kept(self, sig: Any, target_context: Any) -> Any:
        try:
            # numba's own load_overload first fills its typing tables, which only compiling needs
            return self._load_overload(sig, target_context)
        except Exception:  # whatever a damaged pickle raises: the kernel is compiled again
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        try:
            self._impl.locator.ensure_cache_path()
            with open(os.path.join(self._cache_path, ".lock"), "ab") as lock:
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


class _NoCache(NullCache):
    """Stands for the cache where no directory is usable."""

    def load_overload(self, sig: Any, target_context: Any) -> None:
        _compile_begins()


# -- one compilation unit a kernel ------------------------------------------------------------------
#
# numba optimises and emits the code of every function with all that it calls, again at each level of
# calls: a kernel of a hundred small functions takes minutes.  Here a function that only kernels call
# is lowered and left alone; the kernel links all of them and is optimised once.


class _PartEnvironments:
    """Parts raise nothing, so that their environments are never read."""

    def set_env(self, name: str, environment: object) -> None:
        pass


class _PartLibrary(JITCodeLibrary):
    """The code of one function, to be linked into kernels; neither optimised nor made executable."""

    @property
    def codegen(self) -> Any:
        return _PartEnvironments()

    def add_linking_library(self, library: Any) -> None:
        library._ensure_finalized()
        self._linking_libraries.append(library)

    def finalize(self) -> None:
        self._raise_if_finalized()
        self._finalized = True

    def _optimize_functions(self, ll_module: Any) -> None:
        ll_module.data_layout = self._codegen._data_layout

    def get_pointer_to_function(self, name: str) -> int:
        self._ensure_finalized()
        return 0

    def _get_module_for_linking(self) -> Any:
        """A copy whose functions are linked whether or not the module so far refers to them."""
        module = self._final_module.clone()
        for function in module.functions:
            if not function.is_declaration:
                function.linkage = Linkage.weak_odr
        return module


class _KernelLibrary(JITCodeLibrary):
    """The code of a kernel and of all parts that it calls, each linked once."""

    _linking_libraries: list[Any]

    def finalize(self) -> None:
        found: dict[Any, None] = {}
        pending = list(self._linking_libraries)
        while pending:
            library = pending.pop()
            if library not in found:
                found[library] = None
                if isinstance(library, _PartLibrary):
                    pending.extend(library._linking_libraries)
        self._linking_libraries = sorted(found, key=lambda library: not isinstance(library, _PartLibrary))
        super().finalize()

    def _optimize_final_module(self) -> None:
        """One full optimisation; numba's cheap one before it serves to find reference counts to prune."""
        for function in self._final_module.functions:
            if function.linkage == Linkage.weak_odr:
                function.linkage = Linkage.internal
        passes, builder = self._codegen._module_pass_manager()
        passes.run(self._final_module, builder)


_resolve_call_type: Any = BaseFunction.get_call_type
_operator_calls: dict[Any, Any] = {}


def _is_plain(arg: Any) -> bool:
    return isinstance(arg, (types.Integer, types.Boolean, types.Array)) or (
        isinstance(arg, types.BaseTuple) and all(isinstance(item, types.Integer) for item in arg)
    )


def _operator_call_type(self: Any, context: Any, args: Any, kws: Any) -> Any:
    """The signature of a call; those of operators and built-ins on numbers and arrays are found once only."""
    module = getattr(self.typing_key, "__module__", "")
    if kws or module not in ("_operator", "builtins") or not all(map(_is_plain, args)):
        return _resolve_call_type(self, context, args, kws)
    key = (self.key, tuple(args))
    if key in _operator_calls:
        known, implementation = _operator_calls[key]
        self._impl_keys[known.args] = implementation
        return known
    signature: Any = _resolve_call_type(self, context, args, kws)
    _operator_calls[key] = signature, self._impl_keys[signature.args]
    return signature


class _PartCompiler(CompilerBase):
    code_class: type[JITCodeLibrary] = _PartLibrary

    def __init__(self, typingctx: Any, targetctx: Any, library: Any, *rest: Any) -> None:
        if library is None:
            library = self.code_class(targetctx.codegen(), f"{self.code_class.__name__}{next(_numbers)}")
            if self.code_class is _KernelLibrary:
                library.enable_object_caching()
        super().__init__(typingctx, targetctx, library, *rest)

    def define_pipelines(self) -> list[PassManager]:
        """The passes that plain code on numbers and arrays needs: a quarter of numba's."""
        passes = PassManager("kernels")
        for step in (
            TranslateByteCode,
            FixupArgs,
            IRProcessing,
            ReconstructSSA,
            NopythonTypeInference,
            PreLowerStripPhis,
            IRLegalization,
            NativeLowering,
            NoPythonBackend,
        ):
            passes.add_pass(step, step.__name__)
        passes.finalize()
        return [passes]

    def compile_extra(self, func: Any) -> Any:
        # a compilation makes millions of objects that live until its end: collecting them costs a fifth of it
        collecting = gc.isenabled()
        resolve = BaseFunction.get_call_type
        gc.disable()
        BaseFunction.get_call_type = _operator_call_type  # type: ignore[method-assign]
        try:
            return super().compile_extra(func)
        finally:
            BaseFunction.get_call_type = resolve  # type: ignore[method-assign]
            if collecting:
                gc.enable()


class _KernelCompiler(_PartCompiler):
    code_class = _KernelLibrary


_numbers = itertools.count()
_OPTIONS: dict[str, Any] = {
    "nogil": True,
    "error_model": "numpy",
    "no_cfunc_wrapper": True,
    # nothing is allocated, so that no array's references need be counted at every call
    "_nrt": False,
}


@overload
def jit(function: Function) -> Function: ...
@overload
def jit(function: None = None, **options: Any) -> Callable[[Function], Function]: ...


def jit(function: Any = None, **options: Any) -> Any:
    """A part of kernels: called by jitted functions only, without Python objects or allocation.

    Use as ``@jit`` or with further options of ``numba.njit``, as in ``@jit(inline="always")``.
    With ``NUMBA_DISABLE_JIT=1`` the function stays plain Python.
    """
    if function is None:
        return lambda decorated: jit(decorated, **options)
    part = numba.njit(pipeline_class=_PartCompiler, no_cpython_wrapper=True, **_OPTIONS, **options)(function)
    if not config.DISABLE_JIT:
        select = part.get_call_template

        def select_for_any_value(args: Any, kws: Any) -> Any:
            # one specialisation by types, not one more for each constant argument
            return select(
                tuple(types.unliteral(arg) for arg in args),
                {name: types.unliteral(arg) for name, arg in kws.items()},
            )

        part.get_call_template = select_for_any_value
    return part


def kernel(function: Function) -> Function:
    """A function that Python calls: compiled with all its parts on the first call, kept between runs."""
    dispatcher = numba.njit(pipeline_class=_KernelCompiler, **_OPTIONS)(function)
    if not config.DISABLE_JIT:
        dispatcher._cache = _NoCache() if cache_directory() is None else _KernelCache(function)
    return cast(Function, dispatcher)


# -- tuples by reference ---------------------------------------------------------------------------------
#
# numba passes a NamedTuple of arrays by value: a state of 16 arrays is 140 arguments at every call,
# which costs more to compile than all else.  A kernel takes the tuple and hands a reference to its parts.


class _ReferenceType(types.Type):
    """A pointer to a NamedTuple that outlives the call."""

    def __init__(self, target: Any) -> None:
        self.target = target
        super().__init__(f"Reference({target})")


@register_model(_ReferenceType)
class _ReferenceModel(models.PrimitiveModel):
    def __init__(self, dmm: Any, fe_type: Any) -> None:
        super().__init__(dmm, fe_type, ir.IntType(8).as_pointer())


@infer_getattr
class _ReferenceAttribute(AttributeTemplate):
    key = _ReferenceType

    def generic_resolve(self, typ: Any, attr: str) -> Any:
        if attr in typ.target.fields:
            return typ.target[typ.target.fields.index(attr)]
        return None


@lower_getattr_generic(_ReferenceType)
def _load_field(context: Any, builder: Any, typ: Any, value: Any, attr: str) -> Any:
    pointer = builder.bitcast(value, context.get_value_type(typ.target).as_pointer())
    return builder.load(cgutils.gep_inbounds(builder, pointer, 0, typ.target.fields.index(attr)))


if config.DISABLE_JIT:

    def by_reference(values: Any) -> Any:
        """The tuple itself."""
        return values

else:

    @intrinsic
    def by_reference(typingctx: Any, values: Any) -> Any:
        """A reference to the NamedTuple ``values``, good within the kernel's call; its fields read alike."""

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            kept = cgutils.alloca_once_value(builder, args[0])
            return builder.bitcast(kept, ir.IntType(8).as_pointer())

        return _ReferenceType(values)(values), codegen
