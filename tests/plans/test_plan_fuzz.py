"""The plan reader under coverage-guided fuzzing, and files made to be slow, as long as may be."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
SECONDS = 120
# As users run it: without the type checks of the tests, which cost more than the reading.
READ = """
import sys, time
from pathlib import Path
from optim4rl.plans.plan import PlanError, parse_plan

for path in sys.argv[1:]:
    data, started = Path(path).read_bytes(), time.process_time()
    try:
        parse_plan(data)
    except PlanError:
        pass
    print(time.process_time() - started)
"""
UNITS = [
    *("<div>", "<ul><li>", "<!--", "<a b='", "&#9", "**", "(", "<", "a, ", "\u00f0", "\t"),
    *("- Ablated Part: x\n", "Metrics:\n- a\n", "- Metrics: a and b\n", "Ablation plan\n", "> "),
    *("| a | b |\n", "Part | Action\n--|--\n", '{"part":\n', '{"a":1}\n', "; Metrics: a", "[{\n"),
    *("# x\n", "<style>", "<script>", "&amp;", "```\n", "\ud7ff", "a" * 5_000 + "\n"),
]


def test_fuzzing_finds_neither_crash_nor_slowness(tally):
    row = tally("plans fuzzed", "coverage-guided mutations of plans")
    command = [sys.executable, "-m", "tests.fuzz", "--seconds", str(SECONDS)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=3 * SECONDS)
    assert done.returncode == 0, done.stderr[-2_000:]
    row.count("correct", times=int(*re.findall(r"Done (\d+) runs", done.stderr)))
    row.check(1_000)


def test_long_files_of_anything_are_read_in_linear_time(tally, tmp_path):
    row = tally("plans fuzzed", "files of 0.1 and 1 MB made to be slow")
    head = b"# T\n- Ablated Part: x\n- Replacement:\n  - z\n"
    paths = []
    for index, unit in enumerate(UNITS):
        for size in (97_000, 970_000):
            path = tmp_path / f"{index}-{size}.md"
            path.write_bytes(head + unit.encode() * (size // len(unit.encode())))
            paths.append(str(path))
    done = subprocess.run(
        [sys.executable, "-c", READ, *paths], capture_output=True, text=True, timeout=1_800
    )
    assert done.returncode == 0, done.stderr[-2_000:]
    seconds = list(map(float, done.stdout.split()))
    rates = dict(zip(UNITS, zip(seconds[::2], seconds[1::2], strict=True), strict=True))
    for unit, (one, ten) in rates.items():
        linear = ten < 30 * max(one, 0.05)  # 10 if linear, 100 if quadratic
        row.count("correct" if linear else "hang", (unit, one, ten), 2)
    row.check(2 * len(UNITS))
