"""`optim4rl plan`: show, propose, score and lint ablation plans.

Text is read without JAX: what needs it is imported where it is used.
"""

import json
import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from optim4rl.cli.runtime import require_file_name
from optim4rl.cli.terminal import duration, print_table
from optim4rl.fields import COUNT, COUNT_OR_ZERO, POSITIVE, check_fields
from optim4rl.plans.components import Catalogue
from optim4rl.plans.mapping import MappedAblation, MappedPlan, map_plan, plan_as_dict
from optim4rl.plans.optim4rl import OPTIM4RL
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
from optim4rl.plans.planner.catalogue import catalogue_plan
from optim4rl.plans.planner.method import Method, method_of, read_method
from optim4rl.plans.planner.propose import Chat, Limits, Proposal, Record, Usage, propose
from optim4rl.plans.planner.render import normalise, render_plan, unmapped
from optim4rl.plans.planner.score import Score, pairs, score_plan
from optim4rl.plans.planner.text import PlannerError, one_line
from optim4rl.study.lint import Finding, lint

if TYPE_CHECKING:
    from optim4rl.study.cost import Cost

CATALOGUE = "catalogue"
OWN = "optim4rl"


def _known(experiment: str) -> Catalogue:
    """What a plan can name in an experiment.

    Raises:
        ValueError: there is no such experiment.
    """
    if experiment == OWN:
        return OPTIM4RL
    from optim4rl.study.source import load_experiment, split_name

    return load_experiment(*split_name(experiment)).catalogue


@dataclass(frozen=True)
class ShowOptions:
    """Show how an ablation plan is read, and what each part of it maps to.

      optim4rl plan show plans/optim4rl.md

    Attributes:
        plan: the plan file.
        experiment: what it is for: optim4rl, or a method of your own as FILE.py:NAME.
        json: print it as JSON.
    """

    plan: Annotated[Path, tyro.conf.Positional]
    experiment: str = OWN
    json: bool = False


def show(options: ShowOptions) -> None:
    """The command `plan show`."""
    read = MappedPlan.read(options.plan, _known(options.experiment))
    if options.json:
        print(json.dumps(plan_as_dict(read.plan, read.mapped), indent=1))
        return
    print(one_line(read.plan.title))
    for entry in read.mapped:
        _show_ablation(entry)


def _show_ablation(entry: MappedAblation) -> None:
    ablation = entry.ablation
    found = entry.component.key if entry.component else f"not mapped: {entry.reason}"
    rows = [["part", ablation.part, found], ["action", ablation.action or "not stated", ""]]
    for what, matches in (("replacement", entry.replacements), ("metric", entry.metrics)):
        rows += [
            [
                what,
                m.text or "(default)",
                f"not mapped: {m.reason}" if m.key is None else str(m.key),
            ]
            for m in matches
        ]
    said = (("expected", ablation.expected), ("tests", ablation.tests))
    rows += [[what, text, ""] for what, text in said if text]
    if ablation.priority is not None:
        rows.append(["priority", str(ablation.priority), ""])
    _print_table(ablation.title or ablation.part, ["", "in the plan", "in a study"], rows)


@dataclass(frozen=True)
class ProposeOptions:
    """Read the description of a learned-optimizer method and write an ablation plan.

    The planner `catalogue` needs no model and no network: it proposes all ablations that a study
    knows. Any other name is a chat model behind an OpenAI-compatible endpoint (OPENAI_API_KEY,
    OPENAI_BASE_URL; `pip install optim4rl[planner]`). All prompts and answers are kept beside the
    plan, in NAME.record.jsonl.

      optim4rl plan propose --of optim4rl --out p.md

    Attributes:
        method: the description, as plain text, Markdown or HTML.
        of: in place of a description, an experiment, which describes itself: optim4rl, or a method
            of your own as FILE.py:NAME.
        experiment: the experiment that a description is a plan for; optim4rl or FILE.py:NAME.
        out: the plan file to write.
        model: catalogue, or a chat model's name.
        rounds: how often an answer is sent back because parts of it map to nothing.
        timeout: seconds for one response.
        retries: how often a request is tried again after a time-out, a lost connection, "too many
            requests" or a fault of the endpoint.
        answer_tokens: tokens of one answer.
        tokens: tokens of all prompts and answers together.
        price: price of a million prompt tokens and of a million answer tokens, in any currency.
        max_cost: limit for the cost of all prompts and answers, in the same currency.
        json: print the outcome as JSON.
    """

    out: Path
    method: Annotated[Path | None, tyro.conf.Positional] = None
    of: str | None = None
    experiment: str = OWN
    model: str = CATALOGUE
    rounds: int = 2
    timeout: float = 300.0
    retries: int = 2
    answer_tokens: int = 8_000
    tokens: int = 200_000
    price: tuple[float, float] | None = None
    max_cost: float | None = None
    json: bool = False


def propose_plan(options: ProposeOptions) -> None:
    """The command `plan propose`."""
    from optim4rl.files.atomic import write_atomically

    check_fields(options, timeout=POSITIVE, retries=COUNT_OR_ZERO)
    require_file_name("out", options.out)
    limits = Limits(
        options.rounds, options.answer_tokens, options.tokens, options.price, options.max_cost
    )
    method = _method(options)
    record = Record(options.out.with_suffix(".record.jsonl"))
    if options.model == CATALOGUE:
        plan = normalise(catalogue_plan(method))
        proposal = Proposal(plan, unmapped(map_plan(plan, method.known)), 0, Usage(0, 0))
    else:
        proposal = propose(method, options.model, _chat(options), limits, record)
    write_atomically(options.out, render_plan(proposal.plan, method.known).encode())
    _report(proposal, options, limits, record)


def _method(options: ProposeOptions) -> Method:
    if (options.method is None) == (options.of is None):
        raise PlannerError(
            "method: give a file with a method's description, or --of with optim4rl or FILE.py:NAME"
        )
    if options.of is not None:
        return method_of(_known(options.of))
    assert options.method is not None
    if options.out.exists() and options.method.exists() and options.out.samefile(options.method):
        raise PlannerError(f"out = {str(options.out)!r}: the plan would replace the description")
    return read_method(options.method, _known(options.experiment))


def _chat(options: "ProposeOptions | ScoreOptions", **further: Any) -> Chat:
    """The chat model that the options name."""
    assert options.model is not None
    try:
        from optim4rl.plans.planner.chat import ChatModel
    except ModuleNotFoundError as error:
        raise PlannerError(
            f"model = {one_line(options.model)!r}: chat models need more packages "
            f"({error.name}): pip install 'optim4rl[planner]'; --model {CATALOGUE} needs none"
        ) from error
    return ChatModel(
        options.model,
        answer_tokens=options.answer_tokens,
        seconds=options.timeout,
        retries=options.retries,
        **further,
    )


def _report(proposal: Proposal, options: ProposeOptions, limits: Limits, record: Record) -> None:
    """Say on stdout what was written, and on stderr what is left to do."""
    cost = limits.cost(proposal.spent)
    if options.json:
        values = {
            "plan": str(options.out),
            "record": str(record.path) if proposal.requests else None,
            "ablations": len(proposal.plan.ablations),
            "unmapped": proposal.unmapped,
            "requests": proposal.requests,
            "tokens": asdict(proposal.spent),
            "cost": cost,
            "stopped": proposal.stopped,
        }
        print(json.dumps(values, indent=1))
        return
    print(f"plan:   {options.out} ({len(proposal.plan.ablations)} ablations)")
    if proposal.requests:
        tokens = f"{proposal.spent.prompt:,} prompt and {proposal.spent.answer:,} answer tokens"
        print(f"record: {record.path} ({proposal.requests} requests, {tokens})")
    if cost is not None and proposal.requests:
        print(f"cost:   {cost:.4g}")
    if proposal.stopped:
        print(f"no further round: {proposal.stopped}", file=sys.stderr)
    for note in proposal.unmapped:
        print(f"marked: {note}", file=sys.stderr)
    if proposal.unmapped:
        print("`optim4rl ablate --skip-unmapped` runs the rest", file=sys.stderr)


@dataclass(frozen=True)
class ScoreOptions:
    """Say how much of a reference plan other plans find.

    Each plan counts as a set of pairs: a component and a replacement. Beside that stand
    AblationBench's scores of whole ablations: two match if they have one replacement in common.

      optim4rl plan score p.md --against plans/optim4rl.md

    Attributes:
        plans: the plan files.
        against: the reference plan's file.
        experiment: what they are for: optim4rl, or a method of your own as FILE.py:NAME.
        k: ablations of each plan that AblationBench's scores count, the most important first; all
            by default.
        model: a chat model that judges which ablations match, as AblationBench has it; by default
            they match by what they map to, or by their words.
        timeout: seconds for the judge's response.
        retries: times that a request is made again.
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
    """The command `plan score`."""
    if not options.plans:
        raise PlannerError("plans: one or more plan files are needed")
    check_fields(options, k=COUNT, timeout=POSITIVE, retries=COUNT_OR_ZERO, answer_tokens=COUNT)
    known = _known(options.experiment)
    against = MappedPlan.read(options.against, known)
    plans = {path: MappedPlan.read(path, known) for path in options.plans}
    benches = {path: _bench(options, path, plan, against) for path, plan in plans.items()}
    if options.model is not None or not pairs(against.mapped):
        _print_benches(benches, options)
        return
    scores = {path: score_plan(plan.mapped, against.mapped) for path, plan in plans.items()}
    if options.json:
        values = [
            _score_values(path, entry) | {"ablation_bench": _bench_values(benches[path])}
            for path, entry in scores.items()
        ]
        print(json.dumps(values, indent=1))
        return
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
    _print_table(f"found of {options.against}", [*columns, "not mapped"], rows)
    _print_found(scores)
    _print_benches(benches, options)


def _bench(options: ScoreOptions, path: Path, plan: MappedPlan, against: MappedPlan) -> BenchScore:
    """A plan's score as AblationBench has it."""
    if options.model is None:
        order = by_priority(plan.plan.ablations)
        mapped = [plan.mapped[index] for index in order]
        matches = match_plans(mapped, against.mapped)
    else:
        record = Record(path.with_suffix(".judge.jsonl"))
        chat = _chat(options, schema=JUDGE_SCHEMA)
        matches = judge_plan(plan.plan, against.plan, chat, record)
    return bench_score(matches, len(plan.mapped), options.k)


def _bench_values(score: BenchScore) -> dict[str, Any]:
    names = ("proposed", "found", "precision", "recall", "f1", "ndcg")
    return {name: getattr(score, name) for name in names}


def _print_benches(benches: dict[Path, BenchScore], options: ScoreOptions) -> None:
    """AblationBench's scores of all plans."""
    if options.json:
        values = [
            {"plan": str(path), "ablation_bench": _bench_values(x)} for path, x in benches.items()
        ]
        print(json.dumps(values, indent=1))
        return
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
    judge = options.model or "by what they map to"
    columns = ["plan", "found", "proposed", "precision", "recall", "F1", "nDCG"]
    _print_table(f"AblationBench's scores{at} ({judge})", columns, rows)


@dataclass(frozen=True)
class ExportOptions:
    """Write a plan as AblationBench's JSON lines, the most important ablation first.

    Attributes:
        plan: the plan file.
        out: the file to write.
    """

    plan: Annotated[Path, tyro.conf.Positional]
    out: Path


def export(options: ExportOptions) -> None:
    """The command `plan export`."""
    from optim4rl.files.atomic import write_atomically

    require_file_name("out", options.out)
    plan = read_plan(options.plan)
    write_atomically(options.out, export_lines(plan).encode())
    print(f"plan: {options.out} ({len(plan.ablations)} ablations)")


def _print_found(scores: dict[Path, Score]) -> None:
    """Each ablation of the reference, and what each plan finds of it."""
    first = next(iter(scores.values()))
    rows = [
        [
            entry.title,
            ", ".join("/".join(map(str, pair)) for pair in entry.wanted),
            *(", ".join(str(v) for _, v in s.ablations[i].found) or "-" for s in scores.values()),
        ]
        for i, entry in enumerate(first.ablations)
    ]
    _print_table("the reference's ablations", ["ablation", "wanted", *map(str, scores)], rows)


def _score_values(path: Path, score: Score) -> dict[str, Any]:
    return {
        "plan": str(path),
        **asdict(score),
        "hits": score.hits,
        "precision": score.precision,
        "recall": score.recall,
        "f1": score.f1,
        "ablations_found": score.complete,
    }


@dataclass(frozen=True)
class LintOptions:
    """Say what is wrong with a plan, and what it would cost to run; exits with 1 if anything is.

      optim4rl plan lint p.md --no-cost

    Attributes:
        plan: the plan file.
        experiment: optim4rl, or your own method as FILE.py:NAME, whose reference runs twice and is
            timed.
        jobs: worker processes to predict the time for. Default: one for each processor.
        measured: folder of a study; the times of its jobs are used where they fit. If it has none
            of your own method, the first ones are kept there.
        cost: predict the time; with --no-cost the answer comes at once.
        json: print it as JSON.
    """

    plan: Annotated[Path, tyro.conf.Positional]
    experiment: str = OWN
    jobs: int | None = None
    measured: Path | None = None
    cost: bool = True
    json: bool = False


def lint_plan(options: LintOptions) -> None:
    """The command `plan lint`."""
    check_fields(options, jobs=COUNT)
    plan = MappedPlan.read(options.plan, _known(options.experiment))
    findings = lint(plan.mapped)
    jobs = options.jobs if options.jobs is not None else (os.cpu_count() or 1)
    costs = []
    if options.cost and options.experiment == OWN:
        costs = _costs(plan, jobs, options.measured)
    elif options.cost:
        costs = _given_costs(options, plan, jobs)
    if options.json:
        values = {"findings": list(map(asdict, findings)), "costs": list(map(asdict, costs))}
        print(json.dumps(values, indent=1))
    else:
        _print_findings(plan, findings)
        if options.cost:
            _print_costs(costs, jobs)
    if findings:
        sys.exit(1)


def _costs(plan: MappedPlan, jobs: int, measured: Path | None) -> "list[Cost]":
    """What a study of the plan costs at every scale; empty where it can run nothing of it."""
    if measured is None and not pairs(plan.mapped):
        return []
    from optim4rl.study.cost import predict, read_measured

    times = read_measured(measured) if measured else {}
    return predict(plan, jobs, times) if pairs(plan.mapped) else []


def _given_costs(options: LintOptions, plan: MappedPlan, jobs: int) -> "list[Cost]":
    """What a study of the plan costs with the user's experiment, by its first cells."""
    if not pairs(plan.mapped):
        return []
    from optim4rl.study.cost import predict_given
    from optim4rl.study.opening import open_given

    return [predict_given(plan, open_given(options.experiment), jobs, options.measured)]


def _print_findings(plan: MappedPlan, findings: tuple[Finding, ...]) -> None:
    parts = [entry.ablation.part for entry in plan.mapped]
    rows = [[f"{f.ablation}. {parts[f.ablation - 1]}", f.kind, f.message] for f in findings]
    if rows:
        _print_table("what is wrong", ["ablation", "kind", "what"], rows)
    else:
        print("nothing is wrong with this plan")


def _print_costs(costs: "list[Cost]", jobs: int) -> None:
    if not costs:
        print("a study can run nothing of it")
        return
    prices = [
        [
            cost.scale,
            str(cost.trained),
            str(cost.jobs),
            duration(cost.seconds),
            _origin(cost),
        ]
        for cost in costs
    ]
    columns = ["scale", "rows trained", "jobs", "predicted time", "from"]
    _print_table(f"what a study of it costs, {jobs} workers", columns, prices)


def _origin(cost: "Cost") -> str:
    if cost.cells:
        return f"{cost.cells} timed cells, {cost.cell_seconds:.2g} s each"
    return f"{cost.measured} of {cost.jobs} jobs' times" if cost.measured else "a table"


def _print_table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    """A table of words from outside, which do not steer the terminal."""

    def safe(text: str) -> str:
        return one_line(text, 400)

    print_table(safe(title), list(map(safe, columns)), [list(map(safe, row)) for row in rows])
