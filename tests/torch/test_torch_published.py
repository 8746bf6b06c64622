"""OPEN's published weights in PyTorch: the same steps as their own code's."""

import dataclasses

import numpy as np
import pytest
import torch

from open_reference import (
    PUBLISHED,
    SIZES,
    golden_run,
    random_run,
    random_vector,
    tree_of,
    without_noise,
)
from optim4rl.optimizers import save_weights
from optim4rl.optimizers.published_files import import_open
from optim4rl.torch import Optim4RL

torch.set_num_threads(1)


def named(tree):
    """A tree's leaves under PyTorch's names, kernels as (outputs, inputs)."""
    names = {"kernel": "weight", "bias": "bias"}
    return {
        f"{network}.{layer}.{names[kind]}": torch.tensor(np.float32(x.T))
        for network, layers in tree.items()
        for layer, (_, tensors) in enumerate(layers.items())
        for kind, x in tensors.items()
    }


def optimizer_of(vector, params, tmp_path, clip_norm=0.5):
    np.save(tmp_path / "weights.npy", vector)
    found = import_open(tmp_path / "weights.npy", rollouts=6, epochs=2, minibatches=2)
    spec = dataclasses.replace(found.spec, clip_norm=clip_norm)
    save_weights(tmp_path / "w.safetensors", dataclasses.replace(found, spec=spec))
    leaves = {name: torch.nn.Parameter(x) for name, x in named(tree_of(params)).items()}
    return leaves, Optim4RL(leaves.items(), tmp_path / "w.safetensors")


def parameters_after(leaves, optimizer, gradients, told, counted=False):
    """The flat parameters after each gradient; proportions are told, or counted."""
    found = []
    for gradient, (training, epoch, dormancy) in zip(gradients, told, strict=True):
        for name, x in named(tree_of(gradient)).items():
            leaves[name].grad = x
        active = {
            name: x[:, None] if name.endswith("weight") else x
            for name, x in named(dormancy).items()
        }
        if counted:
            optimizer.step(dormancy=active)
        else:
            done = {"training_proportion": float(training), "epoch_proportion": float(epoch)}
            optimizer.step(dormancy=active, **done)
        found.append(np.concatenate([p.detach().numpy().T.ravel() for p in leaves.values()]))
    return np.stack(found)


@pytest.mark.parametrize("size", SIZES)
def test_it_is_the_published_formula(size, tmp_path):
    vector = without_noise(random_vector(size))
    params, gradients, told, expected = random_run(vector)
    leaves, optimizer = optimizer_of(vector, params, tmp_path)
    found = parameters_after(leaves, optimizer, gradients, told)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


@pytest.mark.slow
@pytest.mark.skipif(not PUBLISHED.is_dir(), reason=f"OPEN's own files are not in {PUBLISHED}")
@pytest.mark.parametrize("name", ["breakout", "multi"])
@pytest.mark.parametrize("counted", [False, True])
def test_published_weights_move_as_their_own_code_moves_them(name, counted, tmp_path):
    vector = without_noise(np.load(PUBLISHED / f"{name}.npy", allow_pickle=False))
    params, gradients, told, expected = golden_run(name)
    leaves, optimizer = optimizer_of(vector, params, tmp_path, clip_norm=None)
    found = parameters_after(leaves, optimizer, gradients, told, counted)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


def test_what_is_told_must_fit(tmp_path):
    vector = random_vector(1211)
    params, gradients, *_ = random_run(vector, steps=1)
    leaves, optimizer = optimizer_of(vector, params, tmp_path)
    for name, x in named(tree_of(gradients[0])).items():
        leaves[name].grad = x
    with pytest.raises(ValueError, match=r"^dormancy: no parameter is called 'actor\.9\.bias'"):
        optimizer.step(dormancy={"actor.9.bias": torch.ones(7)})
    with pytest.raises(ValueError, match=r"^dormancy of actor\.0\.weight: .*\[7, 5\]"):
        optimizer.step(dormancy={"actor.0.weight": torch.ones(7)})


def test_what_is_not_told_of_a_parameter_is_one(tmp_path):
    vector = without_noise(random_vector(1211))
    params, gradients, *_ = random_run(vector, steps=1)
    found = []
    for told in (None, {}, {"critic.2.bias": torch.ones(1)}):
        leaves, optimizer = optimizer_of(vector, params, tmp_path)
        for name, x in named(tree_of(gradients[0])).items():
            leaves[name].grad = None if name == "actor.1.bias" else x
        optimizer.step(dormancy=told)
        found.append(torch.cat([p.detach().flatten() for p in leaves.values()]))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
