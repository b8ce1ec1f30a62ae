"""The game of notebook 18, and its checkers."""

import base64
import json
import math
from typing import Any

import numpy as np
import torch

from checks import Wrong, exercise, expect, museum
from checks.broken import LeakyBlock, ToyRun, accumulate

DIAGNOSES = (
    *("targets not shifted", "targets shifted twice", "no mask", "padding counted", "not divided"),
    *("gradients not cleared", "schedule per micro batch", "same text on every rank", "file order", "ids wrapped"),
    *("validated in training mode", "validation text moves on", "validated on training text"),
    *("resumed without optimizer", "resumed at the first rate", "last micro batch logged", "no bug, another seed"),
)
# per case: the bug, the curve that is shown, and whether the bug is A; encoded, so that nobody reads it by accident
_CASES = (
    "W1sibm8gbWFzayIsICJwcmludGVkIiwgZmFsc2VdLCBbIm5vdCBkaXZpZGVkIiwgIm5vcm0iLCB0cnVlXSwgWyJ2YWxpZGF0"
    "aW9uIHRleHQgbW92ZXMgb24iLCAicHJpbnRlZCIsIGZhbHNlXSwgWyJzY2hlZHVsZSBwZXIgbWljcm8gYmF0Y2giLCAicHJp"
    "bnRlZCIsIHRydWVdLCBbIm5vIGJ1ZywgYW5vdGhlciBzZWVkIiwgInByaW50ZWQiLCBmYWxzZV0sIFsicmVzdW1lZCB3aXRo"
    "b3V0IG9wdGltaXplciIsICJwcmludGVkIiwgdHJ1ZV0sIFsidGFyZ2V0cyBzaGlmdGVkIHR3aWNlIiwgInByaW50ZWQiLCBm"
    "YWxzZV0sIFsicGFkZGluZyBjb3VudGVkIiwgInByaW50ZWQiLCB0cnVlXV0="
)
CURVES = {"printed": "validation loss, as printed", "norm": "gradient norm, as printed", "train": "training loss"}


def _cases() -> list[tuple[str, str, bool]]:
    return [tuple(case) for case in json.loads(base64.b64decode(_CASES))]


def _pair(name: str, what: str) -> tuple[np.ndarray, np.ndarray]:
    """The mean curves of the right run and of a diagnosis: what both logs say."""
    if name == "no bug, another seed":
        right = museum.curves("right", what)
        return right[0], right[1]
    base = museum.EXHIBITS[name].base
    wrong = museum.curves(name, what)
    right = museum.curves("right" if base != "padded" else "padded", what)[: len(wrong)]
    if what in ("norm", "train"):  # single steps, of one seed
        return right[0], wrong[0]
    return right.mean(0), wrong.mean(0)


def _draw(axis: Any, number: int, guess: str | None = None) -> None:
    name, what, first = _cases()[number - 1]
    right, wrong = _pair(name, what)
    kept = museum.results()
    skip = museum.FIRST if what == "printed" else 0
    every = kept["every"] if what == "printed" else kept["steps"] // len(right)
    steps = (np.arange(skip, len(right)) + (what != "printed")) * every
    for label, line, values in (("A", "-", wrong if first else right), ("B", "--", right if first else wrong)):
        axis.plot(steps, values[skip:], line, label=label, linewidth=1.2)
    if guess:
        axis.plot(steps, _pair(guess, what)[1][skip:], "C3:", label=guess, linewidth=1.6)
    axis.set(xlabel="step", ylabel=CURVES[what])
    axis.set_title(f"case {number}", fontsize=10)
    axis.legend(fontsize=8)


def show(*numbers: int) -> None:
    """Draw what the logs of the two runs A and B say, in these cases [all]."""
    import matplotlib.pyplot as plt

    numbers = numbers or tuple(range(1, len(_cases()) + 1))
    rows = math.ceil(len(numbers) / 4)
    width = min(4, len(numbers))
    size = (2.8 * width, 2.2 * rows) if len(numbers) > 1 else (6, 3)
    figure, panels = plt.subplots(rows, width, figsize=size, dpi=75, layout="constrained", squeeze=False)
    for axis, number in zip(panels.flat, numbers, strict=False):
        _draw(axis, number)
        if number != numbers[0]:
            axis.get_legend().remove()
    for axis in panels.flat[len(numbers) :]:
        axis.axis("off")
    figure.suptitle("Which run has a bug, A or B, and which bug?", fontsize=11)
    plt.show()


def game(answers: dict[int, str | None]) -> None:
    """Say of each answer whether it is right, or what its bug would have shown instead; then the score."""
    import matplotlib.pyplot as plt

    cases, score, waiting, wrong = _cases(), 0, 0, []
    for number, (name, what, first) in enumerate(cases, start=1):
        answer = answers.get(number)
        if answer is None:
            waiting += 1
            continue
        if answer not in DIAGNOSES:
            print(f"case {number}: {answer!r} is not in the list of diagnoses")
        elif answer == name:
            score += 1
            which = "neither run has a bug" if name == DIAGNOSES[-1] else f"the bug is in {'A' if first else 'B'}"
            print(f"case {number}: right, {which}")
        else:
            wrong.append((number, answer))
            print(f"case {number}: not this. {_instead(name, answer, what)}")
    if wrong:
        size = (3.6 * len(wrong), 2.6)
        _, panels = plt.subplots(1, len(wrong), figsize=size, layout="constrained", squeeze=False)
        for axis, (number, answer) in zip(panels[0], wrong, strict=True):
            _draw(axis, number, answer)
        plt.show()
    left = f" {waiting} not answered yet." if waiting else ""
    print(f"Score: {score} of {len(cases)}.{left}")


def _instead(name: str, guess: str, what: str) -> str:
    """By how much the curve of a wrong diagnosis differs from that of the case."""
    (right, shown), (_, other) = _pair(name, what), _pair(guess, what)
    late = slice(-max(1, len(shown) // 10), None)
    here, there, healthy = (float(one[late].mean()) for one in (shown, other, right))
    unit = "nats per byte" if what != "norm" else "in the norm"
    if abs(here - there) < (museum.spread() if what != "norm" else 0.1):
        return (
            f"With {guess!r}, this curve would end almost as here, {abs(here - there):.3f} {unit} away, so look at its "
            "whole course"
        )
    return (
        f"With {guess!r}, the curve would end at {there:.3f}; here it ends at {here:.3f}, and the right one at "
        f"{healthy:.3f}: {museum.signed(there - here)} {unit}"
    )


def _says(found: Any, what: str) -> bool:
    """The verdict of a reader's check, which is True or False."""
    expect(found is not None, f"{what} it returns None; is there a `return`?")
    expect(isinstance(found, bool | np.bool_) or torch.is_tensor(found), f"{what} it returns {found!r}, not a bool")
    return bool(found)


@exercise
def leaks(solution) -> None:
    """A test for leaks that LayerNorm does not fool."""
    right, none, one = LeakyBlock(0), LeakyBlock(99), LeakyBlock(1)
    for block, known in ((right, False), (none, True), (one, True)):
        block.verdict = _says(solution(block), "for a block") == known
    if len(none.inputs) >= 2:
        change = none.inputs[1] - none.inputs[0]
        changed = change.abs().amax(dim=(0, 2)).nonzero()
        expect(len(changed), "the two inputs are the same; change one position")
        where = int(changed[-1])
        expect(where > 0, "the changed position is 0, and no position stands before it; change a late one")
        constant = (change[0, where] - change[0, where, 0]).abs().max() < 1e-4
        expect(
            none.verdict or not constant,
            "a block without a mask passes, because your change is the same number in all channels: LayerNorm "
            "subtracts it, and attention never sees it; add a random vector",
        )
    expect(
        right.verdict,
        "a block with a causal mask is called leaky: outputs from the changed position on may change, so compare only "
        "those before it, with a tolerance of 1e-5",
    )
    expect(none.verdict, "a block without any mask passes; compare all outputs before the changed position")
    expect(
        one.verdict,
        "a block whose positions see one position ahead passes; the output just before the changed position must be "
        "compared too",
    )


@exercise
def same_gradient(solution) -> None:
    """Whether accumulated micro-batches have the gradient of the whole batch."""
    from gpt2.model import GPT, GPTConfig

    torch.manual_seed(0)
    model = GPT(GPTConfig(block_size=8, vocab_size=64, n_layer=1, n_head=2, n_embd=16))
    x, y = torch.randint(64, (2, 8, 8))
    y[:2, 2:] = -100  # the first micro-batch has fewer targets
    sentences = {
        "right": "the right accumulation is called wrong: clear the gradients before each of the two runs, and compare "
        "with a tolerance, since sums in another order differ in the last digits",
        "sums": "a version passes that forgets to divide: its loss is right, and its gradients are 4 times as large; "
        "compare the gradients, not the losses",
        "last": "a version passes that clears the gradients in every micro-step, so that only the last counts",
        "means": "a version passes that averages the means of micro-batches with unequal counts; compare the values "
        "of the gradients, not only their length or their sum",
    }
    for kind, sentence in sentences.items():
        model.zero_grad()
        found = solution(model, lambda m, a, b, parts, kind=kind: accumulate(m, a, b, parts, kind), x, y)
        expect(_says(found, "for the right version") == (kind == "right"), sentence)


@exercise
def starts_at_chance(solution) -> None:
    """Whether the first loss is that of a guess among all tokens."""
    cases = {
        (10.95, 50257): (True, "GPT-2's usual first loss, 10.95 with 50,257 tokens, is refused; ln 50257 is 10.82"),
        (5.548, 257): (True, "5.548 with 257 tokens is refused; ln 257 is 5.549, the natural logarithm"),
        (4.839, 257): (False, "4.839 with 257 tokens passes: a first loss *below* ln V means that the answer is known"),
        (8.0, 257): (False, "8.0 with 257 tokens passes, which is far above ln 257 = 5.549"),
        (5.548, 50257): (False, "5.548 with 50,257 tokens passes; the limit has to depend on the vocabulary"),
    }
    for (loss, size), (known, sentence) in cases.items():
        expect(_says(solution(loss, size), f"for a loss of {loss}") == known, sentence)


@exercise
def repeats(solution) -> None:
    """Whether two evaluations of the same weights give the same number."""
    moving, noisy = iter([2.71, 2.713, 2.69, 2.70] * 9), np.random.default_rng(0)
    expect(_says(solution(lambda: 2.71), "for a right evaluation"), "an evaluation that always gives 2.71 is refused")
    expect(
        not _says(solution(lambda: next(moving)), "for a moving text"),
        "an evaluation passes whose text moves on: 2.710 and then 2.713; the two must be equal, not near",
    )
    expect(
        not _says(solution(lambda: 2.71 + 1e-4 * noisy.standard_normal()), "with dropout"),
        "an evaluation in training mode passes, whose values differ by 0.0001",
    )


@exercise
def ranks_agree(solution) -> None:
    """Whether the ranks hold equal weights after the first step, and read different text."""
    w = torch.linspace(-1, 1, 5)
    off = w + torch.tensor([0.0, 0.004, 0, 0, 0])
    cases = (
        ([w, w.clone()], [5.51, 5.53], True, "equal weights and different losses are refused"),
        ([w, off], [5.51, 5.53], False, "ranks pass whose weights differ by 0.004 in one place; they must be equal"),
        ([w, w.clone()], [5.51, 5.51], False, "ranks pass whose losses are equal: they read the same text"),
        (
            [w, w.clone(), off],
            [5.51, 5.53, 5.50],
            False,
            "rank 2 of 3 has other weights and passes; compare all ranks",
        ),
        ([w] * 3, [5.53, 5.51, 5.51], False, "ranks 1 and 2 of 3 read the same text, and pass; no two may be equal"),
        ([w] * 3, [5.53, 5.51, 5.50], True, "three ranks with equal weights and different losses are refused"),
    )
    for weights, losses, known, sentence in cases:
        expect(_says(solution(weights, losses), "for some ranks") == known, sentence)


@exercise
def resumes_exactly(solution) -> None:
    """Whether a run that was saved and loaded goes on as if nothing had happened."""
    expect(
        _says(solution(ToyRun, 5), "for a right run"),
        "a run that resumes exactly is refused: compare the steps after loading with the second half of a run that was "
        "not interrupted, and begin every run with `make()`",
    )
    for forgets, why in {
        "weights": "its weights",
        "position": "the place in the data",
        "random": "the random numbers",
        "averages": "Adam's averages: the first loss after loading is right, because it only depends on the weights",
        "step": "the step of the schedule: the first loss after loading is right, and the first update is too long",
    }.items():
        found = _says(solution(lambda forgets=forgets: ToyRun(forgets), 5), "for a broken run")
        if found:
            raise Wrong(f"a run passes that does not load {why}; load into a new run, and compare all later losses")
    expect(
        not _says(solution(lambda: ToyRun("copies"), 5), "for a broken run"),
        "a run passes whose saved state goes on changing with it; after saving, make a step before you load the state "
        "into a new run",
    )
