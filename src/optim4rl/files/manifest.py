"""SHA256SUMS: the checksums of what a finished command has left in its folder.

The format is that of `sha256sum`, so that `sha256sum --check SHA256SUMS` tells whether a copy is
whole. Files that carry a checksum of their own in a subfolder are not listed.
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from optim4rl.files.atomic import write_atomically
from optim4rl.files.sealed import DamagedFileError

MANIFEST = "SHA256SUMS"


def write_manifest(folder: Path) -> None:
    """Note the checksums of all files of a folder whose names do not start with a dot."""
    paths = sorted(
        path
        for path in folder.iterdir()
        if path.is_file() and path.name != MANIFEST and not path.name.startswith(".")
    )
    lines = [f"{_digest(path)}  {path.name}\n" for path in paths]
    write_atomically(folder / MANIFEST, "".join(lines).encode())


def remove_manifest(folder: Path) -> None:
    """Before files change: until the command has finished nothing is known of them."""
    (folder / MANIFEST).unlink(missing_ok=True)


def check_files(folder: Path, names: Iterable[str]) -> None:
    """Check those of the files that are there; without a manifest nothing is known of them.

    Raises:
        DamagedFileError: one is not what the command left; the message names it.
        OSError: one cannot be read.
    """
    path = folder / MANIFEST
    if not path.is_file():
        return
    lines = path.read_bytes().decode("utf-8", "replace").splitlines()
    known = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    for name in names:
        if (folder / name).is_file() and known.get(name) != _digest(folder / name):
            raise DamagedFileError(
                f"{folder / name}: damaged or changed: it does not match {path}; restore it, or "
                f"delete {MANIFEST} to take it as it is"
            )


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
