"""Checkers of notebook 04."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from checks import exercise, expect, expect_equal
from gpt2.model import GPT, GPTConfig


@exercise
def keep_top_p(solution) -> None:
    """The nucleus of one distribution, scaled to add up to 1."""
    p = torch.tensor([0.05, 0.5, 0.1, 0.3, 0.05])  # not in order: the nucleus of 0.7 is at 1 and 3
    found = solution(p.clone(), 0.7)
    expect(isinstance(found, Tensor), "the probabilities should be a tensor; is there a `return`?")
    expect(found.shape == (5,), f"the shape is {tuple(found.shape)}; cut words stay in place with probability 0, (5,)")
    case = f"{_rounded(p)} with top-p 0.7 became {_rounded(found)}"
    kept = (found > 0).nonzero()[:, 0].tolist()
    expect(
        kept != [1],
        f"{case}: 0.5 alone does not reach 0.7; the token that reaches the sum is kept as well, so ask before you add",
    )
    expect(
        kept != [0, 1, 2, 3] and kept != [0, 1, 2],
        f"{case}: these are the first in the order of the vocabulary; take the likeliest first, `p.argsort`",
    )
    expect(
        kept != [0, 1],
        f"{case}: the sorted probabilities stand at the front; each has to go back to the place of its own word",
    )
    expect(kept == [1, 3], f"{case}; it should keep places 1 and 3, whose probabilities add up to 0.8")
    expect(abs(found.sum() - 1) < 1e-4, f"{case}, which adds up to {found.sum():.2f}; divide by the sum of the kept")
    expect_equal(found, torch.tensor([0, 0.625, 0, 0.375, 0]), "the nucleus of 0.7")
    half = solution(torch.tensor([0.25, 0.5, 0.25]), 0.5)
    expect(
        (half > 0).sum() == 1,
        f"[0.25, 0.5, 0.25] with top-p 0.5 became {_rounded(half)}: 0.5 has reached the sum, so nothing else is kept",
    )
    expect_equal(solution(p.clone(), 0.01), torch.tensor([0, 1.0, 0, 0, 0]), "the nucleus of 0.01 (never empty)")
    expect_equal(solution(p.clone(), 1.0), p, "the nucleus of 1 (everything)")


@exercise
def cached_attention(solution) -> None:
    """Attention of new tokens with the keys and values of old ones."""
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 2, 7, 4)  # each (B, H, T, D)
    whole = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    past = (k[:, :, :4], v[:, :, :4])
    found = solution(q[:, :, 4:], k[:, :, 4:], v[:, :, 4:], past)
    expect(found is not None, "the result is None; is there a `return`?")
    expect(isinstance(found, tuple) and len(found) == 2, "return two things: the output, and the new past (k, v)")
    y, new = found
    expect(isinstance(new, tuple | list) and len(new) == 2, "the new past should be a pair, the keys and the values")
    for one, all_of_it, name in ((new[0], k, "keys"), (new[1], v, "values")):
        expect(
            one.shape == all_of_it.shape,
            f"the {name} of the new past have the shape {tuple(one.shape)}; 4 old and 3 new positions are "
            f"{tuple(all_of_it.shape)}: `torch.cat` along dimension 2, the positions",
        )
        swapped = torch.cat([all_of_it[:, :, 4:], all_of_it[:, :, :4]], dim=2)
        expect(not torch.equal(one, swapped), f"the new {name} stand before the old ones; the old come first")
        expect_equal(one, all_of_it, f"the tensor of {name}")
    expect(y.shape == (2, 2, 3, 4), f"the output has the shape {tuple(y.shape)}; it should be that of q, (2, 2, 3, 4)")
    seen = F.scaled_dot_product_attention(q[:, :, 4:], k, v)
    expect(
        not torch.allclose(y, seen, atol=1e-5),
        "every new token sees all 7 positions, also those after it; several tokens at once need a mask",
    )
    low = F.scaled_dot_product_attention(q[:, :, 4:], k, v, is_causal=True)
    expect(
        not torch.allclose(y, low, atol=1e-5),
        "the mask begins at column 0, so the first new token sees only the first old one; its diagonal has to be moved "
        "to the right by the number of old positions",
    )
    expect_equal(y, whole[:, :, 4:], "the output")
    first = solution(q[:, :, :4], k[:, :, :4], v[:, :, :4], (k[:, :, :0], v[:, :, :0]))
    expect_equal(first[0], whole[:, :, :4], "the output of a prompt, when the cache is empty")


@exercise
def at_temperature(solution) -> None:
    """Probabilities at another temperature."""
    p = torch.tensor([0.6, 0.3, 0.1])
    found = solution(p.clone(), 0.5)
    expect(isinstance(found, Tensor), "the probabilities should be a tensor; is there a `return`?")
    expect(
        not torch.allclose(found, (p / 0.5).softmax(0), atol=1e-4),
        "this is the softmax of p / temperature; p are probabilities, not logits: their logarithms are logits",
    )
    expect(
        not torch.allclose(found, p**0.5 / (p**0.5).sum(), atol=1e-4),
        f"at temperature 0.5, {_rounded(p)} became {_rounded(found)}, which is flatter; a low temperature makes it "
        "sharper: the power is 1 / temperature",
    )
    expect(
        abs(found.sum() - 1) < 1e-4,
        f"at temperature 0.5, {_rounded(p)} became {_rounded(found)}, which adds up to {found.sum():.2f}; divide by it",
    )
    expect_equal(found, p**2 / (p**2).sum(), "the distribution at temperature 0.5", 1e-4)
    expect_equal(solution(p.clone(), 1.0), p, "the distribution at temperature 1", 1e-4)


@exercise
def min_p(solution) -> None:
    """Probabilities of those not much less likely than the likeliest of their row."""
    p = torch.tensor([[0.7, 0.2, 0.06, 0.03, 0.01], [0.3, 0.26, 0.2, 0.14, 0.1]])
    given = p.log()
    found = solution(given.clone(), 0.25)
    expect(isinstance(found, Tensor), "the probabilities should be a tensor; is there a `return`?")
    expect(found.shape == (2, 5), f"the shape is {tuple(found.shape)}; it should be that of the logits, (2, 5)")
    expect(
        not found.isnan().any() and (found >= 0).all(),
        f"row 0 is {_rounded(found[0])}: these are no probabilities; did you return logits?",
    )
    kept = (found > 1e-6).sum(1).tolist()
    expect(
        kept != [5, 5],
        f"nothing is cut: of probabilities {_rounded(p[0])}, the last three became {_rounded(found[0, 2:])}; "
        "fill logits with -inf, since a softmax makes a probability above 0 of any number",
    )
    expect(
        kept != [1, 2],
        "probabilities below 0.25 were cut, so `ratio` itself was the limit; it is to be multiplied by the largest "
        "probability of the row",
    )
    expect(
        kept != [2, 3],
        "row 1 has no probability above 0.3, but was cut below 0.175 = 0.25 · 0.7, the limit of row 0; take the "
        "largest of each row, max(-1, keepdim=True)",
    )
    expect(kept == [2, 5], f"with ratio 0.25, the rows keep {kept} of 5 tokens; they should keep 2 and 5")
    total = found.sum(1)
    expect(
        torch.allclose(total, torch.ones(2)), f"row 0 adds up to {total[0]:.3f} after the cut; scale it to add up to 1"
    )
    wanted = p.masked_fill(p < 0.25 * p.amax(1, keepdim=True), 0.0)
    expect_equal(found, wanted / wanted.sum(1, keepdim=True), "the matrix of probabilities")


@exercise
@torch.no_grad()
def take_back(solution) -> None:
    """A cache that forgets its last positions and goes on from there."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(block_size=16, vocab_size=257, n_layer=2, n_head=2, n_embd=16))
    for parameter in model.parameters():
        parameter.add_(0.3 * torch.randn_like(parameter))  # so that what it reads matters
    text, other = torch.randint(257, (1, 8)), torch.randint(257, (1, 4))
    cache = model.new_cache(1)
    model.hidden(text, cache)
    solution(cache, 3)
    left = cache.position
    expect(
        left != 8,
        "the cache still counts 8 positions, so attention looks at all of them, also at rows that hold zeros; "
        "`position` says how many count",
    )
    expect(left == 5, f"after 8 positions and taking back 3, the cache counts {left}; 8 - 3 = 5")
    room = cache.k[0].size(2)
    expect(room == 16, f"the cache had room for 16 positions and now has {room}; leave the room alone")
    uncached = model(torch.cat([text[:, :5], other], dim=1))[:, 5:]
    cached = model(other, cache=cache)
    expect(
        torch.allclose(cached, uncached, atol=1e-3),
        f"going on from there gives logits that are off by up to {(cached - uncached).abs().max():.2g} from those "
        "without a cache; the rows of the first 5 positions were changed",
    )


@exercise
def until(solution) -> None:
    """Passing tokens on until the end, and no further."""
    asked = 0

    def stream(tokens: list[int]) -> Iterator[Tensor]:
        nonlocal asked
        for token in tokens:
            asked += 1
            yield torch.tensor([[token]])

    found = solution(stream([5, 9, 256, 7, 7, 7]), 256)
    expect(found is not None, "the result is None; is there a `yield`?")
    expect(hasattr(found, "__next__"), f"the result is a {type(found).__name__}; use `yield`, not `return`, for tokens")
    first = next(found, None)
    expect(
        asked <= 1,
        f"the stream was asked for {asked} tokens before the first was passed on; ask for one, yield it, then the next",
    )
    expect(first is not None, "no token comes out; the stream is 5, 9, end, 7, 7, 7")
    expect(isinstance(first, int), f"the first token is a {type(first).__name__}; .item() makes an int of a tensor")
    rest = list(found)
    expect(256 not in rest, f"the tokens are {[first, *rest]}: the end itself (256) was passed on")
    expect(7 not in rest, f"the tokens are {[first, *rest]}: it goes on after the end, which was the third")
    expect([first, *rest] == [5, 9], f"of 5, 9, end, 7, 7, 7 it yields {[first, *rest]}; it should yield [5, 9]")
    expect(asked == 3, f"the stream was asked for {asked} tokens; after the end, the third, ask no more")
    expect_equal(list(solution(stream([3, 1]), 256)), [3, 1], "what comes of a stream that has no end in it")


def _rounded(values: Tensor) -> list[float]:
    return [round(value, 3) for value in values.tolist()]
