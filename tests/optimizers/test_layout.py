"""What a parameter is for, told from its name and its shape in the trees that people have."""

from dataclasses import dataclass
from typing import NamedTuple, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest

from optim4rl.optimizers import infer_layout
from optim4rl.optimizers.layout import Tensor
from optim4rl.optimizers.tensors import Kind, is_centred, layer_scale, layout_of


def flax(*layers):
    return {name: {"bias": jnp.ones(3), "kernel": jnp.ones((3, 3))} for name in layers}


class Brax(NamedTuple):
    policy: dict
    value: dict


class Box(NamedTuple):
    value: jax.Array


@jax.tree_util.register_dataclass
@dataclass
class Module:
    """Fields in an order that is not the alphabet's."""

    torso: dict
    policy: dict
    critic: list


HIDDEN = [f"hidden_{i}" for i in range(12)]
SQUARE = jnp.ones((2, 2))
W, B, P, V = get_args(Kind)
TREES = {
    "bare leaf": (jnp.ones(2), [B]),
    "scalar": (1.0, [B]),
    "list": ([SQUARE, jnp.ones(2)], [W, B]),
    "nothing": (None, []),
    "flax": ({"params": flax("Dense_0", "actor", "critic")}, [B, W, P, P, V, V]),
    # hidden_11 is the last layer, though hidden_9 is the last name.
    "brax": (
        Brax({"params": flax(*HIDDEN)}, {"params": flax("hidden_0", "hidden_1")}),
        [*[B, W] * 3, P, P, *[B, W] * 8, B, W, V, V],
    ),
    "stable baselines": (
        {
            "action_net.bias": jnp.ones(2),
            "action_net.weight": SQUARE,
            "mlp_extractor.policy_net.0.weight": SQUARE,
            "mlp_extractor.policy_net.2.weight": SQUARE,
            "mlp_extractor.value_net.0.weight": SQUARE,
            "value_net.weight": SQUARE,
        },
        [P, P, W, W, W, V],
    ),
    "clean rl": (
        {
            "actor_logstd": jnp.ones((1, 2)),
            "actor_mean.0.weight": SQUARE,
            "actor_mean.2.bias": jnp.ones(2),
            "actor_mean.2.weight": SQUARE,
            "critic.10.weight": SQUARE,
            "critic.2.weight": SQUARE,
        },
        [P, W, P, P, V, W],
    ),
    "named last layer": (
        {"policy": flax("dense", "logits"), "vf": flax("fc", "out")},
        [B, W, P, P, B, W, V, V],
    ),
    "all that cannot be told": ({"policy": flax("left", "right")}, [P] * 4),
    "inside a policy": ({"policy": flax("action_net", "value_net")}, [P, P, V, V]),
    "actor critic": ({"ActorCritic_0": flax("Dense_0", "policyHead")}, [B, W, P, P]),
    "module": (
        Module(flax("dense"), flax("linear"), [SQUARE, jnp.ones(2)]),
        [B, W, P, P, V, V],
    ),
    "boxed": ({"dense": Box(SQUARE), "pi": Box(SQUARE)}, [W, P]),
    "equinox": (
        {"v": eqx.nn.MLP(2, 1, 4, 1, key=jax.random.key(0))},
        [W, B, V, V],
    ),
}


@pytest.mark.parametrize("name", TREES)
def test_kinds_are_inferred(name):
    tree, kinds = TREES[name]
    if name == "equinox":
        tree = eqx.filter(tree, eqx.is_array)
    assert [tensor.kind for tensor in infer_layout(tree)] == kinds


def test_a_layout_is_static_and_needs_shapes_alone():
    tree = {"a": jnp.ones((2, 3)), "policy": jnp.ones(4)}
    layout = infer_layout(jax.eval_shape(lambda: tree))
    assert layout == infer_layout(tree)
    assert hash(layout) == hash(infer_layout(tree))
    assert layout == (Tensor((2, 3), W, 0.0, outputs=1), Tensor((4,), P, 1.0, actor=True))


def test_fan_in_is_what_an_output_adds_up():
    """Outputs are the last axis of a kernel, and the first of a PyTorch or Equinox weight."""
    tree = {
        "bias": jnp.ones(7),
        "conv": {"kernel": jnp.ones((2, 2, 5, 16))},
        "linear.weight": jnp.ones((8, 3)),
        "log_std": jnp.ones((1, 2)),
        "module": eqx.nn.Conv2d(6, 4, 3, key=jax.random.key(0)),
        "w": jnp.ones((50, 256)),
        "weight_ih_l0": jnp.ones((12, 9)),
    }
    tree = eqx.filter(tree, eqx.is_array)
    found = [tensor.fan_in for tensor in infer_layout(tree)]
    assert found == [None, 2 * 2 * 5, 3, 1, 6 * 3 * 3, 4, 50, 9]
    assert layout_of([()], [(50, 2)])[0].fan_in == 50


@pytest.mark.parametrize(("fan_in", "scale"), [(0, 1), (4, 1), (32, 1), (64, 0.5), (2048, 1 / 64)])
def test_a_heads_steps_are_smaller_above_a_fan_in_of_32(fan_in, scale):
    for kind in (P, V):
        assert layer_scale(Tensor((fan_in, 2), kind, 0.0, outputs=1)) == scale
        assert layer_scale(Tensor((2, fan_in), kind, 0.0, outputs=0)) == scale
        assert layer_scale(Tensor((2,), kind, 0.0)) == 1
    for kind in (W, B):
        assert layer_scale(Tensor((fan_in, 2), kind, 0.0, outputs=1)) == 1


def test_wide_kernels_before_the_heads_are_centred():
    assert not is_centred(Tensor((32, 9), W, 0.0, outputs=1))
    assert is_centred(Tensor((33, 9), W, 0.0, outputs=1))
    assert is_centred(Tensor((9, 4, 3, 3), W, 0.0, outputs=0))
    assert not is_centred(Tensor((99,), B, 0.0))
    assert not is_centred(Tensor((99, 9), P, 0.0, outputs=1))


def test_before_the_heads_steps_are_smaller_where_a_network_sees_images():
    """In every layer, kernels and biases alike; the heads go by their fan-in, as elsewhere."""
    tree = {
        "conv": {"kernel": jnp.ones((2, 2, 5, 16)), "bias": jnp.ones(16)},
        "dense": {"kernel": jnp.ones((99, 64)), "bias": jnp.ones(64)},
        "policy": {"kernel": jnp.ones((64, 3)), "bias": jnp.ones(3)},
    }
    assert [layer_scale(tensor) for tensor in infer_layout(tree)] == [0.25] * 4 + [1, 0.5]
    tree["conv"]["kernel"] = jnp.ones((2, 5, 16))  # a convolution of sequences
    assert [layer_scale(tensor) for tensor in infer_layout(tree)] == [1] * 5 + [0.5]


@pytest.mark.parametrize(
    ("tree", "depths"),
    [
        (jnp.ones(2), [0.0]),
        (
            flax("layer_0", "layer_1", "layer_10", "layer_2"),
            [0, 0, 1 / 3, 1 / 3, 1, 1, 2 / 3, 2 / 3],
        ),
        # One torso, then the policy's two layers beside the value's one.
        (
            {"policy": flax("0", "1"), "torso": flax("dense"), "value": flax("0")},
            [0.5, 0.5, 1, 1, 0, 0, 1, 1],
        ),
        (Module(flax("z", "a"), flax("linear"), [SQUARE]), [0, 0, 0.5, 0.5, 1, 1, 1]),
        # A leaf beside layers comes after them.
        ({"actor": {**flax("Dense_0", "Dense_1"), "log_std": jnp.ones(2)}}, [0, 0, 0.5, 0.5, 1]),
    ],
)
def test_depth_is_the_layers_place(tree, depths):
    assert [tensor.depth for tensor in infer_layout(tree)] == pytest.approx(depths)


def test_kinds_may_be_given():
    tree = {"a": {"w": SQUARE, "b": jnp.ones(2)}, "z": SQUARE}
    kinds = lambda kinds: [tensor.kind for tensor in infer_layout(tree, kinds)]  # noqa: E731
    assert kinds({"a": {"w": V, "b": B}, "z": P}) == [B, V, P]
    assert kinds({"a": V, "z": W}) == [V, V, W]
    seen = {}

    def by_name(path, leaf):
        seen[path] = leaf.shape
        return V if path == "z" else None

    assert kinds(by_name) == [B, W, V]
    assert seen == {"a/b": (2,), "a/w": (2, 2), "z": (2, 2)}


def test_the_actor_is_what_serves_the_policy_alone():
    tree = {"torso": flax("dense"), "policy": flax("0", "1"), "value": flax("0")}
    actors = {path for path, t in zip("ppppttvv", infer_layout(tree), strict=True) if t.actor}
    assert actors == {"p"}
    assert [t.actor for t in infer_layout([SQUARE, SQUARE], [W, P])] == [False, True]


def test_masked_leaves_need_no_kind():
    tree = {"a": SQUARE, "b": None}
    assert [t.kind for t in infer_layout(tree, {"a": V, "b": P})] == [V]


@pytest.mark.parametrize(
    ("kinds", "message"),
    [
        ({"a": "head"}, "'head' is unknown; known kinds are weight, bias, policy_head, value_head"),
        ({"b": W}, "kinds = .*not a tree like the parameters'"),
        (lambda path, leaf: "kernel", "'kernel' is unknown"),
    ],
)
def test_bad_kinds_are_refused(kinds, message):
    with pytest.raises(ValueError, match=message):
        infer_layout({"a": SQUARE}, kinds)
