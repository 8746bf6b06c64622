"""The build of the native libraries: what it asks for, what it leaves alone, a wheel's tag."""

import importlib.util
import os
import shutil
import tomllib
from pathlib import Path

import packaging.tags
import pytest
from hatchling.build import get_requires_for_build_sdist, get_requires_for_build_wheel

ROOT = Path(__file__).parents[2]
SPEC = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
assert SPEC is not None
assert SPEC.loader is not None
hatch_build = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(hatch_build)

COMPILER = """#!/bin/sh
if [ "$1" = --version ]; then echo a compiler; exit; fi
for last; do :; done
echo "what $$ made" > "$last"
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """The sources of the libraries, with a library that an earlier build has left."""
    for folder in (hatch_build.SHARED, *(library.parent for library in hatch_build.LIBRARIES)):
        shutil.copytree(
            ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("*.so", "__pycache__")
        )
    for library in hatch_build.LIBRARIES:
        (tmp_path / library).write_text("works")
    return tmp_path


@pytest.fixture
def compiler(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A command that is quick, and writes something else each time."""
    path = tmp_path_factory.mktemp("bin") / "compiler"
    path.write_text(COMPILER)
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize("library", hatch_build.LIBRARIES, ids=lambda library: library.name)
@pytest.mark.parametrize("command", ["none", "false", "true"])
def test_what_cannot_be_built_leaves_the_library(
    library: Path, command: str, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No compiler, one that fails, and one that makes nothing."""
    monkeypatch.setenv("CXX", command)
    before = sorted((tree / library.parent).iterdir())
    with pytest.raises((OSError, RuntimeError, hatch_build.subprocess.CalledProcessError)):
        hatch_build.build_library(tree, library)
    assert (tree / library).read_text() == "works"
    assert sorted((tree / library.parent).iterdir()) == before


def test_a_new_library_takes_its_place_in_one_step(
    tree: Path, compiler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that has the old one open keeps it."""
    monkeypatch.setenv("CXX", compiler)
    library = hatch_build.LIBRARIES[0]
    before = sorted((tree / library.parent).iterdir())
    with (tree / library).open() as old:
        hatch_build.build_library(tree, library)
        assert old.read() == "works"
    assert (tree / library).read_text().startswith("what ")
    assert sorted((tree / library.parent).iterdir()) == before


def test_jaxlib_is_asked_for_where_there_is_a_compiler(
    compiler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    asked = {}
    for command in (compiler, f"{compiler} -O1", "none"):
        monkeypatch.setenv("CXX", command)
        asked[command] = get_requires_for_build_wheel()
        assert get_requires_for_build_sdist() == []
    headers = [hatch_build.HEADERS]
    assert asked == {compiler: headers, f"{compiler} -O1": headers, "none": []}


def test_no_compiler_on_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert get_requires_for_build_wheel() == []
    (tmp_path / "clang++").write_text(COMPILER)
    os.chmod(tmp_path / "clang++", 0o755)
    assert get_requires_for_build_wheel() == [hatch_build.HEADERS]


def test_the_headers_are_of_a_jax_that_the_package_runs_with() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert hatch_build.HEADERS.replace("jaxlib", "jax") in project["dependencies"]


@pytest.mark.parametrize(
    ("known", "expected"),
    [
        (["manylinux_2_36_x86_64", "manylinux2014_x86_64", "linux_x86_64"], "linux_x86_64"),
        (["musllinux_1_2_aarch64", "linux_aarch64"], "linux_aarch64"),
        (["macosx_14_0_arm64", "macosx_14_0_universal2"], "macosx_14_0_arm64"),
    ],
)
def test_the_tag_is_the_machine_s_own(
    known: list[str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was compiled here runs on this kind of processor alone."""
    assert hatch_build.platform_tag() in packaging.tags.platform_tags()
    monkeypatch.setattr(packaging.tags, "platform_tags", lambda: iter(known))
    assert hatch_build.platform_tag() == expected
