"""How good a model is on held-out text.

Holds:    `validate`, `bits_per_byte`, and `python -m gpt2.evaluate RUN`, which sets the model beside compressors.
Built in: notebook 11.
Imports:  torch, numpy, tyro, gpt2.distributed, gpt2.generate, gpt2.loader, gpt2.presets, gpt2.shards, gpt2.tokenizer.
"""

import bz2
import gzip
import lzma
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import tyro
from torch import Tensor

from gpt2.distributed import Processes, autocast, choose_precision, start
from gpt2.errors import UserError, run_command
from gpt2.generate import load
from gpt2.loader import Sequences
from gpt2.presets import from_json
from gpt2.shards import find_shards
from gpt2.tokenizer import get_encoding, token_bytes

IGNORED = -100  # a target that does not count


def bits_per_byte(nats: float, text_bytes: float) -> float:
    """Summed loss in nats over `text_bytes` of text → bits a byte, comparable across vocabularies."""
    return nats / math.log(2) / text_bytes


def validate(
    loss_of: Callable[[Tensor, Tensor], Tensor],
    sequences: Sequences,
    tokens: int,
    micro_batch: int,
    processes: Processes,
    sizes: np.ndarray,
) -> tuple[float, float]:
    """Mean loss (nats per token) and bits per byte over the first `tokens` tokens, always the same ones.

    `loss_of(x, y)` is the mean loss of a micro-batch (micro_batch, T); `sizes` are the bytes behind each token.
    Micro-batches go round the processes; the last is filled up with ignored targets, so shapes never change.
    """
    count = min(len(sequences), max(1, tokens // sequences.block_size))
    nats, scored, text_bytes = 0.0, 0, 0
    for first in range(processes.rank * micro_batch, count, processes.world_size * micro_batch):
        index = np.arange(first, first + micro_batch)
        rows = sequences.read(np.minimum(index, count - 1)).astype(np.int64)
        targets = rows[:, 1:].copy()
        text_bytes += int(sizes[targets[index < count]].sum())
        targets[index >= count] = IGNORED
        x, y = (torch.from_numpy(np.ascontiguousarray(a)).to(processes.device) for a in (rows[:, :-1], targets))
        here = int((targets != IGNORED).sum())
        nats += loss_of(x, y).item() * here
        scored += here
    nats, total, total_bytes = processes.sum(nats, scored, text_bytes)
    return nats / total, bits_per_byte(nats, total_bytes)


def compressed_bits_per_byte(text: bytes) -> dict[str, float]:
    """Bits that gzip, bz2 and xz need for each byte of `text`, at their strongest setting."""
    packers: dict[str, Callable[[bytes], bytes]] = {
        "gzip": gzip.compress,
        "bz2": bz2.compress,
        "xz": lambda data: lzma.compress(data, preset=9),
    }
    return {name: 8 * len(pack(text)) / len(text) for name, pack in packers.items()}


@dataclass(frozen=True)
class Options:
    """Loss and bits per byte of a run's model on its held-out text, beside gzip, bz2 and xz on the same bytes."""

    run: Annotated[str, tyro.conf.Positional]
    """Run folder."""
    tokens: int | None = None
    """Validation tokens, from the start [as many as the run used]."""
    micro_batch: int = 8


def main() -> None:
    """`python -m gpt2.evaluate`: see `Options`."""
    options = tyro.cli(Options, prog="python -m gpt2.evaluate")
    record = Path(options.run, "config.json")
    if not record.exists() or not Path(options.run, "model").exists():
        raise UserError(f"{options.run} is not a run folder with a model; give one that train_gpt2.py has finished")
    run, model, processes = from_json(record.read_text()), load(options.run), start()
    model.to(processes.device)
    encoding = get_encoding(model.config.vocab_size)
    shards = find_shards(run.data.val_shards or run.data.shards, "val", model.config.vocab_size)
    sequences = Sequences(shards, run.model.block_size or model.config.block_size)
    count = min(len(sequences), (options.tokens or run.eval.tokens) // sequences.block_size)
    if count < 1:
        raise UserError(
            f"--tokens {options.tokens} of {sequences.tokens:,} held-out ones are not one sequence of "
            f"{sequences.block_size}; give more"
        )
    tokens = count * sequences.block_size
    precision = choose_precision(processes.device, run.system.precision)

    def loss_of(x: Tensor, y: Tensor) -> Tensor:
        with torch.no_grad(), autocast(processes.device, precision):
            return model(x, y)[1]

    loss, bits = validate(loss_of, sequences, tokens, options.micro_batch, processes, token_bytes(encoding))
    scored = [token for token in sequences.line(1, tokens + 1).tolist() if token != encoding.eot_token]
    text = b"".join(encoding.decode_tokens_bytes(scored))
    others = compressed_bits_per_byte(text)
    print(f"{options.run}: loss {loss:.4f} nats per token on {tokens:,} held-out tokens")
    print(
        f"bits per byte on the same {len(text):,} bytes: model {bits:.3f} | "
        + " | ".join(f"{name} {value:.3f}" for name, value in others.items())
    )


if __name__ == "__main__":
    run_command(main)
