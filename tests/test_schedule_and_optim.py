"""Learning rates by their published formulas; AdamW by its own."""

import math

import pytest
import torch

from gpt2.model import GPT, GPTConfig
from gpt2.optim import make_adamw
from gpt2.schedule import learning_rate


def test_the_lecture_runs_schedule():
    lr = {step: learning_rate(step, 6e-4, 19073, 715) for step in (0, 357, 714, 715, 9894, 19072, 19073, 30000)}
    assert lr[0] == pytest.approx(6e-4 / 715)
    assert lr[357] == pytest.approx(6e-4 * 358 / 715)
    assert lr[714] == lr[715] == pytest.approx(6e-4)
    assert lr[9894] == pytest.approx(6e-5 + 0.5 * 5.4e-4)  # half way: cos is zero
    assert lr[19072] == pytest.approx(6e-5, rel=1e-5)
    assert lr[19073] == lr[30000] == pytest.approx(6e-5)


@pytest.mark.parametrize("fraction", [0.0, 0.1])
def test_linear_constant_and_wsd(fraction):
    kinds = {kind: [learning_rate(s, 1.0, 1000, 100, kind, fraction) for s in range(1001)] for kind in _KINDS}
    for kind in _KINDS:
        assert kinds[kind][49] == 0.5 and kinds[kind][99] == 1.0
    assert kinds["linear"][550] == pytest.approx((1 + fraction) / 2)
    assert kinds["linear"][1000] == pytest.approx(fraction)
    assert set(kinds["constant"][99:]) == {1.0}
    assert set(kinds["wsd"][99:801]) == {1.0}
    assert kinds["wsd"][900] == pytest.approx(fraction + (1 - fraction) * (1 - math.sqrt(0.5)))
    assert kinds["wsd"][1000] == pytest.approx(fraction)


_KINDS = ("linear", "constant", "wsd", "cosine")


def test_no_warm_up_starts_at_the_top():
    assert learning_rate(0, 1.0, 10, 0) == 1.0


def test_an_unknown_schedule_is_refused():
    with pytest.raises(ValueError, match=r"'cosin'.*cosine"):
        learning_rate(0, 1.0, 10, 0, "cosin")


def test_a_step_of_the_optimiser_is_adamws_formula_and_only_matrices_decay():
    torch.manual_seed(0)
    model = GPT(GPTConfig(block_size=8, vocab_size=64, n_layer=1, n_head=2, n_embd=16))
    optimizer = make_adamw(model, lr=0.01, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    moments = dict.fromkeys(before, (0.0, 0.0))
    for t in (1, 2, 3):
        model(idx := torch.randint(64, (2, 8)), idx)[1].backward()
        for name, p in model.named_parameters():
            m = 0.9 * moments[name][0] + 0.1 * p.grad
            v = 0.95 * moments[name][1] + 0.05 * p.grad**2
            moments[name] = (m, v)
            decayed = before[name] * (1 - 0.01 * (0.1 if p.dim() >= 2 else 0.0))
            before[name] = decayed - 0.01 * (m / (1 - 0.9**t)) / ((v / (1 - 0.95**t)).sqrt() + 1e-8)
        optimizer.step()
        optimizer.zero_grad()
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.detach(), before[name], atol=1e-5, rtol=1e-4)


def test_the_fused_form_is_used():
    model = GPT(GPTConfig(block_size=8, vocab_size=64, n_layer=1, n_head=2, n_embd=16))
    assert make_adamw(model, 1e-3, (0.9, 0.95), 1e-8, 0.1).defaults["fused"]
