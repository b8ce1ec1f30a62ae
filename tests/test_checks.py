"""The checkers of "Your turn": a right solution is right, a stub waits, and every typical mistake is told in words."""

import math
import re
import sys

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from conftest import ROOT
from torch import nn
from torch.nn import functional as F

sys.path.insert(0, str(ROOT / "notebooks"))

import itertools

import checks
from contents import find, read
from mistakes import MISTAKES


def exercises() -> dict[str, tuple[str, str]]:
    """Checker → the stub and the solution, as the notebooks have them."""
    found = {}
    for path in find():
        cells = read(path).cells
        for cell, following in itertools.pairwise(cells):
            if "exercise" in cell.metadata.get("tags", []):
                name = re.search(r"^checks\.(\w+\.\w+)\(", cell.source, re.MULTILINE)[1]
                solution = re.search(r"<details>.*?```python\n(.*?)```", following.source, re.DOTALL)[1]
                found[name] = (cell.source, solution)
    return found


EXERCISES = exercises()


def told(name: str, source: str, capsys: pytest.CaptureFixture) -> str:
    """What the reader sees who types `source` in place of the stub."""
    given, call = EXERCISES[name][0].split("\nchecks.", 1)
    torch.manual_seed(0)
    names = {"math": math, "np": np, "torch": torch, "nn": nn, "F": F, "checks": checks}
    exec(f"{given}\n{source}\nchecks.{call}", names)  # the cell may give more than the stub, such as a function to use
    return capsys.readouterr().out


@pytest.mark.parametrize("name", EXERCISES)
def test_the_solution_is_right_and_the_stub_waits(name, capsys):
    stub, solution = EXERCISES[name]
    assert told(name, solution, capsys) == "Right.\n"
    assert told(name, stub.split("\nchecks.")[0], capsys).startswith("Your turn")


def test_every_exercise_and_nothing_else_has_typical_mistakes():
    assert MISTAKES.keys() == EXERCISES.keys()


@pytest.mark.parametrize("name", EXERCISES)
def test_typical_mistakes_are_told_in_words(name, capsys):
    solution = EXERCISES[name][1]
    assert len(MISTAKES[name]) >= 2
    for right, wrong, words in MISTAKES[name]:
        assert right in solution, right
        answer = told(name, solution.replace(right, wrong), capsys)
        assert answer.startswith("Not yet") and words in answer, (wrong, answer)


@pytest.mark.parametrize("name", EXERCISES)
def test_code_that_returns_nothing_or_stops_is_told_so(name, capsys):
    function = re.search(r"^def (\w+)", EXERCISES[name][1], re.MULTILINE)[1]
    assert told(name, f"def {function}(*_, **__): pass", capsys).startswith("Not yet")
    answer = told(name, f"def {function}(*_, **__): return [][1]", capsys)
    assert answer.startswith("Not yet: it stopped with IndexError")


def test_the_end_of_a_notebook_says_which_exercises_are_solved(capsys, monkeypatch):
    monkeypatch.setattr(checks, "_last_results", {})

    def wrong(solution):
        raise checks.Wrong("off by one")

    def one(solution):
        solution()

    one_tells, wrong_tells = checks.exercise(one), checks.exercise(wrong)
    checks.solved()
    one_tells(not_yet)
    wrong_tells(None)
    checks.solved()
    one_tells(lambda: None)  # the last call counts
    checks.solved()
    said = capsys.readouterr().out.splitlines()
    assert [line for line in said if line.startswith("Solved")] == [
        "Solved: 0 of 0.",
        "Solved: 0 of 2. Wrong: wrong. Open: one.",
        "Solved: 1 of 2. Wrong: wrong.",
    ]


def not_yet():
    raise NotImplementedError


def test_the_alternative_text_of_a_figure_says_its_titles_and_axes():
    figure, (left, right) = plt.subplots(1, 2)
    figure.suptitle("Loss falls")
    left.set(title="early\nsteps", xlabel="step", ylabel="loss")
    right.set_title("late steps.", loc="left")
    assert checks.titles(figure) == "Loss falls. early steps. late steps. Axes: loss over step."
    plt.close(figure)
