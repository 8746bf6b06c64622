"""`optim4rl inspect` writes a page, prints numbers, and refuses what it cannot read."""

import json

import numpy as np
import pytest

from optim4rl.cli import inspect as command
from optim4rl.cli.main import main
from optim4rl.evaluation.response import CLASSICAL, TimeScales, measure
from optim4rl.optimizers import shipped_names
from optim4rl.pages.inspection import RULE, Inspection


def run(name, tmp_path, capsys):
    page = tmp_path / "new folder" / "page.html"
    main(["inspect", name, "--out", str(page), "--json"])
    return page.read_text("utf-8"), json.loads(capsys.readouterr().out)


def test_a_page_and_numbers_are_written(tmp_path, capsys, monkeypatch):
    def measured(name, optimizer):
        responses = {RULE: measure(CLASSICAL["Adam"])}
        responses |= dict.fromkeys(CLASSICAL, responses[RULE])
        scales = TimeScales((1e-3,), np.zeros((1, 8)), np.zeros((1, 3)))
        return Inspection(name, optimizer, responses, scales)

    monkeypatch.setattr(command, "inspect", measured)
    html, values = run("anchored-catch", tmp_path, capsys)
    assert "<title>Inside anchored-catch</title>" in html
    assert values["card"]["tasks"] == ["catch"]
    monkeypatch.chdir(tmp_path)
    main(["inspect", "celo2"])
    assert capsys.readouterr().out == "wrote runs/inspect/celo2.html\n"
    assert "Inside celo2, untrained" in (tmp_path / "runs/inspect/celo2.html").read_text("utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("name", shipped_names())
def test_every_shipped_optimizer_is_inspected(name, tmp_path, capsys):
    html, values = run(name, tmp_path, capsys)
    assert f"<title>Inside {name}</title>" in html
    steps = values["responses"][RULE]["settled_step"]
    assert None not in steps
    assert steps != values["responses"]["Adam"]["settled_step"]


def test_weights_that_are_not_there_are_named(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["inspect", "no-such-weights"])
    assert stopped.value.code == 2
    assert "weights = 'no-such-weights'" in capsys.readouterr().err
