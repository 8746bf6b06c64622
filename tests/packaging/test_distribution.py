"""What is published, built and installed where nothing else is, with a C++ compiler and without.

Nothing is downloaded: an environment's packages are links to those that the tests run with.
"""

import re
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from dataclasses import dataclass
from importlib import metadata
from os import environ
from pathlib import Path

import packaging.tags
import pytest
from packaging.requirements import Requirement

pytestmark = pytest.mark.slow  # `make test-install`

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
CHECK = Path(__file__).with_name("installed.py")
COMPILERS = {"native": None, "pure": "none"}  # None: the machine's own
TORCH = """
import torch
from optim4rl.torch import Optim4RL
weight = torch.nn.Parameter(torch.ones(2, 3))
optimizer = Optim4RL([("kernel", weight)], "anchored-catch")
weight.sum().backward()
optimizer.step()
assert (weight < 1).all(), weight
"""


def closure(requirements: list[str]) -> set[str]:
    """The distributions that requirements bring, themselves included."""
    found: set[str] = set()
    waiting = [Requirement(text) for text in requirements]
    while waiting:
        wanted = waiting.pop()
        extras = wanted.extras or {""}
        if wanted.name in found and extras == {""}:
            continue
        found.add(wanted.name)
        for text in metadata.requires(wanted.name) or ():
            needed = Requirement(text)
            if not needed.marker or any(needed.marker.evaluate({"extra": x}) for x in extras):
                waiting.append(needed)
    return found


def link(requirements: list[str], folder: Path) -> Path:
    """Link what requirements bring into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in closure(requirements):
        files = metadata.files(name) or ()
        for top in {file.parts[0] for file in files} - {"..", "__pycache__"}:
            target = Path(str(metadata.distribution(name).locate_file(top)))
            if not (folder / top).exists():
                (folder / top).symlink_to(target)
    return folder


@dataclass(frozen=True)
class Environment:
    """A fresh virtual environment."""

    folder: Path

    def run(self, *words: str | Path) -> subprocess.CompletedProcess[str]:
        """A command of the environment, run in an empty folder."""
        program, *arguments = words
        here = self.folder / "empty"
        here.mkdir(exist_ok=True)
        env = {"PATH": environ["PATH"], "HOME": str(here), "JAX_PLATFORMS": "cpu"}
        command = [self.folder / "bin" / program, *arguments]
        return subprocess.run(command, cwd=here, env=env, capture_output=True, text=True)

    def check(self, *words: str | Path) -> str:
        """What a command prints that succeeds."""
        result = self.run(*words)
        assert result.returncode == 0, result.stderr
        return result.stdout


def pip(*words: str | Path, compiler: str | None, path: Path) -> None:
    """Run pip offline, with the compiler that CXX names and what is in `path` to build with."""
    env = {key: value for key, value in environ.items() if key != "CXX"} | {"PYTHONPATH": str(path)}
    env |= {} if compiler is None else {"CXX": compiler}
    words = ("-m", "pip", "--disable-pip-version-check", *words, "--no-deps", "--no-index")
    result = subprocess.run([sys.executable, *words], env=env, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@pytest.fixture(scope="module")
def builder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what a build needs."""
    requires = ["hatchling", "jaxlib"]
    return link(requires, tmp_path_factory.mktemp("builder") / "packages")


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sdist")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True)
    (path,) = folder.iterdir()
    return path


@pytest.fixture(scope="module", params=COMPILERS)
def wheel(
    request: pytest.FixtureRequest,
    sdist: Path,
    builder: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[str, Path]:
    """The wheel that the sdist gives with a compiler, or without one; and which it is."""
    folder = tmp_path_factory.mktemp(request.param)
    compiler = COMPILERS[request.param]
    words = ("wheel", "--no-build-isolation", "--wheel-dir", folder, sdist)
    pip(*words, compiler=compiler, path=builder)
    (path,) = folder.iterdir()
    return request.param, path


def environment(folder: Path, extra: str | None, package: Path, builder: Path) -> Environment:
    """A fresh environment with an optim4rl, and what that and one of its extras ask for."""
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    words = ("--python", str(python), "install", "--no-build-isolation", package)
    pip(*words, compiler="none", path=builder)
    (packages,) = folder.glob("lib/python*/site-packages")
    extras = PROJECT["optional-dependencies"][extra] if extra else []
    link(PROJECT["dependencies"] + extras, packages)
    return Environment(folder)


def test_the_sdist_has_the_sources_and_no_library(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"hatch_build.py", "LICENSE", "src/optim4rl/optimizers/kernels/rule.cc"} <= names
    assert "tests/packaging/installed.py" in names
    assert not [name for name in names if name.endswith((".so", ".pyc", ".TXT"))]


def test_the_tag_says_where_the_wheel_runs(wheel: tuple[str, Path]) -> None:
    kind, path = wheel
    name, version, tag = re.fullmatch(r"(\w+)-([\w.]+)-(.*)\.whl", path.name).groups()
    (library,) = [x for x in packaging.tags.platform_tags() if re.match("linux|macos|win", x)][:1]
    assert tag == {"pure": "py3-none-any", "native": f"py3-none-{library}"}[kind]
    with zipfile.ZipFile(path) as archive:
        text = archive.read(f"{name}-{version}.dist-info/WHEEL").decode()
    assert f"Tag: {tag}\n" in text
    assert f"Root-Is-Purelib: {str(kind == 'pure').lower()}\n" in text


def test_a_wheel_is_whole(wheel: tuple[str, Path], builder: Path, tmp_path: Path) -> None:
    """On the core install, where the command works as far as it can."""
    kind, path = wheel
    core = environment(tmp_path / "venv", None, path, builder)
    assert str(tmp_path) in core.check("python", CHECK, kind)
    version = core.check("optim4rl", "--version")
    assert f"-{version.strip()}-" in path.name
    assert "anchored-catch" in core.check("optim4rl", "list", "weights")
    refused = core.run("optim4rl", "train", "--out", "x")
    assert refused.returncode == 2
    assert refused.stdout == ""
    said = "error: optim4rl train: tyro is not installed; pip install 'optim4rl[lab]'\n"
    assert refused.stderr == said


def test_the_sdist_installs_without_a_compiler(sdist: Path, builder: Path, tmp_path: Path) -> None:
    """With the extra for PyTorch."""
    plain = environment(tmp_path / "venv", "torch", sdist, builder)
    plain.check("python", CHECK, "pure")
    plain.check("python", "-c", TORCH)


@pytest.mark.parametrize("wheel", ["native"], indirect=True)
def test_the_laboratory_needs_no_more_than_its_extra(
    wheel: tuple[str, Path], builder: Path, tmp_path: Path
) -> None:
    lab = environment(tmp_path / "venv", "lab", wheel[1], builder)
    assert '"catch"' in lab.check("optim4rl", "list", "tasks", "--json")
    assert "native" in lab.check("optim4rl", "list", "kernels")
    words = ("train", "--out", "run", "--tasks", "catch", "--dry-run")
    lab.check("optim4rl", *words)
