"""How long a training step takes on a GPU: FLOPs and bytes, divided by the rates that its kind of card reaches.

Built in notebook 17.

Bytes per layer are those of the compiled code, as `benchmarks/lowering.py` counts them. Rates are fitted to published
runs, which `benchmarks/calibration.py` lists with the error of each prediction. What the host does is left out, so
small models and small micro-batches take longer than predicted.
"""

import math
from dataclasses import dataclass

from gpt2.model import GPTConfig
from gpt2.planning.flops import (
    attention_products,
    flops_per_token,
    matrices,
    matrix_parameters,
    parameters,
    recompute_flops_per_token,
    with_parts,
)
from gpt2.planning.gpus import Hardware
from gpt2.planning.memory import Setup, bytes_sent, muon_bytes_sent

# a piece of a card's name → the fractions of its data sheet that matrix products, attention and memory traffic reach.
# Hopper cannot keep its clock at full power, so its fraction of a higher peak is smaller
FRACTIONS = {"H": (0.60, 0.40, 0.80), "B200": (0.60, 0.40, 0.80), "RTX": (0.52, 0.40, 0.80), "": (0.72, 0.50, 0.80)}
EAGER = 3.5  # times the bytes of the compiled code, fitted too: every operation reads and writes memory
# bytes per channel, token and layer that the compiled kernels between products read and write, by the residual stream
STREAM_BYTES = {4: 141, 2: 102}
ROTARY_BYTES, EXPERT_BYTES = 21, 84  # more for rotary positions with QK-norm; for a mixture of experts
# times that forward and backward read or write all logits in 16 bits, with the rest of what is outside the layers
LOGIT_PASSES = 3.6
ADAMW_BYTES = 40  # per parameter: weight, gradient and both averages read, three written; the norm; the scaling
NEWTON_SCHULZ = 5


@dataclass(frozen=True)
class StepTime:
    """Predicted seconds of one optimiser step, by part."""

    products: float  # matrix products, of layers and head
    attention: float
    elementwise: float  # everything else in the layers: norms, activation functions, sums, casts
    loss: float
    optimizer: float  # with clipping
    communication: float  # what computation does not hide

    @property
    def total(self) -> float:
        """The sum of the parts."""
        return sum(vars(self).values())


def step_time(
    config: GPTConfig, setup: Setup, hardware: Hardware, batch_tokens: int, bytes_per_second: float = math.inf
) -> StepTime:
    """Predict an optimiser step of `batch_tokens` over all GPUs, each of which sends `bytes_per_second`."""
    products, attention, _ = _fractions(hardware)
    tokens, C = batch_tokens / setup.gpus, config.n_embd
    peak, bandwidth = hardware.peak(setup.precision) or math.nan, memory_rate(hardware)
    rate = peak * products
    attention_flops = 7 * attention_products(config)  # two products forward, five backward, of which half is masked
    again = recompute_flops_per_token(config, setup.recompute)
    work = (1 if setup.compiled else EAGER) * (1 + again / flops_per_token(config))
    computed = (
        tokens * (6 * matrix_parameters(config) + again) / rate,
        tokens * attention_flops / (peak * attention),
        tokens * config.n_layer * C * bytes_per_channel(config, setup) * work / bandwidth,
        tokens * 2 * LOGIT_PASSES * config.padded_vocab_size * (1 if setup.compiled else EAGER) / bandwidth,
    )
    muon = muon_bytes_sent(config, setup) / bytes_per_second
    sent = bytes_sent(config, setup) / bytes_per_second - muon
    hidden = sum(computed) / setup.micro_steps * 2 / 3  # behind the backward of the micro-step that sends
    optimizer = _optimizer_seconds(config, setup, rate, bandwidth)
    return StepTime(*computed, optimizer=optimizer, communication=max(sent - hidden, sent / 10) + muon)


def _fractions(hardware: Hardware) -> tuple[float, float, float]:
    """The row of FRACTIONS that holds for this card."""
    return next(fractions for word, fractions in FRACTIONS.items() if word in hardware.name_contains)


def memory_rate(hardware: Hardware) -> float:
    """Bytes per second that compiled kernels read and write on this card."""
    return hardware.bandwidth * 1e9 * _fractions(hardware)[2]


def bytes_per_channel(config: GPTConfig, setup: Setup) -> float:
    """Bytes per channel, token and layer that the compiled kernels between products read and write."""
    parts = with_parts(config).parts
    rotary = ROTARY_BYTES * (parts.position == "rotary")
    return STREAM_BYTES[4 if setup.weights == "fp32" else 2] + rotary + EXPERT_BYTES * bool(parts.experts)


def _optimizer_seconds(config: GPTConfig, setup: Setup, rate: float, bandwidth: float) -> float:
    """AdamW's traffic, and Muon's products, each divided over the processes that share them."""
    seconds = ADAMW_BYTES * sum(parameters(config).values()) / (setup.gpus if setup.stage else 1) / bandwidth
    if setup.muon:
        C = config.n_embd
        sizes = [size for name, size in matrices(config).items() if name.startswith("transformer.h.")]
        seconds += NEWTON_SCHULZ * sum(2 * C * (2 * size + C * C) for size in sizes) / setup.gpus / rate
    return seconds
