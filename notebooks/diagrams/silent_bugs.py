"""Diagrams of notebook 18: where bugs stand in the training loop, which of them the loss shows, and two tests."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

from .drawing import Canvas, Diagram
from .palette import CONTRAST, GREY, KEY, MARK, MODULE, PLAIN, VALUE, Colour, number, shown, text_width
from .parts import axes, scale

KINDS: dict[str, Colour] = {"harms the model": KEY, "only falsifies the log": CONTRAST, "within the noise": MODULE}


def loop_map(places: Mapping[str, Mapping[str, str]]) -> Diagram:
    """18 §2: the parts of a training run from top to bottom; each has its bugs (name → one of KINDS)."""
    counts = {kind: sum(one == kind for bugs in places.values() for one in bugs.values()) for kind in KINDS}
    total = sum(counts.values())
    canvas = Canvas(
        f"{total} silent bugs, and every part of a training run has some: {counts['harms the model']} harm the model.",
        "Parts from top to bottom, with their number of bugs: "
        + ", ".join(f"{part} {len(bugs)}" for part, bugs in places.items())
        + ".",
    )
    y = 0.0
    middles = []
    for part, bugs in places.items():
        rows: list[list[str]] = [[]]
        for name in bugs:
            wide = sum(text_width(one, 11) + 22 for one in [*rows[-1], name])
            if rows[-1] and wide > canvas.inner - 176:
                rows.append([])
            rows[-1].append(name)
        tall = 26.0 * len(rows)
        canvas.box(36, y, 124, max(26.0, tall - 4), part, MARK, size=12)
        middles.append((y, y + max(26.0, tall - 4)))
        for i, row in enumerate(rows):
            x = 176.0
            for name in row:
                wide = text_width(name, 11) + 16
                canvas.box(x, y + 26 * i, wide, 22, name, KINDS[bugs[name]], bold=False, size=11)
                x += wide + 6
        y += tall + 12
    for (_, bottom), (top, _) in pairwise(middles):
        canvas.arrow((98, bottom), (98, top))
    first, last = (sum(middles[i]) / 2 for i in (0, -1))
    canvas.arrow((36, last), (12, last), (12, first), (34, first), colour=MODULE, dashed=True)
    canvas.legend(176, y + 8, list(KINDS.items()))
    return canvas.finish()


def damage_and_visibility(points: Mapping[str, tuple[float, float]], title: str) -> Diagram:
    """18 §10: how much a bug harms the model, over how much its own log shows, both in spreads of the right run."""
    low, high = 0.5, 10 ** math.ceil(math.log10(max(2.0, *(max(map(abs, pair)) for pair in points.values()))))
    canvas = Canvas(
        title,
        "Damage, and what the log shows, in spreads. "
        + " ".join(f"{name}: {damage:.1f} and {seen:.1f}." for name, (damage, seen) in points.items()),
    )
    x, y = scale(low, high, 50, 530, log=True), scale(low, high, 430, 40, log=True)
    canvas.rect(x(low), y(high), x(2) - x(low), y(2) - y(high), KEY, border=False, radius=0)
    canvas.text((x(low) + x(2)) / 2, y(high) + 12, "silent", size=12, bold=True, colour=KEY.text)
    ticks = [(1.0, "1"), (2.0, "2"), (10.0, "10"), (100.0, "100"), (1000.0, "1,000")]
    ticks = [tick for tick in ticks if tick[0] <= high]
    axes(
        canvas,
        x,
        y,
        x_range=(low, high),
        y_range=(low, high),
        x_ticks=ticks,
        y_ticks=ticks,
        x_label="what the printed loss shows, in spreads",
        y_label="damage to the model, in spreads",
    )
    places, looks = [], {"the log looks better": VALUE, "the log looks worse": MARK, "the log looks equal": KEY}
    for i, (name, (damage, seen)) in enumerate(points.items()):
        look = looks["the log looks equal" if abs(seen) < 2 else f"the log looks {'better' if seen < 0 else 'worse'}"]
        places.append((x(max(low, abs(seen))), y(max(low, damage))))
        canvas.dot(*places[-1], look, 4)
        canvas.text(576, 44 + 16 * i, str(i + 1), size=11, anchor="end", bold=True, colour=look.text)
        canvas.text(584, 44 + 16 * i, name, size=11, anchor="start")
    _numbers(canvas, places)
    canvas.legend(50, 490, list(looks.items()))
    return canvas.finish()


def _numbers(canvas: Canvas, places: Sequence[tuple[float, float]]) -> None:
    """The number of each point, beside it where no other number or point stands."""
    taken = [(px - 4, py - 4, px + 4, py + 4) for px, py in places]
    angles = [k / 8 * math.pi for k in range(16)]
    spots = [(r * math.cos(angle), r * math.sin(angle)) for r in range(10, 90, 4) for angle in angles]
    for i, (px, py) in enumerate(places):
        wide = text_width(str(i + 1), 9) / 2 + 1
        spots = [
            (r * math.cos(a / 8 * math.pi), r * math.sin(a / 8 * math.pi)) for r in range(10, 90, 4) for a in range(16)
        ]
        for dx, dy in spots:
            box = (px + dx - wide, py + dy - 5.5, px + dx + wide, py + dy + 5.5)
            free = all(box[2] < b[0] or b[2] < box[0] or box[3] < b[1] or b[3] < box[1] for b in taken)
            if free and box[0] > 51 and box[3] < 429:
                break
        taken.append(box)
        if math.hypot(dx, dy) > 14:
            canvas.path([(px, py), (px + 0.7 * dx, py + 0.7 * dy)], GREY, width=0.6)
        canvas.text(px + dx, py + dy, str(i + 1), size=9, colour=GREY)


def leak_test(rows: Mapping[str, tuple[Sequence[float], bool]], changed: int) -> Diagram:
    """18 §3: how far each output moves when the input at position `changed` changes; per test, whether there is a mask.

    A row is the name of a test, with the largest change of each output, and whether the block has a mask.
    """
    passed = {name: max(moves[:changed]) < 1e-5 for name, (moves, _) in rows.items()}
    fooled = [name for name, (_, mask) in rows.items() if passed[name] and not mask]
    canvas = Canvas(
        f"{len(fooled)} of {len(rows)} tests passes a block that has no mask: its change is the same in all channels.",
        f"The input changes at position {changed}. "
        + " ".join(
            f"{name}: outputs before it move by at most {max(moves[:changed]):.3f}, so the test "
            f"{'passes' if passed[name] else 'fails'}."
            for name, (moves, _) in rows.items()
        ),
    )
    n = len(next(iter(rows.values()))[0])
    left, w = 214, min(42.0, (canvas.inner - 214 - 96) / n)
    canvas.text(left - 12, 4, "output at position", size=11, anchor="end", colour=GREY)
    for t in range(n):
        canvas.text(left + (t + 0.5) * w, 4, str(t), size=11, mono=True, bold=t == changed)
    for i, (name, (moves, mask)) in enumerate(rows.items()):
        y = 24 + 46 * i
        canvas.text(left - 12, y + 9, name, size=12, anchor="end", bold=True)
        canvas.text(left - 12, y + 25, "with a mask" if mask else "without a mask", size=11, anchor="end", colour=GREY)
        for t, move in enumerate(moves):
            colour = PLAIN if move < 1e-5 else (KEY if t < changed else MODULE)
            canvas.rect(left + t * w, y, w - 3, 32, colour)
            canvas.text(left + (t + 0.5) * w - 1.5, y + 16, "0" if move < 1e-5 else number(move), size=10.5, mono=True)
        good = passed[name] == mask
        verdict = "passes" if passed[name] else "fails"
        ink = VALUE if good else KEY
        canvas.text(left + n * w + 10, y + 9, verdict, size=12, anchor="start", bold=True, colour=ink.text)
        canvas.text(
            left + n * w + 10, y + 25, "rightly" if good else "wrongly", size=11, anchor="start", colour=ink.text
        )
    bottom = 24 + 46 * len(rows)
    canvas.arrow((left + (changed + 0.5) * w, bottom + 22), (left + (changed + 0.5) * w, bottom - 8), colour=MARK)
    canvas.text(left + (changed + 0.5) * w + 10, bottom + 16, "the input changes here", size=11, anchor="start")
    return canvas.finish()


def shifted_labels(words: Sequence[str], rows: Mapping[str, tuple[Sequence[str], Sequence[float]]]) -> Diagram:
    """18 §3: the inputs, and under them the targets of several alignments with the loss of a trained model on each."""
    means = {name: sum(losses) / len(losses) for name, (_, losses) in rows.items()}
    first, *others = means
    canvas = Canvas(
        f"A trained model loses {number(means[first])} nats on the right targets, and "
        + " and ".join(f"{number(means[name])} if they are {name}" for name in others)
        + ".",
        "Inputs: "
        + " ".join(word.strip() for word in words)
        + ". "
        + " ".join(f"{name}: {', '.join(word.strip() for word in targets)}." for name, (targets, _) in rows.items()),
    )
    left = 130
    w = (canvas.inner - left - 80) / len(words)
    canvas.text(left - 12, 14, "input", size=12, anchor="end", bold=True)
    canvas.text(left + len(words) * w + 40, 14, "mean", size=11, colour=GREY)
    for t, word in enumerate(words):
        canvas.box(left + t * w, 0, w - 8, 28, shown(word), MODULE, bold=False, mono=True, size=12)
    for i, (name, (targets, losses)) in enumerate(rows.items()):
        y, colour = 62 + 68 * i, VALUE if i == 0 else KEY
        canvas.text(left - 12, y + 14, name, size=12, anchor="end", bold=True, colour=colour.text)
        for t, (word, loss) in enumerate(zip(targets, losses, strict=True)):
            canvas.box(left + t * w, y, w - 8, 28, shown(word), colour, bold=False, mono=True, size=12)
            canvas.text(left + (t + 0.5) * w - 4, y + 40, number(loss), size=11, mono=True, colour=GREY)
            if i == 0:
                canvas.arrow((left + (t + 0.5) * w - 4, 28), (left + (t + 0.5) * w - 4, y))
        canvas.text(left + len(words) * w + 40, y + 14, number(means[name]), size=13, mono=True, bold=True)
    return canvas.finish()
