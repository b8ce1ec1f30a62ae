"""Which optimiser steps are better not made.

Built in notebook 08.
"""

import math
from collections import deque
from typing import Any

from gpt2.system.errors import UserError

WINDOW = 128  # measurements that a new one is compared with, itself included, as in llm.c
LARGEST_Z = math.sqrt(WINDOW - 1)  # of one value among WINDOW, when all others are equal


class OutlierDetector:
    """Judges the loss and gradient norm of every step; what isn't finite, or sticks out too far, is to be skipped."""

    def __init__(self, loss_z: float, norm_z: float):
        """Skip above so many standard deviations over the window's mean; 0: only what isn't finite.

        Raises UserError for a limit that nothing can exceed.
        """
        for flag, limit in (("loss", loss_z), ("norm", norm_z)):
            if limit >= LARGEST_Z:
                raise UserError(
                    f"--optim.skip-{flag}-z {limit:g} would never act, since a value counts in the mean that it is "
                    f"compared with; give less than {LARGEST_Z:.1f}, or 0 to switch it off"
                )
        self.limits = {"loss": loss_z, "gradient norm": norm_z}
        self.windows: dict[str, deque[float]] = {name: deque(maxlen=WINDOW) for name in self.limits}
        self.in_a_row = 0  # steps skipped without one made between them

    def check(self, loss: float, norm: float) -> str | None:
        """Why this step is to be skipped; None where it is to be made. Every process gets the same answer."""
        reasons = []
        for name, value in (("loss", loss), ("gradient norm", norm)):
            if not math.isfinite(value):
                reasons.append(f"the {name} is {value}")
                continue
            self.windows[name].append(value)
            z = score(self.windows[name])
            if 0 < self.limits[name] < z:
                reasons.append(f"the {name} is {value:.4f}, {z:.1f} standard deviations above its mean")
        self.in_a_row = self.in_a_row + 1 if reasons else 0
        return " and ".join(reasons) or None

    def state_dict(self) -> dict[str, Any]:
        """What has been seen, as JSON can hold it."""
        return {"in_a_row": self.in_a_row, **{name: list(window) for name, window in self.windows.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        self.in_a_row = state["in_a_row"]
        for name, window in self.windows.items():
            window.extend(state[name])


def score(window: deque[float]) -> float:
    """The z-score of the newest value in a full window; 0 while it fills, or where nothing varies."""
    if len(window) < WINDOW:
        return 0.0
    mean = math.fsum(window) / WINDOW
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in window) / WINDOW)
    return (window[-1] - mean) / deviation if deviation > 0 else 0.0
