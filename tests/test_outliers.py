"""A step that would do harm is not made: spikes, and losses or gradients that are not finite."""

import json
import math
import re

import numpy as np
import pytest
from conftest import run_python, train, train_words

from gpt2.data.shards import write_shard
from gpt2.formats import checkpoint
from gpt2.logs.reader import read_log
from gpt2.optim.outliers import WINDOW, OutlierDetector


def test_the_score_is_llm_cs_over_a_window_that_holds_the_new_value():
    outliers = OutlierDetector(3.0, 0.0)
    values = np.random.default_rng(0).normal(4.0, 0.1, 200)
    for value in values:
        assert outliers.check(value, 1.0) is None
    window = [*values[-WINDOW + 1 :], 5.0]
    z = (5.0 - np.mean(window)) / np.std(window)
    assert outliers.check(5.0, 1.0) == f"the loss is 5.0000, {z:.1f} standard deviations above its mean"
    assert outliers.check(3.0, 1.0) is None  # far below is welcome


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_skipped_at_once_and_leaves_the_window_alone(bad):
    outliers = OutlierDetector(0.0, 0.0)
    assert outliers.check(bad, 1.0) == f"the loss is {bad}"
    assert outliers.check(1.0, bad) == f"the gradient norm is {bad}" and outliers.in_a_row == 2
    assert outliers.check(1.0, 1.0) is None and outliers.in_a_row == 0
    assert list(outliers.windows["loss"]) == [1.0, 1.0]


def test_nothing_is_skipped_before_the_window_is_full_or_where_nothing_varies():
    outliers = OutlierDetector(1.0, 1.0)
    for value in [1.0] * (WINDOW - 2) + [50.0]:
        assert outliers.check(value, value) is None
    still = OutlierDetector(1.0, 1.0)
    assert all(still.check(2.0, 2.0) is None for _ in range(2 * WINDOW))


def test_what_was_seen_survives_json():
    first, second = OutlierDetector(3.0, 3.0), OutlierDetector(3.0, 3.0)
    for value in np.random.default_rng(0).normal(4.0, 0.1, 300):
        first.check(value, value)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert first.check(4.5, 9.0) == second.check(4.5, 9.0) != None  # noqa: E711


def test_a_spike_in_the_data_is_skipped_and_logged_and_the_run_goes_on(tmp_path):
    """140 steps of one text, one step of another, and the first text again, in file order."""
    data, folder = tmp_path / "data", tmp_path / "run"
    data.mkdir()
    dice = np.random.default_rng(0)
    text = np.minimum(dice.geometric(0.05, 160 * 256), 200)
    text[140 * 256 : 141 * 256] = dice.integers(200, 256, 256)
    for name, tokens in (("val_000000", text[:600]), ("train_000001", text)):
        write_shard(data / f"{name}.npy", tokens.astype(np.uint16))
    flags = ("--schedule.steps", "150", "--optim.skip-loss-z", "6", "--eval.every", "0")
    words = [*train_words(data, folder, *flags)]
    words[1:2] = ["demo", "--data.seed", "None"]
    run_python(*words)
    log = (folder / "log.txt").read_text()
    assert re.search(
        r"^step  140 \| skipped: the loss is [\d.]+, [\d.]+ standard deviations above its mean$", log, re.M
    )
    assert log.count("skipped") == 1 and len(read_log(folder / "log.txt").step) == 150
    assert checkpoint.read_record(checkpoint.list_checkpoints(folder)[0]).updates == 149


POISONED = """
import math, sys
import torch
import train_gpt2
from gpt2.system.errors import run_command

rank, calls, inner = {rank}, iter(range(10**6)), train_gpt2.forward_backward

def forward_backward(state, *rest):
    loss = inner(state, *rest)
    if next(calls) in {steps} and torch.distributed.get_rank() == rank:
        next(state.model.parameters()).grad.view(-1)[0] = math.nan  # a bit that fell over, on one GPU alone
    return loss

train_gpt2.forward_backward = forward_backward
run_command(train_gpt2.main)
"""


def poisoned(tmp_path, shards, steps, *flags):
    """A run on two processes in which the second one's gradient is not a number at the given steps."""
    script = tmp_path / "poisoned.py"
    script.write_text(POISONED.format(rank=1, steps=steps))
    words = [script, *train_words(shards, tmp_path / "run", *flags)[1:]]
    return run_python(*words, processes=2, check=False)


def test_a_gradient_that_is_not_finite_on_one_process_reaches_no_ones_weights(tmp_path, shards):
    done = poisoned(tmp_path, shards, {5})
    assert done.returncode == 0, done.stderr
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "step    5 | skipped: the gradient norm is nan" in log and log.count("skipped") == 1
    assert np.isfinite(read_log(tmp_path / "run" / "log.txt").loss).all()


def test_too_many_skipped_in_a_row_end_the_run_and_name_the_last_good_checkpoint(tmp_path, shards):
    done = poisoned(tmp_path, shards, set(range(7, 99)), "--log.save-every", "5", "--optim.max-skips", "4")
    assert done.returncode
    good = tmp_path / "run" / "step_000010"
    assert "4 steps in a row were skipped, the last because the gradient norm is nan" in done.stderr
    assert f"--resume {tmp_path / 'run' / 'step_0000'}" in done.stderr
    assert read_log(tmp_path / "run" / "log.txt").step[-1] == 10 and good.parent.exists()


def test_fp16_skips_what_overflows_and_goes_on(tmp_path, shards):
    """The gradient scaler begins high, so that the first steps overflow on a model with a large loss scale."""
    train(shards, tmp_path / "run", "--system.precision", "fp16")
    record = checkpoint.read_record(checkpoint.list_checkpoints(tmp_path / "run")[0])
    skipped = (tmp_path / "run" / "log.txt").read_text().count("skipped")
    assert record.updates == 20 - skipped and record.scaler["scale"] > 0
