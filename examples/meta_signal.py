"""How clear is the signal of each task in meta-training by evolution strategies?

    python examples/meta_signal.py ppo/varied --sigmas 0.1 0.3 0.6 --tasks 6

An antithetic pair of agents learns with opposite perturbations of the rule, and shares all random
numbers. Here each pair lives twice, with other random numbers the second time. If the perturbation
decides which agent does better, the pair's difference repeats; if chance does, it does not. The
table has, for each task and sigma, the correlation of the differences between the two times, and
the mean size of a difference. A task whose correlation is near 0 adds noise and no signal: give it
longer lives, more environments, a larger sigma, or leave it out. A correlation near 1 with large
differences may only say that a perturbation of this size breaks the rule.
"""

import argparse
import time
from dataclasses import replace
from typing import Any

import jax
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Float

from optim4rl.cli.progress_log import task_labels
from optim4rl.meta.estimators import MetaTask
from optim4rl.meta.evolution import EvolutionStrategies
from optim4rl.meta.population import Execution
from optim4rl.meta.recipe import Recipe, build, starting_weights
from optim4rl.meta.recipes import RECIPES
from optim4rl.optimizers.rule import MetaParameters, OptimizerSpec, init_meta_parameters
from optim4rl.pages.words import markdown_table


def measure_differences(
    spec: OptimizerSpec,
    meta_task: MetaTask,
    recipe: Recipe,
    meta_parameters: MetaParameters,
    sigmas: tuple[float, ...],
    pairs: int,
) -> tuple[Float[np.ndarray, "sigma time pair"], float]:
    """Return each pair's difference in return at both times, and the seconds of a life.

    A diverged life makes the difference NaN.
    """
    config = replace(recipe.meta, estimator="es", agents=2 * pairs, sigma=1.0)
    task = replace(meta_task, agents=None, estimator=None)
    estimator = EvolutionStrategies(spec, task, task.settings(config), Execution())
    size = ravel_pytree(meta_parameters)[0].size
    drawn = jax.random.normal(jax.random.key(0), (pairs, size))
    most = jax.numpy.int32(estimator.rollouts)

    @jax.jit
    def run(sigma: Any, key: Any) -> Any:
        return estimator.run_pairs(meta_parameters, sigma * drawn, key, most)[1]

    keys = jax.random.split(jax.random.key(1), 2)
    run(0.0, keys[0]).block_until_ready()  # Compile.
    start = time.perf_counter()
    losses = np.array([[run(sigma, key) for key in keys] for sigma in sigmas])
    seconds = (time.perf_counter() - start) / losses.size
    return losses[..., pairs:] - losses[..., :pairs], seconds


def correlation(differences: Float[np.ndarray, "2 pair"]) -> float:
    """Return the correlation of the differences between the two times, without diverged pairs."""
    known = differences[:, np.isfinite(differences).all(axis=0)]
    return float(np.corrcoef(known)[0, 1]) if known.shape[1] > 2 and known.std() > 0 else np.nan


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("recipe", choices=sorted(RECIPES))
    parser.add_argument("--start", default="", help="weights; default: untrained ones")
    parser.add_argument("--sigmas", type=float, nargs="+", default=[0.1, 0.3, 0.6])
    parser.add_argument("--pairs", type=int, default=16)
    parser.add_argument("--tasks", type=int, help="the first so many tasks; default: all")
    options = parser.parse_args()
    recipe = replace(RECIPES[options.recipe], start=options.start)
    spec, tasks = build(recipe)
    weights = starting_weights(recipe, spec) or init_meta_parameters(spec, jax.random.key(0))
    sigmas = tuple(options.sigmas)
    rows = []
    labels = task_labels(recipe.tasks)
    for label, task in zip(labels[: options.tasks], tasks[: options.tasks], strict=True):
        found, seconds = measure_differences(spec, task, recipe, weights, sigmas, options.pairs)
        cells = [f"{correlation(x):.2f} ({np.nanmean(abs(x)):.3g})" for x in found]
        rows.append([label, f"{seconds:.2f}", *cells])
        print(f"{label}: {', '.join(cells)}", flush=True)
    header = ["task", "seconds of a life", *(f"sigma {x:g}" for x in sigmas)]
    print("\n".join(["", *markdown_table(header, rows)]))


if __name__ == "__main__":
    from optim4rl.cli.runtime import configure_jax

    configure_jax()
    main()
