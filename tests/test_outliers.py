"""A step whose loss or gradient norm is an outlier, or not finite, is skipped."""

import json
import math
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import run_python, train, train_words

import train_gpt2
from gpt2.data.shards import write_shard
from gpt2.formats import checkpoint
from gpt2.logs.reader import read_log
from gpt2.optim.outliers import WINDOW, OutlierDetector
from gpt2.system.errors import run_command


def test_the_z_score_is_llm_cs_over_a_window_that_includes_the_new_value():
    outliers = OutlierDetector(3.0, 0.0)
    values = np.random.default_rng(0).normal(4.0, 0.1, 200)
    for value in values:
        assert outliers.check(value, 1.0) is None
    window = [*values[-WINDOW + 1 :], 5.0]
    z = (5.0 - np.mean(window)) / np.std(window)
    assert outliers.check(5.0, 1.0) == f"the loss is 5.0000, {z:.1f} standard deviations above its mean"
    assert outliers.check(3.0, 1.0) is None  # far below the mean is no outlier


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_is_skipped_at_once_and_stays_out_of_the_window(bad):
    outliers = OutlierDetector(0.0, 0.0)
    assert outliers.check(bad, 1.0) == f"the loss is {bad}"
    assert outliers.check(1.0, bad) == f"the gradient norm is {bad}" and outliers.in_a_row == 2
    assert outliers.check(1.0, 1.0) is None and outliers.in_a_row == 0
    assert list(outliers.windows["loss"]) == [1.0, 1.0]


def test_nothing_is_skipped_before_the_window_is_full_or_if_all_values_are_equal():
    outliers = OutlierDetector(1.0, 1.0)
    for value in [1.0] * (WINDOW - 2) + [50.0]:
        assert outliers.check(value, value) is None
    constant = OutlierDetector(1.0, 1.0)
    assert all(constant.check(2.0, 2.0) is None for _ in range(2 * WINDOW))


def test_the_state_survives_json():
    first, second = OutlierDetector(3.0, 3.0), OutlierDetector(3.0, 3.0)
    for value in np.random.default_rng(0).normal(4.0, 0.1, 300):
        first.check(value, value)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    reason = first.check(4.5, 9.0)
    assert reason is not None and second.check(4.5, 9.0) == reason


def test_a_spike_in_the_loss_is_skipped_and_logged_and_the_run_continues(tmp_path):
    """140 steps of one text, one step of another, and the first text again, in file order."""
    data, folder = tmp_path / "data", tmp_path / "run"
    data.mkdir()
    generator = np.random.default_rng(0)
    text = np.minimum(generator.geometric(0.05, 160 * 256), 200)
    text[140 * 256 : 141 * 256] = generator.integers(200, 256, 256)
    for name, tokens in (("val_000000", text[:600]), ("train_000001", text)):
        write_shard(data / f"{name}.npy", tokens.astype(np.uint16))
    flags = ("--schedule.steps", "150", "--optim.skip-loss-z", "6", "--eval.every", "0")
    train(data, folder, "--data.seed", "None", *flags)
    log = (folder / "log.txt").read_text()
    assert re.search(
        r"^step  140 \| skipped: the loss is [\d.]+, [\d.]+ standard deviations above its mean$", log, re.M
    )
    assert log.count("skipped") == 1 and len(read_log(folder / "log.txt").step) == 150
    assert checkpoint.read_record(checkpoint.list_checkpoints(folder)[0]).updates == 149


def train_poisoned(first: str, last: str, *words: str) -> None:
    """`train_gpt2.py words…`, where the second process's gradient is not a number from step `first` to `last`."""
    steps, forward_backward = iter(range(1_000_000)), train_gpt2.forward_backward

    def poison(state, *rest):
        loss = forward_backward(state, *rest)
        if int(first) <= next(steps) <= int(last) and torch.distributed.get_rank() == 1:
            next(state.model.parameters()).grad.view(-1)[0] = math.nan
        return loss

    train_gpt2.forward_backward = poison
    run_command(lambda: train_gpt2.main(words))


def poisoned(tmp_path, shards, first: int, last: int, *flags: str):
    """Such a run on two processes."""
    words = train_words(shards, tmp_path / "run", *flags)[1:]
    return run_python(Path(__file__), str(first), str(last), *words, processes=2, check=False)


def test_a_gradient_that_is_not_finite_on_one_process_reaches_the_weights_of_none(tmp_path, shards):
    done = poisoned(tmp_path, shards, 5, 5)
    assert done.returncode == 0, done.stderr
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "step    5 | skipped: the gradient norm is nan" in log and log.count("skipped") == 1
    assert np.isfinite(read_log(tmp_path / "run" / "log.txt").loss).all()


def test_too_many_skipped_steps_in_a_row_stop_the_run_and_name_the_last_good_checkpoint(tmp_path, shards):
    done = poisoned(tmp_path, shards, 7, 99, "--log.save-every", "5", "--optim.max-skips", "4")
    assert done.returncode
    good = tmp_path / "run" / "step_000010"
    assert "4 steps in a row were skipped, the last because the gradient norm is nan" in done.stderr
    assert f"--resume {tmp_path / 'run' / 'step_0000'}" in done.stderr
    assert read_log(tmp_path / "run" / "log.txt").step[-1] == 10 and good.parent.exists()


def test_fp16_skips_steps_that_overflow_and_continues(tmp_path, shards):
    """The gradient scaler starts with a large scale, so the first steps may overflow."""
    train(shards, tmp_path / "run", "--system.precision", "fp16")
    record = checkpoint.read_record(checkpoint.list_checkpoints(tmp_path / "run")[0])
    skipped = (tmp_path / "run" / "log.txt").read_text().count("skipped")
    assert record.updates == 20 - skipped and record.scaler["scale"] > 0


if __name__ == "__main__":
    train_poisoned(*sys.argv[1:])
