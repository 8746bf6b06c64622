"""The state of an optimizer: like Adam's moments it can be sharded, saved and restored."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx, serialization
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from test_transform import NAMES, assert_identical, assert_same, every_name, optimizer

PARAMS = {"actor": {"kernel": jnp.ones((4, 8)), "bias": jnp.ones(8)}, "scale": jnp.ones(())}
SPECS: dict[str, Any] = {"actor": {"kernel": P("x", "y"), "bias": P("y")}, "scale": P()}


def tiny_updates(tx, params=PARAMS, steps=2):
    state = tx.init(params)
    for step in range(1, steps + 1):
        gradient = jax.tree.map(lambda p, step=step: jnp.sin(step + p), params)
        updates, state = tx.update(gradient, state, params)
    return updates, state


@every_name
def test_the_state_is_so_many_trees_like_the_parameters(name):
    """None of size zero, which Orbax and others cannot save."""
    state = optimizer(name).init(PARAMS)
    for tree in state[0].memory:
        assert jax.tree.structure(tree) == jax.tree.structure(PARAMS)
        assert jax.tree.map(jnp.shape, tree) == jax.tree.map(jnp.shape, PARAMS)
    assert all(x.size for x in jax.tree.leaves(state))


@every_name
def test_specs_of_parameters_are_specs_of_the_state(name):
    tx = optimizer(name)
    specs = optax.tree_map_params(
        tx, lambda _, spec: spec, tx.init(PARAMS), SPECS, transform_non_params=lambda _: P()
    )
    assert all(tree == SPECS for tree in specs[0].memory)
    assert specs[0].count == P()


@every_name
def test_boxes_of_parameters_are_boxes_of_the_state(name):
    """Flax's logical axes, as MaxText and others have them."""
    boxed = nn.Partitioned(jnp.ones((4, 8)), names=("embed", "mlp"))
    state = jax.eval_shape(optimizer(name).init, {"kernel": boxed})
    found = nn.get_partition_spec(state)[0].memory
    assert all(tree == {"kernel": P("embed", "mlp")} for tree in found)


@pytest.mark.parametrize("name", ["optim4rl-catch", "ppo-generalist"])
def test_a_sharded_state_gives_the_same_numbers_and_stays_where_it_is(name):
    mesh = jax.make_mesh((2, 2), ("x", "y"), axis_types=(AxisType.Auto,) * 2)
    place = {
        "actor": {k: NamedSharding(mesh, spec) for k, spec in SPECS["actor"].items()},
        "scale": NamedSharding(mesh, P()),
    }
    tx = optimizer(name)
    expected, _ = tiny_updates(tx)
    gradient = jax.tree.map(jnp.sin, jax.tree.map(lambda x: 1 + x, PARAMS))
    state = tx.update(gradient, tx.init(PARAMS), PARAMS)[1]
    everywhere = NamedSharding(mesh, P())
    shardings = optax.tree_map_params(
        tx, lambda _, x: x, state, place, transform_non_params=lambda _: everywhere
    )
    params, state = jax.device_put(PARAMS, place), jax.device_put(state, shardings)
    second = jax.device_put(jax.tree.map(lambda x: jnp.sin(2 + x), PARAMS), place)
    updates, after = jax.jit(tx.update, out_shardings=(place, shardings))(second, state, params)
    assert_same(updates, expected)
    for tree in after[0].memory:
        kept = jax.tree.map(lambda x, at: x.sharding.is_equivalent_to(at, x.ndim), tree, place)
        assert all(jax.tree.leaves(kept))


@pytest.mark.parametrize("name", ["optim4rl-catch", "ppo-generalist", "scaled-generalist"])
def test_explicit_shardings_stay_without_jit_too(name):
    """Of a convolution, whose axes a rule may merge."""
    mesh = jax.make_mesh((4,), ("x",), axis_types=(AxisType.Explicit,))
    tx = optimizer(name)
    values = np.random.default_rng(0).normal(size=(2, 3, 4, 4)).astype(np.float32)
    plain = {"conv": jnp.asarray(values)}
    expected, _ = tx.update(plain, tx.init(plain), plain)
    with jax.set_mesh(mesh):
        params = jax.device_put(plain, NamedSharding(mesh, P(None, None, "x")))
        state = tx.init(params)
        updates, after = tx.update(params, state, params)
        assert jax.tree.map(jax.typeof, after) == jax.tree.map(jax.typeof, state)
        assert jax.typeof(updates["conv"]) == jax.typeof(params["conv"])
    assert_same(updates, expected)


def test_orbax_and_flax_bring_every_state_back_bit_for_bit(tmp_path):
    states = {name: tiny_updates(optimizer(name))[1] for name in NAMES}
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "states", states)
        checkpointer.wait_until_finished()
        like = jax.tree.map(ocp.utils.to_shape_dtype_struct, states)
        assert_identical(checkpointer.restore(tmp_path / "states", like), states)
    for name, state in states.items():
        blank = optimizer(name).init(PARAMS)
        back = serialization.from_bytes(blank, serialization.to_bytes(state))
        assert jax.tree.structure(back) == jax.tree.structure(state)
        assert_identical(back, state)


def test_nnx_gives_the_same_numbers():
    """Of sixteen numbers to remember: as text 10 would come before 2."""

    class Model(nnx.Module):
        def __init__(self):
            self.kernel = nnx.Param(jnp.ones((2, 3)))

    tx = optimizer("optim4rl-catch")
    model = Model()
    wrapped = nnx.Optimizer(model, tx, wrt=nnx.Param)
    params, state = {"kernel": jnp.ones((2, 3))}, tx.init({"kernel": jnp.ones((2, 3))})
    for step in range(3):
        gradient = jnp.sin(jnp.arange(6.0) + step).reshape(2, 3)
        wrapped.update(model, jax.tree.map(lambda _, g=gradient: g, nnx.state(model, nnx.Param)))
        updates, state = tx.update({"kernel": gradient}, state, params)
        params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(model.kernel.get_value(), params["kernel"], rtol=1e-6)
