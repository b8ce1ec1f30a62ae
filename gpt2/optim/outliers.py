"""Detection of steps whose loss or gradient norm is an outlier, so that they can be skipped.

Built in notebook 08.
"""

import math
from collections import deque
from typing import Any

from gpt2.system.errors import UserError

WINDOW = 128  # values that a new one is compared with, itself included, as in llm.c
LARGEST_Z = math.sqrt(WINDOW - 1)  # of one value among WINDOW, if all others are equal


class OutlierDetector:
    """Finds the steps to skip: those whose loss or gradient norm is not finite, or too far above recent values."""

    def __init__(self, loss_z: float, norm_z: float):
        """Set the limits, in standard deviations above the window's mean; 0 allows all finite values.

        Raises UserError for a limit that no value can exceed.
        """
        for flag, limit in (("loss", loss_z), ("norm", norm_z)):
            if limit >= LARGEST_Z:
                raise UserError(
                    f"--optim.skip-{flag}-z {limit:g} would never act, since a value counts in the mean that it is "
                    f"compared with; give less than {LARGEST_Z:.1f}, or 0 to switch it off"
                )
        self.limits = {"loss": loss_z, "gradient norm": norm_z}
        self.windows: dict[str, deque[float]] = {name: deque(maxlen=WINDOW) for name in self.limits}
        self.in_a_row = 0  # steps to skip since the last good one

    def check(self, loss: float, norm: float) -> str | None:
        """Return why this step is to be skipped, or None if it is good. Every process gets the same answer."""
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
        """The values seen so far, in types of JSON."""
        return {"in_a_row": self.in_a_row, **{name: list(window) for name, window in self.windows.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from the result of `state_dict`."""
        self.in_a_row = state["in_a_row"]
        for name, window in self.windows.items():
            window.extend(state[name])


def score(window: deque[float]) -> float:
    """The z-score of the newest value in a full window; 0 while the window fills, and if all values are equal."""
    if len(window) < WINDOW:
        return 0.0
    mean = math.fsum(window) / WINDOW
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in window) / WINDOW)
    return (window[-1] - mean) / deviation if deviation > 0 else 0.0
