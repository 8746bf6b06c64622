"""SHA256SUMS: the checksums of a finished command's files.

`sha256sum` has the same format, so `sha256sum --check SHA256SUMS` tells whether a copy is complete.
Files in subfolders are not listed; they carry their own checksums.
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from optim4rl.files.atomic import write_atomically
from optim4rl.files.reading import LARGEST_TEXT, opened, read_file
from optim4rl.files.sealed import DamagedFileError

MANIFEST = "SHA256SUMS"


def write_manifest(folder: Path) -> None:
    """Write the checksums of a folder's files, except files whose names start with a dot."""
    paths = sorted(
        path
        for path in folder.iterdir()
        if path.is_file() and path.name != MANIFEST and not path.name.startswith(".")
    )
    lines = [f"{_digest(path)}  {path.name}\n" for path in paths]
    write_atomically(folder / MANIFEST, "".join(lines).encode())


def remove_manifest(folder: Path) -> None:
    """Remove the manifest before files change; the command writes it again at its end."""
    (folder / MANIFEST).unlink(missing_ok=True)


def check_files(folder: Path, names: Iterable[str]) -> None:
    """Check the files that exist; without a manifest, check nothing.

    Raises:
        DamagedFileError: a file has changed since the command finished; the message names it.
        OSError: a file cannot be read.
    """
    path = folder / MANIFEST
    if not path.is_file():
        return
    lines = read_file(path, LARGEST_TEXT).decode("utf-8", "replace").splitlines()
    known = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    for name in names:
        if (folder / name).is_file() and known.get(name) != _digest(folder / name):
            raise DamagedFileError(
                f"{folder / name}: damaged or changed: it does not match {path}; restore it, or "
                f"delete {MANIFEST} to accept the change"
            )


def _digest(path: Path) -> str:
    with opened(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
