"""`optim4rl plan`: show, propose and lint ablation plans; `plan_scores` compares them.

Reading text needs no JAX: modules that need JAX are imported where they are used.
"""

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from optim4rl.cli.runtime import require_file_name
from optim4rl.cli.terminal import duration, print_table
from optim4rl.fields import COUNT, COUNT_OR_ZERO, POSITIVE, check_fields
from optim4rl.files.atomic import write_atomically
from optim4rl.jobs.cores import count_cores
from optim4rl.plans.components import Catalogue
from optim4rl.plans.mapping import MappedAblation, MappedPlan, map_plan, plan_as_dict
from optim4rl.plans.optim4rl import OPTIM4RL
from optim4rl.plans.planner.catalogue import catalogue_plan
from optim4rl.plans.planner.method import Method, method_of, read_method
from optim4rl.plans.planner.propose import Chat, Limits, Proposal, Record, Usage, propose
from optim4rl.plans.planner.render import normalise, render_plan, unmapped
from optim4rl.plans.planner.score import pairs
from optim4rl.plans.planner.text import PlannerError, one_line
from optim4rl.study.lint import Finding, lint

if TYPE_CHECKING:
    from optim4rl.study.cost import Cost

CATALOGUE = "catalogue"
OWN = "optim4rl"


def catalogue_of(experiment: str) -> Catalogue:
    """Return the catalogue of what a plan can name in an experiment.

    Raises:
        ValueError: there is no such experiment.
    """
    if experiment == OWN:
        return OPTIM4RL
    from optim4rl.study.opening import open_given

    return open_given(experiment).experiment.catalogue


@dataclass(frozen=True)
class ShowOptions:
    """Show how an ablation plan is read, and what each part of it maps to.

      optim4rl plan show plans/optim4rl.md

    Attributes:
        plan: the plan file.
        experiment: the plan's experiment: optim4rl, or your own method as FILE.py:NAME.
        json: print it as JSON.
    """

    plan: Annotated[Path, tyro.conf.Positional]
    experiment: str = OWN
    json: bool = False


def show(options: ShowOptions) -> None:
    """Run the command `plan show`."""
    read = MappedPlan.read(options.plan, catalogue_of(options.experiment))
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
    print_safely(ablation.title or ablation.part, ["", "in the plan", "in a study"], rows)


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
        of: experiment that describes itself, in place of a description: optim4rl, or your own
            method as FILE.py:NAME.
        experiment: experiment that the plan is for: optim4rl, or your own method as FILE.py:NAME.
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
    """Run the command `plan propose`."""
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
        proposal = propose(method, options.model, open_chat(options), limits, record)
    write_atomically(options.out, render_plan(proposal.plan, method.known).encode())
    _report(proposal, options, limits, record)


def _method(options: ProposeOptions) -> Method:
    if (options.method is None) == (options.of is None):
        raise PlannerError(
            "method: give a file with a method's description, or --of optim4rl or FILE.py:NAME"
        )
    if options.of is not None:
        if options.experiment != OWN:
            raise PlannerError(
                f"of = {options.of!r}, experiment = {options.experiment!r}: give one of them; the "
                "plan is for the experiment that describes itself"
            )
        return method_of(catalogue_of(options.of))
    assert options.method is not None
    if options.out.exists() and options.method.exists() and options.out.samefile(options.method):
        raise PlannerError(f"out = {str(options.out)!r}: the plan would replace the description")
    return read_method(options.method, catalogue_of(options.experiment))


def open_chat(options: Any, **further: Any) -> Chat:
    """Open the chat model that a command's options name: model, timeout, retries, answer_tokens."""
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
class LintOptions:
    """Check a plan and predict what it costs to run; exit with 1 if anything is wrong.

      optim4rl plan lint p.md --no-cost

    Attributes:
        plan: the plan file.
        experiment: the plan's experiment: optim4rl, or your own method as FILE.py:NAME. The
            reference of your own method runs twice, to time it.
        jobs: worker processes to predict the time for. Default: one for each processor.
        measured: folder of a study; the times of its jobs are used where they fit. If it has no
            times of your own method, the first ones are kept there.
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
    """Run the command `plan lint`."""
    check_fields(options, jobs=COUNT)
    plan = MappedPlan.read(options.plan, catalogue_of(options.experiment))
    findings = lint(plan.mapped)
    jobs = options.jobs if options.jobs is not None else count_cores()
    costs = _costs(options, plan, jobs) if options.cost else []
    if options.json:
        values = {"findings": list(map(asdict, findings)), "costs": list(map(asdict, costs))}
        print(json.dumps(values, indent=1))
    else:
        _print_findings(plan, findings)
        if options.cost:
            _print_costs(costs, jobs)
    if findings:
        sys.exit(1)


def _costs(options: LintOptions, plan: MappedPlan, jobs: int) -> "list[Cost]":
    """Predict a study's cost; empty if it can run nothing of the plan.

    For this project's own experiment there is a cost at every scale; for the user's, one by its
    first cells.
    """
    own, measured, runs = options.experiment == OWN, options.measured, bool(pairs(plan.mapped))
    # A folder that cannot be read is named in any case.
    if not runs and not (own and measured):
        return []
    from optim4rl.study.cost import predict, predict_given, read_measured
    from optim4rl.study.opening import open_given

    if not own:
        return [predict_given(plan, open_given(options.experiment), jobs, measured)]
    times = read_measured(measured) if measured else {}
    return predict(plan, jobs, times) if runs else []


def _print_findings(plan: MappedPlan, findings: tuple[Finding, ...]) -> None:
    parts = [entry.ablation.part for entry in plan.mapped]
    rows = [[f"{f.ablation}. {parts[f.ablation - 1]}", f.kind, f.message] for f in findings]
    if rows:
        print_safely("problems", ["ablation", "kind", "problem"], rows)
    else:
        print("this plan has no problems")


def _print_costs(costs: "list[Cost]", jobs: int) -> None:
    if not costs:
        print("a study can run nothing of this plan")
        return
    prices = [
        [x.scale, str(x.trained), str(x.jobs), duration(x.seconds), _origin(x)] for x in costs
    ]
    columns = ["scale", "rows trained", "jobs", "predicted time", "from"]
    print_safely(f"predicted cost of a study, {jobs} workers", columns, prices)


def _origin(cost: "Cost") -> str:
    if cost.cells:
        return f"{cost.cells} timed cells, {cost.cell_seconds:.2g} s each"
    return f"{cost.measured} of {cost.jobs} jobs' times" if cost.measured else "a table"


def print_safely(title: str, columns: list[str], rows: list[list[str]]) -> None:
    """Print a table of untrusted words, which cannot control the terminal."""

    def safe(text: str) -> str:
        return one_line(text, 400)

    print_table(safe(title), list(map(safe, columns)), [list(map(safe, row)) for row in rows])
