"""Whatever a config, a command line or a card says: a clear error, or a correct run; never a crash.

Fields and options are those that the dataclasses declare, so that a new one is tried, too.
"""

import contextlib
import dataclasses
import io
import json
import math
import random
import shutil
import types
import typing
from pathlib import Path

import jax
import numpy as np
import pytest

from optim4rl.benchmark.contender import Maker
from optim4rl.benchmark.protocol import Protocol
from optim4rl.cli import ablate, evaluate, importing, main as cli, plan, plan_scores, train
from optim4rl.cli.main import main
from optim4rl.fields import shown
from optim4rl.jobs.pools import Workers
from optim4rl.meta.config import Augmentation
from optim4rl.meta.trainer import MetaConfig
from optim4rl.optimizers.rule import OptimizerSpec, spec_to_dict
from optim4rl.optimizers.weight_files import WeightsError, weights_as_bytes
from optim4rl.optimizers.weights import load_weights, untrained
from optim4rl.plans.planner.propose import Limits
from optim4rl.study import identity
from optim4rl.study.settings import SMOKE, EvaluationSettings, StudySettings, TrainingSettings
from optim4rl.tasks import TaskConfig
from optim4rl.tasks.a2c import A2CConfig
from optim4rl.tasks.ppo import PPOConfig

PLAN = Path(__file__).parents[2] / "plans" / "optim4rl.md"
NAN, INF, HUGE = float("nan"), float("inf"), 10**400

# --- Fields of configs ----------------------------------------------------------------------------

CONFIGS = [
    TaskConfig(),
    A2CConfig(),
    PPOConfig(),
    MetaConfig(),
    Augmentation(),
    OptimizerSpec(),
    Protocol(),
    Maker("adam"),
    EvaluationSettings(),
    TrainingSettings(),
    StudySettings(),
    identity.SMOKE,
    Workers(cluster="auto"),
    Limits(),
    train.ExecutionOptions(),
]
# Where a number below 0, or 0, means something.
ANY_SIGN = {"seed"}
ZERO = {
    *("gamma", "lam", "cosine_to", "value_weight", "entropy_weight", "job_gpus", "rounds"),
    *("adam_epsilon", "recording_learning_rate", "learning_rates", "price"),
    *("devices", "agents_per_chunk", "memory", "greedy_episodes", "extensions", "final_share"),
}


def leaves(declared):
    """The types that a declared type is made of."""
    origin, parts = typing.get_origin(declared), typing.get_args(declared)
    if origin is typing.Annotated:
        yield from leaves(parts[0])
    elif origin in (typing.Union, types.UnionType):
        for part in parts:
            yield from leaves(part)
    else:
        yield declared


def bad_numbers(kind, name):
    """Numbers that no field of this type and name takes."""
    yield from (NAN, INF, -INF, HUGE, -HUGE, True, "1", b"1", [1], {}, 1j)
    if kind is int:
        yield from (0.5, 2**31, -(2**40))
    if name not in ANY_SIGN:
        yield -1
    if name not in ANY_SIGN | ZERO:
        yield 0


def bad_values(declared, name):
    """Values that the field must refuse."""
    kinds = list(leaves(declared))
    scalars = [kind for kind in kinds if kind in (int, float)]
    several = [kind for kind in kinds if typing.get_origin(kind) is tuple]
    if type(None) not in kinds:
        yield None
    for kind in scalars:
        yield from bad_numbers(kind, name)
    for kind in several:
        part = typing.get_args(kind)[0]
        bad = bad_numbers(part, name) if part in (int, float) else (1, None, "odd", ())
        for x in bad:
            yield (x,) * 2
        yield from ([1], {1: 2}, "text")
    if bool in kinds:
        yield from (1, "yes", 0.0)
    if str in kinds or Path in kinds:
        yield from (1, b"x", ["x"])
    if any(typing.get_origin(kind) is typing.Literal for kind in kinds):
        yield from ("odd", 1, "", b"x")
    if any(dataclasses.is_dataclass(kind) for kind in kinds):
        yield from (1, "x", {})


def tries(configs):
    for config in configs:
        hints = typing.get_type_hints(type(config))
        for field in dataclasses.fields(config):
            for value in bad_values(hints[field.name], field.name):
                yield config, field.name, value


TRIES = list(tries(CONFIGS))


def make(config, name, value):
    """What a user meets, who has no type checker in front of the checks."""
    unchecked = object.__new__(type(config))
    for field in dataclasses.fields(config):
        object.__setattr__(unchecked, field.name, getattr(config, field.name))
    object.__setattr__(unchecked, name, value)
    unchecked.__post_init__()


def test_every_field_names_what_it_refuses():
    wrong = []
    for config, name, value in TRIES:
        said = None
        with contextlib.suppress(ValueError):
            try:
                make(config, name, value)
            except ValueError as error:
                said = str(error)
            except Exception as error:
                said = f"{type(error).__name__}: {error}"
        if said is None or not said.startswith(f"{name} = {shown(value)}: "):
            wrong.append((type(config).__name__, name, shown(value), said))
    fields = {(type(config), name) for config, name, _ in TRIES}
    print(f"fields: {len(fields)}, values tried: {len(TRIES)}, not refused clearly: {len(wrong)}")
    assert wrong == []


# --- Options of commands --------------------------------------------------------------------------

COMMANDS = {
    "train": (train.TrainOptions, ["--out=o"]),
    "evaluate": (evaluate.EvaluateOptions, ["--out=o"]),
    "evaluate --suite=grid": (evaluate.EvaluateOptions, ["--out=o"]),
    "ablate": (ablate.AblateOptions, [str(PLAN), "--out=o"]),
    "identity": (ablate.IdentityOptions, ["--out=o"]),
    "import": (importing.ImportOptions, ["open", "weights.npy", "--out=o"]),
    "plan propose": (plan.ProposeOptions, ["--of=optim4rl", "--out=o"]),
    "plan lint": (plan.LintOptions, [str(PLAN)]),
    "plan score": (plan_scores.ScoreOptions, [str(PLAN), f"--against={PLAN}"]),
    "plan show": (plan.ShowOptions, [str(PLAN)]),
}
# What stands between the options and the work.
WORK = [
    (train, "plan_execution"),
    (evaluate, "run_benchmark"),
    (ablate, "run_study"),
    (importing, "import_open"),
    (identity, "identity_experiment"),
    (plan, "propose"),
]
WORDS = [
    *("nan", "inf", "-inf", "1e999", "-1", "0", "1.5", "", "x", "é", "None", "True", "[1]", "1,2"),
    *(
        "../../up",
        "9" * 30,
        "9" * 400,
        "a" * 10_000,
        "\N{RIGHT-TO-LEFT OVERRIDE}",
        "-",
        "--",
        "0x1",
    ),
]
NO_NUMBERS = {"nan", "inf", "-inf", "1e999", "", "x", "é", "[1]", "1,2", "../../up", "a" * 10_000}
# Of several processes, -1 is none; which of them this is has no meaning without the others.
FREE = {"process_id", "num_processes"}


class Started(Exception):  # noqa: N818
    """The options are accepted, and the work would begin."""


def options_of(cls):
    """Every option of a command: its name and its type."""
    hints = typing.get_type_hints(cls, include_extras=True)
    for field in dataclasses.fields(cls):
        kinds = list(leaves(hints[field.name]))
        if "Positional" in str(hints[field.name]):
            continue
        if dataclasses.is_dataclass(kinds[0]):
            yield from options_of(kinds[0])
        else:
            yield field.name, kinds


def is_number(kinds):
    numbers = [
        kind
        for kind in kinds
        if kind in (int, float) or (typing.get_args(kind) or (None,))[0] in (int, float)
    ]
    return bool(numbers) and str not in kinds


def must_be_refused(name, kinds, word):
    if not is_number(kinds) or word in ("None", "True", "--", "-", "0x1"):
        return False
    if word in NO_NUMBERS or len(word) > 100:
        return True
    return word == "-1" and name not in ANY_SIGN | FREE


@pytest.fixture
def commands(monkeypatch, tmp_path):
    """Commands that stop before their work, in an empty folder."""

    def started(*arguments, **options):
        raise Started

    monkeypatch.setattr(cli, "configure_jax", lambda: None)
    monkeypatch.chdir(tmp_path)
    for module, name in WORK:
        monkeypatch.setattr(module, name, started)


def outcome(words):
    """The exit code, "started", or the error that nobody caught; and what was said."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main(words)
            code: int | str = 0
        except Started:
            code = "started"
        except SystemExit as exit:
            code = exit.code or 0
        except BaseException as error:
            code = f"{type(error).__name__}: {error}"[:300]
    return code, err.getvalue()


def is_named(name, word, said):
    """Whether what is said names the option, or what it was given."""
    option, number = f"--{name.replace('_', '-')}", ""
    with contextlib.suppress(ValueError, OverflowError):
        number = repr(float(word))
    given = [x[:20] for x in (word or "'.'", repr(word), number) if x]
    return any(x in said for x in (name, name[:-1], option, *given))


def complaint(command, name, kinds, word):
    """What is wrong with how an option takes a word; None if nothing is."""
    for path in Path().iterdir():  # The folder is each command's own.
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    option = f"--{name.replace('_', '-')}={word}"
    code, said = outcome([*command.split(), *COMMANDS[command][1], option])
    if code not in (0, 1, 2, "started"):
        return f"it raises {code}"
    if "Traceback" in said:
        return "a traceback"
    a_word_of_its_own = kinds == [bool]  # `--json=x` is read as `--json x`
    if code == 2 and not (a_word_of_its_own or name in FREE or is_named(name, word, said)):
        return f"the error does not name it: {said[-300:]}"
    if code != 2 and must_be_refused(name, kinds, word):
        return f"accepted: {code}"
    return None


def all_options():
    for command, (cls, _) in COMMANDS.items():
        for name, kinds in options_of(cls):
            yield from ((command, name, kinds, word) for word in WORDS)


def check_options(cases):
    wrong = []
    for command, name, kinds, word in cases:
        if why := complaint(command, name, kinds, word):
            wrong.append((command, name, shown(word), why))
    print(f"command lines tried: {len(cases)}, of them wrong: {len(wrong)}")
    assert wrong == []


@pytest.mark.usefixtures("commands")
def test_some_options_refuse_some_words():
    check_options(random.Random(0).sample(list(all_options()), 25))


@pytest.mark.slow
@pytest.mark.usefixtures("commands")
def test_every_option_refuses_every_wrong_word():
    check_options(list(all_options()))


# --- Cards of weights -----------------------------------------------------------------------------

OPTIMIZER = untrained("optim4rl-rlc", 3e-3, jax.random.key(0))
JUNK = [
    *(None, True, 0, -1, 2**70, 1e-400, NAN, INF, "", "x", "../../up", [], [[]], {}, {"name": "x"}),
    *([1] * 50, "a" * 100_000, [None], {"a": [{"b": {}}]}),
]


def mutated(values, chance):
    """A card's values with one of them replaced, removed, or another one added."""
    values = json.loads(json.dumps(values))
    place, key = values, chance.choice(list(values))
    while isinstance(place[key], (dict, list)) and place[key] and chance.random() < 0.7:
        place = place[key]
        key = chance.choice(list(place) if isinstance(place, dict) else range(len(place)))
    match chance.randrange(4):
        case 0 if isinstance(place, dict):
            del place[key]
        case 1 if isinstance(place, dict):
            place[chance.choice(["extra", "name", "format"])] = chance.choice(JUNK)
        case _:
            place[key] = chance.choice(JUNK)
    return values


def numbers_in(values):
    """All numbers in nested values."""
    if isinstance(values, (dict, list)):
        parts = values.values() if isinstance(values, dict) else values
        return [x for part in parts for x in numbers_in(part)]
    return [values] if isinstance(values, float) else []


def check_cards(folder, count):
    """With a right checksum, so that it is the fields that must be looked at."""
    path = folder / "weights.safetensors"
    tensors = {
        f"{network}.{name}": np.asarray(x)
        for network, weights in OPTIMIZER.meta_parameters.items()
        for name, x in weights.items()
    }
    good = {"spec": spec_to_dict(OPTIMIZER.spec), "learning_rate": 3e-3, "card": {"seed": 1}}
    chance, refused = random.Random(0), 0
    for _ in range(count):
        values = mutated(good, chance)
        values = mutated(values, chance) if chance.random() < 0.3 and values else values
        try:
            rate = float(values.get("learning_rate", 0.0))
            card = dict(values.get("card") or {})
            data = weights_as_bytes(values.get("spec"), rate, card, tensors)
        except (TypeError, ValueError, OverflowError):
            continue  # Not a card that the format can hold.
        path.write_bytes(data)
        try:
            found = load_weights(path)
        except WeightsError as error:
            said = str(error)
        else:
            said = ""
            assert 0 < found.learning_rate < math.inf
            assert all(np.isfinite(x).all() for x in jax.tree.leaves(found.meta_parameters))
            assert all(map(math.isfinite, numbers_in(spec_to_dict(found.spec))))
        assert said == "" or str(path) in said
        refused += bool(said)
    print(f"cards tried: {count}, refused by name: {refused}, wrong: 0")
    assert refused > count / 5


def test_some_cards_are_refused_by_name_or_good(tmp_path):
    check_cards(tmp_path, 60)


@pytest.mark.slow
def test_many_cards_are_refused_by_name_or_good(tmp_path):
    check_cards(tmp_path, 3_000)


def test_a_study_of_bad_settings_is_not_begun():
    with pytest.raises(ValueError, match=r"^training = None: a TrainingSettings is needed"):
        make(SMOKE, "training", None)
