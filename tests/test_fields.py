"""Settings as JSON: all that is written is read again, and nothing else is."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from neighbours import neighbours
from optim4rl.benchmark.contender import Maker
from optim4rl.benchmark.runs import Batch
from optim4rl.fields import from_json, to_json
from optim4rl.study.cells import Training
from optim4rl.study.settings import SCALES, StudySettings, TrainingSettings
from optim4rl.study.variant import REFERENCE
from optim4rl.tasks import A2CConfig, PPOConfig, TaskConfig, default_config

PPO = TaskConfig(
    "gymnax:CartPole-v1",
    8,
    "mlp",
    (8, 16),
    learner=PPOConfig(),
    policy_layers=(3,),
    value_layers=(4,),
)
RUNS = ((0.01, 7), (0.1, 8))
CONFIGS = {
    "task with A2C": TaskConfig(),
    "task with PPO": PPO,
    "Brax": default_config("brax:ant"),
    **{f"study, {name}": scale for name, scale in SCALES.items()},
    "training": Training("catch", REFERENCE, TrainingSettings(), 64, 3e-3, 1),
    "classical optimizer": Maker("adam", clip=0.5, epsilon=1e-5, decay=True),
    "learned optimizer": Maker(None, "a"),
    "runs": Batch(TaskConfig(), Maker("adam"), RUNS, 3, 4),
    "runs of a learned optimizer": Batch(PPO, Maker(None, "a"), RUNS, 3, 3),
}
every_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)


def again(config: Any) -> Any:
    """Through a file and back."""
    return from_json(type(config), json.loads(json.dumps(to_json(config))))


@every_config
def test_settings_survive_json(config: Any) -> None:
    """And so do those with any one field changed, all of which are told apart."""
    assert again(config) == config
    others = list(neighbours(config))
    assert len(others) > 1
    for other in others:
        assert again(other) == other
    assert len({json.dumps(to_json(x)) for x in [config, *others]}) == 1 + len(others)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(list(CONFIGS.values())), st.lists(st.integers(0, 10**6), max_size=8))
def test_settings_with_several_changes_survive_json(config: Any, steps: list[int]) -> None:
    """A walk from neighbour to neighbour."""
    for step in steps:
        others = list(neighbours(config))
        config = others[step % len(others)]
    assert again(config) == config


def objects(value: Any) -> Iterator[dict[str, Any]]:
    """All objects in a JSON value."""
    if isinstance(value, dict):
        yield value
    for part in value.values() if isinstance(value, dict) else value:
        if isinstance(part, dict | list):
            yield from objects(part)


@every_config
def test_other_fields_and_other_types_are_refused(config: Any) -> None:
    """In every object of the value: a field too many, one too few, another "type", another kind."""
    text = json.dumps(to_json(config))
    for index in range(len(list(objects(json.loads(text))))):
        changes = [
            lambda x: x.update(unknown=1),
            lambda x: x.pop("type"),
            lambda x: x.update(type="Batch" if x["type"] != "Batch" else "Maker"),
            lambda x: x.update(type=7),
            *(lambda x, name=name: x.pop(name) for name in list(objects(json.loads(text)))[index]),
            *(
                lambda x, name=name: x.update({name: {"type": "Nothing"}})
                for name in list(objects(json.loads(text)))[index]
            ),
        ]
        for change in changes:
            value = json.loads(text)
            change(list(objects(value))[index])
            with pytest.raises(ValueError, match=r"."):
                from_json(type(config), value)


@pytest.mark.parametrize("value", [None, 3, "catch", [], [1], {}])
def test_what_is_no_object_is_refused(value: Any) -> None:
    """The message says the value and what would be right."""
    with pytest.raises(ValueError, match="StudySettings"):
        from_json(StudySettings, value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rollouts", "3"),
        ("rollouts", 3.5),
        ("rollouts", None),
        ("rollouts", True),
        ("runs", [[0.1]]),
        ("runs", [[0.1, 1, 2]]),
        ("runs", [["0.1", 1]]),
        ("runs", 3),
        ("maker", None),
        ("config", [1]),
    ],
)
def test_values_of_another_type_are_refused(name: str, value: Any) -> None:
    """A field need not have a range for that."""
    text = {**to_json(CONFIGS["runs"]), name: value}
    with pytest.raises(ValueError, match=r"."):
        from_json(Batch, text)


def test_a_learner_is_what_its_type_says() -> None:
    """Both learners have some fields of the same names."""
    value = to_json(TaskConfig())
    assert value["learner"]["type"] == "A2CConfig"
    assert isinstance(from_json(TaskConfig, value).learner, A2CConfig)
    value["learner"]["type"] = "PPOConfig"
    with pytest.raises(ValueError, match="these are not the fields of A2CConfig or PPOConfig"):
        from_json(TaskConfig, value)


@every_config
def test_ranges_hold_for_what_is_read(config: Any) -> None:
    """What the class itself refuses is refused here, too."""
    value = to_json(config)
    numbers = [name for name, x in value.items() if name in ("meta_seeds", "num_envs")]
    for name in numbers:
        with pytest.raises(ValueError, match=f"{name} = -1"):
            from_json(type(config), {**value, name: -1})
