"""Steps by phase of training and use of the tensor: where they are known."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from optim4rl.evaluation.phases import TENSORS, classical_sizes, measure_phases
from optim4rl.optimizers import LEARNED, LearnedOptimizer, init_meta_parameters
from optim4rl.optimizers.modulated import STEP_RMS


def make(weights):
    return LearnedOptimizer(LEARNED["modulated"], weights, 1e-2, {})


@pytest.fixture(scope="module")
def zeros():
    fresh = init_meta_parameters(LEARNED["modulated"], jax.random.key(0))
    return jax.tree.map(jnp.zeros_like, fresh)


def test_a_fresh_rule_makes_steps_of_one_size_that_fall_to_nothing(zeros):
    found = measure_phases(make(zeros))
    assert found.first_epoch.keys() == TENSORS.keys()
    for sizes in (*found.first_epoch.values(), *found.last_epoch.values()):
        np.testing.assert_allclose(sizes, STEP_RMS * (1.0 - found.share), rtol=1e-3)


def test_a_gain_of_policy_heads_in_last_epochs_is_told_from_others(zeros):
    """One hidden unit reads kind and epoch, and doubles the step if both are there."""
    spec = LEARNED["modulated"]
    first_of_kind = spec.networks[0].inputs - 6  # after the features: kind 4, layer 1, fan-in 1
    network = dict(zeros["network0"])
    row = network["head0"].at[0, 1].set(1.0).at[0, first_of_kind + 2].set(1.0)
    network |= {"head0": row, "head0_bias": network["head0_bias"].at[0].set(-1.0)}
    network["head1"] = network["head1"].at[0, 0].set(np.log(2.0))
    found = measure_phases(dataclasses.replace(make(zeros), meta_parameters={"network0": network}))
    plain = STEP_RMS * (1.0 - found.share)
    for use in TENSORS:
        np.testing.assert_allclose(found.first_epoch[use], plain, rtol=1e-3)
        factor = 2.0 if use == "policy head" else 1.0
        np.testing.assert_allclose(found.last_epoch[use], factor * plain, rtol=1e-3)


def test_muons_kernels_fall_from_its_size():
    sizes = classical_sizes("muon_rms")["kernel"]
    falls = np.linspace(1.0, 0.0, 256).reshape(16, 16).mean(axis=1)
    np.testing.assert_allclose(sizes, 0.2 * falls, rtol=0.15)  # nearly orthogonal
