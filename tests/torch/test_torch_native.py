"""The C++ kernel in PyTorch against the formulae, and where it steps aside."""

import copy
import dataclasses
import os
import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from optim4rl.cpp.library import ISA_VARIABLE
from optim4rl.optimizers import (
    LEARNED,
    LearnedOptimizer,
    init_meta_parameters,
    processing as jax_processing,
    save_weights,
    structures as jax_structures,
)
from optim4rl.optimizers.kernels import packing
from optim4rl.torch import Optim4RL, native
from optim4rl.torch.optimizer import Rule

built = pytest.mark.skipif(
    not packing.LIBRARY.path.exists(), reason="the library is not built: there was no C++ compiler"
)
A, ANCHORED, MIRRORED = LEARNED["optim4rl"], LEARNED["anchored"], LEARNED["mirrored"]
SPECS = {
    **{name: spec for name, spec in LEARNED.items() if packing.unknown_part(spec) is None},
    "unsigned": dataclasses.replace(A, structure=jax_structures.Adaptive(signed=False), clip=None),
    "two networks without a cell": dataclasses.replace(A, cell="none", inputs=("layer",)),
    "deep, without a cell": dataclasses.replace(
        MIRRORED, cell="none", head_sizes=(5, 7), step_scale=0.3, normalise="rms"
    ),
    "of raw gradients": dataclasses.replace(
        ANCHORED, processing=jax_processing.RawAndSquare(), hidden_size=5, step_scale=0.3
    ),
}
STEPS = 20
every_spec = pytest.mark.parametrize("name", SPECS)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A weights file for each rule, with weights that are nowhere zero."""
    folder, rng, found = tmp_path_factory.mktemp("weights"), np.random.default_rng(0), {}
    for name, spec in SPECS.items():
        like = jax.eval_shape(partial(init_meta_parameters, spec), jax.random.key(0))
        weights = jax.tree.map(lambda x: jnp.asarray(rng.normal(0, 0.3, x.shape), x.dtype), like)
        found[name] = str(folder / f"{name}.safetensors")
        save_weights(found[name], LearnedOptimizer(spec, weights, 1e-2))
    return found


@pytest.fixture
def calls(monkeypatch):
    """How often the kernel has run."""
    counted = []
    directions = native.NativeRule.directions

    def count(*args):
        counted.append(1)
        return directions(*args)

    monkeypatch.setattr(native.NativeRule, "directions", count)
    return counted


def parameters(dtype=torch.float32):
    """Large, small, empty and single ones, and some that are laid out otherwise."""
    shapes = {
        "torso.weight": (70, 65),
        "torso.bias": (70,),
        "conv.weight": (3, 2, 4, 4),
        "policy_head.weight": (3, 70),
        "wide.weight": (2, 5000),
        "scale": (),
        "nothing": (0, 3),
        "value_head.weight": (1, 70),
    }
    generator = torch.Generator().manual_seed(0)
    made = {k: torch.randn(s, generator=generator).to(dtype) for k, s in shapes.items()}
    made["conv.weight"] = made["conv.weight"].to(memory_format=torch.channels_last)
    made["torso.weight"] = made["torso.weight"].t().contiguous().t()
    return {name: torch.nn.Parameter(x) for name, x in made.items()}


def run(optimizer, params, steps=STEPS, seed=1):
    """Gradients of many magnitudes, zeros among them; one parameter waits now and then."""
    generator = torch.Generator().manual_seed(seed)
    for t in range(steps):
        for name, p in params.items():
            size = 10.0 ** (torch.rand(p.shape, generator=generator) * 8 - 7)
            g = size * torch.randn(p.shape, generator=generator)
            p.grad = (g * (torch.rand(p.shape, generator=generator) < 0.9)).to(p.dtype)
            if name == "wide.weight":
                p.grad = p.grad.t().contiguous().t()
            if name == "torso.bias" and t % 3 == 1:
                p.grad = None
        optimizer.step()


def by_formulae(monkeypatch):
    monkeypatch.setattr("optim4rl.torch.optimizer.runs_on", lambda *_: False)


def state_of(optimizer, params):
    return [optimizer.state[p][name] for p in params.values() for name in ("memory", "step")]


def assert_close(found, expected, tolerance=2e-5):
    """Equal up to a part of the largest entry of each tensor."""
    for x, y in zip(found, expected, strict=True):
        scale = max(float(y.detach().abs().max()), 1e-3) if y.numel() else 1.0
        torch.testing.assert_close(x, y, rtol=tolerance, atol=tolerance * scale, equal_nan=True)


def moved(optimizer, params):
    run(optimizer, params)
    before = parameters()
    return [p.detach() - before[name].detach() for name, p in params.items()]


@built
@every_spec
def test_steps_and_state_are_those_of_the_formulae(name, files, calls, monkeypatch):
    params, others = parameters(), parameters()
    optimizer = Optim4RL(params.items(), files[name])
    found = moved(optimizer, params)
    assert len(calls) == STEPS
    by_formulae(monkeypatch)
    plain = Optim4RL(others.items(), files[name])
    expected = moved(plain, others)
    assert len(calls) == STEPS
    assert max(float(x.abs().max()) for x in expected if x.numel()) > 1e-4
    assert_close(found, expected)
    assert_close(state_of(optimizer, params), state_of(plain, others))


@built
@every_spec
def test_a_state_goes_on_in_the_other(name, files, monkeypatch):
    params, others = parameters(), parameters()
    optimizer, plain = (Optim4RL(x.items(), files[name]) for x in (params, others))
    run(optimizer, params)
    with torch.no_grad():
        for p, other in zip(params.values(), others.values(), strict=True):
            other.copy_(p)
    plain.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    run(optimizer, params, steps=3, seed=2)
    by_formulae(monkeypatch)
    run(plain, others, steps=3, seed=2)
    assert_close(others.values(), params.values())
    assert_close(state_of(plain, others), state_of(optimizer, params))


@built
def test_parameters_of_half_precision_run_there_too(files, calls, monkeypatch):
    results = []
    for _ in range(2):
        params = parameters(torch.bfloat16)
        optimizer = Optim4RL(params.items(), files["scaled"])
        run(optimizer, params, steps=1)
        results.append(state_of(optimizer, params))
        by_formulae(monkeypatch)
    assert len(calls) == 1
    assert_close(*results)


@built
@pytest.mark.parametrize("name", ["orthogonal", "scaled", "optim4rl"])
def test_results_are_the_same_to_the_bit_with_any_number_of_threads(name, files):
    """Of one vector: the products of kernels are torch's own."""

    def directions(threads):
        torch.set_num_threads(threads)
        p = torch.nn.Parameter(torch.zeros(100_000))
        optimizer = Optim4RL([("bias", p)], files[name])
        for t in range(3):
            p.grad = torch.randn(100_000, generator=torch.Generator().manual_seed(t))
            optimizer.step()
        return [p.detach(), optimizer.state[p]["memory"]]

    try:
        for x, y in zip(directions(3), directions(1), strict=True):
            assert torch.equal(x, y)
    finally:
        torch.set_num_threads(1)


def permuted_memory(optimizer, p):
    memory = optimizer.state[p]["memory"]
    optimizer.state[p]["memory"] = memory.t().contiguous().t()


class Tagged(torch.Tensor):
    """A subclass, whose memory may be anything."""


def tagged_gradient(optimizer, p):
    p.grad = p.grad.as_subclass(Tagged)


@built
@pytest.mark.parametrize("change", [permuted_memory, tagged_gradient])
def test_what_lies_otherwise_runs_by_the_formulae(change, files, calls):
    def stepped(change):
        p = torch.nn.Parameter(torch.zeros(5))
        optimizer = Optim4RL([("w", p)], files["anchored"])
        for t in range(2):
            p.grad = torch.arange(5.0) - 2.0 + t
            if t == 1:
                change(optimizer, p)
            optimizer.step()
        return [p.detach()]

    expected = stepped(lambda *_: None)
    assert len(calls) == 2
    assert_close(stepped(change), expected)
    assert len(calls) == 3


@built
def test_a_gradient_that_is_a_negative_view(files):
    """Such a tensor has its sign beside its memory."""
    x = torch.complex(torch.zeros(4), torch.arange(4.0) - 1.5).conj().imag
    assert x.is_neg()
    found = []
    for gradient in (x, x.resolve_neg()):
        p = torch.nn.Parameter(torch.zeros(4))
        optimizer = Optim4RL([("w", p)], files["anchored"])
        p.grad = gradient
        optimizer.step()
        found.append([p.detach()])
    assert_close(*found)


WITHOUT = """
import sys, torch
from optim4rl.optimizers.kernels import packing
from optim4rl.torch import Optim4RL
p = torch.nn.Parameter(torch.zeros(3))
optimizer = Optim4RL([("w", p)], "anchored-catch")
p.grad = torch.ones(3)
optimizer.step()
print(packing.LIBRARY.functions is not None, bool(p.abs().min() > 1e-4), "jax" in sys.modules)
"""


def python(program, **environment):
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@built
def test_it_loads_without_jax():
    assert python(WITHOUT) == "True True False"


def test_without_the_library_the_formulae_run():
    """Here no machine has the instruction set that is asked for."""
    assert python(WITHOUT, **{ISA_VARIABLE: "none"}) == "False True False"


@built
def test_a_copy_of_a_rule_runs_it_too(files, calls):
    p = torch.nn.Parameter(torch.zeros(3))
    optimizer = Optim4RL([("w", p)], files["anchored"])
    p, twin = copy.deepcopy((p, optimizer))
    assert isinstance(twin.rule, Rule)
    for q in twin.param_groups[0]["params"]:
        q.grad = torch.ones(3)
    twin.step()
    assert len(calls) == 1
