"""The newcomer's smoke test: a preset's model built, fed a dummy batch, and shown stage by stage.

Built in notebook 03.
"""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
import tyro
from torch import Tensor, nn

from gpt2.config.presets import PRESETS
from gpt2.config.run import Run
from gpt2.formats.build import build, make_config
from gpt2.model import GPT, GPTConfig
from gpt2.modern.model import Modern
from gpt2.planning.flops import parameters, published_parameters, with_parts
from gpt2.system.devices import choose_device, free_device_memory, synchronize
from gpt2.system.errors import UserError
from gpt2.system.machine import GIB

SEQUENCES, LENGTH = 2, 256  # of the dummy batch: a second's work on a laptop for 124 M parameters


@dataclass(frozen=True)
class Options:
    """Build a preset's model with random weights, feed it random tokens, and show the shapes on their way through it.

    Its loss is near ln V, V being the size of the vocabulary: a model that knows nothing finds all tokens alike.
    """

    name: Annotated[str, tyro.conf.Positional] = next(iter(PRESETS))
    """A preset of train_gpt2.py."""
    device: Literal["auto", "cuda", "mps", "cpu"] = "auto"


def inspect_preset(name: str, run: Run, device: torch.device) -> Iterator[str]:
    """The lines of the report. Raises UserError where the model does not fit into the device's free memory."""
    config = make_config(run.model, run.parts)
    length = min(LENGTH, config.block_size)
    _check_memory(name, config, length, device)
    yield f"{name}: {published_parameters(config):,} parameters, on {device.type}"
    torch.manual_seed(run.system.seed)
    started = time.perf_counter()
    model = build(config).to(device)
    synchronize(device)
    yield f"built in {time.perf_counter() - started:.2f} s"
    idx, targets = torch.randint(config.vocab_size, (2, SEQUENCES, length), device=device)
    seen: list[str] = []
    with torch.no_grad():
        hooks = [part.register_forward_hook(_teller(seen, label)) for label, part in _stages(model)]
        logits = model(idx)
        for hook in hooks:
            hook.remove()
        synchronize(device)
        started = time.perf_counter()
        loss = model(idx, targets)
        synchronize(device)
        seconds = time.perf_counter() - started
    yield f"  {'tokens':42} {tuple(idx.shape)}"
    yield from seen
    yield f"  {'logits':42} {tuple(logits.shape)}"
    yield f"loss {loss.item():.4f} nats per token; ln {config.vocab_size:,} = {math.log(config.vocab_size):.4f}"
    yield f"forward in {seconds:.2f} s"


def _check_memory(name: str, config: GPTConfig, length: int, device: torch.device) -> None:
    """Weights, the logits of a batch, and as much again for one layer at work have to have room."""
    needed = 4 * (sum(parameters(config).values()) + 2 * SEQUENCES * length * config.padded_vocab_size)
    free = free_device_memory(device)
    if needed > free:
        raise UserError(
            f"{name} needs {needed / GIB:.1f} GiB to be built, more than the {free / GIB:.1f} GiB that are free; "
            f"try gpt2 inspect {min(PRESETS, key=_size)}"
        )


def _size(name: str) -> int:
    run = PRESETS[name][1]
    return published_parameters(make_config(run.model, run.parts))


def _stages(model: GPT | Modern) -> Iterator[tuple[str, nn.Module]]:
    """What to show, in the order of the data's way: tables, each kind of layer once with its parts, the last norm."""
    whole, transformer = with_parts(model.config), model.transformer
    yield "token table", transformer.wte
    if whole.parts.position == "learned":
        yield "position table", transformer.wpe
    known: set[int | None] = set()
    for i, block in enumerate(transformer.h.children()):
        window = whole.window(i)
        if window in known:
            continue
        known.add(window)
        sees = "all before" if window is None else f"{window} positions"
        yield f"layer {i}: attention, sees {sees}", block.get_submodule("attn")
        mlp = block.get_submodule("mlp")
        experts = f"{whole.parts.experts_per_token} of {whole.parts.experts} experts"
        yield f"layer {i}: {experts if whole.parts.experts else 'MLP'}", mlp
        yield f"layer {i}: residual stream", block
    yield "last norm", transformer.ln_f


def _teller(seen: list[str], label: str) -> Any:
    """A hook that notes the shape of what a part returns."""

    def tell(part: nn.Module, inputs: tuple[Any, ...], output: Tensor | tuple[Tensor, ...]) -> None:
        first = output[0] if isinstance(output, tuple) else output
        seen.append(f"  {label:42} {tuple(first.shape)}")

    return tell


def main(options: Options) -> None:
    """Print the report, a line at a time. Raises UserError for an unknown preset, or too little memory."""
    if options.name not in PRESETS:
        raise UserError(f"unknown preset {options.name!r}; known: {', '.join(PRESETS)}")
    for line in inspect_preset(options.name, PRESETS[options.name][1], choose_device(options.device)):
        print(line)
