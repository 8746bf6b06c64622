"""What agents tell of an update beside its gradient: dormancy, and how many epochs are done."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from by_hand import convolve
from optim4rl.tasks import A2CConfig, PPOConfig, TaskConfig, make_task
from optim4rl.tasks.backprop import SharedTorso, activity
from optim4rl.tasks.inputs import DenseInputs
from optim4rl.tasks.interface import TellingTask, update_extras

PPO = PPOConfig(rollout=4, epochs=3, minibatches=2)
MLPS = {"torso": "mlp", "policy_layers": (5, 4), "value_layers": (6,), "activation": "tanh"}


def played(**settings):
    """A task, its agent's parameters and its first batch."""
    environment = "small_dense_short" if settings.get("torso") == "conv" else "catch"
    task = make_task(TaskConfig(environment, num_envs=4, **settings))
    key = jax.random.key(0)
    params = task.init_params(key)
    batch, _, _ = task.rollout(params, task.init_actor(key), jax.random.key(1))
    return task, params, batch


def relative(units):
    size = np.abs(np.asarray(units, np.float64)).mean(0)
    return size / size.mean()


def units_of(layers, x):
    """What each layer gives, hidden ones after tanh."""
    found = []
    for index, layer in enumerate(layers):
        x = x @ np.asarray(layer.kernel, np.float64) + np.asarray(layer.bias)
        x = np.tanh(x) if index + 1 < len(layers) else x
        found.append(x)
    return found


def test_ppo_tells_dormancy_on_its_minibatch_and_the_epochs_done():
    task, params, batch = played(learner=PPO, **MLPS)
    assert isinstance(task, TellingTask)
    # The places of the ones; one that is not there is beyond the end.
    images = np.eye(51)[np.asarray(batch.samples.observation)].sum(0)[:, :50]
    for index, (epoch, half) in enumerate(np.ndindex(3, 2)):
        found = update_extras(task, params, batch, jnp.int32(index))
        assert float(found["epoch_proportion"]) == epoch / 2
        members = np.asarray(batch.order).reshape(3, 2, 8)[epoch, half]
        for name in ("policy", "value"):
            units = units_of(getattr(params, name), images[members])
            for layer, x in zip(getattr(found["dormancy"], name), units, strict=True):
                np.testing.assert_allclose(layer.kernel, relative(x), rtol=1e-4)
                np.testing.assert_array_equal(layer.bias, layer.kernel)


@pytest.mark.parametrize("learner", [A2CConfig(rollout=4), PPO])
@pytest.mark.parametrize("torso", ["dense", "conv", "mlp"])
def test_dormancy_is_of_the_units_of_every_parameter(torso, learner):
    """So that it broadcasts to the parameters; the mean of each layer is 1."""
    settings = MLPS if torso == "mlp" else {"torso": torso, "width": 6}
    task, params, batch = played(learner=learner, **settings)
    dormancy = update_extras(task, params, batch, jnp.int32(0))["dormancy"]
    assert jax.tree.structure(dormancy) == jax.tree.structure(params)
    for x, parameter in zip(*map(jax.tree.leaves, (dormancy, params)), strict=True):
        assert x.shape == parameter.shape[-1:]
        np.testing.assert_allclose(x.mean(), 1.0, rtol=1e-5)


def test_a2c_has_one_epoch():
    task, params, batch = played(learner=A2CConfig(rollout=4), width=6)
    assert float(update_extras(task, params, batch, jnp.int32(0))["epoch_proportion"]) == 0.0


def test_the_only_epoch_is_the_first():
    learner = PPOConfig(rollout=4, epochs=1, minibatches=2)
    task, params, batch = played(learner=learner, width=6)
    for index in range(2):
        told = update_extras(task, params, batch, jnp.int32(index))
        assert float(told["epoch_proportion"]) == 0.0


def test_units_that_only_fill_the_arrays_do_not_count():
    """Of four units, two of which there are: the mean of those is 1."""
    units = jnp.asarray([[1.0, -3.0, 0.0, 0.0], [1.0, 3.0, 0.0, 0.0]])
    live = jnp.asarray([1.0, 1.0, 0.0, 0.0])
    np.testing.assert_allclose(activity(units, live), [0.5, 1.5, 0.0, 0.0], atol=1e-9)
    np.testing.assert_allclose(activity(units), [1.0, 3.0, 0.0, 0.0], atol=1e-9)


def test_filters_are_as_active_as_they_are_on_average_over_all_places():
    network = SharedTorso(DenseInputs((3, 4, 2), "rows"), "conv", 2, (5,))
    params = network.init(jax.random.key(0))
    observation = jax.random.normal(jax.random.key(1), (6, 3, 4, 2))
    found = network.dormancy(network.prepare(params, None), observation)
    assert params.conv is not None
    images = np.maximum(jax.vmap(partial(convolve, params.conv))(observation), 0.0)
    filters = relative(images.reshape(-1, images.shape[-1]))
    np.testing.assert_allclose(found.conv.kernel, filters, rtol=1e-4)


def test_a_silent_layer_is_as_active_as_itself():
    np.testing.assert_allclose(activity(jnp.zeros((3, 4))), 1.0)
