"""Notebook 16: its benchmark holds weights."""

import sys

import pytest
import torch
from conftest import ROOT
from torch.testing import assert_close

sys.path.insert(0, str(ROOT / "benchmarks"))

import magnitudes as benchmark


@pytest.mark.parametrize("rule", ["sphere", "Stiefel"])
def test_the_benchmark_holds_weights_where_its_rules_say(rule):
    model = benchmark.new_model(0)
    random = torch.Generator().manual_seed(0)
    for w in benchmark.maps(model):
        after = benchmark.RULES[rule](w, torch.randn(w.shape, generator=random), 0.1)
        assert not torch.equal(after, w)
        assert_close(after.norm(dim=1).square().sum(), w.norm().square(), rtol=1e-4, atol=0)
        q = after / benchmark.scale_of(w)
        if rule == "sphere":
            assert_close(after.norm(dim=1), w.norm(dim=1))
        else:
            small = q.mT @ q if q.size(0) >= q.size(1) else q @ q.mT
            assert_close(small, torch.eye(len(small)), atol=1e-3, rtol=0)
