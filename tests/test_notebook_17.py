"""Notebook 17: a minimum is marked only between its runs, and the study says what is missing, or predicts."""

import json
import math
import re
import sys

import numpy as np
import pytest
from conftest import ROOT
from matplotlib import pyplot as plt
from test_diagrams import EXAMPLES, draw

sys.path.insert(0, str(ROOT / "notebooks"))
sys.path.insert(0, str(ROOT / "benchmarks"))

import diagrams
import isoflop
from contents import code, read

from gpt2.planning.flops import matrix_parameters


def test_the_minimum_of_a_valley_is_marked_only_between_its_runs():
    drawn = [draw("scaling.valleys", example).svg for example in EXAMPLES["scaling.valleys"]]
    inside, _, outside = (svg.count('stroke-width="3"') for svg in drawn)
    assert inside == 3 + 1 and outside == 1 + 1  # one in the legend


def study(results, capsys):
    """What the cells of section 5 print with these results."""
    sources = [cell.source for cell in code(read(ROOT / "notebooks" / "17_scaling.ipynb"))]
    first = next(i for i, source in enumerate(sources) if source.startswith("results = Path("))
    last = next(i for i, source in enumerate(sources) if "signal" in source or "squared_small" in source)
    fits = next(source for source in sources if "def valley(" in source).split("\nformula = ")[0]
    names = {"json": json, "math": math, "np": np, "plt": plt, "Path": type(results), "isoflop": isoflop}
    names |= {"diagrams": diagrams, "display": print, "matrix_parameters": matrix_parameters}
    for source in (fits, *sources[first:last]):
        source = source.replace('"../benchmarks/isoflop.json"', repr(str(results)))
        exec(source.replace("draws=1000", "draws=40"), names)
    plt.close("all")
    return capsys.readouterr().out


def made(width, budget):
    """The result of a run: a valley whose minimum grows like the root of the budget, and falls by a power law."""
    best = 3e5 * (budget / 4e12) ** 0.5
    lowest, size = 2.5 * (budget / 4e12) ** -0.05, matrix_parameters(isoflop.config_of(width))
    wobble = 0.002 * math.cos(width)
    return {
        "command": f"train_gpt2.py --model.n-embd {width}",
        "step": [0, 9],
        "bits_per_byte": [5, lowest + 0.03 * math.log(size / best) ** 2 + wobble],
    }


def test_the_study_says_what_is_missing_and_predicts_when_all_is_there(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(plt, "show", lambda: None)
    results = tmp_path / "isoflop.json"
    nothing = study(results, capsys)
    assert "18 of 18 runs are missing" in nothing and "python benchmarks/isoflop.py" in nothing
    every = [(width, budget) for budget, widths in isoflop.GROUPS.items() for width in widths]
    runs = {f"width {width}, {budget:.1e} FLOPs": made(width, budget) for width, budget in every}
    results.write_text(json.dumps({"runs": dict([*runs.items()][:8])}))
    assert "10 of 18 runs are missing, such as 'width 96, 1.6e+13 FLOPs'" in study(results, capsys)
    results.write_text(json.dumps({"runs": runs}))
    complete = study(results, capsys)
    assert "missing" not in complete and "has not been made" in complete
    exponent = float(re.search(r"best size: exponent \+([\d.]+)", complete)[1])
    assert exponent == pytest.approx(0.5, abs=0.03)
    width = int(re.search(r"--last (\d+)", complete)[1])
    runs[f"width {width}, {isoflop.LAST:.1e} FLOPs"] = made(width, isoflop.LAST)
    results.write_text(json.dumps({"runs": runs}))
    told = re.search(rf"width {width}: predicted ([\d.]+) .* measured ([\d.]+)", study(results, capsys))
    assert float(told[1]) == pytest.approx(float(told[2]), abs=0.02)
