"""Checkers of notebook 14."""

import math

import numpy as np
import torch

from checks import exercise, expect, expect_equal

COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def _polynomial(x: torch.Tensor, steps: int, coefficients: tuple[float, ...] = COEFFICIENTS) -> torch.Tensor:
    a, b, c = coefficients
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


def _close(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a.float(), b.float(), atol=1e-4, rtol=1e-3)


def _svd_factor(matrix: torch.Tensor) -> torch.Tensor:
    u, _, vt = torch.linalg.svd(matrix, full_matrices=False)
    return u @ vt


def _expect_tensor(found, wanted: torch.Tensor, what: str) -> None:
    expect(found is not None, f"{what} is None; is there a `return`?")
    expect(isinstance(found, torch.Tensor), f"{what} should be a tensor, and is a {type(found).__name__}")
    expect(
        found.shape == wanted.shape,
        f"{what} has the shape {tuple(found.shape)}; it should be {tuple(wanted.shape)}. A tall matrix that was "
        "transposed has to be transposed back",
    )


@exercise
def newton_schulz(solution) -> None:
    """Five steps from the Frobenius norm."""
    random = torch.Generator().manual_seed(0)
    for shape in ((6, 10), (12, 5), (8, 8)):
        gradient = 3.0 * torch.randn(shape, generator=random)
        found = solution(gradient.clone())
        start = gradient / gradient.norm()
        wide = start if shape[0] <= shape[1] else start.mT
        back = (lambda x: x) if shape[0] <= shape[1] else (lambda x: x.mT)
        _expect_tensor(found, gradient, f"the result for a matrix of {shape[0]} × {shape[1]}")
        expect(not _close(found, start), "the result is only divided by its norm: the steps are missing")
        largest = torch.linalg.svdvals(gradient)[0]
        expect(
            not _close(found, back(_polynomial(wide * gradient.norm() / largest, 5))),
            "this divides by the largest singular value, which takes an SVD to know; divide by the Frobenius norm, "
            "`gradient.norm()`",
        )
        once = solution(gradient.clone(), 1)
        for wrong, what in (
            ((3.4445, -4.7750, 0.0), "the term with gram @ gram is missing"),
            ((3.4445, 0.0, 2.0315), "the term with gram is missing"),
            ((3.4445, 4.7750, 2.0315), "b is −4.7750, and was added as 4.7750"),
        ):
            expect(not _close(once, back(_polynomial(wide, 1, wrong))), f"the polynomial is another one: {what}")
        expect(
            torch.isfinite(found).all() and found.abs().max() < 1e3,
            "the values grow without limit: divide the gradient by its Frobenius norm before the first step",
        )
        for n in (1, 4, 6):
            expect(not _close(found, back(_polynomial(wide, n))), f"this is what {n} steps give; there should be 5")
        expect_equal(found, back(_polynomial(wide, 5)), "the result", 1e-3)
    expect(
        _close(solution(gradient.clone(), 2), _polynomial(gradient / gradient.norm(), 2)),
        "with steps=2 the result is another than after two steps; does the loop use `steps`?",
    )


@exercise
def muon_step(solution) -> None:
    """Momentum, Nesterov, the orthogonal factor, its scale, and the new weights."""
    random = torch.Generator().manual_seed(1)

    for shape in ((8, 8), (12, 4), (4, 12)):
        w, g, m = (torch.randn(shape, generator=random) for _ in range(3))
        result = solution(w.clone(), g.clone(), m.clone(), _svd_factor)
        expect(result is not None, "the result is None; is there a `return`?")
        expect(isinstance(result, tuple) and len(result) == 2, "return two tensors: the new w and the new m")
        new_w, new_m = result
        memory = 0.95 * m + 0.05 * g
        expect(
            not _close(new_m, 0.95 * m + g),
            "m is a sum of gradients: 0.95 m + g. gpt2 and torch.optim.Muon keep a mean, 0.95 m + 0.05 g",
        )
        expect_equal(new_m, memory, "the new m", 1e-4)
        stretch = max(1.0, shape[0] / shape[1]) ** 0.5

        def ended(ahead, factor, w=w):
            return w - 0.02 * factor * _svd_factor(ahead)

        ahead = 0.95 * memory + 0.05 * g
        for wrong, factor, sentence in (
            (memory, stretch, "the step follows m itself; Nesterov's follows 0.95 m + 0.05 g with the new m"),
            (g, stretch, "the step follows the gradient alone; m is not used"),
            (ahead, -stretch, "the weights go up the gradient: subtract the update"),
            (ahead, 1.0, f"the scale max(1, rows / columns) ** 0.5 is missing, {stretch:.2f} for this shape"),
            (ahead, max(1.0, shape[1] / shape[0]) ** 0.5, "the scale is rows / columns, not columns / rows"),
            (ahead, stretch**2, "the scale is the square root of rows / columns"),
            (ahead, (shape[0] / shape[1]) ** 0.5, "the scale of a wide matrix is 1, not less: max(1, …)"),
        ):
            expect(
                _close(ended(ahead, stretch), ended(wrong, factor)) or not _close(new_w, ended(wrong, factor)), sentence
            )
        expect(
            not _close(new_w, w - 0.02 * stretch * ahead),
            "the update is not orthogonal: call `orthogonal` on it",
        )
        expect_equal(new_w, ended(ahead, stretch), "the new w", 1e-4)


@exercise
def is_lost(solution) -> None:
    """Whether bf16 rounds an update away."""
    for weight, update in (
        (1.3, 1e-3),
        (0.3, 1e-3),
        (0.05, 1e-3),
        (-1.3, 1e-3),
        (100.0, 0.2),
        (-0.6, 0.0015),
        (3.0, 9e-3),
    ):
        found = solution(weight, update)
        expect(found is not None, "the result is None; is there a `return`?")
        spacing = 2.0 ** (math.floor(math.log2(abs(weight))) - 7)
        wanted, case = update < spacing / 2, f"for a weight of {weight:g} and an update of {update:g}"
        if weight < 0 and bool(found) != wanted:
            expect(False, f"{case} it should be {wanted}: the spacing depends on the size of the weight, not its sign")
        if bool(found) != wanted and spacing / 2 <= update < spacing:
            expect(False, f"{case} it should be False: an update of more than half the spacing rounds to the neighbour")
        expect(bool(found) == wanted, f"{case} it should be {wanted}: the spacing there is {spacing:.4g}")


@exercise
def overhead(solution) -> None:
    """FLOPs of the Newton–Schulz steps, over those of training the matrix."""
    found = solution(768, 768, 524_288)
    expect(found is not None, "the result is None; is there a `return`?")
    wanted = 5 * 768 / 524_288
    for wrong, sentence in (
        (wanted / 5, "this is one step; there are five"),
        (wanted / 2, "a multiplication and the addition that follows are 2 FLOPs"),
        (wanted * 3, "training takes 6 FLOPs per number and token, forward and backward; 2 are the forward alone"),
        (wanted * 2 / 3, "a step takes three products: x xᵀ, gram gram, and the last one with x"),
        (1 / wanted, "this is the inverse: the steps' FLOPs over those of training"),
    ):
        expect(not math.isclose(found, wrong, rel_tol=1e-3), sentence)
    expect_equal(float(found), wanted, "the share for 768 × 768 and 524,288 tokens", 1e-6)
    m, n = 768, 3072
    wanted = 5 * 2 * (2 * m * m * n + m**3) / (6 * m * n * 524_288)
    for rows, columns in ((768, 3072), (3072, 768)):
        expect_equal(
            float(solution(rows, columns, 524_288)),
            wanted,
            f"the share for {rows} × {columns} (the shorter side is m, so a tall matrix costs as much as a wide one)",
            1e-6,
        )


@exercise
def fused_update(solution) -> None:
    """The update of q, k and v, or of any maps in one matrix, each orthogonal on its own."""
    random = torch.Generator().manual_seed(2)

    for rows, columns in (((6, 6, 6), 6), ((16, 4, 4), 4)):
        gradient = torch.randn(sum(rows), columns, generator=random)
        gradient[: rows[0]] *= 0.01
        found = solution(gradient.clone(), rows, _svd_factor)
        _expect_tensor(found, gradient, "the update")
        parts = [_svd_factor(part) for part in gradient.split(rows)]
        scales = [max(1.0, r / columns) ** 0.5 for r in rows]
        whole = max(1.0, sum(rows) / columns) ** 0.5
        expect(
            not _close(found, whole * _svd_factor(gradient)) and not _close(found, _svd_factor(gradient)),
            "the whole matrix was orthogonalised at once; split it into its maps first",
        )
        expect(
            not _close(found, whole * torch.cat(parts)),
            "the scale was taken from the shape of the whole matrix; each map has its own rows / columns",
        )
        if max(scales) > 1:
            expect(
                not _close(found, torch.cat(parts)), "the scale of each map, max(1, rows / columns) ** 0.5, is missing"
            )
        expect(
            not _close(found, torch.cat([s * p for s, p in zip(scales, parts, strict=True)][::-1])),
            "the parts were joined in another order than they came in",
        )
        expect_equal(found, torch.cat([s * p for s, p in zip(scales, parts, strict=True)]), "the update", 1e-4)


@exercise
def deal(solution) -> None:
    """The owner of every piece of work: the largest piece first, to the rank that has least."""
    for costs, ranks in (([3.0, 3.0, 9.0, 4.0, 9.0, 2.0], 2), ([5.0, 4.0, 3.0, 3.0, 3.0], 2), ([1.0, 2.0], 4)):
        found = solution(list(costs), ranks)
        expect(found is not None, "the result is None; is there a `return`?")
        case = f"for costs {costs} and {ranks} ranks"
        expect(len(found) == len(costs), f"{case} there should be {len(costs)} owners, one per cost, in their order")
        expect(all(owner in range(ranks) for owner in found), f"{case} an owner is none of the ranks 0 to {ranks - 1}")
        if len(costs) > ranks:
            expect(
                list(found) != [i % ranks for i in range(len(costs))],
                f"{case} the matrices were dealt in turn, whatever they cost; give each to the rank that has least",
            )
        sums = _sums(costs, found, ranks)
        best = _sums(costs, _greedy(costs, ranks), ranks)
        in_order = _sums(costs, _greedy(costs, ranks, sort=False), ranks)
        if sums == in_order != best:
            expect(False, f"{case} the busiest rank has {max(sums):g}, and could have {max(best):g}: the largest first")
        loads = _sums([1.0] * len(costs), found, ranks)
        if max(sums) > max(best) and max(loads) - min(loads) <= 1:
            expect(False, f"{case} all ranks have equally many matrices; their cost should be equal, not their number")
        expect(
            sorted(sums) == sorted(best),
            f"{case} the ranks have {sorted(sums)}, and it should be {sorted(best)}",
        )


def _greedy(costs, ranks: int, sort: bool = True) -> list[int]:
    sums, owners = np.zeros(ranks), [0] * len(costs)
    for i in sorted(range(len(costs)), key=lambda i: -costs[i] if sort else i):
        owners[i] = int(sums.argmin())
        sums[owners[i]] += costs[i]
    return owners


def _sums(costs, owners, ranks: int) -> list[float]:
    return [sum(c for c, owner in zip(costs, owners, strict=True) if owner == rank) for rank in range(ranks)]
