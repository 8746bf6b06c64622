"""Contenders: the optimizers that a benchmark compares.

A contender is a learned rule, a classical optimizer, or an optimizer from a user's file. It is a
value that can be sent to workers. It has a name and a grid of one number, and it says for each
meta-seed how to make an optimizer from that number.
"""

import dataclasses
import hashlib
import inspect
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from optim4rl.benchmark.given import FromFile, check_given, source_address
from optim4rl.benchmark.protocol import require_grid
from optim4rl.evaluation.learning import Accompanied, Classical, Family, Learned
from optim4rl.fields import POSITIVE, check_fields
from optim4rl.files.atomic import write_atomically
from optim4rl.files.reading import read_file
from optim4rl.jobs.store import StoreError
from optim4rl.optimizers.presets import CLASSICAL
from optim4rl.optimizers.resetting import Reset
from optim4rl.optimizers.rule import (
    MetaParameters,
    OptimizerSpec,
    init_meta_parameters,
    spec_to_dict,
)
from optim4rl.optimizers.structures import Modulated
from optim4rl.optimizers.weights import LearnedOptimizer, load_weights, save_weights

# baseline: a classical optimizer. given: from a user's file. learned: a rule with trained weights.
# control: the same rule, untrained.
Role = Literal["learned", "control", "given", "baseline"]
# Endings of names: of an untrained control, and of a contender with companions.
CONTROL = " untrained"
ACCOMPANIED = " with companions"


@dataclass(frozen=True)
class Maker:
    """Describe how to make an optimizer from its rate. Exactly one of three kinds is set.

    Attributes:
        optimizer: name of a classical optimizer.
        weights: address of a learned optimizer's weights; see `keep_weights`.
        source: a function in a user's file, as "ADDRESS:FUNCTION"; see `given_contender`.
        clip: clip the gradient's global norm to this; None: do not clip.
        epsilon: epsilon of a classical optimizer that has one; None: optax's default.
        decay: let the rate fall linearly to zero over the run. A rule whose own steps fall
            (`Modulated.decay`) leaves that to the rate: both would make them fall twice.
        reset: which state is reset before every rollout (`optimizers.resetting`); None: nothing.
        raw_rewards: train on rewards that are not normalised, with the environment's usual scale,
            whatever the task says.
    """

    optimizer: str | None = None
    weights: str | None = None
    source: str | None = None
    clip: float | None = None
    epsilon: float | None = None
    decay: bool = False
    reset: Reset | None = None
    raw_rewards: bool = False

    def __post_init__(self) -> None:
        check_fields(self, clip=POSITIVE, epsilon=POSITIVE)
        kinds = (self.optimizer, self.weights, self.source)
        if sum(kind is not None for kind in kinds) != 1:
            raise ValueError(f"optimizer, weights, source = {kinds!r}: exactly one is needed")
        if self.epsilon is not None and self.optimizer is None:
            raise ValueError(f"epsilon = {self.epsilon!r}: this is for classical optimizers")

    @property
    def file(self) -> Path | None:
        """Return the path of the file that it needs, relative to the folder of results."""
        if self.weights is not None:
            return Path("weights") / f"{self.weights}.safetensors"
        if self.source is not None:
            return Path("contenders") / f"{self.source.partition(':')[0]}.py"
        return None

    def family(
        self, folder: Path, updates: int, of_rollout: int = 1
    ) -> tuple[Family, MetaParameters | None]:
        """Return the optimizer as a function of its rate, and its meta-parameters if any.

        Args:
            folder: folder that holds the optimizer's file.
            updates: inner updates of a whole run.
            of_rollout: inner updates per rollout.

        Raises:
            StoreError: the file's contents do not match its address.
        """
        family: Family
        parameters = None
        path = folder / str(self.file)
        if self.optimizer is not None:
            family = Classical(self.optimizer, self.epsilon)
        elif self.weights is not None:
            learned = load_weights(path)
            _require_address(path, weights_address(learned), self.weights)
            spec = without_own_decay(learned.spec) if self.decay else learned.spec
            family, parameters = Learned(spec), learned.meta_parameters
        else:
            address, _, function = str(self.source).partition(":")
            _require_address(path, source_address(read_file(path)), address)
            family = FromFile(path, function, updates)
        if self.clip is None and not self.decay and self.reset is None:
            return family, parameters
        decay_over = updates if self.decay else None
        return Accompanied(family, self.clip, decay_over, self.reset, of_rollout), parameters

    def accompanied(self, parts: str) -> "Maker":
        """Return a copy with companions, such as "clip0.5+eps1e-5+decay+reset_time".

        Raises:
            ValueError: a part is not in `PARTS`, or its number is out of range.
        """
        changes: dict[str, Any] = {}
        for part in parts.split("+"):
            found = _PART.fullmatch(part)
            if found is None:
                raise ValueError(f"{part!r}: parts are {', '.join(PARTS)}")
            match found.groupdict():
                case {"number": str(number)}:
                    changes["clip" if part.startswith("clip") else "epsilon"] = float(number)
                case {"reset": "time" | "moments" as what}:
                    changes["reset"] = what
                case _:
                    changes[part] = True
        return dataclasses.replace(self, **changes)


def without_own_decay(spec: OptimizerSpec) -> OptimizerSpec:
    """Return the rule without a fall of its steps by itself, because its rate falls already."""
    if not isinstance(spec.structure, Modulated):
        return spec
    return dataclasses.replace(spec, structure=dataclasses.replace(spec.structure, decay=False))


def _require_address(path: Path, found: str, wanted: str) -> None:
    if found != wanted:
        raise StoreError(f"{path}: its content does not match its name; delete it and start again")


# Companions of an optimizer. They combine in any order.
PARTS = ("clip0.5", "eps1e-5", "decay", "reset_time", "reset_moments", "raw_rewards")
_PART = re.compile(
    r"(?:clip|eps)(?P<number>\d+(?:\.\d*)?(?:e-?\d+)?)|decay|raw_rewards"
    r"|reset_(?P<reset>time|moments)"
)


def split_parts(text: str) -> tuple[str, str]:
    """Split off the companions: "adam+clip0.5+decay" gives ("adam", "clip0.5+decay")."""
    name, parts = text, ""
    while "+" in name and _PART.fullmatch(name.rpartition("+")[2]):
        name, _, part = name.rpartition("+")
        parts = f"{part}+{parts}" if parts else part
    return name, parts


# Agents that never update.
UNTRAINED = Maker("sgd")


@dataclass(frozen=True)
class Contender:
    """Hold one optimizer that a benchmark compares.

    Attributes:
        name: its name in tables.
        role: see `Role`.
        members: one for each meta-seed; an optimizer that is not learned has one.
        grid: the settings to tune over: learning rates, or step scales.
        unit: multiplies each setting: 1, or a learned optimizer's own rate.
        control: name of its untrained control, if there is one.
    """

    name: str
    role: Role
    members: tuple[Maker, ...]
    grid: tuple[float, ...]
    unit: float = 1.0
    control: str | None = None

    def __post_init__(self) -> None:
        require_grid("grid", self.grid)

    def accompanied(self, parts: str = "clip0.5+decay", suffix: str = ACCOMPANIED) -> "Contender":
        """Return a copy with companions: by default a norm clip of 0.5 and a falling rate.

        Args:
            parts: see `Maker.accompanied`.
            suffix: appended to its name and its control's; "" if all contenders have companions.
        """
        members = tuple(maker.accompanied(parts) for maker in self.members)
        control = None if self.control is None else self.control + suffix
        return dataclasses.replace(self, name=self.name + suffix, members=members, control=control)


# Names for classical optimizers with companions. "adam_ppo" is Adam as PPO users run it: Huang et
# al. 2022, "The 37 implementation details of PPO". For Adam-Rel see `optimizers.resetting`.
_NAMED = {
    "adam_ppo": "adam+clip0.5+eps1e-5+decay",
    "adam_rel": "adam+clip0.5+eps1e-5+decay+reset_time",
    "adam_decay": "adam+decay",
    "adam_raw_rewards": "adam+raw_rewards",
    "rmsprop_ppo": "rmsprop+clip0.5+eps1e-5+decay",
    "sign_sgd_ppo": "sign_sgd+clip0.5+decay",
    "muon_ppo": "muon+clip0.5+decay",
    "muon_rms_ppo": "muon_rms+clip0.5+decay",
}
BASELINES = (*CLASSICAL, *_NAMED)


def baseline_maker(text: str) -> Maker:
    """Look up a classical optimizer, such as "adam_ppo" or "adam+clip0.5+eps1e-5+decay".

    Raises:
        ValueError: the name or a part is unknown, or the optimizer has no epsilon.
    """
    name, *more = text.split("+")
    if name not in BASELINES:
        raise ValueError(
            f"baselines = {text!r}: {name!r} is none of {', '.join(BASELINES)}; companions follow "
            f"as parts: +{', +'.join(PARTS)}"
        )
    optimizer, *usual = _NAMED.get(name, name).split("+")
    maker, parts = Maker(optimizer), [*usual, *more]
    try:
        maker = maker.accompanied("+".join(parts)) if parts else maker
    except ValueError as error:
        raise ValueError(f"baselines = {text!r}: {error}") from error
    if maker.epsilon is not None and not CLASSICAL[optimizer].has_epsilon:
        raise ValueError(f"baselines = {text!r}: optimizer {optimizer!r} has no epsilon")
    return maker


def baseline(name: str, rates: Sequence[float]) -> Contender:
    """Make a contender of a classical optimizer, tuned over learning rates.

    Raises:
        ValueError: see `baseline_maker`.
    """
    return Contender(name, "baseline", (baseline_maker(name),), tuple(rates))


# Learned optimizers


def load_groups(groups: Sequence[str]) -> dict[str, list[LearnedOptimizer]]:
    """Load every group of learned optimizers, and its untrained control, by name.

    A group has one learned optimizer for each meta-seed.

    Args:
        groups: shipped names or paths; for several meta-seeds of one recipe, separate by commas.

    Raises:
        WeightsError: weights cannot be read.
        ValueError: a group comes twice, its members do not belong to one recipe, or two of them
            have the same weights.
    """
    if len(set(groups)) < len(groups):
        raise ValueError(f"weights = {groups!r}: give each optimizer once")
    found = {}
    for group in groups:
        members = [load_weights(name) for name in group.split(",")]
        if len({(m.spec, m.learning_rate) for m in members}) != 1:
            raise ValueError(f"weights = {group!r}: the members of a group must share their spec")
        if len(set(map(weights_address, members))) < len(members):
            raise ValueError(f"weights = {group!r}: the same weights twice are one meta-seed")
        # With zero heads an untrained rule is the same for every seed.
        controls = members[:1] if members[0].spec.zero_head else members
        found[group] = members
        found[f"{group}{CONTROL}"] = [_untrained(member) for member in controls]
    return found


def _untrained(member: LearnedOptimizer) -> LearnedOptimizer:
    import jax

    key = jax.random.key(int(member.card.get("seed", 0)))
    return dataclasses.replace(member, meta_parameters=init_meta_parameters(member.spec, key))


def learned_contenders(
    groups: Sequence[str], step_scales: Sequence[float], folder: Path, *, controls: bool = True
) -> list[Contender]:
    """Make contenders from weights, each with its control, and copy weights to the folder.

    Raises:
        WeightsError: weights cannot be read.
        ValueError: as `load_groups`.
    """
    names = _short_names(groups)
    contenders = []
    for group, optimizers in load_groups(groups).items():
        control = group.endswith(CONTROL)
        if control and not controls:
            continue
        addresses = [keep_weights(folder, optimizer) for optimizer in optimizers]
        members = tuple(Maker(weights=address) for address in dict.fromkeys(addresses))
        name = names[group.removesuffix(CONTROL)]
        contenders.append(
            Contender(
                name + CONTROL * control,
                "control" if control else "learned",
                members,
                tuple(step_scales),
                optimizers[0].learning_rate,
                name + CONTROL if controls and not control else None,
            )
        )
    return contenders


def _short_names(groups: Sequence[str]) -> dict[str, str]:
    """Name each group for tables: its first member's file name, and how many members follow."""
    names = {}
    for group in groups:
        first, *others = group.split(",")
        names[group] = Path(first).stem + (f" +{len(others)}" if others else "")
    if len({*names.values(), *BASELINES}) < len(names) + len(BASELINES):
        return {group: group for group in groups}
    return names


def keep_weights(folder: Path, optimizer: LearnedOptimizer) -> str:
    """Save weights for workers in the folder, under their address, and return the address."""
    address = weights_address(optimizer)
    path = folder / str(Maker(weights=address).file)
    if not path.is_file():
        save_weights(path, optimizer)
    return address


def weights_address(optimizer: LearnedOptimizer) -> str:
    """Hash the rule and its weights."""
    digest = hashlib.sha256(json.dumps(spec_to_dict(optimizer.spec), sort_keys=True).encode())
    for network, tensors in sorted(optimizer.meta_parameters.items()):
        for name, x in sorted(tensors.items()):
            digest.update(f"{network}.{name}".encode() + np.asarray(x).tobytes())
    return digest.hexdigest()[:24]


# Optimizers from users' files


def function_contender(make: Callable[..., Any], rates: Sequence[float], folder: Path) -> Contender:
    """Make a contender from a function of the learning rate, and copy its file to the folder.

    Workers are separate processes. They read the function from its file.

    Args:
        make: a function at the top level of a file; see `benchmark.given`.
        rates: learning rates to tune over.
        folder: folder where workers look for the file.

    Raises:
        ValueError: `make` is not such a function, or it cannot be used.
    """
    name = getattr(make, "__qualname__", repr(make))
    try:
        path = inspect.getsourcefile(make)
    except TypeError:
        path = None
    if path is None or not name.isidentifier() or not Path(path).is_file():
        raise ValueError(
            f"make = {name}: workers read it from its file, so a function at the top of a .py file "
            "is needed"
        )
    return dataclasses.replace(given_contender(f"{path}:{name}", rates, folder), grid=tuple(rates))


def given_contender(name: str, rates: Sequence[float], folder: Path) -> Contender:
    """Make a contender from a function in a file, and copy the file to the folder.

    Args:
        name: "PATH.py:FUNCTION"; see `benchmark.given`.
        rates: learning rates to tune over if the file has no `FUNCTION_rates`.
        folder: folder where workers look for the file.

    Raises:
        ValueError: the file or the function is missing or unusable; the message names it.
    """
    path, _, function = name.rpartition(":")
    grid = check_given(Path(path), function) or tuple(rates)
    data = read_file(path)
    maker = Maker(source=f"{source_address(data)}:{function}")
    kept = folder / str(maker.file)
    if not kept.is_file():
        write_atomically(kept, data)
    return Contender(f"{Path(path).stem}:{function}", "given", (maker,), grid)
