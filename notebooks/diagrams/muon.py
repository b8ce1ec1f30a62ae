"""Diagrams of notebook 14: singular values, Newton–Schulz steps, Muon's step and its division, bf16 near a weight."""

import math
from collections.abc import Mapping, Sequence

from .drawing import Canvas, Diagram
from .palette import COMMUNICATION, GRADIENT, GREY, KEY, MARK, MODULE, PLAIN, QUERY, VALUE, Colour, number
from .parts import axes, power, scale

Matrix = Sequence[Sequence[float]]
COEFFICIENTS = 3.4445, -4.7750, 2.0315  # of Jordan et al.


def ellipses(gradient: Matrix, update: Matrix, directions: Matrix) -> Diagram:
    """14 §1: what a 2 × 2 gradient and its orthogonal factor make of a circle; `directions`: rows of Vᵀ."""
    sizes = [math.hypot(*_apply(gradient, v)) for v in directions]
    canvas = Canvas(
        f"A gradient with singular values {sizes[0]:.2f} and {sizes[1]:.2f} turns a circle into an ellipse; U Vᵀ "
        "turns the circle into a circle.",
        f"The two marked directions have length 1. The gradient gives them the lengths {sizes[0]:.2f} and "
        f"{sizes[1]:.2f}, and U Vᵀ gives both the length 1.",
    )
    circle = [(math.cos(2 * math.pi * i / 60), math.sin(2 * math.pi * i / 60)) for i in range(61)]
    pixels = 92 / max(*sizes, 1.0)
    for i, (name, matrix) in enumerate(
        (("all directions of length 1", ((1, 0), (0, 1))), ("through the gradient", gradient), ("through U Vᵀ", update))
    ):
        view = canvas.at(139 + i * 277, 112)
        view.path([(-118, 0), (118, 0)], PLAIN, width=0.8)
        view.path([(0, -98), (0, 98)], PLAIN, width=0.8)
        view.path([(x * pixels, -y * pixels) for x, y in (_apply(matrix, p) for p in circle)], MODULE, width=2)
        for v, colour in zip(directions, (QUERY, KEY), strict=True):
            x, y = _apply(matrix, v)
            view.arrow((0, 0), (x * pixels, -y * pixels), colour=colour, width=2.2)
        view.text(0, 116, name, size=12, bold=True)
        view.text(0, 134, "lengths " + " and ".join(f"{math.hypot(*_apply(matrix, v)):.2f}" for v in directions))
    canvas.legend(0, 276, [("first singular direction", QUERY), ("second singular direction", KEY)])
    return canvas.finish()


def _apply(matrix: Matrix, v: Sequence[float]) -> tuple[float, float]:
    (a, b), (c, d) = matrix
    return a * v[0] + b * v[1], c * v[0] + d * v[1]


def polynomial(s: float, steps: int = 5) -> float:
    """A singular value after so many Newton–Schulz steps."""
    a, b, c = COEFFICIENTS
    for _ in range(steps):
        s = a * s + b * s**3 + c * s**5
    return s


def newton_schulz(steps: int = 5) -> Diagram:
    """14 §3: the polynomial of Newton–Schulz, applied once to so many times."""
    grid = [10 ** (-4 + 4 * i / 400) for i in range(401)]
    low = next(s for s in grid if polynomial(s, steps) > 0.68)
    high = max(polynomial(s, steps) for s in grid)
    canvas = Canvas(
        f"{steps} steps bring every singular value from {power(low, 1)} to 1 between 0.68 and {high:.2f}.",
        f"The polynomial 3.4445 s − 4.7750 s³ + 2.0315 s⁵, applied 1 to {steps} times. Each step multiplies small "
        "values by 3.4445.",
    )
    x, y = scale(1e-4, 1, 60, 690, log=True), scale(0, 1.3, 280, 30)
    canvas.rect(x(low), y(high), x(1) - x(low), y(0.68) - y(high), MARK, border=False, radius=0)
    axes(
        canvas,
        x,
        y,
        x_range=(1e-4, 1),
        y_range=(0, 1.3),
        x_ticks=[(one, power(one)) for one in (1e-4, 1e-3, 1e-2, 1e-1, 1)],
        y_ticks=[(one, f"{one:.2g}") for one in (0, 0.25, 0.5, 0.75, 1, 1.25)],
        x_label="singular value before the first step",
        y_label="singular value after",
    )
    colours = (PLAIN, MODULE, COMMUNICATION, KEY, QUERY)
    for n in range(1, steps + 1):
        colour = colours[(n - 1) % 5]
        points = [(x(s), y(polynomial(s, n))) for s in grid]
        canvas.path(points, colour, width=3 if n == steps else 1.8)
        canvas.path([(716, 40 + 26 * n), (742, 40 + 26 * n)], colour, width=3 if n == steps else 1.8)
        canvas.text(750, 40 + 26 * n, f"{n} step" + "s" * (n > 1), size=12, anchor="start")
    return canvas.finish()


def spectra(before: Sequence[float], after: Mapping[str, Sequence[float]], least: float = 0.5) -> Diagram:
    """14 §4: the singular values of a real gradient, and of what several ways of orthogonalising make of it."""
    rows = {"gradient, largest = 1": [s / before[0] for s in before], **after}
    below = {name: sum(s < least for s in row) for name, row in after.items()}
    canvas = Canvas(
        f"Of {len(before)} singular values, "
        + ", and ".join(f"{n} stay below {least:g} {name}" for name, n in below.items())
        + ".",
        f"The smallest singular value of the gradient is {power(rows['gradient, largest = 1'][-1], 1)} of the "
        "largest. After five steps the smallest are "
        + " and ".join(f"{power(row[-1], 1)} ({name})" for name, row in after.items())
        + ".",
    )
    floor = 10 ** math.floor(math.log10(max(1e-9, min(row[-1] for row in rows.values()))))
    x, y = scale(1, len(before), 60, 590), scale(floor, 2, 280, 30, log=True)
    decades = range(round(math.log10(floor)), 1)
    axes(
        canvas,
        x,
        y,
        x_range=(1, len(before)),
        y_range=(floor, 2),
        x_ticks=[(1, "1"), *((n, str(n)) for n in range(20, len(before), 20))],
        y_ticks=[(10**e, power(10**e)) for e in decades],
        x_label="number of the singular value, from the largest to the smallest",
        y_label="singular value",
    )
    canvas.path([(x(1), y(least)), (x(len(before)), y(least))], GREY, width=1, dashed=True)
    for i, ((name, row), colour) in enumerate(zip(rows.items(), (GRADIENT, KEY, QUERY), strict=False)):
        canvas.path([(x(n + 1), y(max(s, floor))) for n, s in enumerate(row)], colour, width=2.2)
        canvas.path([(616, 60 + 40 * i), (640, 60 + 40 * i)], colour, width=2.2)
        canvas.text(648, 60 + 40 * i, name, size=12, anchor="start")
    canvas.text(648, 60 + 40 * len(rows), f"dashed: {least:g}", size=12, anchor="start", colour=GREY)
    return canvas.finish()


def muon_step(lengths: Mapping[str, Sequence[float]], momentum: float = 0.95, lr: float = 0.02) -> Diagram:
    """14 §6: a step of Muon, and the lengths of q's, k's and v's parts in the gradient and in two updates."""
    gradient, *updates = lengths.items()
    before, after = (max(row) / min(row) for row in (gradient[1], updates[-1][1]))
    canvas = Canvas(
        f"The gradients of q, k and v differ in length by a factor of {before:.1f}, and their updates, each "
        f"orthogonalised on its own, by {after:.1f}.",
        ". ".join(
            f"{name}: q {row[0]:.2f}, k {row[1]:.2f}, v {row[2]:.2f} of the longest"
            for name, row in ((name, [one / max(row) for one in row]) for name, row in lengths.items())
        )
        + ".",
    )
    m, rest = f"{momentum:g}", f"{1 - momentum:.2g}"
    boxes = (
        ("momentum", f"new m =\n{m} m + {rest} g"),
        ("Nesterov", f"{m} new m\n+ {rest} g"),
        ("split", "q, k, v"),
        ("orthogonalise", "5 steps each"),
        ("scale", "√max(1, r/c)"),
        ("weight", f"w − {lr:g} · update"),
    )
    for i, (name, note) in enumerate(boxes):
        x = 6 + i * 142
        canvas.box(x, 4, 116, 54, name, GRADIENT if i < 3 else MODULE, note=note)
        if i < 5:
            canvas.arrow((x + 116, 31), (x + 140, 31), colour=GRADIENT if i < 2 else MODULE)
    for i, (name, row) in enumerate((gradient, *updates)):
        view = canvas.at(i * 284, 92)
        view.text(0, 0, name, size=12, bold=True, anchor="start")
        for j, (part, length, colour) in enumerate(zip("qkv", row, (QUERY, KEY, VALUE), strict=True)):
            y = 16 + j * 26
            view.text(6, y + 10, part, size=12, mono=True)
            view.rect(20, y, max(2.0, 170 * length / max(row)), 20, colour)
            view.text(26 + 170 * length / max(row), y + 10, _short(length), size=11, mono=True, anchor="start")
    return canvas.finish()


def _short(value: float) -> str:
    """Three digits, and an exponent for small numbers."""
    return f"{value:.2f}" if value >= 0.1 else power(value, 1)


def owners(names: Sequence[str], costs: Sequence[float], owner: Sequence[int], unit: str) -> Diagram:
    """14 §7: which rank orthogonalises which matrix, in columns whose heights are the work."""
    ranks = max(owner) + 1
    loads = [sum(cost for cost, one in zip(costs, owner, strict=True) if one == rank) for rank in range(ranks)]
    canvas = Canvas(
        f"{ranks} ranks orthogonalise {len(names)} matrices, and the busiest has {max(loads):g} units of "
        f"{sum(loads):g}.",
        "Work per rank: " + ", ".join(f"rank {r}: {load:g}" for r, load in enumerate(loads)) + f". {unit}.",
    )
    wide, tall = min(104.0, canvas.inner / ranks), 270 / max(loads)
    for rank in range(ranks):
        bottom, x = 290.0, rank * wide
        for name, cost, one in zip(names, costs, owner, strict=True):
            if one != rank:
                continue
            high = cost * tall
            bottom -= high
            colour = (VALUE, QUERY, KEY, MODULE)[("c_attn", "attn.c_proj", "c_fc").index(_kind(name))]
            canvas.rect(x, bottom, wide - 6, high - 2, colour)
            if high > 14:
                canvas.text(x + wide / 2 - 3, bottom + high / 2 - 1, name, size=min(10.5, wide / 9.4), mono=True)
        canvas.text(x + wide / 2 - 3, 304, f"rank {rank}", size=12, bold=True)
        canvas.text(x + wide / 2 - 3, 321, f"{loads[rank]:g}", size=11, mono=True, colour=GREY)
    canvas.text(0, 345, unit, size=12, anchor="start", colour=GREY)
    return canvas.finish()


def _kind(name: str) -> str:
    """The place of a matrix in its block, of those that have a colour of their own."""
    return "c_attn" if "c_attn" in name else "c_fc" if "c_fc" in name or "mlp" in name else "attn.c_proj"


def bf16_spacing(weight: float) -> float:
    """The distance of two neighbouring bf16 numbers at a weight: 8 significant bits."""
    return 2.0 ** (math.floor(math.log2(abs(weight))) - 7)


def _listed(words: Sequence[str]) -> str:
    """a, b and c."""
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def bf16_line(weights: Sequence[float], update: float, reach: float = 0.01) -> Diagram:
    """14 §9: the bf16 numbers around several weights on one scale, and where one update leads."""
    told, rows = [], []
    for weight in weights:
        gap = bf16_spacing(weight)
        at = round(weight / gap) * gap
        moved = round((at - update) / gap) * gap
        rows.append((at, gap, moved))
        told.append(f"{at:.4g} becomes {moved:.4g}")
    kept = [number(abs(moved - at), 5).rstrip("0") if moved != at else "nothing" for at, _, moved in rows]
    names = [f"{at:.3g}".replace("-", "−") for at, _, _ in rows]
    canvas = Canvas(
        f"An update of {update:g} moves bf16 weights of {_listed(names)} by {_listed(kept)}.",
        f"Neighbouring bf16 numbers: {', '.join(f'{gap:.2g} apart at {at:.3g}' for at, gap, _ in rows)}. "
        + "; ".join(told)
        + ".",
    )
    middle, pixels = canvas.inner / 2 + 72, (canvas.inner / 2 - 82) / reach
    for i, (at, gap, moved) in enumerate(rows):
        view = canvas.at(middle, 46 + i * 112)
        zone = min(gap / 2, reach) * pixels
        view.rect(-zone, -22, 2 * zone, 44, COMMUNICATION, border=False, radius=0)
        view.path([(-reach * pixels, 0), (reach * pixels, 0)], GREY, width=1)
        for n in range(-math.floor(reach / gap), math.floor(reach / gap) + 1):
            view.path([(n * gap * pixels, -8), (n * gap * pixels, 8)], GREY, width=0.8 if gap * pixels < 10 else 1.4)
        view.dot(0, 0, MARK, 5)
        view.arrow((0, -30), (-update * pixels, -30), colour=GRADIENT, width=2.2)
        view.text(0, -44, f"w = {at:.4g}", size=12, bold=True)
        left = -canvas.inner / 2 - 72
        view.text(left, -16, f"spacing {gap:.2g}", size=12, anchor="start", mono=True)
        view.text(left, 2, f"half of it {gap / 2:.2g}", size=12, anchor="start", mono=True)
        verdict = "lost" if moved == at else f"moves {number(abs(moved - at), 5).rstrip('0')}"
        view.text(left, 20, verdict, size=12, anchor="start", bold=True)
    y = 46 + (len(rows) - 1) * 112 + 46
    entries: list[tuple[str, Colour]] = [("rounds back to w", COMMUNICATION), (f"update {update:g}", GRADIENT)]
    canvas.legend(0, y, [*entries, ("ticks: bf16 numbers", PLAIN)])
    return canvas.finish()
