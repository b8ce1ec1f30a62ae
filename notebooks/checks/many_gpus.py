"""Checkers of notebook 09."""

import math

from checks import exercise, expect, expect_equal


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
