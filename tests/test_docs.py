"""The pages do what they say: their programs run as printed, their tables hold."""

import os
import re
import subprocess
import sys

import numpy as np
import polars as pl
import pytest

from optim4rl.benchmark.suites import PUBLISHED, SUITES
from optim4rl.optimizers import LEARNED
from optim4rl.optimizers.kernels.select import KERNELS
from optim4rl.optimizers.processing import Raw
from test_readme import PAGES, ROOT, blocks, commands, run_program, run_together

# The programs of a page are run as one, after what the page takes for granted.
CONTEXT = {
    "docs/optimizers.md": """
import jax
import jax.numpy as jnp
from optim4rl.optimizers import untrained
optimizer = untrained("open", 1e-3, jax.random.key(0)).transformation()
optimizer = optimizer._replace(update=jax.jit(optimizer.update))
params = gradients = dormancy = {"w": jnp.ones((2, 3))}
state, key = optimizer.init(params), jax.random.key(1)
"""
}
OWN_TESTS = {"README.md", "docs/torch.md"}  # test_readme, test_torch_page
# Pages whose programs compile whole agents or meta-trainings.
SLOW = {
    "docs/start.md",
    "docs/tasks.md",
    "docs/how-to/own-agent.md",
    "docs/how-to/own-optimizer.md",
    "docs/how-to/own-structure.md",
    "docs/how-to/trackers-and-files.md",
}


def programs(page):
    """What a page has to run."""
    found = blocks((ROOT / page).read_text("utf-8"), "python", "python runnable")
    return [CONTEXT.get(page, ""), *found] if found else []


NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
RUN = [page for page in NAMES if page not in OWN_TESTS and programs(page)]


def test_programs_run_as_printed(tmp_path):
    sources = {page.replace("/", "-"): "\n".join(programs(page)) for page in set(RUN) - SLOW}
    result = run_together(sources, tmp_path)
    assert result.returncode == 0, result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("page", sorted(SLOW))
def test_longer_programs_run_as_printed(page, tmp_path):
    source = "\n".join(programs(page))
    result = run_program(source, tmp_path)
    assert result.returncode == 0, f"{source}\n{result.stderr}"


def test_there_are_programs_to_run():
    assert {"docs/optimizers.md", "docs/method.md", "docs/design.md"} | SLOW <= set(RUN)


@pytest.mark.slow
def test_the_commands_of_the_first_page_run_as_printed(tmp_path):
    (tmp_path / "plans").symlink_to(ROOT / "plans")
    env = {**os.environ, "XLA_FLAGS": ""}  # They run for longer than they compile.
    for words in commands((ROOT / "docs" / "start.md").read_text("utf-8")):
        program = [sys.executable, "-m", "optim4rl", *words]
        result = subprocess.run(program, cwd=tmp_path, env=env, capture_output=True, text=True)
        assert result.returncode == 0, f"{words}\n{result.stderr}"
    assert (tmp_path / "runs" / "mine.html").is_file()
    assert (tmp_path / "runs" / "study" / "report.html").is_file()


def test_links_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)", page.read_text("utf-8")):
            assert "://" in target or (page.parent / target).exists(), f"{page}: {target}"


RESULTS = sorted(
    page
    for folder in ("results", "studies")
    for page in (ROOT / "docs" / folder).glob("*.md")
    if page.name != "index.md"
)
INDEX = ROOT / "docs" / "results" / "index.md"


@pytest.mark.parametrize("page", RESULTS, ids=lambda page: page.stem)
def test_a_result_begins_with_its_claim_evidence_and_limit(page):
    title, box, _ = page.read_text("utf-8").split("\n\n", maxsplit=2)
    assert title.startswith("# ")
    lines = re.findall(r"^> \*\*([\w ]+)\.\*\* \S", box, re.MULTILINE)
    assert lines == ["Claim", "Evidence", "What it does not show"]


def test_every_result_is_in_the_index():
    linked = {(INDEX.parent / x).resolve() for x in re.findall(r"\]\(([^)#:]+)", INDEX.read_text())}
    assert set(RESULTS) <= linked


def test_the_accuracies_of_the_identity_experiment_come_out_of_its_table():
    page = ROOT / "docs" / "studies" / "identity.md"
    accuracies = pl.read_parquet(page.with_suffix("") / "accuracies.parquet")

    def cell(input, output, schedule, measure):
        of_network = accuracies.filter(input=input, output=output, schedule=schedule)[measure]
        assert len(of_network) == 4
        middle, low, high = (
            round(100 * x) for x in (of_network.mean(), of_network.min(), of_network.max())
        )
        return f"{middle} % ({low} to {high})"

    pairs = {"raw": "linear", "sign_log": "sign_exp", "symlog": "symexp"}
    shown = page.read_text("utf-8")
    for schedule, measure in (("constant", "online"), ("annealed", "frozen_nonzero")):
        cells = [cell(x, pairs[x], schedule, measure) for x in ("sign_log", "raw", "symlog")]
        assert f"| {' | '.join(cells)} |" in shown
    for name, input in (("raw", "raw"), ("sign and log", "sign_log")):
        cells = [cell(input, x, "annealed", "frozen_nonzero") for x in ("linear", "sign_exp")]
        assert f"| {name} | {' | '.join(cells)} |" in shown


def test_no_table_stands_twice():
    seen = {}
    for page in PAGES:
        for found in re.findall(r"(?:^\|.*\n){4,}", page.read_text("utf-8"), re.MULTILINE):
            body = found.split("\n", 2)[2]
            assert seen.setdefault(body, page) == page, f"{page} and {seen[body]}: {found}"


def table(page, first):
    """The rows of the table whose first column has that title, as text."""
    lines = (ROOT / "docs" / page).read_text("utf-8").splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"| {first} |")) + 2
    rows = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


def preset_facts(name):
    """A row of the presets' table, but for its source."""
    spec = LEARNED[name]
    structure = spec.structure
    own = structure.tensorwise and spec.processing == Raw()
    cell = "none" if spec.cell == "none" else f"{spec.cell} {spec.hidden_size}"
    coordinates = not structure.tensorwise and spec.normalise == "none"
    works_on = "network" if spec.networkwise else "coordinates" if coordinates else "tensors"
    norm = " normalised" if spec.head_norm else ""
    clip = f"norm {spec.clip_norm:g}" if spec.clip is None else f"{spec.clip:g}"
    # Every kernel runs `anchored`, unless this machine lacks it: then it says so of every rule.
    runs = [k.name for k in KERNELS if k.refusal(spec) == k.refusal(LEARNED["anchored"])]
    return [
        f"`{name}`",
        structure.name,
        ", ".join(
            ["own features" if own else spec.processing.name, *spec.inputs, *structure.reads]
        ),
        ", ".join(f"{shape.inputs} > {shape.outputs}" for shape in spec.networks),
        f"{cell}, {'-'.join(map(str, spec.head_sizes)) or 'linear'}{norm}",
        clip,
        str(spec.state_floats),
        works_on,
        ", ".join(runs),
    ]


def test_the_presets_are_as_the_table_says():
    rows = table("optimizers.md", "preset")
    assert [row[:-1] for row in rows] == [preset_facts(name) for name in LEARNED]
    assert all(row[-1] for row in rows)


def test_the_suites_are_as_the_table_says():
    expected = []
    for name, suite in SUITES.items():
        for task in suite.tasks:
            config = task.config
            steps = task.rollouts * config.num_envs * config.learner.rollout
            learner = type(config.learner).__name__.removesuffix("Config")
            expected.append([name, task.name, learner, f"{task.rollouts:,}", f"{steps:,}"])
    assert table("benchmark.md", "suite") == expected


def test_the_table_of_discobench_comes_from_its_runs():
    """Each run's greedy return, the means, the seconds, and what is said of them."""
    folder = ROOT / "docs/results"
    text = " ".join((folder / "discobench.md").read_text("utf-8").split())
    runs = pl.read_parquet(folder / "discobench/runs.parquet").filter(purpose="tuned")
    adam, ours = (runs.filter(optimizer=x) for x in ("adam_ppo", "ppo-generalist"))
    greedy = [x["greedy_return"].sort().to_list() for x in (adam, ours)]
    lists = [", ".join(f"{y:.1f}" for y in x) for x in greedy]
    assert f"| each run's, in order | {lists[0]} | {lists[1]} |" in text
    areas = [float(x["auc"].to_numpy().mean()) for x in (adam, ours)]
    assert f"| mean AUC | {areas[0]:.1f} | {areas[1]:.1f} |" in text
    seconds = [round(float(x["seconds"].to_numpy().mean())) for x in (adam, ours)]
    assert f"| seconds of a run | {seconds[0]} | {seconds[1]} |" in text
    assert f"their ratio, {seconds[1] / seconds[0]:.2f}, is that" in text
    slow, fast = greedy[0][:3], greedy[0][3:]
    assert max(slow) < 26
    assert 68 < min(fast) < max(fast) < 88
    fewer = (2 * np.mean(slow) + 6 * np.mean(fast)) / 8
    assert f"our mean would be about {fewer:.0f}." in text
    published = PUBLISHED["discobench"][1]["gymnax:Breakout-MinAtar"]
    assert f"Adam, {published:.1f}, is {published / np.mean(greedy[0]) - 1:.0%} above" in (
        text.replace(" %", "%")
    )
    curves = [np.stack(x["returns"].to_list()) for x in (ours, adam)]
    first = [f"{x[:, : x.shape[1] // 10].mean():.1f}" for x in curves]
    assert f"first million here the two have {first[0]} and {first[1]}" in text
    ahead = np.subtract(*(x.mean(axis=0) for x in curves))
    million = len(ahead) // 10
    parts = ahead[: 10 * million].reshape(10, million).mean(axis=1)
    assert (parts[:4] > 0).all()
    assert (parts[4:] < 0).all()
    assert adam["setting"].unique().to_list() == [5e-3]
    assert ours["setting"].unique().to_list() == [0.5]
