"""Diagrams of notebook 09: the timeline of DDP, the ring, and the stages of ZeRO."""

from collections.abc import Sequence

from .drawing import Canvas, Diagram
from .palette import COMMUNICATION, GRADIENT, GREY, MARK, MODULE, PLAIN, Colour, wrap
from .parts import scale, short


def ddp_times(forward: float, backward: Sequence[float], sending: Sequence[float], overlap: bool) -> list[float]:
    """When each bucket starts to be sent. It must be complete, and the bucket before it must be sent."""
    starts, done, free = [], forward, 0.0
    for compute, send in zip(backward, sending, strict=True):
        done += compute
        ready = done if overlap else forward + sum(backward)
        starts.append(max(ready, free))
        free = starts[-1] + send
    return starts


def ddp_timeline(forward: float, backward: Sequence[float], sending: Sequence[float], unit: str = "ms") -> Diagram:
    """09 §3: gradients sent while backward still runs, and the same sent after it. The last layer is bucket 0."""
    times = [ddp_times(forward, backward, sending, overlap) for overlap in (True, False)]
    ends = [starts[-1] + sending[-1] for starts in times]
    canvas = Canvas(
        f"Sending during backward takes {ends[0]:.3g} {unit} per step, and sending after it {ends[1]:.3g} {unit}.",
        f"Forward takes {forward:.3g} {unit}. Backward has {len(backward)} buckets. In the first timeline each bucket "
        f"is sent as soon as it is complete. In the second, all buckets wait for the end of backward.",
    )
    x = scale(0, max(ends), 84, canvas.inner - 12)
    for i, (name, starts) in enumerate(zip(("sent during backward: DDP", "sent after backward"), times, strict=True)):
        view, at = canvas.at(0, i * 134), forward
        view.text(0, 4, name, anchor="start", bold=True)
        for label, y in (("compute", 38), ("network", 72)):
            view.text(72, y, label, anchor="end", size=12, colour=GREY)
            view.path([(84, y + 16), (canvas.inner, y + 16)], PLAIN, width=1)
        view.rect(x(0), 24, x(forward) - x(0) - 2, 28, MODULE)
        view.text((x(0) + x(forward)) / 2, 38, "forward", size=12)
        for j, (compute, send, start) in enumerate(zip(backward, sending, starts, strict=True)):
            view.rect(x(at), 24, x(at + compute) - x(at) - 2, 28, GRADIENT)
            view.text((x(at) + x(at + compute)) / 2 - 1, 38, f"b{j}", size=11, mono=True)
            view.rect(x(start), 58, x(start + send) - x(start) - 2, 28, COMMUNICATION)
            view.text((x(start) + x(start + send)) / 2 - 1, 72, f"b{j}", size=11, mono=True)
            at += compute
        view.path([(x(ends[i]), 16), (x(ends[i]), 94)], MARK, width=2)
        view.text(x(ends[i]) - 6, 8, f"{ends[i]:.3g} {unit}", anchor="end", size=12, bold=True)
    canvas.legend(84, 254, [("backward of a bucket", GRADIENT), ("all-reduce of its gradients", COMMUNICATION)])
    return canvas.finish()


def ring_rounds(parts: Sequence[Sequence[float]]) -> list[tuple[list[list[float]], list[list[int]]]]:
    """What every rank holds after each round: the numbers (n, n), and how many ranks are in each partial sum."""
    n = len(parts)
    held, counts = [list(map(float, part)) for part in parts], [[1] * n for _ in range(n)]
    rounds = [([*map(list, held)], [*map(list, counts)])]
    for turn in range(2 * (n - 1)):
        sent = [(held[rank][(rank - turn) % n], counts[rank][(rank - turn) % n]) for rank in range(n)]
        for rank in range(n):
            piece = (rank - 1 - turn) % n
            value, count = sent[rank - 1]
            adds = turn < n - 1
            held[rank][piece] = held[rank][piece] + value if adds else value
            counts[rank][piece] = counts[rank][piece] + count if adds else count
        rounds.append(([*map(list, held)], [*map(list, counts)]))
    return rounds


def ring_all_reduce(parts: Sequence[Sequence[float]]) -> Diagram:
    """09 §2: n ranks with n pieces each; the partial sums round by round, first summed, then handed around."""
    n, rounds = len(parts), ring_rounds(parts)
    totals = [f"{sum(column):g}" for column in zip(*parts, strict=True)]
    canvas = Canvas(
        f"After {len(rounds) - 1} rounds, every rank holds the sums {', '.join(totals)}.",
        f"{n} ranks hold {n} numbers each. In every round each rank sends one piece to its right neighbour. After "
        f"{n - 1} rounds each rank owns one finished sum. After {n - 1} more, all ranks own all sums.",
    )
    gap = (canvas.inner - 46) / n
    w, h = min(38.0, (gap - 22) / n), 26
    for turn, (held, counts) in enumerate(rounds):
        second = turn >= n
        view = canvas.at(46 + (turn - n * second) * gap + (gap if second else 0), 24 + (n * h + 58) * second)
        name = "start" if turn == 0 else f"round {turn}"
        view.text(n * w / 2 - 1, -12, name, bold=True, size=12)
        for rank in range(n):
            if turn in (0, n):
                view.text(-8, (rank + 0.5) * h - 1, f"rank {rank}", size=11, anchor="end", colour=GREY)
            for piece in range(n):
                done, fresh = counts[rank][piece] == n, turn > 0 and piece == (rank - turn) % n
                colour = COMMUNICATION if done else MODULE if counts[rank][piece] > 1 else PLAIN
                view.rect(piece * w, rank * h, w - 2, h - 2, colour, strong=fresh)
                text = f"{held[rank][piece]:g}".replace("-", "−")
                view.text((piece + 0.5) * w - 1, (rank + 0.5) * h - 1, text, size=12, mono=True, bold=fresh)
    halves = (f"1 to {n - 1}: reduce-scatter", f"{n} to {2 * n - 2}: all-gather")
    canvas.text(0, n * h + 70, "rounds", size=12, bold=True, anchor="start")
    for i, text in enumerate(halves):
        canvas.text(0, n * h + 90 + 18 * i, text, size=12, anchor="start", colour=GREY)
    rule = "In every round, each rank sends one piece to the next rank, and the last rank sends to rank 0."
    canvas.lines(0, n * h + 134, rule, gap - 30, size=11)
    legend = [("own number", PLAIN), ("partial sum", MODULE), ("finished sum", COMMUNICATION)]
    canvas.legend(46 + gap, 2 * n * h + 104, legend)
    canvas.text(canvas.inner, 2 * n * h + 104, "bold: just received", anchor="end", size=12, colour=GREY)
    return canvas.finish()


SENDS = (
    "all-reduce of the gradients, once per step",
    "reduce-scatter of gradients, all-gather of weights, once per step",
    "reduce-scatter of gradients after every micro-step",
    "also all-gather of weights in every forward and backward",
)


def zero_bytes(parameters: int, gpus: int, stage: int) -> float:
    """Bytes per GPU of weights (4 per parameter), gradients (4) and Adam's averages (8), perfectly divided."""
    shares = [1 / gpus if stage >= least else 1 for least in (3, 2, 1)]
    return parameters * sum(size * share for size, share in zip((4, 4, 8), shares, strict=True))


def zero_stages(parameters: int, gpus: int = 4, sent: Sequence[float] = ()) -> Diagram:
    """09 §6: what each rank holds in ZeRO stages 0 to 3, and what it sends. `sent`: bytes per step, by stage."""
    held = [zero_bytes(parameters, gpus, stage) for stage in range(4)]
    canvas = Canvas(
        f"From stage 0 to stage 3, each of {gpus} GPUs holds {short(held[0], 'B')} and then {short(held[3], 'B')}.",
        " ".join(f"Stage {i}: {short(one, 'B')} per GPU, {SENDS[i]}." for i, one in enumerate(held)),
    )
    kinds: tuple[tuple[str, int, int, Colour], ...] = (
        ("weights", 4, 3, MODULE),
        ("gradients", 4, 2, GRADIENT),
        ("Adam’s averages", 8, 1, MARK),
    )
    gap, unit = canvas.inner / 4, 9.0
    w = min(40.0, (gap - 30) / gpus)
    for stage in range(4):
        view = canvas.at(stage * gap, 0)
        view.text((gap - 26) / 2, 4, f"stage {stage}", bold=True)
        for rank in range(gpus):
            x, y = (gap - 26 - gpus * w) / 2 + rank * w, 40.0
            view.text(x + w / 2 - 2, 26, str(rank), size=11, colour=GREY)
            for _, size, least, colour in kinds:
                tall = size * unit
                if stage >= least:
                    view.rect(x, y, w - 4, tall - 3, PLAIN, dashed=True)
                    view.rect(x, y + rank * (tall - 3) / gpus, w - 4, (tall - 3) / gpus, colour, radius=1)
                else:
                    view.rect(x, y, w - 4, tall - 3, colour)
                y += tall
        middle = (gap - 26) / 2
        view.text(middle, 202, f"{short(held[stage], 'B')} per GPU", bold=True, size=12)
        for i, line in enumerate(wrap(SENDS[stage], gap - 30, 11)):
            view.text(middle, 224 + 15 * i, line, size=11, colour=COMMUNICATION.text)
        if sent:
            view.text(
                middle, 276, f"sends {short(sent[stage], 'B')} per step", size=12, bold=True, colour=COMMUNICATION.text
            )
    entries = [(name, colour) for name, _, _, colour in kinds]
    canvas.legend(0, 304 if sent else 286, [*entries, ("held by another rank", PLAIN)])
    return canvas.finish()
