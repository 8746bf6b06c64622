"""What a bfloat16 state costs: `python -m bench.precision [TASK]` prints a Markdown table.

Each shipped optimizer learns the task with its state in float32 and in bfloat16, on the same seeds.
"""

import sys
import time

import numpy as np

from optim4rl.cli.runtime import configure_jax

SEEDS = range(1_000, 1_016)
WEIGHTS = ("anchored-catch", "grid-generalist", "optim4rl-catch", "optim4rl-rlc-catch")


def main(name: str = "catch") -> None:
    """Train with every shipped optimizer, twice."""
    configure_jax()
    from optim4rl.evaluation.learning import Learned, learning_curves
    from optim4rl.evaluation.returns import area_under_curve, bootstrap_interval, final_return
    from optim4rl.optimizers.weights import load_weights
    from optim4rl.study.settings import EvaluationSettings
    from optim4rl.tasks import make_task

    settings = EvaluationSettings()
    (suite_task,) = settings.suite(name).tasks
    task = make_task(suite_task.config)
    print(f"{name}, {len(SEEDS)} seeds, {settings.updates} updates")
    print("| weights | bytes | AUC | its change | final return | its change | time |")
    print("|---|---|---|---|---|---|---|", flush=True)
    for weights in WEIGHTS:
        learned, found, seconds = load_weights(weights), {}, {}
        for dtype in ("float32", "bfloat16"):
            for _ in range(2):  # the second time, all is compiled
                started = time.perf_counter()
                (found[dtype],) = learning_curves(
                    task,
                    Learned(learned.spec, dtype),
                    learned.meta_parameters,
                    rates=[learned.learning_rate],
                    seeds=SEEDS,
                    updates=settings.updates,
                )
                seconds[dtype] = time.perf_counter() - started
        cells = []
        for score in (area_under_curve, final_return):
            exact, half = (score(found[dtype]) for dtype in found)
            change = bootstrap_interval((half - exact)[None, None], statistic="mean")
            cells += [
                f"{np.mean(exact):.4f}",
                f"{change.value:+.4f} ({change.low:+.4f} to {change.high:+.4f})",
            ]
        floats = learned.spec.state_floats
        cells.append(f"x {seconds['bfloat16'] / seconds['float32']:.2f}")
        row = [weights, f"{4 * floats} to {2 * floats}", *cells]
        print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
