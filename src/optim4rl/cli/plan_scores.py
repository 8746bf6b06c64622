"""`optim4rl plan score` and `optim4rl plan export`: compare plans, and convert one."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from optim4rl.cli.plan import OWN, catalogue_of, open_chat, print_safely
from optim4rl.cli.runtime import require_file_name
from optim4rl.fields import COUNT, COUNT_OR_ZERO, POSITIVE, check_fields
from optim4rl.files.atomic import write_atomically
from optim4rl.plans.mapping import MappedPlan
from optim4rl.plans.plan import read_plan
from optim4rl.plans.planner.bench import (
    JUDGE_SCHEMA,
    BenchScore,
    bench_score,
    by_priority,
    export_lines,
    judge_plan,
    match_plans,
)
from optim4rl.plans.planner.propose import Record
from optim4rl.plans.planner.score import Score, pairs, score_plan
from optim4rl.plans.planner.text import PlannerError


@dataclass(frozen=True)
class ScoreOptions:
    """Say how much of a reference plan other plans find.

    Each plan counts as a set of pairs: a component and a replacement. AblationBench's scores count
    whole ablations: two match if they have one replacement in common.

      optim4rl plan score p.md --against plans/optim4rl.md

    Attributes:
        plans: the plan files.
        against: the reference plan's file.
        experiment: the plans' experiment: optim4rl, or your own method as FILE.py:NAME.
        k: ablations of each plan that AblationBench's scores count, the most important first.
            Default: all.
        model: a chat model that judges which ablations match, as in AblationBench. Default: they
            match by their mapping, or by their words.
        timeout: seconds for the judge's response.
        retries: how often a request is tried again.
        answer_tokens: tokens of the judge's answer.
        json: print it as JSON.
    """

    plans: Annotated[tuple[Path, ...], tyro.conf.Positional]
    against: Path
    experiment: str = OWN
    k: int | None = None
    model: str | None = None
    timeout: float = 300.0
    retries: int = 2
    answer_tokens: int = 8_000
    json: bool = False


def score(options: ScoreOptions) -> None:
    """Run the command `plan score`."""
    if not options.plans:
        raise PlannerError("plans: one or more plan files are needed")
    check_fields(options, k=COUNT, timeout=POSITIVE, retries=COUNT_OR_ZERO, answer_tokens=COUNT)
    known = catalogue_of(options.experiment)
    against = MappedPlan.read(options.against, known)
    plans = {path: MappedPlan.read(path, known) for path in options.plans}
    benches = {path: _bench(options, path, plan, against) for path, plan in plans.items()}
    scores: dict[Path, Score] = {}
    if options.model is None and pairs(against.mapped):
        scores = {path: score_plan(plan.mapped, against.mapped) for path, plan in plans.items()}
    if options.json:
        values = [
            {
                "plan": str(path),
                **(_score_values(scores[path]) if scores else {}),
                "ablation_bench": _bench_values(bench),
            }
            for path, bench in benches.items()
        ]
        print(json.dumps(values, indent=1))
        return
    if scores:
        _print_scores(scores, options.against)
    _print_benches(benches, options)


def _print_scores(scores: dict[Path, Score], against: Path) -> None:
    """Print how much of the reference each plan finds, and which parts of each ablation."""
    rows = [
        [
            str(path),
            f"{entry.complete} of {len(entry.ablations)}",
            f"{entry.hits} of {len(entry.wanted)}",
            *(f"{x:.2f}" for x in (entry.precision, entry.recall, entry.f1)),
            str(len(entry.proposed)),
            str(entry.unmapped),
        ]
        for path, entry in scores.items()
    ]
    columns = ["plan", "ablations", "replacements", "precision", "recall", "F1", "proposed"]
    print_safely(f"found of {against}", [*columns, "not mapped"], rows)
    first = next(iter(scores.values()))
    rows = [
        [
            entry.title,
            ", ".join("/".join(map(str, pair)) for pair in entry.wanted),
            *(", ".join(str(v) for _, v in s.ablations[i].found) or "-" for s in scores.values()),
        ]
        for i, entry in enumerate(first.ablations)
    ]
    print_safely("the reference's ablations", ["ablation", "wanted", *map(str, scores)], rows)


def _bench(options: ScoreOptions, path: Path, plan: MappedPlan, against: MappedPlan) -> BenchScore:
    """Score a plan as AblationBench does."""
    if options.model is None:
        order = by_priority(plan.plan.ablations)
        mapped = [plan.mapped[index] for index in order]
        matches = match_plans(mapped, against.mapped)
    else:
        record = Record(path.with_suffix(".judge.jsonl"))
        chat = open_chat(options, schema=JUDGE_SCHEMA)
        matches = judge_plan(plan.plan, against.plan, chat, record)
    return bench_score(matches, len(plan.mapped), options.k)


def _bench_values(score: BenchScore) -> dict[str, Any]:
    names = ("proposed", "found", "precision", "recall", "f1", "ndcg")
    return {name: getattr(score, name) for name in names}


def _print_benches(benches: dict[Path, BenchScore], options: ScoreOptions) -> None:
    """Print AblationBench's scores of all plans."""
    rows = [
        [
            str(path),
            f"{x.found} of {len(x.matches)}",
            str(x.proposed),
            *(f"{value:.2f}" for value in (x.precision, x.recall, x.f1, x.ndcg)),
        ]
        for path, x in benches.items()
    ]
    at = "" if options.k is None else f" at {options.k}"
    judge = options.model or "matched by mapping"
    columns = ["plan", "found", "proposed", "precision", "recall", "F1", "nDCG"]
    print_safely(f"AblationBench's scores{at} ({judge})", columns, rows)


@dataclass(frozen=True)
class ExportOptions:
    """Write a plan as AblationBench's JSON lines, the most important ablation first.

      optim4rl plan export plans/optim4rl.md --out plan.jsonl

    Attributes:
        plan: the plan file.
        out: the file to write.
        json: print the outcome as JSON.
    """

    plan: Annotated[Path, tyro.conf.Positional]
    out: Path
    json: bool = False


def export(options: ExportOptions) -> None:
    """Run the command `plan export`."""
    require_file_name("out", options.out)
    plan = read_plan(options.plan)
    write_atomically(options.out, export_lines(plan).encode())
    if options.json:
        print(json.dumps({"plan": str(options.out), "ablations": len(plan.ablations)}))
        return
    print(f"plan: {options.out} ({len(plan.ablations)} ablations)")


def _score_values(score: Score) -> dict[str, Any]:
    return {
        **asdict(score),
        "hits": score.hits,
        "precision": score.precision,
        "recall": score.recall,
        "f1": score.f1,
        "ablations_found": score.complete,
    }
