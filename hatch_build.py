"""Build the native CPU kernels when the package is installed; go on without one where that fails.

Used by hatchling for wheels and for `pip install -e .`, which puts each library beside the
`native.py` that loads it. The compiler is $CXX, else the first of c++, g++ and clang++ that is
found; `CXX=none` names none, and the wheel is then pure Python.
"""

import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import packaging.tags
from hatchling.builders.hooks.plugin.interface import BuildHookInterface

# The libraries. Each is made of the source of that name, once for every instruction set, and of the
# other sources beside it, its drivers.
LIBRARIES = (
    Path("src/optim4rl/optimizers/kernels/rule.so"),
    Path("src/optim4rl/tasks/kernels/conv.so"),
)
# Which jaxlib has the headers of XLA's foreign function interface that they are compiled against.
HEADERS = "jaxlib>=0.10,<0.12"
SHARED = Path("src/optim4rl/cpp")
FLAGS = ("-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra")
# None of these changes what an infinity or a NaN does.
ARITHMETIC_FLAGS = ("-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math")
# GCC schedules before it allocates registers only when asked to: a tenth faster. Clang always does.
GCC_FLAGS = ("-fschedule-insns", "-fsched-pressure")
# The name of each compilation of an arithmetic, and its flags.
X86_VARIANTS = {
    "avx512": ("-march=x86-64-v4",),
    "avx2": ("-march=x86-64-v3",),
    "sse2": ("-march=x86-64",),
}
OTHER_VARIANTS: dict[str, tuple[str, ...]] = {"portable": ()}


class NativeKernelHook(BuildHookInterface[Any]):
    """Compiles the libraries and tags the wheel with the platform."""

    def dependencies(self) -> list[str]:
        """What a build needs besides hatchling: XLA's headers, where there is a compiler."""
        try:
            find_compiler()
        except RuntimeError:
            return []
        return [HEADERS]

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called by hatchling before it gathers the files."""
        del version
        root = Path(self.root)
        for library in LIBRARIES:
            try:
                build_library(root, library)
            except (OSError, RuntimeError, subprocess.CalledProcessError) as error:
                self.app.display_warning(f"optim4rl: {library.name} was not built: {error}")
                continue
            build_data["artifacts"].append(library.as_posix())
            build_data["pure_python"] = False
            build_data["tag"] = f"py3-none-{platform_tag()}"


def platform_tag() -> str:
    """This machine's own tag; auditwheel puts a manylinux tag in its place."""
    tags = packaging.tags.platform_tags()
    return next(tag for tag in tags if not tag.startswith(("manylinux", "musllinux")))


def build_library(root: Path, library: Path) -> None:
    """Compile and link a library below the project's root; one that is there stays until then.

    Raises:
        RuntimeError: there is no compiler, or no jaxlib with XLA's headers.
        subprocess.CalledProcessError: the compiler failed; it has printed why.
    """
    compiler = [*find_compiler(), *FLAGS, "-I", str(root / SHARED)]
    sources = root / library.parent
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    # On the library's own disk, so that it comes into place in one step.
    with tempfile.TemporaryDirectory(prefix=".build-", dir=sources) as scratch:
        objects = []
        arithmetic = [*ARITHMETIC_FLAGS, *(GCC_FLAGS if is_gcc(find_compiler()) else ())]
        for name, flags in (X86_VARIANTS if x86 else OTHER_VARIANTS).items():
            objects.append(f"{scratch}/{name}.o")
            arguments = [*arithmetic, *flags, f"-DARITHMETIC={name}", "-c"]
            _run(*compiler, *arguments, str(sources / f"{library.stem}.cc"), "-o", objects[-1])
        headers = ["-isystem", str(xla_headers()), "-c"]
        for driver in sorted(set(sources.glob("*.cc")) - {sources / f"{library.stem}.cc"}):
            objects.append(f"{scratch}/{driver.stem}.o")
            _run(*compiler, *headers, str(driver), "-o", objects[-1])
        linked = f"{scratch}/{library.name}"
        _run(*find_compiler(), "-shared", "-pthread", *objects, "-o", linked)
        os.replace(linked, root / library)


def find_compiler() -> list[str]:
    """The command of the C++ compiler.

    Raises:
        RuntimeError: there is none.
    """
    chosen = os.environ.get("CXX", "").split()
    if chosen:
        if shutil.which(chosen[0]):
            return chosen
        raise RuntimeError(f"CXX = {chosen[0]!r}: there is no such command")
    for name in ("c++", "g++", "clang++"):
        if shutil.which(name):
            return [name]
    raise RuntimeError("no C++ compiler was found (CXX, c++, g++, clang++)")


def is_gcc(compiler: list[str]) -> bool:
    """Whether the compiler is GCC: on some systems clang answers to that name."""
    version = subprocess.run([*compiler, "--version"], check=True, capture_output=True, text=True)
    return "clang" not in version.stdout


def xla_headers() -> Path:
    """The folder of XLA's FFI headers, which jaxlib brings along."""
    spec = importlib.util.find_spec("jaxlib")
    if spec is None or not spec.submodule_search_locations:
        raise RuntimeError("jaxlib is needed for XLA's FFI headers")
    return Path(spec.submodule_search_locations[0]) / "include"


def _run(*command: str) -> None:
    subprocess.run(command, check=True, stdout=sys.stderr)
