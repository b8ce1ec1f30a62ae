"""Checkers of notebook 15."""

import torch

from checks import exercise, expect, expect_equal


def close(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    """Whether two tensors hold the same numbers, but for rounding."""
    return found.shape == wanted.shape and torch.allclose(found.float(), wanted.float(), atol=1e-5)


def expect_tensor(found: object, shape: tuple[int, ...], what: str) -> None:
    """Raise `Wrong` unless `found` is a tensor of this shape."""
    expect(isinstance(found, torch.Tensor), f"{what} should be a tensor, and is {found!r}; is there a `return`?")
    expect(found.shape == shape, f"{what} has the shape {tuple(found.shape)}; it should be {shape}")


@exercise
def rotate(solution) -> None:
    """The rotation of the pairs (i, i + D/2), against `gpt2.modern.attention.rotate`."""
    from gpt2.modern import attention

    torch.manual_seed(0)
    x, angles = torch.randn(5, 6), torch.arange(5)[:, None] * torch.tensor([1.0, 0.3, 0.1])
    cos, sin = angles.cos(), angles.sin()
    found = solution(x.clone(), cos, sin)
    expect_tensor(found, (5, 6), "the rotated vectors")
    expect(not close(found, x), "nothing was rotated: the result equals x")
    a, b = x.chunk(2, dim=-1)
    backwards = torch.cat([a * cos + b * sin, b * cos - a * sin], dim=-1)
    expect(not close(found, backwards), "the vectors turn the other way: it is a cos − b sin, and b cos + a sin")
    doubled = torch.cat([a * cos - b * sin, b * cos - a * sin], dim=-1)
    expect(not close(found, doubled), "the lengths change: the second half of a pair is b cos + a sin, with a plus")
    even, odd = x[:, ::2], x[:, 1::2]
    both = even * cos - odd * sin, odd * cos + even * sin
    expect(
        not any(close(found, one) for one in (torch.stack(both, -1).flatten(-2), torch.cat(both, -1))),
        "these are pairs of neighbours (2 i, 2 i + 1); here the pairs are (i, i + D/2), the two halves of the vector",
    )
    mixed = torch.stack([a * cos - b * sin, b * cos + a * sin], -1).flatten(-2)
    expect(
        not close(found, mixed), "the pairs are right, but their halves should stand behind each other, not alternate"
    )
    expect_equal(found, attention.rotate(x[None, :, None], (cos, sin))[0, :, 0], "the rotated vector")


@exercise
def route(solution) -> None:
    """Experts and weights of every token."""
    torch.manual_seed(0)
    scores = torch.randn(6, 5)
    found = solution(scores.clone(), 2)
    expect(isinstance(found, tuple) and len(found) == 2, "return two tensors: the weights and the chosen experts")
    weights, chosen = found
    for name, one in (("the weights", weights), ("the experts", chosen)):
        expect_tensor(one, (6, 2), name)
    expect(not chosen.is_floating_point(), "the second tensor should hold the numbers of the experts, as integers")
    logits, wanted = scores.topk(2, dim=-1)
    smallest = scores.topk(2, dim=-1, largest=False).indices
    expect(
        not torch.equal(chosen.sort(-1).values, smallest.sort(-1).values),
        "these are the experts with the smallest scores",
    )
    expect_equal(chosen.sort(-1).values, wanted.sort(-1).values, "the chosen experts, sorted,")
    everything = scores.softmax(-1).gather(-1, chosen)
    expect(
        not close(weights, everything),
        "the weights of a token don't add up to 1: this is the softmax over all experts; take it over the chosen ones",
    )
    expect(not close(weights, scores.gather(-1, chosen)), "these are the logits; the weights are their softmax")
    expect(
        not close(weights, logits.softmax(0)),
        "the softmax runs over the tokens; it should run over the experts of each token: dim=-1",
    )
    expect_equal(weights, scores.gather(-1, chosen).softmax(-1), "the weights")


@exercise
def repeat_heads(solution) -> None:
    """Keys or values of K heads for H query heads, as `repeat_kv` of transformers."""
    torch.manual_seed(0)
    k = torch.randn(2, 3, 4, 5)
    found = solution(k.clone(), 6)
    expect(isinstance(found, torch.Tensor), "the result should be a tensor; is there a `return`?")
    expect(
        found.shape != (2, 18, 4, 5),
        "every head was repeated H times; it should be H / K times, so that H heads remain",
    )
    expect_tensor(found, (2, 6, 4, 5), "for 3 heads of keys and 6 query heads, the result")
    expect(
        not close(found, k.repeat(1, 2, 1, 1)),
        "this is head 0, 1, 2, 0, 1, 2. Neighbouring query heads share a head: 0, 0, 1, 1, 2, 2",
    )
    expect_equal(found, k.repeat_interleave(2, dim=1), "the result")


@exercise
def cache_bytes(solution) -> None:
    """Bytes of a cache whose windowed layers keep their window only."""
    found = solution((4, None), 2, 8, 100, 2)
    expect(found is not None, "the result is None; is there a `return`?")
    case = "for the windows (4, None), 2 heads of 8 channels, 100 positions and 2 bytes"
    expect(found != 3328, f"{case}, 3,328 bytes hold the keys alone; the values need as many")
    expect(
        found != 12800, f"{case}, 12,800 bytes are those of full layers; a layer with a window needs only its window"
    )
    expect(found != 832 * 4, f"{case}: channels are missing")
    expect(found != 13312, f"{case}, 13,312 bytes are those of fp32: use bytes_each")
    expect_equal(float(found), 6656.0, f"{case} it")
    found = solution((4, None), 2, 8, 3, 2)
    expect(
        found != 448, "a window larger than the sequence holds no more than the sequence: take the smaller of the two"
    )
    expect_equal(float(found), 384.0, "for 3 positions, fewer than the window, it")


@exercise
def unpack(solution) -> None:
    """MXFP4, against `gpt2.formats.gpt_oss.from_mxfp4`."""
    from gpt2.formats.gpt_oss import EXPONENT_OF_ONE, FP4, from_mxfp4

    random = torch.Generator().manual_seed(0)
    blocks = torch.randint(256, (3, 16), dtype=torch.uint8, generator=random)
    scales = torch.tensor([127, 125, 130], dtype=torch.uint8)
    found = solution(blocks.clone(), scales.clone())
    expect_tensor(found, (96,), "for three blocks the result")
    low, high = (blocks & 15).long(), (blocks >> 4).long()
    powers = 2.0 ** (scales.float() - EXPONENT_OF_ONE)[:, None]
    right = torch.stack([low, high], dim=-1).flatten(-2)

    def numbers(codes: torch.Tensor) -> torch.Tensor:
        return (FP4[codes] * powers).flatten()

    swapped, apart = torch.stack([high, low], dim=-1).flatten(-2), torch.cat([low, high], dim=-1)
    expect(not close(found, numbers(swapped)), "the halves of every byte are swapped: the lower half comes first")
    expect(not close(found, numbers(apart)), "byte i holds the numbers 2 i and 2 i + 1, not i and i + 16")
    expect(not close(found, FP4[right].flatten()), "the scales are missing")
    expect(
        not close(found, (FP4[right] * scales.float()[:, None]).flatten()),
        "the scale is an exponent: multiply by 2 ** (scale − 127), not by the scale",
    )
    expect(not found.isinf().any() and found.abs().max() < 1e6, "a scale of 127 stands for 2⁰: subtract 127 first")
    expect_equal(found.float(), from_mxfp4(blocks[None], scales[None])[0].float(), "the result")


@exercise
def attend(solution) -> None:
    """Attention with shared heads, a window and sinks, against `gpt2.modern.attention.attend`."""
    from gpt2.modern import attention

    torch.manual_seed(0)
    q, (k, v), sinks = torch.randn(2, 4, 7, 6), torch.randn(2, 2, 2, 7, 6), torch.tensor([0.5, -1.0, 2.0, 0.0])
    found = solution(q.clone(), k.clone(), v.clone(), 3, sinks.clone())
    expect_tensor(found, (2, 4, 7, 6), "the output")
    k4, v4 = k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)

    def variant(window=3, scale=6**0.5, keys=k4, values=v4, sink=sinks, causal=True):
        i = torch.arange(7)
        seen = (i <= i[:, None]) if causal else torch.ones(7, 7, dtype=torch.bool)
        seen = seen if window is None else seen & (i > i[:, None] - window)
        scores = (q @ keys.mT / scale).masked_fill(~seen, float("-inf"))
        if sink is not None:
            column = sink.view(1, 4, 1, 1).expand(2, 4, 7, 1)
            weights = torch.cat([scores, column], -1).softmax(-1)[..., :-1]
        else:
            weights = scores.softmax(-1)
        return weights @ values

    expect(
        not close(found, variant(causal=False)), "the causal mask is missing: a window ends at the query's own position"
    )
    expect(not close(found, variant(window=None)), "the window is missing: every query sees all earlier positions")
    expect(
        not close(found, variant(window=4)),
        "the window is one too long: `window` positions include the query's own, so key > query − window",
    )
    expect(not close(found, variant(window=2)), "the window is one too short: it includes the query's own position")
    expect(
        not close(found, variant(sink=None)),
        "the sinks change nothing: append them as one more column of scores before the softmax, and don't make the "
        "weights add up to 1 after the column is dropped",
    )
    expect(not close(found, variant(sink=sinks / 6**0.5)), "the sinks were divided by √D: a sink is a logit already")
    expect(not close(found, variant(scale=1.0)), "the scores are not divided by √D")
    wrong = k.repeat(1, 2, 1, 1), v.repeat(1, 2, 1, 1)
    expect(
        not close(found, variant(keys=wrong[0], values=wrong[1])),
        "the query heads read the wrong heads of keys: heads 0 and 1 share head 0, heads 2 and 3 share head 1",
    )
    expect_equal(found, attention.attend(q, k, v, 3, sinks), "the output")
