"""A job: the name of a function, and its arguments as JSON. Its result is kept at its address.

The address is a hash of the function, its arguments, the code that it can run, and the version of
every package and the variables that can change a number. So a finished job never runs twice, and a
result of older code or of another package never passes for a new result.
"""

import hashlib
import importlib
import json
import os
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from optim4rl.jobs.provenance import code_hash, package_versions

# The variables by which JAX computes other numbers.
_SWITCHES = ("JAX_DEFAULT_MATMUL_PRECISION", "JAX_DEFAULT_PRNG_IMPL", "JAX_ENABLE_X64")


@dataclass(frozen=True)
class Result:
    """The result of a job.

    Attributes:
        arrays: named numbers.
        info: JSON values. If a worker ran the job, "seconds" is its wall-clock time.
    """

    arrays: Mapping[str, np.ndarray]
    info: Mapping[str, Any]


class Refusal(ValueError):  # noqa: N818 - a job's answer, not a fault of its code
    """Error of a job that cannot be done; its message says why, without a traceback."""


# Takes the folder of results and the arguments, and returns the result.
Function: TypeAlias = Callable[[Path, Mapping[str, Any]], Result]


@dataclass(frozen=True, eq=False)
class Job:
    """Independent work.

    Attributes:
        function: "package.module:name" of a function of this package, see `Function`.
        arguments: plain JSON values.
        what: the job in a few words, for people.
        program: jobs with an equal program share compiled programs.
        files: the files that the function reads, as paths below the folder.
        kind: jobs of one kind take time in proportion to their work (see `forecast`).
        work: a rough guess of the seconds on one core.
    """

    function: str
    arguments: Mapping[str, Any]
    what: str = ""
    program: Hashable = None
    files: tuple[str, ...] = ()
    kind: str = ""
    work: float = 1.0

    @property
    def question(self) -> dict[str, Any]:
        """Return the function and its arguments as JSON values."""
        return {"function": self.function, "arguments": dict(self.arguments)}

    @property
    def module(self) -> str:
        """Return the function's module."""
        return self.function.partition(":")[0]

    @cached_property
    def address(self) -> str:
        """Return the name under which the result is kept."""
        decisive = [self.question, code_hash(self.module), package_versions()]
        if switches := {name: os.environ[name] for name in _SWITCHES if name in os.environ}:
            decisive.append(switches)
        text = json.dumps(decisive, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:24]

    def run(self, folder: Path) -> Result:
        """Run the function in this process.

        Raises:
            ValueError: the function is not in this package.
        """
        module, _, name = self.function.partition(":")
        if module.split(".")[0] != "optim4rl":
            raise ValueError(f"function = {self.function!r}: a function of optim4rl is needed")
        function: Function = getattr(importlib.import_module(module), name)
        return function(folder, self.arguments)
