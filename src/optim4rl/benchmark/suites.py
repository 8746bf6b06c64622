"""Suites: the tasks that an optimizer is compared on, and how long an agent learns each."""

import dataclasses
import difflib
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from optim4rl.benchmark.protocol import require_grid
from optim4rl.benchmark.scores import Score
from optim4rl.tasks import PPOConfig, TaskConfig, default_config, make_task

# Big grid worlds need this many rollouts to be learned at all: with Adam at 1e-2, the return on
# big_dense_long starts to rise after 1,200 rollouts and is at 20 of its 26 after 2,000.
SMALL_ROLLOUTS = 400
BIG_ROLLOUTS = 2_000
STRESS_ROLLOUTS = 60


@dataclass(frozen=True)
class SuiteTask:
    """Describe a task of a suite.

    Attributes:
        config: settings of the task.
        rollouts: rollouts of a run.
        stress_rollouts: rollouts of a run of the stress test; None: no stress test, because no
            optimizer learns the task so early.
        tuning_rollouts: rollouts of a run that chooses a setting, the first of a whole run; None:
            as many as in a run.
    """

    config: TaskConfig
    rollouts: int
    stress_rollouts: int | None = None
    tuning_rollouts: int | None = None

    def __post_init__(self) -> None:
        for name in ("rollouts", "stress_rollouts", "tuning_rollouts"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} = {value!r}: at least 1 is needed")
        if self.choosing > self.rollouts:
            raise ValueError(
                f"tuning_rollouts = {self.tuning_rollouts!r}: at most the {self.rollouts} rollouts "
                "of a run"
            )

    @property
    def choosing(self) -> int:
        """Return the rollouts of a run that chooses a setting."""
        return self.tuning_rollouts or self.rollouts

    @property
    def name(self) -> str:
        """Return its name in tables, which is its environment's."""
        return self.config.environment


@dataclass(frozen=True)
class Suite:
    """Describe a suite of tasks, and the grids that optimizers are tuned over.

    Attributes:
        name: its name on the command line.
        tasks: the tasks; each environment occurs once.
        rates: learning rates that classical optimizers are tuned over.
        step_scales: as many multiples of alpha that learned optimizers are tuned over.
        extra: the extra of this package that its environments need; its module has the same name.
        score: the score that chooses settings.
        companions: whether all contenders get a norm clip of 0.5 and a rate that falls linearly to
            0, because the published protocol gives them to every optimizer.
    """

    name: str
    tasks: tuple[SuiteTask, ...]
    rates: tuple[float, ...]
    step_scales: tuple[float, ...]
    extra: str | None = None
    score: Score = "auc"
    companions: bool = False

    def __post_init__(self) -> None:
        require_grid("rates", self.rates)
        require_grid("step_scales", self.step_scales)
        if len(self.rates) != len(self.step_scales):
            raise ValueError(
                f"rates, step_scales: {len(self.rates)} and {len(self.step_scales)} values; "
                "classical and learned optimizers are tuned with the same budget, so give as many"
            )


def load_suite(
    name: str,
    *,
    only: Sequence[str] = (),
    rollouts: int | None = None,
    num_envs: int | None = None,
) -> Suite:
    """Load a suite, and check that each of its tasks can be made here.

    Args:
        name: one of `SUITES`.
        only: environments of the suite to keep; all if empty.
        rollouts: the most rollouts of a run, for a quick look; None: the suite's own.
        num_envs: number of environments of each agent; None: the suite's own.

    Raises:
        ValueError: the suite or a task is unknown, an extra is not installed, or a task's settings
            do not agree.
    """
    if name not in SUITES:
        raise ValueError(f"suite = {name!r}: suites are {', '.join(SUITES)}")
    suite = SUITES[name]
    if suite.extra and importlib.util.find_spec(suite.extra) is None:
        raise ValueError(
            f"suite = {name!r}: its environments need another package; "
            f"pip install 'optim4rl[{suite.extra}]'"
        )
    known = {task.name: task for task in suite.tasks}
    for environment in only:
        if environment not in known:
            near = difflib.get_close_matches(environment, known, n=1, cutoff=0.4)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ValueError(
                f"only = {environment!r}: no task of suite {name}, which has {', '.join(known)}."
                f"{hint}"
            )
    kept = [task for task in suite.tasks if not only or task.name in only]
    tasks = tuple(_shorten(task, rollouts, num_envs) for task in kept)
    for task in tasks:
        make_task(task.config)
    return dataclasses.replace(suite, tasks=tasks)


def task_suite(
    environment: str,
    *,
    rollouts: int,
    stress_rollouts: int,
    width: int | None = None,
    num_envs: int | None = None,
) -> Suite:
    """Make a suite of one task, with the environment's own network, learner and rewards.

    Args:
        environment: name of the task.
        rollouts: rollouts of a run.
        stress_rollouts: rollouts of a run of the stress test.
        width: units of the agents' dense layer; None: the task's own.
        num_envs: number of environments of each agent; None: the task's own.

    Raises:
        ValueError: the task is unknown, or its settings do not agree.
    """
    config = default_config(environment)
    if width is not None:
        config = dataclasses.replace(config, width=width)
    if num_envs is not None:
        config = dataclasses.replace(config, num_envs=num_envs)
    make_task(config)
    task = SuiteTask(config, rollouts, stress_rollouts)
    return Suite(environment, (task,), TASK_RATES, TASK_SCALES)


def _shorten(task: SuiteTask, rollouts: int | None, num_envs: int | None) -> SuiteTask:
    config = task.config
    if num_envs is not None:
        config = dataclasses.replace(config, num_envs=num_envs)
    if rollouts is None:
        return dataclasses.replace(task, config=config)
    stress = None if task.stress_rollouts is None else min(task.stress_rollouts, rollouts)
    return SuiteTask(config, min(task.rollouts, rollouts), stress)


def _grid_task(environment: str) -> SuiteTask:
    """Make a task with the paper's network and 64 environments."""
    rollouts = BIG_ROLLOUTS if environment.startswith("big_") else SMALL_ROLLOUTS
    stress = STRESS_ROLLOUTS if environment == "catch" else None
    return SuiteTask(_normalised(environment), rollouts, stress)


def _tasks(env_steps: int, *environments: str) -> tuple[SuiteTask, ...]:
    """Make tasks with their own networks and learners, for about `env_steps` environment steps."""
    configs = map(_normalised, environments)
    return tuple(
        SuiteTask(x, max(1, env_steps // (x.num_envs * x.learner.rollout))) for x in configs
    )


def _published_minatar(greedy_episodes: int) -> tuple[SuiteTask, ...]:
    """Make the four games with the settings of OPEN and DiscoBench, for 1e7 environment steps.

    Both halve the squared error and then weight it by 0.5, so its weight is 0.25 here. Both treat
    the time limit as a terminal state.
    """
    learner = PPOConfig(rollout=128, minibatches=8, value_weight=0.25, value_clip=0.2)
    config = TaskConfig(
        num_envs=64,
        torso="mlp",
        policy_layers=(64, 64),
        value_layers=(64, 64),
        activation="relu",
        initialisation="orthogonal",
        learner=learner,
        time_limit="terminal",
        greedy_episodes=greedy_episodes,
    )
    rollouts = 10_000_000 // (config.num_envs * learner.rollout)
    return tuple(
        SuiteTask(dataclasses.replace(config, environment=game), rollouts) for game in _MINATAR
    )


def _normalised(environment: str) -> TaskConfig:
    """Normalise rewards while training, instead of by a fixed scale that somebody chose."""
    config = default_config(environment)
    learner = dataclasses.replace(config.learner, reward_scale=1.0)
    return dataclasses.replace(config, learner=learner, normalise_rewards=True)


TASK_RATES = (1e-3, 3e-3, 1e-2, 2e-2, 3e-2, 5e-2, 1e-1)
TASK_SCALES = (0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0)
_wide_suite = partial(
    Suite,
    rates=(3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1),
    step_scales=(0.01, 0.03, 0.1, 0.2, 0.5, 1.0, 2.0, 4.0),
)
_MINATAR = tuple(
    f"gymnax:{game}-MinAtar" for game in ("Breakout", "Asterix", "Freeway", "SpaceInvaders")
)
_GRID_WORLDS = tuple(
    f"{size}_{density}_{length}/free"
    for size in ("small", "big")
    for density in ("dense", "sparse")
    for length in ("short", "long")
)
_DISCOBENCH_RATES = (1e-3, 2e-3, 3e-3, 4e-3, 5e-3, 6e-3, 7e-3, 8e-3, 9e-3, 1e-2)
_DISCOBENCH_SCALES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
_ALL = (
    Suite(
        "grid",
        tuple(map(_grid_task, ("catch", *_GRID_WORLDS))),
        rates=(1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 3e-2, 5e-2, 1e-1),
        step_scales=(0.1, 0.2, 0.3, 0.5, 1.0, 2.0, 3.0, 5.0),
    ),
    _wide_suite("minatar", _tasks(2_000_000, *_MINATAR)),
    _wide_suite(
        "classic",
        _tasks(
            500_000,
            "gymnax:CartPole-v1",
            "gymnax:Acrobot-v1",
            "gymnax:MountainCar-v0",
            "gymnax:Pendulum-v1",
        ),
    ),
    _wide_suite(
        "brax",
        _tasks(
            5_000_000,
            "brax:inverted_double_pendulum",
            "brax:ant",
            "brax:halfcheetah",
            "brax:walker2d",
        ),
        extra="brax",
    ),
    # Two tasks of each family outside the grid suite, which a rule trained on grid worlds has never
    # seen. Runs are as short as a baseline can learn in, so that two cores can make them.
    _wide_suite(
        "mixed",
        (
            *_tasks(500_000, "gymnax:Acrobot-v1", "gymnax:Pendulum-v1"),
            *_tasks(1_000_000, *_MINATAR[:2], "brax:inverted_double_pendulum"),
            *_tasks(500_000, "brax:hopper"),
        ),
        extra="brax",
    ),
    # AlexGoldie/discogen, OnPolicyRL (arXiv 2603.17863): its table scores 16 greedy episodes, and
    # it tunes over these ten learning rates.
    Suite(
        "discobench",
        _published_minatar(greedy_episodes=16),
        rates=_DISCOBENCH_RATES,
        step_scales=_DISCOBENCH_SCALES,
        score="greedy_return",
        companions=True,
    ),
    # AlexGoldie/rl-learned-optimization (Goldie et al. 2024, arXiv 2407.07082): the same agents,
    # scored by their last episodes in training. OPEN's own optimizer clips by itself and has no
    # falling rate, so users choose companions themselves. Ant and the grid world are left out.
    _wide_suite("open", _published_minatar(greedy_episodes=0), score="final_return"),
)
SUITES = {suite.name: suite for suite in _ALL}
# Published scores for a suite's own table, and their source: DiscoBench's Adam at its best rate.
PUBLISHED: dict[str, tuple[str, dict[str, float]]] = {
    "discobench": (
        "Adam, as DiscoBench has it",
        {
            "gymnax:Breakout-MinAtar": 69.91,
            "gymnax:Asterix-MinAtar": 17.02,
            "gymnax:Freeway-MinAtar": 61.82,
            "gymnax:SpaceInvaders-MinAtar": 180.88,
        },
    )
}
