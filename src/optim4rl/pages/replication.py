"""Write the page of a replication: a benchmark's page, and the settings tried for every arm."""

from optim4rl.files.atomic import write_atomically
from optim4rl.files.reading import read_text
from optim4rl.pages.benchmark import write_report
from optim4rl.pages.words import number
from optim4rl.study.replication import Replicated, choose_settings

_HEAD = """# Settings of the meta-trainings

Every arm was meta-trained once at each setting, on a meta-seed that is not reported. Then it ran
with its step as trained, on seeds that are not reported. **Bold** marks the best AUC; the reported
meta-trainings use its setting. {paper}

| arm | meta-learning rate | reset interval | AUC | final return |
|---|---|---|---|---|
"""
_WHOLE = """The paper reports the best setting on the runs that chose it, which
here are the runs of the bold row."""
_SHORT = """These runs stop after {:,} of {:,} rollouts. So the choice favours
settings that learn early, and the paper's figure, the best setting on whole runs, is not here."""


def write_replication(found: Replicated, command: str) -> None:
    """Write settings.md, and all that `pages.benchmark.write_report` writes.

    Both results.md and settings.md name the reported meta-trainings that diverged.
    """
    write_report(found.results, command)
    folder = found.results.benchmark.folder
    write_atomically(folder / "settings.md", to_markdown(found).encode())
    text = read_text(folder / "results.md") + "".join(_lost(found))
    write_atomically(folder / "results.md", text.encode())


def to_markdown(found: Replicated) -> str:
    """Write the page of tried settings as Markdown."""
    chosen = choose_settings(found.tried)
    (task,) = found.results.benchmark.suite.tasks
    paper = _SHORT.format(task.choosing, task.rollouts) if task.choosing < task.rollouts else _WHOLE
    rows = []
    for each in found.tried:
        mark = "**" if chosen[each.arm] == each.setting else ""
        cells = [
            each.arm,
            f"{each.setting.meta_learning_rate:g}",
            str(each.setting.reset_interval),
            number(each.auc, 3),
            number(each.final, 3),
        ]
        rows.append(f"| {' | '.join(f'{mark}{cell}{mark}' for cell in cells)} |\n")
    return _HEAD.format(paper=paper) + "".join(rows) + "".join(_lost(found))


def _lost(found: Replicated) -> list[str]:
    """Return a paragraph for each arm of which reported meta-trainings diverged."""
    return [
        f"\n{arm}: {len(messages)} of the reported meta-trainings diverged. {messages[0]}\n"
        for arm, messages in found.failures.items()
        if messages
    ]
