"""Checkers of notebook 17."""

import math

import numpy as np

from checks import exercise, expect, expect_equal


@exercise
def best_size(solution) -> None:
    """The minimum of a parabola in ln(size)."""
    sizes = np.array([1e5, 3e5, 1e6, 4e6])
    best, lowest = 5e5, 2.5
    losses = lowest + 0.04 * (np.log(sizes) - math.log(best)) ** 2
    found = solution(sizes, losses)
    expect(found is not None, "the result is None; is there a `return`?")
    expect(np.shape(found) == (2,), "return two numbers: the best size, and the loss there")
    size, loss = (float(one) for one in found)
    expect(not math.isclose(size, math.log(best), rel_tol=1e-3), "this is ln(size); the size is its exponential")
    expect(not math.isclose(size, 1 / best, rel_tol=1e-3), "the minimum is at −b / (2a); the sign is lost")
    expect(not math.isclose(size, best**2, rel_tol=1e-3), "the minimum is at −b / (2a), not at −b / a")
    a, b, _ = np.polyfit(sizes, losses, 2)
    expect(
        not math.isclose(size, -b / (2 * a), rel_tol=1e-3),
        "this parabola is fitted over the size; over ln(size), doubling the size is the same step everywhere",
    )
    expect(size != sizes[losses.argmin()], "this is the best of the runs; the minimum lies between them")
    expect_equal(size / best, 1.0, "the size, as a fraction of the right one,", 1e-4)
    expect_equal(loss, lowest, "the loss at the minimum", 1e-4)


@exercise
def noise_scale(solution) -> None:
    """Signal and noise of a gradient, from its squared norms at two batch sizes."""
    signal, noise, small, big = 2.0, 24.0, 4, 16
    found = solution(signal + noise / small, signal + noise / big, small, big)
    expect(found is not None, "the result is None; is there a `return`?")
    expect(np.shape(found) == (2,), "return two numbers: |G|² and tr Σ")
    first, second = (float(one) for one in found)
    expect(
        not math.isclose(first, signal + noise / big),
        "this takes the squared norm of the larger batch for |G|²; it still contains tr Σ / B",
    )
    expect(not math.isclose(first, noise), "the order is |G|², then tr Σ")
    expect(
        not math.isclose(second, noise * small * big / (big - small) ** 2) and not math.isclose(second, 4.5),
        "the difference of the squared norms is tr Σ · (1 / small − 1 / big); divide it by that",
    )
    expect(second > 0, "tr Σ came out negative: the smaller batch has the larger squared norm")
    expect_equal(first, signal, "|G|²")
    expect_equal(second, noise, "tr Σ")
    expect_equal(np.array(solution(1.0, 1.5, 1, 2)), np.array([2.0, -1.0]), "with a noisy measurement, the result")


@exercise
def run_flops(solution) -> None:
    """FLOPs of a whole run."""
    found = solution(1000, 2, 32, 16, 500)
    expect(found is not None, "the result is None; is there a `return`?")
    right = 500 * (6 * 1000 + 12 * 2 * 32 * 16)
    expect(not math.isclose(found, 500 * 6 * 1000), "attention's own products are missing: 12 L C T per token")
    expect(not math.isclose(found, right / 500), "these are the FLOPs of one token; the run has many")
    expect(not math.isclose(found, right / 3), "this is forward alone; backward takes twice as much again")
    expect(not math.isclose(found, 500 * 6 * 1000 + 12 * 2 * 32 * 16), "attention takes its FLOPs for every token, too")
    expect_equal(float(found), float(right), "for 1,000 parameters, 2 layers, C = 32, T = 16 and 500 tokens it")


@exercise
def class_steps(solution) -> None:
    """Steps of a compute class."""
    found = solution(6, 55_416, 128, 512)
    expect(found is not None, "the result is None; is there a `return`?")
    expect(not math.isclose(found, 18_265 / 3600, rel_tol=0.3), "an hour has 3,600 seconds")
    expect(not math.isclose(found, 18_265 / 60, rel_tol=0.01), "an hour has 3,600 seconds, not 60")
    expect(not math.isclose(found, 18_265 * 512, rel_tol=0.01), "a step has batch · T tokens, not batch")
    expect(not math.isclose(found, 18_265 * 65_536, rel_tol=0.01), "these are tokens; divide by the tokens of a step")
    expect(
        not (found != 18_265 and 18_264 <= found < 18_265.5), "round to the nearest whole step: 18,264.6 becomes 18,265"
    )
    expect_equal(int(found), 18_265, "for 6 hours of small, the number of steps")
    expect_equal(int(solution(48, 16_618, 256, 512)), 21_908, "for 48 hours of medium, the number of steps")


@exercise
def run_hours(solution) -> None:
    """Hours and GPU-hours of a run with a batch near the critical one."""
    found = solution(10, 100, 50, 36_000, 2.0, 1.0)  # 3 times as many sequences; steps of 5 + 1 seconds
    expect(found is not None, "the result is None; is there a `return`?")
    expect(np.shape(found) == (2,), "return two numbers: hours, and GPU-hours")
    hours, cost = (float(one) for one in found)
    expect(not math.isclose(hours, 6480), "these are seconds")
    expect(not math.isclose(hours, 0.6), "a batch of 100 at a critical batch of 50 needs 3 times the fewest sequences")
    expect(
        not math.isclose(hours, 0.9),
        "this multiplies by 1 + B_crit / B, which is the factor of the steps; sequences grow by 1 + B / B_crit",
    )
    expect(not math.isclose(hours, 1.2), "this multiplies by B / B_crit; even a tiny batch needs the fewest sequences")
    expect(not math.isclose(hours, 1.5), "the GPUs also wait for the gradients, once per step")
    expect(not math.isclose(hours, 15.3), "the GPUs share the batch: each computes batch / gpus sequences per step")
    expect_equal(hours, 1.8, "for 10 GPUs, a batch of 100 and steps of 6 s, the number of hours")
    expect(not math.isclose(cost, 1.8), "GPU-hours count every GPU: multiply by their number")
    expect_equal(cost, 18.0, "the number of GPU-hours")


@exercise
def time_lost(solution) -> None:
    """The share of the time that a run on many GPUs loses, at the best interval."""
    gpus, hours, save, restart = 64, 6400.0, 5.0, 600.0  # a failure every 100 hours
    between = 100 * 3600
    right = math.sqrt(2 * save / between) + restart / between
    found = solution(gpus, hours, save, restart)
    expect(found is not None, "the result is None; is there a `return`?")
    expect(
        not math.isclose(found, math.sqrt(2 * save / (hours * 3600)) + restart / (hours * 3600)),
        "64 GPUs fail 64 times as often as one; divide the time between failures by their number",
    )
    expect(
        not math.isclose(found, math.sqrt(2 * save / 100) + restart / 100), "turn hours into seconds before dividing"
    )
    expect(not math.isclose(found, right - restart / between), "every failure also costs the restart")
    expect(
        not math.isclose(found, math.sqrt(2 * save * between)),
        "this is the best interval in seconds; the share lost there is √(2 · save / between)",
    )
    expect(
        not math.isclose(found, right - math.sqrt(2 * save / between) / 2),
        "this counts the saves or the lost work; at the best interval both cost equally much",
    )
    expect_equal(float(found), right, "for 64 GPUs that each fail every 6,400 hours, the share", 1e-7)
