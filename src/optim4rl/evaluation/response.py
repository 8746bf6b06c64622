"""Measure an optimizer's steps: by size and history of gradients, and by its own age.

Every optimizer sees the same streams of gradients, and we record its step: `d` if a parameter moves
by `-learning_rate * d`. Sign-SGD's step is always 1 or -1, Adam's is 1 under a constant gradient. A
rule that reads statistics of a whole tensor sees each stream in its own tensor, in which everything
else is constant (`surroundings`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from optim4rl.optimizers.transform import LearnedRuleState, scale_by_learned_rule
from optim4rl.optimizers.weights import LearnedOptimizer

# Updates that each stream lasts.
LIFE = 512
# Sizes of constant gradients, half a decade apart.
SIZES: Float[np.ndarray, " size"] = 10.0 ** np.linspace(-10.0, 2.0, 25)
# The size of gradients in all other streams: agents' gradients are often of this order.
TYPICAL = 1e-3
# Updates after which a gradient vanishes.
VANISHES_AT = 128
# A noisy gradient's mean over its standard deviation, and the number of such streams. Half of them
# have a negative mean, so that effects that do not depend on the sign cancel.
SIGNAL_TO_NOISE = 0.3
NOISY_STREAMS = 256
# Averages over a life use windows of this many updates.
WINDOW = 64
# Updates over which the influence of one gradient is followed.
LAGS = 32
# The tensor around a coordinate where the rule reads tensors.
TENSOR = (4, 4)

CLASSICAL: dict[str, optax.GradientTransformation] = {
    "Adam": optax.scale_by_adam(),
    "sign-SGD": optax.scale_by_sign(),
}


class Streams(NamedTuple):
    """Gradients of one coordinate over a life.

    Attributes:
        constant: constant gradients of each of `SIZES`, positive and negative.
        alternating: of size `TYPICAL`, with a sign that changes at each update.
        vanishing: `TYPICAL` for `VANISHES_AT` updates, then exactly zero.
        noisy: normal, with standard deviation `TYPICAL` around `SIGNAL_TO_NOISE` times `TYPICAL`.
            The second half of the streams is the first half with opposite signs.
    """

    constant: Float[np.ndarray, "age sizes"]
    alternating: Float[np.ndarray, "age 1"]
    vanishing: Float[np.ndarray, "age 1"]
    noisy: Float[np.ndarray, "age stream"]


@dataclass(frozen=True)
class Response:
    """The steps of an optimizer, in learning rates; positive steps go along the gradient.

    Attributes:
        constant: under a constant gradient, positive or negative, by age and size (`SIZES`).
        alternating: along the newest gradient, whose sign changes with each update.
        vanishing: along a gradient that is zero from update `VANISHES_AT` on.
        noisy: along the mean of noisy gradients, by age and stream.
        kernel: effect of a gradient on the step that many updates later, on average over a window
            of `WINDOW` updates, in learning rates for each standard deviation of noise: Wiener's
            first-order kernel. An average with decay `b` has `(1 - b) b**lag`.
    """

    constant: Float[np.ndarray, "sign=2 age size"]
    alternating: Float[np.ndarray, " age"]
    vanishing: Float[np.ndarray, " age"]
    noisy: Float[np.ndarray, "age stream"]
    kernel: Float[np.ndarray, "window lag"]

    @property
    def effective_step(self) -> Float[np.ndarray, " window"]:
        """Return the mean step along the mean of noisy gradients."""
        return self.noisy.reshape(-1, WINDOW * NOISY_STREAMS).mean(axis=1)

    @property
    def drift(self) -> Float[np.ndarray, " window"]:
        """Return the mean step that is the same for both signs of noise; 0 for an odd rule."""
        up, down = np.split(self.noisy, 2, axis=1)
        return 0.5 * (up - down).reshape(-1, up.shape[1] * WINDOW).mean(axis=1)

    @property
    def implied_momentum(self) -> Float[np.ndarray, " window"]:
        """Return the share of the step that comes from gradients before the newest: Adam's is 0.9.

        NaN if the whole response does not stand out from chance.
        """
        total = self.kernel.sum(axis=1)
        spread = self.noisy.reshape(-1, WINDOW * NOISY_STREAMS).std(axis=1)
        chance = spread * np.sqrt(LAGS / (WINDOW * NOISY_STREAMS))
        clear = np.abs(total) > 3.0 * chance
        return np.where(clear, 1.0 - self.kernel[:, 0] / np.where(clear, total, 1.0), np.nan)


@cache
def streams() -> Streams:
    """Return the gradients that every optimizer sees, always the same."""
    ages = np.arange(LIFE)[:, None]
    noisy = TYPICAL * (SIGNAL_TO_NOISE + _noise())
    sizes = np.concatenate([SIZES, -SIZES])
    return Streams(
        constant=np.broadcast_to(sizes, (LIFE, sizes.size)),
        alternating=TYPICAL * np.where(ages % 2 == 0, 1.0, -1.0),
        vanishing=TYPICAL * np.where(ages < VANISHES_AT, 1.0, 0.0),
        noisy=np.concatenate([noisy, -noisy], axis=1),
    )


@cache
def _noise() -> Float[np.ndarray, "age stream"]:
    noise = np.random.default_rng(0).standard_normal((LIFE, NOISY_STREAMS // 2))
    return noise - noise.mean(axis=1, keepdims=True)


def measure(tx: optax.GradientTransformation, tensor: tuple[int, ...] = (1,)) -> Response:
    """Measure the response of any optax transformation in its ascent form (`scale_by_*`).

    Args:
        tx: the transformation.
        tensor: the shape of the tensor around each coordinate.
    """
    shown = streams()
    steps = np.asarray(_steps(tx, tensor, jnp.asarray(np.concatenate(shown, axis=1), jnp.float32)))
    ends = np.cumsum([stream.shape[1] for stream in shown])[:-1]
    constant, alternating, vanishing, noisy = np.split(steps.astype(np.float64), ends, axis=1)
    noisy[:, NOISY_STREAMS // 2 :] *= -1.0
    return Response(
        constant=np.stack([constant[:, : SIZES.size], -constant[:, SIZES.size :]]),
        alternating=alternating[:, 0] * np.sign(shown.alternating[:, 0]),
        vanishing=vanishing[:, 0],
        noisy=noisy,
        kernel=_kernel(noisy),
    )


def respond(optimizer: LearnedOptimizer) -> Response:
    """Measure a learned optimizer's response to the gradient of a weight, with its step scale."""
    return measure(*_probe(optimizer))


def surroundings(
    tensor: tuple[int, ...],
) -> tuple[Float[np.ndarray, "*tensor"], Float[np.ndarray, "*tensor"]]:
    """Return gradients and parameters of the tensor around a coordinate: normal, always the same.

    Gradients have a standard deviation of `TYPICAL`, parameters of 0.1.
    """
    gradients, params = np.random.default_rng(1).standard_normal((2, *tensor))
    return (TYPICAL * gradients).astype(np.float32), (0.1 * params).astype(np.float32)


def _probe(
    optimizer: LearnedOptimizer,
) -> tuple[optax.GradientTransformationExtraArgs, tuple[int, ...]]:
    spec = optimizer.spec
    rule = scale_by_learned_rule(spec, optimizer.meta_parameters, kernel=None, kinds="weight")
    return rule, TENSOR if spec.tensorwise else (1,)


@partial(jax.jit, static_argnums=(0, 1))
def _steps(
    tx: optax.GradientTransformation, tensor: tuple[int, ...], gradients: Float[Array, "age stream"]
) -> Float[Array, "age stream"]:
    around, params = map(jnp.asarray, surroundings(tensor))
    probed = (0,) * len(tensor)

    def of_stream(stream: Float[Array, " age"]) -> Float[Array, " age"]:
        def body(state: optax.OptState, gradient: Float[Array, ""]) -> tuple[optax.OptState, Array]:
            steps, state = tx.update(around.at[probed].set(gradient), state, params)
            return state, steps[probed]

        return jax.lax.scan(body, tx.init(params), stream)[1]

    return jax.vmap(of_stream, in_axes=1, out_axes=1)(gradients)


def _kernel(steps: Float[np.ndarray, "age stream"]) -> Float[np.ndarray, "window lag"]:
    """Fit each window's steps by least squares to the noise of the same and earlier updates."""
    centred = (steps - steps.mean(axis=1, keepdims=True)).reshape(-1, WINDOW * NOISY_STREAMS)
    noise = _lagged_noise()
    products = np.einsum("wln,wn->wl", noise, centred)
    squares = np.einsum("wln,wmn->wlm", noise, noise)
    return np.asarray(np.linalg.solve(squares, products[..., None])[..., 0])


@cache
def _lagged_noise() -> Float[np.ndarray, "window lag sample"]:
    # There was no noise before the first update.
    along = np.tile(_noise(), 2)
    noise = np.concatenate([np.zeros((LAGS, NOISY_STREAMS)), along])
    shifted = [noise[LAGS - lag : LAGS - lag + LIFE] for lag in range(LAGS)]
    return np.stack(shifted).reshape(LAGS, -1, WINDOW * NOISY_STREAMS).swapaxes(0, 1)


@dataclass(frozen=True)
class TimeScales:
    """Time constants of a learned rule's state, in updates: how fast it forgets.

    We linearise the state's update at the state that a constant gradient leads to. A deviation
    along an eigenvector shrinks to 1/e in `-1 / ln|eigenvalue|` updates: 0 if at once, infinite if
    never, NaN if the state is not finite.

    Attributes:
        sizes: of the constant gradients.
        hidden: of the networks' hidden states, ascending, for each gradient.
        moments: of the running moments, which read no hidden state.
    """

    sizes: tuple[float, ...]
    hidden: Float[np.ndarray, "gradient unit"]
    moments: Float[np.ndarray, "gradient moment"]


def time_scales(
    optimizer: LearnedOptimizer, sizes: Sequence[float] = (1e-6, 1e-3, 1.0)
) -> TimeScales:
    """Return the time scales of a learned rule after `LIFE` updates of a constant gradient."""
    tx, tensor = _probe(optimizer)
    jacobians = np.asarray(_jacobians(tx, tensor, jnp.asarray(sizes, jnp.float32)), np.float64)
    split = optimizer.spec.state_floats - optimizer.spec.structure.num_moments
    return TimeScales(
        tuple(sizes),
        _time_constants(jacobians[:, :split, :split]),
        _time_constants(jacobians[:, split:, split:]),
    )


@partial(jax.jit, static_argnums=(0, 1))
def _jacobians(
    tx: optax.GradientTransformation, tensor: tuple[int, ...], gradients: Float[Array, " gradient"]
) -> Float[Array, "gradient state state"]:
    """Return the derivative of a coordinate's state with respect to the state before it."""
    around, params = map(jnp.asarray, surroundings(tensor))
    probed = (0,) * len(tensor)

    def of_gradient(gradient: Float[Array, ""]) -> Float[Array, "state state"]:
        shown = around.at[probed].set(gradient)

        def advance(state: LearnedRuleState) -> LearnedRuleState:
            return tx.update(shown, state, params)[1]

        settled = jax.lax.fori_loop(0, LIFE, lambda _, s: advance(s), tx.init(params))
        # The tensor is the only leaf, so that the memory is one array for each number.
        own = jnp.stack([row[probed] for row in settled.memory])

        def following(own: Float[Array, " state"]) -> Float[Array, " state"]:
            memory = tuple(
                row.at[probed].set(new) for row, new in zip(settled.memory, own, strict=True)
            )
            after = advance(LearnedRuleState(settled.count, memory))
            return jnp.stack([row[probed] for row in after.memory])

        return jax.jacrev(following)(own)

    return jax.vmap(of_gradient)(gradients)


def _time_constants(
    jacobians: Float[np.ndarray, "gradient state state"],
) -> Float[np.ndarray, "gradient state"]:
    if not jacobians.size:  # a rule without hidden state, or without moments
        return np.zeros(jacobians.shape[:-1])
    known = np.isfinite(jacobians).all(axis=(1, 2), keepdims=True)
    sizes = np.abs(np.linalg.eigvals(np.where(known, jacobians, 0.0)))
    with np.errstate(divide="ignore"):
        constants = np.where(sizes < 1.0, -1.0 / np.log(np.minimum(sizes, 1.0)), np.inf)
    return np.sort(np.where(known[..., 0], constants, np.nan), axis=-1)
