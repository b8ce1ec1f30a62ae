"""Diagrams of notebooks 00 and 01: the whole suite, and the way from text to tokens."""

from collections.abc import Collection, Mapping, Sequence

from .drawing import Canvas, Diagram
from .palette import GRADIENT, GREY, MARK, MODULE, PLAIN, RESIDUAL, Colour, number, shown
from .parts import bars, cells

# number of the notebook → label, note, and the left, upper corner of its box
STAGES = {
    "10": ("documents", "10 · filters", 0, 0),
    "01": ("tokens", "01 · BPE", 130, 0),
    "06": ("batches", "06 · loader", 260, 0),
    "03": ("GPT-2", "03", 390, 0),
    "05": ("loss", "05 · −ln p", 592, 0),
    "08": ("update", "08 · AdamW", 722, 0),
    "07": ("speed", "07 · one GPU", 130, 128),
    "09": ("many GPUs", "09 · DDP, ZeRO", 260, 128),
    "04": ("text", "04 · sampling", 390, 128),
    "11": ("scores", "11 · evaluation", 592, 128),
    "12": ("the run", "12 · everything", 722, 128),
}
# what the later notebooks add to this way
FURTHER = {
    "13": "memory",
    "14": "Muon",
    "15": "today's parts",
    "16": "magnitudes",
    "17": "scaling",
    "18": "silent bugs",
}
NAMES = {"02": "attention, inside GPT-2", "00": "the whole"} | {stage: label for stage, (label, *_) in STAGES.items()}
NAMES |= FURTHER


def pipeline(stage: str | int = "00") -> Diagram:
    """00, and on top of every notebook: the way from documents to a trained model, with one notebook marked."""
    stage = f"{int(stage):02d}"
    if stage not in NAMES:
        raise ValueError(f"no notebook {stage}; the stages are {', '.join(sorted(NAMES))}")
    where = "This suite follows text from documents to a trained model and back to text."
    title = where if stage == "00" else f"You are here: notebook {stage}, {NAMES[stage]}."
    canvas = Canvas(
        title,
        "Documents become tokens, tokens become batches, GPT-2 turns batches into logits, and the loss compares the "
        "logits with the next tokens. The update changes the weights and the loop starts again. Sampling and "
        "evaluation use the trained model. Speed, many GPUs and the real run concern the whole training loop. Six more "
        "notebooks go further: memory, Muon, today's parts, magnitudes, scaling and silent bugs.",
    )
    canvas.rect(250, -8, 592, 100, PLAIN, radius=10, dashed=True)
    for key, (label, note, x, y) in STAGES.items():
        colour, wide = MARK if key == stage else MODULE, 182 if x == 390 else 110
        if key == "03":  # attention is a box inside it
            canvas.rect(x, y, wide, 46, colour, radius=8, strong=key == stage)
            canvas.text(x + 42, y + 15, label, bold=True)
            canvas.text(x + 42, y + 32, note, size=11, colour=GREY)
        else:
            canvas.box(x, y, wide, 46, label, colour, note=note, strong=key == stage)
    inner = MARK if stage == "02" else PLAIN
    canvas.box(474, 5, 92, 36, "attention", inner, note="02", size=12, strong=stage == "02")
    for start, end in ((110, 130), (240, 260), (370, 390), (572, 592), (702, 722)):
        canvas.arrow((start, 23), (end, 23))
    canvas.arrow((777, 46), (777, 70), (440, 70), (440, 48), colour=GRADIENT, label="gradients change the weights")
    canvas.text(260, 70, "training loop", size=11, anchor="start", colour=GREY)
    canvas.arrow((500, 46), (500, 126))
    canvas.arrow((500, 108), (647, 108), (647, 126))
    canvas.text(574, 117, "logits", size=11, mono=True, colour=GREY)
    for x in (315, 777):
        canvas.path([(x, 128), (x, 92)], PLAIN, dashed=True)
    canvas.path([(185, 128), (185, 84), (250, 84)], PLAIN, dashed=True)
    canvas.text(0, 221, "going further", size=11, anchor="start", colour=GREY)
    for i, (key, label) in enumerate(FURTHER.items()):
        colour = MARK if key == stage else MODULE
        canvas.box(130 + 118.4 * i, 201, 110, 40, label, colour, note=key, strong=key == stage)
    return canvas.finish()


# number of the notebook → column and row in the drawing of what depends on what
PLACES = {
    "00": (0, 1),
    "01": (1, 1),
    "02": (2, 1),
    "03": (3, 1),
    "04": (4, 0),
    "05": (4, 1),
    "06": (2, 2),
    "07": (5, 1),
    "08": (6, 1),
    "09": (7, 1),
    "10": (3, 3),
    "11": (7, 2),
    "12": (8, 1),
}


def prerequisites(
    before: Mapping[str, Collection[str]], names: Mapping[str, str], paths: Mapping[str, tuple[Colour, Collection[str]]]
) -> Diagram:
    """README of the notebooks: which notebook needs which, and which ones the reading paths take.

    `before`: per number, those to have read; `paths`: the name of a path → its colour and its numbers. Notebooks that
    have no place of their own stand in a row below the others, each with what it comes after.
    """
    further = [key for key in before if key not in PLACES]
    title = "The main road is 00 to 03, 05, 07 to 09 and 12. The other notebooks leave it and come back"
    canvas = Canvas(
        f"{title}, or go further." if further else f"{title}.",
        " ".join(f"{key} needs {', '.join(sorted(needed))}." for key, needed in before.items() if needed),
    )
    step, high, wide, tall = (canvas.inner - 80) / 8, 66, 80, 46
    # an arrow from a to b says nothing new if b also needs something that needs a
    arrows = {key: {a for a in needed if not any(a in before[b] for b in needed)} for key, needed in before.items()}
    for key, (column, row) in PLACES.items():
        x, y = step * column, high * row
        canvas.box(x, y, wide, tall, key, MODULE, note=names[key])
        for i, (colour, numbers) in enumerate(paths.values()):
            if key in numbers:
                canvas.dot(x + wide - 9 - 10 * i, y + 9, colour)
        for other in sorted(arrows[key]):
            from_column, from_row = PLACES[other]
            x0, y0 = step * from_column, high * from_row
            if row == from_row:
                canvas.arrow((x0 + wide, y0 + tall / 2), (x, y + tall / 2))
            elif row == 1:  # back to the main road: along, then up or down
                end = (x + wide / 4, y if from_row < row else y + tall)
                canvas.arrow((x0 + wide, y0 + tall / 2), (end[0], y0 + tall / 2), end)
            else:
                start = (x0 + 3 * wide / 4, y0 if row < from_row else y0 + tall)
                canvas.arrow(start, (start[0], y + tall / 2), (x, y + tall / 2))
    for i, key in enumerate(further):
        after, x, y = f"after {', '.join(sorted(arrows[key]))}", 141 * (i % 6), 4 * high + 6 + 74 * (i // 6)
        canvas.box(x, y, 124, 58, f"{key}\n{names[key]}", MODULE, note=after, size=12)
    bottom = 4 * high + 2 + (14 + 74 * -(-len(further) // 6) if further else 0)
    for i, (name, (colour, _)) in enumerate(paths.items()):
        canvas.dot(10 + 220 * i, bottom, colour)
        canvas.text(22 + 220 * i, bottom, name, size=12, anchor="start", colour=GREY)
    return canvas.finish()


def text_to_logits(
    text: Sequence[str], ids: Sequence[int], vectors: Sequence[Sequence[float]], candidates: Sequence[tuple[str, float]]
) -> Diagram:
    """00 and 01: text → bytes → tokens → ids → vectors → probabilities of the next token.

    `text`: the tokens as text; `vectors`: the first few channels of each embedding; `candidates`: the likeliest next
    tokens with their probabilities.
    """
    best, probability = candidates[0]
    canvas = Canvas(
        f"Text becomes bytes, tokens, ids and vectors, and GPT-2 gives “{shown(best)}” {probability:.0%}.",
        f"The text {''.join(text)!r} has {len(''.join(text).encode())} bytes and {len(ids)} tokens. Every token has an "
        f"id, which selects a vector. GPT-2 turns the vectors into a probability for every possible next token.",
    )
    left, widths = 76, [max(60.0, 16.5 * len(token.encode())) + 10 for token in text]
    shrink = min(1, 470 / sum(widths))
    for name, y in (("text", 13), ("bytes", 54), ("tokens", 104), ("ids", 158), ("vectors", 214)):
        canvas.text(0, y, name, bold=True, anchor="start", size=12, colour=GREY)
    canvas.text(left, 13, "".join(text), anchor="start", mono=True, size=15)
    strongest = max(abs(value) for vector in vectors for value in vector) or 1.0
    for i, token in enumerate(text):
        view = canvas.at(left + shrink * sum(widths[:i]), 0)
        _token_column(view, token, ids[i], vectors[i], shrink * widths[i] - 8, strongest)
    end = left + shrink * sum(widths)
    right = end + 62
    canvas.arrow((end, 230), (right, 230), label="(T, C)")
    canvas.box(right, 198, 66, 64, "GPT-2")
    canvas.arrow((right + 33, 196), (right + 33, 150), label="(T, V)")
    canvas.text(right - 20, 13, "next token", bold=True, anchor="start", size=12, colour=GREY)
    texts = [f"{p:.0%}" for _, p in candidates[:4]]
    rows = [(shown(token), p) for token, p in candidates[:4]]
    colours, room = [MARK] + [PLAIN] * 3, canvas.inner - right - 92
    view = canvas.at(right - 40, 30)
    bars(view, rows, width=room, label=86, longest=probability, colours=colours, texts=texts, mono=True)
    return canvas.finish()


def _token_column(
    canvas: Canvas, token: str, token_id: int, vector: Sequence[float], width: float, strongest: float
) -> None:
    """One token from its bytes down to its vector."""
    raw, middle = token.encode(), width / 2
    size = min(20.0, width / len(raw))
    for j, byte in enumerate(raw):
        canvas.rect(j * size, 43, size - 1.5, 22, MODULE, radius=2)
        canvas.text((j + 0.5) * size - 0.75, 54, f"{byte:02x}", size=min(11, size * 0.62), mono=True)
    canvas.box(0, 90, width, 28, shown(token), MODULE, bold=False, mono=True)
    canvas.arrow((middle, 120), (middle, 144))
    canvas.text(middle, 158, str(token_id), mono=True)
    canvas.arrow((middle, 170), (middle, 194))
    column = [[value] for value in vector]
    cells(canvas, middle - 23, 198, column, RESIDUAL, size=(48, 22), strongest=strongest, font=11)
    canvas.text(middle, 206 + 22 * len(column), "⋮", size=14)


def bpe_merges(rows: Sequence[tuple[str, Sequence[str | bytes]]]) -> Diagram:
    """01 §2: the text after each merge. `rows`: a name and the tokens, first the bytes, then one row per merge."""
    first, last = len(rows[0][1]), len(rows[-1][1])
    canvas = Canvas(
        f"{len(rows) - 1} merges turn {first} tokens into {last}.",
        "Each row shows the same text. Tokens that the latest merge has made are marked. "
        + " ".join(f"After {name}: {len(tokens)} tokens." for name, tokens in rows),
    )
    label, letters = 122, sum(len(shown(token)) for token in rows[0][1])
    unit = (canvas.inner - label) / letters
    font = min(13.0, unit / 0.72)
    before: set[tuple[int, int]] = set()
    for i, (name, row) in enumerate(rows):
        y, at, places = i * 33, 0, []
        canvas.text(0, y + 9, name, anchor="start", bold=True, size=12)
        canvas.text(0, y + 23, f"{len(row)} tokens", anchor="start", size=11, colour=GREY)
        for token in row:
            long = len(shown(token))
            places.append((at, at + long))
            at += long
        for colour in (PLAIN, MARK):
            marked = [i > 0 and place not in before for place in places]
            chosen = [place for place, mark in zip(places, marked, strict=True) if mark == (colour is MARK)]
            canvas.tiles([(label + a * unit, y + 3, (b - a) * unit - 3, 25) for a, b in chosen], colour)
        middles = [label + (j + 0.5) * unit - 1.5 for j in range(letters)]
        canvas.letters(middles, y + 15.5, "".join(map(shown, row)), font)
        before = {*places}
    canvas.legend(label, len(rows) * 33 + 14, [("made by this merge", MARK)])
    return canvas.finish()


def shifted_targets(words: Sequence[str], probabilities: Sequence[float]) -> Diagram:
    """05 §5: every position has the next token as its target. `probabilities`: of the target, at each position."""
    T = len(words) - 1
    canvas = Canvas(
        f"One sequence of {T + 1} tokens holds {T} predictions, because the targets are the inputs shifted by one.",
        "Inputs: " + " ".join(words[:-1]) + ". Targets: " + " ".join(words[1:]) + ". Under each target stands the "
        "probability that the model gave it.",
    )
    width = min(110.0, (canvas.inner - 84) / T)
    for name, y in (("input x", 16), ("target y", 106), ("p(target)", 142)):
        canvas.text(0, y, name, anchor="start", bold=True, size=12, colour=GREY)
    for t in range(T):
        x = 84 + t * width
        canvas.box(x, 2, width - 8, 28, shown(words[t]), MODULE, bold=False, mono=True, size=12)
        canvas.arrow((x + width / 2 - 4, 32), (x + width / 2 - 4, 90))
        canvas.box(x, 92, width - 8, 28, shown(words[t + 1]), MARK, bold=False, mono=True, size=12)
        canvas.text(x + width / 2 - 4, 142, number(probabilities[t], 3), mono=True, size=12)
        if t:
            canvas.path([(x + width * 0.3, 32), (x - width * 0.6, 90)], PLAIN, dashed=True)
    canvas.lines(
        84,
        170,
        "A dashed line joins the two places of the same token: it is the target at one position and "
        "the input at the next.",
        canvas.inner - 84,
    )
    return canvas.finish()


def cross_entropy(candidates: Sequence[tuple[str, float]], target: str) -> Diagram:
    """05 §1: the loss is minus the logarithm of one probability. `candidates`: tokens with their probabilities."""
    import math

    chances = dict(candidates)
    loss = -math.log(chances[target])
    canvas = Canvas(
        f"Cross-entropy picks one entry: −ln p({shown(target)}) = {loss:.2f} nats.",
        "The model gives every token a probability: "
        + ", ".join(f"{shown(token)} {p:.3f}" for token, p in candidates)
        + f". Only the probability of the target, {chances[target]:.3f}, enters the loss.",
    )
    y = 26 * [token for token, _ in candidates].index(target)
    colours = [MARK if token == target else PLAIN for token, _ in candidates]
    rows = [(shown(token), p) for token, p in candidates]
    texts = [number(p, 3) for _, p in candidates]
    canvas.text(0, 4, "probability of the next token", anchor="start", bold=True, size=12, colour=GREY)
    bars(
        canvas.at(0, 20),
        rows,
        width=300,
        label=110,
        longest=max(chances.values()),
        colours=colours,
        texts=texts,
        mono=True,
    )
    end = 110 + 300 * chances[target] / max(chances.values()) + 60
    canvas.arrow((end, y + 33), (550, y + 33), colour=MARK, label="the target’s entry" if end < 400 else "")
    canvas.box(550, y + 10, 150, 46, f"−ln {number(chances[target], 3)}", MARK, mono=True, bold=False)
    canvas.arrow((700, y + 33), (744, y + 33), colour=MARK)
    canvas.text(750, y + 33, number(loss), size=18, bold=True, anchor="start")
    return canvas.finish()


__all__ = ["bpe_merges", "cross_entropy", "pipeline", "shifted_targets", "text_to_logits"]
