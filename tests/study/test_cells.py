"""Cells are values with an address; their results are files that are read back as they were."""

import dataclasses
import json
import math
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from optim4rl.study.store import StoreError, get_result, has_result, put_result, result_path
from safetensors import safe_open

from optim4rl.benchmark.protocol import EvaluationSettings
from optim4rl.evaluation.curves import HEALTHY, Curves
from optim4rl.plans.components import COMPONENTS
from optim4rl.study.cells import (
    CellResult,
    ClassicalCell,
    IdentityCell,
    LearnedCell,
    cell_address,
    cell_from_dict,
    cell_to_dict,
    code_hash,
    pack_curves,
    unpack_curves,
    unpack_identity,
)
from optim4rl.study.identity import Histogram, IdentityResult, IdentityRow
from optim4rl.study.settings import TrainingSettings
from optim4rl.study.variant import REFERENCE

LEARNED = LearnedCell("catch", REFERENCE, TrainingSettings(), EvaluationSettings(), 3e-3, 0)
CLASSICAL = ClassicalCell("catch", "adam", EvaluationSettings())
IDENTITY = IdentityCell("smoke")
RESULT = CellResult(
    {
        "curves/returns": np.array([[0.1, np.nan, -0.0], [1e-45, 3.0, np.inf]], np.float32),
        "counts": np.arange(6).reshape(2, 3).T,
        "none": np.zeros((0, 4)),
    },
    {"seconds": 1.5, "scores": [0.25, None], "deep": {"nan": math.nan}, "failure": "é"},
)


# Cells


def changed(value):
    """Another value of the same kind."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return 2 * value + 1
    if isinstance(value, tuple):
        return (*value, 2 * value[-1])
    others = {"catch": "small_dense_long", "report": "tune", "value": "norm", "adam": "sgd"}
    others |= {
        getattr(REFERENCE, c.field): next(
            x.value for x in c.choices if x.value != getattr(REFERENCE, c.field)
        )
        for c in COMPONENTS
    }
    others["smoke"] = "paper"
    return others[value]


def neighbours(value):
    """The value with one of its fields changed, for each field, and for fields of fields."""
    for field in dataclasses.fields(value):
        if field.name == "kind":
            continue
        part = getattr(value, field.name)
        changes = neighbours(part) if dataclasses.is_dataclass(part) else [changed(part)]
        for change in changes:
            yield dataclasses.replace(value, **{field.name: change})


@pytest.mark.parametrize("cell", [LEARNED, CLASSICAL, IDENTITY])
def test_every_field_changes_the_address(cell):
    cells = [cell, *neighbours(cell)]
    addresses = {cell_address(x) for x in cells}
    assert len(addresses) == len(cells)
    leaves = sum(len(x) if isinstance(x, dict) else 1 for x in cell_to_dict(cell).values())
    assert len(cells) == leaves  # "kind" aside, and the cell itself


def test_the_address_does_not_depend_on_the_order_of_fields():
    backwards = dict(reversed(cell_to_dict(LEARNED).items()))
    backwards["training"] = dict(reversed(backwards["training"].items()))
    assert cell_address(cell_from_dict(backwards)) == cell_address(LEARNED)


def test_the_address_is_the_same_in_every_process():
    program = """
import json, sys
from optim4rl.study.cells import cell_address, cell_from_dict
print(cell_address(cell_from_dict(json.loads(sys.argv[1]))))
"""
    result = subprocess.run(
        [sys.executable, "-c", program, json.dumps(cell_to_dict(LEARNED))],
        env={**os.environ, "PYTHONHASHSEED": "7"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.strip() == cell_address(LEARNED)


def test_the_code_hash_reads_every_module_that_computes(monkeypatch):
    read, read_bytes = [], pathlib.Path.read_bytes

    def recording(path):
        read.append(path)
        return read_bytes(path)

    monkeypatch.setattr(pathlib.Path, "read_bytes", recording)
    code_hash.__wrapped__()
    package = pathlib.Path(str(sys.modules["optim4rl"].__file__)).parent
    computing = [package / floor for floor in ("cpp", "optimizers", "tasks", "meta", "evaluation")]
    suffixes = (".py", ".cc", ".h")
    files = [path for folder in computing for path in folder.rglob("*")]
    expected = {path for path in files if path.suffix in suffixes}
    others = ("study/cells", "study/variant", "study/identity", "benchmark/protocol")
    assert set(read) == expected | {package / f"{x}.py" for x in others}


def test_the_address_changes_with_the_code(monkeypatch):
    before = cell_address(IDENTITY)
    monkeypatch.setattr("optim4rl.study.cells.code_hash", lambda: "another")
    assert cell_address(IDENTITY) != before


@pytest.mark.parametrize("cell", [LEARNED, CLASSICAL, IDENTITY])
def test_a_cell_survives_json(cell):
    for one in [cell, *neighbours(cell)]:
        assert cell_from_dict(json.loads(json.dumps(cell_to_dict(one)))) == one


# What is found


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 4), st.integers(1, 6), st.data())
def test_curves_are_unpacked_as_they_were(runs, updates, data):
    diverged_at = np.array(
        data.draw(st.lists(st.integers(HEALTHY, updates - 1), min_size=runs, max_size=runs))
    )
    returns = np.arange(runs * updates, dtype=np.float32).reshape(runs, updates)
    for run, at in enumerate(diverged_at):
        returns[run, at if at != HEALTHY else updates :] = np.nan
    curves = Curves(returns, diverged_at, 80 * np.arange(1, updates + 1))
    arrays = pack_curves("stress/2", curves) | pack_curves("other", curves)
    found = unpack_curves("stress/2", arrays)
    for field in ("returns", "diverged_at", "env_steps"):
        np.testing.assert_array_equal(getattr(found, field), getattr(curves, field), strict=True)


def test_the_identity_experiment_is_unpacked_as_it_was():
    accuracies = ("online", "online_nonzero", "frozen", "frozen_nonzero")
    row = IdentityRow(
        "raw",
        "linear",
        "annealed",
        1e-3,
        **dict.fromkeys(accuracies, math.nan),
        by_decade={-7: 0.25, -6: math.nan},
        curve=np.array([0.0, np.nan, 0.5]),
        seeds=2,
        spread=dict.fromkeys(accuracies, (0.1, math.nan)),
    )
    histogram = Histogram("agent", np.array([-3.0, -2.0, -1.0]), np.array([0.25, 0.75]), 0.5, 1.9)
    result = IdentityResult("catch", (row,), (histogram,), {"updates": 20, "rates": [1e-3]})
    text = json.dumps(dataclasses.asdict(result), default=lambda array: array.tolist())
    found = unpack_identity(json.loads(text))
    np.testing.assert_equal(dataclasses.asdict(found), dataclasses.asdict(result))
    assert isinstance(found.rows[0].spread["frozen"], tuple)


# The store


def test_a_result_is_read_as_it_was_put(tmp_path):
    assert not has_result(tmp_path, LEARNED)
    put_result(tmp_path, LEARNED, RESULT)
    assert has_result(tmp_path, LEARNED)
    assert not has_result(tmp_path, CLASSICAL)
    found = get_result(tmp_path, LEARNED)
    assert found.arrays.keys() == RESULT.arrays.keys()
    for name, array in RESULT.arrays.items():
        np.testing.assert_array_equal(found.arrays[name], array, strict=True)
    np.testing.assert_equal(dict(found.info), dict(RESULT.info))


def test_a_result_without_arrays_is_read_as_it_was_put(tmp_path):
    put_result(tmp_path, IDENTITY, CellResult({}, {"seconds": 0.5}))
    assert get_result(tmp_path, IDENTITY) == CellResult({}, {"seconds": 0.5})


def test_a_result_file_says_what_was_asked_and_which_code_answered(tmp_path):
    put_result(tmp_path, LEARNED, RESULT)
    with safe_open(result_path(tmp_path, LEARNED), framework="numpy") as file:
        metadata = file.metadata()
    about = json.loads(metadata["provenance"])
    assert about["code"] == code_hash()
    assert about["versions"].keys() >= {"python", "jax", "optim4rl"}
    assert cell_from_dict(json.loads(metadata["cell"])) == LEARNED
    assert os.listdir(tmp_path / "cells") == [f"{cell_address(LEARNED)}.safetensors"]


DAMAGES = {
    "empty": lambda data: b"",
    "shorter than a header": lambda data: data[:5],
    "cut in the header": lambda data: data[:100],
    "cut at the end": lambda data: data[:-1],
    "garbage": lambda data: b"\xff" * len(data),
    "text": lambda data: b"not a result at all",
    "without info": lambda data: data.replace(b'"info"', b'"inf0"'),
    "info that is not JSON": lambda data: data.replace(b"seconds", b"sec\x01nds"),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_result_is_refused_by_name(damage, tmp_path):
    put_result(tmp_path, LEARNED, RESULT)
    path = result_path(tmp_path, LEARNED)
    data = path.read_bytes()
    assert damage(data) != data
    path.write_bytes(damage(data))
    with pytest.raises(StoreError, match="delete it to have it made again") as error:
        get_result(tmp_path, LEARNED)
    assert str(path) in str(error.value)


def test_the_result_of_another_cell_is_not_taken(tmp_path):
    put_result(tmp_path, LEARNED, RESULT)
    other = dataclasses.replace(LEARNED, meta_seed=LEARNED.meta_seed + 1)
    result_path(tmp_path, LEARNED).rename(result_path(tmp_path, other))
    with pytest.raises(StoreError, match="the result of something else"):
        get_result(tmp_path, other)


def test_a_missing_result_is_named(tmp_path):
    with pytest.raises(StoreError, match="no such result") as error:
        get_result(tmp_path, LEARNED)
    assert str(result_path(tmp_path, LEARNED)) in str(error.value)
