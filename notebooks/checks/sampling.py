"""Checkers of notebook 04."""

from collections.abc import Iterator

import torch
from torch import Tensor

from checks import exercise, expect, expect_equal
from gpt2.model import GPT, GPTConfig


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
