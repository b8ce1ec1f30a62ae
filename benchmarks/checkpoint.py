"""How long a checkpoint of GPT-2 124M with its optimiser keeps training waiting, beside a plain torch.save of the same.

    python benchmarks/checkpoint.py [--folder DIR] [--rounds 5]

Both in turn in one process; medians. While the thread writes, training goes on and shares the machine with it. The
last line says what that costs.
"""

import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro

from gpt2.config.run import Optim
from gpt2.model import GPT, GPTConfig
from gpt2.optim.optimizer import make_optimizer
from gpt2.optim.outliers import OutlierDetector
from gpt2.system.devices import synchronize
from gpt2.system.machine import processor_name
from gpt2.system.processes import Processes, process_group
from gpt2.training.saving import Checkpoints, TrainingState


@dataclass(frozen=True)
class Options:
    """Time checkpoints of GPT-2 124M."""

    folder: Path | None = None
    """Where to write [a temporary folder]."""
    rounds: int = 5


class NoData:
    """In place of a TokenLoader: this run has no data."""

    def state_dict(self) -> dict[str, int]:
        """Nothing."""
        return {}


def median_of(seconds: list[float]) -> str:
    return f"{statistics.median(seconds):.3f} s (from {min(seconds):.3f} to {max(seconds):.3f})"


def main() -> None:
    options = tyro.cli(Options)
    with process_group() as processes:
        measure(options, processes)


def measure(options: Options, processes: Processes) -> None:
    """Save in both ways in turn, and print the medians."""
    model = GPT(GPTConfig()).to(processes.device)
    optimizer = make_optimizer(model, Optim(lr=1e-4))
    optimizer.begin(1)
    scaler = torch.amp.GradScaler(processes.device.type, enabled=False)
    state = TrainingState(model, model, optimizer, scaler, NoData(), OutlierDetector(0, 0))  # type: ignore[arg-type]
    fingerprint: dict[str, Any] = {"settings": {}, "shards": []}
    x = torch.randint(50257, (1, 256), device=processes.device)

    def step() -> float:
        """One small training step, in seconds."""
        started = time.perf_counter()
        model(x, x).backward()
        optimizer.step()
        optimizer.zero_grad()
        synchronize(processes.device)
        return time.perf_counter() - started

    plain, pause, alone, beside = [], [], [], []
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        checkpoints = Checkpoints(Path(folder), processes, keep=1, keep_every=0)
        checkpoints.save(state, fingerprint)  # the first save allocates the memory for the copies
        checkpoints.finish()
        for i in range(options.rounds):
            synchronize(processes.device)
            started = time.perf_counter()
            torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, Path(folder, "plain.pt"))
            plain.append(time.perf_counter() - started)
            alone += [step() for _ in range(3)]
            started = time.perf_counter()
            state.step = i + 1
            checkpoints.save(state, fingerprint)
            pause.append(time.perf_counter() - started)
            while checkpoints.writing is not None and not checkpoints.writing.done():
                beside.append(step())
            assert checkpoints.finish() is None
        size = sum(t.numel() * t.element_size() for t in state.tensors().values())
        checkpoints.close()
    print(f"{size / 1e9:.2f} GB on {processor_name()}, torch {torch.__version__}, {options.rounds} rounds")
    print(f"torch.save:            {median_of(plain)}")
    print(f"pause of a checkpoint: {median_of(pause)}")
    print(f"                       {statistics.median(pause) / statistics.median(plain):.1%} of that")
    print(f"a step of 256 tokens:  {median_of(alone)}")
    print(f"while one is written:  {median_of(beside)}")


if __name__ == "__main__":
    main()
