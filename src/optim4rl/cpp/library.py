"""Libraries of C++ kernels for CPUs, which XLA calls through its foreign function interface.

Each is compiled for several instruction sets; the best that the machine has is taken when the
library is loaded. OPTIM4RL_NATIVE_ISA = avx512, avx2 or sse2 asks for another. They are built when
the package is installed, if a C++ compiler is there; after a change of the C++ files,
`pip install -e .` builds them again.
"""

import ctypes
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import jax

ISA_VARIABLE = "OPTIM4RL_NATIVE_ISA"


class _Loaded(NamedTuple):
    """A library's instruction set, or why there is none."""

    instruction_set: str = ""
    problem: str | None = None


@dataclass(frozen=True)
class Library:
    """A library that is loaded when it is first asked for.

    Attributes:
        path: where it lies, if it was built.
        symbols: names of its handlers.
    """

    path: Path
    symbols: tuple[str, ...]

    def target(self, symbol: str) -> str:
        """The name under which XLA knows one of its handlers."""
        return f"{symbol}_{self._loaded.instruction_set}"

    def status(self) -> str:
        """Which instruction set is in use, or why none is: one line."""
        return self._loaded.problem or f"instruction set {self._loaded.instruction_set}"

    def refusal(self) -> str | None:
        """Why it cannot run here, in one line; None where it can."""
        if jax.default_backend() != "cpu":
            return f"runs on CPUs, and the default device is a {jax.default_backend()}"
        return self._loaded.problem

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
            if chosen is None:
                wanted = os.environ.get(ISA_VARIABLE)
                return _Loaded(problem=f"{ISA_VARIABLE} = {wanted!r}: this machine has no such set")
            instruction_set = chosen.decode()
            for symbol in self.symbols:
                jax.ffi.register_ffi_target(
                    f"{symbol}_{instruction_set}",
                    jax.ffi.pycapsule(getattr(library, symbol)),
                    platform="cpu",
                )
        except Exception as error:  # whatever is wrong with it, XLA can do without
            reason = " ".join(str(error).split())
            return _Loaded(problem=f"{self.path.name} cannot be used here, reinstall: {reason}")
        return _Loaded(instruction_set)
