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
    wanted = {0: 16.0, 1: 8 + 8 / 8, 2: 4 + 12 / 8, 3: 16 / 8}
    for stage, each in wanted.items():
        found = solution(1000, 8, stage)
        expect(found is not None, "the result is None; is there a `return`?")
        if stage == 1:
            expect(not math.isclose(found, 12500), "stage 1 divides Adam's averages (8 bytes), not the gradients (4)")
        expect_equal(float(found), 1000 * each, f"for 1,000 parameters on 8 GPUs in stage {stage} it")
