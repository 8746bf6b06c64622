"""`optim4rl import`: turn weights that other groups publish into a weights file of ours."""

import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from optim4rl.cli.runtime import require_file_name
from optim4rl.fields import COUNT, check_fields
from optim4rl.optimizers.published_files import import_open
from optim4rl.optimizers.rule import spec_to_dict
from optim4rl.optimizers.weights import save_weights

Publisher = Literal["open"]


@dataclass(frozen=True)
class ImportOptions:
    """Read weights that another group publishes, and write them as a weights file.

    The last three options matter only if you do not tell the optimizer how much of training is done
    (docs/optimizers.md). `optim4rl evaluate` always tells it.

      optim4rl import open breakout_OPEN.npy --out open-breakout.safetensors

    Attributes:
        publisher: the publisher of the weights: open is OPEN (Goldie et al. 2024).
        file: the published file, for open a .npy.
        out: the weights file to write.
        rollouts: rollouts of a run that the weights will be used in.
        epochs: epochs of each rollout.
        minibatches: minibatches of each epoch.
        json: print what was read as JSON.
    """

    publisher: Annotated[Publisher, tyro.conf.Positional]
    file: Annotated[Path, tyro.conf.Positional]
    out: Path
    rollouts: int = 1220
    epochs: int = 4
    minibatches: int = 8
    json: bool = False

    def __post_init__(self) -> None:
        check_fields(self, rollouts=COUNT, epochs=COUNT, minibatches=COUNT)


def run(options: ImportOptions) -> None:
    """Run the command."""
    require_file_name("out", options.out)
    optimizer = import_open(
        options.file,
        rollouts=options.rollouts,
        epochs=options.epochs,
        minibatches=options.minibatches,
    )
    save_weights(options.out, optimizer)
    if options.json:
        rule = {"spec": spec_to_dict(optimizer.spec), "learning_rate": optimizer.learning_rate}
        print(json.dumps({"weights": str(options.out), **rule, **optimizer.card}))
    else:
        words = shlex.join(["optim4rl", "evaluate", str(options.out), "--suite", "NAME"])
        print(f"wrote {options.out}; run it with\n  {words}")
