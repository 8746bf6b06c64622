"""AdaLomo (Lv et al. 2023, arXiv 2310.10195), small: an experiment for its published plan.

An optimizer that keeps of the second moment only the means of its rows and columns, whose product
is its non-negative rank-one factorisation, and that brings each tensor's update to the size of the
tensor ("grouped update normalisation"). A small model of symbols stands in for the paper's language
models of billions of parameters. The plan is `plans/adalomo.md`.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optim4rl.study import Choice, Component, Control, Experiment, Metric

UPDATES, BATCH, CONTEXT, WIDTH, SYMBOLS = 1_000, 64, 4, 32, 16
TEXT, SPLIT = 20_000, 16_000  # symbols in all, and those to learn from
EPSILON = 1e-3  # of a tensor's size, as in the paper: so that zeros can grow


@dataclass(frozen=True)
class Settings:
    """AdaLomo's choices.

    Attributes:
        factorisation: of the second moment: "nmf" rows times columns, "none" the whole of it, "svd"
            its best rank-one approximation, "pca" that of what is left without its mean.
        normalisation: of an update: "grouped" by the tensor's own sizes, "layer" to mean 0 and
            deviation 1 over each row, "batch" likewise over each column, "none".
        moment: "second" divides by its root; "adam" has a first moment, too; "sgd" has none.
        rate: the learning rate, tuned for each.
    """

    factorisation: str = "nmf"
    normalisation: str = "grouped"
    moment: str = "second"
    rate: float = 0.01


def approximate(moment: jax.Array, settings: Settings) -> jax.Array:
    """What of a matrix of squared gradients the factorisation keeps."""
    if settings.factorisation == "none" or moment.ndim < 2:
        return moment
    if settings.factorisation == "nmf":
        rows, columns = moment.mean(1, keepdims=True), moment.mean(0, keepdims=True)
        return rows * columns / (moment.mean() + 1e-30)
    mean = moment.mean(0, keepdims=True) if settings.factorisation == "pca" else 0.0
    vector = jnp.ones(moment.shape[1])
    for _ in range(8):  # Power iteration: squared gradients have one large singular value.
        vector = (moment - mean).T @ ((moment - mean) @ vector)
        vector = vector / (jnp.linalg.norm(vector) + 1e-30)
    rank_one = jnp.outer((moment - mean) @ vector, vector)
    # A truncated decomposition may be negative, which a second moment is not.
    return jnp.maximum(mean + rank_one, 1e-30)


def normalise(update: jax.Array, weights: jax.Array, settings: Settings) -> jax.Array:
    """An update brought to a size."""

    def rms(x: jax.Array) -> jax.Array:
        return jnp.sqrt(jnp.mean(x**2) + 1e-30)

    if settings.normalisation == "none" or (
        update.ndim < 2 and settings.normalisation != "grouped"
    ):
        return update
    if settings.normalisation == "grouped":
        return update / jnp.maximum(1.0, rms(update)) * jnp.maximum(EPSILON, rms(weights))
    axis = 1 if settings.normalisation == "layer" else 0
    centred = update - update.mean(axis, keepdims=True)
    return centred / (centred.std(axis, keepdims=True) + 1e-8)


def make_optimizer(settings: Settings, rate: Any) -> optax.GradientTransformation:
    """AdaLomo, or what it is compared with, as an optax transformation."""
    if settings.moment != "second":
        return {"adam": optax.adam, "sgd": optax.sgd}[settings.moment](rate)

    def init(weights: Any) -> Any:
        return jnp.float32(0.0), jax.tree.map(jnp.zeros_like, weights)

    def update(gradients: Any, state: Any, weights: Any) -> Any:
        time, moments = state
        decay = 1 - (time + 1) ** -0.8

        def accumulate(g: jax.Array, v: jax.Array) -> jax.Array:
            return approximate(decay * v + (1 - decay) * (g**2 + 1e-30), settings)

        def step(g: jax.Array, v: jax.Array, w: jax.Array) -> jax.Array:
            return -rate * normalise(g / jnp.sqrt(v + 1e-30), w, settings)

        moments = jax.tree.map(accumulate, gradients, moments)
        return jax.tree.map(step, gradients, moments, weights), (time + 1, moments)

    return optax.GradientTransformation(init, update)


def state_floats(settings: Settings) -> int:
    """Numbers of state that the optimizer keeps: of a factorised matrix its two factors."""
    if settings.moment == "sgd":
        return 0
    total = 0
    for shape in (x.shape for x in jax.tree.leaves(jax.eval_shape(initialise, jax.random.key(0)))):
        whole = int(np.prod(shape))
        if settings.moment == "adam" or settings.factorisation == "none" or len(shape) < 2:
            total += whole
        else:
            total += sum(shape) + (shape[1] if settings.factorisation == "pca" else 0)
    return 2 * total if settings.moment == "adam" else total


def make_text(length: int) -> np.ndarray:
    """Symbols of a hidden language: a sparse random grammar of two symbols' memory."""
    rng = np.random.default_rng(0)
    table = rng.dirichlet(np.full(SYMBOLS, 0.15), size=(SYMBOLS, SYMBOLS)).cumsum(-1)
    text = [0, 1]
    for draw in rng.random(length):
        choice = int(np.searchsorted(table[text[-2], text[-1]], draw))
        text.append(min(choice, SYMBOLS - 1))
    return np.array(text)


def initialise(key: jax.Array) -> dict[str, jax.Array]:
    """The model's weights: an embedding, a hidden layer, an output."""
    shapes = {
        "embedding": (SYMBOLS, WIDTH),
        "hidden": (CONTEXT * WIDTH, WIDTH),
        "bias": (WIDTH,),
        "output": (WIDTH, SYMBOLS),
    }
    keys = jax.random.split(key, len(shapes))
    return {
        name: jax.random.normal(k, shape) / np.sqrt(shape[0])
        if len(shape) > 1
        else jnp.zeros(shape)
        for k, (name, shape) in zip(keys, shapes.items(), strict=True)
    }


def predict(weights: dict[str, jax.Array], context: jax.Array) -> jax.Array:
    """Logits of the next symbol."""
    features = weights["embedding"][context].reshape(context.shape[0], -1)
    hidden = jax.nn.relu(features @ weights["hidden"] + weights["bias"])
    return hidden @ weights["output"]


def batch(text: jax.Array, key: jax.Array, low: int, high: int, size: int) -> Any:
    """Contexts and the symbols that follow them."""
    starts = jax.random.randint(key, (size,), low, high - CONTEXT)
    windows = text[starts[:, None] + jnp.arange(CONTEXT + 1)]
    return windows[:, :-1], windows[:, -1]


def loss(weights: Any, context: jax.Array, target: jax.Array) -> jax.Array:
    """Cross-entropy, nats."""
    logits = jax.nn.log_softmax(predict(weights, context))
    return -jnp.take_along_axis(logits, target[:, None], 1).mean()


@partial(jax.jit, static_argnames="settings")
def train(settings: Settings, rate: jax.Array, text: jax.Array, key: jax.Array) -> Any:
    """The loss by update, and the accuracy on text that was not learned from."""
    first, held, batches = jax.random.split(key, 3)
    optimizer = make_optimizer(settings, rate)

    def update(carry: Any, time: jax.Array) -> Any:
        weights, state = carry
        context, target = batch(text, jax.random.fold_in(batches, time), 0, SPLIT, BATCH)
        value, gradients = jax.value_and_grad(loss)(weights, context, target)
        updates, state = optimizer.update(gradients, state, weights)
        return (optax.apply_updates(weights, updates), state), value

    weights = initialise(first)
    start = (weights, optimizer.init(weights))
    (weights, _), losses = jax.lax.scan(update, start, jnp.arange(UPDATES))
    context, target = batch(text, held, SPLIT, TEXT, 2_000)
    return losses, (predict(weights, context).argmax(-1) == target).mean()


def run(settings: Settings, seed: int) -> dict[str, Any]:
    """Train a model once."""
    kind = replace(settings, rate=0.0)  # All rates share one compiled program.
    losses, accuracy = train(kind, settings.rate, TEXT_ARRAY, jax.random.key(seed))
    losses = np.asarray(losses, np.float64)
    rises = np.maximum(np.diff(losses[UPDATES // 10 :]), 0)
    return {
        "training loss": losses,
        "accuracy": accuracy,
        "instability": np.quantile(rises, 0.95),
        "optimizer state": state_floats(settings),
    }


TEXT_ARRAY = make_text(TEXT)
RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)
SGD_RATES = (1e-2, 3e-2, 1e-1, 3e-1, 1.0, 3.0, 10.0, 30.0)
experiment = Experiment(
    name="AdaLomo",
    about="An optimizer of low memory with an adaptive learning rate",
    reference=Settings(),
    components=(
        Component(
            "factorisation",
            (
                "non negative matrix factorization",
                "matrix factorization for second order moment",
                "factorization of second moment",
                "second order moment estimation",
            ),
            (
                Choice("nmf", ("non negative matrix factorization",), "Means of rows and columns."),
                Choice("none", ("no factorization", "full second moment"), "The whole matrix."),
                Choice("svd", ("svd", "singular value decomposition"), "The best of rank one."),
                Choice("pca", ("pca", "principal component analysis"), "The same, centred."),
            ),
            "The second moment is kept as the product of its rows' and its columns' means.",
            remove="none",
        ),
        Component(
            "normalisation",
            ("grouped update normalization", "update normalization"),
            (
                Choice("grouped", ("grouped update normalization",), "To the tensor's own size."),
                Choice("layer", ("layer normalization",), "Each row to mean 0, deviation 1."),
                Choice("batch", ("batch normalization",), "Each column to mean 0, deviation 1."),
                Choice("none", ("no normalization",), "The update as it is."),
            ),
            "Each tensor's update is brought to at most the size of the tensor.",
            remove="none",
        ),
    ),
    metrics=(
        Metric(
            "training loss",
            ("training loss", "loss", "convergence speed", "convergence"),
            "Cross-entropy on the next symbol.",
            "lower",
            "nats",
        ),
        Metric("accuracy", ("accuracy", "final accuracy"), "Of 2,000 symbols it never saw."),
        Metric(
            "instability",
            ("instability", "convergence stability", "stability"),
            "The rises of the loss from update to update: their 95 % quantile.",
            "lower",
            "nats",
        ),
        Metric(
            "optimizer state",
            ("optimizer state", "memory usage", "memory", "memory efficiency"),
            "Numbers that the optimizer keeps.",
            "lower",
            "floats",
        ),
    ),
    run=run,
    grid={"rate": RATES},
    controls=(
        Control("adam", "Tuned Adam", Settings(moment="adam"), "baseline"),
        Control("sgd", "Tuned SGD", Settings(moment="sgd"), "baseline", grid={"rate": SGD_RATES}),
        Control(
            "adagrad-like",
            "Second moment alone",
            Settings(factorisation="none", normalisation="none"),
            "control",
            "factorisation and normalisation: both out",
        ),
    ),
    seeds=20,
    tuning_seeds=4,
    task="a character model",
    steps="updates",
)
