"""Stopping when asked: SIGTERM, Ctrl-C, or the signal that a Slurm job gets before its time is up.

Holds:    `Interruption`.
Built in: notebook 12.
Imports:  the standard library.
"""

import os
import signal
import time
from types import FrameType

SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1") if hasattr(signal, name)]
ECHO_SECONDS = 1.0  # one request may arrive twice: from the scheduler itself, and handed on by torchrun


class Interruption:
    """Remembers the first request to stop, for the training loop to act on; a second one ends the process at once."""

    def __init__(self) -> None:
        """From now on in this process; only its main thread may do this."""
        self.name: str | None = None  # of the signal that came first
        self._first = 0.0
        for each in SIGNALS:
            signal.signal(each, self._receive)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.name is None:
            self.name, self._first = signal.Signals(number).name, time.monotonic()
        elif time.monotonic() - self._first > ECHO_SECONDS:
            os._exit(128 + number)
