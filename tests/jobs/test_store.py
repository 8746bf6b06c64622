"""Results are files that are read back as they were, and nothing else is taken for one."""

import json
import math
import os

import numpy as np
import pytest
from safetensors import safe_open

from optim4rl.jobs.job import Job, Result
from optim4rl.jobs.provenance import code_hash
from optim4rl.jobs.store import (
    StoreError,
    finished_jobs,
    get_result,
    has_result,
    kept,
    put_result,
    result_path,
)
from optim4rl.jobs.worker import OTHER_CODE, answer

JOB = Job("optim4rl.fields:to_json", {"name": "adam", "rates": (0.1, 0.2)})
OTHER = Job("optim4rl.fields:to_json", {"name": "sgd"})
RESULT = Result(
    {
        "returns": np.array([[0.1, np.nan, -0.0], [1e-45, 3.0, np.inf]], np.float32),
        "counts": np.arange(6).reshape(2, 3).T,
        "none": np.zeros((0, 4)),
    },
    {"seconds": 1.5, "scores": [0.25, None], "deep": {"nan": math.nan}, "failure": "é"},
)


def test_a_result_is_read_as_it_was_put(tmp_path):
    assert not has_result(tmp_path, JOB)
    put_result(tmp_path, JOB, RESULT)
    assert has_result(tmp_path, JOB)
    assert not has_result(tmp_path, OTHER)
    found = get_result(tmp_path, JOB)
    assert found.arrays.keys() == RESULT.arrays.keys()
    for name, array in RESULT.arrays.items():
        np.testing.assert_array_equal(found.arrays[name], array, strict=True)
    np.testing.assert_equal(dict(found.info), dict(RESULT.info))


def test_a_result_without_arrays_is_read_as_it_was_put(tmp_path):
    put_result(tmp_path, OTHER, Result({}, {"seconds": 0.5}))
    assert get_result(tmp_path, OTHER) == Result({}, {"seconds": 0.5})


def test_a_result_file_says_what_was_asked_and_which_code_answered(tmp_path):
    put_result(tmp_path, JOB, RESULT)
    with safe_open(result_path(tmp_path, JOB), framework="numpy") as file:
        metadata = file.metadata()
    about = json.loads(metadata["provenance"])
    assert about["code"] == code_hash("optim4rl.fields")
    assert about["versions"].keys() >= {"python", "jax", "optim4rl"}
    assert json.loads(metadata["job"]) == {
        "function": "optim4rl.fields:to_json",
        "arguments": {"name": "adam", "rates": [0.1, 0.2]},
    }
    assert os.listdir(tmp_path / "jobs") == [f"{JOB.address}.safetensors"]


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
    put_result(tmp_path, JOB, RESULT)
    path = result_path(tmp_path, JOB)
    data = path.read_bytes()
    assert damage(data) != data
    path.write_bytes(damage(data))
    with pytest.raises(StoreError, match="delete it, and its command makes it again") as error:
        get_result(tmp_path, JOB)
    assert str(path) in str(error.value)


def test_the_result_of_another_job_is_not_taken(tmp_path):
    put_result(tmp_path, JOB, RESULT)
    result_path(tmp_path, JOB).rename(result_path(tmp_path, OTHER))
    with pytest.raises(StoreError, match="the result of another job"):
        get_result(tmp_path, OTHER)


def test_a_missing_result_is_named(tmp_path):
    with pytest.raises(StoreError, match=r"no such result.*Start its command again") as error:
        get_result(tmp_path, JOB)
    assert str(result_path(tmp_path, JOB)) in str(error.value)


def test_finished_jobs_are_listed_with_what_was_asked(tmp_path):
    assert list(finished_jobs(tmp_path)) == []
    for job in (JOB, OTHER):
        put_result(tmp_path, job, Result({}, {"seconds": 2.0}))
    found = {path: (question, info) for path, question, info in finished_jobs(tmp_path)}
    assert found.keys() == {result_path(tmp_path, job) for job in (JOB, OTHER)}
    assert found[result_path(tmp_path, OTHER)] == (OTHER.question, {"seconds": 2.0})
    result_path(tmp_path, JOB).write_bytes(b"x")
    with pytest.raises(StoreError, match=JOB.address):
        list(finished_jobs(tmp_path))


# Made in this process


def test_what_is_kept_is_made_once(tmp_path):
    made = []

    def make():
        made.append(1)
        return Result({}, {"rows": len(made)})

    assert [kept(tmp_path, JOB, make).info["rows"] for _ in range(2)] == [1, 1]
    assert kept(tmp_path, OTHER, make).info["rows"] == 2
    assert [kept(None, JOB, make).info["rows"] for _ in range(2)] == [3, 4]


# Made by a worker


def test_a_worker_keeps_what_it_found_and_the_time(tmp_path):
    job = Job("optim4rl.jobs.worker:main", {})
    asked = job.question | {"address": job.address}

    def found(self, folder):
        assert folder == tmp_path
        return RESULT

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Job, "run", found)
        assert answer(tmp_path, asked) == {"done": True}
    result = get_result(tmp_path, job)
    np.testing.assert_array_equal(result.arrays["returns"], RESULT.arrays["returns"])
    assert 0 <= result.info["seconds"] < 1.5


def test_a_worker_of_other_code_does_nothing(tmp_path):
    asked = JOB.question | {"address": "of another version"}
    assert answer(tmp_path, asked) == {"error": OTHER_CODE}
    assert not has_result(tmp_path, JOB)
