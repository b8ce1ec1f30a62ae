"""Checkers of notebook 09."""

import math

import numpy as np

from checks import exercise, expect, expect_equal


@exercise
def ring_round(solution) -> None:
    """One round of the ring, and whether all rounds together are an all-reduce."""
    held = np.array([[8.0, 6, 5], [3, 0, 1], [1, 9, 7]])
    first, fourth = solution(held.copy(), 0), solution(held.copy(), 3)
    expect(isinstance(first, np.ndarray), f"the result should be an array, and is {first!r}; is there a `return`?")
    expect(first.shape == (3, 3), f"the result has the shape {first.shape}; for 3 ranks with 3 pieces it is (3, 3)")
    expect(not np.array_equal(first, held), "nothing was received in round 0: return what the ranks hold afterwards")
    expect(
        not np.array_equal(first, _round(held, 0, step=-1)),
        "in round 0 every rank received from its right neighbour; rank r sends to rank r + 1, and the last to rank 0",
    )
    expect(
        not np.array_equal(first, _round(held, 0, add=False)),
        "in round 0 the received piece replaced the own one, which is lost; the first n − 1 rounds add",
    )
    expect(
        not np.array_equal(fourth, _round(held, 3, add=True)),
        "in round 3 of 3 ranks the received piece was added; it is a finished sum by then, and replaces the own piece",
    )
    second = solution(held.copy(), 1)
    expect(
        not np.array_equal(second, _round(held, 1, shift=0)),
        "in round 1 every rank sent the same piece as in round 0; it should pass on the piece that it has just "
        "received, which is (rank − turn) % n",
    )
    for n in (3, 2, 5):
        held = np.random.default_rng(n).integers(0, 10, (n, n)).astype(float)
        now = held.copy()
        for turn in range(2 * (n - 1)):
            now = solution(now, turn)
            expect_equal(now, held := _round(held, turn), f"what {n} ranks hold after round {turn}")
        expect((now == now[0]).all(), f"after all rounds, the {n} ranks hold different numbers")


def _round(held: np.ndarray, turn: int, step: int = 1, shift: int = 1, add: bool | None = None) -> np.ndarray:
    """What the ranks hold after this round; the options make typical mistakes."""
    n, after = len(held), held.copy()
    for rank in range(n):
        to, piece = (rank + step) % n, (rank - shift * turn) % n
        own = held[to, piece] if (turn < n - 1 if add is None else add) else 0
        after[to, piece] = own + held[rank, piece]
    return after


@exercise
def ring_bytes(solution) -> None:
    """Bytes of a ring all-reduce."""
    found = solution(1000, 4, 2)
    expect(found is not None, "the result is None; is there a `return`?")
    expect(not math.isclose(found, 1500), "this is one round trip's half: the sums travel around, and then the results")
    expect(
        not math.isclose(found, 12000), "this is what whole copies would take; in a round only a piece of 1/n is sent"
    )
    expect(not math.isclose(found, 1500 * 4), "the bytes of a value are not always 4: use bytes_each")
    expect_equal(float(found), 3000.0, "for 1,000 values of 2 bytes and 4 processes it")
    expect_equal(float(solution(124_439_808, 1)), 0.0, "what a single process sends")


@exercise
def mean_loss(solution) -> None:
    """The mean over tokens of several ranks."""
    found = solution([30.0, 2.0], [10, 2])
    expect(found is not None, "the result is None; is there a `return`?")
    expect(
        not math.isclose(found, 2.0),
        "this is the mean of the ranks' means (3 and 1): the rank with 2 tokens counts as much as that with 10",
    )
    expect(not math.isclose(found, 16.0), "divide by the number of tokens, not of ranks")
    expect_equal(float(found), 32 / 12, "for sums 30 and 2 over 10 and 2 tokens the mean")


@exercise
def state_bytes(solution) -> None:
    """Bytes of weights, gradients and averages under ZeRO."""
    for gpus in (8, 5):
        wanted = {0: 16.0, 1: 8 + 8 / gpus, 2: 4 + 12 / gpus, 3: 16 / gpus}
        for stage, each in wanted.items():
            found = solution(1000, gpus, stage)
            expect(found is not None, "the result is None; is there a `return`?")
            if stage == 1:
                gradients = 1000 * (12 + 4 / gpus)
                expect(
                    not math.isclose(found, gradients),
                    "stage 1 divides Adam's averages (8 bytes), not the gradients (4)",
                )
            expect_equal(float(found), 1000 * each, f"for 1,000 parameters on {gpus} GPUs in stage {stage} it")


@exercise
def end_of_step(solution) -> None:
    """When the last gradient has arrived, if buckets are sent during backward."""
    found = solution(10.0, [4.0, 4.0, 4.0], [2.0, 2.0, 6.0])
    expect(found is not None, "the result is None; is there a `return`?")
    case = "for forward 10, backward 4, 4, 4 and sending 2, 2, 6"
    expect(not math.isclose(found, 32), f"{case}, 32 is the end if all is sent after backward")
    expect(not math.isclose(found, 22), f"{case}, 22 is the end of backward; the last bucket is still to be sent")
    expect(not math.isclose(found, 18), f"{case}, the end is 28, not 18: backward starts when forward has ended")
    expect(
        not math.isclose(found, 20),
        f"{case}, the end is 28, not 20: a bucket can only be sent when its gradients are complete",
    )
    expect_equal(float(found), 28.0, f"{case} the end")
    found = solution(10.0, [4.0, 4.0], [9.0, 2.0])
    case = "for forward 10, backward 4, 4 and sending 9, 2"
    expect(
        not math.isclose(found, 20),
        f"{case}, the end is 25, not 20: the second bucket has to wait until the first is sent",
    )
    expect_equal(float(found), 25.0, f"{case} the end")
    expect_equal(float(solution(0.0, [1.0, 1.0, 5.0], [3.0, 1.0, 1.0])), 8.0, "the end, if the network has a pause,")
