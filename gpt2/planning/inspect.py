"""The newcomer's smoke test: build a preset's model, feed it a dummy batch, and show the shapes stage by stage.

Built in notebook 03.
"""

import functools
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any

import torch
import tyro
from torch import Tensor, nn

from gpt2.config.presets import PRESETS
from gpt2.config.run import Device, Run
from gpt2.formats.build import build, make_config
from gpt2.model import GPT, GPTConfig
from gpt2.modern.model import Modern
from gpt2.planning.flops import parameters, published_parameters, with_parts
from gpt2.system.devices import choose_device, free_device_memory, synchronize
from gpt2.system.errors import UserError
from gpt2.system.machine import GIB

SEQUENCES, LENGTH = 2, 256  # of the dummy batch: about a second on a laptop for 124 M parameters


@dataclass(frozen=True)
class Options:
    """Build a preset's model with random weights, feed it random tokens, and show the shapes on their way through it.

    The loss should be near ln V, with V tokens in the vocabulary: an untrained model finds all tokens equally likely.
    """

    name: Annotated[str, tyro.conf.Positional] = next(iter(PRESETS))
    """A preset of train_gpt2.py."""
    device: Device = "auto"


def inspect_preset(name: str, run: Run, device: torch.device) -> Iterator[str]:
    """The lines of the report. Raises UserError if the model does not fit into the free memory of the device."""
    config = make_config(run.model, run.parts)
    length = min(LENGTH, config.block_size)
    _check_memory(name, config, length, device)
    yield f"{name}: {published_parameters(config):,} parameters, on {device.type}"
    torch.manual_seed(run.system.seed)
    started = time.perf_counter()
    model = build(config).to(device).requires_grad_(False)
    synchronize(device)
    yield f"built in {time.perf_counter() - started:.2f} s"
    idx, targets = torch.randint(config.vocab_size, (2, SEQUENCES, length), device=device)
    shapes: list[str] = []
    hooks = [part.register_forward_hook(functools.partial(_note, shapes, label)) for label, part in _stages(model)]
    logits = model(idx)
    for hook in hooks:
        hook.remove()
    yield f"  {'tokens':42} {tuple(idx.shape)}"
    yield from shapes
    yield f"  {'logits':42} {tuple(logits.shape)}"
    synchronize(device)
    started = time.perf_counter()
    loss = model(idx, targets).item()
    seconds = time.perf_counter() - started
    yield f"loss {loss:.4f} nats per token; ln {config.vocab_size:,} = {math.log(config.vocab_size):.4f}"
    yield f"forward in {seconds:.2f} s"


def _check_memory(name: str, config: GPTConfig, length: int, device: torch.device) -> None:
    """Raise UserError if there is no room for the weights, the logits, and as much again as the logits."""
    needed = 4 * (sum(parameters(config).values()) + 2 * SEQUENCES * length * config.padded_vocab_size)
    free = free_device_memory(device)
    if needed > free:
        sizes = {key: published_parameters(make_config(run.model, run.parts)) for key, (_, run) in PRESETS.items()}
        raise UserError(
            f"{name} needs {needed / GIB:.1f} GiB to be built, more than the {free / GIB:.1f} GiB that are free; "
            f"try gpt2 inspect {min(sizes, key=lambda key: sizes[key])}"
        )


def _stages(model: GPT | Modern) -> Iterator[tuple[str, nn.Module]]:
    """The modules to show, in the order of the data flow: of layers with equal windows, the first one only."""
    whole, transformer = with_parts(model.config), model.transformer
    yield "token embedding", transformer.wte
    if whole.parts.position == "learned":
        yield "position embedding", transformer.wpe
    windows = [whole.window(i) for i in range(whole.n_layer)]
    for window in dict.fromkeys(windows):
        i = windows.index(window)
        block = transformer.h.get_submodule(str(i))
        sees = "all before" if window is None else f"{window} positions"
        experts = f"{whole.parts.experts_per_token} of {whole.parts.experts} experts"
        yield f"layer {i}: attention, sees {sees}", block.get_submodule("attn")
        yield f"layer {i}: {experts if whole.parts.experts else 'MLP'}", block.get_submodule("mlp")
        yield f"layer {i}: residual stream", block
    yield "last norm", transformer.ln_f


def _note(shapes: list[str], label: str, module: nn.Module, inputs: Any, output: Tensor | tuple[Tensor, ...]) -> None:
    """A forward hook: note the shape of what a module returns."""
    first = output[0] if isinstance(output, tuple) else output
    shapes.append(f"  {label:42} {tuple(first.shape)}")


def main(options: Options) -> None:
    """Print the report, a line at a time. Raises UserError for an unknown preset, or too little memory."""
    if options.name not in PRESETS:
        raise UserError(f"unknown preset {options.name!r}; known: {', '.join(PRESETS)}")
    for line in inspect_preset(options.name, PRESETS[options.name][1], choose_device(options.device)):
        print(line)
