"""The plan of a run: its cost in memory, hours and money, before machines are rented for it.

Built in notebooks 13 and 17.
"""

import itertools
import math
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import tyro
from annotated_types import Ge, Gt

from gpt2.config.checks import resolve
from gpt2.config.presets import PRESETS
from gpt2.config.run import Precision, Run
from gpt2.formats.build import make_config, named_config
from gpt2.model import GPTConfig
from gpt2.planning.fits import fit, flags, least_change
from gpt2.planning.flops import flops_per_token, parameters, published_parameters, recompute_flops_per_token, run_flops
from gpt2.planning.gpus import HARDWARE, Hardware
from gpt2.planning.memory import RECOMPUTE, SPARE_MEMORY, Setup, bytes_sent, check_recompute, memory
from gpt2.planning.step import StepTime, step_time
from gpt2.system.errors import UserError
from gpt2.system.machine import GIB
from gpt2.system.ranges import check_ranges

GPUS_PER_MACHINE = 8


@dataclass(frozen=True)
class Options:
    """What a run needs and costs, before machines are rented for it. GB are 10^9 bytes, GiB 2^30."""

    name: Annotated[str, tyro.conf.Positional]
    """A preset of train_gpt2.py, or a model (d6 … d84, gpt2 … gpt2-xl, gpt3:c384 … gpt3:c12288, gpt-oss-20b,
    gpt-oss-120b) with the default preset's data and schedule."""
    gpus: Annotated[int, Ge(1)] = 8
    hardware: str = "a100"
    """A key of gpt2.planning.gpus.HARDWARE."""
    zero: Literal[0, 1, 2, 3] | None = None
    """What is divided over the GPUs: 0 nothing, 1 the optimiser, 2 gradients too, 3 weights too [the preset's]."""
    recompute: Literal["none", "gelu", "mlp", "block"] | None = None
    """What backward computes again instead of keeping it [the preset's]."""
    micro_batch: Annotated[int | None, Ge(1)] = None
    """Sequences that a GPU computes at a time [the largest that fits]."""
    precision: Precision | None = None
    """auto: bf16, or fp16 where the hardware has no bf16 [the preset's]."""
    tokens: Annotated[int | None, Ge(1)] = None
    """Tokens to train on [the preset's]."""
    batch_tokens: Annotated[int | None, Ge(1)] = None
    """Tokens per optimiser step [the preset's]."""
    price_per_gpu_hour: Annotated[float, Ge(0)] = 1.5
    """US$."""
    node_gb_per_s: Annotated[float, Gt(0)] = 200.0
    """GB/s that a GPU sends to another one in its machine: 200 for NVLink, 20 for PCIe 4."""
    network_gb_per_s: Annotated[float, Gt(0)] = 25.0
    """GB/s that a machine sends to another: 25 for one 200 Gbit/s InfiniBand port."""


@dataclass(frozen=True)
class Plan:
    """A run on known hardware."""

    options: Options
    config: GPTConfig
    setup: Setup
    steps: int
    batch_tokens: int

    @property
    def hardware(self) -> Hardware:
        """The kind of GPU."""
        return HARDWARE[self.options.hardware]

    @property
    def tokens(self) -> int:
        """Tokens of the whole run."""
        return self.steps * self.batch_tokens

    @property
    def sequences(self) -> int:
        """Sequences of one process per optimiser step."""
        return self.batch_tokens // self.config.block_size // self.setup.gpus

    @property
    def budget(self) -> float:
        """Bytes of a GPU that a run may fill."""
        return (1 - SPARE_MEMORY) * self.hardware.memory_gib * GIB

    @property
    def step_time(self) -> StepTime:
        """Seconds per optimiser step, by part."""
        options = self.options
        rate = options.node_gb_per_s if self.setup.gpus <= GPUS_PER_MACHINE else options.network_gb_per_s
        return step_time(self.config, self.setup, self.hardware, self.batch_tokens, rate * 1e9)

    def vary(self, **changes: int | str) -> "Plan":
        """The same run with another setup and the largest micro-batch that fits, or 0 if not one sequence fits."""
        other = replace(self, setup=replace(self.setup, **changes))  # type: ignore[arg-type]
        return replace(other, setup=fit(self.config, other.setup, other.sequences, self.budget))


def make_plan(options: Options) -> Plan:
    """The plan for these options. Raises UserError, with what is possible, for what is unknown or does not fit."""
    check_ranges(options)
    if options.hardware not in HARDWARE:
        raise UserError(f"unknown hardware {options.hardware!r}; known: {', '.join(HARDWARE)}")
    run, config = _find_run(options)
    batch, unit = run.data.batch_tokens, options.gpus * config.block_size
    if batch % unit:
        nearest = max(1, round(batch / unit)) * unit
        raise UserError(
            f"{batch:,} tokens per step do not divide into sequences of {config.block_size} on {options.gpus} GPU(s); "
            f"the nearest number that does is --batch-tokens {nearest}"
        )
    check_recompute(config, options.recompute or run.system.recompute)
    plan = Plan(options, config, _choose_setup(run, config, options), run.schedule.steps, batch)
    size = options.micro_batch or plan.vary().setup.micro_batch or 1
    if plan.sequences % size:
        divisor = next(d for d in range(min(size, plan.sequences), 0, -1) if plan.sequences % d == 0)
        raise UserError(
            f"--micro-batch {size} does not divide the {plan.sequences} sequences of a GPU per step; "
            f"give --micro-batch {divisor}"
        )
    plan = replace(plan, setup=replace(plan.setup, micro_batch=size, micro_steps=plan.sequences // size))
    needed = memory(config, plan.setup).total
    if needed > plan.budget:
        raise UserError(
            f"a micro-batch of {size} needs {needed / GIB:.1f} GiB with ZeRO {plan.setup.stage} and recompute "
            f"{plan.setup.recompute}, more than the {plan.budget / GIB:.1f} of {options.hardware}'s "
            f"{plan.hardware.memory_gib:g} GiB that a run may fill; {_advice(plan)}"
        )
    return plan


def _find_run(options: Options) -> tuple[Run, GPTConfig]:
    """The preset of that name, or the default preset with a model of that name; with the tokens asked for."""
    name, default = options.name, next(iter(PRESETS.values()))[1]
    try:
        if name in PRESETS:
            run = resolve(PRESETS[name][1])
        else:
            run = replace(default, model=replace(default.model, init=name, vocab_size=named_config(name).vocab_size))
        config = make_config(run.model, run.parts)
    except ValueError as error:
        raise UserError(f"{error}; presets: {', '.join(PRESETS)}") from None
    batch = options.batch_tokens or run.data.batch_tokens
    steps = math.ceil(options.tokens / batch) if options.tokens else run.schedule.steps
    data, schedule = replace(run.data, batch_tokens=batch), replace(run.schedule, steps=steps)
    return replace(run, data=data, schedule=schedule), config


def _choose_setup(run: Run, config: GPTConfig, options: Options) -> Setup:
    """The setup of a run on this hardware, with one sequence per micro-batch."""
    hardware, system = HARDWARE[options.hardware], run.system
    precision = options.precision or system.precision
    if precision == "auto":
        precision = "bf16" if hardware.peak("bf16") else "fp16"
    if hardware.peak(precision) is None:
        raise UserError(f"{options.hardware} has no {precision}; give --precision fp16 or fp32")
    return Setup(
        gpus=options.gpus,
        zero=system.zero if options.zero is None else options.zero,
        recompute=options.recompute or system.recompute,
        precision=precision,
        compiled=system.compile == "on" or (system.compile == "auto" and run_flops(run, config) > 1e16),
        weights=system.weights,
        muon=run.optim.kind == "muon",
    )


def _advice(plan: Plan) -> str:
    """The flags with which a plan that does not fit would fit: as it is, with more GPUs, or on larger GPUs."""
    setup = plan.setup
    if fitting := least_change(plan.config, setup, plan.sequences, plan.budget):
        return f"give {flags(setup, fitting)}"
    unit = plan.config.block_size
    more = [n for n in (8, 16, 32, 64, 128) if n > setup.gpus and plan.batch_tokens % (n * unit) == 0]
    larger = [k for k, h in HARDWARE.items() if h.peak(setup.precision) and h.memory_gib > plan.hardware.memory_gib]
    larger.sort(key=lambda name: HARDWARE[name].memory_gib)
    own = plan.options.hardware
    for name, gpus in [*itertools.product([own], more), *itertools.product(larger, [setup.gpus, *more])]:
        other = replace(plan, options=replace(plan.options, hardware=name))
        fitting = other.vary(gpus=gpus, zero=3, recompute="block").setup
        if fitting.micro_batch:
            return f"give --hardware {name} {flags(setup, fitting)}"
    return "choose a smaller model"


# ---- as text ----


def report(plan: Plan) -> str:
    """The plan as lines of at most 100 columns."""
    return "\n\n".join("\n".join(lines) for lines in (_summary(plan), _stages(plan), _levels(plan), _sent(plan)))


def _summary(plan: Plan) -> list[str]:
    """What is computed, for how long, and for how much."""
    options, config, setup = plan.options, plan.config, plan.setup
    counts, work = parameters(config), flops_per_token(config)
    parts = [f"{name} {n / 1e6:.{1 if n > 1e6 else 2}f} M" for name, n in counts.items()]
    rows = f"{config.padded_vocab_size:,} rows in the token embedding for {config.vocab_size:,}"
    whole = memory(config, replace(setup, gpus=1))  # a checkpoint holds all weights and the optimiser's whole state
    gpu_hours = plan.steps * plan.step_time.total / 3600 * setup.gpus
    peak, seconds = plan.hardware.peak(setup.precision) or math.nan, plan.step_time.total
    mfu = work * plan.batch_tokens / seconds / setup.gpus / peak
    times = [f"{name} {_short(value * 1e3)}" for name, value in vars(plan.step_time).items()]
    return [
        f"{options.name} on {setup.gpus} × {options.hardware}: ZeRO {setup.stage}, recompute {setup.recompute}, "
        f"{setup.precision}, {'' if setup.compiled else 'not '}compiled",
        f"parameters  {published_parameters(config):,} ({sum(counts.values()):,} with {rows})",
        *(" " * 12 + ", ".join(parts[i : i + 4]) for i in range(0, len(parts), 4)),
        f"work        {work / 1e9:.3f} GFLOP per token × {plan.tokens:,} tokens = {work * plan.tokens:.2e} FLOPs",
        f"steps       {plan.steps:,} of {plan.batch_tokens:,} tokens = {setup.gpus} GPUs "
        f"× {setup.micro_steps} micro-steps × {setup.micro_batch} sequences × {config.block_size}",
        f"time        {_short(gpu_hours / setup.gpus)} h predicted, at {plan.batch_tokens / seconds:,.0f} tokens/s, "
        f"{mfu:.0%} of {peak / 1e12:g} TFLOP/s per GPU",
        f"step        {_short(seconds * 1e3)} ms: {', '.join(times[:3])},",
        f"            {', '.join(times[3:])}",
        f"cost        {_short(gpu_hours)} GPU-hours, {_short(gpu_hours * options.price_per_gpu_hour)} US$ "
        f"at {options.price_per_gpu_hour:g} per GPU-hour",
        f"disk        {_short(2 * plan.tokens / 1e9)} GB of tokens, "
        f"{_short((whole.weights + whole.optimizer) / 1e9)} GB per checkpoint",
    ]


def _stages(plan: Plan) -> list[str]:
    """A row per ZeRO stage: memory by part at the plan's micro-batch, and the micro-batch that would fit."""
    rows = [
        ["ZeRO", "weights", "gradients", "optimiser", "16-bit", "activations", "working", "buffers", "total", "largest"]
    ]
    for stage in range(4 if plan.setup.gpus > 1 else 1):
        needed = memory(plan.config, replace(plan.setup, zero=stage))
        cells = [f"{value / GIB:.2f}" for value in (*vars(needed).values(), needed.total)]
        rows.append([str(stage), *cells, str(plan.vary(zero=stage).setup.micro_batch or "none")])
    return [
        f"memory per GPU in GiB, at micro-batch {plan.setup.micro_batch}; {plan.budget / GIB:.1f} may be filled",
        *_table(rows, str(plan.setup.stage)),
        "16-bit: autocast's copies of the matrices; working: logits with their gradient, or the backward of",
        "one layer; buffers: gradients, weights on their way; largest: the largest micro-batch that fits",
    ]


def _levels(plan: Plan) -> list[str]:
    """A row per level of recomputation."""
    rows = [["recompute", "activations", "total", "largest", "work", "hours"]]
    for level in RECOMPUTE:
        needed, other = memory(plan.config, replace(plan.setup, recompute=level)), plan.vary(recompute=level)
        cells = [f"{value / GIB:.2f}" for value in (needed.activations, needed.total)]
        work = 1 + recompute_flops_per_token(plan.config, level) / flops_per_token(plan.config)
        hours = _short(plan.steps * other.step_time.total / 3600)
        rows.append([level, *cells, str(other.setup.micro_batch or "none"), f"× {work:.2f}", hours])
    title = f"memory and time by what backward computes again, ZeRO {plan.setup.stage}"
    return [title, *_table(rows, plan.setup.recompute)]


def _sent(plan: Plan) -> list[str]:
    """A row per ZeRO stage: what a GPU sends per step, and how long that takes."""
    if plan.setup.gpus == 1:
        return ["one GPU: nothing is sent"]
    node, network = plan.options.node_gb_per_s, plan.options.network_gb_per_s
    rows = [["ZeRO", "GB", f"in a machine, {node:g} GB/s", f"between machines, {network:g} GB/s"]]
    for stage in range(4):
        sent = bytes_sent(plan.config, replace(plan.setup, zero=stage)) / 1e9
        rows.append([str(stage), f"{sent:.2f}", *(f"{_short(sent / rate * 1e3)} ms" for rate in (node, network))])
    title = "sent per GPU and step; the backward of a micro-step hides part of it"
    return [title, *_table(rows, str(plan.setup.stage))]


def _table(rows: list[list[str]], chosen: str) -> list[str]:
    """Rows of cells as lines, aligned on the right, with an arrow before the row that begins with `chosen`."""
    rows = [["→ " + row[0] if row[0] == chosen else row[0], *row[1:]] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["   ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]


def _short(value: float) -> str:
    """Three digits, or the whole number."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def main(options: Options) -> None:
    """Print the plan. Raises UserError for what is unknown, out of range, or does not fit."""
    print(report(make_plan(options)))
