"""What users and libraries do to a PyTorch optimizer: load states, change groups, set defaults."""

import collections
import copy
import warnings

import pytest
import torch
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

from optim4rl.optimizers.weight_files import shipped_names
from optim4rl.torch import Optim4RL

torch.set_num_threads(1)
every_weights = pytest.mark.parametrize("weights", shipped_names())
FEW = ("anchored-catch", "optim4rl-catch", "ppo-generalist", "scaled-generalist")
few_weights = pytest.mark.parametrize("weights", FEW)


def network(order=("one", "two"), dtype=torch.float32):
    """Two layers, registered in an order."""
    torch.manual_seed(0)
    made = {"one": torch.nn.Linear(3, 3), "two": torch.nn.Linear(3, 3)}
    return torch.nn.ModuleDict({name: made[name] for name in order}).to(dtype)


def train(net, optimizer, steps, seed=5):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        optimizer.zero_grad()
        x = torch.randn(8, 3, generator=generator, dtype=torch.float32).to(net["one"].weight.dtype)
        net["two"](net["one"](x).tanh()).square().mean().backward()
        optimizer.step()


def assert_equal(net, other):
    others = dict(other.named_parameters())
    for name, x in net.named_parameters():
        torch.testing.assert_close(others[name], x, rtol=0, atol=0)


# Loading a state.


@few_weights
@pytest.mark.parametrize("flatten", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_state_keyed_by_names_goes_on_bit_for_bit(weights, flatten, dtype):
    net = network(dtype=dtype)
    groups = [
        {"params": net[x].named_parameters(), "lr": lr} for x, lr in (("one", 1e-2), ("two", 2e-2))
    ]
    optimizer = Optim4RL(groups, weights)
    train(net, optimizer, 3)
    options = StateDictOptions(flatten_optimizer_state_dict=flatten)
    saved = copy.deepcopy(get_optimizer_state_dict(net, optimizer, options=options))
    other = network(dtype=dtype)
    other.load_state_dict(net.state_dict())
    resumed = Optim4RL([{"params": other[x].named_parameters()} for x in ("one", "two")], weights)
    set_optimizer_state_dict(other, resumed, saved, options=options)
    train(net, optimizer, 3)
    train(other, resumed, 3)
    assert_equal(net, other)
    assert {x["memory"].dtype for x in resumed.state.values()} == {torch.float32}


def by_name(optimizer, state_dict):
    """Put the states of a state dict in the order of an optimizer's parameters."""
    groups = [dict(group) for group in state_dict["param_groups"]]
    for mine, theirs in zip(optimizer.param_groups, groups, strict=True):
        where = dict(zip(theirs["param_names"], theirs["params"], strict=True))
        theirs["params"] = [where[name] for name in mine["param_names"]]
        theirs["param_names"] = list(mine["param_names"])
    return {"state": dict(state_dict["state"]), "param_groups": groups}


@few_weights
def test_hooks_decide_which_state_is_whose(weights):
    net, other = network(), network(("two", "one"))
    optimizer = Optim4RL(net.named_parameters(), weights)
    train(net, optimizer, 3)
    other.load_state_dict(net.state_dict())
    resumed = Optim4RL(other.named_parameters(), weights)
    seen = []
    resumed.register_load_state_dict_pre_hook(by_name)
    resumed.register_load_state_dict_post_hook(
        lambda x: seen.append(x.state[other["one"].weight]["memory"].clone()), prepend=True
    )
    resumed.load_state_dict(optimizer.state_dict())
    assert torch.equal(seen[0], optimizer.state[net["one"].weight]["memory"])
    train(net, optimizer, 3)
    train(other, resumed, 3)
    assert_equal(net, other)


def test_a_hook_may_translate_the_state_of_another_format():
    net, other = network(), network()
    optimizer = Optim4RL(net.named_parameters())
    train(net, optimizer, 2)
    foreign = optimizer.state_dict()
    foreign["state"] = {
        f"p{k}": {"m": x["memory"], "step": x["step"]} for k, x in foreign["state"].items()
    }
    for group in foreign["param_groups"]:
        group["params"] = [f"p{k}" for k in group["params"]]

    def translate(_, state_dict):
        state = {k: {"memory": x["m"], "step": x["step"]} for k, x in state_dict["state"].items()}
        return {**state_dict, "state": state}

    other.load_state_dict(net.state_dict())
    resumed = Optim4RL(other.named_parameters())
    resumed.register_load_state_dict_pre_hook(translate)
    resumed.load_state_dict(foreign)
    train(net, optimizer, 2)
    train(other, resumed, 2)
    assert_equal(net, other)


def test_a_loaded_state_is_a_copy_and_may_lack_parameters():
    net = network()
    optimizer = Optim4RL(net.named_parameters())
    net["one"].requires_grad_(False)
    train(net, optimizer, 2)
    saved = optimizer.state_dict()
    before = copy.deepcopy(saved["state"])
    other = network()
    resumed = Optim4RL(other.named_parameters())
    resumed.load_state_dict(saved)
    train(other, resumed, 1)
    assert set(before) == {2, 3}
    for index, state in before.items():
        assert torch.equal(saved["state"][index]["memory"], state["memory"])
    assert resumed.state[other["one"].weight]["step"] == 1
    assert resumed.state[other["two"].weight]["step"] == 3


@pytest.mark.parametrize("change", [lambda x: x[:2], lambda x: x[:, :5]])
def test_a_state_that_does_not_fit_is_refused_and_changes_nothing(change):
    net = network()
    optimizer = Optim4RL(net.named_parameters(), lr=1e-2)
    train(net, optimizer, 2)
    saved = copy.deepcopy(optimizer.state_dict())
    saved["param_groups"][0]["lr"] = 7.0
    saved["state"][0]["memory"] = change(saved["state"][0]["memory"])
    twin_net, twin = copy.deepcopy((net, optimizer))
    with pytest.raises(ValueError, match=r"numbers for each coordinate|has 5 coordinates; "):
        optimizer.load_state_dict(saved)
    train(net, optimizer, 2)
    train(twin_net, twin, 2)
    assert_equal(net, twin_net)
    optimizer.load_state_dict(twin.state_dict())  # and no hook is left behind


# Groups that change in place.


def started(weights):
    net = network()
    optimizer = Optim4RL([{"params": list(x.parameters())} for x in net.values()], weights)
    train(net, optimizer, 2)
    optimizer.zero_grad()
    return net, optimizer


def add_to_a_group(optimizer):
    optimizer.param_groups[0]["params"].append(torch.nn.Parameter(torch.ones(2, 5)))


def add_a_group(optimizer):
    optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(2, 5))]})


def append_a_group(optimizer):
    group = {**optimizer.defaults, "params": [torch.nn.Parameter(torch.ones(2, 5))]}
    optimizer.param_groups.insert(0, group)


def remove_a_group(optimizer):
    del optimizer.param_groups[0]


def remove_a_parameter(optimizer):
    del optimizer.param_groups[1]["params"][0]


def exchange_a_parameter(optimizer):
    optimizer.param_groups[1]["params"][0] = torch.nn.Parameter(torch.ones(4, 2))


def exchange_the_list(optimizer):
    optimizer.param_groups[0]["params"] = [torch.nn.Parameter(torch.ones(2)) for _ in range(3)]


def exchange_data(optimizer):
    optimizer.param_groups[0]["params"][0].data = torch.ones(2, 3)


def move_a_parameter(optimizer):
    first, second = (group["params"] for group in optimizer.param_groups)
    second.insert(0, first.pop())


def move_all_into_one(optimizer):
    optimizer.param_groups[0]["params"] += optimizer.param_groups.pop()["params"]


CHANGES = [
    add_to_a_group,
    add_a_group,
    append_a_group,
    remove_a_group,
    remove_a_parameter,
    exchange_a_parameter,
    exchange_the_list,
    exchange_data,
    move_a_parameter,
    move_all_into_one,
]


def params_of(optimizer):
    return [p for group in optimizer.param_groups for p in group["params"]]


def assert_steps_are_those_of_a_new_optimizer(weights, optimizer, change, step, atol=0.0):
    """Change the groups, forget all state, and step."""
    change(optimizer)
    optimizer.state = collections.defaultdict(dict)
    groups = [
        {**group, "params": [torch.nn.Parameter(p.detach().clone()) for p in group["params"]]}
        for group in optimizer.param_groups
    ]
    fresh = Optim4RL(groups, weights)
    for p, q in zip(params_of(optimizer), params_of(fresh), strict=True):
        p.grad = torch.linspace(-0.3, 0.2, p.numel()).reshape(p.shape)
        q.grad = p.grad.clone()
    before = [p.detach().clone() for p in params_of(optimizer)]
    for _ in range(2):
        step()
        fresh.step()
    for p, q, old in zip(params_of(optimizer), params_of(fresh), before, strict=True):
        assert (p - old).abs().max() > 1e-4
        torch.testing.assert_close(p, q, rtol=0, atol=atol)


@pytest.mark.filterwarnings("ignore:these weights read")
@pytest.mark.parametrize("change", CHANGES)
@few_weights
def test_a_step_is_that_of_a_new_optimizer_on_the_groups_as_they_are(weights, change):
    _, optimizer = started(weights)
    assert_steps_are_those_of_a_new_optimizer(weights, optimizer, change, optimizer.step)


def test_names_that_no_longer_fit_are_left_aside():
    """A library that exchanges a group's parameters leaves their old names behind."""
    net = network()
    optimizer = Optim4RL(net.named_parameters(), "scaled-generalist")
    optimizer.param_groups[0]["params"] = [torch.nn.Parameter(torch.ones(2, 3))]
    with pytest.warns(UserWarning, match="the parameters have no names"):
        alone = Optim4RL([torch.nn.Parameter(torch.ones(2, 3))], "scaled-generalist")
    for x in (optimizer, alone):
        x.param_groups[0]["params"][0].grad = torch.ones(2, 3)
    with pytest.warns(UserWarning, match="the parameters have no names"):
        optimizer.step()
    alone.step()
    assert torch.equal(*(x.param_groups[0]["params"][0] for x in (optimizer, alone)))


def test_exchanged_names_change_what_a_parameter_is_for():
    params = [torch.nn.Parameter(torch.ones(2, 40)) for _ in range(2)]
    names = ["policy_head.weight", "torso.weight"]
    optimizer = Optim4RL(zip(names, params, strict=True), "scaled-generalist")
    optimizer.param_groups[0]["param_names"].reverse()
    for p in params:
        p.grad = torch.linspace(-1, 1, 80).reshape(2, 40)
    optimizer.step()
    assert [x.kind for x in optimizer._layouts[0]] == ["weight", "policy_head"]


def test_kinds_may_name_parameters_of_later_groups():
    groups = [{"params": [(name, torch.nn.Parameter(torch.ones(2, 2)))]} for name in "ab"]
    optimizer = Optim4RL(groups, "scaled-generalist", kinds={"b": "policy_head"})
    assert [x.kind for layout in optimizer._layouts for x in layout] == ["weight", "policy_head"]
    del optimizer.param_groups[1]
    optimizer.param_groups[0]["params"][0].grad = torch.ones(2, 2)
    optimizer.step()


# Parameters of other types, and torch's defaults.


@pytest.mark.parametrize(
    "dtype", [torch.int8, torch.uint8, torch.int64, torch.bool, torch.complex64, torch.float64]
)
@few_weights
def test_frozen_parameters_of_any_type_are_left_alone(weights, dtype):
    net = network()
    code = torch.nn.Parameter(torch.arange(6).reshape(2, 3).to(dtype), requires_grad=False)
    optimizer = Optim4RL([*net.named_parameters(), ("code", code)], weights)
    optimizer.add_param_group({"params": [("more", torch.nn.Parameter(code.clone(), False))]})
    train(net, optimizer, 2)
    alone = network()
    train(alone, Optim4RL(alone.named_parameters(), weights), 2)
    assert_equal(net, alone)
    assert torch.equal(code, torch.arange(6).reshape(2, 3).to(dtype))
    assert code not in optimizer.state


def test_a_complex_gradient_is_refused_when_it_comes():
    p = torch.nn.Parameter(torch.zeros(2, dtype=torch.complex64), requires_grad=False)
    optimizer = Optim4RL([p], "anchored-catch")
    p.requires_grad_()
    p.grad = torch.ones_like(p)
    with pytest.raises(RuntimeError, match=r"complex64; a real float is needed"):
        optimizer.step()


def test_a_sharded_parameter_is_refused():
    distributed = torch.distributed
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        mesh = distributed.device_mesh.init_device_mesh("cpu", (1,))
        p = torch.nn.Parameter(distributed.tensor.distribute_tensor(torch.zeros(2, 3), mesh))
        with pytest.raises(ValueError, match=r"parameter fc is a DTensor; a whole tensor"):
            Optim4RL([("fc", p)])
    finally:
        distributed.destroy_process_group()


def updates(weights, steps=30):
    """Parameters and state after gradients that no default changes."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"policy_head.weight": (2, 40), "torso.weight": (40, 3), "conv.weight": (2, 2, 2, 2)}
    params = {
        name: torch.nn.Parameter(torch.zeros(shape, dtype=torch.float32, device="cpu"))
        for name, shape in shapes.items()
    }
    optimizer = Optim4RL(params.items(), weights, lr=5e-3)
    for _ in range(steps):
        for p in params.values():
            p.grad = torch.randn(p.shape, generator=generator, dtype=torch.float32, device="cpu")
        optimizer.step()
    return list(params.values()), [optimizer.state[p] for p in params.values()]


@every_weights
@pytest.mark.parametrize("default", [torch.float64, torch.bfloat16, torch.float16])
def test_the_default_dtype_changes_nothing(weights, default):
    right, _ = updates(weights)
    torch.set_default_dtype(default)
    try:
        params, states = updates(weights)
    finally:
        torch.set_default_dtype(torch.float32)
    for p, q in zip(params, right, strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=0)
    assert {x.dtype for state in states for x in state.values()} == {torch.float32}


def test_the_step_counts_past_256_in_bfloat16():
    torch.set_default_dtype(torch.bfloat16)
    try:
        _, states = updates("anchored-catch", 300)
    finally:
        torch.set_default_dtype(torch.float32)
    assert [float(state["step"]) for state in states] == [300.0] * 3


@few_weights
def test_neither_a_default_device_nor_autocast_changes_anything(weights):
    right, _ = updates(weights, 5)
    with torch.device("meta"):
        optimizer_made_there, _ = updates(weights, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under_autocast, _ = updates(weights, 5)
    for found in (optimizer_made_there, under_autocast):
        for p, q in zip(found, right, strict=True):
            torch.testing.assert_close(p, q, rtol=0, atol=0)


@few_weights
def test_copies_and_pickles_go_on(weights, tmp_path):
    net = network()
    optimizer = Optim4RL(net.named_parameters(), weights)
    train(net, optimizer, 2)
    twin_net, twin = copy.deepcopy((net, optimizer))
    torch.save((net, optimizer), tmp_path / "all.pt")
    loaded_net, loaded = torch.load(tmp_path / "all.pt", weights_only=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for pair in ((net, optimizer), (twin_net, twin), (loaded_net, loaded)):
            train(*pair, 2)
    assert_equal(net, twin_net)
    assert_equal(net, loaded_net)
