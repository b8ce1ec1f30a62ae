"""The step times that `gpt2 plan` predicts, beside those that others have published.

python benchmarks/calibration.py
"""

from dataclasses import dataclass

from gpt2.config.presets import PRESETS
from gpt2.formats.build import make_config, named_config
from gpt2.model import GPTConfig
from gpt2.planning.gpus import HARDWARE
from gpt2.planning.memory import Setup
from gpt2.planning.plan import Options, make_plan
from gpt2.planning.step import StepTime, step_time


@dataclass(frozen=True)
class Published:
    """A speed that was published."""

    source: str
    hardware: str
    gpus: int
    config: GPTConfig
    batch_tokens: int
    micro_batch: int
    tokens_per_second: float
    compiled: bool = True
    weights: str = "fp32"
    muon: bool = False


def config_of(preset: str) -> GPTConfig:
    """The configuration of a preset."""
    run = PRESETS[preset][1]
    return make_config(run.model, run.parts)


def hours(source: str, hardware: str, hours: float, preset: str) -> Published:
    """A whole run on 8 GPUs, with the micro-batch of the plan."""
    plan = make_plan(Options(preset, gpus=8, hardware=hardware))
    return Published(
        source,
        hardware,
        8,
        plan.config,
        plan.batch_tokens,
        plan.setup.micro_batch,
        plan.tokens / (hours * 3600),
    )


D12 = named_config("d12")
PUBLISHED = [
    Published("llm.c, 124M", "a100", 8, D12, 524_288, 64, 8 * 218_000),
    hours("llm.c, 350M", "a100", 14, "llmc-350m"),
    hours("llm.c, 774M", "a100", 135, "llmc-774m"),
    hours("llm.c, 1558M", "h100", 24, "llmc-1558m"),
    Published("build-nanogpt, not compiled", "a100", 8, D12, 524_288, 64, 1_063_000, compiled=False),
    Published(
        "modded-nanogpt, checkpoint 8",
        "h100",
        8,
        config_of("speedrun"),
        524_288,
        64,
        524_288 / 0.142,
        weights="bf16-cast",
        muon=True,
    ),
    Published("Languini mini", "rtx-3090", 1, config_of("languini-mini"), 65_536, 64, 238_719),
    Published("Languini tiny", "rtx-3090", 1, config_of("languini-tiny"), 65_536, 32, 141_864),
    Published("Languini small", "rtx-3090", 1, config_of("languini-small"), 65_536, 16, 55_416),
    Published("Languini medium", "rtx-3090", 1, config_of("languini-medium"), 131_072, 8, 16_618),
    Published("Languini large", "rtx-3090", 1, config_of("languini-large"), 65_536, 4, 7_058),
]


def predict(run: Published) -> float:
    """The predicted seconds of its step."""
    return sum(vars(parts(run)).values())


def parts(run: Published) -> StepTime:
    """The predicted step, by part."""
    micro_steps = run.batch_tokens // (run.gpus * run.micro_batch * run.config.block_size)
    setup = Setup(
        run.gpus,
        micro_batch=run.micro_batch,
        micro_steps=micro_steps,
        compiled=run.compiled,
        weights=run.weights,
        muon=run.muon,
    )
    return step_time(run.config, setup, HARDWARE[run.hardware], run.batch_tokens, 200e9)


def main() -> None:
    """Print a row per published speed."""
    print("milliseconds per step                  card   published   predicted   error")
    for run in PUBLISHED:
        published, predicted = run.batch_tokens / run.tokens_per_second, predict(run)
        print(
            f"{run.source:32} {run.gpus} × {run.hardware:8} {published * 1e3:10,.0f} {predicted * 1e3:11,.0f} "
            f"{predicted / published - 1:+7.0%}"
        )


if __name__ == "__main__":
    main()
