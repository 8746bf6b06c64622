"""What a terminal shows fits it, whole words at a time."""

import re

import pytest

from optim4rl.cli.runtime import progress_bar
from optim4rl.cli.terminal import columns, did_you_mean, duration, print_table

NAMES = ("name", "what it is", "number")
ROWS = (
    ("anchored-catch-with-a-long-name", "an optimizer that was trained on Catch", "0.02"),
    ("b", "another one, of which there is a great deal to say: " + "much " * 20, "12"),
)


@pytest.fixture
def shown(monkeypatch, capsys):
    """The lines of a table at a width."""

    def lines(width, names=NAMES, rows=ROWS):
        monkeypatch.setenv("COLUMNS", str(width))
        print_table("title", names, rows)
        return capsys.readouterr().out.splitlines()

    return lines


@pytest.mark.parametrize("width", [40, 60, 80, 120, 400])
def test_no_word_is_folded_and_no_line_is_padded(width, shown):
    lines = shown(width)
    assert max(map(len, lines)) <= width
    assert all(line == line.rstrip() for line in lines)
    words = {word for line in lines for word in line.split()}
    assert {word for row in ROWS for cell in row for word in cell.split()} <= words


def test_where_the_terminal_is_narrow_a_row_has_lines_of_its_own(shown):
    assert shown(40)[:7] == [
        "title",
        "",
        "anchored-catch-with-a-long-name",
        "  what it is  an optimizer that was",
        "              trained on Catch",
        "  number      0.02",
        "",
    ]


def test_a_table_is_as_wide_as_it_needs_to_be(shown):
    assert max(map(len, shown(400, rows=ROWS[:1]))) < 100


def test_words_from_outside_do_not_steer_the_terminal(shown):
    said = "\n".join(shown(80, ("name", "x"), [("a\x1b[2Jb\N{RIGHT-TO-LEFT OVERRIDE}c", "y\x07")]))
    assert not {"\x1b", "\x07", "\N{RIGHT-TO-LEFT OVERRIDE}"} & set(said)


def test_words_of_jobs_do_not_style_the_progress(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "200")
    with progress_bar("study [/x]", "jobs [bold]") as update:
        update(0, 4, "a [/b] c")
        update(1, 4, "a [/b] c", left=60.0)
    said = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().err)
    for words in ("study [/x]: about 60 s for 3 of 4 jobs [bold]", "a [/b] c"):
        assert words in said


def test_an_empty_table_has_its_head(shown):
    assert any("what it is" in line for line in shown(80, rows=()))


def test_the_width_is_that_of_COLUMNS_or_a_pipes(monkeypatch):  # noqa: N802
    monkeypatch.setenv("COLUMNS", "72")
    assert columns() == 72
    monkeypatch.setenv("COLUMNS", "wide")
    assert columns() == 160
    monkeypatch.delenv("COLUMNS")
    assert columns() == 160


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.2, "1 s"),
        (89.0, "89 s"),
        (100.0, "2 min"),
        (5e3, "83 min"),
        (7.3e3, "2 h"),
        (2e5, "2.3 days"),
    ],
)
def test_a_duration_is_as_exact_as_a_guess(seconds, words):
    assert duration(seconds) == words


def test_a_near_word_is_named():
    assert did_you_mean("evalute", ["train", "evaluate"]) == "; did you mean evaluate?"
    assert did_you_mean("xyz", ["train", "evaluate"]) == ""
