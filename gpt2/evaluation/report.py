"""`gpt2 evaluate`: a model on held-out text, beside compressors. Built in notebook 11."""

import bz2
import gzip
import lzma
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from annotated_types import Ge

from gpt2.config.run import Precision, Run, from_json
from gpt2.data.loader import Sequences
from gpt2.data.shards import find_shards
from gpt2.data.tokenizer import get_encoding, token_bytes
from gpt2.evaluation.validation import HeldOut, count_windows, measure
from gpt2.formats.load import encoding_of, from_pretrained, pretrained_config
from gpt2.model import GPTConfig
from gpt2.system.devices import choose_precision, set_matmul_precision
from gpt2.system.errors import UserError
from gpt2.system.processes import Processes, process_group
from gpt2.system.ranges import check_ranges


@dataclass(frozen=True)
class Options:
    """A model on held-out text: loss, perplexity, accuracy, and bits per byte beside gzip, bz2 and xz."""

    model: Annotated[str, tyro.conf.Positional]
    """Run folder, Hugging Face folder, or a published name such as gpt2."""
    shards: str | None = None
    """Folder of shards, or a glob pattern of shards (quote it) [the run's]."""
    split: Literal["val", "test"] = "val"
    """Which held-out part of a folder is read. Choose settings by val; then test measures the chosen ones once."""
    tokens: Annotated[int | None, Ge(1)] = None
    """Targets to score, from the start [as many as the run used]."""
    last_n: Annotated[int | None, Ge(1)] = None
    """Score only the last N targets of every window, and move on by N [all]."""
    micro_batch: Annotated[int, Ge(1)] = 8
    """Sequences that a process computes at a time."""
    precision: Precision | None = None
    """[the run's; else auto]"""


def main(options: Options) -> None:
    """Run `report` in every process that torchrun started. Raises UserError also for values out of range."""
    check_ranges(options)
    with process_group() as processes:
        report(options, processes)


def report(options: Options, processes: Processes) -> None:
    """Measure the model, and print from the first process. Raises UserError if model or text can't be read."""
    run, encoding = recorded_run(options.model), encoding_of(options.model)
    text = held_out_text(options, run, pretrained_config(options.model))
    model = from_pretrained(options.model).to(processes.device)
    precision = choose_precision(processes.device, options.precision or (run or Run()).system.precision)
    set_matmul_precision(precision)
    found = measure(model, text, options.micro_batch, processes, precision, options.last_n)
    if not processes.is_first:
        return
    T = text.sequences.block_size
    overlap = f", the last {options.last_n} of every {T}" if options.last_n else ""
    print(f"{options.model}: loss {found.loss:.4f} nats per token on {found.tokens:,} held-out tokens{overlap}")
    print(f"perplexity per token {found.perplexity:.2f}, per byte {found.perplexity_per_byte:.4f}")
    print(f"accuracy top-1 {found.top1:.4f}, top-10 {found.top10:.4f}")
    first = T - (options.last_n or T) + 1  # the first target that was scored
    scored = text.sequences.line(first, first + found.tokens).tolist()
    data = b"".join(encoding.decode_tokens_bytes([token for token in scored if token != encoding.eot_token]))
    compressors = compressed_bits_per_byte(data) if data else {}
    beside = "".join(f" | {name} {value:.3f}" for name, value in compressors.items())
    print(f"bits per byte on the same {len(data):,} bytes: model {found.bits_per_byte:.3f}{beside}")


def recorded_run(folder: str) -> Run | None:
    """The run that a run folder records; None for a Hugging Face folder or a name on the hub."""
    try:
        return from_json(Path(folder, "config.json").read_text())
    except (OSError, KeyError, TypeError, ValueError, AttributeError):  # no such file, or that of a Hugging Face model
        return None


def held_out_text(options: Options, run: Run | None, config: GPTConfig) -> HeldOut:
    """The shards that the options name, or the run's. Raises UserError if there are none, or too few tokens."""
    shards = options.shards
    if run and not shards:
        shards = run.data.val_shards if run.data.val_shards and options.split == "val" else run.data.shards
    if not shards:
        raise UserError(f"{options.model} is not a run folder, so it names no text; add --shards DATA")
    T = (run and run.model.block_size) or config.block_size
    n, tokens = options.last_n or T, options.tokens or (run or Run()).eval.tokens
    sequences = Sequences(find_shards(shards, options.split, config.vocab_size), T)
    count = count_windows(sequences, tokens, n)
    if count < 1:
        raise UserError(
            f"--tokens {tokens:,} of {sequences.tokens:,} held-out tokens is less than one sequence of {T} tokens with "
            f"{n} to score; give more"
        )
    return HeldOut(sequences, count * n, token_bytes(get_encoding(config.vocab_size)))


def compressed_bits_per_byte(text: bytes) -> dict[str, float]:
    """Bits that gzip, bz2 and xz need per byte of `text`, at their strongest setting."""
    packed = {"gzip": gzip.compress(text), "bz2": bz2.compress(text), "xz": lzma.compress(text, preset=9)}
    return {name: 8 * len(data) / len(text) for name, data in packed.items()}
