"""The identity experiment: can a small RNN reproduce the gradients that it reads?

Lan et al. 2024, section 4.1: a recurrent network learns `y = x` on agent-gradients, with and
without gradient processing. The paper's figure confounds input processing with output form, counts
exact zeros as hits and measures while training; this module separates all of these.

- A prediction is right if it is within 10 % of its target. Hence it has the target's sign, and a
  target of exactly zero needs exactly zero.
- Coordinates are split, not times: half of them train, a quarter chooses the learning rate, and a
  quarter is held out. The draw is random. Recorded coordinates already lie on a stride, and a
  second stride would pick only a few units of a layer.
- Online accuracy counts predictions on the training coordinates in the last pass, each made before
  its window's update. Frozen accuracy counts predictions of the trained network on the held-out
  coordinates, from a zero state and without updates.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int

from optim4rl.fields import to_json as to_plain
from optim4rl.jobs.job import Result
from optim4rl.optimizers.networks import Carry, Weights, apply_network, init_carry, init_network
from optim4rl.optimizers.processing import LOG_DOMAIN_LIMIT, PROCESSINGS, Raw, SignLog, Symlog
from optim4rl.study.identity_config import (
    FEATURES,
    NETWORKS as NETWORKS,
    OUTPUTS,
    PAPER as PAPER,
    QUICK as QUICK,
    SMOKE as SMOKE,
    IdentityConfig as IdentityConfig,
)
from optim4rl.study.identity_results import (
    ACCURACIES as ACCURACIES,
    Histogram as Histogram,
    IdentityResult as IdentityResult,
    IdentityRow as IdentityRow,
    from_json as from_json,
    over_recordings as over_recordings,
    rows_from_json as rows_from_json,
    to_json as to_json,
)
from optim4rl.study.recording import (
    GaussianClusters as GaussianClusters,
    check_gradients,
    histogram as histogram,
    record_both,
    record_gradients as record_gradients,
    supervised_gradients as supervised_gradients,
)
from optim4rl.tasks.interface import InnerTask

SCHEDULES = ("constant", "annealed")

_AnyArray = Array | np.ndarray
_CURVE_POINTS = 200


# Returns a network's rows, by calling the function or from a store.
KeepRows = Callable[
    [tuple[str, str], Callable[[], tuple[IdentityRow, ...]]], tuple[IdentityRow, ...]
]
# Returns the result of a question in plain JSON, by calling the function or from a store.
Keep = Callable[[Mapping[str, Any], Callable[[], Result]], Result]


def identity_experiment(
    task: InnerTask,
    task_name: str,
    config: IdentityConfig,
    keep: Keep = lambda question, make: make(),
) -> IdentityResult:
    """Record gradients, train the networks on them, and compare supervised gradients.

    Args:
        task: source of the gradients.
        task_name: the task's name in results.
        config: sizes and settings.
        keep: returns a recording, or a network's rows: computes them, or reads what it kept.

    Raises:
        ValueError: for the same reasons as in `run_identity`.
    """
    made = [
        _one_recording(
            task,
            task_name,
            dataclasses.replace(config, seed=config.seed + number, recordings=1),
            keep,
        )
        for number in range(config.recordings)
    ]
    agent, supervised = (
        np.concatenate([gradients[source] for gradients, _ in made])
        for source in ("agent", "supervised")
    )
    return IdentityResult(
        task=f"{task_name}, RMSProp {config.recording_learning_rate:g}",
        rows=tuple(
            dataclasses.replace(row, recording=number)
            for number, (_, rows) in enumerate(made)
            for row in rows
        ),
        histograms=(
            histogram(task_name, agent),
            histogram("supervised learning", supervised),
        ),
        settings={**dataclasses.asdict(config), "recorded_coordinates": agent.shape[1]},
    )


def _one_recording(
    task: InnerTask, task_name: str, config: IdentityConfig, keep: Keep
) -> tuple[Mapping[str, np.ndarray], tuple[IdentityRow, ...]]:
    """Return the recorded gradients and the networks' rows."""
    asked = {"task": task_name, "config": to_plain(config)}

    def record() -> Result:
        size = (config.updates, config.every, config.seed)
        return Result(record_both(task, config.recording_learning_rate, *size), {})

    def rows_of(
        network: tuple[str, str], make: Callable[[], tuple[IdentityRow, ...]]
    ) -> tuple[IdentityRow, ...]:
        question = {**asked, "network": list(network)}
        found = keep(question, lambda: Result({}, {"rows": to_json(make())}))
        return rows_from_json(found.info["rows"])

    gradients = keep({**asked, "recorded": "gradients"}, record).arrays
    return gradients, run_identity(gradients["agent"], config, rows_of)


def within_tenth(
    prediction: Float[Array, "*shape"], target: Float[Array, "*shape"]
) -> Bool[Array, "*shape"]:
    """Return whether each prediction is within 10 % of its target, including the bound.

    So it has the target's sign, and a target of zero needs exactly zero. NaN counts as wrong.
    """
    return 10.0 * jnp.abs(prediction - target) <= jnp.abs(target)


def _symexp(gradient: Float[Array, "*shape"], output: Float[Array, "*shape"]) -> Array:
    """Return the inverse of the symmetric log: `c sgn(o) (exp|o| - 1)`.

    It avoids `abs` and `sign`: their derivatives at 0 would make the product's derivative 0.
    """
    del gradient
    x = jnp.clip(output, -LOG_DOMAIN_LIMIT, LOG_DOMAIN_LIMIT)
    return Symlog().c * jnp.where(x < 0, -jnp.expm1(-x), jnp.expm1(x))


# Decodes a network's output o, given the gradient g that the network read.
_DECODERS: Mapping[str, Callable[[Array, Array], Array]] = {
    "linear": Raw().decode,  # o
    "sign_exp": SignLog().decode,  # sgn(g) exp(o)
    "symexp": _symexp,
}


def run_identity(
    gradients: Float[np.ndarray, "time coordinate"],
    config: IdentityConfig,
    keep: KeepRows = lambda network, make: make(),
) -> tuple[IdentityRow, ...]:
    """Train every network of the grid on the recorded gradients; one row per network and schedule.

    All schedules, learning rates and seeds of a network train side by side. A run that meets a
    number that is not finite has diverged: its accuracies are NaN, and so are means over it.

    Raises:
        ValueError: gradients are not finite, there are fewer than four coordinates, or the time is
            shorter than a window.
    """
    check_gradients(gradients)
    time, coordinates = gradients.shape
    if coordinates < 4:
        raise ValueError(
            f"gradients of {coordinates} coordinates: at least 4 are needed; record with a smaller "
            "`every`"
        )
    if time < config.window:
        raise ValueError(f"gradients of {time} updates: at least a window of {config.window}")
    train, tuning, held_out = split_coordinates(coordinates, config)
    data = _Data(
        gradients[: time - time % config.window, train],
        gradients[:, tuning],
        gradients[:, held_out],
    )
    return tuple(
        row
        for network in config.networks
        for row in keep(network, partial(_network_rows, network, data, config))
    )


def split_coordinates(
    coordinates: int, config: IdentityConfig
) -> tuple[Int[np.ndarray, " train"], Int[np.ndarray, " tuning"], Int[np.ndarray, " held_out"]]:
    """Split the coordinates: to train, to choose the learning rate, and to report."""
    order = np.random.default_rng(config.seed).permutation(coordinates)[: config.max_coordinates]
    train, tuning, held_out = np.split(order, [len(order) // 2, 3 * len(order) // 4])
    return train, tuning, held_out


class _Data(NamedTuple):
    """The shares of the recorded gradients; training stops after the last whole window."""

    train: Float[np.ndarray, "whole train"]
    tuning: Float[np.ndarray, "time tuning"]
    held_out: Float[np.ndarray, "time held_out"]


class _Fit(NamedTuple):
    """Results of training a network and then freezing it; runs are `[schedule, rate, seed]`.

    Attributes:
        losses: mean squared error of each window, before its update.
        hits: right predictions in each window, before its update.
        hits_nonzero: the hits whose target is not zero.
        frozen: which predictions of the frozen network are right.
        finite: whether all losses and frozen predictions are finite.
    """

    losses: Float[_AnyArray, "*runs passes windows"]
    hits: Int[_AnyArray, "*runs passes windows"]
    hits_nonzero: Int[_AnyArray, "*runs passes windows"]
    frozen: Bool[_AnyArray, "*runs time test"]
    finite: Bool[_AnyArray, "*runs"]


def _unroll(
    weights: Weights,
    form: Int[Array, ""],
    features: Float[Array, "time features coordinate"],
    gradients: Float[Array, "time coordinate"],
    carry: Carry,
    *,
    unroll: bool,
) -> tuple[Float[Array, "time coordinate"], Carry]:
    """Return the predictions of consecutive steps, and the state after them."""

    def step(carry: Carry, features: Array) -> tuple[Carry, Array]:
        output, carry = apply_network(weights, "lstm", features, carry)
        return carry, output[0]

    carry, outputs = jax.lax.scan(step, carry, features, unroll=unroll)
    return jax.lax.switch(form, [_DECODERS[name] for name in OUTPUTS], gradients, outputs), carry


def _zero_carry(weights: Weights, coordinates: int) -> Carry:
    return init_carry("lstm", weights["hidden"].shape[-1], (coordinates,))


def _fit(
    weights: Weights,
    rates: Float[Array, "passes windows"],
    epsilon: Float[Array, ""],
    form: Int[Array, ""],
    train: tuple[
        Float[Array, "windows window features train"], Float[Array, "windows window train"]
    ],
    test: tuple[Float[Array, "time features test"], Float[Array, "time test"]],
) -> _Fit:
    """Train by truncated back-propagation over the windows, then evaluate the frozen network."""
    # As one vector, the few small weights take a fifth less time.
    adam = optax.flatten(optax.scale_by_adam(eps=epsilon))

    def loss(weights: Weights, carry: Carry, features: Array, targets: Array) -> Any:
        predictions, carry = _unroll(weights, form, features, targets, carry, unroll=True)
        return jnp.mean(jnp.square(predictions - targets)), (predictions, carry)

    def window(learner: tuple[Any, Any, Carry], step: tuple[Array, ...]) -> tuple[Any, Any]:
        weights, state, carry = learner
        rate, features, targets = step
        (error, (predictions, carry)), gradient = jax.value_and_grad(loss, has_aux=True)(
            weights, carry, features, targets
        )
        directions, state = adam.update(gradient, state)
        weights = jax.tree.map(lambda w, d: w - rate * d, weights, directions)
        hits = within_tenth(predictions, targets)
        counts = (jnp.sum(hits), jnp.sum(hits & (targets != 0)))
        return (weights, state, carry), (error, *counts)

    def one_pass(learner: tuple[Any, Any], rates: Array) -> tuple[Any, Any]:
        carry = _zero_carry(learner[0], train[1].shape[-1])
        (weights, state, _), seen = jax.lax.scan(window, (*learner, carry), (rates, *train))
        return (weights, state), seen

    (weights, _), (losses, hits, hits_nonzero) = jax.lax.scan(
        one_pass, (weights, adam.init(weights)), rates
    )
    carry = _zero_carry(weights, test[1].shape[-1])
    predictions, _ = _unroll(weights, form, *test, carry, unroll=False)
    finite = jnp.all(jnp.isfinite(losses)) & jnp.all(jnp.isfinite(predictions))
    return _Fit(losses, hits, hits_nonzero, within_tenth(predictions, test[1]), finite)


# Over seeds, then learning rates, then schedules; all networks share one compiled program.
_over_seeds = jax.vmap(_fit, in_axes=(0, None, None, None, None, None))
_over_rates = jax.vmap(_over_seeds, in_axes=(None, 0, None, None, None, None))
_fit_all = jax.jit(jax.vmap(_over_rates, in_axes=(None, 0, None, None, None, None)))


def _fit_network(source: str, output: str, data: _Data, config: IdentityConfig) -> _Fit:
    """Return all runs of one network, as numpy arrays."""
    windows = len(data.train) // config.window
    by_window = (windows, config.window)
    test = np.concatenate([data.tuning, data.held_out], axis=1)
    fit: _Fit = jax.device_get(
        _fit_all(
            _init_weights(source, config),
            jnp.asarray(_rates(config, windows)),
            jnp.float32(config.adam_epsilon),
            jnp.int32(OUTPUTS.index(output)),
            (
                _features(source, data.train).reshape(*by_window, FEATURES, -1),
                jnp.asarray(data.train).reshape(*by_window, -1),
            ),
            (_features(source, test), jnp.asarray(test)),
        )
    )
    return fit


def _init_weights(source: str, config: IdentityConfig) -> Weights:
    """Return weights with a leading axis of seeds."""
    features = PROCESSINGS[source].first_features
    # `record_both` has the first two keys.
    _, _, key = jax.random.split(jax.random.key(config.seed), 3)
    keys = jax.random.split(key, config.seeds)
    # One seed at a time and outside jit: all gates, seeds and networks share a few operations.
    # One function for all of them takes longer to compile than the training takes.
    seeds = [
        init_network(
            key, "lstm", features, config.hidden_size, config.head_sizes, 1, zero_head=False
        )
        for key in keys
    ]
    weights = {name: jnp.stack([seed[name] for seed in seeds]) for name in seeds[0]}
    unused = FEATURES - features
    return weights | {"input": jnp.pad(weights["input"], ((0, 0), (0, 0), (0, unused)))}


def _features(
    source: str, gradients: Float[np.ndarray, "time coordinate"]
) -> Float[Array, "time features coordinate"]:
    encoded = PROCESSINGS[source]().first(jnp.asarray(gradients))
    padded = jnp.pad(encoded, ((0, FEATURES - len(encoded)), (0, 0), (0, 0)))
    return padded.swapaxes(0, 1)


def _rates(config: IdentityConfig, windows: int) -> Float[np.ndarray, "schedule rate pass window"]:
    """Return the learning rate of every update: constant, or annealed by a cosine to zero."""
    progress = np.arange(config.passes * windows) / (config.passes * windows)
    shapes = np.stack([np.ones_like(progress), 0.5 * (1.0 + np.cos(np.pi * progress))])
    rates = np.asarray(config.learning_rates)[None, :, None] * shapes[:, None]
    return rates.reshape(len(SCHEDULES), -1, config.passes, windows).astype(np.float32)


def _network_rows(
    network: tuple[str, str], data: _Data, config: IdentityConfig
) -> tuple[IdentityRow, ...]:
    """Return a row for each schedule, with the best learning rate on the tuning share."""
    fit = _fit_network(*network, data, config)
    tuning, held_out = np.split(fit.frozen, [data.tuning.shape[1]], axis=-1)
    nonzero = data.tuning != 0
    # Judge by the non-zero targets, the hard ones. Diverged is worse than never right.
    score = np.where(fit.finite, _share(tuning[..., nonzero].sum(-1), int(nonzero.sum())), -1.0)
    fit = fit._replace(frozen=held_out)
    return tuple(
        _row(
            network,
            SCHEDULES[schedule],
            config.learning_rates[rate],
            _Fit(*(field[schedule, rate] for field in fit)),
            data,
        )
        for schedule, rate in enumerate(score.mean(axis=-1).argmax(axis=-1))
    )


def _row(
    network: tuple[str, str], schedule: str, rate: float, fit: _Fit, data: _Data
) -> IdentityRow:
    """Return means over the seeds of the chosen runs; `fit.frozen` has the held-out share."""
    nonzero = data.held_out != 0
    frozen_nonzero = fit.frozen[:, nonzero]
    accuracies = {
        "online": _share(fit.hits[:, -1].sum(-1), data.train.size),
        "online_nonzero": _share(
            fit.hits_nonzero[:, -1].sum(-1), int(np.count_nonzero(data.train))
        ),
        "frozen": _share(fit.frozen.sum((-2, -1)), data.held_out.size),
        "frozen_nonzero": _share(frozen_nonzero.sum(-1), int(nonzero.sum())),
    }
    accuracies = {
        name: np.where(fit.finite, accuracy, np.nan) for name, accuracy in accuracies.items()
    }
    means: dict[str, Any] = {name: float(x.mean()) for name, x in accuracies.items()}
    decades = np.floor(np.log10(np.abs(data.held_out[nonzero]))).astype(int)
    by_decade = {
        int(decade): float(
            np.where(fit.finite, frozen_nonzero[:, decades == decade].mean(-1), np.nan).mean()
        )
        for decade in np.unique(decades)
    }
    targets_per_window = data.train.size / fit.hits.shape[-1]
    curve = np.where(np.isfinite(fit.losses), fit.hits / targets_per_window, np.nan).mean(0).ravel()
    blocks = np.array_split(curve, min(_CURVE_POINTS, curve.size))
    return IdentityRow(
        input=network[0],
        output=network[1],
        schedule=schedule,
        learning_rate=rate,
        **means,
        by_decade=by_decade,
        curve=np.array([block.mean() for block in blocks]),
        seeds=len(fit.finite),
        spread={
            name: (float(accuracy.min()), float(accuracy.max()))
            for name, accuracy in accuracies.items()
        },
    )


def _share(hits: _AnyArray, total: int) -> np.ndarray:
    """Return the share of hits; NaN if there were no targets."""
    return np.asarray(hits) / (total or math.nan)
