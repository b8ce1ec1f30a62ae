"""Diagrams of notebook 16: steps that lengthen a weight, parts and blocks that keep a magnitude, steps on a circle."""

import math
from collections.abc import Sequence
from itertools import pairwise

from .drawing import Canvas, Diagram
from .palette import COMMUNICATION, CONTRAST, GRADIENT, GREY, MARK, MODULE, PLAIN, RESIDUAL, number

Point = tuple[float, float]


def orthogonal_steps(length: float, step: float, count: int = 7) -> Diagram:
    """16 §3: steps of one length, each orthogonal to the weight, which grows and turns less and less."""
    points, lengths, turns = [(length, 0.0)], [length], [0.0]
    for _ in range(count):
        x, y = points[-1]
        now = lengths[-1]
        points.append((x - step * y / now, y + step * x / now))
        lengths.append(math.hypot(now, step))
        turns.append(math.degrees(math.atan2(step, now)))
    canvas = Canvas(
        f"{count} equal steps lengthen the weight from {lengths[0]:.2f} to {lengths[-1]:.2f}, and the last one turns "
        f"it by {turns[-1]:.0f}° instead of {turns[1]:.0f}°.",
        f"Each step has the length {step:g} and is orthogonal to the weight. Lengths: "
        + ", ".join(f"{one:.2f}" for one in lengths)
        + ". Angles: "
        + ", ".join(f"{one:.1f}°" for one in turns[1:])
        + ".",
    )
    xs, ys = [x for x, _ in points] + [0.0], [y for _, y in points] + [0.0]
    unit = min(400 / (max(xs) - min(xs)), 250 / (max(ys) - min(ys)))
    left, low = 40 - unit * min(xs), 20 + unit * max(ys)

    def place(x: float, y: float) -> Point:
        return left + unit * x, low - unit * y

    for x, y in points[1:-1]:
        canvas.path([place(0, 0), place(x, y)], PLAIN, width=1.2)
    canvas.arrow(place(0, 0), place(*points[0]), colour=MARK, width=2)
    for before, after in pairwise(points):
        canvas.arrow(place(*before), place(*after), colour=GRADIENT, width=1.8)
    canvas.arrow(place(0, 0), place(*points[-1]), colour=MARK, width=2)
    corner = 0.12 * length
    square = [(length - corner, 0.0), (length - corner, corner), (length, corner)]
    canvas.path([place(*one) for one in square], GREY, width=1)
    canvas.text(place(length / 2, 0)[0], low + 16, "weight before", size=12)
    canvas.text(place(length, 0)[0] + 12, place(0, step / 2)[1] + 4, "step", size=12, anchor="start", colour=GREY)
    canvas.text(540, 6, "step", size=12, bold=True)
    canvas.text(640, 6, "length of the weight", size=12, bold=True)
    canvas.text(775, 6, "angle of the step", size=12, bold=True)
    for i, (long, turn) in enumerate(zip(lengths, turns, strict=True)):
        y = 32 + 24 * i
        canvas.text(540, y, str(i) if i else "start", size=12, mono=True)
        canvas.rect(590, y - 8, 60 * long / lengths[-1], 16, MARK)
        canvas.text(690, y, f"{long:.2f}", size=12, mono=True)
        if i:
            canvas.text(775, y, f"{turn:.1f}°", size=12, mono=True)
    return canvas.finish()


def part_magnitudes(rows: Sequence[tuple[str, float, str, float]]) -> Diagram:
    """16 §4: (plain part, magnitude of its output, EDM2's part, magnitude of its output), one bar each."""
    canvas = Canvas(
        "Each plain part changes the magnitude of its input, 1. Each part of EDM2 keeps it.",
        " ".join(f"{plain}: {a:.2f}. {kept}: {b:.2f}." for plain, a, kept, b in rows),
    )
    widest, half = max(max(a, b) for _, a, _, b in rows), canvas.inner / 2
    unit = 118 / widest
    for i, head in enumerate(("plain part", "part of EDM2")):
        canvas.text(i * half, 4, head, size=12, bold=True, anchor="start", colour=GREY)
        canvas.text(i * half + 232, 4, "output", size=11, anchor="start", colour=GREY)
    for i, (plain, a, kept, b) in enumerate(rows):
        y = 38 + 34 * i
        for x, name, value, colour in ((0.0, plain, a, CONTRAST), (half, kept, b, MARK)):
            canvas.text(x, y, name, size=12, anchor="start")
            canvas.rect(x + 232, y - 9, max(1.5, unit * value), 18, colour)
            canvas.text(x + 240 + 118, y, number(value, 2), size=12, mono=True, anchor="start")
    end = 38 + 34 * len(rows) - 14
    for x in (232 + unit, half + 232 + unit):
        canvas.path([(x, 22), (x, end)], GREY, width=1, dashed=True)
        canvas.text(x, end + 10, "1", size=11, mono=True, colour=GREY)
    return canvas.finish()


def block_magnitudes(sizes: Sequence[float], mix: float) -> Diagram:
    """16 §4: one block, with the root mean square of what flows on every arrow.

    `sizes`: the input, after the first norm, the mean of values, after its norm, after c_proj, the first sum, then
    after c_fc, after the activation function, after its c_proj, and the output.
    """
    low, high = min(sizes[1:2] + sizes[3:]), max(sizes[1:2] + sizes[3:])
    canvas = Canvas(
        f"Only attention’s mean of values shrinks, to {sizes[2]:.2f}. Its norm and all other parts hold "
        f"{low:.2f} to {high:.2f}.",
        "Root mean squares in a block: " + ", ".join(f"{one:.2f}" for one in sizes) + f". The sums have t = {mix:g}.",
    )
    for row, (names, flow) in enumerate(
        (
            (
                (("c_attn", "unit rows"), ("mean of values", "QK-norm"), ("rms_norm", ""), ("c_proj", "unit rows")),
                sizes[1:5],
            ),
            (
                (("c_fc", "unit rows"), ("mp-silu", "silu / 0.596"), ("c_proj", "unit rows")),
                (sizes[5], *sizes[6:9]),
            ),
        )
    ):
        view = canvas.at(0, 176 * row)
        view.text(0, 6, ("attention", "MLP")[row], bold=True, anchor="start")
        if row == 0:
            view.text(0, 34, f"x: {sizes[0]:.2f}", size=12, mono=True, anchor="start")
            view.box(86, 16, 84, 36, "rms_norm")
            view.arrow((62, 34), (84, 34), colour=RESIDUAL, width=2.4)
        else:
            view.text(0, 34, f"x: {sizes[5]:.2f}", size=12, mono=True, anchor="start")
        start = 170 if row == 0 else 62
        view.arrow((start, 34), (757, 34), colour=RESIDUAL, width=2.4)
        view.text(600, 22, f"× (1 − t) = {1 - mix:g}", size=11, mono=True, colour=GREY)
        view.add_sign(769, 34)
        out = sizes[5] if row == 0 else sizes[9]
        view.arrow((780, 34), (832, 34), colour=RESIDUAL, width=2.4)
        view.text(808, 54, f"{out:.2f}", size=12, mono=True)
        view.text(769, 8, f"/ {math.hypot(1 - mix, mix):.3f}", size=11, mono=True, colour=GREY)
        xs = [60 + 180 * i for i in range(4)] if row == 0 else [150 + 210 * i for i in range(3)]
        first = (200 if row == 0 else 110, 34)
        turn = [(first[0], 80), (xs[0] - 40, 80)] if row == 0 else []
        view.arrow(first, *turn, (xs[0] - 40, 112), (xs[0], 112))
        if row == 0:
            view.text((xs[0] - 40 + first[0]) / 2, 68, f"{flow[0]:.2f}", size=12, mono=True)
        for i, (name, note) in enumerate(names):
            view.box(xs[i], 92, 110, 40, name, MODULE, note=note)
            value = None if row == 0 and i == 0 else (flow[i] if row == 0 else flow[i + 1])
            if i < len(names) - 1:
                view.arrow((xs[i] + 110, 112), (xs[i + 1], 112))
                if value is not None:
                    view.text((xs[i] + 110 + xs[i + 1]) / 2, 99, f"{value:.2f}", size=12, mono=True)
        last = xs[len(names) - 1] + 110
        view.arrow((last, 112), (769, 112), (769, 46))
        value = flow[3]
        view.text((last + 769) / 2, 99, f"{value:.2f}", size=12, mono=True)
        view.text(720, 68, f"× t = {mix:g}", size=11, mono=True, colour=GREY)
    return canvas.finish()


def manifold_step(w: Point, g: Point, lr: float) -> Diagram:
    """16 §7: gradient, tangent projection, step and retraction, for a weight of two numbers on the circle."""
    size = math.hypot(*w)
    w = (w[0] / size, w[1] / size)
    along = g[0] * w[0] + g[1] * w[1]
    tangent = (g[0] - along * w[0], g[1] - along * w[1])
    long = math.hypot(*tangent)
    stepped = (w[0] - lr * tangent[0] / long, w[1] - lr * tangent[1] / long)
    outside = math.hypot(*stepped)
    after = (stepped[0] / outside, stepped[1] / outside)
    plain = (w[0] - lr * g[0] / math.hypot(*g), w[1] - lr * g[1] / math.hypot(*g))
    canvas = Canvas(
        f"A tangent step of {lr:g} leaves the circle by {outside - 1:.3f}. The retraction divides by {outside:.3f}.",
        f"w = ({w[0]:.2f}, {w[1]:.2f}), gradient ({g[0]:.2f}, {g[1]:.2f}), tangent part ({tangent[0]:.2f}, "
        f"{tangent[1]:.2f}), after the step ({stepped[0]:.2f}, {stepped[1]:.2f}), after the retraction "
        f"({after[0]:.2f}, {after[1]:.2f}).",
    )
    unit, left, low = 300.0, 40.0, 330.0

    def place(point: Point) -> Point:
        return left + unit * point[0], low - unit * point[1]

    arc = [(math.cos(0.01 * i), math.sin(0.01 * i)) for i in range(158)]
    canvas.path([place(one) for one in arc], MODULE, width=2)
    canvas.path([(left, 20), (left, low), (left + 400, low)], PLAIN, width=1)
    canvas.arrow(place((0, 0)), place(w), colour=MARK, width=2)
    canvas.arrow(place((0, 0)), place(after), colour=RESIDUAL, width=2)
    canvas.arrow(place(w), place(plain), colour=GRADIENT, width=2, dashed=True)
    canvas.arrow(place(w), place(stepped), colour=GRADIENT, width=2.4)
    canvas.arrow(place(stepped), place(after), colour=COMMUNICATION, width=2.4)
    named = ((w, "1", MARK), (plain, "2", GRADIENT), (stepped, "3", GRADIENT), (after, "4", RESIDUAL))
    for (x, y), digit, colour in named:
        r = math.hypot(x, y)
        shift = 18 if digit in "134" else -18
        spot = place((x * (1 + shift / unit / r), y * (1 + shift / unit / r)))
        if digit == "4":
            spot = place((x - 18 / unit, y + 6 / unit))
        canvas.dot(*place((x, y)), colour, 3.5)
        canvas.text(*spot, digit, size=12, bold=True)
    told = (
        f"1  the weight w, of length 1: ({number(w[0])}, {number(w[1])})",
        f"2  a step of {lr:g} against the whole gradient: length {math.hypot(*plain):.3f}",
        f"3  a step of {lr:g} against its tangent part: length {outside:.3f}",
        f"4  the retraction, back on the circle: ({number(after[0])}, {number(after[1])})",
    )
    for i, line in enumerate(told):
        canvas.text(440, 90 + 28 * i, line, size=12, anchor="start")
    canvas.text(
        440,
        216,
        f"w turns by arctan {lr:g} = {math.degrees(math.atan(lr)):.1f}°, and this angle",
        size=12,
        anchor="start",
    )
    canvas.text(440, 234, "does not depend on the size of the gradient", size=12, anchor="start")
    return canvas.finish()
