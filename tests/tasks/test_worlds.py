"""The named worlds against a simulator in NumPy, played by two policies without luck of their own.

The simulator shares no code with the package: neither the rules nor the names' settings. Its mean
returns in turn are held to figures that were measured elsewhere, by the release's rule and by ours.
"""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optim4rl.tasks.environments.adapters import make_environment
from optim4rl.tasks.environments.episodes import SparseVector, VectorState

Rule = Literal["any", "free"]
Policy = Callable[[Any, Any, int, int, int], Any]

# Rows, columns, pairs of a good and a bad object, probability to reappear, time limit.
WORLDS = {
    "small_dense_long": (6, 4, 1, 0.5, 500),
    "small_dense_short": (4, 6, 1, 0.5, 50),
    "big_sparse_long": (12, 10, 2, 0.05, 500),
}
MOVES = [(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1)]
ABSENT = -1


def target(agent: Any, objects: Any, columns: int, pairs: int) -> tuple[Any, Any, Any]:
    """Rows and columns to the nearest good object in moves of a king, and whether there is one."""
    good = objects[:, :pairs]
    rows = good // columns - (agent // columns)[:, None]
    across = good % columns - (agent % columns)[:, None]
    distance = np.where(good == ABSENT, np.inf, np.maximum(np.abs(rows), np.abs(across)))
    nearest = (np.arange(len(agent)), np.argmin(distance, axis=1))
    there = np.isfinite(distance[nearest])
    return np.where(there, rows[nearest], 0), np.where(there, across[nearest], 0), there


def greedy(agent: Any, objects: Any, rows: int, columns: int, pairs: int) -> Any:
    """Straight to the nearest good object, diagonally first, whatever is between; else stay."""
    down, right, _ = target(agent, objects, columns, pairs)
    return 3 * (np.sign(down) + 1) + np.sign(right) + 1


def careful(agent: Any, objects: Any, rows: int, columns: int, pairs: int) -> Any:
    """Towards it, by cells without a bad object, unless the good one is there, too."""
    down, right, there = target(agent, objects, columns, pairs)
    best, choice = np.full(len(agent), np.inf), np.zeros(len(agent), int)
    for action, (i, j) in enumerate(MOVES):
        row, column = agent // columns + i, agent % columns + j
        inside = (row >= 0) & (row < rows) & (column >= 0) & (column < columns)
        i, j = np.where(inside, i, 0), np.where(inside, j, 0)
        cell = agent + i * columns + j
        bad = (objects[:, pairs:] == cell[:, None]).any(axis=1)
        reached = there & (down == i) & (right == j)
        cost = np.maximum(np.abs(down - i), np.abs(right - j)) + 1000 * (bad & ~reached)
        choice = np.where(cost < best, action, choice)
        best = np.minimum(cost, best)
    return choice


def simulate(name: str, rule: Rule, policy: Policy, episodes: int) -> Any:
    """Returns of so many episodes."""
    rows, columns, pairs, returns_with, limit = WORLDS[name]
    rng = np.random.default_rng(0)
    cells, number = rows * columns, 2 * pairs
    places = np.argsort(rng.random((episodes, cells)), axis=1)
    agent, objects = places[:, 0].copy(), places[:, 1 : number + 1].copy()
    rewards, ends = np.repeat([1.0, -1.0], pairs), np.repeat([0.0, 0.5], pairs)
    alive, total = np.ones(episodes, bool), np.zeros(episodes)
    for _ in range(limit):
        i, j = np.array(MOVES)[policy(agent, objects, rows, columns, pairs)].T
        row, column = agent // columns + i, agent % columns + j
        wall = (row < 0) | (row == rows) | (column < 0) | (column == columns)
        agent = np.where(wall, agent, row * columns + column)
        collected = objects == agent[:, None]
        total += alive * (collected * rewards).sum(axis=1)
        alive = alive & ~(collected & (rng.random(collected.shape) < ends)).any(axis=1)
        objects[collected] = ABSENT
        for k in range(number):
            back = (objects[:, k] == ABSENT) & (rng.random(episodes) < returns_with)
            share = rng.random((episodes, cells))
            if rule == "free":
                things = np.column_stack([agent, objects])
                share[(things[:, :, None] == np.arange(cells)).any(axis=1)] = -1.0
            objects[back, k] = np.argmax(share, axis=1)[back]
    return total


def play(name: str, policy: Policy, episodes: int) -> Any:
    """Returns of so many first episodes in the package's world."""
    environment, params = make_environment(name)
    config = environment.config
    shape = environment.observation_space(params).shape
    vector = SparseVector(environment, params, episodes, shape)
    pairs = len(config.objects) // 2

    @jax.jit
    def step(state: VectorState, number: Any, actions: Any) -> Any:
        key = jax.random.fold_in(jax.random.key(1), number)
        return vector.step(vector.draw(key, 1, 1)[1][0], state, actions)

    state = jax.jit(vector.reset)(jax.random.key(0))
    alive, total = np.ones(episodes, bool), np.zeros(episodes)
    for number in range(config.max_steps):
        world = state.environment
        objects = np.where(world.objects == config.cells, ABSENT, world.objects).T
        agent = np.asarray(world.agent)
        actions = policy(agent, objects, config.rows, config.columns, pairs)
        state, result = step(state, jnp.int32(number), jnp.asarray(actions, jnp.int32))
        total += alive * np.asarray(result.reward)
        alive &= ~np.asarray(result.terminated | result.truncated)
    assert not alive.any()
    return total


def mean_and_error(returns: Any) -> tuple[float, float]:
    """With the standard error of the mean."""
    return returns.mean(), returns.std(ddof=1) / np.sqrt(len(returns))


def assert_close(a: tuple[float, float], b: tuple[float, float]) -> None:
    """Within three standard errors of the difference."""
    assert abs(a[0] - b[0]) < 3.0 * np.hypot(a[1], b[1])


@pytest.fixture(scope="module")
def simulated() -> Any:
    """Mean returns of the simulator, and their errors."""
    cases = [
        ("small_dense_long", greedy, 1000),
        ("small_dense_long", careful, 1000),
        ("small_dense_short", careful, 1000),
        ("big_sparse_long", careful, 200),
    ]
    return {
        (name, rule, policy): mean_and_error(simulate(name, rule, policy, episodes))
        for name, policy, episodes in cases
        for rule in ("any", "free")
    }


# Measured by another simulator. Where it gave no error, that of its last digit.
@pytest.mark.parametrize(
    ("name", "policy", "any_cell", "free_cell"),
    [
        ("small_dense_long", greedy, (21.5, 1.0), (62.9, 2.1)),
        ("small_dense_long", careful, (35.0, 0.5), (111.0, 0.5)),
        ("small_dense_short", careful, (12.0, 0.05), (14.1, 0.05)),
        ("big_sparse_long", careful, (30.0, 0.5), (34.0, 0.5)),
    ],
)
def test_the_simulator_gives_the_figures_measured_elsewhere(
    name: str, policy: Policy, any_cell: Any, free_cell: Any, simulated: Any
) -> None:
    """By the release's rule, and by the one of free cells; the two are far apart."""
    assert_close(simulated[name, "any", policy], any_cell)
    assert_close(simulated[name, "free", policy], free_cell)
    assert simulated[name, "free", policy][0] > 1.08 * simulated[name, "any", policy][0]


@pytest.mark.parametrize(
    ("name", "policy", "episodes"),
    [
        ("small_dense_long", greedy, 1000),
        ("small_dense_short", careful, 1000),
        ("big_sparse_long", careful, 200),
    ],
)
def test_the_named_worlds_give_the_simulator_s_returns(
    name: str, policy: Policy, episodes: int, simulated: Any
) -> None:
    """The paper's worlds by the release's rule, those that end in "/free" by the other."""
    for suffix, rule in (("", "any"), ("/free", "free")):
        found = mean_and_error(play(name + suffix, policy, episodes))
        assert_close(found, simulated[name, rule, policy])
