"""The worker: `python -m optim4rl.jobs.worker FOLDER` runs one job after another.

It reads a line of JSON for each job: address, function and arguments. It answers each with a line,
`{"done": true}` or `{"error": text}`, and writes the result into the folder.
"""

import json
import os
import sys
import time
import traceback
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from optim4rl.files.atomic import NO_ROOM
from optim4rl.jobs.job import Job, Refusal
from optim4rl.jobs.store import put_result

# The answer of a worker whose code differs from the command's code: its result would differ, too.
OTHER_CODE = (
    "the worker has another version of optim4rl or of a package that it computes with than this "
    "command (it was changed, or is another one on that machine); start the command again with one "
    "version everywhere: it goes on"
)


def answer(folder: Path, question: Mapping[str, Any]) -> dict[str, Any]:
    """Run a job and keep its result; refuse if this code differs from the command's code."""
    job = Job(question["function"], question["arguments"])
    if job.address != question["address"]:
        return {"error": OTHER_CODE}
    started = time.perf_counter()
    try:
        result = job.run(folder)
    except Refusal as error:
        return {"error": str(error)}
    info = {**result.info, "seconds": time.perf_counter() - started}
    put_result(folder, job, replace(result, info=info))
    return {"done": True}


def main() -> None:
    """Answer every question until the input ends."""
    folder = Path(sys.argv[1])
    # Libraries and their processes may read and print, but these streams are for jobs alone.
    questions, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    for line in questions:
        try:
            found = answer(folder, json.loads(line))
        except OSError as error:
            # A full disk is not a fault of the code, so a traceback would mislead.
            found = {"error": str(error) if error.errno in NO_ROOM else traceback.format_exc()}
        except Exception:
            found = {"error": traceback.format_exc()}
        print(json.dumps(found), file=answers, flush=True)


if __name__ == "__main__":
    main()
