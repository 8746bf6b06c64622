"""A learned rule as a PyTorch optimizer."""

import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from optim4rl.optimizers.tensors import Kind, Layout, layout_of, parts_of
from optim4rl.torch.rule import Given, Rule, load_rule

# By parameter name (its number where there are no names), or a function of name and parameter; what
# is not given, or None, is inferred.
Kinds = Mapping[str, str] | Callable[[str, Tensor], str | None]


class Optim4RL(torch.optim.Optimizer):
    """A pretrained learned optimizer.

    All tensors of a param group are flattened into one vector, so that many small ones cost one
    pass; a group's tensors lie on one device. State and arithmetic are float32, whatever the
    parameters are: with "anchored-catch" 11 numbers for each of them (`rule.spec.state_floats`),
    where Adam keeps 2. Parameters without a gradient are skipped, and grow no older.

    Attributes:
        rule: the rule with its weights.

    Args:
        params: tensors, `(name, tensor)` pairs such as `model.named_parameters()`, or param groups
            of either, each with an `lr` and a `step_scale` of its own if wanted.
        weights: a shipped name or the path of a weights file.
        lr: the learning rate; None for the one that the weights were trained with.
        step_scale: multiplies every update; tune it like a learning rate.
        kinds: what each parameter is for ("weight", "bias", "policy_head", "value_head"), for
            weights that read it. None: inferred from names and shapes, by the same rules as in JAX
            (`optim4rl.optimizers.infer_layout`).

    Raises:
        WeightsError: there are no such weights, or the file cannot be used.
        ValueError: an option or a parameter is of the wrong kind; the message names it.
    """

    def __init__(
        self,
        params: Iterable[Any],
        weights: str | Path = "anchored-catch",
        lr: float | Tensor | None = None,
        step_scale: float = 1.0,
        kinds: Kinds | None = None,
    ) -> None:
        self.rule = load_rule(weights)
        self._on_device: dict[torch.device, Rule] = {}
        self._kinds = kinds
        self._layouts: list[Layout] = []
        rate = self.rule.learning_rate if lr is None else lr
        super().__init__(params, {"lr": rate, "step_scale": step_scale})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters with settings of their own, as in any optimizer."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            _require_settings(group)
            self._layouts = self._infer_layouts()
        except ValueError:
            del self.param_groups[-1]
            raise
        nameless = self._kinds is None and "param_names" not in group
        if nameless and "kind" in self.rule.spec.inputs:
            warnings.warn(
                "these weights read what each parameter is for, which only names tell: give "
                "model.named_parameters(), or kinds",
                stacklevel=3,
            )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a state, bit for bit.

        Raises:
            ValueError: it is the state of another optimizer, or of other weights.
        """
        rows = self.rule.spec.state_floats
        for index, state in state_dict["state"].items():
            if "memory" not in state or len(state["memory"]) != rows:
                raise ValueError(
                    f"state of parameter {index}: not a memory of {rows} numbers for each "
                    "coordinate, which these weights keep"
                )
        super().load_state_dict(state_dict)
        # A plain optimizer's state has the dtype of its parameter; this one is always float32.
        params = [p for group in self.param_groups for p in group["params"]]
        for index, state in state_dict["state"].items():
            p = params[index]
            self.state[p] = {name: x.to(p.device, copy=True) for name, x in state.items()}

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of every parameter that has a gradient.

        Args:
            closure: evaluates the model again and returns the loss.

        Raises:
            RuntimeError: a gradient is sparse.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group, layout in zip(self.param_groups, self._layouts, strict=True):
            params: list[Tensor] = []
            gradients: list[Tensor] = []
            memories: list[Tensor] = []
            steps: list[Tensor] = []
            self._init_group(group, params, gradients, memories, steps)
            if params:
                met = zip(group["params"], layout, strict=True)
                found = tuple(tensor for p, tensor in met if p.grad is not None)
                self._update(group, found, params, gradients, memories, steps)
        return loss

    def _init_group(
        self,
        group: dict[str, Any],
        params: list[Tensor],
        gradients: list[Tensor],
        memories: list[Tensor],
        steps: list[Tensor],
    ) -> None:
        # torch.compile knows this name: it runs the method as it is, outside its graph.
        for p in group["params"]:
            if p.grad is None:
                continue
            if p.grad.is_sparse:
                raise RuntimeError("Optim4RL does not support sparse gradients")
            state = self.state[p]
            if not state:
                state["step"] = torch.zeros((), device=p.device)
                rows = self.rule.spec.state_floats
                state["memory"] = torch.zeros(rows, p.numel(), device=p.device)
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
    ) -> None:
        """Move parameters and state, all of a group's tensors at once."""
        rule = self._rule_on(params[0].device)
        given = Given(
            _flat(gradients),
            torch.cat(memories, dim=1),
            torch.stack(steps),
            _flat(params) if "params" in rule.spec.structure.reads else None,
            layout,
        )
        direction, memory = rule.step(given)
        sizes = [p.numel() for p in params]
        moves = torch.split(direction * (group["lr"] * group["step_scale"]), sizes)
        torch._foreach_sub_(
            params, [move.view_as(p).to(p.dtype) for move, p in zip(moves, params, strict=True)]
        )
        torch._foreach_copy_(memories, torch.split(memory, sizes, dim=1))
        torch._foreach_add_(steps, 1.0)

    def _rule_on(self, device: torch.device) -> Rule:
        if device not in self._on_device:
            self._on_device[device] = self.rule.to(device)
        return self._on_device[device]

    def _infer_layouts(self) -> list[Layout]:
        """What each group's parameters are for, told from the names of all of them."""
        params = [p for group in self.param_groups for p in group["params"]]
        names = [name for group in self.param_groups for name in group.get("param_names", ())]
        names = names or [str(index) for index in range(len(params))]

        def choose(inferred: list[Kind]) -> list[Any]:
            kinds = self._kinds
            if kinds is None:
                return inferred
            if callable(kinds):
                chosen = [kinds(name, p) for name, p in zip(names, params, strict=True)]
            else:
                unknown = [name for name in kinds if name not in names]
                if unknown:
                    raise ValueError(f"kinds: no parameter is called {unknown[0]!r}")
                chosen = [kinds.get(name) for name in names]
            return [kind or other for kind, other in zip(chosen, inferred, strict=True)]

        layout = iter(
            layout_of([parts_of(name) for name in names], [tuple(p.shape) for p in params], choose)
        )
        return [tuple(next(layout) for _ in group["params"]) for group in self.param_groups]

    def __getstate__(self) -> dict[str, Any]:
        own = {name: self.__dict__[name] for name in ("rule", "_on_device", "_kinds", "_layouts")}
        return {**super().__getstate__(), **own}


def _flat(tensors: list[Tensor]) -> Tensor:
    """All coordinates one after the other, in float32."""
    return torch.cat([x.reshape(-1).float() for x in tensors])


def _require_settings(group: Mapping[str, Any]) -> None:
    for name in ("lr", "step_scale"):
        value = group[name]
        if not 0 <= value < float("inf"):
            raise ValueError(f"{name} = {value!r}: a finite number that is not negative is needed")
    for index, p in enumerate(group["params"]):
        if not p.is_floating_point():
            name = group.get("param_names", {index: index})[index]
            raise ValueError(f"parameter {name}: {p.dtype}, where real floating point is needed")
