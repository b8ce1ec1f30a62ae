"""Checkers of notebook 07."""

import math

from checks import exercise, expect, expect_equal


@exercise
def mfu(solution) -> None:
    """Model FLOPs utilisation."""
    found = solution(1e5, 1e8, 10, 500, 2000, 1e15)
    right = 1e5 * (6e8 + 1.2e8) / 1e15
    expect(found is not None, "the result is None; is there a `return`?")
    expect(not math.isclose(found, right / 3), "this counts forward alone; backward takes twice as much again")
    expect(
        not math.isclose(found, 1e5 * (2e8 + 1.2e8) / 1e15), "6 FLOPs a parameter, not 2: backward takes twice forward"
    )
    expect(
        not math.isclose(found, 1e5 * 6e8 / 1e15),
        "attention's products of queries with keys, and with values, are missing",
    )
    expect(
        not math.isclose(found, 1e5 * (6e8 + 6e7) / 1e15),
        "attention has two products: scores, and weights times values",
    )
    expect(found < 1, f"{found:.3g} is more than the peak: divide what is reached by the peak")
    expect_equal(float(found), right, "the MFU")


@exercise
def roof(solution) -> None:
    """The shortest time of an operation."""
    for flops, moved, name in ((8e12, 1e9, "computing"), (1e9, 4e12, "fetching")):
        found = solution(flops, moved, 1e12, 1e12)
        both = (flops + moved) / 1e12
        expect(found is not None, "the result is None; is there a `return`?")
        expect(
            not math.isclose(found, both, rel_tol=1e-6),
            "this is the sum; computing and fetching go on at the same time, so the longer of the two decides",
        )
        expect(
            not math.isclose(found, min(flops, moved) / 1e12),
            "this is the shorter of the two times; it waits for the longer",
        )
        expect_equal(float(found), max(flops, moved) / 1e12, f"where {name} takes longer, the time", tolerance=1e-9)
