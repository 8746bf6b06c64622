"""After an upgrade of any package that can change a number, every command starts its jobs anew."""

import json
import shlex

import jax
import numpy as np
import pytest

from optim4rl.benchmark import loop
from optim4rl.cli import main as cli
from optim4rl.cli.main import main
from optim4rl.jobs import provenance
from optim4rl.jobs.job import Result
from optim4rl.jobs.provenance import package_versions
from optim4rl.jobs.store import finished_jobs
from optim4rl.optimizers.weights import save_weights, untrained
from optim4rl.study import identity, runner
from optim4rl.study.identity import IdentityResult, IdentityRow, to_json
from pretended import PretendedPool

PLAN = """# A small study

- **Ablated Part**: Pipeline training
- **Action**: REPLACE
- **Replacement**: Synchronous resets
- **Metrics**: Return
"""
SUITE = "--suite grid --only catch small_dense_short/free"
EVALUATE = (
    "evaluate {rule} {what} --out {out} --baselines adam --rates 0.01 0.1 --step-scales 1 3 "
    "--seeds 2 --tuning-seeds 1 --stress-scales 1 --stress-seeds 1 --rollouts 21 --num-envs 2"
)
COMMANDS = {
    "ablate": "ablate {plan} --out {out} --scale smoke --meta-seeds 2 --seeds 2",
    "evaluate": EVALUATE.replace("{what}", "--task catch"),
    "evaluate --suite": EVALUATE.replace(
        "{what}", "--suite grid --only catch small_dense_short/free"
    ),
    "identity": "identity --out {out}.json --scale smoke",
}


@pytest.fixture
def jobs(monkeypatch):
    """What was done: jobs of pools, and those that `identity` does in this process."""
    pool, made = PretendedPool(), []

    numbers = dict.fromkeys(("online", "online_nonzero", "frozen", "frozen_nonzero"), 0.5)
    spread = dict.fromkeys(numbers, (0.4, 0.6))

    def experiment(task, name, config, keep):
        def make():
            made.append(name)
            return Result({}, {"rows": to_json((row,))})

        more = (*numbers.values(), {-3: 0.1}, np.array([0.1, 0.5]), 2, spread)
        row = IdentityRow("raw", "linear", "constant", 3e-3, *more)
        for network in config.networks:
            keep({"network": network}, make)
        return IdentityResult(name, (row,) * len(config.networks), (), {})

    monkeypatch.setattr(cli, "configure_jax", lambda: None)
    monkeypatch.setattr(identity, "identity_experiment", experiment)
    for module in (loop, runner):
        monkeypatch.setattr(module, "open_pool", pool.open)
    return lambda: len(pool.ran) + len(made)


@pytest.fixture
def upgrade(monkeypatch):
    """Puts another version of a package in the place of the one that is there."""

    def upgrade(package):
        real = provenance.metadata.version
        version = lambda name: "99" if name == package else real(name)  # noqa: E731
        monkeypatch.setattr(provenance.metadata, "version", version)
        package_versions.cache_clear()

    yield upgrade
    monkeypatch.undo()
    package_versions.cache_clear()


@pytest.mark.parametrize("command", COMMANDS)
def test_an_upgrade_starts_all_jobs_anew(command, jobs, upgrade, tmp_path, capsys):
    (tmp_path / "plan.md").write_text(PLAN)
    rule = tmp_path / "rule.safetensors"
    save_weights(rule, untrained("optim4rl-rlc", 3e-3, jax.random.key(1)))
    out = tmp_path / "out"
    words = shlex.split(COMMANDS[command].format(plan=tmp_path / "plan.md", rule=rule, out=out))
    main(words)
    in_all = jobs()
    assert in_all > 5
    upgrade("optax")
    main(words)
    assert jobs() == 2 * in_all
    folder, record = {
        "ablate": (out, out / "study.json"),
        "identity": (tmp_path / "out.json.parts", tmp_path / "out.json"),
    }.get(command, (out, out / "results.json"))
    assert len(list(finished_jobs(folder))) == 2 * in_all
    assert json.loads(record.read_text())["versions"]["optax"] == "99"
    capsys.readouterr()
