"""Checkers of notebook 08."""

import math

import torch
from torch import nn
from torch.nn import functional as F

from checks import exercise, expect, expect_equal


@exercise
def adamw_step(solution) -> None:
    """50 steps of AdamW beside torch.optim.AdamW, in fp64."""
    random = torch.Generator().manual_seed(0)
    w = torch.randn(5, generator=random, dtype=torch.float64)
    settings = {"lr": 0.1, "betas": (0.8, 0.99), "eps": 1e-8, "weight_decay": 0.5}
    g, zero = torch.tensor([0.1, -2.0, 30.0, -4e-3, 0.5], dtype=torch.float64), torch.zeros(5, dtype=torch.float64)
    found = solution(w.clone(), g.clone(), zero.clone(), zero.clone(), 1, **settings | {"weight_decay": 0.0})
    expect(isinstance(found, tuple | list) and len(found) == 3, "three things should come back: the new w, m and v")
    expect(
        not (torch.allclose(found[1], g) and torch.allclose(found[2], g**2)),
        "m and v come back with their bias correction; the correction is for this step only, and the averages go on "
        "without it",
    )
    expect(
        not torch.allclose(found[1], g),
        "the new m after a first gradient g should be (1 - beta1) · g: an average, not a sum",
    )
    expect_equal(found[1], 0.2 * g, "the new m after the first gradient", tolerance=1e-9)
    expect(
        not torch.allclose(found[2], 0.01 * g), "v is the average of the gradients; it should be that of their squares"
    )
    expect_equal(found[2], 0.01 * g**2, "the new v after the first gradient", tolerance=1e-9)
    moved = w - found[0]
    expect((moved * g > 0).all(), "the weights move along the gradient, uphill; subtract the step")
    expect(
        not torch.allclose(moved.abs(), torch.full_like(g, 0.2), rtol=1e-3),
        "with lr 0.1 the first step moves the weights by 0.2: the averages start at 0 and need their bias correction",
    )
    expect(
        not torch.allclose(moved, 0.1 / g, rtol=1e-2),
        "the step is divided by v; divide by its root, or the step depends on the size of the gradient",
    )
    expect(
        not torch.allclose(moved, 0.1 * g / (g**2 + 1e-8).sqrt(), rtol=1e-9, atol=0)
        or torch.allclose(moved, 0.1 * g / (g.abs() + 1e-8), rtol=1e-9, atol=0),
        "eps stands under the root; it is added after the root is taken",
    )
    still = solution(w.clone(), g.clone(), zero.clone(), zero.clone(), 1, **settings)[0]
    expect(not torch.allclose(still, found[0]), "weight_decay changes nothing; each step also takes lr · λ · w away")
    expect(
        not torch.allclose(still, found[0] - 0.5 * w),
        "the decay is not multiplied by the learning rate: a step takes lr · λ · w",
    )
    expect(
        not torch.allclose(w - still, 0.1 * torch.sign(g + 0.5 * w), rtol=1e-3),
        "the decay was added to the gradient, so it is divided by its size; AdamW takes it from w, beside the gradient",
    )
    reference = nn.Parameter(w.clone())
    optimizer, own, m, v = torch.optim.AdamW([reference], **settings), w.clone(), zero, zero
    for t in range(1, 51):
        reference.grad = torch.randn(5, generator=random, dtype=torch.float64) * 10.0 ** -(t % 7)
        own, m, v = solution(own, reference.grad.clone(), m, v, t, **settings)
        optimizer.step()
        expect_equal(own, reference.detach(), f"in step {t} beside torch.optim.AdamW, w", tolerance=1e-10)


@exercise
def accumulate(solution) -> None:
    """The gradient of a batch in micro-batches, and its mean loss."""
    random = torch.Generator().manual_seed(1)
    x, y = torch.randint(5, (2, 8, 6), generator=random)
    model, whole = Guess(), Guess()
    loss = whole(x, y)
    loss.backward()
    wanted, last = whole.table.grad.clone(), Guess()
    last(x[6:], y[6:]).backward()
    found = solution(model, x, y, 4)
    grad = model.table.grad
    expect(grad is not None, "there is no gradient; is `backward()` called?")
    expect(
        not torch.allclose(grad, 4 * wanted, atol=1e-6),
        "the gradient is 4 times too large with 4 micro-batches: backward adds, so divide every loss by their number",
    )
    expect(
        not torch.allclose(grad, last.table.grad, atol=1e-6)
        and not torch.allclose(grad, last.table.grad / 4, atol=1e-6),
        "only the last micro-batch has a part in it; backward comes after every micro-batch, and nothing is set to 0 "
        "in between",
    )
    expect_equal(grad, wanted, "the gradient")
    expect(found is not None, "the loss is None; is there a `return`?")
    expect(not isinstance(found, torch.Tensor), "the loss is a tensor, which keeps its graph in memory; take `.item()`")
    expect(
        not math.isclose(found, 4 * loss.item(), rel_tol=1e-4),
        "the loss is the sum of the micro-batches' losses; the mean was asked for",
    )
    expect_equal(float(found), loss.item(), "the mean loss")


@exercise
def left_over(solution) -> None:
    """The part of a weight that decay leaves."""
    found = solution([0.1, 0.2], 0.5)
    expect(found is not None, "the result is None; is there a `return`?")
    expect(
        not math.isclose(found, 0.85),
        "0.85 for rates 0.1, 0.2 and decay 0.5: the parts that are taken were added up; the second step takes its part "
        "of what the first has left",
    )
    expect(
        not math.isclose(found, 0.25),
        "0.25 for rates 0.1, 0.2 and decay 0.5: a step takes the part lr · weight_decay, not weight_decay",
    )
    expect(not math.isclose(found, 0.145), "0.145 is the part that is gone; the part that is left was asked for")
    expect_equal(float(found), 0.95 * 0.9, "for rates 0.1, 0.2 and decay 0.5 it")
    expect_equal(float(solution([6e-4] * 1000, 0.1)), (1 - 6e-5) ** 1000, "after 1,000 steps of 6e-4 with decay 0.1 it")


@exercise
def wsd(solution) -> None:
    """Warm-up, stable, decay."""
    from gpt2.config.run import Schedule
    from gpt2.optim.schedule import learning_rate

    def at(step: int, *more: float) -> float:
        found = solution(step, 2.0, 1000, 100, *more)
        expect(found is not None, f"at step {step} the result is None; does every branch have a `return`?")
        return float(found)

    expect(at(0) != 0, "the rate of step 0 is 0, and that step would change nothing: step s has (s + 1) / warmup")
    expect_equal(at(0), 0.02, "with max_lr 2 and 100 steps of warm-up, the rate of step 0")
    expect_equal(at(99), 2.0, "the rate of the last step of warm-up, with max_lr 2,")
    expect(
        math.isclose(at(450), 2.0),
        f"at step 450 of 1,000 the rate is {at(450):.4g}; it should stay at max_lr, 2, until plateau · steps = 800",
    )
    expect_equal(at(800), 2.0, "the rate at the end of the plateau, with max_lr 2,")
    expect(
        not math.isclose(at(1000), 0.0, abs_tol=1e-9),
        "the run ends at a rate of 0; it should end at final_fraction of max_lr",
    )
    expect_equal(at(1000), 0.2, "the last rate, with max_lr 2 and final_fraction 0.1,")
    expect(
        not math.isclose(at(900), 1.1),
        "half way through the decay the rate is half way down: that is 1 - r; asked for is 1 - sqrt(r)",
    )
    for step in (801, 850, 900, 999):
        wanted = learning_rate(step, 2.0, Schedule(1000, kind="wsd", warmup=100, final_fraction=0.1, plateau=0.8))
        expect_equal(at(step), wanted, f"the rate of step {step} of 1,000")
    wanted = learning_rate(700, 2.0, Schedule(1000, kind="wsd", warmup=100, final_fraction=0.0, plateau=0.5))
    expect_equal(at(700, 0.5, 0.0), wanted, "the rate of step 700 with plateau 0.5 and final_fraction 0")


@exercise
def lion(solution) -> None:
    """One step of Lion, and several."""
    w, g, m = torch.tensor([1.0, -2.0, 0.5]), torch.tensor([0.3, 4.0, -0.2]), torch.tensor([-0.1, 0.2, 0.4])
    found = solution(w.clone(), g.clone(), m.clone(), lr=0.1, betas=(0.5, 0.8), weight_decay=0.0)
    expect(
        isinstance(found, tuple | list) and len(found) == 2,
        "two things should come back: the new weights and the new m",
    )
    moved = w - found[0]
    expect(
        torch.allclose(moved.abs(), torch.full((3,), 0.1)),
        f"with lr 0.1 and no decay the weights move by {[round(by, 3) for by in moved.abs().tolist()]}; "
        "each should move by 0.1: is the sign taken?",
    )
    remembered = 0.8 * m + 0.2 * g
    late = w - 0.1 * torch.sign(0.5 * remembered + 0.5 * g)
    wanted = w - 0.1 * torch.sign(0.5 * m + 0.5 * g)
    swapped = 0.5 * m + 0.5 * g
    expect(
        not torch.allclose(found[1], swapped),
        "m is remembered with the first beta; the first is for the step, the second for the memory",
    )
    expect_equal(found[1], remembered, "the new m")
    probe_w, probe_g, probe_m = torch.zeros(1), torch.tensor([1.0]), torch.tensor([-1.5])
    step = solution(probe_w, probe_g, probe_m, lr=0.1, betas=(0.5, 0.5), weight_decay=0.0)[0]
    expect(
        step.item() > 0,
        "the step is taken with the new m, which holds the gradient already; take it with the old one, then remember",
    )
    expect(torch.allclose(found[0], wanted) or torch.allclose(found[0], late), "the sign is taken of another mixture")
    expect_equal(found[0], wanted, "the new w without decay")
    still = solution(w.clone(), g.clone(), m.clone(), lr=0.1, betas=(0.5, 0.8), weight_decay=0.5)[0]
    decayed = wanted - 0.1 * 0.5 * w
    expect(not torch.allclose(still, wanted), "weight_decay changes nothing; each step also takes lr · λ · w away")
    expect(
        not torch.allclose(still, wanted - 0.5 * w),
        "the decay is not multiplied by the learning rate: lr · (u + λ w), with the brackets",
    )
    expect_equal(still, decayed, "the new w with decay 0.5")


class Guess(nn.Module):
    """A bigram model with the interface of GPT-2: (x, y) → the mean loss over the targets that count."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(5, 5, generator=torch.Generator().manual_seed(0)))

    def forward(self, x, y):
        return F.cross_entropy(self.table[x].flatten(0, 1), y.flatten())


@exercise
def backward_unequal(solution) -> None:
    """The gradient of the mean over all targets that count."""
    random = torch.Generator().manual_seed(1)
    x, y = torch.randint(5, (2, 4, 6), generator=random)
    y[2:, 2:] = -100  # 12 targets count in the first micro-batch, 4 in the second
    parts = list(zip(x.chunk(2), y.chunk(2), strict=True))
    model = Guess()

    def gradient(weights: tuple[float, float]) -> torch.Tensor:
        model.zero_grad()
        for weight, (micro_x, micro_y) in zip(weights, parts, strict=True):
            (weight * model(micro_x, micro_y)).backward()
        return model.table.grad.clone()

    wanted, undivided, alike = (gradient(weights) for weights in ((0.75, 0.25), (1.0, 1.0), (0.5, 0.5)))
    sums, by_all = gradient((12.0, 4.0)), gradient((0.5, 1 / 6))
    model.zero_grad()
    solution(model, parts)
    found = model.table.grad
    expect(found is not None, "there is no gradient; is `backward()` called?")
    expect(
        not torch.allclose(found, undivided),
        "the gradients of both micro-batches are added up undivided: it is that of the sum of two means, "
        "about twice as large as it should be",
    )
    expect(
        not torch.allclose(found, alike),
        "the second micro-batch counts as much as the first, though it has 4 targets that count and the first has 12",
    )
    expect(not torch.allclose(found, sums), "this is the gradient of the sum over all targets; divide by their number")
    expect(
        not torch.allclose(found, by_all),
        "padding was counted: only targets other than -100 count, 12 and 4 of 12 each, so the divisor is 16, not 24",
    )
    last = parts[-1]
    model.zero_grad()
    (model(*last) * 0.25).backward()
    expect(not torch.allclose(found, model.table.grad), "only the last micro-batch has a part in it")
    expect_equal(found, wanted, "the gradient")
    expect(
        torch.equal(torch.cat([part[1] for part in parts]), y), "the targets were changed; the caller still needs them"
    )
