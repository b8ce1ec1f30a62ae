"""Checkers of notebook 16."""

import math

import torch
from torch.testing import assert_close

from checks import Wrong, exercise, expect, expect_equal


def _same(a: object, b: object) -> bool:
    """Whether two tensors or numbers are equal up to rounding."""
    try:
        assert_close(torch.as_tensor(a).double(), torch.as_tensor(b).double(), atol=1e-6, rtol=1e-5)
    except (AssertionError, TypeError, ValueError, RuntimeError):
        return False
    return True


@exercise
def mp_sum(solution) -> None:
    """The weighted sum of unit magnitude."""
    x, y = torch.randn(2, 4, 256, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = solution(x, y, 0.3)
    expect(found is not None, "the result is None; is there a `return`?")
    expect(not _same(found, x + y), "this is the plain sum, whose magnitude is √2")
    expect(
        not _same(found, 0.7 * x + 0.3 * y),
        "the magnitude of this sum is 0.76: divide by the length of the weights, √((1 − t)² + t²)",
    )
    expect(
        not _same(found, (0.7 * x + 0.3 * y) / math.sqrt(2)),
        "√2 is the magnitude of x + y; the weights here are 1 − t and t",
    )
    expect(not _same(found, (0.3 * x + 0.7 * y) / math.hypot(0.3, 0.7)), "t is the weight of y, the branch, not of x")
    expect(
        not _same(found, (0.7 * x + 0.3 * y) / math.hypot(0.3, 0.7) ** 2),
        "this divides by the square of the length of the weights; a root is missing",
    )
    expect_equal(found, (0.7 * x + 0.3 * y) / math.hypot(0.3, 0.7), "the sum for t = 0.3")
    expect_equal(solution(x, y, 0.5), (x + y) / math.sqrt(2), "the sum for t = 0.5")


def polar(x: torch.Tensor) -> torch.Tensor:
    """The nearest matrix with orthonormal columns."""
    u, _, v = torch.linalg.svd(x, full_matrices=False)
    return u @ v


@exercise
def stiefel_step(solution) -> None:
    """One step on the Stiefel manifold."""
    random = torch.Generator().manual_seed(0)
    for rows, columns in ((6, 6), (12, 4)):
        w = polar(torch.randn(rows, columns, dtype=torch.float64, generator=random))
        g = torch.randn(rows, columns, dtype=torch.float64, generator=random)
        found = solution(w.clone(), g.clone(), 0.1)
        expect(found is not None, "the result is None; is there a `return`?")
        inner = w.mT @ g
        tangent = g - w @ (inner + inner.mT) / 2
        expect(
            not _same(found, w - 0.1 * polar(tangent)),
            "the columns are no longer orthonormal: the retraction is missing",
        )
        expect(
            not _same(found, polar(w - 0.1 * polar(g))),
            "this steps along the whole gradient; remove the part that leaves the manifold, w · sym(wᵀg), first",
        )
        expect(
            not _same(found, polar(w - 0.1 * polar(g - w @ inner))),
            "this removes all of wᵀg; the skew-symmetric half of wᵀg is a rotation, which stays on the manifold",
        )
        expect(
            not _same(found, polar(w - 0.1 * polar(g - w @ (inner + inner.mT)))),
            "the symmetric half is (wᵀg + gᵀw) / 2; the division by 2 is missing",
        )
        expect(
            not _same(found, polar(w - 0.1 * tangent)),
            "the step is as long as the gradient: make it orthogonal, with polar, before multiplying by lr",
        )
        expect(not _same(found, polar(w + 0.1 * polar(tangent))), "this steps uphill; subtract the step")
        expect_equal(found, polar(w - 0.1 * polar(tangent)), f"the new matrix of {rows} × {columns}")


@exercise
def length_after(solution) -> None:
    """The length of a weight after orthogonal steps."""
    found = solution(3.0, [4.0, 12.0])
    expect(found is not None, "the result is None; is there a `return`?")
    expect(not _same(found, 19.0), "lengths add up only along one line; these steps are orthogonal to the weight")
    expect(not _same(found, 169.0), "this is the square of the length")
    expect(
        not _same(found, math.sqrt(9 + 16**2)),
        "square every step before adding: each step is orthogonal to the weight that the step before has made",
    )
    expect_equal(float(found), 13.0, "for a length of 3 and steps of 4 and 12 it")
    expect_equal(float(solution(1.0, [])), 1.0, "the length without a step")
    expect_equal(float(solution(1.0, [0.1] * 300)), 2.0, "for a length of 1 and 300 steps of 0.1 it")


@exercise
def equilibrium(solution) -> None:
    """The root mean square at which decay and growth balance."""
    found = solution(0.02, 0.25)
    expect(found is not None, "the result is None; is there a `return`?")
    expect(not _same(found, 0.04), "this is the mean square; take its root")
    expect(
        not _same(found, math.sqrt(0.08)),
        "a factor 2 is missing: a weight that shrinks by lr · λ loses the part 2 · lr · λ of its square",
    )
    expect(
        not _same(found, math.sqrt(0.02 / 0.02)),
        "growth adds lr² and decay takes 2 · lr · λ · w²: lr stays once in the balance",
    )
    expect(not _same(found, 5.0), "weight decay makes weights shorter: it belongs under the fraction line")
    expect_equal(float(found), 0.2, "for lr 0.02 and λ = 0.25 it")
    expect_equal(float(solution(3e-3, 0.1)), math.sqrt(0.015), "for lr 3e-3 and λ = 0.1 it")


@exercise
def held_rates(solution) -> None:
    """The rates that turn a weight of fixed magnitude as a growing one turns."""
    found = solution(0.1, 401)
    expect(found is not None, "the result is None; is there a `return`?")
    expect(len(found) == 401, f"there are {len(found)} rates; give one for each of the 401 steps")
    rates = [float(one) for one in found]
    expect(not _same(rates[400], 0.1), "this rate is constant; the growing weight turns less and less")
    expect(
        not _same(rates[400], 0.1 / 5),
        "this divides by the square of the magnitude, as for gradient descent; Adam's step does not shrink with |w|",
    )
    expect(
        not _same(rates[0], 0.1 / math.sqrt(1.01)),
        "this is the magnitude after the step; step 0 starts from a weight of magnitude 1",
    )
    expect(
        not _same(rates[400], 0.1 / math.sqrt(1 + 400 * 0.1)),
        "each step adds rate² to the mean square, not rate",
    )
    for step in (0, 1, 100, 400):
        expect_equal(rates[step], 0.1 / math.sqrt(1 + 0.01 * step), f"the rate of step {step}")


@exercise
def mp_concat(solution) -> None:
    """The concatenation of unit magnitude."""
    random = torch.Generator().manual_seed(0)
    a = torch.randn(3, 300, dtype=torch.float64, generator=random)
    b = torch.randn(3, 100, dtype=torch.float64, generator=random)
    found = solution(a, b, 0.5)
    expect(isinstance(found, torch.Tensor), "the result should be a tensor; is there a `return`?")
    if found.shape != (3, 400):
        raise Wrong(f"the result has the shape {tuple(found.shape)}; concatenate along the last dimension: (3, 400)")
    expect(
        not _same(found, torch.cat((a, b), -1)),
        "in the plain concatenation, a has three quarters of the square; with t = 0.5 both get half",
    )
    weighed = torch.cat((0.5 * a, 0.5 * b), -1)
    expect(
        not (_same(found, weighed) or _same(found, weighed / math.hypot(0.5, 0.5))),
        "a vector of 300 numbers is √3 times as long as one of 100: divide each by the root of its size",
    )
    shares = torch.cat((0.5 * a / math.sqrt(300), 0.5 * b / math.sqrt(100)), -1)
    expect(
        not _same(found, shares),
        "the shares are right, but the magnitude is not 1: multiply by √((Nₐ + N_b) / ((1 − t)² + t²))",
    )
    for t in (0.5, 0.2):
        factor = math.sqrt(400 / ((1 - t) ** 2 + t**2))
        wanted = factor * torch.cat(((1 - t) * a / math.sqrt(300), t * b / math.sqrt(100)), -1)
        expect_equal(solution(a, b, t), wanted, f"the concatenation for t = {t}")
