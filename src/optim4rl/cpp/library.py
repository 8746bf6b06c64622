"""Libraries of C++ kernels for CPUs, which XLA calls through its foreign function interface.

Each library is compiled for several instruction sets, and loading it takes the best that the
machine has. OPTIM4RL_NATIVE_ISA = avx512, avx2 or sse2 asks for another. Installing the package
builds the libraries if there is a C++ compiler; after a change of the C++ files, `pip install -e .`
builds them again. Only functions that XLA calls need JAX.
"""

import ctypes
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

ISA_VARIABLE = "OPTIM4RL_NATIVE_ISA"


class _Loaded(NamedTuple):
    """A library and its instruction set, or the reason why there is none."""

    functions: Any = None
    instruction_set: str = ""
    problem: str | None = None


@dataclass(frozen=True)
class Library:
    """A library that is loaded at its first use.

    Attributes:
        path: its file, if it was built.
        handlers: names of the functions that XLA calls.
    """

    path: Path
    handlers: tuple[str, ...]

    @property
    def functions(self) -> Any:
        """Return the library for ctypes; None if it cannot be used."""
        return self._loaded.functions

    def target(self, handler: str) -> str:
        """Return the name under which XLA knows one of its handlers."""
        return f"{handler}_{self._registered.instruction_set}"

    def status(self) -> str:
        """Say in one line which instruction set is in use, or why none is."""
        return self._registered.problem or f"instruction set {self._registered.instruction_set}"

    def refusal(self) -> str | None:
        """Say in one line why XLA cannot run it here; None if it can."""
        import jax

        if jax.default_backend() != "cpu":
            return f"runs on CPUs, and the default device is a {jax.default_backend()}"
        return self._registered.problem

    @cached_property
    def _loaded(self) -> _Loaded:
        if not self.path.exists():
            return _Loaded(
                problem="not built: no C++ compiler worked when the package was installed; "
                "install g++ or clang++ and reinstall"
            )
        try:
            library = ctypes.CDLL(str(self.path))
            library.optim4rl_instruction_set.restype = ctypes.c_char_p
            chosen = library.optim4rl_instruction_set()
        except Exception as error:  # there is a way without the library, whatever is wrong with it
            return self._unusable(error)
        if chosen is None:
            wanted = os.environ.get(ISA_VARIABLE)
            return _Loaded(problem=f"{ISA_VARIABLE} = {wanted!r}: this machine has no such set")
        return _Loaded(library, chosen.decode())

    @cached_property
    def _registered(self) -> _Loaded:
        """Return the library, after telling XLA its handlers."""
        if self._loaded.problem:
            return self._loaded
        import jax

        try:
            for handler in self.handlers:
                jax.ffi.register_ffi_target(
                    f"{handler}_{self._loaded.instruction_set}",
                    jax.ffi.pycapsule(getattr(self.functions, handler)),
                    platform="cpu",
                )
        except Exception as error:  # XLA can run without it, too
            return self._unusable(error)
        return self._loaded

    def _unusable(self, error: Exception) -> _Loaded:
        reason = " ".join(str(error).split())
        return _Loaded(problem=f"{self.path.name} cannot be used here, reinstall: {reason}")
