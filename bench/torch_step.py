"""A step in PyTorch on one thread of a CPU: the shipped weights against Adam, by size of network.

`python -m bench torch_step` prints the table as JSON, `python -m bench.torch_step` as Markdown;
a further word `compiled` times compiled steps, whose matrix products are not told apart.
"""

import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from bench.measure import Table, rounded
from bench.report import markdown_table
from optim4rl.torch import Optim4RL

WIDTHS = (64, 220, 702)  # about 1e4, 1e5 and 1e6 parameters
WEIGHTS = ("ppo-generalist", "scaled-generalist", "anchored-catch")
TURNS = 40
SECONDS = 20.0  # of turns at one size; there are at least 5


class Products:
    """Counts the CPU time of matrix products, those of `ppo-generalist`'s orthogonal kernels."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._multiply = torch.Tensor.__matmul__

    def __enter__(self) -> "Products":
        def multiply(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            begun = time.thread_time()
            product = self._multiply(x, y)
            self.seconds += time.thread_time() - begun
            return product

        torch.Tensor.__matmul__ = multiply  # type: ignore[method-assign, assignment]
        return self

    def __exit__(self, *_: object) -> None:
        torch.Tensor.__matmul__ = self._multiply  # type: ignore[method-assign]


def tables(mode: str = "plain") -> list[Table]:
    """Each size, Adam and each of the weights in turn; "compiled": by `torch.compile`."""
    torch.set_num_threads(1)
    compiled = mode == "compiled"
    rows = [row for width in WIDTHS for row in _rows(width, compiled=compiled)]
    note = (
        "An actor and a critic of two hidden layers, observations of 8 numbers, 4 actions. "
        "Milliseconds of CPU time, the median, on one thread; `products` are the matrix products "
        "that make kernels orthogonal, `x Adam` leaves them out. Adam is "
        "`torch.optim.Adam(foreach=True)`."
    )
    return [Table(f"A step in PyTorch, {mode}", note, rows)]


def _rows(width: int, *, compiled: bool) -> list[dict[str, Any]]:
    cases = {"Adam": _stepper(width, None, compiled=compiled)}
    cases |= {name: _stepper(width, name, compiled=compiled) for name in WEIGHTS}
    for step in cases.values():
        step()
        step()
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in cases}
    started = time.perf_counter()
    for turn in range(TURNS):
        if turn >= 5 and time.perf_counter() - started > SECONDS:
            break
        for name, step in cases.items():
            with Products() as products:
                begun = time.thread_time()
                step()
                times[name].append((time.thread_time() - begun, products.seconds))
    found = {name: np.array(measured) for name, measured in times.items()}
    adam = float(np.median(found["Adam"][:, 0]))
    return [
        {
            "parameters": sum(p.numel() for p in _network(width).parameters()),
            "optimizer": name,
            "ms": rounded(1e3 * float(np.median(seconds[:, 0]))),
            "products, ms": rounded(1e3 * float(np.median(seconds[:, 1]))),
            "x Adam": rounded(float(np.median(seconds[:, 0] - seconds[:, 1])) / adam),
        }
        for name, seconds in found.items()
    ]


def _network(width: int) -> torch.nn.Module:
    def chain(outputs: int) -> torch.nn.Module:
        return torch.nn.Sequential(
            torch.nn.Linear(8, width),
            torch.nn.Tanh(),
            torch.nn.Linear(width, width),
            torch.nn.Tanh(),
            torch.nn.Linear(width, outputs),
        )

    torch.manual_seed(0)
    return torch.nn.ModuleDict({"policy": chain(4), "value": chain(1)})


def _stepper(width: int, weights: str | None, *, compiled: bool) -> Callable[[], Any]:
    net = _network(width)
    for p in net.parameters():
        p.grad = 1e-2 * torch.randn_like(p)
    optimizer: torch.optim.Optimizer
    if weights is None:
        optimizer = torch.optim.Adam(net.parameters(), foreach=True)
    else:
        optimizer = Optim4RL(net.named_parameters(), weights)
    if not compiled:
        return optimizer.step
    torch.compiler.reset()
    step: Callable[[], Any] = torch.compile(optimizer.step)
    return step


if __name__ == "__main__":
    (table,) = tables(*sys.argv[1:])
    print(f"{table.note}\n\n{markdown_table(table.rows)}")
