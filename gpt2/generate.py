"""Sampling with a key-value cache.

Holds:    `generate`, `choose`, `load`, and `python -m gpt2.generate RUN --prompt …`.
Built in: notebook 04.
Imports:  torch, tyro, gpt2.build, gpt2.checkpoint, gpt2.distributed, gpt2.errors, gpt2.model, gpt2.modern,
          gpt2.tokenizer.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro
from torch import Tensor

from gpt2 import checkpoint
from gpt2.build import build, from_pretrained, read_config
from gpt2.distributed import start
from gpt2.errors import UserError, run_command
from gpt2.model import GPT
from gpt2.modern import Modern
from gpt2.tokenizer import END_OF_TEXT, get_encoding


def choose(
    logits: Tensor,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Logits (B, V) → one token each, (B, 1).

    `temperature` 0 takes the likeliest. `top_k` keeps the k likeliest; `top_p` the fewest whose probabilities add up
    to p (nucleus sampling, Holtzman et al., arXiv 1904.09751).
    """
    if temperature == 0:
        return logits.argmax(-1, keepdim=True)
    logits = logits.float() / temperature
    if top_k is not None and top_k < logits.size(-1):
        kth = logits.topk(top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < kth, float("-inf"))
    probabilities = logits.softmax(-1)
    if top_p is not None and top_p < 1:
        ordered, order = probabilities.sort(-1, descending=True)
        ordered[ordered.cumsum(-1) - ordered >= top_p] = 0  # those before which p is reached already
        probabilities = torch.zeros_like(probabilities).scatter(-1, order, ordered)
    return torch.multinomial(probabilities, 1, generator=generator)


@torch.no_grad()
def generate(
    model: GPT | Modern,
    idx: Tensor,
    tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
) -> Iterator[Tensor]:
    """Continue the prompts `idx` (B, T), T ≥ 1, by `tokens` tokens, yielding each (B, 1) as it is chosen.

    When the block is full, the later half of what was written starts a new one, since positions are absolute.
    """
    block = model.config.block_size
    context = idx[:, -block:]
    cache = model.new_cache(idx.size(0), min(block, context.size(1) + tokens))
    fresh = context  # what the cache has not seen
    for _ in range(tokens):
        if cache.position + fresh.size(1) > block:
            fresh = context[:, -max(1, block // 2) :]
            cache = model.new_cache(idx.size(0), block)
        logits = model.logits(model.hidden(fresh, cache)[:, -1])  # (B, V)
        fresh = choose(logits, temperature, top_k, top_p, generator)
        context = torch.cat([context, fresh], dim=1)[:, -block:]
        yield fresh


def load(name: str) -> GPT | Modern:
    """The model of a run folder, another folder, llm.c's .bin, or the hub. Raises UserError where there is none.

    A run that has not come to its end has its weights in checkpoints; the newest intact one is taken.
    """
    folder = Path(name, "model") if Path(name, "model", "config.json").exists() else Path(name)
    if Path(name).is_dir() and not (folder / "config.json").exists():
        raise UserError(f"{name} holds no model; give a run folder, or one that save_pretrained wrote")
    try:
        return _from_checkpoint(folder) if (folder / "log.txt").exists() else from_pretrained(str(folder))
    except (FileNotFoundError, ValueError) as error:
        raise UserError(str(error)) from None


def _from_checkpoint(folder: Path) -> GPT | Modern:
    path, record, _ = checkpoint.newest(folder)
    if path is None:
        raise UserError(f"the run in {folder} has saved nothing yet; wait for its first checkpoint")
    model = build(read_config(record["model"]))
    checkpoint.load(path, checkpoint.weights(model), {}, start())
    return model


@dataclass(frozen=True)
class Options:
    """Continue a prompt with a trained model."""

    run: Annotated[str, tyro.conf.Positional]
    """Run folder, Hugging Face folder, or a published name such as gpt2."""
    prompt: str = "Hello, I'm a language model,"
    tokens: int = 64
    samples: int = 1
    temperature: float = 0.8
    """0: always the likeliest token."""
    top_k: int | None = 50
    top_p: float | None = None
    seed: int = 42


def main() -> None:
    """`python -m gpt2.generate`: see `Options`."""
    options = tyro.cli(Options, prog="python -m gpt2.generate")
    for name, low, high in (("temperature", 0, 1e9), ("top_k", 1, 1e9), ("top_p", 1e-9, 1), ("tokens", 1, 1e9)):
        value = getattr(options, name)
        if value is not None and not low <= value <= high:
            raise UserError(f"--{name.replace('_', '-')} {value} is out of range; give {low:g} to {high:g}")
    model = load(options.run)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device)
    encoding = get_encoding(model.config.vocab_size)
    prompt = encoding.encode_ordinary(options.prompt) or [encoding.eot_token]
    for sample in range(options.samples):
        generator = torch.Generator(device).manual_seed(options.seed + sample)
        written = list(prompt)
        idx = torch.tensor([prompt], device=device)
        for token in generate(model, idx, options.tokens, options.temperature, options.top_k, options.top_p, generator):
            if token.item() == encoding.eot_token:
                break
            written.append(int(token))
        print(encoding.decode(written, errors="replace").removeprefix(END_OF_TEXT))
        if sample + 1 < options.samples:
            print("-" * 40)


if __name__ == "__main__":
    run_command(main)
