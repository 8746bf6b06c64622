"""The worker: `python -m optim4rl.jobs.worker FOLDER` does one job after another.

A question is a line of JSON with a job's address, function and arguments. The answer is a line,
too: `{"done": true}` or `{"error": text}`. The result goes into the folder.
"""

import json
import sys
import time
import traceback
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from optim4rl.files.atomic import NO_ROOM
from optim4rl.jobs.job import Job
from optim4rl.jobs.store import put_result

# The answer of a worker that has other code than the command: its result would differ.
OTHER_CODE = (
    "the worker has another version of optim4rl or of a package that it computes with than this "
    "command (it was changed, or is another one on that machine); start the command again with one "
    "version everywhere: it goes on"
)


def answer(folder: Path, question: Mapping[str, Any]) -> dict[str, Any]:
    """Do a job and keep its result, unless this code is not the code that asks."""
    job = Job(question["function"], question["arguments"])
    if job.address != question["address"]:
        return {"error": OTHER_CODE}
    started = time.perf_counter()
    result = job.run(folder)
    info = {**result.info, "seconds": time.perf_counter() - started}
    put_result(folder, job, replace(result, info=info))
    return {"done": True}


def main() -> None:
    """Answer every question until the input ends."""
    folder = Path(sys.argv[1])
    # Libraries may print; the answers must stay alone on their stream.
    answers, sys.stdout = sys.stdout, sys.stderr
    for line in sys.stdin:
        try:
            found = answer(folder, json.loads(line))
        except OSError as error:
            # A full disk is no fault of the code, so a trace would mislead.
            found = {"error": str(error) if error.errno in NO_ROOM else traceback.format_exc()}
        except Exception:
            found = {"error": traceback.format_exc()}
        print(json.dumps(found), file=answers, flush=True)


if __name__ == "__main__":
    main()
