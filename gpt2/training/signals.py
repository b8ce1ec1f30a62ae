"""Requests to stop: SIGTERM, Ctrl-C, or the signal that a Slurm job gets before its time is up.

Built in notebook 12.
"""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1") if hasattr(signal, name)]
ECHO_SECONDS = 1.0  # one request may arrive twice: from the scheduler itself, and passed on by torchrun


class Interruption:
    """Remembers the first request to stop, for the training loop to act on. A second one ends the process at once."""

    def __init__(self) -> None:
        self.name: str | None = None  # of the first signal
        self._received_at = 0.0

    def receive(self, number: int, frame: FrameType | None = None) -> None:
        """Handle one signal."""
        if self.name is None:
            self.name, self._received_at = signal.Signals(number).name, time.monotonic()
        elif time.monotonic() - self._received_at > ECHO_SECONDS:
            os._exit(128 + number)


@contextmanager
def interruptible() -> Iterator[Interruption]:
    """Within the block, signals that ask to stop go to an `Interruption`. For the main thread of a process only."""
    interruption = Interruption()
    before = {number: signal.signal(number, interruption.receive) for number in SIGNALS}
    try:
        yield interruption
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
