"""Shards → trained model: the one training loop.

    python train_gpt2.py demo                                         one process
    torchrun --standalone --nproc_per_node=8 train_gpt2.py            GPT-2 124M on 8 GPUs
    torchrun --standalone --nproc_per_node=8 train_gpt2.py gpt2-124m --optim.lr 1e-3 --log.folder runs/hot
    python train_gpt2.py gpt2-124m --help                             every flag, with the preset's value

This file composes; the pieces are in gpt2/, each built by hand in a notebook.
"""

from gpt2.config.command_line import read_command_line

if __name__ == "__main__":  # --help and typing errors are answered before torch is imported, which takes seconds
    read_command_line(description=__doc__)

import contextlib
import gc
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from gpt2.config.checks import check, resolve
from gpt2.config.run import Run
from gpt2.formats.checkpoint import ResumePoint, newest_intact
from gpt2.logs.trackers import check_trackers
from gpt2.logs.writer import RunLog, StepMetrics
from gpt2.optim.optimizer import make_optimizer
from gpt2.optim.outliers import OutlierDetector
from gpt2.optim.schedule import learning_rate
from gpt2.system.devices import autocast, set_attention_kernel, set_matmul_precision
from gpt2.system.errors import UserError, run_command
from gpt2.system.processes import Processes, process_group
from gpt2.training.distributed import accumulating, clip_gradients, full_model, recompute, wrap
from gpt2.training.evaluation import Evaluation, is_due
from gpt2.training.execution import Execution, choose_execution, explain_out_of_memory
from gpt2.training.run_folder import export_model, fingerprint_of, open_run_folder
from gpt2.training.saving import Checkpoints, TrainingState
from gpt2.training.setup import RunData, choose_config, epochs_as_steps, make_model, open_data, open_log
from gpt2.training.signals import interruptible
from gpt2.training.telemetry import LayerNorms, gpu_state


def main(words: Sequence[str] | None = None) -> None:
    """Train as the command line says, in this process and those that torchrun started beside it."""
    run = resolve(read_command_line(words, __doc__))
    check(run)
    check_trackers(run.log.tensorboard, run.log.wandb)
    with process_group(run.system.device) as processes:
        train(run, processes)


def train(run: Run, processes: Processes) -> None:
    """Prepare a run, in an order in which mistakes are found before anything large is built; then run the loop."""
    config = choose_config(run, processes)
    outliers = OutlierDetector(run.optim.skip_loss_z, run.optim.skip_norm_z)
    # the data: this fixes the place of every token in the run
    data = open_data(run, config, processes)
    run = epochs_as_steps(run, data.loader)
    # the run folder: locked, other runs refused, the resume point found
    fingerprint = fingerprint_of(run, data.shards)
    with contextlib.closing(data.loader), open_run_folder(run, fingerprint, processes) as resume:
        if resume.complete:
            if processes.is_first:
                print(f"{run.log.folder} holds this run, complete; to train it again: --log.overwrite")
            return
        # the model: the same weights in every process
        model = make_model(run, config, processes.device)
        recompute(model, run.system.recompute)
        set_attention_kernel(processes.device, run.system.attention)
        execution = choose_execution(run, model, processes)
        set_matmul_precision(execution.precision)
        data.loader.micro_batch = execution.micro_batch
        # parallelise: from here on this process may hold only its part of the weights
        trained = wrap(model, processes, execution.compiled, run.system.zero)
        # the training state: what a checkpoint holds
        state = TrainingState(
            model=model,
            trained=trained,
            optimizer=make_optimizer(
                model,
                run.optim,
                weights=run.system.weights,
                normalised_weights=run.parts.normalised_weights,
                rank=processes.rank,
                world_size=processes.world_size,
            ),
            scaler=torch.amp.GradScaler(processes.device.type, enabled=execution.precision == "fp16"),
            loader=data.loader,
            outliers=outliers,
        )
        state.restore(resume, processes)
        loop(run=run, data=data, resume=resume, state=state, execution=execution, processes=processes)


def loop(
    *, run: Run, data: RunData, resume: ResumePoint, state: TrainingState, execution: Execution, processes: Processes
) -> None:
    """Train from the resume point to the last step, or until a signal asks to stop."""
    log = open_log(run, resume, data, state, execution, processes)
    evaluation = Evaluation(run, state, data.val, data.items, execution, processes)
    checkpoints = Checkpoints(Path(run.log.folder), processes, run.log.keep, run.log.keep_every)
    fingerprint = fingerprint_of(run, data.shards)
    stop = 0.0  # the fraction of the processes that were asked to stop
    started = time.perf_counter()
    with interruptible() as interruption:
        while True:
            paused = time.perf_counter()
            # evaluate, always on the same text; a run that is asked to stop leaves this to the one that resumes it
            if not state.evaluated and not stop:
                evaluation(state.step, log)
                state.evaluated = True
            # save, in the background
            done = state.step == run.schedule.steps
            if state.step > resume.step and (done or stop or is_due(state.step, run.log.save_every)):
                problem = checkpoints.save(state, fingerprint, log.position())  # of the save before
                log.save_problem(state.step, problem)
            if done or stop:
                break
            started += time.perf_counter() - paused  # a step's time is without evaluations and checkpoints
            # forward and backward: the gradients of the mean loss over the whole batch
            mean_loss = forward_backward(state, execution, run.system.zero)
            # clip
            norms = LayerNorms(state.model) if is_due(state.step, run.log.norms_every) else None
            total_norm = clip_gradients(state.trained, run.optim.clip)
            # agree between processes: on the loss, the norm, and whether one of them was asked to stop; waits for them
            loss, norm, stop = processes.mean(mean_loss, total_norm, interruption.name is not None)
            seconds, started = time.perf_counter() - started, time.perf_counter()  # with the update of the step before
            # step, unless the loss or the norm is an outlier
            lr = learning_rate(state.step, run.optim.lr, run.schedule)
            outlier = state.outliers.check(loss, norm)
            update(state, lr, skip=outlier is not None)
            # log, while a GPU still updates
            log.step(state.step, StepMetrics(loss, lr, norm, seconds, run.data.batch_tokens, state.loader.epoch))
            log.norms(state.step, norms.after_step() if norms else {})
            log.gpu(state.step, gpu_state(processes.device) if is_due(state.step, run.log.gpu_every) else {})
            log.skipped(state.step, outlier)
            log.save_problem(state.step, checkpoints.finish(block=False))
            give_up_on_outliers(run, state, checkpoints, outlier)
            state.step, state.evaluated = state.step + 1, False
            if state.step == resume.step + 1:  # what exists by now lives to the end: never search it for garbage again
                gc.collect()
                gc.freeze()
        finish(run, state, log, checkpoints, (interruption.name or "another process") if stop else None)


def forward_backward(state: TrainingState, execution: Execution, zero: int) -> Tensor:
    """Sum up the gradients of this process's part of the next batch; return its mean loss in nats per token.

    The gradients are then those of the mean over the whole batch, over all processes.
    """
    micro_batches = state.loader.next_step()
    device = state.loader.device
    total = torch.zeros((), device=device)
    with explain_out_of_memory(execution.micro_batch):
        for i, (x, y) in enumerate(micro_batches):
            with accumulating(state.trained, last=i == len(micro_batches) - 1, zero=zero):
                with autocast(device, execution.precision):
                    loss = state.trained(x, y) / len(micro_batches)  # summed up, the gradients are those of the mean
                state.scaler.scale(loss).backward()
            total += loss.detach()
    state.scaler.unscale_(state.optimizer)
    return total


def update(state: TrainingState, lr: float, skip: bool) -> None:
    """Let the optimiser make its update, or skip it; clear the gradients."""
    if not skip:
        for group in state.optimizer.param_groups:
            group["lr"] = lr * group["ratio"]
        state.scaler.step(state.optimizer)
        state.updates += 1
    state.scaler.update()
    state.optimizer.zero_grad(set_to_none=True)


def give_up_on_outliers(run: Run, state: TrainingState, checkpoints: Checkpoints, reason: str | None) -> None:
    """Stop a run that has skipped too many steps in a row, and name what it can go on from. Raises UserError."""
    if state.outliers.in_a_row < run.optim.max_skips:
        return
    checkpoints.close()
    good = newest_intact(Path(run.log.folder)).path
    advice = "start again with --log.overwrite and a smaller --optim.lr"
    if good:
        advice = (
            f"continue from the last good checkpoint with --resume {good} --allow-changes, a smaller --optim.lr, and "
            "another --log.folder"
        )
    if state.loader.device.type == "cuda" and run.system.attention == "auto":
        advice += "; if a smaller one does not help, try --system.attention flash"
    raise UserError(f"{state.outliers.in_a_row} steps in a row were skipped, the last because {reason}; {advice}")


def finish(run: Run, state: TrainingState, log: RunLog, checkpoints: Checkpoints, stopped: str | None) -> None:
    """Wait for the last checkpoint, and export the weights of a run that is complete. Raises UserError.

    `stopped` names the signal that has ended the run early, if any.
    """
    problem = checkpoints.close()
    log.save_problem(state.step, problem)
    folder = Path(run.log.folder)
    if stopped and problem:
        mend = f"make room in {folder}"
        raise UserError(f"stopped at step {state.step}, which could not be saved ({problem}); {mend}", False)
    if stopped:
        without = " without --log.overwrite" if run.log.overwrite else ""
        log.note(state.step, "stopped", f"asked to by {stopped}; the same command{without} goes on")
    else:
        model = full_model(state.model)
        if checkpoints.processes.is_first:
            export_model(folder, model, state.step)
    log.close()


if __name__ == "__main__":
    run_command(main)
