"""One compilation unit a kernel.

numba optimises and emits the code of every function with all that it calls, again at each level of
calls: a kernel of a hundred small functions takes minutes.  Here a function that only kernels call
is lowered and left alone; the kernel links all of them and is optimised once.
"""

from __future__ import annotations

import itertools
from typing import Any

from llvmlite.binding import Linkage, parse_assembly
from numba.core.codegen import JITCodeLibrary


class _PartEnvironments:
    """Parts raise nothing, so that their environments are never read."""

    def set_env(self, name: str, environment: object) -> None:
        pass


class PartLibrary(JITCodeLibrary):
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


class KernelLibrary(JITCodeLibrary):
    """The code of a kernel and of all parts that it calls, each linked once."""

    _linking_libraries: list[Any]

    def finalize(self) -> None:
        found: dict[Any, None] = {}
        pending = list(self._linking_libraries)
        while pending:
            library = pending.pop()
            if library not in found:
                found[library] = None
                if isinstance(library, PartLibrary):
                    pending.extend(library._linking_libraries)
        self._linking_libraries = sorted(found, key=lambda library: not isinstance(library, PartLibrary))
        super().finalize()

    def _optimize_final_module(self) -> None:
        """One full optimisation; numba's cheap one before it serves to find reference counts to prune."""
        for function in self._final_module.functions:
            if function.linkage == Linkage.weak_odr:
                function.linkage = Linkage.internal
        passes, builder = self._codegen._module_pass_manager(opt=2, loop_vectorize=False, slp_vectorize=False)
        passes.run(self._final_module, builder)

    def _get_module_for_linking(self) -> Any:
        """The names of what the kernel defines: no other code links it, and its cache entry needs no more."""
        module = self._final_module
        symbols = itertools.chain(module.functions, module.global_variables)
        named = (symbol.name for symbol in symbols if not symbol.is_declaration)
        return parse_assembly("".join(f'@"{name}" = global i8 0\n' for name in named))
