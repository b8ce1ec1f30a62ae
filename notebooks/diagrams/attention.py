"""Diagrams of notebook 02, and of attention in 07: queries, keys, values, masks, heads, and tiles."""

import math
from collections.abc import Sequence
from typing import Any

from .drawing import Canvas, Diagram
from .palette import CONTRAST, GREY, KEY, MARK, MODULE, PLAIN, QUERY, RESIDUAL, VALUE, Colour, number, shown
from .parts import cells, softmax

Rows = Sequence[Sequence[float]]


def one_query(words: Sequence[str], query: Sequence[float], keys: Rows, values: Rows) -> Diagram:
    """02 §5: one query of D channels against all keys (T, D) that it sees; the weights, and the sum of the values."""
    D = len(query)
    scores = [sum(a * b for a, b in zip(query, key, strict=True)) / math.sqrt(D) for key in keys]
    weights = softmax(scores)
    output = [sum(w * value[d] for w, value in zip(weights, values, strict=True)) for d in range(D)]
    most = max(range(len(words)), key=weights.__getitem__)
    canvas = Canvas(
        f"“{shown(words[-1])}” looks mostly at “{shown(words[most])}”, with weight {weights[most]:.2f}.",
        "The query of the last token meets the key of every token. "
        + " ".join(
            f"{shown(w)}: score {s:.2f}, weight {p:.2f}." for w, s, p in zip(words, scores, weights, strict=True)
        )
        + f" The sum of the weighted values is ({', '.join(f'{one:.2f}' for one in output)}).",
    )
    if D > 6:
        raise ValueError(f"a query of {D} channels is too wide to be drawn; take at most 6")
    w, row, left = min(50.0, 218 / D), 32, 96
    largest = max(abs(one) for rows in (keys, values, [query]) for one_row in rows for one in one_row)
    look: dict[str, Any] = {"size": (w, 28), "font": min(12, w / 3.8), "strongest": largest}
    columns = {"key": left, "score": left + D * w + 50, "weight": left + D * w + 130, "value": left + D * w + 300}
    canvas.text(0, 12, "query", anchor="start", bold=True, size=12, colour=QUERY.text)
    canvas.text(columns["key"] + D * w + 14, 12, f"of “{shown(words[-1])}”", anchor="start", size=12, colour=QUERY.text)
    cells(canvas, columns["key"], -2, [query], QUERY, **look)
    middles = (columns["key"] + D * w / 2, columns["score"] + 30, columns["weight"] + 66, columns["value"] + D * w / 2)
    names = ("keys", "q · k / √D", "softmax", "values")
    for x, name, colour in zip(middles, names, (KEY, QUERY, MARK, VALUE), strict=True):
        canvas.text(x, 58, name, bold=True, size=12, colour=colour.text)
    for i, word in enumerate(words):
        view, last = canvas.at(0, 76 + i * row), i == len(words) - 1
        view.box(0, 0, 82, 27, shown(word), MARK if last else MODULE, bold=False, mono=True, size=12)
        cells(view, columns["key"], 0, [keys[i]], KEY, **look)
        view.arrow((columns["key"] + D * w + 4, 13), (columns["score"] - 2, 13), colour=QUERY)
        view.text(columns["score"] + 30, 13, number(scores[i]), mono=True)
        view.rect(columns["weight"], 4, max(2.0, 80 * weights[i]), 19, MARK)
        view.text(columns["weight"] + 101, 13, number(weights[i]), mono=True, bold=i == most)
        view.text(columns["weight"] + 146, 13, "×")
        cells(view, columns["value"], 0, [values[i]], VALUE, **look)
    below = 76 + len(words) * row + 8
    canvas.path([(columns["score"], below), (columns["value"] + D * w, below)], GREY, width=1)
    canvas.text(columns["score"] + 30, below + 20, "sum", size=12, colour=GREY)
    canvas.text(columns["weight"] + 101, below + 20, number(sum(weights)), mono=True)
    cells(canvas, columns["value"], below + 7, [output], VALUE, **look)
    canvas.text(columns["value"] + D * w / 2, below + 48, "output at this position", size=12, colour=VALUE.text)
    return canvas.finish()


def attention_matrix(words: Sequence[str], weights: Rows, name: str = "a head") -> Diagram:
    """02 §8: the weights (T, T) of one head. Row t shows where position t looks."""
    T, labels = len(words), [shown(word) for word in words]
    best = [max(range(t + 1), key=weights[t].__getitem__) for t in range(T)]
    before = sum(best[t] == t - 1 for t in range(1, T))
    canvas = Canvas(
        f"In {name}, {before} of {T - 1} tokens look most at the token just before them.",
        "Every row adds up to 1, and nothing stands right of the diagonal. "
        + " ".join(f"{labels[t]} looks most at {labels[best[t]]}, weight {weights[t][best[t]]:.2f}." for t in range(T)),
    )
    w = min(64.0, 640 / T)
    seen = [[weights[t][s] if s <= t else None for s in range(T)] for t in range(T)]
    canvas.text(150 + T * w / 2, 6, "token that is looked at: its key", size=12, bold=True, colour=KEY.text)
    canvas.text(142, 22, "token that looks:", size=12, bold=True, anchor="end", colour=QUERY.text)
    canvas.text(142, 40, "its query", size=12, bold=True, anchor="end", colour=QUERY.text)
    canvas = canvas.at(150, 56)
    font = min(12.0, w / 4.2)
    cells(canvas, 0, 0, seen, QUERY, size=(w, 32), strongest=1.0, font=font, row_labels=labels)
    for t, label in enumerate(labels):
        canvas.text((t + 0.5) * w - 1, -14, label, size=min(12, (w - 4) / (0.61 * len(label))), mono=True)
        canvas.rect(best[t] * w, t * 32, w - 2, 30, Colour(MARK.line, "none", ""), strong=True)
    canvas.text(T * w * 0.72, 1.6 * 32, "the future, masked", size=13, colour=GREY)
    return canvas.finish()


def masked_softmax(words: Sequence[str], scores: Rows) -> Diagram:
    """02 §4: scores (T, T), the same with −∞ for the future, and the weights after the softmax."""
    T = len(words)
    masked = [[scores[t][s] if s <= t else float("-inf") for s in range(T)] for t in range(T)]
    weights = [softmax(row) for row in masked]
    canvas = Canvas(
        "The mask writes −∞ over the future before the softmax, so every row still adds up to 1.",
        f"Three grids of {T} × {T}: the scores, the scores with −∞ above the diagonal, and the weights, whose "
        f"upper half is 0.",
    )
    w, largest = min(48.0, 196 / T), max(abs(one) for row in scores for one in row)
    look: dict[str, Any] = {"size": (w, 32), "font": min(12, w / 4)}
    canvas = canvas.at(66, 46)
    views = [canvas.at(i * 258, 0) for i in range(3)]
    for view, name in zip(views, ("scores q · k / √D", "masked", "weights = softmax"), strict=True):
        view.text(T * w / 2, -32, name, bold=True)
    cells(views[0], 0, 0, scores, QUERY, strongest=largest, row_labels=[shown(word) for word in words], **look)
    for t in range(T):
        cells(views[1], 0, t * 32, [masked[t][: t + 1]], QUERY, strongest=largest, **look)
        cells(views[1], (t + 1) * w, t * 32, [masked[t][t + 1 :]], PLAIN, **look)
        total = f"Σ {number(sum(weights[t]))}"
        views[2].text(T * w + 6, t * 32 + 15, total, anchor="start", size=11, mono=True)
    cells(views[2], 0, 0, weights, MARK, strongest=1.0, **look)
    for view, label in zip(views, ("mask", "softmax"), strict=False):
        view.arrow((T * w + 10, T * 16), (248, T * 16), label=label)
    return canvas.finish()


def view_permute(T: int = 3, H: int = 2, D: int = 2) -> Diagram:
    """02 §6: how (T, C) becomes (H, T, D), and what happens if one calls `view` alone. The numbers are addresses."""
    C = H * D
    canvas = Canvas(
        "First, view groups the channels. Then permute moves the heads to the front. view alone mixes them.",
        f"A grid of {T} positions with {C} channels, numbered in memory order. view groups each row by head, "
        f"permute collects the rows of each head. view(H, T, D) alone gives head 0 the first {T * D} numbers, "
        f"which belong to several positions.",
    )
    heads, w, h = (MARK, CONTRAST, MODULE, PLAIN), min(36.0, 150 / C), 30
    names = ("x  (T, C)", "view  (T, H, D)", "permute  (H, T, D)", "view alone  (H, T, D)")
    starts = [0.0, C * w + 70, 2 * C * w + 70 + (H - 1) * 12 + 84]
    starts.append(canvas.inner - D * w - 62)
    canvas = canvas.at(26, 30)
    for i, name in enumerate(names):
        wide = (C * w, C * w + (H - 1) * 12, D * w, D * w)[i]
        canvas.text(starts[i] + wide / 2 - 1, -22, name, bold=True, size=12)
    for t in range(T):
        canvas.text(-10, (t + 0.5) * h, f"t{t}", size=11, anchor="end", colour=GREY)
        for c in range(C):
            head, d, text = c // D, c % D, str(t * C + c)
            places = [(starts[0] + c * w, t * h), (starts[1] + c * w + head * 12, t * h)]
            places.append((starts[2] + d * w, head * (T * h + 14) + t * h))
            for x, y in places:
                cells(canvas, x, y, [[text]], heads[head % 4], size=(w, h))
    for address in range(T * C):
        block, row, d = address // (T * D), address // D % T, address % D
        owner = heads[address % C // D % 4]
        cells(canvas, starts[3] + d * w, block * (T * h + 14) + row * h, [[str(address)]], owner, size=(w, h))
    middle = T * h / 2
    canvas.arrow((starts[0] + C * w + 6, middle), (starts[1] - 8, middle), label="view")
    canvas.arrow((starts[1] + C * w + (H - 1) * 12 + 6, middle), (starts[2] - 34, middle), label="permute")
    for head in range(H):
        for start in starts[2:]:
            canvas.text(start - 8, head * (T * h + 14) + middle, f"h{head}", size=11, anchor="end", colour=GREY)
    canvas.text(starts[3] + D * w / 2, H * (T * h + 14) + 6, "the heads are mixed", size=12, bold=True)
    return canvas.finish()


def multi_head(B: str | int = "B", T: str | int = "T", C: int = 768, H: int = 12) -> Diagram:
    """02 §6 and §7: the attention module, with the shape on every arrow."""
    D = C // H
    canvas = Canvas(
        f"{H} heads of {D} channels work side by side, and together they are {C} channels wide.",
        f"x of shape ({B}, {T}, {C}) goes through c_attn and becomes queries, keys and values of shape "
        f"({B}, {H}, {T}, {D}). Each head computes its weights and mixes its values. c_proj mixes the heads.",
    )
    canvas.arrow((0, 96), (108, 96), label=f"({B}, {T}, {C})", colour=RESIDUAL, width=3)
    canvas.box(110, 68, 88, 56, "c_attn", note=f"{C} → {3 * C}")
    for name, colour, y in (("q", QUERY, 28), ("k", KEY, 96), ("v", VALUE, 164)):
        canvas.arrow((198, 96), (222, 96), (222, y), (260, y), colour=colour)
        canvas.box(262, y - 20, 116, 40, name, colour, note=f"({B}, {H}, {T}, {D})")
    for back in (2, 1, 0):
        canvas.rect(452 + back * 7, -8 + back * 7, 134, 190, PLAIN if back else MODULE, radius=8)
    canvas.text(519, 10, f"head 0 … {H - 1}", bold=True, size=12)
    canvas.box(464, 34, 110, 34, "scores", QUERY, size=12, note=f"({T}, {T})")
    canvas.box(464, 84, 110, 34, "mask, softmax", MARK, size=11.5, bold=False)
    canvas.box(464, 134, 110, 34, "weights · v", VALUE, size=12)
    canvas.arrow((519, 68), (519, 83))
    canvas.arrow((519, 118), (519, 133))
    canvas.arrow((378, 28), (420, 28), (420, 46), (463, 46), colour=QUERY)
    canvas.arrow((378, 96), (420, 96), (420, 58), (463, 58), colour=KEY)
    canvas.arrow((378, 164), (420, 164), (420, 151), (463, 151), colour=VALUE)
    canvas.arrow((601, 96), (726, 96), label=f"({B}, {T}, {C})")
    canvas.text(663, 112, "heads side by side", size=11, colour=GREY)
    canvas.box(728, 68, 76, 56, "c_proj", note=f"{C} → {C}")
    canvas.arrow((804, 96), (832, 96), colour=RESIDUAL, width=3)
    return canvas.finish()


def tile_steps(
    scores: Sequence[float], values: Sequence[float], tile: int
) -> list[tuple[int, Sequence[float], float, float, float, float]]:
    """After each tile: its start, its scores, the factor that rescales the sums, the maximum, and the two sums."""
    steps, m, total, out = [], float("-inf"), 0.0, 0.0
    for start in range(0, len(scores), tile):
        part, theirs = scores[start : start + tile], values[start : start + tile]
        new = max(m, *part)
        factor, powers = math.exp(m - new), [math.exp(s - new) for s in part]
        total = factor * total + sum(powers)
        out = factor * out + sum(p * v for p, v in zip(powers, theirs, strict=True))
        m = new
        steps.append((start, part, factor, m, total, out))
    return steps


def tiled_softmax(scores: Sequence[float], values: Sequence[float], tile: int = 3) -> Diagram:
    """07: FlashAttention on one row. Only one tile of scores is in fast memory, and the sums so far are rescaled."""
    steps = tile_steps(scores, values, tile)
    *_, total, out = steps[-1]
    exact = sum(w * v for w, v in zip(softmax(scores), values, strict=True))
    canvas = Canvas(
        f"The softmax can be computed tile by tile: both ways give {number(out / total, 3)}.",
        f"{len(steps)} tiles of {tile} scores. After each tile, the largest score m, the sum of exponentials and the "
        f"weighted sum of values are updated. At the end their ratio is {out / total:.3f}; the whole softmax at once "
        f"gives {exact:.3f}.",
    )
    w, gap = 46, (canvas.inner + 26) / len(steps)
    for i, (start, part, factor, m, total, out) in enumerate(steps):
        view = canvas.at(i * gap, 0)
        view.rect(0, 0, gap - 26, 196, MODULE, radius=8)
        view.text((gap - 26) / 2, 16, f"tile {i + 1} in fast memory", bold=True, size=12)
        left = (gap - 26 - len(part) * w) / 2
        cells(view, left, 34, [part], QUERY, size=(w, 28))
        cells(view, left, 66, [values[start : start + tile]], VALUE, size=(w, 28))
        rows = (
            f"m = {number(m)}",
            f"rescale × {number(factor)}" if i else "nothing to rescale",
            f"sum of exp(s − m): {number(total)}",
            f"the same times v: {number(out)}",
        )
        for j, line in enumerate(rows):
            view.text((gap - 26) / 2, 112 + 22 * j, line, mono=True, size=12)
        if i + 1 < len(steps):
            view.arrow((gap - 26, 98), (gap - 1, 98))
    canvas.legend(0, 218, [("scores s", QUERY), ("values v", VALUE)])
    canvas.text(
        canvas.inner,
        218,
        f"output = {number(out)} / {number(total)} = {number(out / total, 3)}",
        mono=True,
        bold=True,
        anchor="end",
    )
    return canvas.finish()


# name, capacity, bandwidth: of an A100 40 GB, from figure 1 of FlashAttention (Dao et al., arXiv 2205.14135)
A100_LEVELS = (
    ("SRAM on the chip", "20 MB", "19 TB/s"),
    ("HBM, the GPU’s memory", "40 GB", "1.5 TB/s"),
    ("the computer’s memory", "> 1 TB", "12.8 GB/s"),
)


def memory_hierarchy(
    levels: Sequence[tuple[str, str, str]] = A100_LEVELS, source: str = "A100, Dao et al. 2022"
) -> Diagram:
    """07: the levels of a GPU's memory, each with its capacity and its bandwidth, from fast to large."""
    canvas = Canvas(
        "The faster a memory is, the smaller it is, so a fused kernel keeps its work on the chip.",
        " ".join(f"{name}: {size}, {speed}." for name, size, speed in levels) + f" Source: {source}.",
    )
    middle, step = 320, 66
    for i, (name, size, speed) in enumerate(levels):
        half = 120 + 100 * i
        canvas.box(middle - half, i * step, 2 * half, 44, name, (MARK, MODULE, PLAIN)[min(i, 2)], note=size)
        canvas.text(740, i * step + 22, speed, mono=True, bold=True)
        if i:
            canvas.arrow((middle - 14, i * step - 22), (middle - 14, i * step), colour=MODULE)
            canvas.arrow((middle + 14, i * step), (middle + 14, i * step - 22), colour=MODULE)
    canvas.text(canvas.inner, len(levels) * step + 4, source, size=11, anchor="end", colour=GREY)
    return canvas.finish()
