"""What the tables of agents share: runs that are kept, runs.parquet and table.md."""

import argparse
import multiprocessing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

SEEDS = range(1_000, 1_005)
OPTIMIZERS = ("adam", "ppo-generalist")
# Takes a task, an optimizer and a seed; returns the learning curve, returns at equal distances.
Run = Callable[[str, str, int], np.ndarray]
Job = tuple[Path, Run, str, str, int]


def make_table(about: str | None, run: Run, steps: Mapping[str, int]) -> None:
    """Read the options, run what is missing, and write the tables.

    Args:
        about: the script's docstring, for its help.
        run: makes one run.
        steps: environment steps of a run, by task.
    """
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--tasks", nargs="+", default=list(steps), choices=list(steps))
    options = parser.parse_args()
    jobs: list[Job] = [
        (path_of(options.out, task, optimizer, seed), run, task, optimizer, seed)
        for task in options.tasks
        for seed in SEEDS
        for optimizer in OPTIMIZERS
    ]
    with multiprocessing.get_context("spawn").Pool(options.jobs) as pool:
        for done, what in enumerate(pool.imap(keep, jobs), 1):
            print(f"{done}/{len(jobs)} {what}", flush=True)
    write(options.out, steps)
    print((options.out / "table.md").read_text())


def path_of(out: Path, task: str, optimizer: str, seed: int) -> Path:
    """Return where a run's curve is kept."""
    return out / "curves" / f"{task}-{optimizer}-{seed}.npy"


def keep(job: Job) -> str:
    """Run, and keep the curve, unless it is there."""
    path, run, task, optimizer, seed = job
    if not path.exists():
        curve = run(task, optimizer, seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part.npy")
        np.save(part, curve)
        part.rename(path)
    return f"{task}, {optimizer}, seed {seed}"


def write(out: Path, steps: Mapping[str, int]) -> None:
    """Write runs.parquet, table.md and curves.svg, with the seeds that every optimizer has."""
    from optim4rl.benchmark.table import read_runs, write_runs

    rows = []
    for task in steps:
        seeds = [s for s in SEEDS if all(path_of(out, task, x, s).exists() for x in OPTIMIZERS)]
        for optimizer in OPTIMIZERS if len(seeds) > 1 else ():
            rows += rows_of(out, task, optimizer, steps[task], seeds)
    write_runs(iter(rows), out / "runs.parquet")
    runs = read_runs(out / "runs.parquet")
    (out / "table.md").write_text(markdown(runs))
    draw(runs, out / "curves.svg")


def rows_of(
    out: Path, task: str, optimizer: str, steps: int, seeds: list[int]
) -> list[dict[str, Any]]:
    """Return an optimizer's runs on a task, as rows of the table of runs."""
    from optim4rl.evaluation.curves import Curves
    from optim4rl.evaluation.returns import area_under_curve, final_return

    returns = np.stack([np.load(path_of(out, task, optimizer, seed)) for seed in seeds])
    points = returns.shape[1]
    env_steps = steps * np.arange(1, points + 1) // points
    curves = Curves(returns, np.full(len(returns), -1), env_steps)
    areas = area_under_curve(curves)
    finals = final_return(curves, max(points // 10, 1))
    same = {
        "optimizer": optimizer,
        "role": "baseline" if optimizer == "adam" else "learned",
        "change": "",
        "task": task,
        "purpose": "one",
        "meta_seed": 0,
        "setting": 1.0,
        "step_multiple": 1.0,
        "diverged_at": -1,
        "env_steps": env_steps.tolist(),
    }
    return [
        same | {"seed": seed, "auc": float(x), "final_return": float(y), "returns": curve.tolist()}
        for seed, x, y, curve in zip(seeds, areas, finals, returns, strict=True)
    ]


def markdown(runs: Any) -> str:
    """Return the table of a table of runs, as `read_runs` returns it."""
    from optim4rl.evaluation.returns import compare

    lines = [
        "| task | optimizer | seeds | AUC | final return | AUC against Adam (95 %) |",
        "|---|---|---|---|---|---|",
    ]
    for task in runs["task"].unique(maintain_order=True):
        found = {x: runs.filter(task=task, optimizer=x).sort("seed") for x in OPTIMIZERS}
        for optimizer, its in found.items():
            lead = "-"
            if optimizer != "adam":
                both = (x["auc"].to_numpy()[None, None] for x in (its, found["adam"]))
                x = compare(*both, optimizer, "adam").difference
                lead = f"{x.value:+.1f} ({x.low:+.1f} to {x.high:+.1f})"
            means = f"{its['auc'].mean():.1f} | {its['final_return'].mean():.1f}"
            lines.append(f"| {task} | {optimizer} | {len(its)} | {means} | {lead} |")
    return "\n".join(lines) + "\n"


def draw(runs: Any, path: Path) -> None:
    """Draw the learning curves: the mean of the seeds, and their range, one panel a task."""
    import matplotlib

    matplotlib.use("svg")
    # The same bytes for the same runs, and text that can be searched.
    matplotlib.rcParams |= {"svg.hashsalt": "optim4rl", "svg.fonttype": "none"}
    from matplotlib import pyplot

    tasks = runs["task"].unique(maintain_order=True).to_list()
    figure, axes = pyplot.subplots(1, len(tasks), figsize=(3.2 * len(tasks), 2.8), squeeze=False)
    for task, axis in zip(tasks, axes[0], strict=True):
        for optimizer, colour in zip(OPTIMIZERS, ("#d55e00", "#0072b2"), strict=True):
            its = runs.filter(task=task, optimizer=optimizer)
            steps, returns = its["env_steps"][0].to_numpy(), np.stack(its["returns"].to_list())
            axis.plot(steps, returns.mean(axis=0), color=colour, label=optimizer)
            low, high = returns.min(axis=0), returns.max(axis=0)
            axis.fill_between(steps, low, high, color=colour, alpha=0.2, linewidth=0)
        axis.set(title=task, xlabel="environment steps")
    axes[0, 0].set_ylabel("return")
    axes[0, 0].legend()
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
