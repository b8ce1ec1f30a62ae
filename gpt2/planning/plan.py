"""The plan of a run: its cost in memory, hours and money, before machines are rented for it.

Built in notebook 18.
"""

import itertools
import math
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import tyro

from gpt2.config.checks import resolve
from gpt2.config.presets import PRESETS
from gpt2.config.run import Run
from gpt2.formats.build import make_config
from gpt2.model import GPTConfig
from gpt2.planning.flops import flops_per_token, parameters, published_parameters, recompute_flops_per_token
from gpt2.planning.gpus import HARDWARE, Hardware
from gpt2.planning.memory import RECOMPUTE, SPARE_MEMORY, Setup, bytes_sent, largest_micro_batch, memory
from gpt2.system.errors import UserError
from gpt2.system.machine import GIB


@dataclass(frozen=True)
class Plan:
    """A run on known hardware. `mfu` is the part of the hardware's peak that is reached; recomputing counts as work."""

    config: GPTConfig
    setup: Setup
    hardware: Hardware
    steps: int
    batch_tokens: int
    mfu: float

    @property
    def tokens(self) -> int:
        """Of the whole run."""
        return self.steps * self.batch_tokens

    @property
    def sequences(self) -> int:
        """That one process computes in a step."""
        return self.batch_tokens // self.config.block_size // self.setup.gpus

    @property
    def budget(self) -> float:
        """Bytes of a GPU that a run may fill; the rest is for CUDA, NCCL and the allocator's gaps."""
        return (1 - SPARE_MEMORY) * self.hardware.memory_gib * GIB

    @property
    def step_seconds(self) -> float:
        """Seconds of an optimiser step, communication hidden behind computation."""
        flops = flops_per_token(self.config) + recompute_flops_per_token(self.config, self.setup.recompute)
        peak = self.hardware.peak(self.setup.precision) or math.nan
        return flops * self.batch_tokens / (self.setup.gpus * peak * self.mfu)

    def with_micro_batch(self, size: int) -> "Plan":
        """The same run in micro-batches of `size` sequences; 0 for one that doesn't fit."""
        return replace(self, setup=replace(self.setup, micro_batch=size, micro_steps=self.sequences // max(1, size)))

    def vary(self, **changes: int | str) -> "Plan":
        """The same run with another setup, and the largest micro-batch that fits then (0: none)."""
        other = replace(self, setup=replace(self.setup, **changes))  # type: ignore[arg-type]
        size = largest_micro_batch(self.config, other.setup, other.sequences, self.budget)
        return other.with_micro_batch(size)


@dataclass(frozen=True)
class Options:
    """What a run needs and costs, before machines are rented for it. GB are 10^9 bytes, GiB 2^30."""

    name: Annotated[str, tyro.conf.Positional]
    """A preset of train_gpt2.py, or a model (d6 … d84, gpt2 … gpt2-xl, gpt3:c384 … gpt3:c12288) with the default
    preset's data and schedule."""
    gpus: int = 8
    hardware: str = "a100"
    """A key of gpt2.planning.gpus.HARDWARE."""
    zero: Literal[0, 1, 2, 3] | None = None
    """What is divided over the GPUs: 0 nothing, 1 the optimiser, 2 gradients too, 3 weights too [the preset's]."""
    recompute: Literal["none", "mlp", "block"] | None = None
    """What is computed again in backward instead of being kept [the preset's]."""
    micro_batch: int | None = None
    """Sequences a GPU computes at a time [the largest that fits]."""
    precision: Literal["auto", "bf16", "fp16", "tf32", "fp32"] | None = None
    """auto: bf16, or fp16 where the hardware has no bf16 [the preset's]."""
    tokens: int | None = None
    """Tokens to train on [the preset's]."""
    batch_tokens: int | None = None
    """Tokens in one optimiser step [the preset's]."""
    mfu: float = 0.4
    """Part of the peak that is reached: 0.37 was published for build-nanogpt, 0.60 for llm.c, both 124M on A100."""
    price_per_gpu_hour: float = 1.5
    """US$."""
    node_gb_per_s: float = 200.0
    """GB/s that a GPU sends to another of its machine: 200 for NVLink, 20 for PCIe 4."""
    network_gb_per_s: float = 25.0
    """GB/s that a machine sends to another: 25 for one 200 Gbit/s InfiniBand port."""


def make_plan(options: Options) -> Plan:
    """The plan for these options, with the micro-batch found. Raises UserError for what is unknown or doesn't fit."""
    for flag in ("gpus", "micro_batch", "tokens", "batch_tokens", "mfu", "node_gb_per_s", "network_gb_per_s"):
        value, high = getattr(options, flag), 1.0 if flag == "mfu" else math.inf
        if value is not None and not 0 < value <= high:
            raise UserError(f"--{flag.replace('_', '-')} {value} is out of range; give more than 0, up to {high:g}")
    if not 0 <= options.price_per_gpu_hour < math.inf:
        raise UserError(f"--price-per-gpu-hour {options.price_per_gpu_hour} is out of range; give 0 or more")
    if options.hardware not in HARDWARE:
        raise UserError(f"unknown hardware {options.hardware!r}; known: {', '.join(HARDWARE)}")
    run, config = _find_run(options.name)
    hardware, gpus = HARDWARE[options.hardware], options.gpus
    batch = options.batch_tokens or run.data.batch_tokens
    steps = math.ceil(options.tokens / batch) if options.tokens else run.schedule.steps
    unit = gpus * config.block_size
    if batch % unit:
        nearest = max(1, round(batch / unit)) * unit
        raise UserError(
            f"a step of {batch:,} tokens does not divide into sequences of {config.block_size} on {gpus} GPU(s); "
            f"the nearest that does is --batch-tokens {nearest}"
        )
    precision = options.precision or run.system.precision
    if precision == "auto":
        precision = "bf16" if hardware.bf16 else "fp16"
    if hardware.peak(precision) is None:
        raise UserError(f"{options.hardware} has no {precision}; give --precision fp16 or fp32")
    zero = run.system.zero if options.zero is None else options.zero
    compiled = run.system.compile == "on" or (
        run.system.compile == "auto" and flops_per_token(config) * batch * steps > 1e16
    )
    setup = Setup(
        *(gpus, zero, options.recompute or run.system.recompute),
        precision=precision,
        compiled=compiled,
        weights=run.system.weights,
        muon=run.optim.kind == "muon",
    )
    return _fitted(Plan(config, setup, hardware, steps, batch, options.mfu), options)


def _find_run(name: str) -> tuple[Run, GPTConfig]:
    """The preset of that name, or the default one with a model of that name."""
    default = next(iter(PRESETS.values()))[1]
    run = resolve(PRESETS[name][1]) if name in PRESETS else replace(default, model=replace(default.model, init=name))
    try:
        return run, make_config(run.model, run.parts)
    except ValueError as error:
        raise UserError(f"{error}; presets: {', '.join(PRESETS)}") from None


def _fitted(plan: Plan, options: Options) -> Plan:
    """The plan with the micro-batch asked for, or the largest that fits. Raises UserError, with what would fit."""
    best, wanted = plan.vary(), options.micro_batch
    if wanted and plan.sequences % wanted:
        divisor = next(d for d in range(min(wanted, plan.sequences), 0, -1) if plan.sequences % d == 0)
        raise UserError(
            f"--micro-batch {wanted} does not divide the {plan.sequences} sequences of a GPU's step; "
            f"give --micro-batch {divisor}"
        )
    asked = plan.with_micro_batch(wanted or best.setup.micro_batch or 1)
    needed = memory(asked.config, asked.setup).total
    if needed <= plan.budget:
        return asked
    raise UserError(
        f"a micro-batch of {asked.setup.micro_batch} needs {needed / GIB:.1f} GiB with ZeRO {plan.setup.stage} and "
        f"recompute {plan.setup.recompute}, more than the {plan.budget / GIB:.1f} of {options.hardware}'s "
        f"{plan.hardware.memory_gib:g} GiB that a run may fill; {_what_fits(best, options.hardware)}"
    )


def _what_fits(best: Plan, hardware: str) -> str:
    """The flags with which at least one sequence would fit, least change first."""
    if best.setup.micro_batch:
        return f"give --micro-batch {best.setup.micro_batch}"
    stages = range(best.setup.stage, 4 if best.setup.gpus > 1 else 1)
    for recompute, zero in itertools.product(RECOMPUTE[RECOMPUTE.index(best.setup.recompute) :], stages):
        if best.vary(recompute=recompute, zero=zero).setup.micro_batch:
            return f"give --zero {zero} --recompute {recompute}"
    gpus = [
        n for n in (8, 16, 32, 64, 128) if n > best.setup.gpus and best.batch_tokens % (n * best.config.block_size) == 0
    ]
    others = [
        n for n, h in HARDWARE.items() if h.peak(best.setup.precision) and h.memory_gib > best.hardware.memory_gib
    ]
    others.sort(key=lambda name: HARDWARE[name].memory_gib)
    for name, n in [*((hardware, n) for n in gpus), *itertools.product(others, [best.setup.gpus, *gpus])]:
        if replace(best, hardware=HARDWARE[name]).vary(gpus=n, zero=3, recompute="block").setup.micro_batch:
            return f"give --hardware {name} --gpus {n} --zero 3 --recompute block"
    return "choose a smaller model"


# ---- as text ----


def report(plan: Plan, options: Options) -> str:
    """The plan as lines of at most 100 columns."""
    parts = [_summary(plan, options), _stages(plan), _levels(plan), _sent(plan, options)]
    return "\n\n".join("\n".join(part) for part in parts)


def _summary(plan: Plan, options: Options) -> list[str]:
    """What is computed, for how long, for how much."""
    config, setup, price = plan.config, plan.setup, options.price_per_gpu_hour
    counts, work = parameters(config), flops_per_token(config)
    parts = [f"{name} {n / 1e6:.{1 if n > 1e6 else 2}f} M" for name, n in counts.items()]
    rows = f"{config.padded_vocab_size:,} rows in the token table for {config.vocab_size:,}"
    checkpoint = memory(config, replace(setup, gpus=1))  # of which it holds weights and the optimiser's state
    gpu_hours = plan.steps * plan.step_seconds / 3600 * setup.gpus
    peak = (plan.hardware.peak(setup.precision) or math.nan) / 1e12
    return [
        f"{options.name} on {setup.gpus} × {options.hardware}: ZeRO {setup.stage}, recompute {setup.recompute}, "
        f"{setup.precision}, {'' if setup.compiled else 'not '}compiled",
        f"parameters  {published_parameters(config):,} ({sum(counts.values()):,} with {rows})",
        *(" " * 12 + ", ".join(parts[i : i + 5]) for i in range(0, len(parts), 5)),
        f"work        {work / 1e9:.3f} GFLOP a token × {plan.tokens:,} tokens = {work * plan.tokens:.2e} FLOPs",
        f"steps       {plan.steps:,} of {plan.batch_tokens:,} tokens = {setup.gpus} GPUs "
        f"× {setup.micro_steps} micro-steps × {setup.micro_batch} sequences × {config.block_size}",
        f"time        {_short(gpu_hours / setup.gpus)} h: {_short(plan.step_seconds * 1e3)} ms a step, "
        f"{plan.batch_tokens / plan.step_seconds:,.0f} tokens/s, at {plan.mfu:.0%} of {peak:g} TFLOP/s a GPU",
        f"cost        {_short(gpu_hours)} GPU-hours, {_short(gpu_hours * price)} US$ at {price:g} a GPU-hour",
        f"disk        {_short(2 * plan.tokens / 1e9)} GB of tokens, "
        f"{_short((checkpoint.weights + checkpoint.optimizer) / 1e9)} GB a checkpoint",
    ]


def _stages(plan: Plan) -> list[str]:
    """A row a ZeRO stage: memory by part at the plan's micro-batch, and the micro-batch that would fit."""
    rows = [
        ["ZeRO", "weights", "gradients", "optimiser", "16-bit", "activations", "working", "buffers", "total", "largest"]
    ]
    for stage in range(4 if plan.setup.gpus > 1 else 1):
        needed = memory(plan.config, replace(plan.setup, zero=stage))
        cells = [f"{value / GIB:.2f}" for value in (*vars(needed).values(), needed.total)]
        chosen = "→ " if stage == plan.setup.stage else ""
        rows.append([f"{chosen}{stage}", *cells, str(plan.vary(zero=stage).setup.micro_batch or "none")])
    return [
        f"memory in GiB of a GPU, at micro-batch {plan.setup.micro_batch}; {plan.budget / GIB:.1f} may be filled",
        *_table(rows),
        "16-bit: autocast's copies of the matrices; working: logits with their gradient, or the backward of",
        "one layer; buffers: gradients, weights on their way; largest: the largest micro-batch that fits",
    ]


def _levels(plan: Plan) -> list[str]:
    """A row a level of recomputation."""
    rows = [["recompute", "activations", "total", "largest", "work", "hours"]]
    for level in RECOMPUTE:
        needed = memory(plan.config, replace(plan.setup, recompute=level))
        other = plan.vary(recompute=level)
        work = 1 + recompute_flops_per_token(plan.config, level) / flops_per_token(plan.config)
        memories = [f"{needed.activations / GIB:.2f}", f"{needed.total / GIB:.2f}"]
        hours = _short(plan.steps * other.step_seconds / 3600)
        chosen = "→ " if level == plan.setup.recompute else ""
        rows.append([chosen + level, *memories, str(other.setup.micro_batch or "none"), f"× {work:.2f}", hours])
    return [f"the same by what backward computes again, ZeRO {plan.setup.stage}", *_table(rows)]


def _sent(plan: Plan, options: Options) -> list[str]:
    """A row a ZeRO stage: what a GPU sends in a step, and the time of it."""
    if plan.setup.gpus == 1:
        return ["one GPU: nothing is sent"]
    rates = (options.node_gb_per_s, options.network_gb_per_s)
    places = [
        f"{place}, {rate:g} GB/s" for place, rate in zip(("in a machine", "between machines"), rates, strict=True)
    ]
    rows = [["ZeRO", "GB", *places]]
    for stage in range(4):
        sent = bytes_sent(plan.config, replace(plan.setup, zero=stage)) / 1e9
        chosen = "→ " if stage == plan.setup.stage else ""
        rows.append([f"{chosen}{stage}", f"{sent:.2f}", *(f"{_short(sent / rate * 1e3)} ms" for rate in rates)])
    step = f"a step of {_short(plan.step_seconds * 1e3)} ms of computing"
    return [f"sent by a GPU in {step}, which hides part of it", *_table(rows)]


def _table(rows: list[list[str]]) -> list[str]:
    """Rows of cells as lines, columns aligned on the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["   ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]


def _short(value: float) -> str:
    """Three digits, or the whole number."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def main(options: Options) -> None:
    """Print the plan. Raises UserError for what is unknown, out of range, or does not fit."""
    print(report(make_plan(options), options))
