"""Make the leaderboard, contenders x suites, from tables of runs alone.

Tables of the same suite, tasks, lengths and reported seeds share a board. Its scale is that of a
benchmark with the baselines of all its tables. If a contender is in several tables, the first one
counts.
"""

import os
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from optim4rl.benchmark.contender import BASELINES, split_parts
from optim4rl.benchmark.loop import CEILINGS, Reading, scores_of
from optim4rl.benchmark.scale import Scale, Standing, make_scale, stand
from optim4rl.benchmark.scores import greedy_return
from optim4rl.benchmark.suites import PUBLISHED, SUITES
from optim4rl.benchmark.table import UNTRAINED, curves_of, read_runs
from optim4rl.evaluation.curves import Curves
from optim4rl.evaluation.returns import area_under_curve, bootstrap_interval, final_return
from optim4rl.pages.claims import auc_order
from optim4rl.pages.costs import TimeStanding, time_standings
from optim4rl.pages.words import estimate_json, finite, markdown_table, with_interval
from optim4rl.tasks import PPOConfig, default_config

if TYPE_CHECKING:
    import polars as pl

# In the page's order.
_READINGS: tuple[Reading, ...] = ("one", "tuned")
# The reference, if it was run: with PPO the first name, with A2C the best of the other two.
_PPO_REFERENCE = "adam_ppo"
_A2C_REFERENCES = ("adam", "rmsprop")
# The name of weights that `train` writes; the page shows the folder of their table instead.
_WEIGHTS = "weights"

# Contender -> task -> the curves of each member.
Found = Mapping[str, tuple[tuple[Curves, ...], ...]]


@dataclass(frozen=True)
class Board:
    """Hold the contenders of a suite.

    Attributes:
        suite: name of the suite, or of the table's folder if no suite has these tasks.
        tasks: names of its tasks.
        curves: the reported runs, in each reading that was run.
        untrained: each task's runs of agents that never update.
        sources: each contender's table.
        seeds: the reported seeds.
        title: its name on the page; empty: the suite's.
    """

    suite: str
    tasks: tuple[str, ...]
    curves: Mapping[Reading, Found]
    untrained: tuple[Curves, ...]
    sources: Mapping[str, Path]
    seeds: tuple[int, ...] = ()
    title: str = ""

    @property
    def name(self) -> str:
        """Return its name on the page."""
        return self.title or self.suite

    @property
    def ceilings(self) -> tuple[str, ...]:
        """Name the contenders whose best is 1, as `Benchmark.ceilings` does."""
        tuned = self.curves["tuned"]
        known = tuple(name for name in CEILINGS if name in tuned)
        return known or tuple(name for name in tuned if split_parts(name)[0] in BASELINES)

    @property
    def lengths(self) -> dict[str, int]:
        """Return the environment steps of a run on each task."""
        ends = (int(curves.env_steps[-1]) for curves in self.untrained)
        return dict(zip(self.tasks, ends, strict=True))

    @property
    def scales(self) -> tuple[Scale, Scale]:
        """Return the scales of AUC and of final return, as on a benchmark's page."""
        tuned = self.curves["tuned"]
        auc, final = (
            make_scale(
                {name: scores_of(tuned[name], score)[:, 0] for name in self.ceilings},
                np.stack([score(each) for each in self.untrained]),
            )
            for score in (area_under_curve, final_return)
        )
        return auc, final


@dataclass(frozen=True)
class Ranking:
    """Hold a board in one reading.

    Attributes:
        reference: the baseline that all are compared with; None if it was not run.
        standings: each contender's standing.
        times: each contender's standing against time; empty if time was not measured.
    """

    reference: str | None
    standings: Mapping[str, Standing]
    times: Mapping[str, TimeStanding]

    def order(self, names: Iterable[str]) -> list[str]:
        """Return contenders, the highest AUC first; those that were not run are last."""
        return sorted(names, key=lambda name: auc_order(self.standings.get(name)))


def load_boards(paths: Sequence[Path]) -> list[Board]:
    """Load the boards of these tables, in their order.

    Raises:
        TableError: a file is not a table of runs.
        ValueError: a table has no runs of the untrained policy, so it has no scale.
        OSError: a file cannot be read.
    """
    grouped: dict[tuple[str, Any, Any], list[tuple[Path, pl.DataFrame]]] = {}
    for path in paths:
        table = read_runs(path).filter(step_multiple=1.0).sort("task", "meta_seed", "seed")
        table = table.filter(table["purpose"].is_in(_READINGS))
        untrained = table.filter(role="untrained")
        if not untrained.height:
            raise ValueError(
                f"{path}: it has no runs of the untrained policy; `evaluate` adds them"
            )
        lengths = tuple(
            (task, steps[-1])
            for task, steps in untrained.unique("task")
            .sort("task")
            .select("task", "env_steps")
            .rows()
        )
        suite = untrained["suite"][0] or _suite_of(lengths) or path.resolve().parent.name
        seeds = tuple(untrained["seed"].unique().sort())
        grouped.setdefault((suite, lengths, seeds), []).append((path, table))
    boards = [_board(*key, group) for key, group in grouped.items()]
    return [replace(board, title=_title(board, boards)) for board in boards]


def _title(board: Board, boards: Sequence[Board]) -> str:
    """Name a board: with its tasks if it lacks some, with its seeds if another has the same."""
    whole = {name for name, _ in _lengths(board.suite)} if board.suite in SUITES else set()
    title = board.suite
    if set(board.tasks) < whole:
        title += f" ({', '.join(board.tasks)})"
    if sum((x.suite, x.tasks) == (board.suite, board.tasks) for x in boards) > 1:
        title += f", seeds {board.seeds[0]} to {board.seeds[-1]}"
    return title


def _suite_of(lengths: tuple[tuple[str, int], ...]) -> str | None:
    """Return the suite that has these tasks at these lengths, for tables of earlier versions."""
    return next((name for name in SUITES if set(lengths) <= _lengths(name)), None)


def _lengths(suite: str) -> set[tuple[str, int]]:
    """Return a suite's tasks, and the environment steps of a whole run on each."""
    return {
        (task.name, task.rollouts * task.config.num_envs * task.config.learner.rollout)
        for task in SUITES[suite].tasks
    }


def _board(
    suite: str,
    lengths: tuple[tuple[str, int], ...],
    seeds: tuple[int, ...],
    tables: Sequence[tuple[Path, "pl.DataFrame"]],
) -> Board:
    curves: dict[Reading, dict[str, tuple[tuple[Curves, ...], ...]]] = {}
    sources: dict[str, Path] = {}
    for path, table in tables:
        for (name, reading), rows in table.filter(table["role"] != "untrained").group_by(
            "optimizer", "purpose", maintain_order=True
        ):
            shown = _shown(str(name), path)
            if sources.setdefault(shown, path) == path:
                key: Reading = "one" if reading == "one" else "tuned"
                curves.setdefault(key, {})[shown] = _by_task(rows)
    first = tables[0][1].filter(optimizer=UNTRAINED)
    tasks, untrained = tuple(task for task, _ in lengths), tuple(x[0] for x in _by_task(first))
    return Board(suite, tasks, curves, untrained, sources, seeds)


def _shown(name: str, path: Path) -> str:
    """Name weights that `train` wrote, with what follows: " untrained", "+clip0.5"."""
    rest = name.removeprefix(_WEIGHTS)
    named = name.startswith(_WEIGHTS) and rest[:1] in ("", " ", "+")
    return f"{path.resolve().parent.name}{rest}" if named else name


def _by_task(rows: "pl.DataFrame") -> tuple[tuple[Curves, ...], ...]:
    return tuple(
        tuple(curves_of(member) for member in task.partition_by("meta_seed"))
        for task in rows.partition_by("task")
    )


def rank(board: Board, reading: Reading) -> Ranking:
    """Rank the contenders of a board in a reading."""
    auc_scale, final_scale = board.scales
    found = board.curves[reading]
    areas, finals = (
        {name: scores_of(tasks, score) for name, tasks in found.items()}
        for score in (area_under_curve, final_return)
    )
    reference = _reference(areas, auc_scale)
    standings = {
        name: stand(
            areas[name],
            finals[name],
            auc_scale,
            final_scale,
            None if reference in (None, name) else areas[str(reference)],
        )
        for name in found
    }
    return Ranking(reference, standings, time_standings(found, reference, auc_scale))


def _reference(areas: Mapping[str, np.ndarray], scale: Scale) -> str | None:
    if _PPO_REFERENCE in areas:
        return _PPO_REFERENCE
    known = [name for name in _A2C_REFERENCES if name in areas]
    return max(known, key=lambda name: _mean(scale.apply(areas[name]), scale), default=None)


def _mean(scaled: np.ndarray, scale: Scale) -> float:
    mean = float(scaled[scale.resolved].mean()) if scale.resolved.any() else 0.0
    return mean if np.isfinite(mean) else -np.inf


def to_json(boards: Sequence[Board]) -> list[dict[str, Any]]:
    """Return all numbers of each board except greedy episodes: reading -> contender."""
    return [
        {
            "suite": board.suite,
            "tasks": board.lengths,
            "seeds": list(board.seeds),
            **{
                reading: _ranking_values(rank(board, reading))
                for reading in _READINGS
                if reading in board.curves
            },
        }
        for board in boards
    ]


def _ranking_values(ranking: Ranking) -> dict[str, Any]:
    def values(name: str, standing: Standing) -> dict[str, Any]:
        lead, time = standing.lead, ranking.times.get(name)
        return {
            "auc": estimate_json(standing.auc.mean),
            "auc_iqm": estimate_json(standing.auc.iqm),
            "final_return": estimate_json(standing.final.mean),
            "improvement": None if lead is None else estimate_json(lead.mean_improvement),
            "time_over_reference": None if time is None else finite(time.ratio),
        }

    contenders = {name: values(name, standing) for name, standing in ranking.standings.items()}
    return {"reference": ranking.reference, "contenders": contenders}


# The page

_BOX = """# Leaderboard

> **Claim.** {claim}
>
> **Evidence.** {evidence}
>
> **What it does not show.** Intervals are not corrected for the number of contenders, so one in
> forty lies above 0.5 by luck alone. Weights and rules that were chosen on these tasks have an
> advantage. The page of each result judges it by a [stricter
> rule](../benchmark.md#what-can-be-claimed).

On the scale of AUC and final return, 0 is the untrained policy and 1 is the best of {ceilings},
tuned for each task; if none of them was run, the best of all baselines. All tables of a suite share
this scale, so the page of one run can have another scale. Cells are means over tasks, or
interquartile means over runs, with 95 % bootstrap intervals.

- *One setting* means one for all tasks of a suite, *tuned* one for each task. Both were chosen on
  other seeds.
- *P* is the probability that a run has a higher AUC than a run of the reference, at settings of the
  same kind.
- *Seconds* are a mean over tasks. Their ratio to the reference's seconds is a geometric mean. For
  *P in its time*, every run is cut when the reference's run ends.
- "+2" means three meta-seeds of one recipe, "untrained" the same rule with fresh weights.

[How all this is measured](../benchmark.md). [How to add your
own](../how-to/own-optimizer.md#on-the-leaderboard). This command makes the page:
"""


def leaderboard_page(boards: Sequence[Board], paths: Sequence[Path], out: Path) -> str:
    """Write the page as Markdown; links to the tables are relative to `out`."""
    rankings = [
        {reading: rank(board, reading) for reading in _READINGS if reading in board.curves}
        for board in boards
    ]
    claim = " ".join(_claim(board, each) for board, each in zip(boards, rankings, strict=True))
    runs = sum(
        len(member.returns)
        for board in boards
        for found in board.curves.values()
        for tasks in found.values()
        for task in tasks
        for member in task
    )
    evidence = f"{runs:,} reported runs; one command makes this page from them."
    ceilings = ", ".join(f"`{name}`" for name in CEILINGS)
    parts = [_BOX.format(claim=claim, evidence=evidence, ceilings=ceilings)]
    command = ["optim4rl", "leaderboard", *map(str, paths), "--out", str(out)]
    parts += [f"    {shlex.join(command)}", ""]
    parts += _overview(boards, rankings)
    for board, ranking in zip(boards, rankings, strict=True):
        parts += _board_section(board, ranking, out)
    return "\n".join(parts) + "\n"


def _claim(board: Board, rankings: Mapping[Reading, Ranking]) -> str:
    """Say who beats the reference more often than not, at one setting, and tuned if others do.

    If the reference is bare, say first that nothing is shown about Adam as PPO users run it.
    """
    first, *others = rankings.values()
    if first.reference is None:
        return f"On `{board.name}`, no reference was run."
    who = _who_beats(first)
    if not _is_bare(board, first.reference):
        tuned = [x for x in map(_who_beats, others) if x != who]
        return f"On `{board.name}`, {who} `{first.reference}` more often than not." + "".join(
            f" Tuned for each task, {x} it." for x in tuned
        )
    return (
        f"On `{board.name}`, no contender is shown to beat Adam as PPO users run it: the tables "
        f"have no runs of `{_PPO_REFERENCE}`. Bare `{first.reference}` is easier to beat: {who} it "
        "more often than not."
    )


def _who_beats(ranking: Ranking) -> str:
    ahead = [
        f"`{name}`"
        for name in ranking.order(ranking.standings)
        if (lead := ranking.standings[name].lead) is not None and lead.mean_improvement.low > 0.5
    ]
    return f"{' and '.join(ahead) or 'no contender'} beat{'s' * (len(ahead) < 2)}"


def _is_bare(board: Board, reference: str) -> bool:
    """Return whether the reference is weaker than the Adam that PPO users run."""
    suite = SUITES.get(board.suite)
    config = default_config(board.tasks[0]) if suite is None else suite.tasks[0].config
    return isinstance(config.learner, PPOConfig) and reference != _PPO_REFERENCE


def _overview(
    boards: Sequence[Board], rankings: Sequence[Mapping[Reading, Ranking]]
) -> Iterator[str]:
    """Tabulate contenders x suites, by AUC at one setting if a suite has it, else tuned."""
    firsts = [next(iter(each.values())) for each in rankings]
    names = dict.fromkeys(
        name
        for board, first in zip(boards, firsts, strict=True)
        for name in first.order(board.sources)
    )
    rows = []
    for name in names:
        found = [x.standings.get(name) for x in firsts]
        rows.append([name, *("-" if x is None else with_interval(x.auc.mean) for x in found)])
    yield from ("AUC, one setting for all tasks of a suite:", "")
    yield from markdown_table(["contender", *(x.name for x in boards)], rows)


def _board_section(board: Board, rankings: Mapping[Reading, Ranking], out: Path) -> Iterator[str]:
    first = next(iter(rankings.values()))
    names = first.order(board.sources)
    header = ["contender"]
    for reading, ranking in rankings.items():
        title = {"one": "one setting", "tuned": "tuned"}[reading]
        scores = ["AUC", "IQM of AUC", "final return"]
        scores += [f"P(beats {ranking.reference})"] * (ranking.reference is not None)
        header += [f"{x}, {title}" for x in scores]
    if first.times:
        header += ["seconds of a run", f"over {first.reference}'s", "P in its time"]
    rows = []
    for name in names:
        row = [f"**{name}**" if name == first.reference else name]
        for ranking in rankings.values():
            row += _standing_cells(ranking, name)
        if first.times:
            time = first.times.get(name)
            row += ["-"] * 3 if time is None else _time_cells(time)
        rows.append([*row, f"[runs]({os.path.relpath(board.sources[name], out.parent)})"])
    tasks = ", ".join(f"{task} ({steps:,})" for task, steps in board.lengths.items())
    about = (
        f"Tasks and environment steps of a run: {tasks}. {len(board.untrained[0].returns)} seeds."
    )
    yield from ("", f"## {board.name}", "", f"{about} {_remark(board, first.reference)}", "")
    yield from markdown_table([*header, "table"], rows)
    yield from _greedy_lines(board, names)


def _remark(board: Board, reference: str | None) -> str:
    if reference is None:
        return "No reference was run."
    if reference == _PPO_REFERENCE:
        return f"The reference is **{reference}**, Adam as PPO users run it."
    if _is_bare(board, reference):
        return (
            f"The reference is bare **{reference}**, which is easier to beat than Adam as PPO "
            f"users run it: the tables have no runs of {_PPO_REFERENCE}."
        )
    run = [name for name in _A2C_REFERENCES if name in board.sources]
    best = f", the best of {' and '.join(run)} here" * (len(run) > 1)
    return f"The reference is **{reference}**{best}."


def _standing_cells(ranking: Ranking, name: str) -> list[str]:
    count = 3 + (ranking.reference is not None)
    standing = ranking.standings.get(name)
    if standing is None:
        return ["-"] * count
    probability = standing.lead.mean_improvement if standing.lead else None
    scores = (standing.auc.mean, standing.auc.iqm, standing.final.mean, probability)
    return [with_interval(x) for x in scores[:count]]


def _time_cells(time: TimeStanding) -> list[str]:
    seconds = np.mean([cost.seconds for cost in time.costs])
    return [
        f"{seconds:.3g}",
        f"{time.ratio:.2f}",
        with_interval(time.lead.mean_improvement if time.lead else None),
    ]


def _greedy_lines(board: Board, names: Sequence[str]) -> Iterator[str]:
    """Tabulate returns of greedy episodes, if all runs have them, beside published returns."""
    tuned = board.curves["tuned"]
    if any(member.greedy is None for tasks in tuned.values() for x in tasks for member in x):
        return
    rows = []
    for name in (name for name in names if name in tuned):
        scores = scores_of(tuned[name], greedy_return)[:, None]
        cells = [with_interval(bootstrap_interval(x, statistic="mean"), 2) for x in scores]
        rows.append([name, *cells])
    title, published = PUBLISHED.get(board.suite, ("", {}))
    if published and set(board.lengths.items()) <= _lengths(board.suite):
        rows.append([title, *(f"{published[task]:g}" for task in board.tasks)])
    yield from ("", "Mean return of greedy episodes after training, tuned for each task:", "")
    yield from markdown_table(["contender", *board.tasks], rows)
