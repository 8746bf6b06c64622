"""The store of finished jobs: one file for each, written atomically, at the job's address."""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from optim4rl.files.sealed import DamagedFileError, read_header, read_sealed, write_sealed
from optim4rl.jobs.job import Job, Result
from optim4rl.jobs.provenance import provenance

FOLDER = "jobs"


class StoreError(ValueError):
    """Error of a result that cannot be read; the message names its file."""


def result_path(folder: Path, job: Job) -> Path:
    """Return the path of the job's result, whether it exists or not."""
    return folder / FOLDER / f"{job.address}.safetensors"


def has_result(folder: Path, job: Job) -> bool:
    """Return whether the job is finished."""
    return result_path(folder, job).is_file()


def has_results(folder: Path) -> bool:
    """Return whether the folder holds a finished job."""
    return any((folder / FOLDER).glob("*.safetensors"))


def job_seconds(folder: Path, job: Job) -> float:
    """Return a worker's seconds from the header of the result; 0 if they are not there."""
    try:
        return float(json.loads(read_header(result_path(folder, job))["info"])["seconds"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0.0  # This is for a guess; `get_result` reports a damaged file.


def put_result(folder: Path, job: Job, result: Result) -> None:
    """Write a result atomically, with its question and its provenance."""
    metadata = {
        "job": json.dumps(job.question, sort_keys=True),
        "info": json.dumps(dict(result.info), sort_keys=True),
        "provenance": json.dumps(provenance(job.module), sort_keys=True),
    }
    write_sealed(result_path(folder, job), result.arrays, metadata)


def get_result(folder: Path, job: Job) -> Result:
    """Return a finished job's result.

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
    except (OSError, ValueError, KeyError) as error:
        named = isinstance(error, DamagedFileError)
        said = error if named else f"{path}: this result cannot be read ({error})"
        raise StoreError(f"{said}; delete it, and its command makes it again") from error
    if asked != json.loads(json.dumps(job.question)):
        raise StoreError(
            f"{path}: the result of another job; delete it, and its command makes it again"
        )
    return Result(arrays, info)


def kept(folder: Path | None, job: Job, make: Callable[[], Result]) -> Result:
    """Return a job's result: read it from the folder, or make it in this process and keep it.

    Args:
        folder: where results are kept; None: nowhere.
        job: the job.
        make: computes the result.

    Raises:
        StoreError: the file of the result is damaged.
    """
    if folder is None:
        return make()
    if not has_result(folder, job):
        put_result(folder, job, make())
    return get_result(folder, job)


def finished_jobs(folder: Path) -> Iterator[tuple[Path, Mapping[str, Any], Mapping[str, Any]]]:
    """Return path, question and info of every finished job, from the files' headers alone.

    Raises:
        StoreError: a result cannot be read.
    """
    for path in sorted((folder / FOLDER).glob("*.safetensors")):
        try:
            metadata = read_header(path)
            yield path, json.loads(metadata["job"]), json.loads(metadata["info"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StoreError(f"{path}: this result cannot be read ({error})") from error
