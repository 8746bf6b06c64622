"""Records gradients for the identity experiment: an agent's and a supervised network's."""

import dataclasses
import math
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PRNGKeyArray

from optim4rl.study.identity_results import Histogram
from optim4rl.tasks.interface import InnerTask

_HISTOGRAM_EDGES = np.linspace(-12.0, 1.0, 53)


def record_gradients(
    task: InnerTask,
    transformation: optax.GradientTransformation,
    updates: int,
    key: PRNGKeyArray,
    every: int = 100,
) -> Float[np.ndarray, "time coordinate"]:
    """Train one agent, and record the gradient of every `every`-th parameter at each update.

    Parameters are in the order of `jax.flatten_util.ravel_pytree`.
    """
    return np.asarray(_record(task, transformation, updates, every, key))


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _record(
    task: InnerTask,
    transformation: optax.GradientTransformation,
    updates: int,
    every: int,
    key: PRNGKeyArray,
) -> Float[Array, "time coordinate"]:
    key_agent, key_updates = jax.random.split(key)
    params = task.init_params(key_agent)

    def update(agent: tuple[Any, Any, Any], key: PRNGKeyArray) -> tuple[Any, Array]:
        params, actor, state = agent
        batch, actor, _ = task.rollout(params, actor, key)
        gradient = task.gradient(params, batch)
        steps, state = transformation.update(gradient, state, params)
        agent = (optax.apply_updates(params, steps), actor, state)
        return agent, ravel_pytree(gradient)[0][::every]

    agent = (params, task.init_actor(key_agent), transformation.init(params))
    return jax.lax.scan(update, agent, jax.random.split(key_updates, updates))[1]


@cache
def rmsprop(learning_rate: float) -> optax.GradientTransformation:
    """Return the same object for the same rate, so that the next seed reuses compiled programs."""
    return optax.rmsprop(learning_rate)


@dataclass(frozen=True)
class GaussianClusters:
    """A classification problem that needs no download, with a ReLU network of one hidden layer.

    Class means are standard normal in `inputs` dimensions. Samples lie around them with standard
    deviation 2, so that a few in a hundred are nearer to another class's mean. Each gradient is
    the gradient of the cross-entropy on a fresh minibatch. A `InnerTask`; its actor holds the
    class means.
    """

    inputs: int = 64
    classes: int = 10
    width: int = 64
    batch: int = 128

    def init_params(self, key: PRNGKeyArray) -> dict[str, Array]:
        """Return LeCun-normal kernels and zero biases."""
        init = jax.nn.initializers.lecun_normal()
        key_hidden, key_out, _ = jax.random.split(key, 3)
        return {
            "hidden": init(key_hidden, (self.inputs, self.width), jnp.float32),
            "hidden_bias": jnp.zeros(self.width, jnp.float32),
            "out": init(key_out, (self.width, self.classes), jnp.float32),
            "out_bias": jnp.zeros(self.classes, jnp.float32),
        }

    def init_actor(self, key: PRNGKeyArray) -> Float[Array, "classes inputs"]:
        """Draw the class means."""
        _, _, key_means = jax.random.split(key, 3)
        return jax.random.normal(key_means, (self.classes, self.inputs))

    @property
    def updates_per_rollout(self) -> int:
        """Return 1: each minibatch is used once."""
        return 1

    @property
    def env_steps_per_rollout(self) -> int:
        """Return 0: there is no environment."""
        return 0

    def rollout(
        self, params: dict[str, Array], actor: Float[Array, "classes inputs"], key: PRNGKeyArray
    ) -> tuple[tuple[Array, Array], Float[Array, "classes inputs"], Float[Array, ""]]:
        """Draw a fresh minibatch of inputs and labels; the stats are its loss."""
        key_label, key_noise = jax.random.split(key)
        label = jax.random.randint(key_label, (self.batch,), 0, self.classes)
        x = actor[label] + 2.0 * jax.random.normal(key_noise, (self.batch, self.inputs))
        return (x, label), actor, self._loss(params, (x, label))

    def gradient(self, params: dict[str, Array], batch: tuple[Array, Array]) -> dict[str, Array]:
        """Return the gradient of the cross-entropy."""
        return jax.grad(self._loss)(params, batch)

    def _loss(self, params: dict[str, Array], batch: tuple[Array, Array]) -> Array:
        x, label = batch
        hidden = jax.nn.relu(x @ params["hidden"] + params["hidden_bias"][None])
        logits = hidden @ params["out"] + params["out_bias"][None]
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, label))


def supervised_gradients(
    num_parameters: int,
    transformation: optax.GradientTransformation,
    updates: int,
    key: PRNGKeyArray,
    every: int = 100,
) -> Float[np.ndarray, "time coordinate"]:
    """Return gradients of a supervised network of about `num_parameters` on Gaussian clusters.

    The number of parameters sets the width of the network, which is at least 1.
    """
    problem = GaussianClusters()
    per_unit = problem.inputs + 1 + problem.classes
    width = max(1, round((num_parameters - problem.classes) / per_unit))
    problem = dataclasses.replace(problem, width=width)
    return record_gradients(problem, transformation, updates, key, every)


def record_both(
    task: InnerTask, learning_rate: float, updates: int, every: int, seed: int
) -> dict[str, Float[np.ndarray, "time coordinate"]]:
    """Record an agent under RMSProp, and a supervised network of about the same size."""
    transformation = rmsprop(learning_rate)
    key_agent, key_supervised, _ = jax.random.split(jax.random.key(seed), 3)
    agent = record_gradients(task, transformation, updates, key_agent, every)
    num_parameters = sum(
        math.prod(leaf.shape)
        for leaf in jax.tree.leaves(jax.eval_shape(task.init_params, key_agent))
    )
    supervised = supervised_gradients(
        num_parameters, transformation, updates, key_supervised, every
    )
    return {"agent": agent, "supervised": supervised}


def histogram(label: str, gradients: Float[np.ndarray, "..."]) -> Histogram:
    """Return a histogram of log10|g| in quarter decades from 1e-12 to 10.

    The end bins also count all values beyond them. Without a non-zero gradient all shares are
    zero and the decades NaN.

    Raises:
        ValueError: there are no gradients, or some are not finite.
    """
    check_gradients(gradients)
    logs = np.log10(np.abs(gradients[gradients != 0]).astype(np.float64))
    counts, edges = np.histogram(
        np.clip(logs, _HISTOGRAM_EDGES[0], _HISTOGRAM_EDGES[-1]), _HISTOGRAM_EDGES
    )
    low, high = np.percentile(logs, [1, 99]) if logs.size else (math.nan, math.nan)
    return Histogram(
        label=label,
        edges=edges,
        share=counts / max(1, logs.size),
        zeros=1.0 - logs.size / gradients.size,
        decades=float(high - low),
    )


def check_gradients(gradients: Float[np.ndarray, "..."]) -> None:
    """Refuse gradients that are missing or not finite.

    Raises:
        ValueError: the message says how many.
    """
    if not gradients.size:
        raise ValueError(f"gradients of shape {gradients.shape}: at least one gradient is needed")
    if not np.isfinite(gradients).all():
        raise ValueError(
            f"gradients: {np.sum(~np.isfinite(gradients))} of {gradients.size} are not finite; "
            "the agent that they were recorded from has diverged"
        )
