"""A learned rule as a PyTorch optimizer."""

import math
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from optim4rl.optimizers import advice
from optim4rl.optimizers.tensors import Kind, Layout, layout_of, parts_of
from optim4rl.optimizers.weight_files import DEFAULT_WEIGHTS
from optim4rl.torch.names import ORDERS, Order, find_heads, name_parameters
from optim4rl.torch.native import runs_on
from optim4rl.torch.rule import Given, Rule, load_rule

# Kinds by parameter name (or number, if there are no names), or a function of name and parameter;
# missing kinds, and None, are inferred. Or the library whose order of parameters applies.
Kinds = Mapping[str, str] | Callable[[str, Tensor], str | None] | str


class Optim4RL(torch.optim.Optimizer):
    """Update parameters by a pretrained learned optimizer.

    All tensors of a param group are flattened into one vector, so many small tensors cost one pass.
    The tensors of a group must be on one device. State and arithmetic are float32 for parameters of
    any dtype. The default weights keep 3 numbers for each parameter (`rule.spec.state_floats`);
    Adam keeps 2. Parameters without a gradient are skipped and do not age.

    Attributes:
        rule: the rule with its weights.

    Args:
        params: tensors, `(name, tensor)` pairs such as `model.named_parameters()`, or param groups
            of either, each with its own `lr` and `step_scale` if you want.
        weights: a shipped name or the path of a weights file; by default the recommended weights.
        lr: the learning rate; None for the rate that the weights were trained with. The optimizer
            warns if the rate at the first step is more than ten times lower, as libraries set it
            for Adam.
        step_scale: multiplies every update; tune it like a learning rate.
        kinds: what each parameter is for ("weight", "bias", "policy_head", "value_head"), for
            weights that read it. None: inferred from names, by the same rules as in JAX
            (`optim4rl.optimizers.infer_layout`). Without names, kinds are inferred from shapes and
            order, and a warning names the result. "sb3" (PPO and A2C) and "cleanrl" name the
            library whose order applies.
        total_updates: length of the run in updates, if you know it. Weights that read how much of
            training is done profit from it; others take no notice.

    Raises:
        WeightsError: there are no such weights, or the file cannot be used.
        ValueError: an option or a parameter is of the wrong kind; the message names it.
    """

    def __init__(
        self,
        params: Iterable[Any],
        weights: str | Path = DEFAULT_WEIGHTS,
        lr: float | Tensor | None = None,
        step_scale: float = 1.0,
        kinds: Kinds | None = None,
        total_updates: int | None = None,
    ) -> None:
        self.rule = load_rule(weights)
        self._on_device: dict[torch.device, Rule] = {}
        self._kinds = kinds
        self._total_updates = total_updates
        self._layouts: list[Layout] = []
        self._seen: _Groups | None = None
        self._said: set[str] = set()
        rate = self.rule.learning_rate if lr is None else lr
        super().__init__(params, {"lr": rate, "step_scale": step_scale})
        if total_updates is not None and total_updates < 1:
            raise ValueError(f"total_updates = {total_updates!r}: a number of at least 1 is needed")
        self._require_known_kinds()
        self._follow_groups()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters with its own settings, as in any optimizer."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            _require_settings(group)
            if self._seen is not None:
                self._follow_groups()
        except ValueError:
            del self.param_groups[-1]
            raise

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a state, bit for bit.

        Raises:
            ValueError: the state belongs to another optimizer, other weights or other parameters.
        """
        # torch finds the parameter of each state, and casts the state to the parameter's dtype. Our
        # state stays float32, so we wrap it: after all hooks that change the state before loading,
        # and until before all hooks that see it after loading.
        hooks = (
            self.register_load_state_dict_pre_hook(lambda _, loaded: self._wrap_state(loaded)),
            self.register_load_state_dict_post_hook(lambda _: self._unwrap_state(), prepend=True),
        )
        before = self.state, self.param_groups
        try:
            super().load_state_dict(state_dict)
        except ValueError:
            self.state, self.param_groups = before
            raise
        finally:
            for hook in hooks:
                hook.remove()

    def _wrap_state(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        rows = self.rule.spec.state_floats
        groups = state_dict["param_groups"]
        ours = {index for group in groups for index in group["params"]}
        state = dict(state_dict["state"])
        for index in ours & set(state):
            if state[index] and len(state[index].get("memory", ())) != rows:
                raise ValueError(
                    f"state of parameter {index}: these weights need a memory of {rows} numbers "
                    "for each coordinate"
                )
            state[index] = _Wrapped(state[index])
        return {**state_dict, "state": state}

    def _unwrap_state(self) -> None:
        for p, state in self.state.items():
            if not isinstance(state, _Wrapped):
                continue
            memory = state.entries.get("memory")
            if memory is not None and memory.shape[1:] != (p.numel(),):
                raise ValueError(
                    f"state of a parameter of shape {list(p.shape)}: its memory has "
                    f"{memory.shape[1:].numel()} coordinates; {p.numel()} are needed"
                )
            self.state[p] = {
                name: x.to(p.device, copy=True) if isinstance(x, Tensor) else x
                for name, x in state.entries.items()
            }

    @torch.no_grad()
    def step(
        self,
        closure: Callable[[], Any] | None = None,
        *,
        training_proportion: float | Tensor | None = None,
        epoch_proportion: float | Tensor | None = None,
        dormancy: Mapping[str, Tensor] | None = None,
    ) -> Any:
        """Update every parameter that has a gradient.

        All arguments except the closure are optional inputs for weights that read them, such as
        OPEN's.

        Args:
            closure: evaluates the model again and returns the loss.
            training_proportion: the proportion of training that is done, 0 in the first rollout and
                1 in the last.
            epoch_proportion: the same for the epochs on this rollout.
            dormancy: how active each unit is, relative to the mean of its layer (1): by the name of
                a parameter (its number if there are no names), in a shape that broadcasts to the
                parameter. Units of missing parameters count as active as their layer.

        Raises:
            RuntimeError: a gradient is sparse or complex.
            ValueError: no parameter has such a name, or dormancy is of another shape.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for index, group in enumerate(self.param_groups):
            params: list[Tensor] = []
            gradients: list[Tensor] = []
            memories: list[Tensor] = []
            steps: list[Tensor] = []
            self._init_group(group, params, gradients, memories, steps)
            if params:
                met = zip(group["params"], self._layouts[index], strict=True)
                found = tuple(tensor for p, tensor in met if p.grad is not None)
                active = None if dormancy is None else self._dormancy(index, dormancy)
                training = training_proportion
                if training is None and self._total_updates is not None:
                    done = torch.stack(steps).max()  # Frozen parameters count fewer.
                    training = (done / max(self._total_updates - 1, 1)).clamp(max=1.0)
                device = params[0].device
                proportions = [
                    None if x is None else torch.as_tensor(x, dtype=torch.float32, device=device)
                    for x in (training, epoch_proportion)
                ]
                self._update(group, found, params, gradients, memories, steps, active, proportions)
        return loss

    def _dormancy(self, index: int, dormancy: Mapping[str, Tensor]) -> list[Tensor]:
        """Return the dormancy of a group's parameters with a gradient, in their shapes."""
        assert self._seen is not None
        names, first = self._seen.names, sum(self._seen.sizes[:index])
        unknown = [name for name in dormancy if name not in names]
        if unknown:
            raise ValueError(f"dormancy: no parameter is called {unknown[0]!r}")
        found = []
        for name, p in zip(names[first:], self.param_groups[index]["params"], strict=False):
            if p.grad is None:
                continue
            own = dormancy.get(name)
            try:
                found.append(torch.ones_like(p) if own is None else own.expand(p.shape))
            except RuntimeError as error:
                raise ValueError(f"dormancy of {name}: {error}") from error
        return found

    def _init_group(
        self,
        group: dict[str, Any],
        params: list[Tensor],
        gradients: list[Tensor],
        memories: list[Tensor],
        steps: list[Tensor],
    ) -> None:
        # torch.compile knows this method's name, and runs the method outside its graph.
        if group is self.param_groups[0]:
            self._follow_groups()
            self._warn_of_a_low_rate()
        for p in group["params"]:
            if p.grad is None:
                continue
            if p.grad.is_sparse:
                raise RuntimeError("Optim4RL does not support sparse gradients")
            if not p.is_floating_point():
                raise RuntimeError(f"a gradient is {p.dtype}; a real float is needed")
            state = self.state[p]
            if not state:
                rows = self.rule.spec.state_floats
                for name, shape in (("step", ()), ("memory", (rows, p.numel()))):
                    state[name] = torch.zeros(shape, dtype=torch.float32, device=p.device)
            params.append(p)
            gradients.append(p.grad)
            memories.append(state["memory"])
            steps.append(state["step"])

    def _update(
        self,
        group: dict[str, Any],
        layout: Layout,
        params: list[Tensor],
        gradients: list[Tensor],
        memories: list[Tensor],
        steps: list[Tensor],
        dormancy: list[Tensor] | None,
        proportions: Sequence[Tensor | None],
    ) -> None:
        """Move parameters and state, all of a group's tensors at once."""
        rule = self._rule_on(params[0].device)
        sizes = [p.numel() for p in params]
        with torch.autocast(params[0].device.type, enabled=False):
            if rule.native is not None and runs_on(gradients, [*memories, *steps]):
                direction = rule.native.directions(gradients, memories, steps, layout)
                rule.finish(direction, layout)
            else:
                given = Given(
                    _flat(gradients),
                    torch.cat(memories, dim=1),
                    torch.stack(steps),
                    _flat(params) if "params" in rule.spec.structure.reads else None,
                    layout,
                    None if dormancy is None else _flat(dormancy),
                    proportions,
                )
                direction, memory = rule.step(given)
                torch._foreach_copy_(memories, torch.split(memory, sizes, dim=1))
                torch._foreach_add_(steps, 1.0)
        direction *= group["lr"] * group["step_scale"]
        moves = torch.split(direction, sizes)
        torch._foreach_sub_(
            params, [move.view_as(p).to(p.dtype) for move, p in zip(moves, params, strict=True)]
        )

    def _rule_on(self, device: torch.device) -> Rule:
        if device not in self._on_device:
            self._on_device[device] = self.rule.to(device)
        return self._on_device[device]

    def _follow_groups(self) -> None:
        """Infer the layouts again if groups or parameters have changed."""
        groups = _Groups.of(self.param_groups)
        if self._seen is None or not self._seen.equals(groups):
            self._layouts = self._infer_layouts(groups)
            self._seen = groups

    def _infer_layouts(self, groups: "_Groups") -> list[Layout]:
        """Return the layout of each group, inferred from the names of all parameters."""
        params = [p for group in self.param_groups for p in group["params"]]

        def choose(inferred: list[Kind]) -> list[Any]:
            kinds = self._kinds
            if kinds is None or isinstance(kinds, str):
                return inferred
            if callable(kinds):
                chosen = [kinds(name, p) for name, p in zip(groups.names, params, strict=True)]
            else:
                chosen = [kinds.get(name) for name in groups.names]
            return [kind or other for kind, other in zip(chosen, inferred, strict=True)]

        shapes = [tuple(shape) for shape in groups.shapes]
        names = self._telling_names(groups, shapes)
        layout = iter(layout_of([parts_of(name) for name in names], shapes, choose))
        return [tuple(next(layout) for _ in group["params"]) for group in self.param_groups]

    def _telling_names(self, groups: "_Groups", shapes: list[tuple[int, ...]]) -> list[str]:
        """Return the parameters' names, or names inferred from shapes and order."""
        kinds = self._kinds
        if isinstance(kinds, str):
            heads = find_heads(shapes, cast(Order, kinds))
            if heads is None:
                raise ValueError(
                    f"kinds = {kinds!r}: these {len(shapes)} parameters are not a policy and a "
                    "value in this order; give model.named_parameters(), or kinds by name"
                )
            return name_parameters(shapes, heads)
        if groups.named:
            return groups.names
        if kinds is not None:
            return name_parameters(shapes, None)
        heads = find_heads(shapes)
        if "kind" in self.rule.spec.inputs:
            found = "do not show the heads of a policy and a value"
            if heads is not None:
                found = (
                    f"make parameter {heads.policy} ({list(shapes[heads.policy])}) the policy's "
                    f"head and parameter {heads.value} ({list(shapes[heads.value])}) the value's"
                )
            self._warn_once(
                "these weights read what each parameter is for, but the parameters have no names; "
                f"their shapes and order {found}: to be sure, give model.named_parameters(), or "
                "kinds"
            )
        return name_parameters(shapes, heads)

    def _warn_of_a_low_rate(self) -> None:
        """Warn at the first step if a rate suits Adam rather than the weights."""
        if "lr" in self._said:
            return
        self._said.add("lr")
        remedy = (
            "if a library sets a rate for Adam, give the library the rate of the weights "
            "(optim4rl.torch.sb3_settings for Stable-Baselines3)"
        )
        for group in self.param_groups:
            rate, scale = float(group["lr"]), float(group["step_scale"])
            message = advice.of_low_rate("lr", rate, scale, self.rule.learning_rate, remedy)
            if message is not None:
                self._warn_once(message)

    def _warn_once(self, message: str) -> None:
        if message in self._said:
            return
        self._said.add(message)
        advice.warn(message)

    def _require_known_kinds(self) -> None:
        if isinstance(self._kinds, str) and self._kinds not in ORDERS:
            raise ValueError(f"kinds = {self._kinds!r}: known orders are {', '.join(ORDERS)}")
        if isinstance(self._kinds, Mapping):
            known = _Groups.of(self.param_groups).names
            unknown = [name for name in self._kinds if name not in known]
            if unknown:
                raise ValueError(f"kinds: no parameter is called {unknown[0]!r}")

    def __getstate__(self) -> dict[str, Any]:
        own = {name: self.__dict__[name] for name in _KEPT}
        return {**super().__getstate__(), **own, "_layouts": [], "_seen": None}


# What a pickled or copied optimizer has beside torch's own attributes.
_KEPT = ("rule", "_on_device", "_kinds", "_total_updates", "_said")


@dataclass(frozen=True)
class _Wrapped:
    """Hold a parameter's state, so that torch passes it on unchanged."""

    entries: dict[str, Any]


class _Groups(NamedTuple):
    """Hold the parameters of all groups, from which layouts are inferred.

    Attributes:
        sizes: the number of parameters in each group.
        params: the parameters; a deleted parameter equals no parameter.
        shapes: their shapes.
        names: their names, or their numbers.
        named: whether each group has a name for each of its parameters.
    """

    sizes: list[int]
    params: list["weakref.ref[Tensor]"]
    shapes: list[torch.Size]
    names: list[str]
    named: bool

    @classmethod
    def of(cls, param_groups: list[dict[str, Any]]) -> "_Groups":
        """Return the parameters of an optimizer."""
        params = [p for group in param_groups for p in group["params"]]
        sizes = [len(group["params"]) for group in param_groups]
        given = [group.get("param_names", ()) for group in param_groups]
        named = [len(names) for names in given] == sizes
        names = (
            [name for x in given for name in x] if named else [str(i) for i in range(len(params))]
        )
        return cls(sizes, [weakref.ref(p) for p in params], [p.shape for p in params], names, named)

    def equals(self, other: "_Groups") -> bool:
        """Return whether these are the same parameters, with the same shapes and names."""
        same = all(a() is b() for a, b in zip(self.params, other.params, strict=False))
        return same and self._replace(params=[]) == other._replace(params=[])


def _flat(tensors: list[Tensor]) -> Tensor:
    """Return all coordinates, one after the other, in float32."""
    return torch.cat([x.reshape(-1).float() for x in tensors])


def _require_settings(group: Mapping[str, Any]) -> None:
    for name in ("lr", "step_scale"):
        value = group[name]
        if not 0 <= value < math.inf:
            raise ValueError(f"{name} = {value!r}: a finite number of at least 0 is needed")
    for index, p in enumerate(group["params"]):
        name = group.get("param_names", {index: index})[index]
        if p.requires_grad and not p.is_floating_point():
            raise ValueError(f"parameter {name} is {p.dtype}; a real float is needed")
        if hasattr(p, "device_mesh"):
            raise ValueError(f"parameter {name} is a DTensor; a whole tensor is needed")
