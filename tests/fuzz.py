"""Coverage-guided fuzzing of the plan reader: `python -m tests.fuzz --seconds 60`.

Needs the extra `fuzz`. Starts from the plans in this repository, mutates them towards code that no
input has reached yet, and stops at the first that is neither a plan nor a `PlanError`, or that
takes more than linear time. The number of inputs stands at the end ("Done N runs").
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import atheris

with atheris.instrument_imports(
    include=[
        f"optim4rl.study.{name}"
        for name in (
            *("plan", "plan_text", "plan_fields", "plan_table", "plan_json"),
            *("ablation", "mapping", "words"),
        )
    ]
):
    from optim4rl.study.mapping import map_plan, plan_as_dict
    from optim4rl.study.plan import PlanError, parse_plan

ROOT = Path(__file__).parents[1]
SEEDS = [ROOT / "plans" / "optim4rl.md", *sorted((ROOT / "tests" / "study" / "plans").iterdir())]
# The same plan in the other forms.
FORMS = {
    "fields": b"- **Ablated Part**: GRU cell; **Action**: REPLACE; **Replacement**: no cell\n",
    "table": b"| Part | Action | Replacement |\n|---|---|---|\n| GRU | REPLACE | no cell |\n",
    "lines": b'{"ablated_part": "GRU", "action": "REPLACE", "replacement": ["no cell"]}\n',
    "answer": b'{"reasoning": "", "ablations": [{"part": "GRU", "action": "REMOVE"}]}\n',
    "fence": b'# T\n\n```json\n[{"part": "GRU", "replacements": "LSTM; no cell"}]\n```\n',
}
WORDS = [
    "<!--",
    "-->",
    "<style>",
    "</style>",
    "<script>",
    "<b>",
    "<ul><li>",
    "</ul>",
    "<h2>",
    "<![x]>",
    "&amp;",
    "&#9;",
    "**",
    "__",
    "```",
    ">",
    "-",
    "1.",
    "\\xff\\xfe",
    "\\xef\\xbb\\xbf",
    "\\x09",
    "Ablated",
    "Part:",
    "Action:",
    "Replacement:",
    "Metrics:",
    "REPLACE",
    "none",
    "#",
    "Plan",
    "|---|",
    "<br>",
    "; ",
    "[{",
    "}]",
    '\\"part\\":',
    '\\"ablations\\":',
    '\\"action\\":',
    "\\\\|",
]
LONGEST = 2_000  # bytes of an input
# Seconds that an input may take: some, and so many for each byte, with the fuzzer looking on.
SOME, FOR_EACH_BYTE = 0.25, 5e-5


def check(data: bytes) -> None:
    """A plan or a `PlanError`, in linear time."""
    started = time.process_time()
    try:
        plan = parse_plan(data)
    except PlanError:
        pass
    else:
        assert plan.ablations
        assert all(ablation.part or ablation.title for ablation in plan.ablations)
        plan_as_dict(plan, map_plan(plan))
    taken = time.process_time() - started
    assert taken < SOME + FOR_EACH_BYTE * len(data), f"{taken:.2f} s for {len(data)} bytes"


def main() -> None:
    """Fuzz for some time."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    chosen = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="optim4rl-fuzz-"))
    corpus, words = folder / "corpus", folder / "words"
    corpus.mkdir()
    for seed in SEEDS:
        (corpus / seed.name).write_bytes(seed.read_bytes()[:LONGEST])
    for name, text in FORMS.items():
        (corpus / name).write_bytes(text)
    words.write_text("".join(f'"{word}"\n' for word in WORDS))
    options = {
        "max_total_time": chosen.seconds,
        "seed": chosen.seed,
        "max_len": LONGEST,
        "timeout": 20,
        "dict": words,
        "artifact_prefix": f"{folder}/",
        "verbosity": 1,
        "print_final_stats": 1,
    }
    flags = [f"-{name}={value}" for name, value in options.items()]
    atheris.Setup([sys.argv[0], *flags, str(corpus)], check)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
