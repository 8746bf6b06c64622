"""Provenance of a result: its code, and every package that can change a number."""

import ast
import hashlib
import sys
from functools import cache
from importlib import metadata, resources
from importlib.resources.abc import Traversable
from typing import Any

# Packages whose version can change a number. Packages that are not installed are ignored.
PACKAGES = (
    "jax",
    "jaxlib",
    "numpy",
    "optax",
    "equinox",
    "gymnax",
    "brax",
    "mujoco",
    "mujoco-mjx",
    "playground",
)
_NATIVE = (".cc", ".h")


@cache
def package_versions() -> dict[str, str]:
    """Return the installed version of each of `PACKAGES`."""
    versions = {name: installed_version(name) for name in PACKAGES}
    return {name: version for name, version in versions.items() if version is not None}


def installed_version(package: str) -> str | None:
    """Return the version of a package; None if it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def provenance(module: str) -> dict[str, Any]:
    """Return versions, and a hash of the code that the module can run, as JSON values."""
    python = ".".join(map(str, sys.version_info[:3]))
    versions = {"python": python, "optim4rl": metadata.version("optim4rl"), **package_versions()}
    return {"versions": versions, "code": code_hash(module)}


@cache
def code_hash(module: str) -> str:
    """Hash a module's source, all that it imports from this package, and native sources.

    Imports are read from the sources, also inside functions. So no list of files must be kept up to
    date.

    Args:
        module: its name, such as "optim4rl.study.cells".
    """
    digest = hashlib.sha256()
    for name in sorted(_reachable(module)):
        file = _source(name)
        assert file is not None
        digest.update(name.encode() + file.read_bytes())
    return digest.hexdigest()


def _reachable(module: str) -> set[str]:
    """Return the module, and every module or native source of this package that it can reach."""
    found: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += _imports(name)
    return found


@cache
def _imports(name: str) -> tuple[str, ...]:
    """Return a module's imports from this package, and the native sources beside it."""
    if name.endswith(_NATIVE):
        return ()
    file = _source(name)
    assert file is not None
    folder = name if file.name == "__init__.py" else name.rpartition(".")[0]
    native = [f"{folder}/{x.name}" for x in _folder(folder).iterdir() if x.name.endswith(_NATIVE)]
    return (*filter(is_module, imported_names(file.read_bytes())), *native)


def imported_names(source: bytes, file: str = "<unknown>") -> list[str]:
    """Return the full name of everything that a source imports, also inside functions.

    Raises:
        SyntaxError: the source is not valid Python; a null byte in it may be a ValueError.
    """
    names = []
    for node in ast.walk(ast.parse(source, file)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return names


def is_module(name: str) -> bool:
    """Return whether a name is that of a module of this package."""
    return name.split(".")[0] == "optim4rl" and _source(name) is not None


def _folder(package: str) -> Traversable:
    return resources.files("optim4rl").joinpath(*package.split(".")[1:])


@cache
def _source(name: str) -> Traversable | None:
    """Return the file of a module or a native source; None if there is no such module."""
    package, slash, file = name.partition("/")
    if slash:
        return _folder(package) / file
    *_, last = name.split(".")
    for path in (_folder(name) / "__init__.py", _folder(name.rpartition(".")[0]) / f"{last}.py"):
        if path.is_file():
            return path
    return None
