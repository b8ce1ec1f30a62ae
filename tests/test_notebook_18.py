"""Notebook 18: its exhibits name tests that exist and were run, and its game tells right answers from wrong ones."""

import itertools
import re
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT
from matplotlib import pyplot as plt

sys.path.insert(0, str(ROOT / "notebooks"))
sys.path.insert(0, str(ROOT / "benchmarks"))

import silent_bugs
import small_run
from checks import exhibits, museum
from checks import silent_bugs as game
from contents import read

NOTEBOOK = ROOT / "notebooks" / "18_silent_bugs.ipynb"


@pytest.mark.parametrize("name", exhibits.EXHIBITS)
def test_an_exhibit_names_a_test_that_exists(name):
    if test := exhibits.EXHIBITS[name].test:
        file, function = test.split("::")
        assert f"def {function}(" in (ROOT / file).read_text(encoding="utf-8")
    else:
        assert name == "one lucky seed"


def test_tests_and_files_that_the_notebook_names_exist():
    text = "\n".join(cell.source for cell in read(NOTEBOOK).cells)
    for file, function in re.findall(r"(tests/test_\w+\.py)(?:::(\w+))?", text):
        assert not function or f"def {function}(" in (ROOT / file).read_text(encoding="utf-8"), function
        assert (ROOT / file).exists()


def test_every_exhibit_was_run_and_stands_at_a_place():
    run = {name for name, one in exhibits.EXHIBITS.items() if one.shows not in ("tokens", "seeds")}
    assert set(silent_bugs.BUGS) == run | {"right", "padded", "dropout"}
    assert sorted(itertools.chain(*exhibits.PLACES.values())) == sorted(exhibits.EXHIBITS)
    for name in silent_bugs.BUGS:
        assert len(museum.curves(name)) >= 1, f"{name} has no run in benchmarks/silent_bugs.json"
    assert museum.RESULTS.stat().st_size < 150_000


@pytest.mark.parametrize("name", silent_bugs.BUGS)
def test_a_bug_changes_what_it_says_within_two_steps(name):
    """From the same seed, a run with a bug and the right one differ in weights or in what they print."""
    rows = np.random.default_rng(0).integers(97, 123, (200, small_run.T + 1))

    def outcome(kind):
        run = kind(0, rows, rows)
        run.train(steps=2)
        return [p.detach() for p in run.models[0].parameters()], run.log["printed"]

    (right, printed), (buggy, said) = outcome(silent_bugs.BUGS["right"]), outcome(silent_bugs.BUGS[name])
    same = printed == said and all(torch.equal(a, b) for a, b in zip(right, buggy, strict=True))
    assert same == (name == "right" or name.startswith("resumed"))  # a resume comes after half of the steps


def test_the_game_tells_right_from_wrong_answers_and_waits_for_missing_ones(capsys):
    names = [name for name, *_ in game._cases()]
    assert set(names) <= set(game.DIAGNOSES) <= {*exhibits.EXHIBITS, "no bug, another seed"}
    game.game(dict.fromkeys(range(1, 9)))
    assert capsys.readouterr().out == "Score: 0 of 8. 8 not answered yet.\n"
    game.game(dict(enumerate(names, start=1)))
    said = capsys.readouterr().out
    assert said.count("right") == 8 and "Score: 8 of 8." in said
    game.game({1: "softmax twice", 2: "file order" if names[1] != "file order" else "no mask"})
    said = capsys.readouterr().out
    assert "'softmax twice' is not in the list" in said and "case 2: not this. With" in said
    game.show()
    plt.close("all")


def test_an_exhibit_prints_its_card(capsys):
    museum.exhibit("no mask", "not divided", "tokens of one rank", "one lucky seed")
    plt.close("all")
    said = capsys.readouterr().out
    assert "  - y = F.scaled_dot_product_attention(q, k, v, is_causal=True)" in said
    assert "https://github.com/huggingface/transformers/issues/48745" in said and "none can" in said


def test_no_file_is_longer_than_300_lines():
    checkers = [
        ROOT / "notebooks" / "checks" / f"{name}.py" for name in ("silent_bugs", "museum", "exhibits", "broken")
    ]
    for path in (*checkers, ROOT / "notebooks" / "diagrams" / "silent_bugs.py"):
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 300, path.name
