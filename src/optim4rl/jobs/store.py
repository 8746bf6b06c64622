"""Where the results of finished jobs live: one file each, whole or not at all, at its address."""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from optim4rl.files.sealed import DamagedFileError, read_header, read_sealed, write_sealed
from optim4rl.jobs.job import Job, Result
from optim4rl.jobs.provenance import provenance

FOLDER = "jobs"


class StoreError(ValueError):
    """A file of finished work that cannot be read; the message names it."""


def result_path(folder: Path, job: Job) -> Path:
    """Where the job's result is, or will be."""
    return folder / FOLDER / f"{job.address}.safetensors"


def has_result(folder: Path, job: Job) -> bool:
    """Whether the job is finished."""
    return result_path(folder, job).is_file()


def put_result(folder: Path, job: Job, result: Result) -> None:
    """Keep a result, atomically, beside what was asked and which code answered."""
    metadata = {
        "job": json.dumps(job.question, sort_keys=True),
        "info": json.dumps(dict(result.info), sort_keys=True),
        "provenance": json.dumps(provenance(job.module), sort_keys=True),
    }
    write_sealed(result_path(folder, job), result.arrays, metadata)


def get_result(folder: Path, job: Job) -> Result:
    """A finished job's result.

    Raises:
        StoreError: the file is missing, damaged, or the result of another job. If it is deleted,
            its command makes it again.
    """
    path = result_path(folder, job)
    try:
        arrays, metadata = read_sealed(path)
        asked, info = json.loads(metadata["job"]), json.loads(metadata["info"])
    except FileNotFoundError as error:
        raise StoreError(
            f"{path}: no such result; the run is unfinished, or other code or other packages made "
            "it. Start its command again: it completes the run"
        ) from error
    except DamagedFileError as error:
        raise StoreError(f"{error}; delete it, and its command makes it again") from error
    except (OSError, ValueError, KeyError) as error:
        raise StoreError(
            f"{path}: this result cannot be read ({error}); delete it, and its command makes it "
            "again"
        ) from error
    if asked != json.loads(json.dumps(job.question)):
        raise StoreError(
            f"{path}: the result of another job; delete it, and its command makes it again"
        )
    return Result(arrays, info)


def kept(folder: Path | None, job: Job, make: Callable[[], Result]) -> Result:
    """A job's result, from the folder or made now in this process and kept there.

    Args:
        folder: where results are kept; None: nowhere.
        job: what is asked.
        make: how the result is found.

    Raises:
        StoreError: the result is there, but damaged.
    """
    if folder is None:
        return make()
    if not has_result(folder, job):
        put_result(folder, job, make())
    return get_result(folder, job)


def finished_jobs(folder: Path) -> Iterator[tuple[Path, Mapping[str, Any], Mapping[str, Any]]]:
    """Path, question and info of every finished job, from the files' headers alone.

    Raises:
        StoreError: one cannot be read.
    """
    for path in sorted((folder / FOLDER).glob("*.safetensors")):
        try:
            metadata = read_header(path)
            yield path, json.loads(metadata["job"]), json.loads(metadata["info"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StoreError(f"{path}: this result cannot be read ({error})") from error
