"""Checkers of notebook 02."""

import math

import torch
from torch.nn import functional as F

from checks import exercise, expect, expect_equal


def close(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    """Whether two tensors of equal shape hold the same numbers, but for rounding."""
    return torch.allclose(found, wanted, atol=1e-5)


@exercise
def head(solution) -> None:
    """One causal head, against PyTorch's own function."""
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 5, 4)
    found = solution(q.clone(), k.clone(), v.clone())
    expect(isinstance(found, torch.Tensor), "the outputs should be a tensor; is there a `return`?")
    expect(found.shape == (5, 4), f"the outputs have the shape {tuple(found.shape)}; they should be (T, D) = (5, 4)")
    future = ~torch.ones(5, 5, dtype=torch.bool).tril()

    def causal(scores: torch.Tensor) -> torch.Tensor:
        return scores.masked_fill(future, float("-inf")).softmax(-1) @ v

    scores = q @ k.T
    expect(not close(found, (scores / 2).softmax(-1) @ v), "every position sees the future: the causal mask is missing")
    expect(
        not close(found, (scores / 2).softmax(-1).tril() @ v),
        "the rows of weights don't add up to 1: set the future to -inf before the softmax, not to 0 after it",
    )
    expect(not close(found, causal(scores)), "the scores are not divided by √D")
    expect(not close(found, causal(scores / 4)), "the scores are divided by D; it should be √D, which is 2 here")
    expect(
        not close(found, causal(scores.T / 2)),
        "row t should hold the scores of query t, not those of key t: q @ k.T, not k @ q.T",
    )
    expect(
        close(found[0], v[0]),
        "position 0 sees only itself, so its output should be its own value; is the softmax taken along the rows?",
    )
    expect_equal(found, F.scaled_dot_product_attention(*(m[None, None] for m in (q, k, v)), is_causal=True)[0, 0], "y")


@exercise
def attention(solution) -> None:
    """The whole layer, against GPT-2's module with the same weights."""
    from gpt2.model import CausalSelfAttention, GPTConfig

    torch.manual_seed(0)
    B, T, C, H = 2, 5, 12, 3
    D = C // H
    theirs = CausalSelfAttention(GPTConfig(block_size=8, vocab_size=64, n_layer=1, n_head=H, n_embd=C), 0)
    x = 3 * torch.randn(B, T, C)
    with torch.no_grad():
        wanted = theirs(x)
        found = solution(x.clone(), theirs.c_attn, theirs.c_proj, H)
        expect(isinstance(found, torch.Tensor), "the output should be a tensor; is there a `return`?")
        expect(found.shape == (B, T, C), f"the output has the shape {tuple(found.shape)}; it should be that of x")
        parts = theirs.c_attn(x)
        future = ~torch.ones(T, T, dtype=torch.bool).tril()

        def heads(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, mask: bool = True) -> torch.Tensor:
            scores = q @ k.transpose(-2, -1) / scale
            return (scores.masked_fill(future, float("-inf")) if mask else scores).softmax(-1) @ v

        def joined(y: torch.Tensor) -> torch.Tensor:
            return y.transpose(1, 2).reshape(B, T, C)

        q, k, v = parts.view(B, T, 3, H, D).permute(2, 0, 3, 1, 4)
        right, root = heads(q, k, v, math.sqrt(D)), math.sqrt(D)
        expect(not close(found, joined(right)), "the heads are not mixed at the end: c_proj is missing")
        expect(
            not close(found, theirs.c_proj(joined(heads(q, k, v, root, mask=False)))),
            "every position sees the future: the causal mask is missing",
        )
        expect(
            not close(found, theirs.c_proj(joined(heads(q, k, v, math.sqrt(C))))),
            "the scores are divided by √C; a query has D = C / H channels, so it should be √D",
        )
        expect(not close(found, theirs.c_proj(joined(heads(q, k, v, 1)))), "the scores are not divided by √D")
        expect(
            not close(found, theirs.c_proj(right.reshape(B, T, C))),
            "the heads are joined in the wrong order: bring T before H first (transpose), then reshape",
        )
        alone = (part.reshape(B, H, T, D) for part in parts.chunk(3, dim=-1))
        mixed = heads(*alone, root)
        expect(
            not any(close(found, theirs.c_proj(one)) for one in (joined(mixed), mixed.reshape(B, T, C))),
            "view alone mixes positions and heads: view to (B, T, 3, H, D) first, then permute",
        )
        q, k, v = parts.view(B, T, H, 3, D).permute(3, 0, 2, 1, 4)
        expect(
            not close(found, theirs.c_proj(joined(heads(q, k, v, root)))),
            "c_attn holds all queries, then all keys, then all values: view to (B, T, 3, H, D), not (B, T, H, 3, D)",
        )
        expect_equal(found, wanted, "the output")


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


@exercise
def induction(solution) -> None:
    """Mean weight of each head on the token after the earlier occurrence."""
    torch.manual_seed(0)
    H, period = 3, 4
    T = 2 * period
    future = ~torch.ones(T, T, dtype=torch.bool).tril()
    weights = torch.randn(H, T, T).masked_fill(future, float("-inf")).softmax(-1)
    found = solution(weights.clone(), period)
    expect(isinstance(found, torch.Tensor), "the result should be a tensor; is there a `return`?")
    expect(
        found.shape == (H,), f"the result has the shape {tuple(found.shape)}; it should be ({H},), one mean per head"
    )
    places = {name: weights.diagonal(-offset, 1, 2) for name, offset in (("same", period), ("next", period - 1))}
    expect(
        not close(found, places["same"].mean(-1)),
        "this is the weight on the earlier occurrence of the same token, t - period; "
        "an induction head looks at the token after it",
    )
    expect(
        not close(found, places["next"].mean(-1)),
        "position period - 1 counts too here, but its token has not occurred before; begin at position period",
    )
    expect(
        not close(found, places["next"][:, 1:].sum(-1)), "this is the sum over the positions; it should be their mean"
    )
    expect_equal(found, places["next"][:, 1:].mean(-1), "the vector of means")
