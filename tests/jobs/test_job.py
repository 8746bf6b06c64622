"""A job's address: what is asked, the code that can answer, and all packages that can count."""

import json
import os
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from optim4rl.benchmark import runs
from optim4rl.benchmark.contender import Maker
from optim4rl.benchmark.runs import Batch
from optim4rl.jobs import provenance
from optim4rl.jobs.job import Job
from optim4rl.jobs.provenance import PACKAGES, code_hash, package_versions
from optim4rl.tasks import TaskConfig

PACKAGE = Path(provenance.__file__).parents[1]
ADDING = Job("optim4rl.fields:to_json", {"b": [1, 2.5, None], "a": {"d": "é", "c": True}})
BATCH = runs.job(Batch(TaskConfig(), Maker("adam"), ((0.1, 3),), 5, 5))


def again(job, **changes):
    """The job, whose address is found out anew."""
    return Job(**{"function": job.function, "arguments": job.arguments, **changes})


@pytest.fixture
def _nothing_known(monkeypatch):
    """What is remembered of the sources and of the packages is found out anew."""
    cached = (package_versions, code_hash, provenance._imports, provenance._source)
    for function in cached:
        function.cache_clear()
    yield
    monkeypatch.undo()
    for function in cached:
        function.cache_clear()


# What is asked


def test_the_address_depends_on_the_question_alone():
    backwards = dict(reversed(ADDING.arguments.items()))
    labelled = again(ADDING, arguments=backwards, what="a sum", program="p", files=("x",))
    assert labelled.address == ADDING.address
    other = [
        again(ADDING, arguments={**ADDING.arguments, "b": [1, 2.5]}),
        again(ADDING, function="optim4rl.fields:from_json"),
        again(ADDING, function="optim4rl.files.atomic:to_json"),
    ]
    assert len({ADDING.address, *(job.address for job in other)}) == 4


def test_variables_by_which_jax_computes_other_numbers_count(monkeypatch):
    for name in ("JAX_ENABLE_X64", "JAX_DEFAULT_MATMUL_PRECISION", "JAX_DEFAULT_PRNG_IMPL"):
        monkeypatch.delenv(name, raising=False)
        before = Job("optim4rl.fields:to_json", {}).address
        with monkeypatch.context() as patch:
            patch.setenv(name, "1")
            assert Job("optim4rl.fields:to_json", {}).address != before
        assert Job("optim4rl.fields:to_json", {}).address == before


def test_the_address_is_the_same_in_every_process():
    program = """
import json, sys
from optim4rl.jobs.job import Job
print(Job(**json.loads(sys.argv[1])).address)
"""
    result = subprocess.run(
        [sys.executable, "-c", program, json.dumps(ADDING.question)],
        env={**os.environ, "PYTHONHASHSEED": "7"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.strip() == ADDING.address


def test_functions_of_other_packages_are_not_run(tmp_path):
    with pytest.raises(ValueError, match=r"function = 'os:system': a function of optim4rl is need"):
        Job("os:system", {}).run(tmp_path)


# Packages


@pytest.mark.usefixtures("_nothing_known")
def test_every_package_that_can_count_does(monkeypatch):
    real = metadata.version
    addresses = {again(ADDING).address}
    for package in PACKAGES:
        package_versions.cache_clear()
        monkeypatch.setattr(
            provenance.metadata,
            "version",
            lambda name, package=package: "99" if name == package else real(name),
        )
        addresses.add(again(ADDING).address)
        assert provenance.provenance("optim4rl.fields")["versions"][package] == "99"
    assert len(addresses) == 1 + len(PACKAGES)


@pytest.mark.usefixtures("_nothing_known")
def test_a_package_that_is_not_there_has_no_say(monkeypatch):
    def version(name):
        if name == "brax":
            raise metadata.PackageNotFoundError(name)
        return "1"

    monkeypatch.setattr(provenance.metadata, "version", version)
    assert package_versions() == dict.fromkeys(set(PACKAGES) - {"brax"}, "1")


def test_provenance_says_versions_and_code():
    found = provenance.provenance("optim4rl.fields")
    assert found["versions"].keys() == {"python", "optim4rl", *package_versions()}
    assert found["versions"]["jax"] == metadata.version("jax")
    assert found["code"] == code_hash("optim4rl.fields") != code_hash("optim4rl.study.cells")


# Code

COMPUTES = (
    "cpp/simd.h",
    "cpp/threads.h",
    "evaluation/curves.py",
    "evaluation/learning.py",
    "optimizers/inputs.py",
    "optimizers/kernels/pallas.py",
    "optimizers/kernels/rule.cc",
    "optimizers/kernels/rule.h",
    "optimizers/rule.py",
    "optimizers/structures.py",
    "optimizers/weight_files.py",
    "tasks/a2c.py",
    "tasks/environments/gridworld.py",
    "tasks/environments/physics.py",
    "tasks/kernels/conv.cc",
    "tasks/kernels/conv.h",
    "tasks/normalisation.py",
    "tasks/ppo.py",
)
SHOWS = (
    "benchmark/loop.py",
    "benchmark/suites.py",
    "cli/evaluate.py",
    "evaluation/claims.py",
    "evaluation/returns.py",
    "jobs/pool.py",
    "jobs/ray_pool.py",
    "pages/benchmark.py",
    "plans/plan.py",
    "study/runner.py",
    "torch/rule.py",
)


@pytest.fixture
def copied(tmp_path, monkeypatch, _nothing_known):
    """A copy of the package, whose sources are read in place of its own."""
    ignored = shutil.ignore_patterns("__pycache__", "*.so", "*.safetensors")
    copy = Path(shutil.copytree(PACKAGE, tmp_path / "optim4rl", ignore=ignored))
    monkeypatch.setattr(provenance.resources, "files", lambda name: copy)
    return copy


def test_a_changed_source_counts_where_it_can_be_run(copied):
    def address():
        provenance.code_hash.cache_clear()
        return again(BATCH).address

    before = address()
    for sources, counts in ((COMPUTES, True), (SHOWS, False)):
        for name in sources:
            source = copied / name
            text = source.read_bytes()
            source.write_bytes(text + b"\n")
            assert (address() != before) is counts, name
            source.write_bytes(text)
    assert address() == before


def test_what_a_study_does_besides_is_meta_training(copied):
    asked = Job("optim4rl.study.cells:meta_train", {})
    before = asked.address
    for name in ("meta/trainer.py", "meta/meta_gradient.py", "study/identity.py"):
        source = copied / name
        source.write_bytes(source.read_bytes() + b"\n")
        provenance.code_hash.cache_clear()
        address = again(asked).address
        assert address != before, name
        before = address
    batch = again(BATCH).address
    provenance.code_hash.cache_clear()
    assert again(BATCH).address == batch


def test_an_import_inside_a_function_counts(copied):
    """And so does what it imports, and its native sources, in a circle, too."""
    (copied / "one.py").write_text("def f():\n    from optim4rl.two import three\n")
    (copied / "two").mkdir()
    (copied / "two" / "__init__.py").write_text("")
    (copied / "two" / "three.py").write_text("import optim4rl.one\nimport optim4rl.nowhere\n")
    (copied / "two" / "fast.cc").write_text("")
    (copied / "two" / "four.py").write_text("")
    assert provenance._reachable("optim4rl.one") == {
        "optim4rl.one",
        "optim4rl.two",
        "optim4rl.two.three",
        "optim4rl.two/fast.cc",
    }


def test_all_that_a_job_imports_is_found():
    """But for packages that hold nothing or open lazily (PEP 562): they cannot change a number."""
    modules = ("optim4rl.benchmark.runs", "optim4rl.study.cells")
    program = "".join(
        f"import sys, {module}\nprint(*(x for x in sys.modules if x.startswith('optim4rl')))\n"
        for module in modules
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    reachable = set()
    for module, line in zip(modules, found.stdout.decode().splitlines(), strict=True):
        reachable |= provenance._reachable(module)
        for name in set(line.split()) - reachable - {"optim4rl"}:
            path = PACKAGE.joinpath(*name.split(".")[1:], "__init__.py")
            text = path.read_text()
            assert text.count("\n") <= 1 or "def __getattr__" in text, (module, name)
