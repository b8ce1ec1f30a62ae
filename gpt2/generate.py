"""Sampling with a key-value cache. A new sampling rule is one more step in `sample_token`. Built in notebook 04."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
import tyro
from annotated_types import Ge, Gt, Le
from torch import Tensor

from gpt2.data.tokenizer import END_OF_TEXT
from gpt2.formats.load import encoding_of, from_pretrained
from gpt2.formats.packed import pack
from gpt2.model import GPT
from gpt2.modern.model import Modern
from gpt2.system.devices import choose_device
from gpt2.system.ranges import check_ranges


def sample_token(
    logits: Tensor,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Logits (B, V) → one token per sequence, (B, 1). The rules apply in the order of the parameters.

    `temperature` divides the logits; 0 takes the likeliest token. `top_k` keeps the k likeliest tokens. `top_p` keeps
    the fewest tokens whose probabilities add up to p (nucleus sampling, Holtzman et al., arXiv 1904.09751).
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
        ordered[ordered.cumsum(-1) - ordered >= top_p] = 0  # the likelier tokens already add up to p
        probabilities = torch.zeros_like(probabilities).scatter(-1, order, ordered)
    return torch.multinomial(probabilities, 1, generator=generator)


@torch.no_grad()
def generate(model: GPT | Modern, idx: Tensor, tokens: int, **rule: Any) -> Iterator[Tensor]:
    """Continue the prompts `idx` (B, T), T ≥ 1, by `tokens` tokens. Yield each (B, 1) as soon as it is chosen.

    `rule` are the keyword arguments of `sample_token`. When the block is full, its later half starts a new one, since
    positions are absolute.
    """
    block = model.config.block_size
    context = idx[:, -block:]
    cache = model.new_cache(idx.size(0), min(block, context.size(1) + tokens))
    new = context  # tokens that are not in the cache yet
    for _ in range(tokens):
        if cache.position + new.size(1) > block:
            new = context[:, -max(1, block // 2) :]
            cache = model.new_cache(idx.size(0), block)
        logits = model.logits(model.hidden(new, cache)[:, -1])  # (B, V)
        new = sample_token(logits, **rule)
        context = torch.cat([context, new], dim=1)[:, -block:]
        yield new


@dataclass(frozen=True)
class Options:
    """Continue a prompt with a trained model."""

    run: Annotated[str, tyro.conf.Positional] = "novels"
    """Run folder, Hugging Face folder, .bin file of llm.c, a published name such as gpt2, or novels: a small model of
    English novels that comes with this package."""
    prompt: str = "The old man looked at"
    tokens: Annotated[int, Ge(1)] = 64
    samples: Annotated[int, Ge(1)] = 1
    temperature: Annotated[float, Ge(0)] = 0.8
    """0: always the likeliest token."""
    top_k: Annotated[int | None, Ge(1)] = 50
    top_p: Annotated[float | None, Gt(0), Le(1)] = None
    weights: Literal["fp32", "bf16", "int8"] = "fp32"
    """How the weights are kept in memory. bf16 takes half of it and int8 a quarter, and both are faster on a CPU. On a
    held-out novel, they change the loss of the model `novels` by less than 0.001 nats per token."""
    seed: int = 42


def main(options: Options) -> None:
    """Print the samples. Raises UserError for a model that can't be read, and for values out of range."""
    check_ranges(options)
    device = choose_device()
    encoding = encoding_of(options.run)  # before the weights, which may be large
    model = from_pretrained(options.run).to(device)
    if options.weights != "fp32":
        model.to(torch.bfloat16)
    if options.weights == "int8":
        pack(model)
    prompt = encoding.encode_ordinary(options.prompt) or [encoding.eot_token]
    idx = torch.tensor([prompt], device=device)
    rule = {"temperature": options.temperature, "top_k": options.top_k, "top_p": options.top_p}
    for sample in range(options.samples):
        if sample:
            print("-" * 40)
        generator = torch.Generator(device).manual_seed(options.seed + sample)
        new = (int(token) for token in generate(model, idx, options.tokens, **rule, generator=generator))
        text = encoding.decode([*prompt, *itertools.takewhile(lambda token: token != encoding.eot_token, new)])
        print(text.removeprefix(END_OF_TEXT))
