"""Diagrams of notebook 15: rotary positions, YaRN, shared heads, windows, sinks, experts, and MXFP4."""

import math
from collections.abc import Mapping, Sequence

from .drawing import Canvas, Diagram
from .palette import CONTRAST, GREY, KEY, MARK, MODULE, PLAIN, QUERY, VALUE, number, shown
from .parts import axes, bars, cells, scale, short, softmax

Rows = Sequence[Sequence[float]]


def _turned(vector: Sequence[float], angle: float) -> tuple[float, float]:
    """A pair of channels, rotated by an angle in radians."""
    a, b = vector
    return a * math.cos(angle) - b * math.sin(angle), b * math.cos(angle) + a * math.sin(angle)


def rotary(
    query: Sequence[float], key: Sequence[float], places: Sequence[tuple[int, int]], frequency: float
) -> Diagram:
    """15 §2: one pair of channels of a query and of a key as arrows, at several positions; the score of each."""
    turned = [(_turned(query, m * frequency), _turned(key, n * frequency)) for m, n in places]
    scores = [q[0] * k[0] + q[1] * k[1] for q, k in turned]
    distance = places[0][0] - places[0][1]
    canvas = Canvas(
        f"A distance of {distance} gives the score {number(scores[0])}, wherever the two positions are.",
        f"Each panel shows a pair of channels that turns by {frequency:g} radians per position. "
        + " ".join(f"Query at {m}, key at {n}: score {s:.2f}." for (m, n), s in zip(places, scores, strict=True)),
    )
    wide, radius = canvas.inner / len(places), 74
    longest = max(math.hypot(*query), math.hypot(*key))
    for i, ((m, n), (q, k), score) in enumerate(zip(places, turned, scores, strict=True)):
        view = canvas.at(i * wide + wide / 2, 96)
        view.text(0, -86, f"query at {m}, key at {n}", size=12, bold=True)
        ring = [(radius * math.cos(a * math.pi / 24), radius * math.sin(a * math.pi / 24)) for a in range(49)]
        view.path(ring, PLAIN, width=1)
        view.path([(-radius, 0), (radius, 0)], PLAIN, width=0.7)
        view.path([(0, -radius), (0, radius)], PLAIN, width=0.7)
        for (x, y), colour in ((q, QUERY), (k, KEY)):
            view.arrow((0, 0), (radius * x / longest, -radius * y / longest), colour=colour, width=2.4)
        view.text(0, 92, f"distance {m - n}", size=12, colour=GREY)
        view.text(0, 112, f"score {number(score)}", mono=True, bold=True)
    canvas.legend(0, 232, [("query", QUERY), ("key", KEY)])
    return canvas.finish()


def yarn(turns: Sequence[float], slowed: Sequence[float], factor: float, context: int) -> Diagram:
    """15 §2: how often each pair turns in the old context, before and after YaRN."""
    after = [one / factor * s + one * (1 - s) for one, s in zip(turns, slowed, strict=True)]
    kept, whole = sum(s == 0 for s in slowed), sum(s == 1 for s in slowed)
    canvas = Canvas(
        f"YaRN keeps {kept} fast pairs, slows {whole} pairs {factor:g} times, and blends {len(turns) - kept - whole}.",
        f"Turns of each of {len(turns)} pairs in {context:,} positions. Pair 0 turns {turns[0]:.0f} times, the last "
        f"pair {turns[-1]:.3f} times before and {after[-1]:.4f} times after.",
    )
    low, high = 10 ** math.floor(math.log10(min(after))), 10 ** math.ceil(math.log10(max(turns)))
    x, y = scale(-0.5, len(turns) - 0.5, 60, canvas.inner), scale(low, high, 250, 30, log=True)
    edges = [0, kept, len(turns) - whole, len(turns)]
    for a, b, colour in zip(edges, edges[1:], (VALUE, PLAIN, KEY), strict=False):
        if b > a:
            canvas.rect(x(a - 0.5), 30, x(b - 0.5) - x(a - 0.5), 220, colour, border=False, radius=0)
    ticks = [10**e for e in range(round(math.log10(low)), round(math.log10(high)) + 1)]
    axes(
        canvas,
        x,
        y,
        x_range=(-0.5, len(turns) - 0.5),
        y_range=(low, high),
        x_ticks=[(float(i), str(i)) for i in range(0, len(turns), max(1, len(turns) // 8))],
        y_ticks=[(float(one), f"{one:g}") for one in ticks],
        x_label="pair of channels",
        y_label=f"turns in {context:,} positions",
    )
    for limit in (32, 1):
        canvas.path([(x(-0.5), y(limit)), (x(len(turns) - 0.5), y(limit))], MARK, dashed=True)
        canvas.text(canvas.inner - 4, y(limit) - 9, f"{limit} turn{'s' * (limit > 1)}", size=11, anchor="end")
    for i, (old, new) in enumerate(zip(turns, after, strict=True)):
        if new < old:
            canvas.arrow((x(i), y(old)), (x(i), y(new)), colour=MODULE, width=1)
        canvas.dot(x(i), y(old), QUERY, 4)
    names = [("kept", VALUE), ("blended", PLAIN), (f"slowed {factor:g} times", KEY), ("before YaRN", QUERY)]
    canvas.legend(300, 8, names)
    return canvas.finish()


def shared_heads(H: int, choices: Sequence[int], bytes_each: Sequence[float]) -> Diagram:
    """15 §3: which head of keys and values each query head reads, and the bytes that one token adds to the cache."""
    canvas = Canvas(
        f"With {choices[1]} heads of keys and values for {H} query heads, the cache shrinks to 1/{H // choices[1]}.",
        " ".join(
            f"{K} head{'s' * (K > 1)} of keys and values: {short(one, 'B')} per token."
            for K, one in zip(choices, bytes_each, strict=True)
        ),
    )
    wide = (canvas.inner + 30) / len(choices)
    w = (wide - 30) / H
    names = {H: "multi-head attention", 1: "multi-query attention"}
    for i, (K, one) in enumerate(zip(choices, bytes_each, strict=True)):
        view, group = canvas.at(i * wide, 0), H // K
        view.text((wide - 30) / 2, 6, names.get(K, "grouped-query attention"), bold=True, size=12)
        for h in range(H):
            view.box(h * w, 24, w - 3, 26, f"q{h}", QUERY, size=11, bold=False)
            view.path([((h + 0.5) * w - 1.5, 50), ((h // group + 0.5) * group * w - 1.5, 84)], MODULE, width=1.2)
        for head in range(K):
            view.box(head * group * w, 84, group * w - 3, 26, f"k{head}" if group == 1 else f"k{head}, v{head}", KEY)
        long = max(2.0, (wide - 30 - 66) * one / max(bytes_each))
        view.rect(0, 124, long, 18, VALUE)
        view.text(long + 6, 133, short(one, "B"), size=12, mono=True, anchor="start")
    canvas.text(0, 160, "cache per token, all layers", size=11, anchor="start", colour=GREY)
    return canvas.finish()


def window_reach(reaches: Sequence[Rows], window: int) -> Diagram:
    """15 §4: which positions reach which, after one layer, two layers, and so on; (T, T) of 0 and 1 each."""
    L, T = len(reaches), len(reaches[0])
    back = [T - 1 - list(reach[-1]).index(next(one for one in reach[-1] if one)) for reach in reaches]
    canvas = Canvas(
        f"A window of {window} reaches {back[0]} positions back in one layer, and {back[-1]} in {L} layers.",
        f"{L} grids of {T} × {T} positions. "
        + " ".join(f"After layer {i + 1} the last position depends on {b} earlier ones." for i, b in enumerate(back)),
    )
    wide = (canvas.inner - 60 + 34) / L
    w = (wide - 34) / T
    for i, reach in enumerate(reaches):
        view = canvas.at(60 + i * wide, 26)
        view.text(T * w / 2, -18, "one layer" if i == 0 else f"{i + 1} layers", bold=True, size=12)
        for seen, colour in ((0, PLAIN), (1, QUERY)):
            these = [(t, s) for t in range(T) for s in range(T) if bool(reach[t][s]) == bool(seen)]
            view.tiles([(s * w, t * w, w - 2, w - 2) for t, s in these], colour)
        view.tiles([(s * w, (T - 1) * w, w - 2, w - 2) for s in range(T) if reach[-1][s]], MARK)
        view.text(T * w / 2, T * w + 12, f"last position: {back[i]} back", size=11, colour=GREY)
    canvas.text(50, 34, "query 0", size=11, anchor="end", colour=QUERY.text)
    canvas.text(50, 22 + (T - 0.5) * w, f"query {T - 1}", size=11, anchor="end", colour=QUERY.text)
    below = 26 + T * w + 34
    canvas.legend(60, below, [("visible", QUERY), ("visible to the last position", MARK), ("not visible", PLAIN)])
    return canvas.finish()


def sink(words: Sequence[str], scores: Sequence[float], logit: float) -> Diagram:
    """15 §5: the weights of one query, without a sink and with one."""
    labels, plain = [shown(word) for word in words], softmax(scores)
    *kept, dropped = softmax([*scores, logit])
    canvas = Canvas(
        f"With a sink the words keep {number(sum(kept))} of the weight, and the rest goes nowhere.",
        "Weights without a sink: "
        + ", ".join(f"{word} {one:.2f}" for word, one in zip(labels, plain, strict=True))
        + f". With one: {', '.join(f'{one:.2f}' for one in kept)}, and {dropped:.2f} for the sink.",
    )
    rows = [*zip(labels, plain, strict=True)], [*zip(labels, kept, strict=True), ("sink", dropped)]
    for i, (title, these) in enumerate(zip(("softmax over the words", "softmax with the sink"), rows, strict=True)):
        view = canvas.at(i * 430, 0)
        view.text(90, 4, title, bold=True, size=12, anchor="start")
        bars(
            view.at(0, 18),
            these,
            width=230,
            label=90,
            longest=1.0,
            colours=[*[QUERY] * len(words), MARK],
            texts=[number(one) for _, one in these],
            mono=True,
        )
    canvas.text(
        520, 34 + 26 * (len(words) + 1), "the sink has no value: its weight is dropped", size=11, anchor="start"
    )
    return canvas.finish()


def dispatched(words: Sequence[str], chosen: Sequence[Sequence[int]], weights: Rows, experts: int) -> Diagram:
    """15 §7: the experts and weights of every token, and the rows that each expert multiplies."""
    k, n = len(chosen[0]), len(words)
    groups = [[(t, j) for t in range(n) for j in range(k) if chosen[t][j] == e] for e in range(experts)]
    busiest = max(range(experts), key=lambda e: len(groups[e]))
    canvas = Canvas(
        f"{n} tokens with {k} experts each make {n * k} rows, and {len(groups[busiest])} go to expert {busiest}.",
        " ".join(
            f"{shown(word)}: " + ", ".join(f"expert {e} × {w:.2f}" for e, w in zip(es, ws, strict=True)) + "."
            for word, es, ws in zip(words, chosen, weights, strict=True)
        ),
    )
    canvas.text(46, 4, "token", bold=True, size=12)
    canvas.text(190, 4, "expert × weight", bold=True, size=12)
    canvas.text(620, 4, "rows of each expert, next to each other", bold=True, size=12)
    tall = 22 + 20 * k
    row = max(38.0, n * tall / experts)
    step = min(74.0, (canvas.inner - 536) / len(groups[busiest]))
    for e, group in enumerate(groups):
        y = 22 + e * row
        canvas.box(430, y, 88, 28, f"expert {e}", MARK if group else PLAIN, size=12, bold=False)
        for i, (t, _) in enumerate(group):
            canvas.box(536 + i * step, y, step - 4, 28, shown(words[t]), MODULE, size=11, bold=False, mono=True)
        if not group:
            canvas.text(540, y + 14, "no rows", size=11, anchor="start", colour=GREY)
    for t, word in enumerate(words):
        y = 22 + t * tall
        canvas.box(0, y, 92, 20 * k + 4, shown(word), MODULE, size=12, bold=False, mono=True)
        for j, (e, weight) in enumerate(zip(chosen[t], weights[t], strict=True)):
            level = y + 12 + 20 * j
            canvas.text(190, level, f"{e} × {number(weight)}", size=12, mono=True)
            canvas.arrow((250, level), (428, 22 + e * row + 14), colour=MODULE if j else MARK, width=1.2)
    return canvas.finish()


def expert_use(runs: Mapping[str, tuple[Sequence[float], float]]) -> Diagram:
    """15 §7: the share of the tokens' choices that each expert gets, in several runs, with each run's error."""
    busy = {name: sum(one > 0.02 for one in use) for name, (use, _) in runs.items()}
    worst = min(busy, key=busy.__getitem__)
    E = len(runs[worst][0])
    canvas = Canvas(
        f"In run {worst}, {busy[worst]} of {E} experts do all the work.",
        " ".join(
            f"{name}: shares {', '.join(f'{one:.2f}' for one in use)}, error {error:.3f}."
            for name, (use, error) in runs.items()
        ),
    )
    most = max(max(use) for use, _ in runs.values())
    wide, tall = (canvas.inner + 24) / len(runs), 110
    for i, (name, (use, error)) in enumerate(runs.items()):
        view, w = canvas.at(i * wide, 0), (wide - 24) / E
        level = 36 + tall - tall / E / most  # of an equal share
        view.text((wide - 24) / 2, 4, f"run {name}", bold=True, size=12)
        for e, share in enumerate(use):
            long = max(1.0, tall * share / most)
            view.rect(e * w, 36 + tall - long, w - 4, long, KEY if share > 2 / E else QUERY)
            top = 36 + tall - long
            view.text((e + 0.5) * w - 2, (level if -2 < top - level < 16 else top) - 8, f"{share:.0%}", size=10)
            view.text((e + 0.5) * w - 2, 48 + tall, str(e), size=11, colour=GREY)
        view.path([(0, level), (wide - 28, level)], MARK, dashed=True)
        view.text((wide - 24) / 2, 66 + tall, f"error {error:.3f}", size=12, mono=True)
    canvas.text(0, 90 + tall, "experts 0 to 7; dashed: an equal share", size=11, anchor="start", colour=GREY)
    return canvas.finish()


def mxfp4(values: Sequence[float], codes: Sequence[float], exponent: int) -> Diagram:
    """15 §8: a block of 32 weights, the numbers of 4 bits in their place, and what both stand for."""
    kept = [code * 2.0**exponent for code in codes]
    error = max(abs(a - b) for a, b in zip(values, kept, strict=True))
    canvas = Canvas(
        f"32 weights become 32 numbers of 4 bits and one power of two: 17 bytes, and errors up to {number(error)}.",
        f"The weights are divided by 2 to the power {exponent}, rounded to the nearest of the 16 numbers of E2M1, and "
        f"multiplied again. The largest error is {error:.3f}.",
    )
    w, names = 31, ("weights", f"÷ 2^{exponent}, rounded to E2M1".replace("-", "−"), "weights that are stored")
    grids, colours, digits = (values, codes, kept), (MODULE, MARK, VALUE), (2, 1, 2)
    for i, (grid, name) in enumerate(zip(grids, names, strict=True)):
        view = canvas.at(i * 291, 22)
        view.text(4 * w, -14, name, bold=True, size=12)
        rows = [grid[j : j + 8] for j in range(0, 32, 8)]
        most = max(abs(one) for one in grid) or 1.0
        cells(view, 0, 0, rows, colours[i], size=(w, 28), digits=digits[i], strongest=most, font=9.5)
        if i < 2:
            view.arrow((8 * w + 6, 56), (285, 56))
    line = canvas.at(20, 180)
    x = scale(-6, 6, 0, canvas.inner - 40)
    line.text(-20, -14, "the numbers of E2M1", size=11, anchor="start", colour=GREY)
    line.path([(x(-6), 12), (x(6), 12)], GREY, width=1)
    for one in (0, 0.5, 1, 1.5, 2, 3, 4, 6):
        for sign in (1, -1) if one else (1,):
            line.dot(x(sign * one), 12, MARK if sign * one in codes else CONTRAST, 4)
            line.text(x(sign * one), 28, f"{sign * one:g}".replace("-", "−"), size=11, mono=True)
    return canvas.finish()
