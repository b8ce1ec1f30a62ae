"""Diagrams of notebook 17: FLOPs by part, compute classes, IsoFLOP valleys, gradient noise, and steps on many GPUs."""

import math
from collections.abc import Mapping, Sequence

from .drawing import Canvas, Diagram
from .palette import COMMUNICATION, CONTRAST, GRADIENT, GREY, KEY, MARK, MODULE, PLAIN, QUERY, VALUE, number
from .parts import axes, bars, power, scale, short

Valley = tuple[Sequence[float], Sequence[float], Sequence[float]]  # sizes, losses, coefficients of the parabola


def flops_shares(rows: Sequence[tuple[str, float, float, float]]) -> Diagram:
    """17 §1: which share of the FLOPs per token goes into the blocks, the head and attention. Rows: name and FLOPs."""
    shares = [(name, [part / sum(parts) for part in parts]) for name, *parts in rows]
    first, last = shares[0], shares[-1]
    canvas = Canvas(
        f"The head takes {first[1][1]:.0%} of the FLOPs of {first[0]} and {last[1][1]:.0%} of those of {last[0]}.",
        " ".join(f"{name}: blocks {a:.0%}, head {b:.0%}, attention {c:.0%}." for name, (a, b, c) in shares),
    )
    kinds, left, wide = (MODULE, MARK, QUERY), 130, canvas.inner - 250
    for i, (name, parts) in enumerate(shares):
        x, y = float(left), 34.0 * i
        canvas.text(left - 10, y + 13, name, anchor="end", size=12)
        for share, colour in zip(parts, kinds, strict=True):
            canvas.rect(x, y, wide * share, 26, colour)
            if share > 0.06:
                canvas.text(x + wide * share / 2, y + 13, f"{share:.0%}", size=12, mono=True)
            x += wide * share
        canvas.text(x + 8, y + 13, short(sum(rows[i][1:]), "FLOP"), size=12, mono=True, anchor="start")
    names = ("matrices of the blocks: 6 · 12 L C²", "head: 6 V C", "attention: 12 L C T")
    canvas.legend(left, 34 * len(rows) + 14, [*zip(names, kinds, strict=True)])
    return canvas.finish()


def compute_class(rows: Sequence[tuple[str, float, float]], hours: float) -> Diagram:
    """17 §3: tokens that each model reads in the same hours. Rows: name, tokens per second, tokens per step."""
    tokens = [3600 * hours * speed for _, speed, _ in rows]
    most, least = max(range(len(rows)), key=tokens.__getitem__), min(range(len(rows)), key=tokens.__getitem__)
    canvas = Canvas(
        f"In {hours:g} hours, {rows[most][0]} reads {tokens[most] / tokens[least]:.0f} times as many tokens as "
        f"{rows[least][0]}.",
        " ".join(
            f"{name}: {short(read)} tokens in {read / step:,.0f} steps."
            for (name, _, step), read in zip(rows, tokens, strict=True)
        ),
    )
    bars(
        canvas,
        [(name, read) for (name, *_), read in zip(rows, tokens, strict=True)],
        width=440,
        label=130,
        longest=max(tokens),
        colours=[MARK if i in (most, least) else MODULE for i in range(len(rows))],
        texts=[f"{read / 1e9:.2f} B tokens, {read / r[2]:,.0f} steps" for r, read in zip(rows, tokens, strict=True)],
        step=30,
    )
    return canvas.finish()


def _thinned(sizes: Sequence[float], near: float) -> list[float]:
    """The sizes without those that would be written over their neighbours on a logarithmic axis."""
    kept: list[float] = []
    for size in sorted(set(sizes)):
        if not kept or size > near * kept[-1]:
            kept.append(size)
    return kept


def valleys(groups: Mapping[float, Valley], unit: str = "bits per byte") -> Diagram:
    """17 §4 and §5: loss over size at equal FLOPs, a parabola in ln(size) per budget, and its minimum."""
    fits, bottoms = {budget: one[2] for budget, one in groups.items()}, {}
    for budget, (a, b, c) in fits.items():
        bottoms[budget] = (math.exp(-b / (2 * a)), c - b * b / (4 * a))
    best = ", ".join(short(size).replace("G", "B") for size, _ in bottoms.values())
    told = {1: f"With {power(next(iter(groups)), 1)} FLOPs, the best model has {best} parameters."}
    canvas = Canvas(
        told.get(len(groups), f"The best size grows with the FLOPs: {best} parameters."),
        " ".join(
            f"{power(budget, 1)} FLOPs: minimum of {loss:.3f} {unit} at {short(size).replace('G', 'B')} parameters."
            for budget, (size, loss) in bottoms.items()
        ),
    )
    sizes = [size for one in groups.values() for size in one[0]] + [size for size, _ in bottoms.values()]
    losses = [loss for one in groups.values() for loss in one[1]] + [loss for _, loss in bottoms.values()]
    low, high, pad = min(sizes) / 1.15, max(sizes) * 1.15, 0.12 * (max(losses) - min(losses)) or 0.1
    x, y = scale(low, high, 60, canvas.inner - 150, log=True), scale(min(losses) - pad, max(losses) + pad, 280, 30)
    span = max(losses) - min(losses)
    step = 10 ** math.floor(math.log10(span)) if span else 0.1
    step = next(step * k for k in (0.2, 0.5, 1.0, 2.0) if span / (step * k) < 6)
    ticks = [k * step for k in range(math.ceil((min(losses) - pad) / step), math.floor((max(losses) + pad) / step) + 1)]
    axes(
        canvas,
        x,
        y,
        x_range=(low, high),
        y_range=(min(losses) - pad, max(losses) + pad),
        x_ticks=[
            (size, short(size).replace("G", "B")) for size in _thinned(sizes[: -len(groups)], (high / low) ** 0.09)
        ],
        y_ticks=[(tick, number(tick, 2)) for tick in ticks],
        x_label="parameters that multiply a token (logarithmic)",
        y_label=unit,
    )
    for i, (budget, (own, found, (a, b, c))) in enumerate(groups.items()):
        colour = (QUERY, KEY, VALUE, GRADIENT)[i % 4]
        grid = [math.log(min(own)) + k / 60 * (math.log(max(own)) - math.log(min(own))) for k in range(61)]
        curve = [(x(math.exp(s)), y(a * s * s + b * s + c)) for s in grid]
        canvas.path([point for point in curve if 20 < point[1] < 290], colour, width=2)
        for size, loss in zip(own, found, strict=True):
            canvas.dot(x(size), y(loss), colour, 4)
        size, loss = bottoms[budget]
        if min(own) <= size <= max(own):
            canvas.path([(x(size), y(loss) - 9), (x(size), y(loss) + 9)], MARK, width=3)
        canvas.text(canvas.inner - 138, 46 + 22 * i, f"{power(budget, 1)} FLOPs", size=12, anchor="start")
        canvas.dot(canvas.inner - 146, 46 + 22 * i, colour, 5)
    last = 46 + 22 * len(groups)
    canvas.path([(canvas.inner - 146, last - 7), (canvas.inner - 146, last + 7)], MARK, width=3)
    canvas.text(canvas.inner - 138, last, "minimum", size=12, anchor="start", colour=GREY)
    return canvas.finish()


def gradient_noise(signal: float, noise: float, measured: Mapping[int, float], unit: str = "sequences") -> Diagram:
    """17 §6: the mean of |G_B|² by batch size B, as |G|² and tr Σ / B. `measured`: the mean that was found, by B."""
    critical = noise / signal
    canvas = Canvas(
        f"Signal and noise of the gradient are equal at a batch of {critical:.1f} {unit}.",
        f"Squared norm of the gradient: {signal:.3g}. Trace of the covariance: {noise:.3g}. "
        + " ".join(f"Batch of {size}: {found:.3g} measured." for size, found in measured.items()),
    )
    gap, tall = (canvas.inner - 60) / len(measured), 160
    highest = max(*measured.values(), *(signal + noise / size for size in measured))
    for i, (size, found) in enumerate(measured.items()):
        x, wide = 60 + i * gap, gap - 34
        low, part = tall * signal / highest, tall * noise / size / highest
        canvas.rect(x, 200 - low, wide, low, MARK)
        canvas.rect(x, 200 - low - part, wide, part, GRADIENT)
        spot = 200 - tall * found / highest
        canvas.path([(x - 6, spot), (x + wide + 6, spot)], CONTRAST, width=3)
        canvas.text(x + wide / 2, min(spot, 200 - low - part) - 12, f"{found:.3g}", size=12, mono=True)
        canvas.text(x + wide / 2, 216, f"B = {size}", size=12)
    canvas.text(0, 0, "mean of |G_B|²", size=12, anchor="start", colour=GREY)
    entries = [("|G|²", MARK), ("tr Σ / B", GRADIENT), ("measured", CONTRAST)]
    canvas.legend(60, 246, entries)
    return canvas.finish()


def step_shares(rows: Sequence[tuple[str, float, float, float]]) -> Diagram:
    """17 §7: a step by computing, optimiser and communication. Rows: name, and the milliseconds of the three."""
    totals = [sum(parts) for _, *parts in rows]
    first, worst = rows[0], max(rows, key=lambda row: row[3] / sum(row[1:]))
    shares = [row[3] / sum(row[1:]) for row in (first, worst)]
    canvas = Canvas(
        f"Predicted: communication takes {shares[0]:.1%} of a step on "
        f"{first[0].split(',')[0]} and {shares[1]:.0%} on {worst[0].split(',')[0]}.",
        " ".join(
            f"{name}: computing {a:.0f} ms, optimiser {b:.1f} ms, communication {c:.0f} ms." for name, a, b, c in rows
        ),
    )
    left, wide = 238, canvas.inner - 370
    for i, (name, *parts) in enumerate(rows):
        x, y = float(left), 40.0 * i
        canvas.text(left - 10, y + 14, name, anchor="end", size=12)
        canvas.rect(left, y, wide, 28, PLAIN)
        for value, colour in zip(parts, (MODULE, MARK, COMMUNICATION), strict=True):
            long = wide * value / totals[i]
            canvas.rect(x, y, long, 28, colour)
            if long > 60:
                canvas.text(x + long / 2, y + 14, f"{value:,.0f} ms", size=12, mono=True)
            x += long
        canvas.text(left + wide + 10, y + 14, f"{totals[i]:,.0f} ms", size=12, mono=True, bold=True, anchor="start")
    entries = [("computing", MODULE), ("optimiser", MARK), ("communication that is not hidden", COMMUNICATION)]
    canvas.legend(left, 40 * len(rows) + 12, entries)
    return canvas.finish()
