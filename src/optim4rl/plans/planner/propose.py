"""Asks a model for a plan: in rounds, within limits, and with a record of all answers."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from optim4rl.fields import COUNT, COUNT_OR_ZERO, NOT_NEGATIVE, POSITIVE, check_fields
from optim4rl.plans.components import Catalogue
from optim4rl.plans.mapping import map_plan
from optim4rl.plans.plan import Plan
from optim4rl.plans.planner.answer import AnswerError, read_answer
from optim4rl.plans.planner.method import Method
from optim4rl.plans.planner.prompt import Message, first_messages, returned_messages
from optim4rl.plans.planner.render import unmapped
from optim4rl.plans.planner.text import PlannerError, one_line

# Bytes of a token if the endpoint states no tokens; English text has about four.
BYTES_PER_TOKEN = 3


@dataclass(frozen=True)
class Usage:
    """Count the tokens of one request."""

    prompt: int
    answer: int


@dataclass(frozen=True)
class Answer:
    """Hold a model's answer.

    Attributes:
        text: its words; may be empty.
        raw: the whole response, without the key.
        cut_off: whether it stopped at the limit of tokens.
        refusal: its words if it refuses; else None.
        usage: its tokens, if the response states them.
    """

    text: str
    raw: str
    cut_off: bool = False
    refusal: str | None = None
    usage: Usage | None = None


class ChatError(PlannerError):
    """Report a request that failed for good.

    Attributes:
        raw: the endpoint's response, without the key; empty if there was none.
    """

    def __init__(self, message: str, raw: str = "") -> None:
        """Keep the message and the response."""
        super().__init__(message)
        self.raw = raw


@runtime_checkable
class Chat(Protocol):
    """The protocol of a chat model."""

    def ask(self, messages: list[Message]) -> Answer:
        """Return one answer.

        Raises:
            ChatError: the model gives none.
        """


@dataclass(frozen=True)
class Limits:
    """Limit a proposal.

    Attributes:
        rounds: how often an answer is sent back with its problems.
        answer_tokens: tokens of one answer.
        tokens: tokens of all prompts and answers together.
        price: price of a million prompt tokens and of a million answer tokens, in any currency.
        max_cost: the highest cost in the same currency; None for no limit.
    """

    rounds: int = 2
    answer_tokens: int = 8_000
    tokens: int = 200_000
    price: tuple[float, float] | None = None
    max_cost: float | None = None

    def __post_init__(self) -> None:
        check_fields(
            self,
            rounds=COUNT_OR_ZERO,
            answer_tokens=COUNT,
            tokens=COUNT,
            price=NOT_NEGATIVE,
            max_cost=POSITIVE,
        )
        if self.max_cost is not None and self.price is None:
            raise PlannerError(
                f"max_cost = {self.max_cost!r}: a cost needs prices; give price, for a million "
                "prompt tokens and a million answer tokens"
            )

    def cost(self, usage: Usage) -> float | None:
        """Return the cost of the tokens; None if no price is given."""
        if self.price is None:
            return None
        return (usage.prompt * self.price[0] + usage.answer * self.price[1]) / 1e6

    def forbid(self, spent: Usage, messages: list[Message]) -> str | None:
        """Return why the next request is not allowed; None if it is allowed.

        The request counts with its longest answer, and with its prompt's likely length.
        """
        after = Usage(spent.prompt + _likely_tokens(messages), spent.answer + self.answer_tokens)
        if after.prompt + after.answer > self.tokens:
            return (
                f"tokens = {self.tokens}: {spent.prompt + spent.answer} are spent, and the next "
                f"request could raise them to {after.prompt + after.answer}"
            )
        cost = self.cost(after)
        if self.max_cost is not None and cost is not None and cost > self.max_cost:
            return (
                f"max_cost = {self.max_cost:g}: {self.cost(spent):g} is spent, and the next "
                f"request could raise it to {cost:g}"
            )
        return None


@dataclass
class Record:
    """Record each prompt and each answer as one line of JSON, in a file beside the plan.

    Lines are only added, so no answer is lost.
    """

    path: Path

    def add(self, event: str, values: Mapping[str, Any]) -> None:
        """Add a line to the file."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="ascii") as file:
            file.write(json.dumps({"event": event, **values}) + "\n")


@dataclass(frozen=True)
class Proposal:
    """Hold the result of asking a model.

    Attributes:
        plan: the normalised plan.
        unmapped: its parts that the study does not know.
        requests: number of requests to the model.
        spent: all tokens.
        stopped: why there was no further round; None if none was needed or allowed.
    """

    plan: Plan
    unmapped: tuple[str, ...]
    requests: int
    spent: Usage
    stopped: str | None = None


@dataclass
class _Run:
    """Hold an unfinished proposal."""

    title: str
    known: Catalogue
    plan: Plan | None = None
    problems: tuple[str, ...] = ()
    requests: int = 0
    spent: Usage = field(default_factory=lambda: Usage(0, 0))

    def take(self, answer: Answer) -> None:
        """Read an answer; if it holds no plan, keep the plan of an earlier answer."""
        if answer.cut_off:
            problem = "the answer was cut off at the limit of tokens; answer more briefly"
            self.problems = (problem,)
            return
        try:
            self.plan = read_answer(answer.text, self.title)
            self.problems = unmapped(map_plan(self.plan, self.known))
        except AnswerError as error:
            self.problems = (one_line(str(error), 600),)


def propose(method: Method, model: str, chat: Chat, limits: Limits, record: Record) -> Proposal:
    """Ask a model for a plan of a method.

    Phrases that map to nothing are sent back with the reason, as often as the limits allow, and
    then kept. The result is the last plan that could be read.

    Raises:
        PlannerError: no answer holds a plan; all answers are in the record.
    """
    run = _Run(f"optim4rl-planner/{one_line(model, 60)}/{method.name}", method.known)
    messages = first = first_messages(method)
    while True:
        if stopped := limits.forbid(run.spent, messages):
            break
        record.add("prompt", {"model": model, "messages": messages})
        try:
            answer = chat.ask(messages)
        except ChatError as error:
            record.add("failure", {"message": str(error), "raw": error.raw})
            if run.plan is None:
                raise
            stopped = str(error)
            break
        record.add("answer", {"raw": answer.raw})
        run.requests += 1
        # A response may not state its tokens.
        usage = answer.usage or Usage(_likely_tokens(messages), _tokens_of(answer.text))
        run.spent = Usage(run.spent.prompt + usage.prompt, run.spent.answer + usage.answer)
        cost = limits.cost(run.spent)
        record.add("spent", {**vars(run.spent), "cost": cost, "stated": answer.usage is not None})
        run.take(answer)
        record.add("problems", {"problems": run.problems})
        if answer.refusal is not None:
            stopped = f"it refuses: {one_line(answer.refusal)!r}"
        if stopped or not run.problems or run.requests > limits.rounds:
            break
        messages = [*first, *returned_messages(answer.text, run.problems)]
    if run.plan is None:
        raise PlannerError(_failure(run, model, stopped, record.path))
    return Proposal(
        run.plan, unmapped(map_plan(run.plan, method.known)), run.requests, run.spent, stopped
    )


def _failure(run: _Run, model: str, stopped: str | None, path: Path) -> str:
    if stopped and not run.requests:
        return f"{stopped}; nothing was asked"
    why = stopped or f"asked {run.requests} times"
    return (
        f"model {one_line(model)!r} gave no plan: {run.problems[0]} ({why}); its answers are in "
        f"{path}"
    )


def _likely_tokens(messages: list[Message]) -> int:
    return sum(_tokens_of(message["content"]) for message in messages)


def _tokens_of(text: str) -> int:
    return -(-len(text.encode()) // BYTES_PER_TOKEN)
