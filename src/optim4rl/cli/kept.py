"""Finished parts of a command that runs in this process, kept so that it goes on where it was."""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from optim4rl.study.cells import CellResult, code_hash
from optim4rl.study.store import read_result, write_result


def kept(
    folder: Path | None, question: Mapping[str, Any], make: Callable[[], CellResult]
) -> CellResult:
    """The answer to a question: from the folder, or made now and put there.

    Args:
        folder: where answers are kept under a hash of the question and of the code that answers;
            None: nowhere.
        question: JSON values that say all on which the answer depends, but for the code.
        make: how it is found.

    Raises:
        StoreError: the answer is there, but damaged; deleting it has it made again.
    """
    if folder is None:
        return make()
    question = json.loads(json.dumps(question))
    text = json.dumps([question, code_hash()], sort_keys=True)
    path = folder / f"{hashlib.sha256(text.encode()).hexdigest()[:24]}.safetensors"
    if not path.is_file():
        write_result(path, question, make())
    return read_result(path, question)
