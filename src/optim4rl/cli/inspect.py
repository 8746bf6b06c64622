"""`optim4rl inspect`: draw a learned optimizer's response to gradients."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import jax
import tyro

from optim4rl.cli.runtime import require_file_name
from optim4rl.files.atomic import write_atomically
from optim4rl.optimizers.presets import LEARNED
from optim4rl.optimizers.weights import LearnedOptimizer, load_weights, untrained
from optim4rl.pages.inspection import inspect, render_inspection, to_json


@dataclass(frozen=True)
class InspectOptions:
    """Draw a learned optimizer's step against size, history and age, beside Adam and sign-SGD.

      optim4rl inspect anchored-catch --out runs/anchored.html

    Attributes:
        weights: a shipped name, a path, or a preset, which is shown untrained.
        out: the page to write. Default: runs/inspect/NAME.html.
        json: print the numbers as JSON; then a page is written only with `--out`.
    """

    weights: Annotated[str, tyro.conf.Positional]
    out: Path | None = None
    json: bool = False


def run(options: InspectOptions) -> None:
    """Run the command."""
    if options.out is not None:
        require_file_name("out", options.out)
    name, optimizer = _find(options.weights)
    out = options.out
    if out is None and not options.json:
        out = Path("runs/inspect") / f"{Path(options.weights).stem}.html"
    inspection = inspect(name, optimizer)
    if out is not None:
        # A card may hold unpaired surrogates, which UTF-8 cannot encode: they become question
        # marks.
        write_atomically(out, render_inspection(inspection).encode("utf-8", "replace"))
    if options.json:
        print(json.dumps(to_json(inspection)))
    else:
        print(f"wrote {out}")


def _find(weights: str) -> tuple[str, LearnedOptimizer]:
    if weights in LEARNED:
        return f"{weights}, untrained", untrained(weights, 1e-3, jax.random.key(0))
    return Path(weights).name, load_weights(weights)
