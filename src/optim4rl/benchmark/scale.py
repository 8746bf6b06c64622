"""Normalised scores: a scale for each task, and how optimizers do on it.

Runs define the scale of a task: 0 is the untrained policy (agents that never update), 1 is the best
of the scale's baselines, tuned for the task. Every optimizer is run on the same seeds. So a
resample draws one set of seeds for the optimizer, the untrained policy and the baseline together,
and intervals include the luck of all three. Scores are arrays ``[task, meta_seed, seed]`` as in
`returns`. NaN is the score of a diverged run. If one run diverged, a mean over runs is NaN.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from optim4rl.benchmark.tuning import Tuning, best_of_grid
from optim4rl.evaluation.returns import (
    Estimate,
    bootstrap_interval,
    crossed,
    draw_counts,
    draw_meta_seeds,
    draw_runs,
    percentile_estimate,
    probability_of_improvement,
    worst_first,
)
from optim4rl.evaluation.significance import interquartile_means

RESAMPLES = 2_000
# With fewer meta-trainings than this, we can say nothing about a recipe.
MIN_META_SEEDS = 3
PROFILE_POINTS = np.linspace(0.0, 1.5, 61)

Scores = Float[np.ndarray, "task meta_seed seed"]
OtherScores = Float[np.ndarray, "task other_meta_seed seed"]
ControlScores = Float[np.ndarray, "task control_meta_seed seed"]
TaskRuns = Float[np.ndarray, "task seed"]
Drawn = Float[np.ndarray, "resample task _ seed"]


@dataclass(frozen=True, eq=False)
class Scale:
    """Hold the runs that define 0 and 1 on every task.

    Attributes:
        low: scores of agents that never update.
        high: scores of the best baseline, which is 1.
        best: name of the best baseline on each task.
        resolved: whether the baseline is above the untrained policy on each task, by the 95 %
            interval of the difference. The other tasks have no scale and are in no mean over tasks.
    """

    low: TaskRuns
    high: TaskRuns
    best: tuple[str, ...]
    resolved: Bool[np.ndarray, " task"]

    @property
    def ends(self) -> tuple[Float[np.ndarray, " task"], Float[np.ndarray, " task"]]:
        """Return the scores at 0 and at 1 of each task."""
        return self.low.mean(axis=1), self.high.mean(axis=1)

    def apply(
        self, scores: Float[np.ndarray, "*resample task _ seed"]
    ) -> Float[np.ndarray, "*resample task _ seed"]:
        """Normalise the scores of single runs; NaN on tasks without a scale."""
        low, high = (end[:, None, None] for end in self.ends)
        unit = np.where(self.resolved[:, None, None], high - low, np.nan)
        scaled: np.ndarray = (scores - low) / unit
        return scaled

    def only(self, tasks: Sequence[int]) -> "Scale":
        """Return the scale of some of the tasks."""
        best = tuple(self.best[task] for task in tasks)
        rows = np.array(tasks, int)
        return Scale(self.low[rows], self.high[rows], best, self.resolved[rows])


def make_scale(baselines: Mapping[str, TaskRuns], untrained: TaskRuns) -> Scale:
    """Make the scale: on each task 1 is the baseline with the highest mean.

    Args:
        baselines: scores of every baseline, one run for each seed; if empty, no task has a scale.
        untrained: scores of agents that never update, on the same seeds.
    """
    names = tuple(baselines)
    if not names:
        nothing = np.zeros(len(untrained), bool)
        return Scale(untrained, untrained, ("",) * len(untrained), nothing)
    every = np.stack([baselines[name] for name in names])
    chosen = worst_first(every.mean(axis=2)).argmax(axis=0)
    high = every[chosen, np.arange(len(chosen))]
    gaps = (high - untrained)[:, None, None, :]
    resolved = [_is_above_zero(bootstrap_interval(gap, statistic="mean")) for gap in gaps]
    return Scale(untrained, high, tuple(names[i] for i in chosen), np.array(resolved))


def _is_above_zero(gap: Estimate) -> bool:
    """Judge by the interval; with a single run there is none, so judge by the value."""
    return bool((gap.low if gap.has_interval else gap.value) > 0)


@dataclass(frozen=True)
class Normalised:
    """Hold normalised scores.

    Attributes:
        tasks: mean over runs for each task; None on a task without a scale.
        mean: mean over the tasks with a scale; None if no task has one.
        iqm: interquartile mean over all normalised runs of these tasks; None if no task has one.
    """

    tasks: tuple[Estimate | None, ...]
    mean: Estimate | None
    iqm: Estimate | None


def normalise_scores(
    scores: Scores, scale: Scale, *, minus: OtherScores | None = None
) -> Normalised:
    """Compute the mean and interquartile mean on a scale, with 95 % intervals.

    Meta-seeds (one draw for all tasks) and seeds (one draw for each task) are resampled as crossed
    factors, as in `returns.bootstrap_interval`. The scale's own runs are resampled with the same
    draw of seeds. A resample in which the scale's 1 is not above its 0 counts as worst.

    Args:
        scores: scores of the optimizer.
        scale: scale of the tasks, from runs on the same seeds.
        minus: scores of another optimizer on the same seeds, to subtract. The result is then the
            difference of means and of interquartile means, in units of the scale. None: subtract
            the untrained policy's.
    """
    origin = scale.low[:, None, :] if minus is None else minus
    value = _on_scale(scores.mean((1, 2)), origin.mean((1, 2)), *scale.ends)
    rng = np.random.default_rng(0)
    tasks, _, seeds = scores.shape
    seed_draw = rng.integers(seeds, size=(RESAMPLES, tasks, seeds))
    sides = (scores, origin, scale.low[:, None, :], scale.high[:, None, :])
    drawn = [draw_runs(runs, draw_meta_seeds(runs, RESAMPLES, rng), seed_draw) for runs in sides]
    resampled = _on_scale(*(runs.mean(axis=(2, 3)) for runs in drawn))
    resolved = [task for task in range(tasks) if scale.resolved[task]]
    # The scale has one run for each seed.
    per_task = {t: percentile_estimate(value[t], resampled[:, t], runs=seeds) for t in resolved}
    mean = iqm = None
    if resolved:
        means = resampled[:, resolved].mean(axis=1)
        mean = percentile_estimate(value[resolved].mean(), means, runs=seeds)
        middle, middles = (
            _middle([runs[:, resolved] for runs in group], minus is not None)
            for group in ([runs[None] for runs in sides], drawn)
        )
        iqm = percentile_estimate(middle[0], middles, runs=seeds)
    return Normalised(tuple(per_task.get(t) for t in range(tasks)), mean, iqm)


def _middle(sides: Sequence[Drawn], subtract: bool) -> Float[np.ndarray, " resample"]:
    """Compute interquartile means over all normalised runs, optionally minus the origin's."""
    scores, origin, low, high = sides
    floor, ceiling = (end.mean(axis=(2, 3), keepdims=True) for end in (low, high))
    unit = np.where(ceiling > floor, ceiling - floor, np.nan)

    def middle(runs: Drawn) -> np.ndarray:
        return interquartile_means(((runs - floor) / unit).reshape(len(runs), -1))

    found: np.ndarray = middle(scores) - (middle(origin) if subtract else 0.0)
    return found


def _on_scale(
    scores: Float[np.ndarray, "*n task"],
    origin: Float[np.ndarray, "*n task"],
    low: Float[np.ndarray, "*n task"],
    high: Float[np.ndarray, "*n task"],
) -> Float[np.ndarray, "*n task"]:
    scaled: np.ndarray = (scores - origin) / np.where(high > low, high - low, np.nan)
    return scaled


@dataclass(frozen=True, eq=False)
class Profile:
    """Hold a performance profile: the share of runs that score above each of `PROFILE_POINTS`.

    Attributes:
        share: share of runs.
        low: lower end of its 95 % interval, pointwise.
        high: upper end of its 95 % interval, pointwise.
    """

    share: Float[np.ndarray, " point"]
    low: Float[np.ndarray, " point"]
    high: Float[np.ndarray, " point"]


def performance_profile(
    scores: Scores, points: Float[np.ndarray, " point"] = PROFILE_POINTS
) -> Profile:
    """Compute the share of runs above each point. All tasks have the same weight.

    Source: Agarwal et al. 2021 (arXiv 2108.13264), section 4.2. A diverged run is above no point.

    Args:
        scores: scores of single runs, normalised if there are several tasks.
        points: thresholds.
    """
    tasks, meta_seeds, seeds = scores.shape
    above = (worst_first(scores).reshape(tasks, -1, 1) > points).astype(np.float64)
    rng = np.random.default_rng(0)
    meta_draw = draw_counts(rng, (1, RESAMPLES), meta_seeds)
    counts = crossed(meta_draw, draw_counts(rng, (tasks, RESAMPLES), seeds))
    resampled = np.einsum("tbr,trp->bp", counts, above, optimize=True) / scores.size
    low, high = np.quantile(resampled, (0.025, 0.975), axis=0)
    return Profile(above.mean(axis=(0, 1)), low, high)


@dataclass(frozen=True, eq=False)
class Lead:
    """Hold how far one optimizer is ahead of another.

    Attributes:
        difference: its normalised score minus the other's. Claims are about the interquartile
            mean.
        improvement: for each task, the probability that a run beats a run of the other.
        mean_improvement: mean of these probabilities over all tasks.
    """

    difference: Normalised
    improvement: tuple[Estimate, ...]
    mean_improvement: Estimate


def lead_over(scores: Scores, others: OtherScores, scale: Scale) -> Lead:
    """Compute one optimizer's lead over another, from one kind of score on the same seeds."""
    each = zip(scores, others, strict=True)
    return Lead(
        normalise_scores(scores, scale, minus=others),
        tuple(probability_of_improvement(x[None], y[None]) for x, y in each),
        probability_of_improvement(scores, others),
    )


@dataclass(frozen=True, eq=False)
class Standing:
    """Hold how one optimizer does in one reading of a suite.

    Attributes:
        auc: normalised AUC.
        final: normalised final return.
        lead: lead over the reference by AUC; None for the reference itself.
        learned: the same over its untrained control; None if no control was run.
        profile: performance profile by normalised AUC; None if no task has a scale.
        members: mean normalised AUC of each meta-seed.
        diverged: number of diverged runs.
        runs: number of all runs.
    """

    auc: Normalised
    final: Normalised
    lead: Lead | None
    learned: Lead | None
    profile: Profile | None
    members: tuple[float, ...]
    diverged: int
    runs: int


def stand(
    areas: Scores,
    finals: Scores,
    auc_scale: Scale,
    final_scale: Scale,
    reference: OtherScores | None,
    control: ControlScores | None = None,
) -> Standing:
    """Compute one optimizer's standing.

    Args:
        areas: AUC of its runs.
        finals: final return of its runs.
        auc_scale: the tasks' scale of AUC.
        final_scale: the tasks' scale of final returns.
        reference: AUC of the reference's runs, in the same reading; None for the reference itself.
        control: AUC of its untrained control's runs, in the same reading; None if there is none.
    """
    scaled = auc_scale.apply(areas)[auc_scale.resolved]
    return Standing(
        auc=normalise_scores(areas, auc_scale),
        final=normalise_scores(finals, final_scale),
        lead=None if reference is None else lead_over(areas, reference, auc_scale),
        learned=None if control is None else lead_over(areas, control, auc_scale),
        profile=performance_profile(scaled) if scaled.size else None,
        members=tuple(scaled.mean(axis=(0, 2)).tolist()) if scaled.size else (),
        diverged=int(np.isnan(areas).sum()),
        runs=areas.size,
    )


def choose_for_all(
    grids: Sequence[Sequence[float]],
    found: Sequence[Float[np.ndarray, "_ seed"]],
    low: Float[np.ndarray, " task"],
    high: Float[np.ndarray, " task"],
) -> Tuning:
    """Choose one setting for all tasks, with the best mean over tasks of the normalised AUC.

    A value at which a run diverged on any task is chosen last.

    Args:
        grids: the settings on each task; settings that all tasks share are compared.
        found: AUC of the tuning runs at each setting.
        low: the untrained policy's AUC on the tuning seeds.
        high: the best baseline's AUC, tuned for the task. Tasks whose baseline does not beat the
            untrained policy are ignored; if none does, plain AUC is compared.
    """
    shared = sorted(set(grids[0]).intersection(*grids))
    rows = [[list(grid).index(x) for x in shared] for grid in grids]
    areas = np.stack([task[row] for row, task in zip(rows, found, strict=True)])
    learned = high > low
    if learned.any():
        areas, low, high = areas[learned], low[learned], high[learned]
        areas = (areas - low[:, None, None]) / (high - low)[:, None, None]
    return best_of_grid(shared, areas.mean(axis=0))
