"""A worker process: one cell per line in, one line about it out.

Run as `python -m optim4rl.study.worker FOLDER`. A line in is a cell as JSON; a line out says
`{"done": seconds}` or `{"error": text}`. Results go to the store in FOLDER.
"""

import json
import sys
import traceback
from pathlib import Path

from optim4rl.study.cells import cell_from_dict, run_cell
from optim4rl.study.store import put_result


def main() -> None:
    """Serve until the input ends."""
    folder = Path(sys.argv[1])
    # Libraries may print; the answers must stay alone on their stream.
    answers, sys.stdout = sys.stdout, sys.stderr
    for line in sys.stdin:
        try:
            cell = cell_from_dict(json.loads(line))
            result = run_cell(cell)
            put_result(folder, cell, result)
            answer = {"done": result.info["seconds"]}
        except Exception:
            answer = {"error": traceback.format_exc()}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
