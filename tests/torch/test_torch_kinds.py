"""What parameters are for where there are no names, and rates that libraries overwrite."""

import itertools
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from optim4rl.optimizers.tensors import layout_of, parts_of
from optim4rl.torch import Optim4RL, sb3_settings
from optim4rl.torch.names import find_heads, name_parameters

torch.set_num_threads(1)


def mlp(*sizes):
    layers = [nn.Linear(*pair) for pair in itertools.pairwise(sizes)]
    return nn.Sequential(*(x for layer in layers for x in (layer, nn.Tanh())))


class StableBaselines(nn.Module):
    """Parameters named and ordered as in its ActorCriticPolicy."""

    def __init__(self, actions, observation=4, policy=(64, 64), value=(64, 64), deviations=False):
        super().__init__()
        self.mlp_extractor = nn.ModuleDict(
            {"policy_net": mlp(observation, *policy), "value_net": mlp(observation, *value)}
        )
        self.action_net = nn.Linear((observation, *policy)[-1], actions)
        if deviations:
            self.log_std = nn.Parameter(torch.zeros(actions))
        self.value_net = nn.Linear((observation, *value)[-1], 1)


class CleanRL(nn.Module):
    """Two networks, as in ppo.py and ppo_continuous_action.py."""

    def __init__(self, actions, observation=4, deviations=False, order=("critic", "actor")):
        super().__init__()
        for name in order:
            outputs = 1 if name == "critic" else actions
            setattr(self, name, mlp(observation, 64, 64, outputs))
        if deviations:
            self.actor_logstd = nn.Parameter(torch.zeros(1, actions))


class Shared(nn.Module):
    """Convolutions and two heads, as in CleanRL's ppo_atari.py."""

    def __init__(self, actions, bias=True):
        super().__init__()
        self.network = nn.Sequential(
            nn.Conv2d(4, 32, 8, bias=bias),
            nn.Conv2d(32, 64, 4, bias=bias),
            nn.Flatten(),
            nn.Linear(64 * 49, 512, bias=bias),
        )
        self.actor = nn.Linear(512, actions, bias=bias)
        self.critic = nn.Linear(512, 1, bias=bias)


def shapes_of(net):
    return [tuple(p.shape) for p in net.parameters()]


def layout(names, shapes):
    """What layouts say of each tensor that any shipped weights read."""
    found = layout_of([parts_of(name) for name in names], shapes)
    return [(x.kind, x.outputs, x.fan_in, x.of_images) for x in found]


AGENTS = [
    (StableBaselines(2), None),
    (StableBaselines(3, policy=(64,), value=(32,)), None),
    (StableBaselines(3, policy=(32, 16), value=(64, 32)), None),
    (StableBaselines(3, policy=(), value=()), None),
    (StableBaselines(6, observation=64, deviations=True), None),
    (StableBaselines(1, deviations=True), "sb3"),
    (StableBaselines(1, policy=(), value=(64,), deviations=True), "sb3"),
    (CleanRL(2), None),
    (CleanRL(6, observation=6, deviations=True), None),
    (CleanRL(2, order=("actor", "critic")), None),
    (CleanRL(1), "cleanrl"),
    (CleanRL(1, deviations=True), "cleanrl"),
    (Shared(6), None),
    (Shared(6, bias=False), None),
    (Shared(1), "cleanrl"),
]


@pytest.mark.parametrize(("net", "order"), AGENTS)
def test_shapes_and_order_tell_what_names_do(net, order):
    names, shapes = [name for name, _ in net.named_parameters()], shapes_of(net)
    heads = find_heads(shapes, order)
    assert [names[index].split(".")[0] for index in heads] in (
        ["action_net", "value_net"],
        ["actor", "critic"],
    )
    assert layout(name_parameters(shapes, heads), shapes) == layout(names, shapes)


@pytest.mark.parametrize(
    ("net", "order"),
    [
        (mlp(3, 4, 1), None),  # a regression
        (mlp(3, 4, 2), None),
        (StableBaselines(1), None),  # which of two single outputs is the action?
        (CleanRL(1), None),
        (CleanRL(6, observation=6, order=("actor", "critic")), None),  # a chain, it seems
        (nn.ModuleList([mlp(4, 8, 1), mlp(4, 8, 1)]), "sb3"),  # two critics
        (nn.ModuleList([mlp(4, 8, 1), mlp(4, 8, 1), mlp(4, 8, 2)]), "cleanrl"),
        (nn.LSTM(4, 8), None),
        (nn.LayerNorm(4), None),
        (nn.Module(), None),
    ],
)
def test_what_is_not_plain_is_not_guessed(net, order):
    assert find_heads(shapes_of(net), order) is None


def test_layers_without_biases_have_their_outputs_first():
    """All names end in `weight` then, and shapes alone would not tell."""
    shapes = [(8, 3), (5, 8)]
    assert [x[1:3] for x in layout(["a.weight", "policy.weight"], shapes)] == [(0, 3), (0, 8)]
    assert [x[1:3] for x in layout(name_parameters(shapes, None), shapes)] == [(0, 3), (0, 8)]


def gradients(net, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for p in net.parameters():
        p.grad = torch.randn(p.shape, generator=generator)


@pytest.mark.parametrize("weights", ["ppo-generalist", "scaled-generalist"])
@pytest.mark.parametrize(("net", "order"), AGENTS)
def test_a_step_without_names_is_that_with_names(net, order, weights):
    first = [p.detach().clone() for p in net.parameters()]
    gradients(net)
    results = []
    for params in (net.named_parameters(), net.parameters()):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            optimizer = Optim4RL(params, weights, kinds=order)
        optimizer.step()
        results.append([p.detach().clone() for p in net.parameters()])
        for p, x in zip(net.parameters(), first, strict=True):
            p.data.copy_(x)
    for named, nameless, before in zip(*results, first, strict=True):
        assert (named - before).abs().max() > 1e-5
        assert torch.equal(named, nameless)


def test_what_was_inferred_is_said_once_and_where():
    net = CleanRL(2)
    with pytest.warns(UserWarning, match="what each parameter is for") as caught:
        optimizer = Optim4RL(net.parameters())
    assert str(caught[0].message) == (
        "these weights read what each parameter is for, but the parameters have no names; their "
        "shapes and order make parameter 10 ([2, 64]) the policy's head and parameter 4 ([1, 64]) "
        "the value's: to be sure, give model.named_parameters(), or kinds"
    )
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gradients(net)
        for _ in range(2):
            optimizer.step()


@pytest.mark.parametrize(
    ("params", "options"),
    [
        (lambda: CleanRL(2).named_parameters(), {}),
        (lambda: CleanRL(1).parameters(), {"kinds": "cleanrl"}),
        (lambda: CleanRL(2).parameters(), {"kinds": {"10": "policy_head"}}),
        (lambda: CleanRL(2).parameters(), {"weights": "anchored-catch"}),
    ],
)
def test_nothing_is_said_where_there_is_nothing_to_say(params, options):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Optim4RL(params(), **options)


def test_an_order_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="kinds = 'sb3': these 4 parameters are not a policy"):
        Optim4RL(mlp(3, 4, 2).parameters(), kinds="sb3")
    with pytest.raises(ValueError, match="kinds = 'rllib': known orders are sb3, cleanrl"):
        Optim4RL(mlp(3, 4, 2).parameters(), kinds="rllib")


# Rates.


def step_at(rate, weights="ppo-generalist", **options):
    net = CleanRL(2)
    optimizer = Optim4RL(net.named_parameters(), weights, **options)
    optimizer.param_groups[0]["lr"] = rate
    gradients(net)
    optimizer.step()
    return optimizer


@pytest.mark.parametrize("rate", [3e-4, torch.tensor(3e-4), np.float64(3e-4)])
@pytest.mark.parametrize("weights", ["ppo-generalist", "scaled-generalist", "anchored-catch"])
def test_a_rate_meant_for_adam_is_warned_of_once(weights, rate):
    own = Optim4RL(mlp(2, 2).named_parameters(), weights).defaults["lr"]
    with pytest.warns(UserWarning, match="lr = ") as caught:
        optimizer = step_at(rate, weights)
    (said,) = [str(x.message) for x in caught]
    assert said.startswith(
        f"lr = 0.0003 is {own / 3e-4:.0f} times below the rate of these weights, {own:g}: "
    )
    assert "optim4rl.torch.sb3_settings" in said
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.step()


@pytest.mark.parametrize(
    ("rate", "options"),
    [
        (1e-2, {}),
        (1e-3, {}),
        (0.0, {}),  # torch.distributed.checkpoint makes states by a step at this rate
        (3e-4, {"step_scale": 33.0}),
        (1e-2, {"step_scale": 1e-3}),
        (3e-4, {"weights": "optim4rl-catch"}),
    ],
)
def test_other_rates_are_not_warned_of(rate, options):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        step_at(rate, **options)


def test_a_schedule_that_ends_near_zero_is_not_warned_of():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer = step_at(1e-2)
        optimizer.param_groups[0]["lr"] = 1e-5
        optimizer.step()


# Stable-Baselines3.


def ppo(env="CartPole-v1", **options):
    from stable_baselines3 import PPO

    return PPO("MlpPolicy", env, n_steps=64, device="cpu", seed=0, **options)


@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1"])
def test_stable_baselines_runs_the_weights_at_their_own_rate(env):
    settings = sb3_settings(step_scale=0.5, policy_kwargs={"net_arch": [32]})
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        model = ppo(env, **settings).learn(128)
    optimizer = model.policy.optimizer
    assert isinstance(optimizer, Optim4RL)
    assert (optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["step_scale"]) == (1e-2, 0.5)
    names = [name for name, _ in model.policy.named_parameters()]
    kinds = {name: x.kind for name, x in zip(names, optimizer._layouts[0], strict=True)}
    heads = {"action_net": "policy_head", "value_net": "value_head"}
    assert {n: k for n, k in kinds.items() if k.endswith("head")} == {
        f"{name}.{part}": kind for name, kind in heads.items() for part in ("weight", "bias")
    }


def test_a_schedule_for_stable_baselines_is_a_share_of_the_rate():
    settings = sb3_settings("scaled-generalist", schedule=lambda left: left)
    assert [settings["learning_rate"](left) for left in (1.0, 0.25)] == [2e-2, 5e-3]
    model = ppo(**settings).learn(128)
    assert isinstance(model.policy.optimizer, Optim4RL)


@pytest.mark.filterwarnings("ignore:these weights read")
def test_stable_baselines_at_its_own_rate_is_warned_of():
    with pytest.warns(UserWarning, match=r"lr = 0\.0003 is 33 times below the rate"):
        ppo(policy_kwargs={"optimizer_class": Optim4RL}).learn(64)
