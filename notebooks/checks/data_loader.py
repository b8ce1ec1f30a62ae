"""Checkers of notebook 06."""

from itertools import product

import numpy as np

from checks import Wrong, exercise, expect, expect_equal


def _bin(count: int, magic: int = 20240520, version: int = 1) -> bytes:
    """A .bin shard of `count` tokens."""
    header = np.zeros(256, dtype="<i4")
    header[:3] = magic, version, count
    return header.tobytes() + np.arange(count, dtype="<u2").tobytes()


def _accepts(solution, raw: bytes) -> bool:
    """Whether a solution takes these bytes for a shard."""
    try:
        solution(raw)
    except ValueError:
        return False
    return True


@exercise
def tokens_in(solution) -> None:
    """The number of tokens in a .bin file, or ValueError."""
    whole, empty = _bin(5), _bin(0)
    if not _accepts(solution, whole):
        expect(
            not _accepts(solution, empty),
            "a whole file of 5 tokens is refused, though one of 0 tokens isn't: how many bytes does a token take?",
        )
        raise Wrong("a whole file of 5 tokens is refused; are the header's 256 integers read with the low byte first?")
    found = solution(whole)
    expect(found is not None, "for a file of 5 tokens it returns None; is there a `return`?")
    expect(found != 10, "a file of 5 tokens is said to hold 10: these are bytes, and a token takes two")
    expect_equal(int(found), 5, "the number of tokens in a file of 5")
    damaged = {
        "that starts with 20240521 instead of the magic number": _bin(5, magic=20240521),
        "of version 7": _bin(5, version=7),
        "that was cut one token short": whole[:-2],
        "with two bytes too many": whole + b"\0\0",
        "that was cut inside its header": whole[:1000],
        "that is empty": b"",
    }
    for what, raw in damaged.items():
        expect(not _accepts(solution, raw), f"a file {what} is accepted; it should raise ValueError")


@exercise
def sequences_in(solution) -> None:
    """Number of sequences in a line of tokens, and the tokens at its end that are never used."""
    found = solution(41, 4)
    expect(found is not None, "the result is None; is there a `return`?")
    expect(len(found) == 2, f"two numbers are wanted, and there are {len(found)}")
    for tokens, T, sequences, left in ((41, 4, 10, 0), (40, 4, 9, 3), (44, 4, 10, 3), (4, 4, 0, 4), (1, 4, 0, 1)):
        mine, rest = (int(number) for number in solution(tokens, T))
        case = f"{tokens} tokens with T = {T}"
        expect(
            mine != tokens // T or mine == sequences,
            f"{case} give {sequences} sequences, not {mine}: the last input needs a target after it, which is one more "
            "token",
        )
        expect(
            mine != tokens // (T + 1) or mine == sequences,
            f"{case} give {sequences} sequences, not {mine}: neighbours share a token, so each further sequence takes "
            "only T more",
        )
        expect_equal(mine, sequences, f"for {case}, the number of sequences")
        expect(
            rest != left + 1 or not sequences,
            f"of {case}, {left} are never used, not {rest}: the last target is used, too",
        )
        expect(
            sequences or rest == left,
            f"{case} give no sequence, so all {left} are never used, not {rest}",
        )
        expect_equal(rest, left, f"for {case}, the number of tokens that are never used")


@exercise
def who_reads(solution) -> None:
    """Step, rank, micro-step and row of a sequence."""
    batch, world, micro_batch = 24, 2, 3  # 12 a process, in 4 micro-steps
    found = [solution(number, batch, world, micro_batch) for number in range(3 * batch)]
    case = "with 24 sequences a step, 2 processes and micro-batches of 3"
    expect(found[0] is not None, "the result is None; is there a `return`?")
    expect(all(len(row) == 4 for row in found), f"four numbers are wanted, and there are {len(found[0])}")
    found = [tuple(int(n) for n in row) for row in found]
    right = [(step, *place) for step, place in product(range(3), product(range(2), range(4), range(3)))]
    for number, (mine, wanted) in enumerate(zip(found, right, strict=True)):
        told = f"{case}, sequence {number} is in"
        expect(
            mine[0] == wanted[0],
            f"{told} step {wanted[0]}, not {mine[0]}: a step has 24 sequences over all processes, steps count from 0",
        )
        expect(
            mine[1] == wanted[1],
            f"{told} rank {wanted[1]}'s share, not rank {mine[1]}'s: a rank's 12 sequences lie side by side",
        )
        expect(
            mine[2] == wanted[2],
            f"{told} micro-step {wanted[2]} of its rank, not {mine[2]}: a micro-step takes 3 sequences side by side",
        )
        expect(
            mine[3] == wanted[3], f"{told} row {wanted[3]} of its micro-batch, not {mine[3]}: rows count from 0 to 2"
        )


def _mix(number: int, key: int, half: int) -> int:
    """Another mixing function than the notebook's."""
    return (number * 37 + key * 11 + number * number * 5 + 3) % 2**half


def _feistel(x: int, half: int, keys: tuple[int, ...]) -> int:
    left, right = divmod(x, 2**half)
    for key in keys:
        left, right = right, left ^ _mix(right, key, half)
    return left * 2**half + right


def _rounds_right(solution, half: int, keys: tuple[int, ...]) -> bool:
    return all(solution(_feistel(x, half, keys), half, keys, _mix) == x for x in range(4**half))


@exercise
def undo(solution) -> None:
    """The inverse of a Feistel network."""
    half, keys = 3, (4, 1, 7, 2)
    expect(solution(0, half, keys, _mix) is not None, "the result is None; is there a `return`?")
    expect(
        _rounds_right(solution, half, ()),
        f"without any key nothing should change, and 9 becomes {solution(9, half, (), _mix)}: how are the halves "
        "joined again?",
    )
    once = _feistel(9, half, (4,))
    expect(
        _rounds_right(solution, half, (4,)),
        f"one round maps 9 to {once}, and undoing it gives {solution(once, half, (4,), _mix)}: the old right half is "
        "now the left one, so mix that; and the halves change sides again",
    )
    expect(
        _rounds_right(solution, half, keys),
        "one round is undone well, four are not: the round that came last has to be undone first",
    )
