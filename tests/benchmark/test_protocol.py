"""Which seeds a comparison uses."""

import pytest

from optim4rl.benchmark.protocol import EVALUATION_SEED, TUNING_SEED, Protocol
from optim4rl.benchmark.suites import load_suite
from optim4rl.cli.evaluate import EvaluateOptions, lay_out
from optim4rl.optimizers.weights import load_weights, save_weights


def test_fresh_seeds_are_reported_and_choose_nothing():
    protocol = Protocol(seeds=8, first_seed=2_000)
    assert list(protocol.reported) == list(range(2_000, 2_008))
    assert Protocol(seeds=8).reported[0] == EVALUATION_SEED
    assert not {*protocol.reported} & {*protocol.tuning, *protocol.stress}


@pytest.mark.parametrize("first", [0, TUNING_SEED - 7, TUNING_SEED])
def test_reported_seeds_stay_below_those_that_choose(first):
    with pytest.raises(ValueError, match=f"first_seed = {first}: a seed from 1000 to 4992"):
        Protocol(seeds=8, first_seed=first)


@pytest.mark.parametrize(
    ("companions", "names"),
    [
        ("no", ["w", "w untrained"]),
        ("also", ["w", "w untrained", "w with companions", "w untrained with companions"]),
        ("only", ["w with companions", "w untrained with companions"]),
    ],
)
def test_companions_come_besides_or_alone(tmp_path, companions, names):
    save_weights(tmp_path / "w.safetensors", load_weights("ppo-generalist"))
    weights = (str(tmp_path / "w.safetensors"),)
    options = EvaluateOptions(weights, baselines=("sgd",), companions=companions)
    benchmark = lay_out(options, load_suite("classic"), tmp_path)
    assert [x.name for x in benchmark.contenders] == [*names, "sgd"]
    assert {x.control for x in benchmark.contenders[:-1]} <= {*names, None}
