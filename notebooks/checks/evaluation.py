"""Checkers of notebook 11."""

import math

import torch
from torch.nn import functional as F

from checks import exercise, expect, expect_equal


def number(found) -> float:
    """The answer as a float, if it is one number."""
    expect(found is not None, "the result is None; is there a `return`?")
    expect(torch.as_tensor(found).numel() == 1, f"the result should be one number; it is {found!r}")
    return float(found)


def near(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=1e-4)


@exercise
def bits_of(solution) -> None:
    """Token losses → bits per byte."""
    sizes = torch.tensor([1, 3, 5, 2, 0])  # the last stands for <|endoftext|>
    targets = torch.tensor([4, 1, 2, 0, 2])  # 14 bytes
    losses = torch.tensor([6.0, 1.0, 0.5, 2.5, 1.5])  # 11.5 nats
    found = number(solution(losses.clone(), targets.clone(), sizes.clone()))
    bits = 11.5 / math.log(2)
    expect(not near(found, 11.5 / 14), f"{found:.4f} is in nats per byte; a bit is ln 2 nats")
    expect(
        not near(found, 11.5 * math.log(2) / 14),
        f"{found:.4f} has been multiplied by ln 2; a bit is ln 2 = 0.693 nats, so there are more bits than nats",
    )
    expect(
        not near(found, bits / 5), f"{found:.4f} is bits per token: divide by the bytes behind the targets, not by 5"
    )
    expect(
        not near(found, bits / 5 / 14),
        f"{found:.4f} is 5 times too small: the bytes are those of all 5 tokens, so take the sum of the losses, not "
        "their mean",
    )
    expect(
        not near(found, bits / 11),
        f"{found:.4f} divides by the bytes of the whole vocabulary; look up the size of each target",
    )
    expect(
        not near(found, 5.5 / math.log(2) / 14),
        f"{found:.4f} leaves out the token without bytes; its loss counts, since a text's end has to be told too",
    )
    expect_equal(found, bits / 14, "for 11.5 nats on 14 bytes, bits per byte")


@exercise
def mean_loss(solution) -> None:
    """Means of parts → the mean of the whole."""
    means, counts = torch.tensor([3.0, 4.0, 5.0]), torch.tensor([16.0, 4.0, 12.0])
    found = number(solution(means.clone(), counts.clone()))
    expect(not near(found, 4.0), "this is the mean of the means: a part with 4 tokens weighs as much as one with 16")
    expect(not near(found, 124.0), "this is the sum of all losses; divide it by the number of all tokens")
    expect(not near(found, 124 / 3), "this divides by the number of parts; divide by the number of tokens")
    expect_equal(found, 124 / 32, "the mean loss of all tokens")


@exercise
def ending_means(solution) -> None:
    """Mean losses of endings in a padded batch."""
    draw = torch.Generator().manual_seed(0)
    context, lengths = 3, torch.tensor([4, 1, 2, 3])
    tokens = torch.randint(1, 11, (4, 7), generator=draw)
    tokens[:, :context] = torch.tensor([5, 2, 9])  # a context that all rows share
    place = torch.arange(7)
    tokens[place >= context + lengths[:, None]] = 0
    logits = 2 * torch.randn(4, 7, 11, generator=draw)
    found = solution(logits.clone(), tokens.clone(), context, lengths.clone())

    losses = F.cross_entropy(logits[:, :-1].transpose(1, 2), tokens[:, 1:], reduction="none")
    at = place[1:]

    def mean(first: int, end: torch.Tensor, by: torch.Tensor = lengths) -> torch.Tensor:
        return (losses * ((at >= first) & (at < end[:, None]))).sum(1) / by

    end = context + lengths
    expect(isinstance(found, torch.Tensor), "the result should be a tensor; is there a `return`?")
    expect(found.shape == (4,), f"the result has the shape {tuple(found.shape)}; it should be a number an ending: (4,)")
    longest = torch.full((4,), 7)
    padded = (mean(context, longest), mean(context, longest, longest - context))
    expect(
        not any(same(found, one) for one in padded),
        "the padding is scored as if it were text: only the first `lengths[i]` tokens after the context count",
    )
    expect(
        not same(found, mean(context, end, torch.ones(4))),
        "these are sums: divide each by the number of tokens in its ending",
    )
    shifted = (mean(context - 1, end - 1), mean(context + 1, end + 1))
    expect(
        not any(same(found, one) for one in shifted),
        "the mask is shifted by one: column t of the losses is of token t + 1, and the ending begins with token "
        f"{context}",
    )
    firsts = (mean(context + 1, end), mean(context + 1, end, lengths - 1))
    expect(
        not any(same(found, one) for one in firsts),
        "the first token of each ending is missing; the last logits of the context predict it",
    )
    expect(
        not any(same(found, one) for one in (mean(context - 1, end), mean(context - 1, end, lengths + 1))),
        "the last token of the context is scored as if it belonged to the ending",
    )
    same_place = F.cross_entropy(logits.transpose(1, 2), tokens, reduction="none")
    counts = (place >= context) & (place < end[:, None])
    expect(
        not same(found, (same_place * counts).sum(1) / lengths),
        "each token is compared with the logits at its own place; the model says it one place before",
    )
    expect_equal(found, mean(context, end), "the mean loss")


def same(found: torch.Tensor, other: torch.Tensor) -> bool:
    return torch.allclose(found.double(), other.double(), rtol=1e-4, equal_nan=True)


@exercise
def items_needed(solution) -> None:
    """Items at which the difference of two accuracies is so many standard errors."""
    p, q = 0.25, 0.295
    one, other = p * (1 - p), q * (1 - q)  # variances with a single item
    found = number(solution(p, q))
    right = (one + other) * (2 / (q - p)) ** 2
    root = math.sqrt(right)
    expect(
        not (near(found, root) or found == math.ceil(root)),
        f"{found:g} is √n: the standard error falls with the square root of the items, so square it",
    )
    for single in (one, other):
        lower = single * (2 / (q - p)) ** 2
        expect(
            found not in (math.ceil(lower), lower),
            f"{found:g} items: both accuracies are uncertain, so both variances count",
        )
    bands = (2 * (math.sqrt(one) + math.sqrt(other)) / (q - p)) ** 2
    expect(
        found not in (math.ceil(bands), bands),
        f"{found:g} items keep the two bands apart, which asks for too much: independent errors add as squares, so "
        "the standard error of the difference is less than the sum of the two",
    )
    at_one = right / 4
    expect(found not in (math.ceil(at_one), at_one), f"{found:g} is for one standard error; `errors` is 2 here")
    variances = ((one + other) * 2 / (q - p)) ** 2
    expect(
        found not in (math.ceil(variances), variances),
        f"{found:g}: p (1 - p) is the variance; the standard error is its square root",
    )
    expect(
        found == int(found),
        f"{found:.2f} is no whole number; the smallest one that is enough lies just above",
    )
    expect(found != math.floor(right), f"with {found:g} items the difference is a little too small: round up")
    expect_equal(found, float(math.ceil(right)), "for 0.25 and 0.295 the number of items", tolerance=1e-9)
    wanted = math.ceil(0.46 * (3 / 0.2) ** 2)
    expect_equal(number(solution(0.3, 0.5, 3.0)), float(wanted), "for 0.3, 0.5 and 3 standard errors the number")


@exercise
def errors_apart(solution) -> None:
    """Welch's t of two sets of runs."""
    baseline = torch.tensor([3.10, 3.14, 3.12])
    changed = torch.tensor([3.05, 3.09, 3.06, 3.04, 3.11])
    found = number(solution(baseline.clone(), changed.clone()))
    gain = (baseline.mean() - changed.mean()).item()
    a, b = baseline.var().item(), changed.var().item()
    right = gain / math.sqrt(a / 3 + b / 5)
    biased = gain / math.sqrt(baseline.var(correction=0).item() / 3 + changed.var(correction=0).item() / 5)
    expect(
        not near(found, -right),
        f"{found:.3f} has the wrong sign: a lower loss is better, so baseline minus changed",
    )
    expect(
        not any(near(found, gain / math.sqrt(one)) for one in (a + b, a + b / 5, a / 3 + b)),
        f"{found:.3f} is measured in the spread of single runs; a mean of n runs is surer by √n: divide each variance "
        "by its number of runs",
    )
    expect(not near(found, gain), f"{found:.3f} is the difference in nats; divide it by its standard error")
    expect(
        not near(found, gain / (a / 3 + b / 5)),
        f"{found:.3f} divides by a variance; the standard error is its square root",
    )
    expect(
        not near(found, gain / (math.sqrt(a / 3) + math.sqrt(b / 5))),
        f"{found:.3f} adds the two standard errors; independent errors add as squares",
    )
    expect(
        not near(found, biased),
        f"{found:.3f} takes the variance with n in the denominator; with so few runs, n - 1 makes a difference",
    )
    expect(
        not (near(found, gain / math.sqrt(a / 3)) or near(found, gain / math.sqrt(b / 5))),
        f"{found:.3f} counts the spread of one side only; the other's mean is uncertain too",
    )
    expect_equal(found, right, "for three and five runs the difference in standard errors", tolerance=1e-4)
