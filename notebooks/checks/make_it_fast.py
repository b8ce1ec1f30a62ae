"""Checkers of notebook 07."""

import math

import torch

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


@exercise
def tiled_softmax(solution) -> None:
    """Softmax times values, a tile of scores at a time."""
    random = torch.Generator().manual_seed(0)
    scores, values = 3 * torch.randn(10, generator=random), torch.randn(10, 4, generator=random)
    scores[7] = scores.max() + 2  # the largest is not in the first tile
    wanted = scores.softmax(0) @ values
    expect_equal(solution(scores, values, 10), wanted, "with one tile of all 10 scores, the result")
    found = solution(scores, values, 4)
    expect(
        not torch.allclose(found, scores[8:].softmax(0) @ values[8:], atol=1e-5),
        "only the last tile counts; add up the sums of all tiles",
    )
    separate = sum(s.softmax(0) @ v for s, v in zip(scores.split(4), values.split(4), strict=True))
    expect(
        not torch.allclose(found, separate, atol=1e-5),
        "every tile has a softmax of its own, so the weights add up to the number of tiles; divide once, at the end",
    )
    ways = {"the sum of exponentials": (True, False), "the weighted sum of values": (False, True), "them": (True, True)}
    for what, (of_total, of_out) in ways.items():
        m, total, out = torch.tensor(-math.inf), torch.tensor(0.0), torch.zeros(4)
        for s, v in zip(scores.split(4), values.split(4), strict=True):
            largest = torch.maximum(m, s.max())
            weights, factor = (s - largest).exp(), (m - largest).exp()
            total = total * (1 if of_total else factor) + weights.sum()
            out = out * (1 if of_out else factor) + weights @ v
            m = largest
        expect(
            not torch.allclose(found, out / total, atol=1e-5),
            f"a larger score turns up in the second tile, and {what} of the first tile should be multiplied by "
            "exp(m - m') then",
        )
    for tile in (1, 3, 4, 5):
        expect_equal(solution(scores, values, tile), wanted, f"with tiles of {tile}, the result")
    found = solution(scores + 200, values, 4)
    expect(torch.isfinite(found).all(), "scores of 200 overflow: subtract the largest score so far from every score")
    expect_equal(found, wanted, "with 200 added to every score, the result", tolerance=1e-3)


class Gpu:
    """A simulated GPU with its clock: `work` starts a step and returns at once; the first step also compiles."""

    def __init__(self) -> None:
        self.now, self.done, self.started = 100.0, 100.0, 0

    def clock(self) -> float:
        """The time in seconds."""
        return self.now

    def work(self) -> None:
        """Start a step, which takes 3, 2 or 4 s. Starting takes 1 ms, and compiling a minute."""
        self.now += 0.001 if self.started else 60.0
        self.done = max(self.done, self.now) + (3.0, 2.0, 4.0)[self.started % 3]
        self.started += 1

    def synchronize(self) -> None:
        """Wait until all steps are done."""
        self.now = max(self.now, self.done)


@exercise
def fastest(solution) -> None:
    """A timer that waits, warms up, and takes the shortest time."""

    def measure(warmup: int, repeats: int) -> float:
        gpu = Gpu()
        found = solution(gpu.work, gpu.synchronize, gpu.clock, warmup, repeats)
        expect(found is not None, "the result is None; is there a `return`?")
        return float(found)

    one = measure(1, 1)
    expect(
        one > 0.5,
        f"you measure {one:.3f} s, the time to start a step: call `synchronize` before the clock is read again",
    )
    expect(one < 60, f"you measure {one:.0f} s: the first step, which compiles, is counted; warm up first")
    expect(
        one < 4.9,
        "the GPU was still busy with the warm-up when the clock was first read, and you measured that too: wait before "
        "you start the clock",
    )
    expect_equal(one, 2.001, "one step of 2 s after one of warm-up: the time", tolerance=1e-6)
    several = measure(1, 3)
    expect(
        not math.isclose(several, 3.001, abs_tol=0.01),
        "this is the mean of the steps; other programs slow down some of them, so take the shortest",
    )
    expect_equal(several, 2.001, "steps of 2, 4 and 3 s after one of warm-up: the time", tolerance=1e-6)


@exercise
def next_scale(solution) -> None:
    """The rule of a loss scaler."""

    def after(*state: object) -> tuple:
        found = solution(*state)
        expect(isinstance(found, tuple | list) and len(found) == 2, "two things should come back: scale and good_steps")
        return tuple(found)

    scale, good = after(1024.0, 5, True, 10)
    expect(scale != 2048.0, "after an overflow the factor grows; it was too large, so halve it")
    expect_equal(scale, 512.0, "after an overflow at 1,024, the factor")
    expect(good == 0, f"after an overflow good_steps is {good}; the good steps in a row start again from 0")
    scale, good = after(1024.0, 5, False, 10)
    expect(
        scale == 1024.0, f"a single good step changes the factor from 1,024 to {scale:g}; it takes `interval` of them"
    )
    expect(good == 6, f"after 5 good steps and another one, good_steps is {good}; it should be 6")
    scale, good = after(1024.0, 9, False, 10)
    expect(scale == 2048.0, f"after the tenth good step of 10 the factor is {scale:g}; it should be doubled to 2,048")
    expect(good == 0, f"after doubling, good_steps is {good}; it should be 0, or the factor doubles in every step")
    random = torch.Generator().manual_seed(0)
    own, reference, growth = (2.0**16, 0), torch.tensor(2.0**16), torch.tensor(0, dtype=torch.int32)
    for step in range(60):
        overflow = torch.rand((), generator=random).item() < 0.1
        own = after(*own, overflow, 5)
        # what `GradScaler.update` calls: factors 2 and 1/2, after 5 good steps
        torch._amp_update_scale_(reference, growth, torch.tensor(float(overflow)), 2.0, 0.5, 5)
        expect_equal(float(own[0]), reference.item(), f"in step {step} of a long run, the factor of GradScaler")
