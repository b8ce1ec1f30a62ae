"""Checkers of notebook 12."""

import math

from checks import exercise, expect, expect_equal


@exercise
def removable(solution) -> None:
    """Checkpoints that need not be kept."""
    steps = [250, 1000, 500, 750, 1250, 1500, 2000, 1750]
    found = solution(list(steps), 2, 1000)
    expect(found is not None, "the result is None; is there a `return`?")
    expect(not {1750, 2000} & set(found), f"{sorted(found)} has one of the newest two, 1750 and 2000, which are kept")
    expect(1000 not in found, "1000 is kept for good: 1,000 divides it")
    expect_equal(list(found), [250, 500, 750, 1250, 1500], "what may be removed, in order,")
    expect_equal(list(solution(list(steps), 3, 0)), [250, 500, 750, 1000, 1250], "with keep 3 and keep_every 0 it")


@exercise
def lost_fraction(solution) -> None:
    """The part of the time that saving and failing take."""
    found = solution(100.0, 2.0, 10_000.0)
    expect(found is not None, "the result is None; is there a `return`?")
    expect(not math.isclose(found, 0.03), "a failure comes at any moment: on average half an interval is lost, not all")
    expect(not math.isclose(found, 0.02), "this is saving alone; failures lose something too")
    expect(not math.isclose(found, 0.005), "this is failing alone; every save takes time too")
    expect(
        not math.isclose(found, 2 / 102 + 0.005),
        "this divides the saves by training and saving together; count the seconds lost per second of training",
    )
    expect_equal(float(found), 0.025, "for an interval of 100 s, saves of 2 s and failures every 10,000 s the part")
    again = solution(400.0, 1.0, 5000.0)
    expect_equal(float(again), 0.0425, "for an interval of 400 s, saves of 1 s and failures every 5,000 s the part")
