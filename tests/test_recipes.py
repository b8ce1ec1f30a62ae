"""Every family of runs goes the whole way: it trains, is saved, goes on, is evaluated and writes text."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import train

from gpt2.config.checks import resolve
from gpt2.config.presets import PRESETS
from gpt2.config.run import Languini, Run
from gpt2.formats.load import from_pretrained
from gpt2.generate import generate
from gpt2.logs.reader import read_log
from gpt2.modern.model import Modern
from gpt2.system.errors import UserError

DEMOS = [name for name in PRESETS if name.endswith("-demo")]
STEPS = ("--log.save-every", "10", "--log.keep", "9")


def losses(folder: Path) -> dict[str, list[float]]:
    """Every loss and validation of a run's log, as written."""
    log = read_log(folder / "log.txt")
    return {"train": log.loss.tolist(), "val": log.val_loss.tolist(), "norm": log.norm.tolist()}


@pytest.mark.parametrize("preset", DEMOS)
def test_a_demo_sibling_trains_resumes_is_evaluated_and_samples(preset: str, shards: Path, tmp_path: Path):
    """On two processes: the run is cut back to its checkpoint of step 10, and ends as the straight one did."""
    folder, straight = tmp_path / "run", tmp_path / "straight"
    flags = (*STEPS, "--optim.lr", str(PRESETS[preset][1].optim.lr))
    train(shards, folder, *flags, preset=preset, processes=2)
    shutil.copytree(folder, straight)
    for end in ("step_000020", "model", "DONE"):
        path = folder / end
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    train(shards, folder, *flags, preset=preset, processes=2)
    assert "resumed: at step 10" in (folder / "log.txt").read_text()
    assert losses(folder) == losses(straight)
    assert losses(folder)["val"][-1] < losses(folder)["val"][0] - 0.05
    for one in (folder, straight):  # a resumed run's weights are the straight one's, and are found by its name
        model = from_pretrained(str(one))
        written = torch.cat(list(generate(model, torch.zeros(1, 1, dtype=torch.long), 24, temperature=0)), dim=1)
        assert written.shape == (1, 24)
    first, second = (from_pretrained(str(one)).state_dict() for one in (folder, straight))
    assert all(torch.equal(first[name], second[name]) for name in second)
    if preset != "llmc-demo":
        assert isinstance(model, Modern) and model.config.parts == PRESETS[preset][1].parts


@pytest.mark.parametrize(("preset", "zero"), [("speedrun-demo", "1"), ("gpt-oss-demo", "3"), ("magnitude-demo", "2")])
def test_what_is_divided_changes_no_loss(preset: str, zero: str, shards: Path, tmp_path: Path):
    train(shards, tmp_path / "one", preset=preset)
    train(shards, tmp_path / "two", "--system.zero", zero, preset=preset, processes=2)
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert two["train"] == pytest.approx(one["train"], abs=2e-5)
    assert two["val"] == pytest.approx(one["val"], abs=2e-5)


def test_a_batch_is_learned_by_heart(shards: Path, tmp_path: Path):
    train(shards, tmp_path / "run", "--data.overfit", "--schedule.steps", "60", "--optim.lr", "1e-2")
    log = read_log(tmp_path / "run" / "log.txt")
    train(shards, tmp_path / "other", "--schedule.steps", "60", "--optim.lr", "1e-2")
    other = read_log(tmp_path / "other" / "log.txt")
    assert log.loss[-1] < other.loss[-1] - 0.3
    assert log.val_loss[-1] > log.loss[-1] + 0.3


@pytest.mark.parametrize(
    ("languini", "words"),
    [
        (Languini(hours=6), "--languini.hours 6 needs the throughput of this model on the reference accelerator"),
        (Languini(hours=0, tokens_per_second=10), "--languini.hours 0 is out of range; give more than 0"),
        (Languini(hours=6, tokens_per_second=-1), "--languini.tokens-per-second -1 is out of range; give more than 0"),
    ],
)
def test_a_class_without_hours_or_throughput_is_refused(languini: Languini, words: str):
    with pytest.raises(UserError) as error:
        resolve(Run(languini=languini))
    assert words in str(error.value)


def test_wrong_parts_are_refused_with_one_sentence_before_anything_runs(shards: Path, tmp_path: Path):
    done = train(shards, tmp_path / "run", "--parts.kv-heads", "3", check=False)
    assert done.returncode == 2
    assert done.stderr.strip().count("\n") == 0
    assert "kv_heads 3 does not divide n_head 2; give one of 1, 2" in done.stderr


def test_a_small_gpu_is_asked_for_no_bf16():
    system = resolve(replace(PRESETS["speedrun"][1], system=replace(Run().system, small_gpu=True))).system
    assert (system.precision, system.weights, system.recompute) == ("fp16", "fp32", "mlp")


def test_a_small_gpus_settings_train(shards: Path, tmp_path: Path):
    train(shards, tmp_path / "run", "--system.small-gpu", preset="gpt-oss-demo")
    found = losses(tmp_path / "run")["val"]
    assert found[-1] < found[0] - 0.05
