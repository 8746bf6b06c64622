"""The rule, on ONE core of a CPU or on a GPU: every kernel against plain autodiff and Adam."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from bench import plain
from bench.measure import Table, median_seconds, rounded
from optim4rl.optimizers.kernels.interface import Kernel
from optim4rl.optimizers.kernels.select import KERNELS
from optim4rl.optimizers.presets import LEARNED
from optim4rl.optimizers.rule import OptimizerSpec, init_meta_parameters, init_state

N = 1_000_000
K = 4
PRESETS = ("optim4rl", "optim4rl-rlc", "anchored")
Cases = dict[str, Callable[[], Any]]


def tables(n: int = N) -> list[Table]:
    """Forward and meta-gradient of each preset."""
    rows = []
    for preset in PRESETS:
        spec = LEARNED[preset]
        forward = median_seconds(_forward_cases(spec, n))
        replay = median_seconds(_replay_cases(spec, n), repeats=3)
        in_place = median_seconds(_in_place_cases(spec, n), repeats=3)
        for name, seconds in forward.items():
            rows.append(
                {
                    "rule": preset,
                    "implementation": name,
                    "forward, ns a parameter": rounded(seconds / n * 1e9),
                    "x Adam's time": rounded(seconds / forward["optax.adam"]),
                    **_against_baseline("replay", name, replay, n),
                    **_against_baseline("in place", name, in_place, n),
                    **_bandwidth(spec, name, seconds, n),
                }
            )
    note = (
        f"{n:,} parameters, K = {K}. Million parameter-updates a second: `replay` is the "
        "meta-gradient of K recorded gradients (K steps forward and their VJP), `in place` adds "
        "the K separate forward steps that meta-training takes before it. `x` is the speed over "
        "plain autodiff in (n, features) layout (`bench/plain.py`). "
        + ("One core." if jax.default_backend() == "cpu" else f"On {jax.devices()[0].device_kind}.")
    )
    return [Table("The rule", note, rows)]


def _against_baseline(
    what: str, name: str, seconds: dict[str, float], n: int
) -> dict[str, float | str]:
    if name not in seconds:
        return {f"{what}, M/s": "", f"{what}, x": ""}
    ratio = rounded(seconds["plain"] / seconds[name]) if "plain" in seconds else ""
    return {f"{what}, M/s": rounded(K * n / seconds[name] / 1e6), f"{what}, x": ratio}


def _bandwidth(spec: OptimizerSpec, name: str, seconds: float, n: int) -> dict[str, Any]:
    """On a GPU: the share of the memory bandwidth that a plain copy reaches."""
    if jax.default_backend() == "cpu":
        return {}
    if name in ("plain", "optax.adam"):
        return {"share of copy bandwidth": ""}
    x = jnp.zeros(2**28, jnp.float32)
    copy = jax.jit(lambda x: x + 1.0)
    copied = median_seconds({"copy": lambda: copy(x)})["copy"]
    moved = 4 * n * (2 * spec.state_floats + 2)
    return {"share of copy bandwidth": rounded(moved / seconds / (2 * x.nbytes / copied))}


def _kernels(spec: OptimizerSpec) -> Iterator[Kernel]:
    return (kernel for kernel in KERNELS if kernel.refusal(spec) is None)


def _inputs(spec: OptimizerSpec, n: int) -> tuple[Any, ...]:
    weights = init_meta_parameters(spec, jax.random.key(0))
    gradients = 1e-2 * jax.random.normal(jax.random.key(1), (K, n))
    cotangents = jax.random.normal(jax.random.key(2), (K, n))
    return weights, gradients, cotangents, init_state(spec, (n,))


def _has_plain(spec: OptimizerSpec) -> bool:
    return hasattr(spec.structure, "signed")


def _forward_cases(spec: OptimizerSpec, n: int) -> Cases:
    """One step each, in place where the state can be given up, as in training."""
    weights, gradients, _, state = _inputs(spec, n)
    adam = optax.scale_by_adam()
    cases: Cases = {
        "optax.adam": _stepper(
            lambda g, s: adam.update(g, s), gradients[0], adam.init(gradients[0])
        )
    }
    if _has_plain(spec):
        step = partial(plain.step, spec, weights)
        cases["plain"] = _stepper(step, gradients[0], plain.init_hidden(spec, n))
    for kernel in _kernels(spec):
        cases[kernel.name] = _stepper(partial(kernel.step, spec, weights), gradients[0], state)
    return cases


def _stepper(step: Callable[[Any, Any], Any], gradient: Any, state: Any) -> Callable[[], Any]:
    compiled = jax.jit(step, donate_argnums=1)
    held = [jax.tree.map(jnp.copy, state)]

    def run() -> Any:
        direction, held[0] = compiled(gradient, held[0])
        return direction, held[0]

    return run


def _replay_cases(spec: OptimizerSpec, n: int) -> Cases:
    weights, gradients, cotangents, state = _inputs(spec, n)
    cases: Cases = {}
    if _has_plain(spec):
        replay = jax.jit(partial(plain.replay_vjp, spec))
        hidden = plain.init_hidden(spec, n)
        cases["plain"] = partial(replay, weights, gradients, hidden, cotangents)
    for kernel in _kernels(spec):
        replay = jax.jit(partial(kernel.replay_vjp, spec))
        cases[kernel.name] = partial(replay, weights, gradients, state, cotangents)
    return cases


def _in_place_cases(spec: OptimizerSpec, n: int) -> Cases:
    """As in meta-training: the next gradient needs the last step, so the steps come one by one."""
    weights, gradients, cotangents, state = _inputs(spec, n)
    cases: Cases = {}
    if _has_plain(spec):
        hidden = plain.init_hidden(spec, n)
        step, replay = partial(plain.step, spec), partial(plain.replay_vjp, spec)
        cases["plain"] = _in_place(step, replay, weights, gradients, hidden, cotangents)
    for kernel in _kernels(spec):
        step, replay = partial(kernel.step, spec), partial(kernel.replay_vjp, spec)
        cases[kernel.name] = _in_place(step, replay, weights, gradients, state, cotangents)
    return cases


def _in_place(
    step: Any, replay: Any, weights: Any, gradients: Any, before: Any, cotangents: Any
) -> Callable[[], Any]:
    step, replay = jax.jit(step), jax.jit(replay)

    def run() -> Any:
        state = before
        for gradient in gradients:
            direction, state = step(weights, gradient, state)
        return direction, replay(weights, gradients, before, cotangents)

    return run
