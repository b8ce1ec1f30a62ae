"""The settings of a run made complete, and refused where they make no sense, before anything is read or built."""

import tempfile
from dataclasses import replace
from pathlib import Path

from gpt2.config.run import Run
from gpt2.system.errors import UserError
from gpt2.system.ranges import check_ranges


def resolve(run: Run) -> Run:
    """The run with the settings that follow from others: a small GPU's precision, a compute class's steps.

    Raises UserError for a compute class without a throughput.
    """
    if run.system.small_gpu:
        recompute = "mlp" if run.system.recompute == "none" else run.system.recompute
        run = replace(run, system=replace(run.system, precision="fp16", weights="fp32", recompute=recompute))
    hours, speed = run.languini.hours, run.languini.tokens_per_second
    if hours is None:
        return run
    if run.schedule.epochs is not None:
        raise UserError(
            f"--schedule.epochs {run.schedule.epochs:g} and --languini.hours {hours:g} both say how long; give one"
        )
    if speed is None:
        raise UserError(
            f"--languini.hours {hours:g} needs the throughput of this model on the reference accelerator; add "
            "--languini.tokens-per-second (gpt2 sweep measures it)"
        )
    check_ranges(run.languini, "--languini.")
    steps = max(1, round(hours * 3600 * speed / run.data.batch_tokens))
    return replace(run, schedule=replace(run.schedule, steps=steps))


def check(run: Run) -> None:
    """Raise UserError for values out of range, or that do not go together; make the run folder, or say why not."""
    check_ranges(run)
    if run.parts.normalised_weights and run.system.weights == "bf16-master":
        raise UserError("--parts.normalised-weights does not go with --system.weights bf16-master; give fp32 or bf16")
    if run.system.weights == "bf16-cast" and run.system.zero:
        raise UserError(
            f"--system.zero {run.system.zero} divides weights of one precision, but --system.weights bf16-cast has "
            "two; give --system.zero 0"
        )
    if run.system.fp8 and (run.system.weights != "fp32" or run.system.zero > 1):
        raise UserError(
            "--system.fp8 needs weights in fp32, whole in every process; instead of --system.weights "
            f"{run.system.weights} --system.zero {run.system.zero} give --system.weights fp32 --system.zero 0"
        )
    folder = Path(run.log.folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"can't write to {folder} ({error.strerror}); name another --log.folder") from None
