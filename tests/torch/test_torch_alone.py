"""What must hold in a fresh interpreter: no JAX, compiled steps, quick imports."""

import subprocess
import sys
import time
from pathlib import Path

NO_JAX = """
import sys
sys.modules["jax"] = sys.modules["optax"] = None  # importing either is an error
import torch
import optim4rl.torch
from optim4rl.optimizers.weight_files import shipped_names
for weights in shipped_names():
    p = torch.nn.Parameter(torch.zeros(3))
    optimizer = optim4rl.torch.Optim4RL([("fc", p)], weights)
    p.grad = torch.ones(3)
    optimizer.step()
    print(weights, bool(p.detach().abs().min() > 1e-4))
"""

COMPILED = """
import torch
from optim4rl.torch import Optim4RL

torch.set_num_threads(1)

def train(compiled):
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
    optimizer = Optim4RL(net.named_parameters(), "anchored-catch")
    x = torch.randn(32, 3)
    graphs = []
    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward
    step = optimizer.step
    if compiled:
        step = torch.compile(step, backend=backend, fullgraph=True)
    for _ in range(10):
        optimizer.zero_grad()
        (net(x) - x.sum(1, keepdim=True)).square().mean().backward()
        step()
    return len(graphs), [p.detach() for p in net.parameters()]

graphs, actual = train(True)
_, expected = train(False)
for x, y in zip(actual, expected, strict=True):
    torch.testing.assert_close(x, y)
print(graphs)
"""

CHANGED = """
import sys, warnings
sys.path.insert(0, FOLDER)
warnings.simplefilter("ignore")
import torch
import test_torch_state as tests
from optim4rl.torch import Optim4RL

for weights, change in (
    ("anchored-catch", tests.add_to_a_group),
    ("ppo-generalist", tests.remove_a_group),
    ("anchored-catch", tests.exchange_a_parameter),
):
    torch.compiler.reset()
    _, optimizer = tests.started(weights)
    step = torch.compile(optimizer.step, backend="eager", fullgraph=True)
    step()
    tests.assert_steps_are_those_of_a_new_optimizer(weights, optimizer, change, step, 1e-6)

torch.set_default_dtype(torch.float64)
p = torch.nn.Parameter(torch.zeros(3, 2, dtype=torch.float32))
optimizer = Optim4RL([("w", p)], "anchored-catch")
step = torch.compile(optimizer.step, backend="eager", fullgraph=True)
for _ in range(3):
    p.grad = torch.ones(3, 2, dtype=torch.float32)
    step()
print({x.dtype for x in optimizer.state[p].values()}, optimizer.state[p]["step"].item())
"""


def run(program):
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_torch_users_need_no_jax():
    lines = run(NO_JAX).splitlines()
    assert len(lines) >= 3
    assert all(line.endswith(" True") for line in lines)


def test_a_step_compiles_to_one_graph_that_is_kept():
    """One for the step that makes the state, at most one for all others."""
    assert int(run(COMPILED)) <= 2


def test_a_compiled_step_follows_groups_and_stays_float32():
    folder = str(Path(__file__).parent)
    assert run(CHANGED.replace("FOLDER", repr(folder))) == "{torch.float32} 3.0\n"


def test_importing_optim4rl_takes_at_most_half_again_the_time_of_importing_jax():
    def seconds(package):
        best = float("inf")
        for _ in range(2):
            start = time.perf_counter()
            run(f"import {package}")
            best = min(best, time.perf_counter() - start)
        return best

    assert seconds("optim4rl") <= 1.5 * seconds("jax")
