"""Loads experiments from users' files: `my_method.py:experiment`.

A study keeps a copy of the file and of the modules beside it that it imports, under a hash of them
all. All workers read that copy, so every cell and the report come from the same code. A changed
file is another experiment with its own cells.
"""

import hashlib
import importlib.util
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from optim4rl.fields import shown
from optim4rl.files.atomic import write_atomically
from optim4rl.files.reading import read_file
from optim4rl.jobs.provenance import code_hash, imported_names, installed_version, is_module
from optim4rl.study.experiment import Experiment

FOLDER = "experiments"


@dataclass(frozen=True)
class Source:
    """A user's file and its imports.

    Attributes:
        file: the file's name.
        name: the experiment's name in the file.
        address: a hash of the file, of the modules beside it that it imports, and of the code of
            this package that they import.
        modules: the names of their files.
        packages: the version of every other package that they import.
    """

    file: str
    name: str
    address: str
    modules: tuple[str, ...]
    packages: Mapping[str, str]

    @classmethod
    def of_json(cls, values: Mapping[str, Any]) -> "Source":
        """Read the values that `to_json` wrote."""
        names = {name: str(values[name]) for name in ("file", "name", "address")}
        return cls(**names, modules=tuple(values["modules"]), packages=dict(values["packages"]))

    @property
    def files(self) -> tuple[str, ...]:
        """Return the copies, as paths below a study's folder."""
        return tuple(f"{FOLDER}/{self.address}/{name}" for name in (self.file, *self.modules))

    def load(self, folder: Path) -> Experiment:
        """Load the experiment from the copy in a study's folder.

        Raises:
            ValueError: it cannot be loaded, or a package has another version here.
        """
        for package, version in self.packages.items():
            here = installed_version(package)
            if here != version:
                raise ValueError(
                    f"package {package}: version {here or 'none'} is installed here, but the study "
                    f"was started with {version}; install the same version everywhere"
                )
        return load_experiment(folder / self.files[0], self.name, self.address)


def split_name(text: str) -> tuple[Path, str]:
    """Split "PATH.py:NAME" into the file and the name.

    Raises:
        ValueError: the text has another form, or the file does not exist.
    """
    path, _, name = text.rpartition(":")
    if not path.endswith(".py") or not name.isidentifier():
        raise ValueError(f"experiment = {text!r}: give optim4rl or FILE.py:NAME")
    if not Path(path).is_file():
        raise ValueError(f"experiment = {text!r}: there is no file {path!r}")
    return Path(path), name


def read_source(text: str) -> Source:
    """Read the current source of "PATH.py:NAME".

    Raises:
        ValueError: the file does not exist, or is not valid Python.
    """
    path, name = split_name(text)
    files = _local_files(path)
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.name}\n".encode() + read_file(file))
    packages = {}
    local = {file.stem for file in files}
    imported = {x for file in files for x in _imports(file)}
    for module in sorted(filter(is_module, imported)):
        digest.update(code_hash(module).encode())
    for module in sorted(_top_level(imported) - local):
        for package in _distributions().get(module, ()):
            packages[package] = installed_version(package) or ""
    packages.pop("optim4rl", None)
    others = tuple(file.name for file in files[1:])
    return Source(path.name, name, digest.hexdigest()[:24], others, packages)


def changed_files(source: Source, text: str, earlier: Source, folder: Path) -> list[str]:
    """Return the names of the files that differ from an earlier version's copies in a folder."""
    path, _ = split_name(text)
    copies = folder / FOLDER / earlier.address
    names = {source.file, *source.modules, earlier.file, *earlier.modules}
    return sorted(x for x in names if _content(path.parent / x) != _content(copies / x))


def _content(path: Path) -> bytes | None:
    return read_file(path) if path.is_file() else None


def keep_source(source: Source, text: str, folder: Path) -> None:
    """Copy the files into a study's folder."""
    path, _ = split_name(text)
    for name, kept in zip((source.file, *source.modules), source.files, strict=True):
        if not (folder / kept).is_file():
            write_atomically(folder / kept, read_file(path.parent / name))


@cache
def load_experiment(path: Path, name: str, address: str) -> Experiment:
    """Load the experiment of a file, which runs once in a process as long as its address is one.

    Raises:
        ValueError: the file raises an error, or the name is not an experiment.
    """
    module = _run(path.resolve(), address)
    if not hasattr(module, name):
        known = [key for key, x in vars(module).items() if isinstance(x, Experiment)]
        raise ValueError(
            f"{path.name}:{name}: the file has no {name!r}; its experiments are "
            f"{', '.join(known) or 'none'}"
        )
    found = getattr(module, name)
    if not isinstance(found, Experiment):
        raise ValueError(
            f"{path.name}:{name} = {shown(found)}: an optim4rl.study.Experiment is needed"
        )
    return found


@cache
def _run(path: Path, address: str) -> Any:
    """Run the file as a module, and the modules beside it anew."""
    # The module's name comes from the path of its contents: two copies are two modules.
    name = f"_experiment_{path.parent.name}_{path.stem}_{address}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # Dataclasses look their annotations up there.
    sys.path.insert(0, str(path.parent))
    try:
        for file in _local_files(path)[1:]:
            sys.modules.pop(file.stem, None)
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise ValueError(f"{path.name}: {explain(error, path)}") from error
    return module


def explain(error: BaseException, path: Path) -> str:
    """Describe an error in a few words, with the last line of the user's files that it passed.

    The line of a syntax error is the line that cannot be parsed.
    """
    lines = []
    trace = error.__traceback__
    while trace is not None:
        file = Path(trace.tb_frame.f_code.co_filename)
        if file.parent == path.parent:
            lines.append(f"{file.name}, line {trace.tb_lineno}")
        trace = trace.tb_next
    said = str(error)
    if isinstance(error, SyntaxError) and error.msg:
        said = error.msg
        # Code in a string has no file: its name is "<string>" or "<unknown>".
        if error.filename and not error.filename.startswith("<"):
            line = f", line {error.lineno}" if error.lineno else ""
            lines.append(f"{Path(error.filename).name}{line}")
    said = " ".join(said.split())
    return f"{type(error).__name__}: {said}" + (f" ({lines[-1]})" if lines else "")


def _local_files(path: Path) -> list[Path]:
    """Return the file and the modules beside it that it imports, directly or indirectly.

    Raises:
        ValueError: a file is not valid Python, or imports a folder of modules beside it.
    """
    found = {path.name: path}
    waiting = [path]
    while waiting:
        importing = waiting.pop()
        for module in sorted(_top_level(_imports(importing))):
            if module != "optim4rl" and any((path.parent / module).glob("*.py")):
                raise ValueError(
                    f"{importing.name}: import {module}: a study keeps no folder of modules; give "
                    f"one file {module}.py beside it, or an installed package"
                )
            file = path.parent / f"{module}.py"
            if file.name not in found and file.is_file():
                found[file.name] = file
                waiting.append(file)
    first, *others = found.values()
    return [first, *sorted(others)]


def _imports(path: Path) -> list[str]:
    """Return the full name of everything that a file imports.

    Raises:
        ValueError: the file is not valid Python.
    """
    try:
        return imported_names(read_file(path), str(path))
    except (SyntaxError, ValueError) as error:
        raise ValueError(f"{path.name}: {explain(error, path)}") from error


def _top_level(names: Iterable[str]) -> set[str]:
    return {name.partition(".")[0] for name in names}


@cache
def _distributions() -> Mapping[str, list[str]]:
    """Return the installed packages by module name; the search takes a moment."""
    return metadata.packages_distributions()
