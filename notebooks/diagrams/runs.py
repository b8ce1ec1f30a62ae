"""Diagrams of notebooks 10 to 12: the data pipeline, evaluation, and checkpoints."""

import math
from collections.abc import Mapping, Sequence

from .drawing import Canvas, Diagram
from .palette import CONTRAST, GREY, INK, MARK, MODULE, PLAIN, number, wrap
from .parts import axes, bars, scale, short


def data_pipeline(kept: Sequence[tuple[str, int]], shards: int, unit: str = "documents") -> Diagram:
    """10 §3 to §6: documents, the filters in order with what each leaves, and the shards at the end."""
    first, last = kept[0][1], kept[-1][1]
    canvas = Canvas(
        f"The filters keep {last:,} of {first:,} {unit}, {last / first:.0%}, and the writer makes {shards} shards.",
        " → ".join(f"{name}: {count:,}" for name, count in kept) + f" → {shards} shards.",
    )
    n = len(kept)
    gap = (canvas.inner - 92) / n
    for i, (name, count) in enumerate(kept):
        view, tall = canvas.at(i * gap, 0), 96 * count / first
        view.box(0, 0, gap - 30, 42, name, MODULE if i else PLAIN, size=min(13, (gap - 36) / (0.75 * len(name))))
        view.rect(0, 64, gap - 30, 96, PLAIN, dashed=True)
        view.rect(0, 160 - tall, gap - 30, tall, MARK)
        view.text((gap - 30) / 2, 176, f"{count:,}", mono=True, size=12, bold=True)
        if i:
            view.text((gap - 30) / 2, 194, f"−{kept[i - 1][1] - count:,}", mono=True, size=11, colour=GREY)
        view.arrow((gap - 30, 21), (gap - 2, 21))
    for back in (2, 1, 0):
        canvas.rect(canvas.inner - 92 + 6 * back, 6 * back, 78, 42, PLAIN if back else MODULE, radius=8)
    canvas.text(canvas.inner - 53, 21, f"{shards} shards", bold=True, size=12)
    canvas.text(canvas.inner - 92, 78, "tokens, uint16", anchor="start", size=11, colour=GREY)
    return canvas.finish()


TENSORS, RECORD = "process_000.safetensors", "state.json"
# what a checkpoint of `gpt2/formats/checkpoint.py` holds → in which file, and what happens without it
PARTS = {
    "weights": (TENSORS, "the model starts from random numbers"),
    "Adam’s averages": (TENSORS, "the first updates are too long"),
    "random state": (TENSORS, "other random numbers are drawn"),
    "step number": (RECORD, "the learning rate starts with warm-up again"),
    "place in the data": (RECORD, "the model reads the same text again"),
    "recent losses": (RECORD, "the outlier detector has nothing to compare"),
    "loss scale": (RECORD, "fp16 gradients may overflow again"),
    "settings": (RECORD, "the run may go on with other settings"),
    "checksums": (RECORD, "damage is not noticed"),
}


def checkpoint(
    parts: Mapping[str, tuple[str, str]] = PARTS, sizes: Mapping[str, float] | None = None, folder: str = "step_001000"
) -> Diagram:
    """12 §3 and §4: what a checkpoint holds, and what goes wrong without each part. `sizes`: bytes of some parts."""
    sizes = sizes or {}
    canvas = Canvas(
        f"A checkpoint is more than weights: {len(parts)} parts let a resumed run go on as if it had never stopped.",
        " ".join(f"{name} ({place}); without it, {effect}." for name, (place, effect) in parts.items()),
    )
    canvas.rect(0, 18, 446, 26 + 36 * len(parts), PLAIN, radius=10)
    canvas.box(14, 0, 150, 30, f"{folder}/", MARK, mono=True, bold=False, size=12)
    canvas.text(490, 10, "without it", bold=True, anchor="start", size=12, colour=GREY)
    for i, (name, (place, effect)) in enumerate(parts.items()):
        y = 40 + 36 * i
        canvas.box(14, y, 140, 28, name, MODULE, size=12)
        canvas.text(170, y + 14, place, anchor="start", size=12, colour=GREY)
        if name in sizes:
            canvas.text(430, y + 14, short(sizes[name], "B"), anchor="end", size=12, mono=True)
        canvas.arrow((450, y + 14), (484, y + 14), dashed=True)
        canvas.text(490, y + 14, effect, anchor="start", size=12)
    return canvas.finish()


def resume_timeline(saved: Sequence[int], stopped: int, end: int) -> Diagram:
    """12 §5 and §6: a run with checkpoints, a stop, and the run that resumes from the newest one."""
    newest = max(step for step in saved if step <= stopped)
    lost = {0: "no step is", 1: "one step is"}.get(stopped - newest, f"{stopped - newest} steps are")
    canvas = Canvas(
        f"The run stops at step {stopped} and resumes from step {newest}, so {lost} computed twice.",
        f"Checkpoints at steps {', '.join(map(str, saved))}. The first run ends at step {stopped}. The second starts "
        f"at the checkpoint of step {newest} and goes on to step {end}.",
    )
    x = scale(0, end, 96, canvas.inner - 20)
    for name, y, first, last in (("first run", 44, 0, stopped), ("resumed", 128, newest, end)):
        canvas.text(84, y, name, anchor="end", bold=True, size=12)
        canvas.rect(x(first), y - 11, x(last) - x(first), 22, MODULE)
    canvas.rect(x(newest), 33, x(stopped) - x(newest), 22, CONTRAST)
    canvas.text(x(stopped) + 8, 44, f"stopped at {stopped}", anchor="start", size=12, colour=CONTRAST.text)
    for step in saved:
        canvas.dot(x(step), 44 if step <= stopped else 128, MARK, 6)
        canvas.text(x(step), 22 if step <= stopped else 106, f"save {step}", size=11)
    canvas.arrow((x(newest), 52), (x(newest), 114), colour=MARK, label="load", side=-1)
    canvas.path([(x(0), 160), (x(end), 160)], GREY, width=1)
    for step in (0, end):
        canvas.text(x(step), 174, str(step), size=11, colour=GREY)
    canvas.text(x(end / 2), 174, "step", size=12, colour=GREY)
    return canvas.finish()


def hellaswag(
    context: str, endings: Sequence[str], sums: Sequence[float], counts: Sequence[int], label: int
) -> Diagram:
    """11 §8: one context with four endings; the sum and the mean of the losses (nats) of each, and who wins."""
    means = [total / count for total, count in zip(sums, counts, strict=True)]
    by_sum, by_mean = min(range(len(sums)), key=sums.__getitem__), min(range(len(means)), key=means.__getitem__)
    verdict = {True: "right", False: "wrong"}
    canvas = Canvas(
        f"The sum picks ending {by_sum}, which is {verdict[by_sum == label]}. "
        f"The mean picks ending {by_mean}, which is {verdict[by_mean == label]}.",
        f"Context: {context} "
        + " ".join(
            f"Ending {i}: {ending} {counts[i]} tokens, sum {sums[i]:.2f}, mean {means[i]:.2f} nats."
            for i, ending in enumerate(endings)
        )
        + f" Ending {label} is true.",
    )
    lines = wrap(context, 172, 12)
    middle = 36 + 27 * len(endings)
    canvas.rect(0, middle - 20 - 9 * len(lines), 196, 40 + 18 * len(lines), MODULE, radius=8)
    for i, line in enumerate(lines):
        canvas.text(98, middle + 18 * (i - (len(lines) - 1) / 2), line, size=12)
    for name, x in (("tokens", 590), ("sum", 670), ("mean", 760)):
        canvas.text(x, 10, name, size=12, bold=True, colour=GREY)
    for i, ending in enumerate(endings):
        y, true = 36 + 54 * i, i == label
        canvas.arrow((196, middle), (216, middle), (216, y + 22), (238, y + 22))
        canvas.rect(240, y, 306, 44, CONTRAST if true else PLAIN, radius=8, strong=true)
        for j, line in enumerate(rows := wrap(ending, 286, 12)):
            canvas.text(252, y + 22 + 17 * (j - (len(rows) - 1) / 2), line, size=12, anchor="start")
        canvas.text(590, y + 22, str(counts[i]), mono=True)
        for x, value, chosen in ((670, sums[i], i == by_sum), (760, means[i], i == by_mean)):
            if chosen:
                canvas.rect(x - 34, y + 8, 68, 28, MARK, radius=6)
            canvas.text(x, y + 22, number(value), mono=True, bold=chosen)
    canvas.legend(240, 36 + 54 * len(endings) + 14, [("the true ending", CONTRAST), ("the smallest loss", MARK)])
    return canvas.finish()


def standard_error_of_difference(first: tuple[str, float, float], second: tuple[str, float, float]) -> Diagram:
    """11 §10: two results (name, value, standard error), and the distribution of their difference.

    The two are independent, so the squares of their standard errors add up.
    """
    gap, error = second[1] - first[1], math.hypot(first[2], second[2])
    canvas = Canvas(
        f"The difference is {number(gap, 4)} ± {error:.4f}: {abs(gap) / error:.1f} standard errors from 0.",
        f"{first[0]}: {first[1]:.4f} ± {first[2]:.4f}. {second[0]}: {second[1]:.4f} ± {second[2]:.4f}. The standard "
        f"error of the difference is the root of the sum of the squares.",
    )
    panels = (
        ([first, second], (MARK, CONTRAST), "two results"),
        ([("difference", gap, error)], (MARK,), "their difference"),
    )
    for i, (curves, colours, name) in enumerate(panels):
        spots = [value + side * 3.6 * one for _, value, one in curves for side in (-1, 1)] + (
            [-error / 2, error / 2] if i else []
        )
        low, high = min(spots), max(spots)
        x, peak = scale(low, high, 20 + 430 * i, 390 + 430 * i), max(1 / one for _, _, one in curves)
        y = scale(0, peak, 190, 66)
        canvas.text(x((low + high) / 2), 4, name, bold=True)
        near = abs(x(gap) - x(0)) if i else abs(x(second[1]) - x(first[1]))  # ticks this near would overlap
        ticks = [(value, number(value, 4)) for _, value, _ in curves] if near > 60 else []
        axes(canvas, x, y, x_range=(low, high), y_range=(0, peak), x_ticks=ticks)
        for j, ((label, value, one), colour) in enumerate(zip(curves, colours, strict=True)):
            steps = [value + one * (k / 12 - 3.5) for k in range(85)]
            curve = [(x(s), y(math.exp(-0.5 * ((s - value) / one) ** 2) / one)) for s in steps]
            canvas.path([(x(steps[0]), y(0)), *curve, (x(steps[-1]), y(0))], colour, fill=colour, width=2)
            text = f"{label}: {number(value, 4)} ± {one:.4f}"
            canvas.text(x((low + high) / 2), 26 + 18 * j, text, size=12, colour=colour.text)
    canvas.path([(x(0), 60), (x(0), 190)], INK, dashed=True)
    canvas.text(x(0), 204, "0", size=12, bold=True)
    return canvas.finish()


def bits_per_byte(values: Mapping[str, float]) -> Diagram:
    """11 §6: bits per byte of one text, from no knowledge down to the model. Smaller is better."""
    order = sorted(values.items(), key=lambda pair: -pair[1])
    best, worst = order[-1], order[0]
    canvas = Canvas(
        f"Of these, {best[0]} needs the fewest bits per byte: {best[1]:.2f}.",
        " ".join(f"{name}: {value:.3f} bits per byte." for name, value in order),
    )
    colours = [MARK if "model" in name else MODULE for name, _ in order]
    bars(
        canvas,
        order,
        width=560,
        label=180,
        longest=worst[1],
        colours=colours,
        texts=[number(value, 3) for _, value in order],
        step=30,
    )
    canvas.legend(180, 30 * len(order) + 16, [("compressor or count", MODULE), ("language model", MARK)])
    return canvas.finish()
