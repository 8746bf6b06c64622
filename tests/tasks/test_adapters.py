"""Names become environments; what cannot be trained on is refused with a reason."""

import sys

import gymnax
import jax
import jax.numpy as jnp
import pytest

from optim4rl.tasks.environments import names
from optim4rl.tasks.environments.adapters import environment_names, make_environment
from optim4rl.tasks.environments.catch import Catch
from optim4rl.tasks.environments.checks import check_environment
from optim4rl.tasks.environments.gridworld import GridWorld
from optim4rl.tasks.environments.names import package_names
from optim4rl.tasks.environments.worlds import GRID_WORLDS


def test_every_known_name_builds() -> None:
    """Catch and the eight worlds, each with its own defaults."""
    assert environment_names() == ("catch", *GRID_WORLDS)
    for name in environment_names():
        environment, params = make_environment(name)
        expected = Catch() if name == "catch" else GridWorld(GRID_WORLDS[name])
        assert environment == expected
        assert params == environment.default_params
        observation, _ = jax.eval_shape(environment.reset, jax.random.key(0), params)
        assert observation.shape == environment.observation_space(params).shape
        assert observation.dtype == jnp.float32


def test_gymnax_names_build() -> None:
    """Any discrete environment of gymnax, by its own name."""
    environment, params = make_environment("gymnax:CartPole-v1")
    assert environment.num_actions == 2
    assert params.max_steps_in_episode == 500


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("big_dense_lnog", "big_dense_long"),
        ("cach", "catch"),
        ("CartPole-v1", "gymnax:CartPole-v1"),
        ("gymnax:cartpole", "gymnax:CartPole-v1"),
        ("Catch-bsuite", "gymnax:Catch-bsuite"),
        ("brax:humanoit", "brax:humanoid"),
        ("brax:hopper2/spring", "brax:hopper"),
        ("playground:CartPoleBalance", "playground:CartpoleBalance"),
    ],
)
def test_unknown_names_are_answered_with_near_and_known_ones(name: str, hint: str) -> None:
    """The message holds the value, the nearest name, and all known names."""
    with pytest.raises(ValueError, match="unknown environment") as error:
        make_environment(name)
    message = str(error.value)
    assert repr(name) in message
    assert "Did you mean" in message
    assert repr(hint) in message
    assert all(
        known in message
        for known in (*environment_names(), "gymnax:NAME", "brax:NAME", "playground:NAME")
    )


def test_a_name_like_no_other_gets_no_hint() -> None:
    """Nothing is near, so nothing is guessed."""
    with pytest.raises(ValueError, match=r"unknown environment '§'\. Known: catch"):
        make_environment("§")


@pytest.mark.parametrize(
    ("name", "shape"), [("Pendulum-v1", (1,)), ("MountainCarContinuous-v0", (1,))]
)
def test_continuous_actions_pass(name: str, shape: tuple[int, ...]) -> None:
    """If they have bounds."""
    environment, params = make_environment(f"gymnax:{name}")
    assert environment.action_space(params).shape == shape


def test_a_users_own_environment_passes_through() -> None:
    """The object itself comes back, with its parameters or the given ones."""
    environment = Catch(6, 3)
    given = environment.default_params.replace(max_steps_in_episode=4)
    assert check_environment(environment) == (environment, environment.default_params)
    same, params = check_environment(environment, given)
    assert same is environment
    assert params is given
    assert check_environment(gymnax.make("CartPole-v1")[0])[1].max_steps_in_episode == 500


def test_gymnaxs_names_are_known_without_it():
    """And are asked of gymnax where it is there, for it may have been given more."""
    assert set(names.GYMNAX) == set(gymnax.registered_envs)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gymnax, "registered_envs", ["Mine-v0"])
        assert "gymnax:Mine-v0" in package_names()
        patch.delitem(sys.modules, "gymnax")
        assert "gymnax:CartPole-v1" in package_names()
