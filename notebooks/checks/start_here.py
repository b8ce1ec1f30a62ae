"""Checkers of notebook 00."""

import numpy as np

from checks import exercise, expect, expect_equal
from gpt2.logs.plot import smooth


@exercise
def hours(solution) -> None:
    """Hours of a run."""
    found = solution(7.2e9, 1e6)
    expect(found is not None, "the result is None; is there a `return`?")
    expect(abs(found - 7200) > 1e-6, "7.2 billion tokens at a million tokens/s took 7,200: these are seconds")
    expect(abs(found - 120) > 1e-6, "7.2 billion tokens at a million tokens/s took 120: these are minutes")
    expect(found > 0.01, f"7.2 billion tokens at a million tokens/s took {found:.3g} hours: divide tokens by speed")
    expect_equal(float(found), 2.0, "the hours for 7.2 billion tokens at a million tokens/s")


@exercise
def running_mean(solution) -> None:
    """A centred running mean."""
    values = np.array([4.0, 2.0, 6.0, 0.0, 8.0, 1.0])
    found = solution(values.copy(), 3)
    wanted = smooth(values, 3)
    expect(found is not None, "the result is None; is there a `return`?")
    expect(len(found) == 6, f"6 values became {len(found)}; there should be a mean for each")
    found = np.asarray(found)
    behind = np.array([4.0, 3.0, 4.0, 8 / 3, 14 / 3, 3.0])
    expect(not np.allclose(found[:5], behind[:5]), "the window ends at i; half of it should lie before i, half after")
    expect(not np.isclose(found[-1], 3.0), "at the ends, divide by the number of values there are, not by the window")
    expect_equal(found, wanted, "the running mean of [4, 2, 6, 0, 8, 1] over 3")
