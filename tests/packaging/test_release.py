"""A release says one version everywhere, and its workflow holds it to the tag."""

import os
import re
import subprocess
from pathlib import Path

import pytest
from hatchling.metadata.core import ProjectMetadata
from hatchling.plugin.manager import PluginManager
from packaging.version import Version

import optim4rl

ROOT = Path(__file__).parents[2]
METADATA = ProjectMetadata(str(ROOT), PluginManager())
CHANGELOG = (ROOT / "CHANGELOG.md").read_text("utf-8")
# The newest first: each release, and its day.
RELEASES = re.findall(r"^## \[(\d+\.\d+\.\d+)\] - (\d{4}-\d\d-\d\d)$", CHANGELOG, re.MULTILINE)


def test_the_package_s_version_stands_in_one_place() -> None:
    assert METADATA.version == optim4rl.__version__


def test_a_version_is_the_newest_release_or_leads_to_the_next() -> None:
    version, newest = Version(optim4rl.__version__), Version(RELEASES[0][0])
    if version.is_devrelease:
        assert Version(version.base_version) > newest
    else:
        assert version == newest


def test_what_is_cited_is_the_newest_release() -> None:
    text = (ROOT / "CITATION.cff").read_text("utf-8")
    cited = dict(re.findall(r"^(version|date-released): (.+)$", text, re.MULTILINE))
    assert (cited["version"], cited["date-released"]) == RELEASES[0]


def test_the_changelog_is_in_order() -> None:
    """Every section is a release or what is to be one, and has a link."""
    sections = re.findall(r"^## (.*)$", CHANGELOG, re.MULTILINE)
    titles = [f"[{version}] - {day}" for version, day in RELEASES]
    assert sections in (titles, ["[Unreleased]", *titles])
    versions = [Version(version) for version, _ in RELEASES]
    assert versions == sorted(versions, reverse=True)
    days = [day for _, day in RELEASES]
    assert days == sorted(days, reverse=True)
    for section in sections:
        name = section.partition("]")[0]
        assert f"\n{name}]: {METADATA.core.urls['Repository']}/" in CHANGELOG


def test_the_package_says_where_it_is_at_home() -> None:
    wanted = {"Homepage", "Documentation", "Repository", "Changelog", "Issues"}
    assert set(METADATA.core.urls) == wanted
    for url in METADATA.core.urls.values():
        assert url.startswith(METADATA.core.urls["Repository"])


@pytest.mark.parametrize(
    ("tag", "code"),
    [(f"v{optim4rl.__version__}", 0), (optim4rl.__version__, 1), ("v9.9.9", 1), ("", 1)],
)
def test_a_tag_that_is_not_the_version_is_refused(tag: str, code: int) -> None:
    """By the workflow's own command."""
    workflow = (ROOT / ".github" / "workflows" / "release.yml").read_text("utf-8")
    (command,) = re.findall(r"^ *run: (test .*)$", workflow, re.MULTILINE)
    env = os.environ | {"GITHUB_REF_NAME": tag}
    assert subprocess.run(["bash", "-c", command], cwd=ROOT, env=env).returncode == code
