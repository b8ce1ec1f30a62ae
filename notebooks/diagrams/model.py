"""Diagrams of notebooks 03 and 04: the block, the MLP, the whole GPT-2, gradients, the KV cache, and sampling."""

import math
from collections.abc import Sequence

from .drawing import Canvas, Diagram
from .palette import GRADIENT, GREY, KEY, MARK, MODULE, PLAIN, QUERY, RESIDUAL, VALUE, number, shown, text_width
from .parts import bars, power, scale


def residual_block(B: str | int = "B", T: str | int = "T", C: str | int = "C") -> Diagram:
    """03 §1 and §5: one block. The residual stream runs through it, and attention and the MLP add to it."""
    shape = f"({B}, {T}, {C})"
    canvas = Canvas(
        "Attention and the MLP read the residual stream and add to it. Nothing overwrites it.",
        f"A line of shape {shape} runs from left to right. Two branches leave it. The first goes through ln_1 and "
        f"attention, the second through ln_2 and the MLP. Each result is added to the line.",
    )
    y, low = 30, 104
    canvas.arrow((0, y), (canvas.inner, y), colour=RESIDUAL, width=5)
    canvas.text(4, y - 18, "residual stream", anchor="start", bold=True, size=12, colour=RESIDUAL.text)
    parts = ((60, "ln_1", "attention", "positions communicate"), (450, "ln_2", "MLP", "each position alone"))
    for x, norm, part, note in parts:
        canvas.dot(x, y, RESIDUAL, 5)
        canvas.arrow((x, y), (x, low + 24), (x + 28, low + 24))
        canvas.box(x + 30, low, 64, 48, norm)
        canvas.arrow((x + 94, low + 24), (x + 176, low + 24), label=shape if len(shape) < 12 else "")
        canvas.box(x + 178, low, 122, 48, part)
        canvas.arrow((x + 300, low + 24), (x + 326, low + 24), (x + 326, y + 13))
        canvas.add_sign(x + 326, y)
        canvas.text(x + 239, low + 64, note, size=12, colour=GREY)
    canvas.text(256, y - 18, shape, mono=True, size=11, colour=RESIDUAL.text)
    canvas.text(640, y - 18, shape, mono=True, size=11, colour=RESIDUAL.text)
    return canvas.finish()


def mlp(T: int = 3, C: int = 768) -> Diagram:
    """03 §4: the MLP makes every position four times as wide, applies GELU, and makes it narrow again."""
    canvas = Canvas(
        f"The MLP widens each position from {C} to {4 * C} channels and back, and mixes no positions.",
        f"{T} positions are columns. c_fc makes them four times as tall, GELU bends every number, and c_proj brings "
        f"them back to {C} channels.",
    )
    unit, middle = 34, 76
    for x, times, label in ((10, 1, f"(T, {C})"), (300, 4, f"(T, {4 * C})"), (540, 4, ""), (770, 1, f"(T, {C})")):
        for t in range(T):
            canvas.rect(x + t * 16, middle - times * unit / 2, 12, times * unit, RESIDUAL if times == 1 else MODULE)
        if label:
            canvas.text(x + 8 * T, middle + times * unit / 2 + 16, label, mono=True, size=11, colour=GREY)
    canvas.arrow((70, middle), (122, middle))
    canvas.box(124, middle - 28, 110, 56, "c_fc", note=f"{C} → {4 * C}")
    canvas.arrow((234, middle), (288, middle))
    canvas.arrow((358, middle), (396, middle))
    canvas.rect(398, middle - 34, 84, 68, MODULE, radius=8)
    points = [(i / 10, 0.5 * i / 10 * (1 + math.erf(i / 10 / math.sqrt(2)))) for i in range(-30, 21)]
    canvas.path([(448 + 14 * a, middle + 22 - 16 * b) for a, b in points], MARK, width=2)
    canvas.path([(406, middle + 22), (476, middle + 22)], PLAIN, width=1)
    canvas.text(426, middle - 18, "GELU", bold=True)
    canvas.arrow((482, middle), (528, middle))
    canvas.arrow((598, middle), (630, middle))
    canvas.box(632, middle - 28, 90, 56, "c_proj", note=f"{4 * C} → {C}")
    canvas.arrow((722, middle), (762, middle))
    return canvas.finish()


def gpt2(B: str | int = "B", T: int = 1024, C: int = 768, L: int = 12, H: int = 12, V: int = 50257) -> Diagram:
    """03 §8 to §10: the whole model, with shapes on the arrows and the parameters of every part."""
    block = 12 * C * C + 13 * C
    total = V * C + T * C + L * block + 2 * C
    stream = f"({B}, {T}, {C})"
    canvas = Canvas(
        f"GPT-2 has {total:,} parameters, and {L * block / total:.0%} of them are in its {L} blocks.",
        f"Tokens of shape ({B}, {T}) select rows of wte, and wpe adds a row per position. {L} blocks with {H} heads "
        f"each follow. ln_f and lm_head turn the residual stream into logits of shape ({B}, {T}, {V}).",
    )
    canvas.arrow((0, 70), (66, 70), label=f"({B}, T)")
    canvas.text(33, 84, "tokens", size=11, colour=GREY)
    canvas.box(68, 44, 92, 52, "wte", note=f"{V} × {C}")
    canvas.arrow((160, 70), (187, 70), colour=RESIDUAL, width=3)
    canvas.box(152, 124, 92, 52, "wpe", note=f"{T} × {C}")
    canvas.arrow((198, 124), (198, 83))
    canvas.add_sign(198, 70)
    canvas.arrow((209, 70), (326, 70), colour=RESIDUAL, width=3, label=stream)
    for back in (2, 1, 0):
        canvas.rect(328 + 8 * back, 14 + 8 * back, 136, 96, PLAIN if back else MODULE, radius=8)
    canvas.text(396, 28, f"{L} blocks", bold=True)
    canvas.box(340, 42, 112, 28, "attention", MODULE, size=12)
    canvas.box(340, 76, 112, 28, "MLP", MODULE, size=12)
    canvas.arrow((480, 70), (586, 70), colour=RESIDUAL, width=3, label=stream, size=10)
    canvas.box(588, 44, 50, 52, "ln_f")
    canvas.arrow((638, 70), (660, 70), colour=RESIDUAL, width=3)
    canvas.box(662, 44, 92, 52, "lm_head", note=f"{C} → {V}")
    canvas.arrow((754, 70), (832, 70))
    canvas.text(796, 58, f"({B},T,V)", size=11, mono=True, colour=GREY)
    canvas.text(796, 84, "logits", size=11, colour=GREY)
    canvas.path([(114, 44), (114, -4), (708, -4), (708, 44)], MODULE, dashed=True)
    canvas.text(596, 8, "the same tensor: tied weights", size=11, colour=GREY)
    counts = (
        (104, 110, f"{V * C:,}"),
        (198, 190, f"{T * C:,}"),
        (404, 142, f"{L} × {block:,}"),
        (613, 110, f"{2 * C:,}"),
        (708, 110, "shared"),
    )
    for x, y, count in counts:
        canvas.text(x, y, count, mono=True, size=11)
    canvas.text(canvas.inner, 190, "below each part: its parameters", anchor="end", size=11, colour=GREY)
    return canvas.finish()


def gradient_flow(residual: Sequence[float], plain: Sequence[float]) -> Diagram:
    """03 §5 and 05: the norm of the gradient at every block, with and without residual connections."""
    ratios = [norms[0] / norms[-1] for norms in (residual, plain)]
    canvas = Canvas(
        f"Without residual connections, the first block gets {power(ratios[1], 1)} of the last block’s gradient. "
        f"With them, it gets {ratios[0]:.2f}.",
        "Gradient norms by block, first to last. With residual connections: "
        + ", ".join(f"{one:.2g}" for one in residual)
        + ". Without: "
        + ", ".join(f"{one:.2g}" for one in plain)
        + ".",
    )
    everything = [*residual, *plain]
    low = 10 ** math.floor(math.log10(min(everything)) - 0.3)
    height = scale(low, max(everything), 0, 120, log=True)
    for i, (name, norms) in enumerate((("with residual connections", residual), ("without", plain))):
        view, step = canvas.at(i * 424, 0), 400 / len(norms)
        view.text(200, 2, name, bold=True)
        for j, norm in enumerate(norms):
            x, top = j * step, 154 - height(norm)
            view.rect(x + 4, top, step - 8, 154 - top, GRADIENT)
            view.text(
                x + step / 2,
                top - 9,
                power(norm) if norm < 0.01 else f"{norm:.2f}",
                size=min(11, step / 4.2),
                mono=True,
            )
            view.text(x + step / 2, 166, str(j), size=11, colour=GREY)
        view.path([(0, 154), (400, 154)], GREY, width=1)
        view.text(200, 184, "block", size=12, colour=GREY)
        view.arrow((380, 202), (20, 202), colour=GRADIENT)
        view.text(200, 214, "backward", size=11, colour=GRADIENT.text)
    return canvas.finish()


def kv_cache(words: Sequence[str], prompt: int) -> Diagram:
    """04 §6 and §7: the cache fills, first with the whole prompt, then with one row per token."""
    T, steps = len(words), len(words) - prompt + 1
    canvas = Canvas(
        f"The prompt fills {prompt} rows of the cache at once. Each new token adds one row and reads all of them.",
        f"{steps} pictures of a cache with {T} rows. In the first, {prompt} rows are written. In each further one, one "
        "row is written and the rows above stay as they are.",
    )
    gap, cell, row = canvas.inner / steps, 24, 27
    for step in range(steps):
        view, filled = canvas.at(step * gap, 0), prompt + step
        new = prompt if step == 0 else 1
        name = "prompt" if step == 0 else f"+ {shown(words[filled - 1])}"
        view.text(gap / 2, 4, name, bold=True, mono=step > 0, size=12)
        label = max(text_width(shown(word), 11, mono=True) for word in words)
        left = max(label + 4, (gap - 3 * cell - 10 + label) / 2)
        for t, word in enumerate(words):
            y, fresh = 40 + t * row, filled - new <= t < filled
            if t < filled:
                view.text(left - 5, y + 11, shown(word), anchor="end", size=11, mono=True, bold=fresh)
            for j, (colour, letter) in enumerate(((KEY, "k"), (VALUE, "v"))):
                used = t < filled
                view.rect(left + j * cell, y, cell - 2, 23, colour if used else PLAIN, strong=fresh, dashed=not used)
                if used:
                    view.text(left + j * cell + 11, y + 11, letter, size=11, mono=True, bold=fresh, colour=colour.text)
            if fresh:
                view.rect(left + 2 * cell + 8, y, cell - 2, 23, QUERY, strong=True)
                view.text(left + 2 * cell + 19, y + 11, "q", size=11, mono=True, bold=True, colour=QUERY.text)
        view.text(gap / 2, 40 + T * row + 12, f"computes {new}", size=11, colour=GREY)
        view.text(gap / 2, 40 + T * row + 28, f"reads {filled}", size=11, colour=GREY)
        if step:
            view.path([(0, 24), (0, 40 + T * row + 30)], PLAIN, width=1)
    return canvas.finish()


def sampling_rules(candidates: Sequence[tuple[str, float]], k: int = 3, p: float = 0.9) -> Diagram:
    """04 §4: what top-k and top-p keep of the same probabilities, which come sorted, largest first."""
    before = [sum(chance for _, chance in candidates[:i]) for i in range(len(candidates))]
    nucleus = sum(mass < p for mass in before)
    canvas = Canvas(
        f"Top-k {k} keeps {k} tokens everywhere. Top-p {p:g} keeps {nucleus} here, the fewest that reach {p:.0%}.",
        "Probabilities: "
        + ", ".join(f"{shown(token)} {chance:.3f}" for token, chance in candidates)
        + f". Top-k {k} keeps the first {k}, top-p {p:g} keeps the first {nucleus}.",
    )
    largest, n = candidates[0][1], len(candidates)
    for i, (name, kept) in enumerate((("as it is", n), (f"top-k {k}", k), (f"top-p {p:g}", nucleus))):
        view, mass = canvas.at(i * 284, 0), sum(chance for _, chance in candidates[:kept])
        total = mass if i else 1.0
        view.text(0, 4, name, bold=True, anchor="start")
        view.text(
            264,
            4,
            "probability" if i == 0 else f"kept {mass:.2f}, then / {mass:.2f}",
            anchor="end",
            size=11,
            colour=GREY,
        )
        rows = [(shown(token), chance / total if j < kept else 0) for j, (token, chance) in enumerate(candidates)]
        texts = [number(chance, 3) if j < kept else "cut" for j, (_, chance) in enumerate(rows)]
        top = largest / min(1.0, sum(c for _, c in candidates[:k]), sum(c for _, c in candidates[:nucleus]))
        bars(
            view.at(0, 20),
            rows,
            width=130,
            label=84,
            longest=top,
            colours=[MARK if i else PLAIN] * n,
            texts=texts,
            step=23,
            mono=True,
        )
        if kept < n:
            view.path([(0, 20 + 23 * kept), (264, 20 + 23 * kept)], MARK, dashed=True)
    return canvas.finish()
