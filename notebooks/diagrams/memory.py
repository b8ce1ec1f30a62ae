"""Diagrams of notebook 13: what a layer keeps, the parts of a peak, recomputation, chunks of logits, ranks, GPUs."""

import math
from collections.abc import Mapping, Sequence

from .drawing import Canvas, Diagram
from .palette import (
    COMMUNICATION,
    CONTRAST,
    GRADIENT,
    GREY,
    KEY,
    MARK,
    MODULE,
    PLAIN,
    RESIDUAL,
    VALUE,
    Colour,
    text_width,
)
from .parts import axes, scale, short

GIB = 2**30
MLP = ("mlp", "GELU")  # how the names of its parts begin
# the parts of `gpt2.planning.memory.Memory`, as they are named and coloured here
PARTS: dict[str, tuple[str, Colour]] = {
    "weights": ("weights", MODULE),
    "gradients": ("gradients", GRADIENT),
    "optimizer": ("Adam’s averages", MARK),
    "copies": ("16-bit copies", CONTRAST),
    "activations": ("activations", RESIDUAL),
    "working": ("logits or one layer, at work", KEY),
    "buffers": ("buffers", COMMUNICATION),
}


def kept_in_layer(kept: Sequence[tuple[str, float]], channels: int) -> Diagram:
    """13 §2: the parts of a block in order, each with the bytes per token that it keeps for backward."""
    total = sum(size for _, size in kept)
    inside = sum(size for name, size in kept if name.startswith(MLP))
    canvas = Canvas(
        f"A layer keeps {total:,.0f} bytes per token for backward, and {inside / total:.0%} of them in the MLP.",
        f"C = {channels} channels. " + " ".join(f"{name}: {size:,.0f} bytes." for name, size in kept),
    )
    longest, gap = max(size for _, size in kept), 44
    canvas.text(196, 2, "what backward needs", size=11, bold=True, anchor="start", colour=GREY)
    canvas.text(canvas.inner, 2, "bytes per token", size=11, bold=True, anchor="end", colour=GREY)
    canvas.arrow((80, 0), (80, 20 + gap * len(kept)), colour=RESIDUAL, width=2)
    for i, (name, size) in enumerate(kept):
        y = 20 + i * gap
        canvas.box(10, y, 140, 32, name, mono=name not in ("GELU", "attention"))
        canvas.rect(196, y + 2, max(2, 500 * size / longest), 28, KEY if name.startswith(MLP) else VALUE)
        canvas.text(canvas.inner, y + 16, f"{size:,.0f}", anchor="end", mono=True, size=12)
    canvas.legend(196, 40 + gap * len(kept), [("attention and the norms", VALUE), ("MLP", KEY)])
    return canvas.finish()


def peak_parts(steps: Mapping[str, tuple[Mapping[str, float], float]]) -> Diagram:
    """13 §4: the planned parts of the peak of steps, as bars, with the counted peak as a line.

    `steps`: name → the parts of a `Memory` in bytes, and the bytes that were counted.
    """
    ratios = [sum(parts.values()) / counted for parts, counted in steps.values()]
    canvas = Canvas(
        f"The plan is {min(ratios) - 1:.1%} to {max(ratios) - 1:.1%} above the peak that was counted.",
        " ".join(
            f"{name}: planned {sum(parts.values()) / GIB:.2f} GiB, counted {counted / GIB:.2f} GiB."
            for name, (parts, counted) in steps.items()
        ),
    )
    left, wide = 176, 500
    for i, (name, (parts, counted)) in enumerate(steps.items()):
        y, planned, x = 22 + i * 62, sum(parts.values()), float(left)
        scale = wide / max(planned, counted)
        canvas.text(left - 12, y + 17, name, anchor="end", size=12)
        for part, size in parts.items():
            if size:
                canvas.rect(x, y, size * scale, 34, PARTS[part][1], radius=1)
                x += size * scale
        canvas.path([(left + counted * scale, y - 6), (left + counted * scale, y + 40)], GREY, width=2)
        canvas.text(canvas.inner - 92, y + 17, f"{planned / GIB:.2f}", mono=True, anchor="end")
        canvas.text(canvas.inner, y + 17, f"{counted / GIB:.2f}", mono=True, anchor="end")
    canvas.text(canvas.inner - 92, 0, "planned", size=11, bold=True, anchor="end", colour=GREY)
    canvas.text(canvas.inner, 0, "counted, GiB", size=11, bold=True, anchor="end", colour=GREY)
    below = 22 + 62 * len(steps)
    used = [name for name in PARTS if any(parts.get(name) for parts, _ in steps.values())]
    half = (len(used) + 1) // 2
    for row, names in enumerate((used[:half], used[half:])):
        canvas.legend(left, below + 8 + 22 * row, [PARTS[name] for name in names])
    canvas.text(left, below + 56, "line: counted; every bar is as long as its own plan", size=12, anchor="start")
    return canvas.finish()


def recompute_levels(
    kept: Sequence[tuple[str, float]], levels: Mapping[str, tuple[Sequence[str], float, float]]
) -> Diagram:
    """13 §5: what a layer keeps at each level of recomputation, in the order of its parts.

    `kept`: part → bytes per token. `levels`: level → the parts that are computed again, the bytes per token that are
    kept, and the extra work as a share of a step.
    """
    first, last = next(iter(levels.values())), list(levels.values())[-1]
    canvas = Canvas(
        f"The last level keeps {last[1] / first[1]:.0%} of the activations of the first, for {last[2]:.0%} more work.",
        " ".join(
            f"{level}: {size:,.0f} bytes per token and layer, {work:.0%} more work."
            for level, (_, size, work) in levels.items()
        ),
    )
    left, wide, total = 64, 560, sum(size for _, size in kept)
    canvas.text(canvas.inner - 90, 0, "bytes per token", size=11, bold=True, anchor="end", colour=GREY)
    canvas.text(canvas.inner, 0, "more work", size=11, bold=True, anchor="end", colour=GREY)
    for i, (level, (again, size, work)) in enumerate(levels.items()):
        y, x = 20 + i * 52, float(left)
        canvas.text(left - 10, y + 17, level, anchor="end", mono=True, size=12)
        for name, part in kept:
            long = wide * part / total
            gone = name in again
            canvas.rect(x, y, long - 2, 34, PLAIN if gone else RESIDUAL, dashed=gone, radius=1)
            if i == 0 and long > 40:
                canvas.text(x + long / 2 - 1, y + 17, name, size=9.5, mono=True)
            x += long
        canvas.text(canvas.inner - 90, y + 17, f"{size:,.0f}", anchor="end", mono=True)
        canvas.text(canvas.inner, y + 17, f"{work:.0%}", anchor="end", mono=True)
    canvas.legend(left, 36 + 52 * len(levels), [("kept by forward", RESIDUAL), ("computed again in backward", PLAIN)])
    return canvas.finish()


def logit_chunks(positions: int, vocabulary: int, channels: int, rows: int, value_bytes: int = 4) -> Diagram:
    """13 §6: the logits of all positions beside those of one chunk."""
    whole, chunk = (value_bytes * n * vocabulary for n in (positions, rows))
    canvas = Canvas(
        f"A chunk of {rows:,} positions has {short(chunk, 'B')} of logits, and all of them together have "
        f"{short(whole, 'B')}.",
        f"x has {positions:,} × {channels:,} numbers, the token embedding {vocabulary:,} × {channels:,}, and the "
        f"logits {positions:,} × {vocabulary:,}. One chunk of rows exists at a time.",
    )
    tall, band = 230, max(14.0, 230 * rows / positions)
    top = 70 + (tall - band) * 0.35
    canvas.rect(40, 70, 60, tall, RESIDUAL)
    canvas.text(70, 54, "x", mono=True, bold=True)
    canvas.text(70, 316, f"{positions:,} × {channels:,}", size=11, colour=GREY)
    canvas.rect(250, 4, 420, 40, MODULE)
    canvas.text(460, 17, "token embedding, transposed", bold=True, size=12)
    canvas.text(460, 33, f"{channels:,} × {vocabulary:,}", size=11, colour=GREY)
    canvas.rect(250, 70, 420, tall, PLAIN, dashed=True)
    canvas.rect(250, top, 420, band, KEY)
    canvas.rect(40, top, 60, band, MARK)
    canvas.arrow((100, top + band / 2), (248, top + band / 2))
    canvas.text(174, top + band / 2 - 14, "one product", size=11, colour=GREY)
    canvas.text(460, 316, f"logits, {positions:,} × {vocabulary:,}", size=11, colour=GREY)
    canvas.text(684, top + band / 2, f"exists: {short(chunk, 'B')}", size=12, bold=True, anchor="start")
    canvas.text(684, 88, f"all: {short(whole, 'B')}", size=12, anchor="start", colour=GREY)
    return canvas.finish()


def rank_shares(stages: Sequence[Sequence[Mapping[str, float]]]) -> Diagram:
    """13 §7: what every rank holds between two micro-steps in ZeRO stages 0 to 3; `stages[stage][rank]` in bytes."""
    held = [sum(ranks[0].values()) for ranks in stages]
    canvas = Canvas(
        f"Between two micro-steps, each rank holds {held[0] / 1e6:.1f} MB in stage 0, and {held[-1] / 1e6:.1f} MB in "
        f"stage {len(stages) - 1}.",
        " ".join(
            f"Stage {stage}, rank {rank}: "
            + ", ".join(f"{name} {size / 1e6:.1f} MB" for name, size in one.items())
            + "."
            for stage, ranks in enumerate(stages)
            for rank, one in enumerate(ranks)
        ),
    )
    colours = {"weights": MODULE, "gradients": GRADIENT, "averages": MARK, "more": COMMUNICATION}
    gap, tall = canvas.inner / len(stages), 220
    unit = tall / max(held)
    for stage, ranks in enumerate(stages):
        view, wide = canvas.at(stage * gap, 0), (gap - 36) / len(ranks)
        view.text((gap - 24) / 2, 4, f"stage {stage}", bold=True)
        for rank, one in enumerate(ranks):
            x, bottom = 6 + rank * wide, 46.0 + tall
            view.text(x + wide / 2 - 3, bottom + 14, f"rank {rank}", size=11, colour=GREY)
            for name, size in one.items():
                high = size * unit
                bottom -= high
                view.rect(x, bottom, wide - 6, high - 2, colours[name], radius=1)
                if high > 16:
                    view.text(x + wide / 2 - 3, bottom + high / 2 - 1, f"{size / 1e6:.1f}", size=11, mono=True)
            view.text(x + wide / 2 - 3, bottom - 10, f"{sum(one.values()) / 1e6:.1f}", size=12, bold=True)
    names = {"averages": "Adam’s averages", "more": "gathered weights, or buckets"}
    canvas.legend(0, 310, [(names.get(name, name), colour) for name, colour in colours.items()])
    canvas.text(canvas.inner, 310, "MB", anchor="end", size=12, colour=GREY)
    return canvas.finish()


def what_fits(models: Mapping[str, Sequence[tuple[int, float, str]]], sizes: Sequence[int]) -> Diagram:
    """13 §8: models × GPUs. `models`: name → per GPU size the micro-batch (0: none), the bytes, and what would help."""
    rows = list(models.items())
    fitting = sum(1 for _, cells in rows for size, _, _ in cells if size)
    canvas = Canvas(
        f"Predicted: {fitting} of the {len(rows) * len(sizes)} pairs of a model and a GPU fit without recomputation.",
        " ".join(
            f"{name} on {gib} GiB: " + (f"micro-batch {size}, {used / GIB:.1f} GiB." if size else f"{other}.")
            for name, cells in rows
            for gib, (size, used, other) in zip(sizes, cells, strict=True)
        ),
    )
    left, top = 74, 30
    wide, high = (canvas.inner - left) / len(sizes), 58
    for j, gib in enumerate(sizes):
        canvas.text(left + (j + 0.5) * wide - 4, 8, f"{gib} GiB", bold=True)
    for i, (name, cells) in enumerate(rows):
        canvas.text(left - 12, top + (i + 0.5) * high - 4, name, anchor="end", mono=True, bold=True)
        for j, (size, used, other) in enumerate(cells):
            x, y, share = left + j * wide, top + i * high, min(1, used / GIB / sizes[j])
            middle = x + (wide - 8) / 2
            canvas.rect(x, y, wide - 8, high - 8, PLAIN, dashed=not size)
            if size:
                canvas.rect(x, y, (wide - 8) * share, high - 8, RESIDUAL, border=False)
                canvas.text(middle, y + 16, f"micro-batch {size}", bold=True)
                canvas.text(middle, y + 35, f"{used / GIB:.1f} GiB", size=11, mono=True)
            else:
                canvas.text(middle, y + 16, "does not fit", size=12, colour=GREY)
                canvas.text(middle, y + 35, other, size=11, mono=True)
    below = top + len(rows) * high
    canvas.legend(left, below + 12, [("the part of the GPU that is filled", RESIDUAL)])
    canvas.text(canvas.inner, below + 12, "in small type: what makes it fit", size=12, anchor="end", colour=GREY)
    return canvas.finish()


def step_curve(curve: Sequence[float], phases: Sequence[tuple[str, int]], predicted: float) -> Diagram:
    """13 §3: the bytes that are alive after every operation of a step, with its phases.

    `curve`: bytes after each operation. `phases`: names, and the number of operations at the end of each.
    `predicted`: the peak by hand.
    """
    peak = max(curve)
    where = next(name for name, end in phases if curve.index(peak) < end)
    canvas = Canvas(
        f"The peak of {peak / 1e6:.1f} MB lies in {where}, near its start, and the count by hand is "
        f"{predicted / 1e6:.1f} MB.",
        f"Live bytes of {len(curve):,} operations, in phases {', '.join(name for name, _ in phases)}. Each backward "
        "frees more than it makes.",
    )
    colours = {"forward": MODULE, "backward": GRADIENT, "AdamW": MARK}
    x, y = scale(0, len(curve), 56, canvas.inner - 8), scale(0, 1.06 * peak, 250, 30)
    start = 0
    for name, end in phases:
        canvas.rect(x(start), 30, x(end) - x(start), 220, colours[name], border=False, radius=0)
        if x(end) - x(start) > text_width(name, 11):
            canvas.text((x(start) + x(end)) / 2, 18, name, size=11, colour=GREY)
        start = end
    top = 10 ** math.floor(math.log10(peak))
    ticks = [i * top / 2 for i in range(int(2 * peak / top) + 1)]
    axes(
        canvas,
        x,
        y,
        x_range=(0, len(curve)),
        y_range=(0, 1.06 * peak),
        x_ticks=[(0, "0"), (len(curve), f"{len(curve):,}")],
        y_ticks=[(one, f"{one / 1e6:g}") for one in ticks],
        x_label="operation of PyTorch",
        y_label="MB",
    )
    few = max(1, len(curve) // 700)
    kept = [max(curve[i : i + few]) for i in range(0, len(curve), few)]
    canvas.path([(x(min(len(curve), i * few)), y(one)) for i, one in enumerate(kept)], MARK, width=1.4)
    canvas.path([(x(0), y(predicted)), (x(len(curve)), y(predicted))], KEY, dashed=True)
    canvas.legend(56, 296, [("alive", MARK), ("peak by hand", KEY)])
    return canvas.finish()
