"""HellaSwag and sampling beside `transformers`: same weights, precision and threads, both sides in turn, medians.

    python benchmarks/evaluation.py --items hellaswag_val.jsonl                  124M with random weights
    python benchmarks/evaluation.py --items hellaswag_val.jsonl --model gpt2     OpenAI's weights
    python benchmarks/evaluation.py --work sampling --rounds 5 --weights int8

HellaSwag: the other side takes one item at a time, four rows of context and ending filled up on the right, and all
their logits; in fp32 both must predict alike. Sampling: greedy, one sequence, after a prompt of 16 tokens.
"""

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import tyro
from torch import Tensor
from torch.nn import functional as F
from transformers import GPT2LMHeadModel

from gpt2.data.tokenizer import get_encoding
from gpt2.evaluation.hellaswag import load_items, prepare, score_batch
from gpt2.evaluation.validation import evaluating
from gpt2.formats.huggingface import save_pretrained
from gpt2.formats.load import from_pretrained
from gpt2.formats.packed import pack
from gpt2.generate import generate
from gpt2.model import GPT, GPTConfig
from gpt2.system.devices import autocast
from gpt2.system.errors import UserError, run_command
from gpt2.system.machine import processor_name
from gpt2.system.processes import Processes, process_group


@dataclass(frozen=True)
class Options:
    """HellaSwag and sampling beside `transformers`."""

    work: Literal["hellaswag", "sampling", "all"] = "all"
    items: str | None = None
    """A jsonl file of HellaSwag items."""
    limit: int = 200
    """Items to score."""
    tokens: int = 256
    """Tokens to sample."""
    model: str | None = None
    """Run folder, Hugging Face folder, or a name on the hub [random weights of 124M]."""
    precision: Literal["fp32", "bf16"] = "fp32"
    weights: Literal["fp32", "bf16", "int8"] = "fp32"
    """How this side keeps its weights while it samples."""
    rounds: int = 3
    """Measurements of each side; the median counts."""


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    if options.work != "sampling" and options.items is None:
        raise UserError("HellaSwag needs its items; name a jsonl file with --items, or choose --work sampling")
    with process_group("cpu") as processes:
        torch.manual_seed(0)
        ours = from_pretrained(options.model) if options.model else GPT(GPTConfig())
        ours.requires_grad_(False)
        with tempfile.TemporaryDirectory(prefix="evaluation-") as folder:
            save_pretrained(ours, folder)
            theirs = GPT2LMHeadModel.from_pretrained(folder).eval().requires_grad_(False)
        print(f"{processor_name()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
        print(f"{options.model or 'random weights'}, {ours.num_params():,} parameters")
        if options.work != "sampling":
            hellaswag(options, ours, theirs, processes)
        if options.work != "hellaswag":
            sampling(options, ours, theirs, processes)


def in_turn(sides: dict[str, Callable[[], Any]], rounds: int, work: float, unit: str) -> dict[str, Any]:
    """Run the sides in turn, `rounds` times; print their speeds in `work` a second, and return their results."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    results: dict[str, Any] = {}
    for _ in range(rounds):
        for name, side in sides.items():
            started = time.perf_counter()
            results[name] = side()
            seconds[name].append(time.perf_counter() - started)
    speeds = {name: work / statistics.median(taken) for name, taken in seconds.items()}
    for name, taken in seconds.items():
        spread = ", ".join(f"{work / one:.2f}" for one in taken)
        print(f"  {name:12} {speeds[name]:8.2f} {unit} (each: {spread})")
    first, second = speeds.values()
    print(f"  ratio        {first / second:8.2f}, load {os.getloadavg()[0]:.1f}", flush=True)
    return results


def hellaswag(options: Options, ours: GPT, theirs: GPT2LMHeadModel, processes: Processes) -> None:
    """Items a second of both sides, encoding apart, and whether they predict alike."""
    assert options.items is not None
    items = load_items(options.items, options.limit)
    encoding = get_encoding(ours.config.vocab_size)
    batches = prepare(items, encoding.n_vocab, ours.config.block_size)
    encode = encoding.encode_ordinary
    encoded = [(encode(item.context), [encode(" " + ending) for ending in item.endings]) for item in items]

    def our_trainer() -> Tensor:
        found = torch.zeros(len(items), 2, dtype=torch.long)
        with evaluating(ours, processes.device, options.precision):
            for batch in batches:
                found[batch.index] = torch.stack([one.argmin(dim=1) for one in score_batch(ours, batch)], dim=1)
        return found

    def their_side() -> Tensor:
        with torch.no_grad(), autocast(processes.device, options.precision):
            return torch.stack([predict(theirs, *one) for one in encoded])

    print(f"HellaSwag, the first {len(items)} items, {options.precision}:")
    found = in_turn({"this": our_trainer, "transformers": their_side}, options.rounds, len(items), "items/s")
    differing = int((found["this"] != found["transformers"]).any(dim=1).sum())
    right = (found["this"] == torch.tensor([item.label for item in items])[:, None]).double().mean(dim=0).tolist()
    print(f"  {differing} of {len(items)} items predicted differently; acc {right[0]:.4f}, acc_norm {right[1]:.4f}")
    if differing and options.precision == "fp32":
        raise UserError(f"{differing} predictions differ from those of transformers; they must not in fp32")


def predict(model: GPT2LMHeadModel, context: list[int], endings: list[list[int]]) -> Tensor:
    """The endings of least summed and of least mean loss, (2,): the plain way, all four rows and all their logits."""
    longest = max(map(len, endings))
    rows = torch.tensor([context + ending + [0] * (longest - len(ending)) for ending in endings])
    logits = model(rows).logits[:, :-1].float()
    losses = F.cross_entropy(logits.transpose(1, 2), rows[:, 1:], reduction="none")[:, len(context) - 1 :]
    lengths = torch.tensor([len(ending) for ending in endings])
    sums = (losses * (torch.arange(longest) < lengths[:, None])).sum(dim=1)
    return torch.stack([sums.argmin(), (sums / lengths).argmin()])


def sampling(options: Options, ours: GPT, theirs: GPT2LMHeadModel, processes: Processes) -> None:
    """Tokens a second of both sides, the prompt's share of the time included."""
    idx = torch.randint(ours.config.vocab_size, (1, 16))
    if options.weights != "fp32":
        ours.to(torch.bfloat16)
    if options.weights == "int8":
        pack(ours)
    knobs = {"do_sample": False, "max_new_tokens": options.tokens, "min_new_tokens": options.tokens, "pad_token_id": 0}

    def our_trainer() -> Tensor:
        with autocast(processes.device, options.precision):
            return torch.cat([idx, *generate(ours, idx, options.tokens, temperature=0)], dim=1)

    def their_side() -> Tensor:
        with autocast(processes.device, options.precision):
            return theirs.generate(idx, attention_mask=torch.ones_like(idx), **knobs)

    our_trainer()  # what is set up on a first call is not sampling
    print(f"Sampling {options.tokens} tokens after 16, {options.precision}, weights here in {options.weights}:")
    found = in_turn({"this": our_trainer, "transformers": their_side}, options.rounds, options.tokens, "tokens/s")
    same = int((found["this"] == found["transformers"]).long().cumprod(dim=1).sum()) - 16
    print(f"  the first {same} of {options.tokens} tokens are the same")


if __name__ == "__main__":
    run_command(main)
