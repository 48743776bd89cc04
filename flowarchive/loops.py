"""Loops that are compiled to machine code, once for each machine, and kept on disk."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, cast

import numba
from llvmlite import binding
from numba.core import environment
from numba.core.caching import FunctionCache
from numba.core.codegen import JITCodeLibrary
from numba.core.runtime.nrt import rtsys

__all__ = ["compiled"]

_P = ParamSpec("_P")
_R = TypeVar("_R")


def compiled(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Compile a loop with numba: no float shortcuts, no interpreter lock, kept on disk.

    Where no directory can be written to, every process compiles anew.
    """
    # The numpy error model drops the test for a zero divisor; every caller has checked its own.
    dispatcher: Any = numba.njit(nogil=True, error_model="numpy")(function)
    with suppress(RuntimeError):  # numba finds no such directory
        dispatcher._cache = _MachineCode(function)  # type: ignore[no-untyped-call]
    return cast(Callable[_P, _R], dispatcher)


class _MachineCode(FunctionCache):
    """What was compiled, read without the half second that compilers take to get ready.

    numba's own cache fills its registries of types and operations before it loads a function, and
    parses what other functions may inline of it. Code that is there needs the runtime alone;
    whoever has to compile does the rest then.
    """

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """Return the function of a signature, or None."""
        rtsys.initialize(target_context)
        with self._guard_against_spurious_io_errors():
            codegen = target_context.codegen()
            # Pickles ask for it by name; numba's lock keeps other threads from compiling meanwhile.
            rebuild: Any = environment._rebuild_env
            environment._rebuild_env = _environment
            try:
                key = self._index_key(sig, codegen)
                data = self._cache_file.load(key)  # type: ignore[no-untyped-call]
            finally:
                environment._rebuild_env = rebuild
            if data is None:
                return None
            (name, kind, (code, to_inline)), function, *rest = data
            codegen._engine._defined_symbols |= {
                function.llvm_func_name,
                function.llvm_cpython_wrapper_name,
            }
            library = name, kind, (code, _NOTHING_TO_INLINE)
            found = self._impl.rebuild(target_context, (library, function, *rest))
            found.library.__class__ = _Library
            found.library.to_inline = to_inline
            return found

    def _index_key(self, sig: Any, codegen: Any) -> Any:
        """Tell machine code apart by all of the package, for loops take in those of other files."""
        key: Any = super()._index_key(sig, codegen)  # type: ignore[no-untyped-call]
        return *key, _sources()


@cache
def _sources() -> str:
    """Return what tells the package's files apart from those of another day."""
    folder = Path(__file__).parent
    files = [(path.relative_to(folder), path.stat()) for path in sorted(folder.rglob("*.py"))]
    facts = [(str(path), stat.st_size, stat.st_mtime_ns) for path, stat in files]
    return hashlib.blake2b(repr(facts).encode(), digest_size=16).hexdigest()


def _environment(module: str, constants: list[Any], name: str) -> Any:
    """Return what machine code holds of Python: constants, but not its module's globals.

    For these, which nothing reads, numba would import its code of arrays: a twentieth of a second.
    """
    found: Any = environment.lookup_environment(name)  # type: ignore[no-untyped-call]
    if found is None:
        found = environment.Environment({"__name__": module})
        found.consts[:] = constants
        found.env_name = name
        environment.Environment._memo[name] = found
    return found


class _Library(JITCodeLibrary):
    """Machine code; what may be inlined is parsed once somebody asks for it.

    Attributes:
        to_inline: LLVM's bitcode of it, until then.
    """

    to_inline: bytes | None

    def _get_module_for_linking(self) -> Any:
        if self.to_inline is not None:
            self._shared_module = binding.parse_bitcode(self.to_inline)
            engine: Any = self._codegen._engine
            engine._load_defined_symbols(self._shared_module)
            self.to_inline = None
        return self._shared_module


_NOTHING_TO_INLINE = binding.parse_assembly("").as_bitcode()
