"""Every learned preset is a drop-in optax transformation: a name in `LEARNED` is held to all of it.

Each test states one promise. Most of them compare three updates with `reference`, the plain
optimizer on the same gradients.
"""

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
    init_meta_parameters,
    learned_optimizer,
    scale_by_learned_rule,
)
from optim4rl.optimizers.kernels.select import KERNELS, choose

RATE = 0.1
PARAMS = {"w": jnp.ones((2, 3)), "b": jnp.ones(2)}
every_preset = pytest.mark.parametrize("name", LEARNED)
# Rules that see a coordinate by itself: the others read or scale whole tensors.
COORDINATEWISE = [
    name
    for name, spec in LEARNED.items()
    if not spec.structure.tensorwise and spec.normalise == "none"
]
coordinatewise_preset = pytest.mark.parametrize("name", COORDINATEWISE)


@cache
def random_weights(spec, seed=0):
    """Weights that are nowhere zero, so that every path through the rule is live."""
    rng = np.random.default_rng(seed)
    like = jax.eval_shape(lambda: init_meta_parameters(spec, jax.random.key(0)))
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(0, 0.3, x.shape), x.dtype), like)


def weights(name, seed=0):
    return random_weights(LEARNED[name], seed)


def optimizer(name, rate=RATE, **options):
    return learned_optimizer(LEARNED[name], weights(name), rate, **options)


def random_gradients(like=PARAMS, steps=3, seed=0):
    """Successive gradients of a tree, stacked along a new first axis."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda x: jnp.asarray(rng.normal(size=(steps, *x.shape)), jnp.float32), like
    )


def first(tree):
    return jax.tree.map(lambda x: x[0], tree)


def ones_like(tree):
    """Parameters, for the rules that read them."""
    return jax.tree.map(jnp.ones_like, tree)


def runner(tx):
    """Updates of successive gradients; the scan needs a state that is a legal carry."""

    def run(gradients):
        def body(state, gradient):
            updates, state = tx.update(gradient, state, ones_like(gradient))
            return state, updates

        return jax.lax.scan(body, tx.init(first(gradients)), gradients)[1]

    return jax.jit(run)


@cache
def plain(name):
    return runner(optimizer(name))


@cache
def reference(name):
    return plain(name)(random_gradients())


def types(tree):
    return jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), tree)


def assert_same(actual, expected, rtol=1e-4, atol=1e-6):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol, atol), actual, expected)


def assert_identical(actual, expected):
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


@every_preset
def test_it_keeps_optaxs_contract(name):
    tx = optimizer(name)
    assert isinstance(tx, optax.GradientTransformationExtraArgs)
    gradient, state = first(random_gradients()), tx.init(PARAMS)

    def program(*args, **extra):
        return str(jax.make_jaxpr(lambda g, s: tx.update(g, s, *args, **extra))(gradient, state))

    assert program(PARAMS) == program(params=PARAMS, value=1.0, unheard_of="x")
    if "params" in LEARNED[name].structure.reads:
        with pytest.raises(ValueError, match="you are not passing `params`"):
            program()
    else:
        assert program() == program(PARAMS)


@every_preset
def test_updates_keep_structure_shapes_and_dtypes(name):
    dtypes = {"bf16": jnp.bfloat16, "f16": jnp.float16, "f32": jnp.float32}
    exact = random_gradients(PARAMS["w"]).astype(jnp.bfloat16).astype(jnp.float32)
    gradients = {key: exact.astype(dtype) for key, dtype in dtypes.items()}
    updates = runner(optimizer(name))(gradients)
    assert types(updates) == types(gradients)
    for key, digits in (("bf16", 2e-2), ("f16", 2e-3)):
        assert_same(updates[key].astype(jnp.float32), updates["f32"], rtol=digits, atol=1e-3)


@every_preset
@pytest.mark.parametrize(
    "leaf", [jnp.ones(3), jnp.ones(3, jnp.bfloat16), jnp.ones(3, jnp.float16), jnp.asarray(2.0)]
)
def test_the_states_types_never_change(name, leaf):
    tx = optimizer(name)
    state = tx.init(leaf)
    assert all(isinstance(x, jax.Array) and not x.weak_type for x in jax.tree.leaves(state))

    def update_or_skip(gradient, state):
        return jax.lax.cond(
            jnp.all(jnp.isfinite(gradient)),
            lambda: tx.update(gradient, state, gradient),
            lambda: (jnp.zeros_like(gradient), state),
        )

    _, after = jax.eval_shape(update_or_skip, leaf, state)
    assert types(after) == types(state)


@every_preset
def test_a_second_call_does_not_recompile(name):
    tx, traces = optimizer(name), []

    @jax.jit
    def train(params, gradient, state):
        traces.append(None)
        updates, state = tx.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    params, state = PARAMS, tx.init(PARAMS)
    for _ in range(3):
        params, state = train(params, first(random_gradients()), state)
    assert len(traces) == 1


@every_preset
def test_init_can_be_jitted_and_abstract(name):
    tx = optimizer(name)
    state = tx.init(PARAMS)
    abstract = jax.eval_shape(lambda: PARAMS)
    assert_identical(jax.jit(tx.init)(PARAMS), state)
    assert_identical(tx.init(abstract), state)
    assert types(jax.eval_shape(tx.init, abstract)) == types(state)
    assert types(jax.eval_shape(tx.update, abstract, state, abstract)[1]) == types(state)


@every_preset
def test_chain_and_named_chain(name):
    doubled = jax.tree.map(lambda g: 2.0 * g, random_gradients())
    tx = optax.named_chain(
        ("rule", optax.chain(optax.scale(0.5), optimizer(name))), ("flip", optax.scale(-1.0))
    )
    assert_same(runner(tx)(doubled), jax.tree.map(jnp.negative, reference(name)))
    assert set(tx.init(PARAMS)) == {"rule", "flip"}


def float_count(state):
    return sum(x.size for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.floating))


@every_preset
def test_masked_leaves_are_left_alone_and_cost_nothing(name):
    tx = optax.masked(optimizer(name), {"w": True, "b": False})
    gradients = random_gradients()
    updates = runner(tx)(gradients)
    assert_same(updates["w"], reference(name)["w"])
    assert_identical(updates["b"], gradients["b"])
    assert float_count(tx.init(PARAMS)) == LEARNED[name].state_floats * PARAMS["w"].size


@every_preset
def test_partition_gives_each_leaf_its_own_optimizer(name):
    tx = optax.partition(
        {"learned": optimizer(name), "sgd": optax.sgd(0.5)}, {"w": "learned", "b": "sgd"}
    )
    gradients = random_gradients()
    updates = runner(tx)(gradients)
    assert_same(updates["w"], reference(name)["w"])
    assert_same(updates["b"], -0.5 * gradients["b"])
    assert float_count(tx.init(PARAMS)) == LEARNED[name].state_floats * PARAMS["w"].size


@every_preset
def test_an_injected_learning_rate_is_visible_and_editable(name):
    tx = optax.inject_hyperparams(learned_optimizer)(
        LEARNED[name], weights(name), learning_rate=RATE
    )
    gradient, state = first(random_gradients()), tx.init(PARAMS)
    np.testing.assert_allclose(state.hyperparams["learning_rate"], RATE)
    assert set(state.hyperparams) == {"learning_rate"}
    edited = state._replace(hyperparams={"learning_rate": jnp.float32(3 * RATE)})
    update = jax.jit(lambda state: tx.update(gradient, state, PARAMS)[0])
    expected = first(reference(name))
    assert_same(update(state), expected)
    assert_same(update(edited), jax.tree.map(lambda x: 3.0 * x, expected))


def halving(count):
    return RATE * 0.5 ** jnp.asarray(count, jnp.float32)


@every_preset
@pytest.mark.parametrize("injected", [False, True])
def test_the_learning_rate_may_be_a_schedule(name, injected):
    make = optax.inject_hyperparams(learned_optimizer) if injected else learned_optimizer
    tx = make(LEARNED[name], weights(name), learning_rate=halving)
    factors = jnp.asarray([[1.0], [0.5], [0.25]])
    assert_same(runner(tx)(random_gradients()["b"]), factors * reference(name)["b"])


@every_preset
def test_multi_steps_accumulates(name):
    twice = jnp.repeat(random_gradients()["b"], 2, axis=0)
    with jax.numpy_dtype_promotion("standard"):  # MultiSteps divides by an integer
        updates = runner(optax.MultiSteps(optimizer(name), 2))(twice)
    assert_same(updates[1::2], reference(name)["b"])
    assert not updates[::2].any()


@every_preset
def test_apply_if_finite_skips_a_nan(name):
    gradients, expected = random_gradients()["b"], reference(name)["b"]
    poisoned = gradients.at[1, 0].set(jnp.nan).at[2].set(gradients[1])
    updates = runner(optax.apply_if_finite(optimizer(name), 5))(poisoned)
    assert_same(updates, jnp.stack([expected[0], jnp.zeros(2), expected[1]]))


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


@every_preset
@pytest.mark.parametrize("container", CONTAINERS)
def test_any_container_will_do(name, container):
    tx, params = optimizer(name), CONTAINERS[container]
    state = tx.init(params)
    updates, after = jax.eval_shape(tx.update, params, state, params)
    assert types(updates) == types(jax.eval_shape(lambda: params))
    assert types(after) == types(state)


@pytest.mark.parametrize("name", [n for n, spec in LEARNED.items() if "layer" not in spec.inputs])
def test_a_container_changes_no_number_but_for_rules_that_read_layers(name):
    gradients = random_gradients()
    nested = Layer(gradients["w"], ({"b": gradients["b"]}, None, gradients["w"][..., :0]))
    updates = runner(optimizer(name))(nested)
    assert_same({"w": updates.kernel, "b": updates.rest[0]["b"]}, reference(name))
    assert updates.rest[1] is None
    assert updates.rest[2].shape == (3, 2, 0)


@coordinatewise_preset
def test_scalars_are_coordinates_too(name):
    updates = runner(optimizer(name))(random_gradients()["b"][:, 0])
    assert_same(updates, reference(name)["b"][:, 0])


@every_preset
def test_the_alias_descends_where_the_rule_ascends(name):
    ascent = runner(scale_by_learned_rule(LEARNED[name], weights(name)))(random_gradients()["b"])
    assert_same(-RATE * ascent, reference(name)["b"])


@coordinatewise_preset
def test_with_zero_heads_it_descends_a_quadratic(name):
    zero_heads = {
        network: {k: jnp.zeros_like(x) if k.startswith("head") else x for k, x in layers.items()}
        for network, layers in weights(name).items()
    }
    tx = learned_optimizer(LEARNED[name], zero_heads, 0.02)
    start = jnp.asarray([0.9, -0.5, 0.7])

    def body(carry, _):
        x, state = carry
        updates, state = tx.update(2.0 * x, state)
        return (optax.apply_updates(x, updates), state), jnp.sum(x**2)

    losses = jax.jit(lambda: jax.lax.scan(body, (start, tx.init(start)), None, 20)[1])()
    assert np.all(np.diff(losses) < 0)


@every_preset
def test_vmap_over_meta_parameters_learning_rates_and_agents(name):
    def updates(meta_parameters, rate, gradients):
        return runner(learned_optimizer(LEARNED[name], meta_parameters, rate))(gradients)

    other, own = weights(name, seed=1), weights(name)
    rates = jnp.asarray([RATE, 3 * RATE])
    agents = [random_gradients(seed=seed) for seed in (0, 1)]
    over_agents = jax.vmap(updates, (None, None, 0))
    over_rates = jax.vmap(over_agents, (None, 0, None))
    over_all = jax.jit(jax.vmap(over_rates, (0, None, None)))
    stack = lambda *xs: jnp.stack(xs)  # noqa: E731
    batched = over_all(
        jax.tree.map(stack, other, own), rates, jnp.stack([agent["b"] for agent in agents])
    )
    for agent, gradients in enumerate(agents):
        expected = plain(name)(gradients)["b"]
        assert_same(batched[1, 0, agent], expected)
        assert_same(batched[1, 1, agent], 3 * expected)
        assert not np.allclose(batched[0, 0, agent], expected, rtol=1e-2)


@coordinatewise_preset
def test_splitting_permuting_and_reshaping_leaves_commute_with_it(name):
    w = random_gradients()["w"]
    updates = runner(optimizer(name))((w[:, :1], w[:, 1:, ::-1].reshape(3, 3, 1)))
    joined = jnp.concatenate([updates[0], updates[1].reshape(3, 1, 3)[..., ::-1]], axis=1)
    assert_same(joined, reference(name)["w"])


@every_preset
def test_a_nan_stays_in_its_coordinate_for_good_or_in_its_tensor(name):
    gradients = random_gradients()
    updates = plain(name)({**gradients, "b": gradients["b"].at[1, 0].set(jnp.nan)})
    assert_identical(updates["w"], reference(name)["w"])
    reached = 0 if name in COORDINATEWISE else slice(None)
    expected = reference(name)["b"].at[1:, reached].set(jnp.nan)
    assert_same(updates["b"], expected)


@every_preset
def test_an_infinite_gradient_is_clipped(name):
    gradients = random_gradients()
    infinite, largest = (
        jax.tree.map(lambda g, x=x: g.at[1].set(x), gradients)
        for x in (-jnp.inf, -LEARNED[name].clip)
    )
    updates = plain(name)(infinite)
    assert_identical(updates, plain(name)(largest))
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(updates))


@pytest.mark.parametrize("name", [n for n in COORDINATEWISE if n != "linear"])
def test_all_but_the_linear_rule_leave_a_zero_gradient_alone(name):
    zeros = jax.tree.map(jnp.zeros_like, random_gradients())
    assert_identical(jax.tree.map(jnp.abs, plain(name)(zeros)), zeros)


@every_preset
def test_the_state_holds_what_the_spec_states_and_no_meta_parameters(name):
    state = optimizer(name).init(PARAMS)
    assert float_count(state) == LEARNED[name].state_floats * 8
    integers = [x for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.integer)]
    assert [x.shape for x in integers] == [()]


@every_preset
def test_sharding_is_preserved(name):
    mesh = jax.make_mesh((2,), ("x",), axis_types=(AxisType.Auto,))
    sharded = NamedSharding(mesh, PartitionSpec("x"))
    beneath = NamedSharding(mesh, PartitionSpec(None, "x"))  # state has one leading axis more
    tx = optimizer(name)
    gradient = jax.device_put(first(random_gradients()), sharded)
    state = tx.init(gradient)
    updates, after = jax.jit(tx.update)(gradient, state, ones_like(gradient))
    for x in jax.tree.leaves(updates):
        assert x.sharding.is_equivalent_to(sharded, x.ndim)
    for x in (*jax.tree.leaves(state), *jax.tree.leaves(after)):
        # A structure without moments has no coordinates there to lay out.
        assert x.ndim == 0 or x.size == 0 or x.sharding.is_equivalent_to(beneath, x.ndim)
    assert_same(updates, first(reference(name)))


@every_preset
def test_every_kernel_gives_the_same_numbers(name):
    """Leaves of any shape, a scalar and an empty one among them."""
    gradients = random_gradients({**PARAMS, "scalar": jnp.ones(()), "empty": jnp.ones((2, 0))})
    expected = runner(optimizer(name, kernel=None))(gradients)
    for kernel in KERNELS:
        if kernel.refusal(LEARNED[name]) is None:
            assert_same(runner(optimizer(name, kernel=kernel.name))(gradients), expected)


def noisy(gradients, **options):
    """The first update of OPEN on an actor and a critic."""
    tx = optimizer("open", kernel=None)
    params = ones_like(first(gradients))
    return tx.update(first(gradients), tx.init(params), params, **options)[0]


def test_noise_is_the_actors_alone_and_that_of_its_key():
    gradients = random_gradients(agent("policy", "value"))
    one, other = (noisy(gradients, noise_key=jax.random.key(seed)) for seed in (0, 1))
    assert_identical(one["value"], other["value"])
    assert (one["policy"]["kernel"] != other["policy"]["kernel"]).all()
    assert_identical(noisy(gradients, noise_key=jax.random.key(1)), other)
    assert_identical(noisy(gradients), noisy(gradients))


def test_dormancy_may_be_offered():
    gradients = random_gradients(agent("policy", "value"))
    plain, none, some = (
        noisy(gradients, **options)
        for options in (
            {},
            {"dormancy": jax.tree.map(jnp.zeros_like, first(gradients))},
            {"dormancy": ones_like(first(gradients))},
        )
    )
    assert_identical(plain, none)
    assert not np.allclose(plain["value"]["kernel"], some["value"]["kernel"], rtol=1e-2)


def test_a_kernel_that_cannot_run_a_rule_is_refused_with_the_reason():
    with pytest.raises(ValueError, match=r"^kernel = 'native': structure = 'linear'"):
        optimizer("linear", kernel="native")
    with pytest.raises(ValueError, match=r"^kernel = 'pallas': "):
        optimizer("anchored", kernel="pallas")
    with pytest.raises(ValueError, match=r"^kernel = 'cuda': known kernels are auto, .*xla$"):
        choose.__wrapped__(LEARNED["anchored"], "cuda")


def agent(policy, value):
    """A small actor and critic under names of the user's choice."""
    return {policy: {"kernel": jnp.ones((2, 3))}, value: {"kernel": jnp.ones((2, 1))}}


def test_a_rule_that_reads_kinds_is_told_them_by_names_or_by_the_user():
    gradients = random_gradients(agent("policy", "value"))
    inferred = runner(optimizer("generalist"))(gradients)
    renamed = dict(zip(("left", "right"), gradients.values(), strict=True))
    for kinds in (
        {"left": "policy_head", "right": "value_head"},
        lambda path, leaf: "policy_head" if path.startswith("left") else "value_head",
    ):
        given = runner(optimizer("generalist", kinds=kinds))(renamed)
        assert_identical([*given.values()], [*inferred.values()])
    unknown = runner(optimizer("generalist"))(renamed)
    assert not np.allclose(unknown["left"]["kernel"], given["left"]["kernel"], rtol=1e-2)
