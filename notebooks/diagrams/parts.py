"""Parts that several diagrams share: grids of numbers, rows of tokens, bars, and the axes of a small plot."""

import math
from collections.abc import Callable, Sequence

from .drawing import Canvas
from .palette import DARKEST, GREY, INK, PLAIN, Colour, number, shown, text_width

Value = float | str | None


def cells(
    canvas: Canvas,
    x: float,
    y: float,
    rows: Sequence[Sequence[Value]],
    colour: Colour,
    *,
    size: tuple[float, float] = (46, 26),
    digits: int = 2,
    strongest: float | None = None,
    font: float = 12,
    row_labels: Sequence[str] = (),
    column_labels: Sequence[str] = (),
) -> None:
    """A grid of numbers. The stronger a value is, the darker is its cell; None draws nothing.

    `strongest` is the absolute value of the darkest cell; without it, all cells have the light fill of the colour.
    """
    w, h = size
    for i, row in enumerate(rows):
        if row_labels:
            canvas.text(x - 8, y + h * (i + 0.5), row_labels[i], size=font, anchor="end", mono=True)
        for j, value in enumerate(row):
            left, top = x + j * w, y + i * h
            if value is None:
                continue
            opacity = None
            if strongest and not isinstance(value, str):
                finite = abs(value) if math.isfinite(value) else 0
                opacity = DARKEST * min(1, finite / strongest)
            canvas.rect(left, top, w - 2, h - 2, colour, opacity=opacity)
            text = value if isinstance(value, str) else number(value, digits)
            canvas.text(left + w / 2 - 1, top + h / 2 - 1, text, size=font, mono=True)
    for j, label in enumerate(column_labels):
        canvas.text(x + (j + 0.5) * w - 1, y - 12, label, size=font, mono=True)


def tokens(
    canvas: Canvas,
    x: float,
    y: float,
    row: Sequence[str | bytes],
    colours: Sequence[Colour],
    *,
    height: float = 28,
    font: float = 13,
    gap: float = 4,
    least: float = 26,
) -> list[float]:
    """A row of tokens in boxes as wide as their text; returns the middle of each box."""
    middles = []
    for token, colour in zip(row, colours, strict=True):
        label = shown(token)
        width = max(least, text_width(label, font, mono=True) + 12)
        canvas.box(x, y, width, height, label, colour, bold=False, mono=True, size=font)
        middles.append(x + width / 2)
        x += width + gap
    return middles


def token_widths(row: Sequence[str | bytes], font: float = 13, gap: float = 4, least: float = 26) -> float:
    """The width of the same row of tokens."""
    return sum(max(least, text_width(shown(token), font, mono=True) + 12) + gap for token in row) - gap


def bars(
    canvas: Canvas,
    rows: Sequence[tuple[str, float]],
    *,
    width: float,
    label: float,
    longest: float,
    colours: Sequence[Colour],
    texts: Sequence[str],
    step: float = 26,
    mono: bool = False,
) -> None:
    """Horizontal bars with a name on the left and a number on the right. `label` is the width of the names."""
    for i, (name, value) in enumerate(rows):
        top = i * step
        canvas.text(label - 10, top + step / 2, name, anchor="end", mono=mono, size=12)
        long = max(1.5, width * value / longest) if value else 0
        if long:
            canvas.rect(label, top + 3, long, step - 6, colours[i])
        canvas.text(label + long + 7, top + step / 2, texts[i], anchor="start", mono=True, size=12)


Scale = Callable[[float], float]


def scale(low: float, high: float, start: float, end: float, *, log: bool = False) -> Scale:
    """A function from values between `low` and `high` to pixels between `start` and `end`."""
    forward: Scale = math.log10 if log else float
    first, last = forward(low), forward(high)
    return lambda value: start + (end - start) * (forward(value) - first) / (last - first)


def axes(
    canvas: Canvas,
    x: Scale,
    y: Scale,
    *,
    x_range: tuple[float, float],
    y_range: tuple[float, float],
    x_ticks: Sequence[tuple[float, str]] = (),
    y_ticks: Sequence[tuple[float, str]] = (),
    x_label: str = "",
    y_label: str = "",
) -> None:
    """Two axes with ticks. The label of the y axis stands above it."""
    left, right, bottom, top = x(x_range[0]), x(x_range[1]), y(y_range[0]), y(y_range[1])
    for value, name in y_ticks:
        canvas.path([(left, y(value)), (right, y(value))], PLAIN, width=0.7)
        canvas.text(left - 8, y(value), name, size=11, anchor="end", colour=GREY)
    canvas.path([(left, top), (left, bottom), (right, bottom)], GREY, width=1)
    for value, name in x_ticks:
        canvas.path([(x(value), bottom), (x(value), bottom + 4)], GREY, width=1)
        canvas.text(x(value), bottom + 14, name, size=11, colour=GREY)
    if x_label:
        canvas.text((left + right) / 2, bottom + 33, x_label, size=12, colour=INK)
    if y_label:
        canvas.text(left, top - 16, y_label, size=12, anchor="start", colour=INK)


def softmax(scores: Sequence[float]) -> list[float]:
    """Weights that are positive and add up to 1."""
    largest = max(scores)
    powers = [math.exp(score - largest) for score in scores]
    return [power / sum(powers) for power in powers]


def short(value: float, unit: str = "") -> str:
    """A count in three digits: 38.6 M, 1.2 G, 512."""
    for factor, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= factor:
            return f"{value / factor:.3g} {prefix}{unit}"
    return f"{value:.3g} {unit}".rstrip()


def power(value: float, digits: int = 0) -> str:
    """A number with an exponent, as people write it: 6e-4."""
    mantissa, exponent = f"{value:.{digits}e}".split("e")
    mantissa = mantissa.rstrip("0").rstrip(".") if "." in mantissa else mantissa
    return f"{mantissa}e{int(exponent)}".replace("-", "−")
