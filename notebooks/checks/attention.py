"""Checkers of notebook 02."""

import torch

from checks import exercise, expect, expect_equal


@exercise
def windowed_weights(solution) -> None:
    """Weights of a causal head that sees `window` positions."""
    torch.manual_seed(0)
    scores = torch.randn(6, 6)
    found = solution(scores.clone(), 3)
    expect(isinstance(found, torch.Tensor), "the weights should be a tensor; is there a `return`?")
    expect(
        found.shape == (6, 6), f"the weights have the shape {tuple(found.shape)}; they should have that of the scores"
    )
    expect(not found.triu(1).any(), "a position looks ahead: there are weights above the diagonal")
    seen = (found > 0).sum(1).tolist()
    expect(
        seen == [1, 2, 3, 3, 3, 3],
        f"with a window of 3, the rows see {seen} positions; they should see 1, 2, 3, 3, 3, 3",
    )
    expect(
        torch.allclose(found.sum(1), torch.ones(6)),
        "rows don't add up to 1: mask the scores with -inf before the softmax, not the weights after it",
    )
    distance = torch.arange(6)[:, None] - torch.arange(6)
    allowed = (distance >= 0) & (distance < 3)
    expect_equal(found, scores.masked_fill(~allowed, float("-inf")).softmax(-1), "the matrix of weights")


@exercise
def merge_heads(solution) -> None:
    """(B, H, T, D) → (B, T, C)."""
    y = torch.arange(2 * 3 * 5 * 4.0).view(2, 3, 5, 4)
    found = solution(y)
    expect(isinstance(found, torch.Tensor), "the result should be a tensor; is there a `return`?")
    expect(found.shape == (2, 5, 12), f"(2, 3, 5, 4) became {tuple(found.shape)}; it should be (2, 5, 12)")
    expect(
        torch.equal(found[0, 0, :4], y[0, 0, 0]) and torch.equal(found[0, 0, 4:8], y[0, 1, 0]),
        "position 0 should hold its own vectors of head 0, head 1, head 2 side by side; it holds other positions' or "
        "mixed channels. Bring T before H first, then join",
    )
    expect_equal(found, y.transpose(1, 2).reshape(2, 5, 12), "the result")


@exercise
def attention_flops(solution) -> None:
    """FLOPs of one attention layer."""
    found = solution(1024, 768)
    maps, mixing = 8 * 1024 * 768**2, 4 * 1024**2 * 768
    expect(found is not None, "the result is None; is there a `return`?")
    expect(found * 2 != maps + mixing, "this is half: a multiplication and an addition are two operations")
    expect(found != maps, "the products that grow with T², scores and weights times values, are missing")
    expect(
        found != maps + mixing / 2, "there are two products with a (T, T) matrix: the scores, and weights times values"
    )
    expect(found != 6 * 1024 * 768**2 + mixing, "the last map, C to C, is missing")
    expect_equal(float(found), float(maps + mixing), "for T 1,024 and C 768 the count")
