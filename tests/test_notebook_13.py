"""Notebook 13: its counters of bytes count."""

import sys

import torch
from conftest import ROOT

sys.path.insert(0, str(ROOT / "notebooks"))

from checks.memory import Live, Resident, saved

from gpt2.model import GPT, GPTConfig


def test_the_counters_count():
    with Live() as live, Resident() as resident:
        tensors = [torch.ones(1000) for _ in range(3)]
        view = tensors[0][:10]
        del tensors
    assert (live.now, live.total(), live.peak) == (4000, 4000, 12_000) and len(view) == 10
    assert resident.peak > 50e6
    model = GPT(GPTConfig(16, 257, n_layer=1, n_head=2, n_embd=32))
    ids = torch.zeros(2, 16, dtype=torch.long)
    kept = saved(model, ids, ids)
    assert ("transformer.h.0.mlp", (2, 16, 128), 4 * 2 * 16 * 128) in kept
    assert {name for name, *_ in kept} >= {"transformer.h.0.attn", "transformer.ln_f", ""}
