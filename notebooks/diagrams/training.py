"""Diagrams of notebooks 05 to 08: the training loop, the loader, number formats, the roofline, and AdamW."""

import math
from collections.abc import Mapping, Sequence

from .drawing import Canvas, Diagram
from .palette import GRADIENT, GREY, MARK, MODULE, PLAIN, number, shown, text_width
from .parts import axes, power, scale, short


def training_loop(loss: float, norm: float, limit: float, rate: float, optimizer: str = "AdamW") -> Diagram:
    """08 §12: one step of training, with the loss, the gradient norm and the learning rate of a real step."""
    kept = min(norm, limit)
    canvas = Canvas(
        "One step: forward makes a loss, backward makes gradients, and the optimiser changes the weights.",
        f"batch → forward → loss {loss:.3f} → backward → clip, norm {norm:.2f} becomes {kept:.2f} → "
        f"{optimizer} with learning rate {power(rate, 1)} → the next batch.",
    )
    names = (
        ("batch", "loader"),
        ("forward", "GPT-2"),
        ("loss", f"{loss:.3f}"),
        ("backward", "autograd"),
        ("clip", f"{norm:.2f} → {kept:.2f}"),
        (optimizer, f"lr {power(rate, 1)}"),
    )
    labels = ("x, y", "logits", "loss", "grads", "grads")
    shapes = ("(B,T)", "(B,T,V)", "()", "", "")
    for i, (name, note) in enumerate(names):
        x = i * 148
        canvas.box(x, 4, 92, 56, name, GRADIENT if i in (3, 4) else MODULE, note=note)
        if i < 5:
            canvas.arrow((x + 92, 32), (x + 146, 32), label=labels[i], colour=GRADIENT if i > 2 else MODULE)
            if shapes[i]:
                canvas.text(x + 119, 46, shapes[i], size=11, mono=True, colour=GREY)
    canvas.arrow((786, 60), (786, 96), (194, 96), (194, 62))
    canvas.text(490, 86, "new weights", size=11, mono=True, colour=GREY)
    canvas.arrow((194, 96), (46, 96), (46, 62))
    canvas.text(120, 108, "next batch", size=11, mono=True, colour=GREY)
    return canvas.finish()


def loader_line(line: Sequence[str], T: int = 4, ranks: int = 2, micro_batch: int = 2) -> Diagram:
    """06 §4 and §5: a line of B · T + 1 tokens, cut into B sequences, dealt to ranks and micro-steps."""
    B = (len(line) - 1) // T
    steps = B // (ranks * micro_batch)
    many = "one micro-step" if steps == 1 else f"{steps} micro-steps"
    who = "one rank" if ranks == 1 else f"{ranks} ranks"
    canvas = Canvas(
        f"One line of {B * T + 1} tokens feeds {who} in {many}, and every input is read once.",
        f"The line is cut into {B} sequences of {T} inputs. Rank r takes {B // ranks} neighbouring sequences, in "
        f"micro-batches of {micro_batch}. The targets are the same tokens, one place later.",
    )
    widest = max(26.0, *(text_width(shown(token), 11, mono=True) + 6 for token in line))
    w = min(widest, canvas.inner / len(line))
    for i, token in enumerate(line):
        rank = min(i // T, B) // (B // ranks)
        colour = PLAIN if i == B * T else (MODULE, MARK)[rank % 2]
        canvas.rect(i * w, 0, w - 2, 24, colour)
        canvas.text((i + 0.5) * w - 1, 12, shown(token), size=_fitting(token, w), mono=True)
    for b in range(B):
        left, right = b * T * w, (b + 1) * T * w - 4
        canvas.path([(left, 28), (left, 34), (right, 34), (right, 28)], GREY, width=1)
        canvas.text((left + right) / 2, 44, f"sequence {b}" if T * w > 74 else str(b), size=11, colour=GREY)
    beside = min(ranks, 2) if widest == 26 else 1  # ranks in a row; words need the whole width
    gap, tall = canvas.inner / beside, 66 + 27 * steps * micro_batch + 6 * steps
    cell = min(widest, (gap - 110) / (2 * T + 1))
    for rank in range(ranks):
        mine = line[rank * steps * micro_batch * T : (rank + 1) * steps * micro_batch * T + 1]
        _rank_share(canvas.at(rank % beside * gap, 76 + rank // beside * tall), rank, mine, T, micro_batch, cell)
    return canvas.finish()


def _rank_share(canvas: Canvas, rank: int, line: Sequence[str], T: int, micro_batch: int, cell: float) -> None:
    """The inputs and targets of one rank, a row per sequence."""
    canvas.text(0, 0, f"rank {rank}", bold=True, anchor="start")
    starts = (84, 84 + (T + 0.6) * cell)
    for name, x in zip(("x", "y: one later"), starts, strict=True):
        canvas.text(x, 18, name, size=11, anchor="start", colour=GREY)
    for row in range((len(line) - 1) // T):
        step = row // micro_batch
        y = 30 + row * 27 + 6 * step
        if row % micro_batch == 0:
            middle = y + 27 * micro_batch / 2 - 2
            canvas.text(0, middle, f"micro-step {step}", size=11, anchor="start", colour=GREY)
        for shift, (left, colour) in enumerate(zip(starts, ((MODULE, MARK)[rank % 2], PLAIN), strict=True)):
            for t in range(T):
                canvas.rect(left + t * cell, y, cell - 2, 23, colour)
                token = shown(line[row * T + t + shift])
                canvas.text(left + (t + 0.5) * cell - 1, y + 11.5, token, size=_fitting(token, cell), mono=True)


def _fitting(token: str, width: float) -> float:
    """The size at which a token fits into a cell."""
    return min(11, width / 2.2, (width - 4) / (0.61 * max(1, len(token))))


# name → bits of the exponent and of the mantissa
FORMATS = {"fp32": (8, 23), "TF32": (8, 10), "bf16": (8, 7), "fp16": (5, 10)}


def stored(value: float, exponent_bits: int, mantissa_bits: int) -> tuple[str, float]:
    """The bits of a number in a format, and the value that they stand for; rounds to nearest, ties to even."""
    bias, sign = 2 ** (exponent_bits - 1) - 1, "1" if value < 0 else "0"
    size = abs(value)
    exponent = max(math.floor(math.log2(size)) if size else -bias, 1 - bias)
    steps = round(size / 2.0**exponent * 2**mantissa_bits)
    if steps >= 2 ** (mantissa_bits + 1):
        exponent, steps = exponent + 1, steps // 2
    if exponent > bias:
        return sign + "1" * exponent_bits + "0" * mantissa_bits, math.copysign(math.inf, value)
    field = exponent + bias if steps >= 2**mantissa_bits else 0
    bits = f"{field:0{exponent_bits}b}" + f"{steps % 2**mantissa_bits:0{mantissa_bits}b}"
    return sign + bits, math.copysign(steps * 2.0 ** (exponent - mantissa_bits), value)


def number_formats(value: float = 1e-5) -> Diagram:
    """07 §3: the bits of one number in fp32, TF32, bf16 and fp16, with what is stored and what fits."""
    errors = {name: abs(stored(value, *bits)[1] / value - 1) for name, bits in FORMATS.items()}
    canvas = Canvas(
        f"bf16 has the range of fp32 and fewer digits. It stores {value:g} with an error of {errors['bf16']:.1%}.",
        " ".join(f"{name} stores {stored(value, *bits)[1]:.6g}." for name, bits in FORMATS.items())
        + " The exponent sets the range, and the mantissa sets the number of digits.",
    )
    w, left = 15, 52
    for name, x in (("stored", 590), ("largest", 682), ("smallest normal", 776)):
        canvas.text(x, 4, name, size=11, bold=True, colour=GREY)
    for i, (name, (exponent, mantissa)) in enumerate(FORMATS.items()):
        y = 20 + i * 52
        bits, kept = stored(value, exponent, mantissa)
        canvas.text(0, y + 12, name, anchor="start", bold=True)
        for colour, first, last in ((MODULE, 0, 1), (MARK, 1, 1 + exponent), (PLAIN, 1 + exponent, len(bits))):
            canvas.tiles([(left + j * w, y, w - 3, 24) for j in range(first, last)], colour)
        canvas.letters([left + (j + 0.5) * w - 1.5 for j in range(len(bits))], y + 12, bits, 11)
        canvas.text(left + (1 + exponent / 2) * w, y + 34, f"exponent {exponent}", size=10.5, colour=GREY)
        canvas.text(left + (1 + exponent + mantissa / 2) * w, y + 34, f"mantissa {mantissa}", size=10.5, colour=GREY)
        bias = 2 ** (exponent - 1) - 1
        most = (2 - 2.0**-mantissa) * 2.0**bias
        for text, x in (
            (f"{kept:.5g}".replace("inf", "∞"), 590),
            (f"{most:.3g}", 682),
            (f"{2.0 ** (1 - bias):.2g}", 780),
        ):
            canvas.text(x, y + 12, text, mono=True, size=12)
    canvas.legend(left, 232, [("sign", MODULE), ("exponent: range", MARK), ("mantissa: digits", PLAIN)])
    return canvas.finish()


def roofline(
    peaks: Mapping[str, float], bandwidth: float, points: Mapping[str, tuple[float, float]], title: str
) -> Diagram:
    """07 §4: roofs in FLOP/s, the slope of the bandwidth in bytes/s, and points (FLOPs per byte, FLOP/s)."""
    intensities = [one for one, _ in points.values()] + [peak / bandwidth for peak in peaks.values()]
    rates = [rate for _, rate in points.values()] + [*peaks.values()]
    x_range = 10 ** math.floor(math.log10(min(intensities))), 10 ** math.ceil(math.log10(max(intensities)) + 0.2)
    y_range = 10 ** math.floor(math.log10(min(rates))), 10 ** math.ceil(math.log10(max(rates)) + 0.1)
    where = "; ".join(f"{name}: {i:.3g} FLOPs per byte, {short(r, 'FLOP/s')}" for name, (i, r) in points.items())
    canvas = Canvas(title, f"Bandwidth {short(bandwidth, 'B/s')}. {where}.")
    x, y = scale(*x_range, 60, 500, log=True), scale(*y_range, 270, 20, log=True)
    decades = [[10**e for e in range(round(math.log10(a)), round(math.log10(b)) + 1)] for a, b in (x_range, y_range)]
    axes(
        canvas,
        x,
        y,
        x_range=x_range,
        y_range=y_range,
        x_ticks=[(one, f"{one:g}") for one in decades[0]],
        y_ticks=[(one, short(one)) for one in decades[1]],
        x_label="arithmetic intensity (FLOPs per byte)",
        y_label="FLOP/s",
    )
    start = max(x_range[0], y_range[0] / bandwidth)
    for name, peak in peaks.items():
        corner = peak / bandwidth
        canvas.path([(x(start), y(bandwidth * start)), (x(corner), y(peak)), (x(x_range[1]), y(peak))], MODULE, width=2)
        canvas.text(x(x_range[1]) + 6, y(peak), f"{name} {short(peak)}", size=11, anchor="start")
    for i, (name, (intensity, rate)) in enumerate(points.items()):
        canvas.dot(x(intensity), y(rate), MARK, 9)
        canvas.text(x(intensity), y(rate), str(i + 1), size=11, bold=True, colour=PLAIN.fill)
        canvas.dot(640, 40 + 30 * i, MARK, 9)
        canvas.text(640, 40 + 30 * i, str(i + 1), size=11, bold=True, colour=PLAIN.fill)
        canvas.text(658, 34 + 30 * i, name, size=12, anchor="start")
        canvas.text(658, 48 + 30 * i, short(rate, "FLOP/s"), size=11, anchor="start", colour=GREY)
    return canvas.finish()


def accumulation(gradients: Sequence[float]) -> Diagram:
    """08: one weight's gradient of each micro-batch, divided by their number and added up; then one update."""
    n = len(gradients)
    sums = [sum(gradients[: i + 1]) / n for i in range(n)]
    canvas = Canvas(
        f"{n} micro-batches add up to the gradient of one batch, {number(sums[-1], 3)}. Then the weights move once.",
        "Gradients of the micro-batches: "
        + ", ".join(f"{one:.3f}" for one in gradients)
        + f". Each is divided by {n}. Running sums: "
        + ", ".join(f"{one:.3f}" for one in sums)
        + ".",
    )
    gap, largest = (canvas.inner - 112) / n, max(abs(one) for one in sums) or 1.0
    for i, one in enumerate(gradients):
        view, wide = canvas.at(i * gap, 0), gap - 26
        view.box(0, 0, wide, 42, f"micro-batch {i}", size=min(13, wide / 9), note="forward, backward")
        view.arrow((wide / 2, 42), (wide / 2, 88), colour=GRADIENT, label=f"{number(one, 3)} / {n}", size=11)
        view.text(0, 98, ".grad", size=11, mono=True, anchor="start", colour=GREY)
        view.rect(0, 108, wide, 24, PLAIN)
        view.rect(0, 108, max(2.0, wide * abs(sums[i]) / largest), 24, GRADIENT)
        view.text(wide / 2, 120, number(sums[i], 3), mono=True, size=12)
        view.arrow((wide, 120), (gap - 2, 120), colour=GRADIENT)
    canvas.box(canvas.inner - 112, 96, 112, 48, "AdamW", note="one update")
    return canvas.finish()


def adam_averages(gradients: Sequence[float], rate: float = 0.1, betas: tuple[float, float] = (0.9, 0.95)) -> Diagram:
    """08 §3 and §4: Adam's two averages on one weight, step by step, with bias correction."""
    m = v = 0.0
    rows: dict[str, list[float]] = {"gradient g": [], "m̂: mean of g": [], "√v̂: size of g": [], "update −lr·m̂/√v̂": []}
    for t, g in enumerate(gradients, start=1):
        m, v = betas[0] * m + (1 - betas[0]) * g, betas[1] * v + (1 - betas[1]) * g * g
        mean, size = m / (1 - betas[0] ** t), math.sqrt(v / (1 - betas[1] ** t))
        for row, value in zip(rows.values(), (g, mean, size, -rate * mean / (size + 1e-8)), strict=True):
            row.append(value)
    updates = rows["update −lr·m̂/√v̂"]
    canvas = Canvas(
        f"Adam’s first update is as long as the learning rate, {rate:g}, whatever the gradient.",
        "Gradients: "
        + ", ".join(f"{g:.2f}" for g in gradients)
        + ". Updates: "
        + ", ".join(f"{one:.3f}" for one in updates)
        + ".",
    )
    gap, tall = (canvas.inner - 140) / len(gradients), 30
    for i, (name, values) in enumerate(rows.items()):
        y = 44 + i * 88
        largest = max(abs(one) for one in values) or 1.0
        canvas.text(0, y, name, anchor="start", bold=True, size=12)
        canvas.path([(140, y), (canvas.inner, y)], PLAIN, width=1)
        for j, one in enumerate(values):
            long, x = max(1.0, abs(one) / largest * tall), 140 + (j + 0.5) * gap
            canvas.rect(x - 13, y - long if one >= 0 else y, 26, long, GRADIENT if i < 3 else MARK)
            beyond = -long - 9 if one >= 0 else long + 9
            canvas.text(x, y + beyond, number(one, 3 if i == 3 else 2), mono=True, size=11)
    for j in range(len(gradients)):
        canvas.text(140 + (j + 0.5) * gap, 364, f"step {j + 1}", size=11, colour=GREY)
    return canvas.finish()


def schedule(rates: Sequence[float], warmup: int, kind: str = "cosine") -> Diagram:
    """08 §8: the learning rate of every step, with warm-up and decay as phases."""
    n, peak, last = len(rates), max(rates), rates[-1]
    canvas = Canvas(
        f"The learning rate rises for {warmup:,} steps to {power(peak, 1)}, then falls to {last / peak:.0%} of it.",
        f"Warm-up from step 0 to {warmup}, then {kind} until step {n}. The last rate is {power(last, 1)}.",
    )
    x, y = scale(0, n, 60, canvas.inner - 10, log=False), scale(0, peak, 210, 40, log=False)
    canvas.rect(x(0), 24, x(warmup) - x(0), 186, MARK, border=False, radius=0)
    canvas.rect(x(warmup), 24, x(n) - x(warmup), 186, MODULE, border=False, radius=0)
    wide = x(warmup) - x(0)
    canvas.text(
        x(0) if wide < 70 else x(warmup / 2),
        10,
        "warm-up",
        size=12,
        bold=True,
        anchor="start" if wide < 70 else "middle",
    )
    canvas.text(x((warmup + n) / 2), 10, f"{kind} decay", size=12, bold=True)
    ticks = [(0.0, "0"), (float(warmup), f"{warmup:,}"), (float(n), f"{n:,}")]
    axes(
        canvas,
        x,
        y,
        x_range=(0, n),
        y_range=(0, peak),
        x_ticks=ticks,
        x_label="step",
        y_ticks=[(0.0, "0"), (peak / 2, power(peak / 2)), (peak, power(peak))],
    )
    few = range(0, n, max(1, n // 200))
    canvas.path([(x(step), y(rates[step])) for step in few] + [(x(n), y(last))], MARK, width=2.5)
    return canvas.finish()
