"""Checkers of notebook 12."""

import copy
import math

import torch
from torch import nn

from checks import exercise, expect, expect_equal


class _Loader:
    """Hands out the numbers 0, 1, 2, … as batches."""

    def __init__(self) -> None:
        self.position = 0

    def next_step(self) -> torch.Tensor:
        self.position += 1
        return torch.full((4, 8), float(self.position)).sin()

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.position = state["position"]


def _pieces(seed: int) -> tuple[nn.Module, torch.optim.Optimizer, _Loader]:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5), nn.Linear(8, 1))
    return model, torch.optim.AdamW(model.parameters(), lr=0.05), _Loader()


def _losses(model: nn.Module, optimizer: torch.optim.Optimizer, loader: _Loader, many: int) -> list[float]:
    losses = []
    for _ in range(many):
        optimizer.zero_grad()
        loss = (model(loader.next_step()) - 1).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@exercise
def resume(solution) -> None:
    """A run with dropout goes on as if it had never stopped."""
    model, optimizer, loader = _pieces(0)
    _losses(model, optimizer, loader, 3)
    parts = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "loader": loader.state_dict()}
    saved = copy.deepcopy({**parts, "random": torch.get_rng_state()})
    wanted = _losses(model, optimizer, loader, 5)

    model, optimizer, loader = _pieces(1)
    solution(copy.deepcopy(saved), model, optimizer, loader)
    same = [torch.equal(value, saved["model"][name]) for name, value in model.state_dict().items()]
    expect(all(same), "the model does not have the saved weights; the run would start from random ones")
    expect(
        optimizer.state_dict()["state"],
        "the optimiser is new: without Adam's averages the first updates are too long",
    )
    expect(loader.position == 3, f"the loader stands at position {loader.position}, not 3: it would read other text")
    expect(
        torch.equal(torch.get_rng_state(), saved["random"]),
        "the random numbers are not those of the run that was stopped, so dropout removes other values",
    )
    expect_equal(_losses(model, optimizer, loader, 5), wanted, "the losses of the resumed run")


@exercise
def run_cost(solution) -> None:
    """Dollars of a run."""
    found = solution(7.2e9, 1e6, 14.0)
    expect(found is not None, "the result is None; is there a `return`?")
    expect(not math.isclose(found, 28 * 3600), "these are dollars for as many hours as the run has seconds")
    expect(not math.isclose(found, 28 * 60), "an hour has 3,600 seconds; dividing by 60 gives minutes")
    expect(not math.isclose(found, 2), "these are hours; multiply them by the price of one hour")
    expect(found > 0.01, "divide the tokens by the speed, not the speed by the tokens")
    expect_equal(float(found), 28.0, "for 7.2 billion tokens at a million per second and 14 dollars per hour, the cost")


@exercise
def one_curve(solution) -> None:
    """The curve of a log with restarts."""
    steps = [0, 1, 2, 3, 4, 5, 2, 3, 4, 3, 4]
    losses = [9.0, 8.0, 7.0, 6.0, 5.0, 4.0, 7.5, 6.5, 5.5, 6.25, 5.25]
    found = solution(list(steps), list(losses))
    expect(found is not None, "the result is None; is there a `return`?")
    found = [(int(step), float(loss)) for step, loss in found]
    counts = [step for step, _ in found]
    expect(len(counts) == len(set(counts)), "a step is in the curve twice; a restart replaces what it repeats")
    expect(
        5 not in counts,
        "step 5 was lost in the first crash, and no later run has reached it: the last weights know nothing of it",
    )
    expect(dict(found).get(3) != 6.0, "the first loss of step 3 is of weights that were lost; a later run replaced it")
    wanted = [(0, 9.0), (1, 8.0), (2, 7.5), (3, 6.25), (4, 5.25)]
    expect_equal(found, wanted, "the curve")


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
