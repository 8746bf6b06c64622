"""The PyTorch optimizer: JAX's updates, and the manners of a `torch.optim.Optimizer`."""

import copy
import dataclasses
import io
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import optim4rl
from optim4rl.optimizers import (
    LEARNED,
    LearnedOptimizer,
    OptimizerSpec,
    WeightsError,
    infer_layout,
    init_meta_parameters,
    processing as jax_processing,
    save_weights,
    shipped_names,
    structures as jax_structures,
)
from optim4rl.tasks import TaskConfig, make_task
from optim4rl.torch import Optim4RL
from optim4rl.torch.rule import Given, load_rule

torch.set_num_threads(1)
SHAPES = {
    "torso.weight": (2, 3, 2),
    "policy_head.weight": (4, 4),
    "value_head.bias": (),
    "wide_policy_head.weight": (2, 40),  # more units than `layer_scale` leaves alone
    "wide_torso.weight": (2, 40),  # and more than `is_centred` does
    "conv.weight": (3, 2, 2, 2),
}
# Beside the presets: the cells, structures and processings that they leave out.
OTHERS = {
    "lstm": OptimizerSpec(
        processing=jax_processing.Symlog(), structure=jax_structures.NonAdaptive(), cell="lstm"
    ),
    "no-cell": OptimizerSpec(processing=jax_processing.Andrychowicz(), cell="none", clip=None),
    # Its network reads nothing but what a tensor is for.
    "uses-alone": dataclasses.replace(
        LEARNED["modulated"],
        structure=jax_structures.Modulated(
            training=False, epochs=False, age=False, noise=False, size=False
        ),
    ),
}
SPECS = {**LEARNED, **OTHERS}
STEPS = 100
ANCHORED = "anchored-catch"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A weights file for each rule, with weights that are nowhere zero; shipped ones by name."""
    folder = tmp_path_factory.mktemp("weights")
    rng = np.random.default_rng(0)
    found = {name: name for name in shipped_names()}
    for name, spec in SPECS.items():
        like = jax.eval_shape(partial(init_meta_parameters, spec), jax.random.key(0))
        weights = jax.tree.map(lambda x: jnp.asarray(rng.normal(0, 0.3, x.shape), x.dtype), like)
        if name == "open":  # JAX and torch draw other noise; here it has no weight
            last = weights["network0"]
            last |= {key: last[key].at[2].set(0.0) for key in ("head2", "head2_bias")}
        found[name] = str(folder / f"{name}.safetensors")
        save_weights(found[name], LearnedOptimizer(spec, weights, 1e-2))
    return found


@pytest.fixture(scope="module")
def met():
    """Gradients of many magnitudes, zeros among them, and parameters, for 100 steps."""
    rng = np.random.default_rng(1)
    gradients, params = {}, {}
    for name, shape in SHAPES.items():
        size = 10.0 ** rng.uniform(-8, 1, (1, *shape))
        x = size * rng.normal(size=(STEPS, *shape)) * (rng.random((STEPS, *shape)) < 0.9)
        gradients[name] = x.astype(np.float32)
        params[name] = rng.normal(0, 0.1, (STEPS, *shape)).astype(np.float32)
    return gradients, params


def jax_updates(weights, gradients, params):
    """The update at each step over recorded gradients and parameters."""
    tx = optim4rl.load(weights)

    @jax.jit
    def run(gradients, params):
        def body(state, met):
            updates, state = tx.update(met[0], state, met[1])
            return state, updates

        first = jax.tree.map(lambda x: x[0], params)
        return jax.lax.scan(body, tx.init(first), (gradients, params))[1]

    return jax.tree.map(np.asarray, run(gradients, params))


def torch_updates(weights, gradients, params):
    leaves = parameters({name: x[0] for name, x in params.items()})
    optimizer = Optim4RL(leaves.items(), weights)
    updates = {name: np.empty_like(x) for name, x in gradients.items()}
    for t in range(STEPS):
        for name, p in leaves.items():
            p.data.copy_(torch.tensor(params[name][t]))
            p.grad = torch.tensor(gradients[name][t])
        optimizer.step()
        for name, p in leaves.items():
            updates[name][t] = p.detach().numpy() - params[name][t]
    return updates


def parameters(values):
    return {name: torch.nn.Parameter(torch.tensor(x)) for name, x in values.items()}


@pytest.mark.parametrize("name", [*SPECS, *shipped_names()])
def test_updates_are_those_of_jax(name, files, met):
    gradients, params = met
    if not load_rule(files[name]).spec.structure.reads:
        params = jax.tree.map(np.zeros_like, params)  # so that updates are exact
    expected = jax_updates(files[name], gradients, params)
    actual = torch_updates(files[name], gradients, params)
    for key, updates in expected.items():
        assert np.abs(updates).max() > 1e-5
        np.testing.assert_allclose(actual[key], updates, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "weights",
    [
        pytest.param(name, marks=() if name == "anchored-catch" else pytest.mark.slow)
        for name in shipped_names()
    ],
)
def test_a_run_of_catch_leaves_the_parameters_of_jax(weights):
    """A2C on Catch for 100 updates in JAX; torch meets the same gradients."""
    task = make_task(TaskConfig("catch", num_envs=4, width=16))
    key = jax.random.key(0)
    first = task.init_params(key)
    tx = optim4rl.load(weights)

    @jax.jit
    def train(params, actor):
        def body(carry, key):
            params, actor, state = carry
            batch, actor, _ = task.rollout(params, actor, key)
            gradient = task.gradient(params, batch)
            updates, state = tx.update(gradient, state, params)
            params = jax.tree.map(jnp.add, params, updates)
            return (params, actor, state), (gradient, params)

        carry = (params, actor, tx.init(params))
        return jax.lax.scan(body, carry, jax.random.split(key, STEPS))[1]

    gradients, params = jax.tree.map(np.asarray, train(first, task.init_actor(key)))
    names = [
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, _ in jax.tree_util.tree_leaves_with_path(first)
    ]
    leaves = [torch.nn.Parameter(torch.tensor(np.asarray(x))) for x in jax.tree.leaves(first)]
    optimizer = Optim4RL(zip(names, leaves, strict=True), weights)
    for t in range(STEPS):
        for p, gradient in zip(leaves, jax.tree.leaves(gradients), strict=True):
            p.grad = torch.tensor(gradient[t])
        optimizer.step()
    for p, before, after in zip(
        leaves, jax.tree.leaves(first), jax.tree.leaves(params), strict=True
    ):
        assert np.abs(after[-1] - before).max() > 1e-2
        np.testing.assert_allclose(p.detach().numpy(), after[-1], rtol=1e-5, atol=1e-5)


# What each parameter is for.

STABLE_BASELINES = {
    "mlp_extractor.policy_net.0.weight": (4, 3),
    "mlp_extractor.policy_net.2.weight": (4, 4),
    "mlp_extractor.value_net.0.weight": (4, 3),
    "action_net.weight": (2, 4),
    "action_net.bias": (2,),
    "value_net.weight": (1, 4),
    "value_net.bias": (1,),
}


def test_kinds_are_inferred_as_in_jax(files):
    arrays = {name: np.ones(shape, np.float32) for name, shape in STABLE_BASELINES.items()}
    layout = dict(zip(sorted(arrays), infer_layout(arrays), strict=True))
    params = list(parameters(arrays).items())
    groups = [{"params": params[:3]}, {"params": params[3:]}]
    optimizer = Optim4RL(groups, files["generalist"])
    found = [tensor for layout in optimizer._layouts for tensor in layout]
    assert found == [layout[name] for name in arrays]
    assert {tensor.kind for tensor in found} == {"weight", "policy_head", "value_head"}


@pytest.mark.parametrize(
    "kinds",
    [{"1": "policy_head"}, lambda name, p: "policy_head" if p.ndim == 2 else None],
)
def test_kinds_can_be_given(kinds, files):
    shapes = [(2, 2, 2), (2, 2), (2,)]
    optimizer = Optim4RL([torch.zeros(shape) for shape in shapes], files["generalist"], kinds=kinds)
    kinds_found = [tensor.kind for tensor in optimizer._layouts[0]]
    assert kinds_found == ["weight", "policy_head", "bias"]


def test_unknown_kinds_and_names_are_refused(files):
    with pytest.raises(ValueError, match="'head' is unknown; known kinds are weight"):
        Optim4RL([torch.zeros(2)], files["generalist"], kinds={"0": "head"})
    with pytest.raises(ValueError, match=r"kinds: no parameter is called 'fc\.weight'"):
        Optim4RL([torch.zeros(2)], files["generalist"], kinds={"fc.weight": "weight"})


def test_parameters_without_names_are_warned_of_where_names_matter(files):
    with pytest.warns(UserWarning, match=r"give model\.named_parameters\(\), or kinds"):
        Optim4RL([torch.zeros(2)], files["generalist"])


# The manners of a torch optimizer.


def regression(dtype=torch.float32):
    """A small network, and a function that leaves its gradients."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
    net = net.to(dtype)
    x = torch.randn(32, 3, dtype=dtype)

    def loss():
        net.zero_grad()
        value = (net(x) - x.sum(1, keepdim=True)).square().mean()
        value.backward()
        return value

    return net, loss


def values(net):
    return [p.detach().clone() for p in net.parameters()]


def assert_equal(actual, expected):
    for x, y in zip(actual, expected, strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=0)


def test_it_learns_and_a_closure_gives_the_loss():
    net, loss = regression()
    optimizer = Optim4RL(net.parameters(), ANCHORED)
    losses = [optimizer.step(loss).item() for _ in range(60)]
    assert losses[-1] < 0.02 * losses[0]
    optimizer.zero_grad()
    assert all(p.grad is None for p in net.parameters())


def test_without_a_name_it_runs_the_recommended_weights():
    net, loss = regression()
    optimizer = Optim4RL(net.named_parameters())
    twin, its_loss = regression()
    named = Optim4RL(twin.named_parameters(), "ppo-generalist", lr=1e-2)
    for _ in range(3):
        optimizer.step(loss)
        named.step(its_loss)
    assert optimizer.defaults == {"lr": 1e-2, "step_scale": 1.0}
    assert_equal(values(net), values(twin))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_saved_state_goes_on_bit_for_bit(dtype):
    net, loss = regression(dtype)
    optimizer = Optim4RL(net.named_parameters(), ANCHORED, lr=1e-2)
    for _ in range(3):
        optimizer.step(loss)
    file = io.BytesIO()
    torch.save([net.state_dict(), optimizer.state_dict()], file)
    for _ in range(3):
        optimizer.step(loss)

    other, its_loss = regression(dtype)
    resumed = Optim4RL(other.named_parameters(), ANCHORED, lr=7.0)
    file.seek(0)
    weights, state = torch.load(file, weights_only=True)
    other.load_state_dict(weights)
    resumed.load_state_dict(state)
    for _ in range(3):
        resumed.step(its_loss)
    assert_equal(values(other), values(net))
    assert {x["memory"].dtype for x in resumed.state.values()} == {torch.float32}


def test_a_copy_goes_on_by_itself():
    net, loss = regression()
    optimizer = Optim4RL(net.parameters(), ANCHORED)
    optimizer.step(loss)
    before = values(net)
    _, twin = copy.deepcopy((net, optimizer))
    for group in twin.param_groups:
        for p in group["params"]:
            p.grad = torch.ones_like(p)
    twin.step()
    assert_equal(values(net), before)


def test_a_state_of_other_weights_is_refused():
    net, loss = regression()
    optimizer = Optim4RL(net.parameters(), "optim4rl-catch")
    optimizer.step(loss)
    state = optimizer.state_dict()
    with pytest.raises(ValueError, match="parameter 0: these weights need a memory of 11"):
        Optim4RL(net.parameters(), ANCHORED).load_state_dict(state)


def one_step(gradients, **options):
    params = [torch.nn.Parameter(torch.zeros(len(g))) for g in gradients]
    for p, gradient in zip(params, gradients, strict=True):
        p.grad = torch.tensor(gradient)
    Optim4RL(params, **{"weights": ANCHORED, **options}).step()
    return [p.detach() for p in params]


def test_groups_have_rates_and_scales_of_their_own():
    gradients = [[0.5, -0.3], [0.1]]
    reference = one_step(gradients, lr=1e-2)
    params = [torch.nn.Parameter(torch.zeros(len(g))) for g in gradients]
    optimizer = Optim4RL([{"params": [params[0]], "lr": 2e-2}], ANCHORED, lr=1e-2, step_scale=2.0)
    optimizer.add_param_group({"params": [params[1]], "step_scale": 0.5})
    for p, gradient in zip(params, gradients, strict=True):
        p.grad = torch.tensor(gradient)
    optimizer.step()
    for p, expected, factor in zip(params, reference, (4.0, 0.5), strict=True):
        torch.testing.assert_close(p.detach(), factor * expected)


@pytest.mark.parametrize("rate", [1.0, torch.tensor(1.0)])
def test_schedulers_move_the_rate(rate):
    p = torch.nn.Parameter(torch.zeros(2))
    optimizer = Optim4RL([p], ANCHORED, lr=rate)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.0)
    p.grad = torch.ones(2)
    optimizer.step()
    moved = p.detach().clone()
    schedule.step()
    optimizer.step()
    assert moved.abs().min() > 0.1
    torch.testing.assert_close(p.detach(), moved)


def test_parameters_without_a_gradient_wait():
    """One that comes later is as old as its own gradients."""
    late, early = (torch.nn.Parameter(torch.zeros(3)) for _ in range(2))
    optimizer = Optim4RL([early, late], ANCHORED)
    for t in range(5):
        early.grad = torch.full((3,), 0.1 * (t + 1))
        if t >= 2:
            late.grad = torch.full((3,), 0.1 * (t - 1))
        optimizer.step()
        if t < 2:
            assert late not in optimizer.state
            assert not late.detach().any()
        if t == 2:
            first = early.detach().clone()
    assert optimizer.state[late]["step"] == 3
    alone = torch.nn.Parameter(torch.zeros(3))
    optimizer = Optim4RL([alone], ANCHORED)
    for t in range(3):
        alone.grad = torch.full((3,), 0.1 * (t + 1))
        optimizer.step()
    torch.testing.assert_close(late.detach(), alone.detach())
    torch.testing.assert_close(late.detach(), first)


def test_parameters_keep_their_dtype_and_state_is_float32():
    p = torch.nn.Parameter(torch.zeros(3, dtype=torch.bfloat16))
    p.grad = torch.ones_like(p)
    optimizer = Optim4RL([p], ANCHORED)
    optimizer.step()
    assert p.dtype == torch.bfloat16
    assert optimizer.state[p]["memory"].dtype == torch.float32
    assert optimizer.state[p]["memory"].shape == (11, 3)


def test_a_nan_stays_in_its_own_coordinate():
    clean, dirty = one_step([[0.5, 0.1, 0.2]])[0], one_step([[0.5, float("nan"), 0.2]])[0]
    assert dirty.isnan().tolist() == [False, True, False]
    torch.testing.assert_close(dirty[[0, 2]], clean[[0, 2]])


@pytest.mark.parametrize("name", ["anchored-catch", "generalist", "star"])
def test_empty_tensors_change_nothing(name, files):
    options = {"weights": files[name], "kinds": lambda name, p: "weight"}
    full, _ = one_step([[0.5, 0.1], []], **options)
    torch.testing.assert_close(full, one_step([[0.5, 0.1]], **options)[0])


def test_what_cannot_be_done_is_refused():
    p = torch.nn.Parameter(torch.zeros(3, 2))
    where, entry = torch.tensor([[0], [1]]), torch.tensor([1.0])
    p.grad = torch.sparse_coo_tensor(where, entry, (3, 2), check_invariants=True)
    with pytest.raises(RuntimeError, match="sparse gradients"):
        Optim4RL([p], ANCHORED).step()
    with pytest.raises(ValueError, match=r"parameter fc is torch\.complex64"):
        Optim4RL([("fc", torch.zeros(2, dtype=torch.complex64, requires_grad=True))])
    options: Any
    for options in ({"lr": -1.0}, {"lr": float("nan")}, {"step_scale": float("inf")}):
        with pytest.raises(ValueError, match=next(iter(options))):
            Optim4RL([torch.zeros(2)], ANCHORED, **options)


class Operations(TorchDispatchMode):
    """Counts the operations that torch runs."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func.overloadpacket not in VIEWS
        return func(*args, **(kwargs or {}))


VIEWS = {torch.ops.aten.view, torch.ops.aten.detach, torch.ops.aten.zeros, torch.ops.aten.alias}


@pytest.mark.parametrize("name", ["anchored-catch", "generalist"])
def test_many_tensors_cost_one_pass(name, files):
    def operations(tensors):
        params = {f"fc{i}.weight": torch.nn.Parameter(torch.zeros(2, 2)) for i in range(tensors)}
        optimizer = Optim4RL(params.items(), files[name])
        for p in params.values():
            p.grad = torch.ones_like(p)
        with Operations() as counted:
            optimizer.step()
        return counted.count

    assert operations(40) == operations(2)


def test_noise_is_drawn_for_the_actor_alone(tmp_path):
    # The mean that is subtracted would carry the actor's noise to the critic.
    spec = dataclasses.replace(LEARNED["open"], zero_mean=False)
    weights = init_meta_parameters(spec, jax.random.key(0))
    path = tmp_path / "open.safetensors"
    save_weights(path, LearnedOptimizer(spec, weights, 1e-2))
    rule = load_rule(path)
    names = ("policy_head.weight", "value_head.weight")
    layout = infer_layout({name: np.ones((1, 4)) for name in names})
    rows = rule.spec.state_floats
    given = Given(torch.ones(8), torch.zeros(rows, 8), torch.zeros(2), torch.ones(8), layout)
    quiet = rule.step(given, torch.zeros(8))[0]
    drawn = []
    for _ in range(2):
        torch.manual_seed(0)
        drawn.append(rule.step(given)[0] - quiet)
    torch.testing.assert_close(drawn[0], drawn[1])
    assert drawn[0][:4].abs().min() > 1e-4
    assert not drawn[0][4:].any()


def test_the_length_of_the_run_tells_how_much_is_done(files, met):
    """It is the same as the share told at every step; beyond its end a run is done."""
    gradients, params = met

    def run(tell, **options):
        leaves = parameters({name: x[0] for name, x in params.items()})
        optimizer = Optim4RL(leaves.items(), files["modulated"], **options)
        for t in range(5):
            for name, p in leaves.items():
                p.grad = torch.tensor(gradients[name][t])
            optimizer.step(**tell(t))
        return torch.cat([p.detach().flatten() for p in leaves.values()])

    counted = run(lambda t: {}, total_updates=3)
    told = run(lambda t: {"training_proportion": min(t / 2, 1.0)})
    torch.testing.assert_close(counted, told, rtol=0, atol=0)
    assert not torch.equal(counted, run(lambda t: {}))


def test_a_parameter_that_was_frozen_is_told_the_share_of_the_whole_run(files):
    """As in JAX, whichever parameter comes first."""
    leaves = parameters(
        {"frozen": np.ones((2, 3), np.float32), "free": np.ones((3, 2), np.float32)}
    )
    weights = {}
    for name, thawed in (("counted", {}), ("told", {"training_proportion": 1.0})):
        mine = {key: p.detach().clone().requires_grad_() for key, p in leaves.items()}
        optimizer = Optim4RL(mine.items(), files["modulated"], total_updates=3)
        for step in range(3):
            mine["free"].grad = torch.ones(3, 2)
            mine["frozen"].grad = torch.ones(2, 3) if step == 2 else None
            optimizer.step(**(thawed if step == 2 else {}))
        weights[name] = mine["frozen"].detach()
    torch.testing.assert_close(weights["counted"], weights["told"], rtol=0, atol=0)


def test_the_length_of_a_run_is_a_count():
    with pytest.raises(ValueError, match="total_updates = 0: a number of at least 1"):
        Optim4RL([torch.zeros(2)], total_updates=0)


# Files.


def test_files_that_cannot_be_used_are_refused(files, tmp_path):
    with pytest.raises(WeightsError, match="shipped weights are anchored-catch"):
        Optim4RL([torch.zeros(2)], "nobody")
    contents = bytearray((tmp_path.parent / files["anchored"]).read_bytes())
    contents[-1] ^= 1
    path = tmp_path / "flipped.safetensors"
    path.write_bytes(contents)
    with pytest.raises(WeightsError, match="corrupt"):
        Optim4RL([torch.zeros(2)], path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"structure": {"name": "nobody"}},
            "structure = {'name': 'nobody'}: known names are adaptive",
        ),
        (
            {"processing": {"name": "sign_log", "z": 1.0}},
            r"processing\.z = 1\.0: known settings are epsilon",
        ),
        ({"cell": "rnn"}, "cell = 'rnn': known values are gru"),
        ({"normalise": "max"}, "normalise = 'max': known values are none, rms, layers, orthogonal"),
        ({"inputs": ["age"]}, r"inputs = \('age',\): known values are kind, layer"),
        ({"hidden_size": 9}, r"tensor network0\.\w+ is float32\[.*the spec needs"),
        ({"magic": 1}, r"fields \['magic'\] are missing or unknown"),
    ],
)
def test_rules_that_are_not_there_are_refused(change, message, files, tmp_path):
    from optim4rl.optimizers.weight_files import read_weights, weights_as_bytes

    file = read_weights(files["anchored"])
    path = tmp_path / "changed.safetensors"
    path.write_bytes(weights_as_bytes({**file.spec, **change}, 1e-2, {}, file.tensors))
    with pytest.raises(WeightsError, match=message) as error:
        Optim4RL([torch.zeros(2)], path)
    assert str(path) in str(error.value)
