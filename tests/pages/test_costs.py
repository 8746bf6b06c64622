"""A benchmark against time: the page has what runs cost where that was measured."""

import json

import numpy as np
import pytest

from optim4rl.benchmark import loop
from optim4rl.pages.benchmark import to_json, to_markdown, write_report
from optim4rl.pages.costs import task_cost_tables, time_table
from toys import benchmark, playing, run_toys, save_rules, toy_run

RECORD = {"command": "optim4rl evaluate", "versions": {"jax": "0"}, "code": "c" * 64}
SECONDS = {"adam": 2.0, "rmsprop": 1.0, None: 5.0}


def timed_run(batch):
    """Of the toys, which are flat: the rule is at 1.2 and takes 2.5 times Adam's time."""
    seconds = SECONDS[batch.maker.optimizer] if any(rate for rate, _ in batch.runs) else 0.1
    return toy_run(batch) | {"seconds": np.full(len(batch.runs), seconds)}


@pytest.fixture(scope="module")
def timed(tmp_path_factory):
    """The folder and the results of a benchmark whose runs were timed."""
    weights = save_rules(tmp_path_factory.mktemp("weights"), 1)
    folder = tmp_path_factory.mktemp("timed")
    with playing(timed_run):
        results = loop.run(
            benchmark(folder, weights, baselines=("adam", "rmsprop"), controls=False)
        )
        write_report(results, "optim4rl evaluate")
    return folder, results


def test_the_cheapest_comes_first_and_leads_are_in_equal_time(timed):
    _, results = timed
    header, rows = time_table(results, "one")
    assert header[1] == "time over adam's"
    assert [row[:2] for row in rows] == [["rmsprop", "0.50"], ["adam", "1.00"], ["rule-0", "2.50"]]
    assert rows[1][2:] == ["-", "-"]
    # Flat curves lose nothing when they are cut.
    assert rows[2][2].startswith("0.200 ")
    assert rows[2][3].startswith("1.000 ")


def test_a_task_has_steps_and_seconds_of_a_run_and_until_the_reference_s_return(timed):
    _, results = timed
    header, rows = task_cost_tables(results)["catch"]
    found = {row[0]: dict(zip(header, row, strict=True)) for row in rows}
    steps = f"{results.runs.untrained[0].env_steps[-1]:,}"
    rule = found["rule-0"]
    assert (rule["environment steps"], rule["seconds"], rule["over adam's"]) == (steps, "5", "2.50")
    assert rule["to adam's final return: steps"] == steps
    assert rule["seconds to it"] == "5"
    assert rule["runs that reach it"] == "10 of 10"
    assert found["rmsprop"]["to adam's final return: steps"] == "-"
    assert found["rmsprop"]["runs that reach it"] == "0 of 10"


def test_page_pictures_and_json_have_it(timed):
    folder, _ = timed
    text = (folder / "results.md").read_text()
    assert "## catch: costs, tuned for each task" in text
    assert "## All tasks in adam's time, one setting for all tasks" in text
    assert "](seconds.svg)" in text
    assert ">seconds<" in (folder / "seconds.svg").read_text()
    costs = json.loads((folder / "results.json").read_text())["costs"]
    names = {"adam", "rmsprop", "rule-0"}
    assert {reading: set(x) for reading, x in costs.items()} == {"tuned": names, "one": names}
    assert costs["one"]["rule-0"]["time_over_reference"] == pytest.approx(2.5)
    assert costs["tuned"]["rule-0"]["tasks"]["catch"]["seconds"] == 5.0


def test_what_was_not_measured_is_not_shown(tmp_path):
    results = run_toys(tmp_path, baselines=("adam", "rmsprop"))
    assert time_table(results, "one") is None
    assert task_cost_tables(results) == {}
    assert "costs" not in to_markdown(results, RECORD)
    assert to_json(results)["costs"] == {"tuned": {}, "one": {}}
