"""Infers names for nameless parameters from their shapes and their order.

Libraries give optimizers `module.parameters()`. A network's layers follow each other, each with its
kernel first; a kernel's outputs are its first axis. A kernel that does not take the outputs of the
kernel before it starts a new chain of layers. The last kernel of a chain is a head, unless a later
kernel takes its outputs. If one head has a single output and the other has several, the head with
several outputs is the policy's. Otherwise the library's order must be known:

| order | library | heads |
|---|---|---|
| sb3 | PPO and A2C of Stable-Baselines3 | policy, then value, after all other layers |
| cleanrl | CleanRL's PPO | the same on shared layers; with two networks, the critic comes first |
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

Order = Literal["sb3", "cleanrl"]
ORDERS: tuple[Order, ...] = get_args(Order)

Shape = tuple[int, ...]


class Heads(NamedTuple):
    """Hold the positions of the two heads' kernels among the parameters."""

    policy: int
    value: int


def find_heads(shapes: Sequence[Shape], order: Order | None = None) -> Heads | None:
    """Return the heads of an actor and critic; None if shapes and order leave them open.

    Args:
        shapes: the shapes of all parameters.
        order: a library's order; None: infer only what is certain without it.
    """
    chains = _chains(shapes)
    ends = [
        chain[-1]
        for index, chain in enumerate(chains)
        if not any(_follows(shapes, chain[-1], later) for x in chains[index + 1 :] for later in x)
    ]
    outputs = [shapes[index][0] for index in ends]
    if len(ends) != 2 or 1 not in outputs:
        return None
    if outputs != [1, 1]:
        return Heads(*(ends if outputs[1] == 1 else reversed(ends)))
    alone = len(chains[-1]) == 1
    if order == "cleanrl":
        return Heads(*(ends if alone else reversed(ends)))
    return Heads(*ends) if order == "sb3" and alone else None


def name_parameters(shapes: Sequence[Shape], heads: Heads | None) -> list[str]:
    """Return a name for each parameter: its layer, its head, and whether it is a kernel."""
    of_heads = {} if heads is None else {heads.policy: "policy_head", heads.value: "value_head"}
    names, layer, count = [], "", 0
    for index, shape in enumerate(shapes):
        if len(shape) > 1:
            layer, count = of_heads.get(index, f"torso.{count}"), count + 1
        names.append(f"{layer}.{'weight' if len(shape) > 1 else 'bias'}" if layer else "bias")
    if heads is not None and _has_deviations(shapes):
        names[0] = "actor_logstd"
    return names


def _has_deviations(shapes: Sequence[Shape]) -> bool:
    """Return whether a row of log standard deviations comes first."""
    return len(shapes) > 1 and len(shapes[0]) == 2 and shapes[0][0] == 1 and len(shapes[1]) > 1


def _chains(shapes: Sequence[Shape]) -> list[list[int]]:
    """Return the kernels, chain by chain."""
    chains: list[list[int]] = []
    for index, shape in enumerate(shapes):
        if len(shape) < 2 or (index == 0 and _has_deviations(shapes)):
            continue
        if chains and _follows(shapes, chains[-1][-1], index):
            chains[-1].append(index)
        else:
            chains.append([index])
    return chains


def _follows(shapes: Sequence[Shape], first: int, second: int) -> bool:
    """Return whether a kernel can take another's outputs, images flattened for a matrix."""
    outputs, inputs = shapes[first][0], shapes[second][1]
    flattened = len(shapes[first]) > 2 and len(shapes[second]) == 2
    return inputs % outputs == 0 if flattened and outputs else inputs == outputs
