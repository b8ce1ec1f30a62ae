"""Checkers of notebook 05."""

import math

import torch
from torch.nn import functional as F

from checks import Wrong, exercise, expect, expect_equal


@exercise
def cross_entropy(solution) -> None:
    """The mean loss, stable, over the targets that count."""
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0], [0.0, 3.0, 1.0, 1.0], [1.0, 1.0, 5.0, 1.0]])
    targets = torch.tensor([1, 1, 0])
    right = F.cross_entropy(logits, targets)
    found = solution(logits.clone(), targets.clone())
    expect(found is not None, "the result is None; is there a `return`?")
    found = torch.as_tensor(found)
    expect(found.numel() == 1, f"the result has the shape {tuple(found.shape)}; the loss is one number, the mean")
    each = F.cross_entropy(logits, targets, reduction="none")
    expect(abs(found + right) > 1e-4, f"{found:.4f} is negative: the loss is minus the logarithm")
    expect(abs(found - each.sum()) > 1e-4, f"{found:.4f} is the sum over the 3 positions; take the mean")
    expect(abs(found - each.sum() / math.log(2) / 3) > 1e-4, f"{found:.4f} is in bits; nats use the natural logarithm")
    expect_equal(found.float(), right, "the loss of three positions", 1e-4)
    for moved in (100, -200):
        found = torch.as_tensor(solution(logits + moved, targets.clone()))
        expect(
            found.isfinite(),
            f"with {moved} added to all logits, the loss is {found.item()}: exp became infinite or 0; subtract the "
            "largest logit of each row first",
        )
        expect_equal(found.float(), right, f"the loss with {moved} added to all logits (it should not change)", 1e-3)
    apart = logits + torch.tensor([[0.0], [-300.0], [0.0]])
    found = torch.as_tensor(solution(apart, targets.clone()))
    expect(
        found.isfinite(),
        f"with −300 added to row 1 alone, the loss is {found.item()}: subtract the largest logit of each row, not the "
        "largest of all rows",
    )
    targets = torch.tensor([1, -100, 0])
    found = torch.as_tensor(solution(logits.clone(), targets.clone()))
    kept = each[[0, 2]]
    expect(
        abs(found - kept.sum() / 3) > 1e-4,
        f"with one target of -100, the loss is {found:.4f}: the sum was divided by 3, but only 2 positions count",
    )
    expect_equal(found.float(), kept.mean(), "the loss with one target of -100, which does not count", 1e-4)


@exercise
def inputs_and_targets(solution) -> None:
    """A line of tokens as sequences of inputs and targets."""
    line = torch.arange(100, 115)  # 15 tokens: three sequences of 4, and two tokens after the last target
    found = solution(line.clone(), 4)
    expect(isinstance(found, tuple | list) and len(found) == 2, "return two tensors, the inputs and the targets")
    inputs, targets = found
    for part, name in ((inputs, "inputs"), (targets, "targets")):
        expect(isinstance(part, torch.Tensor), f"the {name} should be a tensor, and are a {type(part).__name__}")
        expect(part.shape == (3, 4), f"15 tokens at T = 4 gave {name} of shape {tuple(part.shape)}; expected (3, 4)")
    expect_equal(inputs, line[:12].view(3, 4), "the matrix of inputs")
    moved = targets - inputs  # tokens are consecutive numbers, so this is how far each target lies ahead
    expect(moved.any(), "the targets are the inputs themselves: nothing has to be predicted. Shift them by one")
    expect(
        (moved[:, :-1] != 1).any() or (moved[:, -1] != -3).any(),
        "the last target of each row is the row's own first token; it should be the token that follows in the line",
    )
    distance = moved.flatten()[0].item()
    expect(
        (moved == 1).all(), f"the target of the first input lies {distance} places ahead of it; every one should lie 1"
    )
    short = torch.arange(100, 112)  # 12 tokens: the third sequence would have no last target
    try:
        inputs, targets = solution(short.clone(), 4)
    except RuntimeError as error:
        raise Wrong(
            f"12 tokens at T = 4 made it stop ({error}): they hold two sequences, since T inputs need T + 1 tokens"
        ) from None
    expect(len(inputs) == len(targets) == 2, f"12 tokens hold 2 sequences of 4 inputs and targets, not {len(inputs)}")


@exercise
def logit_gradient(solution) -> None:
    """The gradient of the mean cross-entropy by the logits."""
    torch.manual_seed(0)
    logits, targets = torch.randn(6, 5, requires_grad=True), torch.tensor([2, -100, 0, 4, 1, -100])
    (wanted,) = torch.autograd.grad(F.cross_entropy(logits, targets), logits)
    found = solution(logits.detach().clone(), targets.clone())
    expect(isinstance(found, torch.Tensor), "the gradient should be a tensor; is there a `return`?")
    expect(found.shape == (6, 5), f"the gradient has the shape {tuple(found.shape)}; it should have that of the logits")
    expect(not found[targets == -100].any(), "rows whose target is -100 have a gradient; they don't count, so it is 0")
    expect(not torch.allclose(found, -wanted, atol=1e-6), "the sign is wrong: this is one-hot − p")
    expect(
        not torch.allclose(found, 4 * wanted, atol=1e-6),
        "this is 4 times too large: the loss is the mean over the 4 targets that count, so divide by their number",
    )
    expect(
        not torch.allclose(found, wanted * 4 / 6, atol=1e-6),
        "divided by all 6 positions; the mean is over the 4 targets that count",
    )
    expect(
        not torch.allclose(found.sum(-1)[targets != -100], torch.full((4,), 0.25), atol=1e-4),
        "rows add up to more than 0: subtract 1 at the token that came",
    )
    expect_equal(found, wanted, "the gradient", 1e-4)


@exercise
def perplexity(solution) -> None:
    """The exponential of the mean loss."""
    losses, targets = torch.tensor([1.0, 3.0, 9.0, 2.0]), torch.tensor([5, 0, -100, 8])
    found = solution(losses.clone(), targets.clone())
    expect(found is not None, "the result is None; is there a `return`?")
    expect(torch.as_tensor(found).numel() == 1, "perplexity is one number for all positions together")
    found = float(found)
    expect(abs(found - 2.0) > 1e-4, "losses of 1, 3 and 2 gave 2: this is the mean loss; perplexity is its exponential")
    expect(
        abs(found - math.exp(3.75)) > 1e-2, "the position whose target is -100 counts; leave it out, here the loss of 9"
    )
    expect(
        abs(found - (math.exp(1) + math.exp(3) + math.exp(2)) / 3) > 1e-2,
        f"{found:.2f} is the mean of the exponentials; take the mean of the losses first, then the exponential",
    )
    expect(abs(found - math.exp(6 / 4)) > 1e-2, "the sum was divided by all 4 positions; only 3 of the targets count")
    expect_equal(found, math.exp(2.0), "the perplexity of losses 1, 3 and 2", 1e-4)


@exercise
def final_std(solution) -> None:
    """The residual stream after all blocks."""
    found = solution(0.3, 0.2, 8, False)
    expect(found is not None, "the result is None; is there a `return`?")
    right = math.sqrt(0.3**2 + 16 * 0.2**2)
    case = "for embedding 0.3, added 0.2, 8 layers, no factor"
    expect(abs(found - (0.3 + 16 * 0.2)) > 1e-4, f"{found:.3f} {case}: standard deviations don't add up; variances do")
    expect(abs(found - right**2) > 1e-4, f"{found:.3f} {case} is the variance; take its square root")
    expect(
        abs(found - math.sqrt(0.3**2 + 8 * 0.2**2)) > 1e-4,
        f"{found:.3f} {case} is one contribution a layer; there are two, of attention and of the MLP",
    )
    expect(
        abs(found - 0.2 * 4) > 1e-4,
        f"{found:.3f} {case} is what the blocks add; the embedding is in the stream as well",
    )
    expect_equal(float(found), right, f"the standard deviation {case}", 1e-4)
    found, right = solution(0.3, 0.2, 8, True), math.sqrt(0.3**2 + 0.2**2)
    case = "with the factor"
    expect(
        found < 1, f"{found:.3f} {case}, and 0.854 without: the factor makes the projections smaller; divide by √(2L)"
    )
    expect(
        abs(found - math.sqrt(0.3**2 + 0.2**2 / 16)) > 1e-4,
        f"{found:.3f} {case}: the weights are divided by √(2L), not by 2L, so the variance is divided by 2L once",
    )
    expect_equal(float(found), right, f"the standard deviation {case}", 1e-4)
