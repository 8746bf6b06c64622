"""The shape of the project: imports flow one way, the core stays small, no file can run code."""

import ast
import hashlib
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src"

# What each floor may import beside itself. `__init__` is the package's own front door: it shows the
# optimizers and nothing else, to every floor that may see them. `__main__` is `python -m optim4rl`.
FLOORS = {
    "cpp": set(),
    "fields": set(),
    "files": set(),
    "optimizers": {"cpp", "fields", "files"},
    "torch": {"cpp", "fields", "optimizers"},
    "tasks": {"cpp", "fields"},
    "jobs": {"fields", "files"},
    "plans": {"fields", "files", "optimizers"},
    "meta": {"__init__", "fields", "files", "optimizers", "tasks"},
    "evaluation": {"__init__", "fields", "optimizers", "tasks"},
    "benchmark": {"fields", "files", "optimizers", "tasks", "jobs", "evaluation"},
}
FLOORS["study"] = set(FLOORS) - {"cpp", "torch"}
FLOORS["pages"] = FLOORS["study"] | {"study"}
FLOORS["cli"] = FLOORS["pages"] | {"pages", "__init__"}
FLOORS["__init__"] = {"optimizers"}
FLOORS["__main__"] = {"cli"}
CORE = ("__init__", "cpp", "fields", "files", "optimizers")
CORE_DEPENDENCIES = {"jax", "jaxtyping", "numpy", "optax", "safetensors"}
TORCH_DEPENDENCIES = {"jaxtyping", "torch"}
PLAN_SHA256 = "bf292e8aa57e228abefa719d51caf67c72856c00fc78229c8e78ce92d0c2409c"

CODE_RUNNING_MODULES = {"pickle", "marshal", "shelve", "cloudpickle", "dill", "joblib"}
CODE_RUNNING_CALLS = {"eval", "exec", "__import__"}


def module_name(path):
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


PATHS = {module_name(path): path for path in sorted(SOURCE.rglob("*.py"))}
TREES = {name: ast.parse(path.read_text("utf-8")) for name, path in PATHS.items()}
every_module = pytest.mark.parametrize("module", TREES)


def imports(tree, modules=frozenset(TREES)):
    """Every module a source imports, at its top or inside a function."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: imports are absolute"
            named = {f"{node.module}.{alias.name}" for alias in node.names}
            yield from {name if name in modules else node.module for name in named}


def floor(module):
    """The floor of one of our own modules."""
    return module.split(".")[1] if "." in module else "__init__"


def is_ours(module):
    return module.split(".")[0] == "optim4rl"


def wrong_imports(module, tree):
    """Imports from a floor that the module's floor may not use."""
    allowed = FLOORS[floor(module)] | {floor(module)}
    return [name for name in imports(tree) if is_ours(name) and floor(name) not in allowed]


def code_running(tree):
    """Ways in which data could become code."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            if isinstance(node.func, ast.Name) and node.func.id in CODE_RUNNING_CALLS:
                yield node.func.id
            for keyword in node.keywords:
                refused = isinstance(keyword.value, ast.Constant) and keyword.value.value is False
                if keyword.arg == "allow_pickle" and not refused:
                    yield "allow_pickle"
    yield from (name for name in imports(tree) if name.split(".")[0] in CODE_RUNNING_MODULES)


def unbounded_reads(tree):
    """Reads of a file that would wait for a pipe, or for the end of a device."""
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        if getattr(node.func.value, "id", "") == "os":
            continue
        name, modes = node.func.attr, [x.value for x in node.args if isinstance(x, ast.Constant)]
        writes = any(str(mode).startswith(("w", "a")) for mode in modes)
        if name in ("read_bytes", "read_text") or (name == "open" and not writes):
            yield name


def undocumented(tree):
    """Public functions and classes without a docstring."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return [
        node.name
        for node in tree.body
        if isinstance(node, kinds) and not node.name.startswith("_") and not ast.get_docstring(node)
    ]


def test_every_module_belongs_to_a_floor():
    assert {floor(module) for module in TREES} == set(FLOORS)


@every_module
def test_imports_flow_one_way(module):
    assert wrong_imports(module, TREES[module]) == []


def test_no_module_imports_itself_through_others():
    graph = {name: {x for x in imports(tree) if x in TREES} for name, tree in TREES.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


@every_module
def test_no_data_can_become_code(module):
    assert list(code_running(TREES[module])) == []


# What they read is the package's own, or the kernel's.
OWN_READS = {"optim4rl.files.reading", "optim4rl.jobs.provenance", "optim4rl.meta.memory"}


@pytest.mark.parametrize("module", [name for name in TREES if name not in OWN_READS])
def test_files_are_read_within_bounds(module):
    allowed = ["read_bytes"] * (module == "optim4rl.optimizers.weight_files")  # shipped weights
    assert list(unbounded_reads(TREES[module])) == allowed


@every_module
def test_the_public_is_documented(module):
    assert undocumented(TREES[module]) == []
    assert ast.get_docstring(TREES[module]) or not TREES[module].body


@pytest.mark.parametrize("module", [name for name in TREES if floor(name) in CORE])
def test_the_core_needs_few_packages(module):
    packages = {name.split(".")[0] for name in imports(TREES[module])}
    assert packages <= CORE_DEPENDENCIES | {"optim4rl"} | sys.stdlib_module_names


@pytest.mark.parametrize("module", [name for name in TREES if floor(name) == "torch"])
def test_the_optimizer_for_pytorch_needs_no_jax(module):
    packages = {name.split(".")[0] for name in imports(TREES[module])}
    assert packages <= TORCH_DEPENDENCIES | {"optim4rl"} | sys.stdlib_module_names


def test_importing_the_package_imports_the_core_alone():
    program = """
import sys
import jax, jaxtyping, numpy, optax, safetensors.numpy
before = {name.split(".")[0] for name in sys.modules}
import optim4rl
optim4rl.load
after = {name.split(".")[0] for name in sys.modules}
print(*sorted(after - before - sys.stdlib_module_names), "/", *sorted(after))
"""
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=True
    )
    added, loaded = (part.split() for part in result.stdout.split("/"))
    assert added == ["optim4rl"]
    assert not {"gymnax", "equinox", "flax", "matplotlib", "polars", "torch"} & set(loaded)


def test_the_plan_is_as_published():
    plan = (ROOT / "plans" / "optim4rl.md").read_bytes()
    assert hashlib.sha256(plan).hexdigest() == PLAN_SHA256


# The checks themselves: each of them finds what it looks for.


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("optim4rl.optimizers.rule", "from optim4rl.tasks.task import make_task"),
        ("optim4rl.optimizers.rule", "def f():\n    import optim4rl.plans.plan"),
        ("optim4rl.optimizers.rule", "import optim4rl"),
        ("optim4rl.tasks.task", "from optim4rl.optimizers import load"),
        ("optim4rl.tasks.task", "from optim4rl import load"),
        ("optim4rl.meta.trainer", "from optim4rl.evaluation import curves"),
        ("optim4rl.evaluation.curves", "from optim4rl import meta"),
        ("optim4rl.plans.plan", "from optim4rl.cli import main"),
        ("optim4rl", "from optim4rl.plans.plan import Plan"),
    ],
)
def test_an_import_from_above_or_beside_is_found(module, source):
    assert len(wrong_imports(module, ast.parse(source))) == 1


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "def f():\n    import marshal",
        "x = eval('1')",
        "exec(text)",
        "np.load(path, allow_pickle=True)",
        "np.load(path, allow_pickle=flag)",
    ],
)
def test_data_becoming_code_is_found(source):
    assert len(list(code_running(ast.parse(source)))) == 1


def test_harmless_code_passes():
    source = "jax.eval_shape(f)\nre.compile(p)\nnp.load(p, allow_pickle=False)\nimport json"
    assert list(code_running(ast.parse(source))) == []


@pytest.mark.parametrize(
    "source", ["path.read_bytes()", "path.read_text()", "path.open()", "path.open('rb')"]
)
def test_an_unbounded_read_is_found(source):
    assert len(list(unbounded_reads(ast.parse(source)))) == 1


def test_a_missing_docstring_is_found():
    source = "def f():\n    pass\ndef _g():\n    pass\nclass H:\n    '''It is.'''"
    assert undocumented(ast.parse(source)) == ["f"]
