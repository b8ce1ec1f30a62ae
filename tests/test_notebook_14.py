"""Notebook 14: it draws the polynomial and the spacing that are computed with, and says which runs are missing."""

import itertools
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from matplotlib import pyplot as plt

sys.path.insert(0, str(ROOT / "notebooks"))

import diagrams.muon as draw
from contents import FOLDER, code, read

from gpt2.optim.muon import COEFFICIENTS


def test_the_drawn_polynomial_is_that_of_the_optimiser():
    assert draw.COEFFICIENTS == COEFFICIENTS
    assert draw.polynomial(1e-3, 1) == pytest.approx(3.4445e-3, rel=1e-4)
    assert all(0.68 < draw.polynomial(i / 1000) < 1.21 for i in range(2, 1001))


@pytest.mark.parametrize("weight", [1.3, -1.3, 0.3, 0.05, 1.0, 100.0])
def test_the_drawn_spacing_is_that_of_bf16(weight):
    stored = torch.tensor(weight).bfloat16()
    gap = draw.bf16_spacing(stored.item())
    assert (stored.float() + torch.sign(stored.float()) * gap).bfloat16() != stored
    assert (stored.float() + torch.sign(stored.float()) * 0.49 * gap).bfloat16() == stored


def test_without_the_measured_runs_the_notebook_says_how_to_make_them(tmp_path, monkeypatch, capsys):
    """The cells that read benchmarks/ run without the files, and with a part of the runs."""
    cells = [cell.source for cell in code(read(FOLDER / "14_muon.ipynb"))]
    cells = [next(cell for cell in cells if start in cell) for start in ("def made", "ends = {row", "sharey=True")]
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    monkeypatch.setattr(plt, "show", lambda: None)
    names = {"np": np, "json": json, "Path": Path, "plt": plt, "itertools": itertools}
    for rows in ((), ("GPT-2", "rotary positions")):
        if rows:
            runs = {
                f"{row} · seed {seed}": {"step": [0, 600], "bits_per_byte": [3.0, 2 + seed * len(row) / 50]}
                for row in rows
                for seed in range(3)
            }
            (tmp_path / "benchmarks").mkdir()
            (tmp_path / "benchmarks" / "speedrun_changes.json").write_text(json.dumps({"runs": runs}))
        for cell in cells:
            exec(cell, names)
        out = capsys.readouterr().out
        assert f"{27 - 3 * len(rows)} of 27 runs are missing; `python benchmarks/speedrun_changes.py` makes" in out
        assert ("GPT-2                        3          2.100" in out) == bool(rows)
        assert ("+0.2200 ± 0.1270" in out) == bool(rows)  # 0, 0.22 and 0.44, seed by seed
    plt.close("all")
