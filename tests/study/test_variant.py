"""A variant is the reference with one field replaced, and every choice of a plan is one."""

import dataclasses
import itertools
from typing import get_args

import jax
import pytest

from optim4rl.meta.config import ResetSchedule, Validation
from optim4rl.optimizers.cells import CellKind
from optim4rl.optimizers.processing import PROCESSINGS
from optim4rl.optimizers.rule import init_meta_parameters
from optim4rl.optimizers.structures import STRUCTURES
from optim4rl.plans.optim4rl import COMPONENTS
from optim4rl.study.cells import Training, does_the_same, training_tasks
from optim4rl.study.experiment import describe_change
from optim4rl.study.settings import TrainingSettings
from optim4rl.study.variant import (
    REFERENCE,
    Environments,
    Life,
    Variant,
    Width,
    variant_spec,
)

REFERENCE_TRAINING = Training("catch", REFERENCE, TrainingSettings(), 64, 3e-3, 0)
CHOICES = [(c.field, choice.value) for c in COMPONENTS for choice in c.choices]
CHANGES = [(field, value) for field, value in CHOICES if getattr(REFERENCE, field) != value]
every_change = pytest.mark.parametrize(("field", "value"), CHANGES)


@every_change
def test_an_ablation_changes_one_field(field, value):
    variant = dataclasses.replace(REFERENCE, **{field: value})
    before, after = dataclasses.asdict(REFERENCE), dataclasses.asdict(variant)
    assert {name for name in before if before[name] != after[name]} == {field}
    assert after[field] == value


@every_change
def test_the_change_is_described(field, value):
    variant = dataclasses.replace(REFERENCE, **{field: value})
    assert describe_change(variant, REFERENCE) == f"{field}: {getattr(REFERENCE, field)} → {value}"
    assert describe_change(variant, variant) == ""


def test_several_changes_are_described_in_the_order_of_the_fields():
    variant = dataclasses.replace(REFERENCE, resets="never", structure="linear")
    assert (
        describe_change(variant, REFERENCE)
        == "structure: adaptive → linear; resets: staggered → never"
    )


def test_the_registry_of_a_plan_knows_every_field_and_every_value():
    possible: dict[str, tuple[str, ...]] = {
        "structure": STRUCTURES,
        "processing": PROCESSINGS,
        "cell": get_args(CellKind),
        "resets": get_args(ResetSchedule),
        "validation": get_args(Validation),
        "environments": get_args(Environments),
        "width": get_args(Width),
        "life": get_args(Life),
    }
    assert [f.name for f in dataclasses.fields(Variant)] == list(possible)
    named = {(field, value) for field, values in possible.items() for value in values}
    assert set(CHOICES) == named
    assert len(CHOICES) == len(named)


def test_what_the_registry_calls_published_is_the_reference():
    published = {c.field: c.reference for c in COMPONENTS if c.reference is not None}
    assert published.items() <= dataclasses.asdict(REFERENCE).items()


@pytest.mark.parametrize(("field", "value"), CHOICES)
def test_every_choice_can_be_meta_trained(field, value):
    variant = dataclasses.replace(REFERENCE, **{field: value})
    training = dataclasses.replace(REFERENCE_TRAINING, variant=variant)
    spec, config, settings = training.spec, training.config, training.settings
    found = {
        "structure": spec.structure.name,
        "processing": spec.processing.name,
        "cell": spec.cell,
        "resets": config.resets,
        "validation": config.validation,
        "environments": "one" if settings.envs_per_agent == 1 else "many",
        "width": "full" if settings.width == training.evaluation_width else "narrow",
        "life": "whole" if config.reset_interval == training.training.reset_interval else "short",
    }
    assert found == dataclasses.asdict(variant)
    shapes = jax.eval_shape(lambda: init_meta_parameters(spec, jax.random.key(0)))
    assert jax.tree.leaves(shapes)


def with_choice(field, value):
    return dataclasses.replace(
        REFERENCE_TRAINING, variant=dataclasses.replace(REFERENCE, **{field: value})
    )


def test_one_environment_per_agent_leaves_the_number_of_environments():
    training = with_choice("environments", "one")
    before, after = REFERENCE_TRAINING.settings, training.settings
    assert (before.agents, before.envs_per_agent) == (8, 64)
    assert (after.agents, after.envs_per_agent) == (512, 1)
    assert training.config.agents == 512
    (task,) = training_tasks(training.environment, after)
    assert task.task.config.num_envs == 1  # type: ignore[attr-defined]


def test_full_width_is_that_of_the_agents_in_evaluation():
    training = with_choice("width", "full")
    (task,) = training_tasks(training.environment, training.settings)
    assert task.task.config.width == training.evaluation_width == 64  # type: ignore[attr-defined]


@pytest.mark.parametrize(("whole", "short"), [(98, 12), (64, 8), (4, 1), (1, 1)])
def test_a_short_life_is_an_eighth_of_a_whole_one(whole, short):
    training = with_choice("life", "short")
    settings = dataclasses.replace(training.training, reset_interval=whole)
    assert dataclasses.replace(training, training=settings).config.reset_interval == short


@every_change
def test_every_change_changes_what_is_trained(field, value):
    assert not does_the_same(with_choice(field, value), REFERENCE_TRAINING)
    assert does_the_same(REFERENCE_TRAINING, dataclasses.replace(REFERENCE_TRAINING, meta_seed=0))


@pytest.mark.parametrize(("field", "value"), [("environments", "one"), ("width", "full")])
def test_what_the_reference_has_already_is_the_same_work(field, value):
    settings = TrainingSettings(envs_per_agent=1, width=REFERENCE_TRAINING.evaluation_width)
    before = dataclasses.replace(REFERENCE_TRAINING, training=settings)
    after = dataclasses.replace(with_choice(field, value), training=settings)
    assert does_the_same(before, after)


def test_width_replaces_nothing_where_networks_have_none():
    control = dataclasses.replace(REFERENCE_TRAINING, environment="gymnax:CartPole-v1")
    variant = dataclasses.replace(REFERENCE, width="full")
    assert does_the_same(control, dataclasses.replace(control, variant=variant))


def test_no_two_structures_or_processings_make_one_rule():
    specs = [
        variant_spec(
            dataclasses.replace(REFERENCE, structure=structure, processing=processing), 1.0
        )
        for structure, processing in itertools.product(STRUCTURES, PROCESSINGS)
    ]
    assert len(set(specs)) == len(STRUCTURES) * len(PROCESSINGS)


@pytest.mark.parametrize(("environment", "clip"), [("catch", None), ("small_dense_long", 1.0)])
def test_gradients_are_clipped_everywhere_but_on_catch(environment, clip):
    training = dataclasses.replace(REFERENCE_TRAINING, environment=environment)
    assert training.spec.clip == clip
    assert training.spec.zero_head
