"""Every learned optimizer that has a name is a drop-in optax transformation.

A preset in `LEARNED` and a weights file in the zoo are held to all of it by their name alone. Laws
that need no more than tracing are tested on every name; those that run something on `QUICK`, and on
all the others with `-m slow`. Most of them compare three updates with `reference`, the plain
optimizer on the same gradients. Saving and loading are in `test_weights`, the libraries that people
use in `tests/examples`, optax's own tests in `test_optaxs_own`.
"""

import dataclasses
from functools import cache
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from optim4rl.optimizers import (
    LEARNED,
    LearnedOptimizer,
    init_meta_parameters,
    learned_optimizer,
    load,
    load_weights,
    scale_by_learned_rule,
    shipped_names,
)
from optim4rl.optimizers.kernels.select import KERNELS, choose
from optim4rl.optimizers.transform import stochastic_round

RATE = 0.1
STEPS = 3
PARAMS = {"w": jnp.ones((2, 3)), "b": jnp.ones(2)}
NAMES = (*LEARNED, *shipped_names())
# One that sees coordinates, trained, and one that sees tensors and reads the parameters.
QUICK = ("anchored-catch", "star")


@cache
def random_weights(spec, seed=0):
    """Weights that are nowhere zero, so that every path through the rule is live."""
    rng = np.random.default_rng(seed)
    like = jax.eval_shape(lambda: init_meta_parameters(spec, jax.random.key(0)))
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(0, 0.3, x.shape), x.dtype), like)


@cache
def learned(name):
    """Spec and weights of a name."""
    if name in LEARNED:
        return LearnedOptimizer(LEARNED[name], random_weights(LEARNED[name]), RATE)
    return load_weights(name)


def coordinatewise(name):
    """Whether the rule sees each coordinate by itself: others read or scale whole tensors."""
    spec = learned(name).spec
    return not spec.structure.tensorwise and spec.normalise == "none"


def ran(names):
    """Parameters of a law that runs something."""
    return pytest.mark.parametrize(
        "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in names]
    )


every_name = pytest.mark.parametrize("name", NAMES)
each_run = ran(NAMES)
coordinatewise_run = ran([name for name in NAMES if coordinatewise(name)])


def optimizer(name, rate=RATE, **options):
    return learned(name).transformation(rate, **options)


def random_gradients(like=PARAMS, steps=STEPS, seed=0):
    """Successive gradients of a tree, stacked along a new first axis."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda x: jnp.asarray(rng.normal(size=(steps, *x.shape)), jnp.float32), like
    )


def at(tree, step):
    return jax.tree.map(lambda x: x[step], tree)


def first(tree):
    return at(tree, 0)


def ones_like(tree):
    """Parameters, for the rules that read them."""
    return jax.tree.map(jnp.ones_like, tree)


def run(tx, gradients, jit=False):
    """Updates of successive gradients, operation by operation.

    Each operation on the shapes of `PARAMS` is compiled once and then known to all tests, where
    `jit` compiles a program for each test: that is for other shapes, and for conditionals.
    """
    update = jax.jit(tx.update) if jit else tx.update
    state, updates = tx.init(first(gradients)), []
    for step in range(len(jax.tree.leaves(gradients)[0])):
        gradient = at(gradients, step)
        new, state = update(gradient, state, ones_like(gradient))
        updates.append(new)
    return jax.tree.map(lambda *xs: jnp.stack(xs), *updates)


@cache
def reference(name):
    return run(optimizer(name), random_gradients())


@cache
def alone(name, leaf):
    """The updates of a leaf that is all that the optimizer sees."""
    if not learned(name).spec.networkwise:
        return reference(name)[leaf]
    return run(optimizer(name), random_gradients()[leaf])


def types(tree):
    return jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), tree)


def assert_same(actual, expected, rtol=1e-4, atol=1e-6):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol, atol), actual, expected)


def assert_identical(actual, expected):
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


# The contract


@every_name
def test_it_keeps_optaxs_contract(name):
    tx = optimizer(name)
    assert isinstance(tx, optax.GradientTransformationExtraArgs)
    gradient, state = first(random_gradients()), tx.init(PARAMS)

    def program(*args, **extra):
        return str(jax.make_jaxpr(lambda g, s: tx.update(g, s, *args, **extra))(gradient, state))

    assert program(PARAMS) == program(params=PARAMS, value=1.0, unheard_of="x")
    if "params" in learned(name).spec.structure.reads:
        with pytest.raises(ValueError, match="you are not passing `params`"):
            program()
    else:
        assert program() == program(PARAMS)


MIXED = {
    "bf16": jnp.ones(3, jnp.bfloat16),
    "f16": jnp.ones((2, 3), jnp.float16),
    "f32": jnp.asarray(2.0),
}


@every_name
@pytest.mark.parametrize("state_dtype", ["float32", "bfloat16"])
def test_types_never_change(name, state_dtype):
    """Those of updates are the gradients', those of the state its own: scans and conds are fine."""
    tx = optimizer(name, state_dtype=state_dtype)
    state = tx.init(MIXED)
    assert all(isinstance(x, jax.Array) and not x.weak_type for x in jax.tree.leaves(state))
    kept = {x.dtype for x in jax.tree.leaves(state)} - {jnp.dtype("int32")}
    assert kept == {jnp.dtype(state_dtype)}

    def body(state, gradient):
        return jax.lax.cond(
            jnp.all(jnp.isfinite(gradient["f32"])),
            lambda: tx.update(gradient, state, gradient)[::-1],
            lambda: (state, jax.tree.map(jnp.zeros_like, gradient)),
        )

    gradients = jax.tree.map(lambda x: jnp.stack([x] * STEPS), MIXED)
    after, updates = jax.eval_shape(lambda s, g: jax.lax.scan(body, s, g), state, gradients)
    assert types(after) == types(state)
    assert types(updates) == types(jax.eval_shape(lambda: gradients))


@every_name
def test_the_state_costs_what_the_spec_states_and_holds_no_meta_parameters(name):
    """Numbers and bytes; a bfloat16 state takes half of them."""
    floats = learned(name).spec.state_floats * 8
    for state_dtype, size in (("float32", 4), ("bfloat16", 2)):
        state = jax.eval_shape(optimizer(name, state_dtype=state_dtype).init, PARAMS)
        assert float_count(state) == floats
        assert sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state)) == floats * size + 4
        integers = [x for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.integer)]
        assert [x.shape for x in integers] == [()]


def float_count(state):
    return sum(x.size for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.floating))


@every_name
def test_parameters_may_be_abstract(name):
    tx = optimizer(name)
    state, abstract = tx.init(PARAMS), jax.eval_shape(lambda: PARAMS)
    assert_identical(tx.init(abstract), state)
    assert types(jax.eval_shape(tx.init, abstract)) == types(state)
    assert types(jax.eval_shape(tx.update, abstract, state, abstract)[1]) == types(state)


@each_run
def test_nothing_is_compiled_twice(name):
    tx, traces = optimizer(name), []

    @jax.jit
    def train(params, gradient, state):
        traces.append(None)
        updates, state = tx.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    params, state = PARAMS, jax.jit(tx.init)(PARAMS)
    assert_identical(state, tx.init(PARAMS))
    for _ in range(STEPS):
        params, state = train(params, first(random_gradients()), state)
    assert len(traces) == 1


class Layer(NamedTuple):
    kernel: jax.Array
    rest: tuple


CONTAINERS = {
    "dict": {"a": jnp.ones(2), "b": {}},
    "list": [jnp.ones(2), [jnp.ones(1)]],
    "tuple": (jnp.ones(2), jnp.ones(1), ()),
    "pair": (jnp.ones(2), jnp.ones(2)),
    "named tuple": Layer(jnp.ones(2), (jnp.ones(1),)),
    "tuple of dicts": ({"a": jnp.ones(2)}, {"a": jnp.ones(1)}),
    "module": eqx.nn.Linear(2, 3, use_bias=False, key=jax.random.key(0)),
    "nothing": None,
    "empty": {},
    "bare leaf": jnp.ones(2),
    "scalar": jnp.ones(()),
    "no coordinates": jnp.ones((0, 3)),
}


@each_run
def test_any_container_will_do(name):
    tx = optimizer(name)
    for container, params in CONTAINERS.items():
        state = tx.init(params)
        updates, after = jax.eval_shape(tx.update, params, state, params)
        assert types(updates) == types(jax.eval_shape(lambda p=params: p)), container
        assert types(after) == types(state), container


@ran([name for name in NAMES if "layer" not in learned(name).spec.inputs])
def test_a_container_changes_no_number_but_for_rules_that_read_layers(name):
    gradients = random_gradients()
    nested = Layer(gradients["w"], ({"b": gradients["b"]}, None, gradients["w"][..., :0]))
    updates = run(optimizer(name), nested, jit=True)
    assert_same({"w": updates.kernel, "b": updates.rest[0]["b"]}, reference(name))
    assert updates.rest[1] is None
    assert updates.rest[2].shape == (3, 2, 0)


# What wraps it


@each_run
def test_chain_and_named_chain(name):
    doubled = jax.tree.map(lambda g: 2.0 * g, random_gradients())
    tx = optax.named_chain(
        ("rule", optax.chain(optax.scale(0.5), optimizer(name))), ("flip", optax.scale(-1.0))
    )
    assert set(tx.init(PARAMS)) == {"rule", "flip"}
    assert_same(run(tx, doubled), jax.tree.map(jnp.negative, reference(name)))


@each_run
def test_masked_leaves_are_left_alone_and_cost_nothing(name):
    tx = optax.masked(optimizer(name), {"w": True, "b": False})
    gradients = random_gradients()
    updates = run(tx, gradients)
    assert_same(updates["w"], alone(name, "w"))
    assert_identical(updates["b"], gradients["b"])
    assert float_count(tx.init(PARAMS)) == learned(name).spec.state_floats * PARAMS["w"].size


@each_run
def test_partition_gives_each_leaf_its_own_optimizer(name):
    tx = optax.partition(
        {"learned": optimizer(name), "sgd": optax.sgd(0.5)}, {"w": "learned", "b": "sgd"}
    )
    gradients = random_gradients()
    updates = run(tx, gradients)
    assert_same(updates["w"], alone(name, "w"))
    assert_same(updates["b"], -0.5 * gradients["b"])
    assert float_count(tx.init(PARAMS)) == learned(name).spec.state_floats * PARAMS["w"].size


def halving(count):
    return 0.5 ** jnp.asarray(count, jnp.float32)


@each_run
def test_injected_rate_and_step_scale_are_visible_editable_and_schedulable(name):
    optimizer = learned(name)
    inject = optax.inject_hyperparams(learned_optimizer)
    tx = inject(optimizer.spec, optimizer.meta_parameters, learning_rate=RATE, step_scale=halving)
    gradients, state = random_gradients(), tx.init(PARAMS)
    shown = state.hyperparams
    assert {key: float(x) for key, x in shown.items()} == {
        "learning_rate": pytest.approx(RATE),
        "step_scale": 1.0,
    }
    for step, factor in enumerate((1.0, 0.5, 3.0 * 0.25)):
        if step == 2:
            edited = {**state.hyperparams, "learning_rate": jnp.float32(3 * RATE)}
            state = state._replace(hyperparams=edited)
        updates, state = tx.update(at(gradients, step), state, PARAMS)
        assert float(state.hyperparams["step_scale"]) == 0.5**step
        assert_same(updates, jax.tree.map(lambda x, f=factor: f * x, at(reference(name), step)))


@each_run
def test_rate_and_step_scale_may_be_schedules(name):
    tx = optimizer(name, lambda count: RATE * halving(count), step_scale=halving)
    factors = jnp.asarray([[1.0], [0.25], [0.0625]])
    assert_same(run(tx, random_gradients()["b"]), factors * alone(name, "b"))


@pytest.mark.parametrize(
    "rate",
    [jnp.float32(RATE), np.float64(RATE), np.full(1, RATE, np.float32), jnp.full(3, RATE)],
)
def test_a_rate_that_is_an_array_changes_no_type(rate):
    gradient = jnp.asarray([0.5, -1.0, 2.0], jnp.bfloat16)
    rule = scale_by_learned_rule(learned("anchored").spec, learned("anchored").meta_parameters)
    ascent, _ = rule.update(gradient, rule.init(gradient))
    tx = optimizer("anchored", rate, kernel="auto")
    update, _ = tx.update(gradient, tx.init(gradient))
    assert (update.dtype, update.shape) == (jnp.bfloat16, (3,))
    assert_identical(update, -jnp.bfloat16(RATE) * ascent)


def test_a_rate_that_is_an_array_of_another_shape_is_refused():
    tx = optimizer("anchored", jnp.full(2, RATE))
    with pytest.raises(ValueError, match=r"^learning_rate: an array of shape \(2,\); one number"):
        tx.update(jnp.ones(3), tx.init(jnp.ones(3)))


@pytest.mark.parametrize("name", shipped_names())
def test_what_is_loaded_can_be_injected(name):
    tx = optax.inject_hyperparams(load)(name, learning_rate=1e-3)
    state = tx.init(PARAMS)
    assert set(state.hyperparams) == {"learning_rate", "step_scale"}
    updates, after = jax.eval_shape(tx.update, PARAMS, state, PARAMS)
    assert types(after) == types(state)
    assert types(updates) == types(jax.eval_shape(lambda: PARAMS))


@each_run
def test_multi_steps_accumulates(name):
    twice = jnp.repeat(random_gradients()["b"], 2, axis=0)
    with jax.numpy_dtype_promotion("standard"):  # MultiSteps divides by an integer
        updates = run(optax.MultiSteps(optimizer(name), 2), twice, jit=True)
    assert_same(updates[1::2], alone(name, "b"))
    assert not updates[::2].any()


@each_run
def test_apply_if_finite_skips_a_nan(name):
    gradients, expected = random_gradients()["b"], alone(name, "b")
    poisoned = gradients.at[1, 0].set(jnp.nan).at[2].set(gradients[1])
    updates = run(optax.apply_if_finite(optimizer(name), 5), poisoned, jit=True)
    assert_same(updates, jnp.stack([expected[0], jnp.zeros(2), expected[1]]))


@each_run
def test_vmap_over_meta_parameters_learning_rates_and_agents(name):
    def updates(meta_parameters, rate, gradients):
        tx = learned_optimizer(learned(name).spec, meta_parameters, rate)
        return jax.lax.scan(
            lambda state, g: tx.update(g, state, ones_like(g))[::-1],
            tx.init(gradients[0]),
            gradients,
        )[1]

    own = learned(name).meta_parameters
    both = jax.tree.map(lambda x: jnp.stack([-x, x]), own)
    agents = [random_gradients(seed=seed)["b"] for seed in (0, 1)]
    over_agents = jax.vmap(updates, (None, None, 0))
    over_rates = jax.vmap(over_agents, (None, 0, None))
    over_all = jax.jit(jax.vmap(over_rates, (0, None, None)))
    batched = over_all(both, jnp.asarray([RATE, 3 * RATE]), jnp.stack(agents))
    for agent, gradients in enumerate(agents):
        expected = run(optimizer(name), gradients)
        assert_same(batched[1, 0, agent], expected)
        assert_same(batched[1, 1, agent], 3 * expected)
        assert not np.allclose(batched[0, 0, agent], expected, rtol=1e-3)


# What it does


@each_run
def test_the_alias_descends_where_the_rule_ascends(name):
    rule = learned(name)
    ascent = run(scale_by_learned_rule(rule.spec, rule.meta_parameters), random_gradients()["b"])
    assert_same(-RATE * ascent, alone(name, "b"))


@coordinatewise_run
def test_with_zero_heads_it_descends_a_quadratic(name):
    zero_heads = {
        network: {k: jnp.zeros_like(x) if k.startswith("head") else x for k, x in layers.items()}
        for network, layers in learned(name).meta_parameters.items()
    }
    tx = learned_optimizer(learned(name).spec, zero_heads, 0.02)
    start = jnp.asarray([0.9, -0.5, 0.7])

    def body(carry, _):
        x, state = carry
        updates, state = tx.update(2.0 * x, state)
        return (optax.apply_updates(x, updates), state), jnp.sum(x**2)

    losses = jax.jit(lambda: jax.lax.scan(body, (start, tx.init(start)), None, 20)[1])()
    assert np.all(np.diff(losses) < 0)


@coordinatewise_run
def test_splitting_permuting_and_reshaping_leaves_commute_with_it(name):
    """A scalar is a coordinate too."""
    w, expected = random_gradients()["w"], reference(name)["w"]
    tx = optimizer(name, kinds={"rows": "weight", "scalar": "weight"})
    updates = run(tx, {"rows": w[:, ::-1, 1:].reshape(STEPS, 4), "scalar": w[:, 0, 0]}, jit=True)
    assert_same(updates["rows"].reshape(STEPS, 2, 2)[:, ::-1], expected[..., 1:])
    assert_same(updates["scalar"], expected[:, 0, 0])


@each_run
def test_a_nan_stays_in_its_coordinate_for_good_or_in_what_the_rule_looks_at(name):
    """A coordinate, its tensor, or all tensors."""
    gradients, expected = random_gradients(), dict(reference(name))
    updates = run(optimizer(name), {**gradients, "b": gradients["b"].at[1, 0].set(jnp.nan)})
    spec = learned(name).spec
    # Vectors are neither centred nor made orthogonal.
    own = slice(None) if spec.structure.tensorwise or spec.normalise == "rms" else 0
    expected["b"] = expected["b"].at[1:, own].set(jnp.nan)
    if spec.networkwise:
        expected["w"] = expected["w"].at[1:].set(jnp.nan)
    assert_same(updates, expected)


@ran([name for name in NAMES if learned(name).spec.clip is not None])
def test_an_infinite_gradient_is_clipped(name):
    gradients = random_gradients()
    infinite, largest = (
        jax.tree.map(lambda g, x=x: g.at[1].set(x), gradients)
        for x in (-jnp.inf, -learned(name).spec.clip)
    )
    updates = run(optimizer(name), infinite)
    assert_identical(updates, run(optimizer(name), largest))
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(updates))


@each_run
def test_finite_gradients_of_any_size_give_finite_updates(name):
    sizes = jnp.asarray([[1e-30, -1e30], [1e30, 0.0], [-1e-38, 3e38]])
    gradients = {"w": jnp.broadcast_to(sizes[:, :1, None], (STEPS, 2, 3)), "b": sizes}
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(run(optimizer(name), gradients)))


@ran([name for name in NAMES if coordinatewise(name) and name != "linear"])
def test_all_but_the_linear_rule_leave_a_zero_gradient_alone(name):
    zeros = jax.tree.map(jnp.zeros_like, random_gradients())
    assert_identical(jax.tree.map(jnp.abs, run(optimizer(name), zeros)), zeros)


def test_a_complex_gradient_is_refused():
    gradient = jnp.ones(2, jnp.complex64)
    tx = optimizer("anchored")
    with pytest.raises(ValueError, match="a gradient is complex64"):
        tx.update(gradient, tx.init(gradient))


# Precision


@each_run
def test_half_precision_changes_little(name):
    """Parameters and gradients in bfloat16 or float16, or the optimizer's own state."""
    exact = random_gradients()["w"].astype(jnp.bfloat16).astype(jnp.float32)
    expected = run(optimizer(name), exact)
    scale = float(jnp.max(jnp.abs(expected)))
    for dtype, digits in ((jnp.bfloat16, 1e-2), (jnp.float16, 1e-3)):
        updates = run(optimizer(name), exact.astype(dtype))
        assert updates.dtype == dtype
        assert_same(updates.astype(jnp.float32) / scale, expected / scale, 0.0, digits)
    updates = run(optimizer(name, state_dtype=jnp.bfloat16), exact)
    assert_same(updates / scale, expected / scale, 0.0, 3e-2)


def test_stochastic_rounding_is_right_in_the_mean():
    x = jnp.asarray([1.001, -3e-7, 0.0, 1.5, jnp.inf, jnp.nan])
    dither = jnp.arange(1 << 16, dtype=jnp.uint32)[:, None]
    rounded = jax.jit(jax.vmap(stochastic_round, (None, 0)))(
        x, jnp.broadcast_to(dither, (1 << 16, 6))
    )
    assert rounded.dtype == jnp.bfloat16
    neighbours = [np.unique(column).size for column in np.asarray(rounded.T, np.float32)]
    assert neighbours == [2, 2, 1, 1, 1, 1]
    means = np.asarray(rounded, np.float64).mean(axis=0)
    np.testing.assert_allclose(means[:4], np.asarray(x[:4], np.float64), 1e-6)
    np.testing.assert_array_equal(means[4:], x[4:])


def test_stochastic_rounding_lets_gradients_through():
    x, dither = jnp.asarray([1.001, -3.0]), jnp.asarray([7, 65_535], jnp.uint32)
    gradient = jax.grad(lambda x: stochastic_round(x, dither).astype(jnp.float32).sum())(x)
    assert_identical(gradient, jnp.ones(2))


@pytest.mark.slow
def test_a_slow_moment_moves_in_bfloat16():
    """Its decay of 0.999 is less than half of bfloat16's last digit."""
    tx = optimizer("anchored", state_dtype="bfloat16")
    gradient = jnp.full(64, 0.1)

    @jax.jit
    def moments():
        body = lambda _, state: tx.update(gradient, state)[1]  # noqa: E731
        return jax.lax.fori_loop(0, 1000, body, tx.init(gradient))[0].memory[-2]

    second = np.asarray(moments(), np.float64)
    np.testing.assert_allclose(second.mean(), 0.01 * (1 - 0.999**1000), rtol=0.02)


def test_a_state_of_another_dtype_is_refused():
    with pytest.raises(ValueError, match=r"^state_dtype = 'bf16': float32 or bfloat16"):
        optimizer("anchored", state_dtype="bf16")
    with pytest.raises(ValueError, match=r"^state_dtype = 'float16': float32 or bfloat16"):
        optimizer("anchored", state_dtype=jnp.float16)


# Devices and kernels


@each_run
@pytest.mark.parametrize(
    "state_dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)]
)
def test_sharding_is_preserved(name, state_dtype):
    """On eight devices in `test_optaxs_own`."""
    mesh = jax.make_mesh((2,), ("x",), axis_types=(AxisType.Auto,))
    sharded = NamedSharding(mesh, PartitionSpec("x"))
    tx = optimizer(name, state_dtype=state_dtype)
    gradient = jax.device_put(first(random_gradients())["w"], sharded)
    state = tx.init(gradient)
    update, after = jax.jit(tx.update)(gradient, state, ones_like(gradient))
    assert update.sharding.is_equivalent_to(sharded, 2)
    for x in (*jax.tree.leaves(state), *jax.tree.leaves(after)):
        assert x.ndim == 0 or x.sharding.is_equivalent_to(sharded, 2)
    assert_same(update, first(alone(name, "w")))


@coordinatewise_run
def test_every_kernel_gives_the_same_numbers(name):
    """Leaves of any shape, an empty one among them."""
    gradients = {**random_gradients(), "empty": jnp.ones((STEPS, 2, 0))}
    expected = {**reference(name), "empty": jnp.ones((STEPS, 2, 0))}
    for kernel in KERNELS:
        if kernel.refusal(learned(name).spec) is None:
            assert_same(run(optimizer(name, kernel=kernel.name), gradients, jit=True), expected)


def test_a_kernel_that_cannot_run_a_rule_is_refused_with_the_reason():
    with pytest.raises(ValueError, match=r"^kernel = 'native': structure = 'linear'"):
        optimizer("linear", kernel="native")
    with pytest.raises(ValueError, match=r"^kernel = 'pallas': "):
        optimizer("anchored", kernel="pallas")
    with pytest.raises(ValueError, match=r"^kernel = 'cuda': known kernels are auto, .*pallas$"):
        vars(choose)["__wrapped__"](LEARNED["anchored"], "cuda")


# What some rules read beside gradients


def agent(policy, value):
    """A small actor and critic under names of the user's choice."""
    return {policy: {"kernel": jnp.ones((2, 3))}, value: {"kernel": jnp.ones((2, 1))}}


@pytest.fixture(scope="module")
def noisy():
    """The first update of OPEN on an actor and a critic, as a function of key and dormancy.

    Without the mean that it takes from all steps, which carries the actor's noise to the critic.
    """
    spec = dataclasses.replace(learned("open").spec, zero_mean=False)
    tx = learned_optimizer(spec, random_weights(spec), RATE, kernel=None)
    params = agent("policy", "value")
    gradient = first(random_gradients(params))

    @jax.jit
    def update(key, dormancy):
        options = {"noise_key": key, "dormancy": jax.tree.map(lambda x: dormancy * x, params)}
        return tx.update(gradient, tx.init(params), params, **options)[0]

    return lambda seed, dormancy=0.0: update(jax.random.key(seed), jnp.float32(dormancy))


def test_noise_is_the_actors_alone_and_that_of_its_key(noisy):
    one, other = noisy(0), noisy(1)
    assert_identical(one["value"], other["value"])
    assert (one["policy"]["kernel"] != other["policy"]["kernel"]).all()
    assert_identical(noisy(1), other)


def test_dormancy_may_be_offered(noisy):
    none, some = noisy(0), noisy(0, dormancy=1.0)
    assert not np.allclose(none["value"]["kernel"], some["value"]["kernel"], rtol=1e-2)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("dormancy", {"policy": {"kernel": jnp.ones(2)}}, r"dormancy: .*\(2,\) for .*\(2, 3\)"),
        ("training_proportion", jnp.ones(2), r"training_proportion: .*\(2,\); one number"),
        ("epoch_proportion", jnp.ones((1, 1)), r"epoch_proportion: .*\(1, 1\); one number"),
    ],
)
def test_what_is_told_must_fit(name, value, message):
    params = {"policy": {"kernel": jnp.ones((2, 3))}}
    tx = optimizer("open")
    with pytest.raises(ValueError, match=message):
        tx.update(params, tx.init(params), params, **{name: value})


def test_dormancy_of_units_is_that_of_their_inputs():
    """A number for each unit will do, on a kernel's last axis."""
    params = {"policy": {"kernel": jnp.ones((2, 3))}}
    tx, gradient = optimizer("open", kernel=None), first(random_gradients(params))
    units = jnp.asarray([0.2, 1.0, 3.0])
    by_unit, by_input, alike = (
        tx.update(gradient, tx.init(params), params, dormancy={"policy": {"kernel": x}})[0]
        for x in (units, jnp.broadcast_to(units, (2, 3)), jnp.ones(()))
    )
    assert_identical(by_unit, by_input)
    assert (by_unit["policy"]["kernel"] != alike["policy"]["kernel"]).all()


@pytest.mark.slow
def test_without_a_key_noise_is_that_of_the_updates_number():
    gradients = random_gradients(agent("policy", "value"))
    updates = run(optimizer("open"), gradients, jit=True)
    assert_identical(run(optimizer("open"), gradients, jit=True), updates)
    same = jax.tree.map(lambda g: jnp.stack([g[0]] * STEPS), gradients)
    noise = run(optimizer("open"), same, jit=True)["policy"]["kernel"]
    assert (noise[0] != noise[1]).all()


def test_a_rule_that_reads_kinds_is_told_them_by_names_or_by_the_user():
    gradients = random_gradients(agent("policy", "value"))
    inferred = run(optimizer("generalist"), gradients, jit=True)
    renamed = dict(zip(("left", "right"), gradients.values(), strict=True))

    def kinds(path, leaf):
        return "policy_head" if path.startswith("left") else "value_head"

    given = run(optimizer("generalist", kinds=kinds), renamed, jit=True)
    assert_identical([*given.values()], [*inferred.values()])
    unknown = run(optimizer("generalist"), renamed, jit=True)
    assert not np.allclose(unknown["left"]["kernel"], given["left"]["kernel"], rtol=1e-2)
