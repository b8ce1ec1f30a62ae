"""`gpt2 evaluate`: a model on held-out text, beside compressors.

Built in notebook 11.
"""

import bz2
import gzip
import lzma
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from annotated_types import Ge

from gpt2.config.run import Eval, Run, from_json
from gpt2.data.loader import Sequences
from gpt2.data.shards import find_shards
from gpt2.data.tokenizer import get_encoding, token_bytes
from gpt2.evaluation.validation import count_windows, measure
from gpt2.formats.load import from_pretrained
from gpt2.system.devices import choose_precision, set_matmul_precision
from gpt2.system.errors import UserError
from gpt2.system.processes import Processes, process_group
from gpt2.system.ranges import check_ranges


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
    """A model on held-out text: loss, perplexity, accuracy, and bits per byte beside gzip, bz2 and xz."""

    model: Annotated[str, tyro.conf.Positional]
    """Run folder, Hugging Face folder, or a published name such as gpt2."""
    shards: str | None = None
    """Folder of shards whose val part is read, or a glob pattern of shards (quote it) [the run's]."""
    tokens: Annotated[int | None, Ge(1)] = None
    """Targets to score, from the start [as many as the run used]."""
    last_n: Annotated[int | None, Ge(1)] = None
    """Score only the last N targets of every window, and move on by N [all]."""
    micro_batch: Annotated[int, Ge(1)] = 8
    """Sequences a process computes at a time."""
    precision: Literal["auto", "bf16", "fp16", "tf32", "fp32"] | None = None
    """[the run's; else auto]"""


def main(options: Options) -> None:
    """Measure, and print from the first process. Raises UserError for what can't be measured."""
    check_ranges(options)
    with process_group() as processes:
        report(options, processes)


def report(options: Options, processes: Processes) -> None:
    """Measure, and print from the first process. Raises UserError for what can't be measured."""
    run = recorded_run(options.model)
    model = from_pretrained(options.model).to(processes.device)
    block_size = (run.model.block_size if run else None) or model.config.block_size
    sequences = held_out_text(options, run, model.config.vocab_size, block_size)
    n, tokens = options.last_n or block_size, options.tokens or (run.eval if run else Eval()).tokens
    count = count_windows(sequences, tokens, n)
    if count < 1:
        raise UserError(
            f"--tokens {tokens:,} of {sequences.tokens:,} held-out ones are not one sequence of {block_size} "
            f"with {n} to score; give more"
        )
    encoding = get_encoding(model.config.vocab_size)
    precision = choose_precision(processes.device, options.precision or (run.system.precision if run else "auto"))
    set_matmul_precision(precision)
    sizes = token_bytes(encoding)
    found = measure(model, sequences, count * n, options.micro_batch, processes, sizes, precision, n)
    if not processes.is_first:
        return
    overlap = f", the last {n} of every {block_size}" if options.last_n else ""
    print(f"{options.model}: loss {found.loss:.4f} nats per token on {found.tokens:,} held-out tokens{overlap}")
    print(f"perplexity per token {found.perplexity:.2f}, per byte {found.perplexity_per_byte:.4f}")
    print(f"accuracy top-1 {found.top1:.4f}, top-10 {found.top10:.4f}")
    first = block_size - n + 1  # the first target that was scored
    scored = [token for token in sequences.line(first, first + count * n).tolist() if token != encoding.eot_token]
    text = b"".join(encoding.decode_tokens_bytes(scored))
    others = compressed_bits_per_byte(text) if text else {}
    beside = "".join(f" | {name} {value:.3f}" for name, value in others.items())
    print(f"bits per byte on the same {len(text):,} bytes: model {found.bits_per_byte:.3f}{beside}")


def recorded_run(folder: str) -> Run | None:
    """What a run folder says about its run; None for a Hugging Face folder or a name on the hub."""
    record = Path(folder, "config.json")
    if not record.exists():
        return None
    try:
        return from_json(record.read_text())
    except (KeyError, TypeError, ValueError, AttributeError):  # a Hugging Face model's own config.json
        return None


def held_out_text(options: Options, run: Run | None, vocab_size: int, block_size: int) -> Sequences:
    """The val shards that were named, or the run's. Raises UserError where there are none."""
    where = options.shards or (run and (run.data.val_shards or run.data.shards))
    if not where:
        raise UserError(f"{options.model} is no run folder, so it names no text; add --shards DATA")
    return Sequences(find_shards(where, "val", vocab_size), block_size)
