"""Whatever happens to a run, nothing is lost: real kills, real signals, a full disk, damaged files."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Run, command, make_shards, run_python, train, train_words, wait_for
from safetensors.torch import load_file

from gpt2.formats import checkpoint
from gpt2.formats.load import from_pretrained, pretrained_config
from gpt2.logs.reader import read_log
from gpt2.training.run_folder import differences

STEPS = ("--schedule.steps", "200", "--data.batch-tokens", "512", "--system.micro-batch", "2")
SAVING = (*STEPS, "--log.save-every", "5", "--data.seed", "3", "--eval.every", "50")
HALFWAY = (*SAVING, "--schedule.steps", "50", "--log.save-every", "10", "--log.keep", "3")


def workers(launcher: subprocess.Popen) -> list[int]:
    """The processes that torchrun has started, by rank."""
    children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    return [int(pid) for pid in children if b"train_gpt2.py" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def steps_in(folder: Path) -> int:
    """Training steps in the log, so far."""
    log = folder / "log.txt"
    return log.read_text().count("| loss:") if log.exists() else 0


def weights(folder: Path) -> bytes:
    return (folder / "model" / "model.safetensors").read_bytes()


def losses(folder: Path) -> list[str]:
    """Every line of the log about training and validation, without its times."""
    lines = (folder / "log.txt").read_text().splitlines()
    return [line.split(" | dt")[0] for line in lines if line.startswith("step")]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The shards of conftest, once for all tests of this file."""
    return make_shards(tmp_path_factory.mktemp("resume"))


@pytest.fixture(scope="module")
def uninterrupted(data, tmp_path_factory) -> Path:
    """200 steps on two processes that nothing happened to."""
    folder = tmp_path_factory.mktemp("resume") / "run"
    train(data, folder, *SAVING, processes=2)
    return folder


@pytest.fixture(scope="module")
def short(data, tmp_path_factory) -> Path:
    """50 steps on two processes that nothing happened to."""
    folder = tmp_path_factory.mktemp("resume") / "short"
    train(data, folder, *HALFWAY, processes=2)
    return folder


@pytest.fixture(scope="module")
def straight(short) -> np.ndarray:
    """Their losses."""
    return read_log(short / "log.txt").loss


def test_killed_twenty_times_a_run_is_the_same_to_the_last_bit(data, uninterrupted, tmp_path):
    """kill -9 of a random process at a random moment. Fourteen times the same command is given again; then torchrun
    restarts the processes six times, and nobody does anything."""
    dice, folder = random.Random(0), tmp_path / "run"
    words = train_words(data, folder, *SAVING)
    for _ in range(14):
        run = Run(*words, processes=2)
        wait_for(lambda run=run: lives(run.output("out")) or not run.is_running())
        assert run.is_running(), run.wait()
        time.sleep(dice.uniform(0, 0.15))
        dice.choice(run.workers).kill(signal.SIGKILL)
        run.wait()
    said, errors = tmp_path / "said.txt", tmp_path / "errors.txt"
    with open(said, "w") as out, open(errors, "w") as err:
        torchrun = subprocess.Popen(**command(*words, processes=2, restarts=6), stdout=out, stderr=err)
        for kills in range(6):
            wait_for(lambda n=kills: lives(said.read_text()) > n or torchrun.poll() is not None, 90)
            assert torchrun.poll() is None, errors.read_text()[-3000:]
            time.sleep(dice.uniform(0, 0.3))
            os.kill(dice.choice(workers(torchrun)), signal.SIGKILL)
        assert torchrun.wait() == 0
    assert weights(folder) == weights(uninterrupted)
    assert losses(folder) == losses(uninterrupted)
    assert len(losses(folder)) == 200 + 5
    assert not list(folder.rglob("*.tmp")) and (folder / "DONE").exists()


def lives(said: str) -> int:
    """How often a run has begun to make steps: headers that at least one line of a step follows."""
    return len(re.findall(r"^# settings.*\n(?:#.*\n)*step", said, re.M))


def stop_at(data: Path, folder: Path, steps: int, *flags: str, processes: int, number: int) -> str:
    """Start a run, send its last process a signal when it has made so many steps, and return what the run said."""
    run = Run(*train_words(data, folder, *HALFWAY, *flags), processes=processes)
    wait_for(lambda: steps_in(folder) >= steps)
    run.workers[-1].kill(number)
    done = run.wait()
    assert done.returncode == 0, done.stderr
    return done.stdout


def stop_torchrun_at(data: Path, folder: Path, steps: int, *flags: str) -> str:
    """The same for two processes under torchrun, which is itself asked to stop, and reports that as a failure."""
    words = train_words(data, folder, *HALFWAY, *flags)
    process = subprocess.Popen(**command(*words, processes=2), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    wait_for(lambda: steps_in(folder) >= steps)
    process.send_signal(signal.SIGTERM)
    return process.communicate(timeout=60)[0]


@pytest.mark.parametrize(
    ("number", "processes", "launcher"),
    [(signal.SIGTERM, 2, "torchrun"), (signal.SIGUSR1, 2, "none"), (signal.SIGINT, 1, "none")],
)
def test_a_run_that_is_asked_to_stop_saves_and_resumes_without_a_bump(
    data, short, tmp_path, number, processes, launcher
):
    folder, again = tmp_path / "run", "the same command goes on"
    if launcher == "torchrun":
        said = stop_torchrun_at(data, folder, 7, "--log.save-every", "0")
    else:
        overwrite = ["--log.overwrite"] if number == signal.SIGINT else []  # which would begin anew
        again = f"the same command{' without --log.overwrite' if overwrite else ''} goes on"
        said = stop_at(data, folder, 7, "--log.save-every", "0", *overwrite, processes=processes, number=number)
    assert re.search(rf"stopped: asked to by (SIG\w+|another process); {again}\n", said)
    assert not (folder / "DONE").exists()
    assert len(list(folder.glob("step_*"))) == 1 and not (folder / "model").exists()
    train(data, folder, *HALFWAY, processes=2)
    if processes == 2:
        assert weights(folder) == weights(short) and losses(folder) == losses(short)
    else:
        np.testing.assert_allclose(read_log(folder / "log.txt").loss, read_log(short / "log.txt").loss, atol=2e-5)


SIGNALLED = """
import sys, time
from gpt2.training.signals import interruptible
with interruptible() as interruption:
    print("ready", flush=True)
    while True:
        time.sleep(0.01)
        if interruption.name:
            print(interruption.name, flush=True)
            time.sleep(60)
"""


@pytest.mark.parametrize(("pause", "ends"), [(1.5, True), (0.1, False)])
def test_a_second_signal_ends_a_process_at_once_but_an_echo_does_not(tmp_path, pause, ends):
    """torchrun hands a signal on that the scheduler may have sent to its workers too."""
    (tmp_path / "script.py").write_text(SIGNALLED)
    run = Run(tmp_path / "script.py")
    [process] = run.workers
    wait_for(lambda: run.output("out") == "ready\n")
    process.kill(signal.SIGTERM)
    wait_for(lambda: run.output("out") == "ready\nSIGTERM\n")
    time.sleep(pause)
    process.kill(signal.SIGTERM)
    time.sleep(0.5)
    assert process.poll() == (128 + signal.SIGTERM if ends else None)
    process.kill()


def copy_of(folder: Path, place: Path) -> Path:
    """A run folder that stands at the last checkpoint but is not finished."""
    shutil.copytree(folder, place)
    (place / "DONE").unlink(missing_ok=True)
    shutil.rmtree(place / "model", ignore_errors=True)
    return place


@pytest.fixture(scope="module")
def halfway(data, tmp_path_factory) -> Path:
    """A run of 50 steps on two processes, stopped after about 25, with a checkpoint every 10."""
    folder = tmp_path_factory.mktemp("resume") / "halfway"
    stop_at(data, folder, 25, processes=2, number=signal.SIGUSR1)
    return folder


@pytest.mark.parametrize(("processes", "zero"), [(1, "0"), (4, "0"), (2, "3"), (4, "1")])
def test_saved_by_two_and_resumed_by_others_there_is_no_bump(data, halfway, straight, tmp_path, processes, zero):
    folder = copy_of(halfway, tmp_path / "run")
    train(data, folder, *HALFWAY, "--system.zero", zero, processes=processes)
    log = read_log(folder / "log.txt")
    np.testing.assert_array_equal(log.step, np.arange(50))
    np.testing.assert_allclose(log.loss, straight, atol=1e-5, rtol=0)


def test_divided_state_is_resumed_undivided(data, straight, tmp_path):
    folder = tmp_path / "run"
    stop_at(data, folder, 25, "--system.zero", "2", processes=2, number=signal.SIGUSR1)
    files = sorted(next(folder.glob("step_*")).glob("*.safetensors"))
    sizes = [sum(t.numel() for t in load_file(file).values()) for file in files]
    assert len(files) == 2 and max(sizes) < 1.1 * min(sizes)  # each has written its half
    train(data, folder, *HALFWAY)
    np.testing.assert_allclose(read_log(folder / "log.txt").loss, straight, atol=1e-5, rtol=0)


def resumed_at(folder: Path) -> int:
    return int(re.findall(r"# resumed: at step (\d+)", (folder / "log.txt").read_text())[-1])


def damage(path: Path) -> None:
    """One bit, in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_damaged_or_half_written_checkpoint_is_named_and_the_one_before_it_used(data, halfway, straight, tmp_path):
    folder = copy_of(halfway, tmp_path / "run")
    newest, second, third = checkpoint.list_checkpoints(folder)
    damage(newest / "process_001.safetensors")
    (second / "process_000.safetensors").unlink()
    (folder / "step_000049.tmp").mkdir()  # what a kill while saving leaves
    train(data, folder, *HALFWAY)
    log = (folder / "log.txt").read_text()
    assert f"{newest} is damaged: process_001.safetensors is not as it was written; it is not used" in log
    assert f"{second} is incomplete: process_000.safetensors is missing; it is not used" in log
    assert resumed_at(folder) == checkpoint.step_of(third) == 10
    np.testing.assert_allclose(read_log(folder / "log.txt").loss, straight, atol=1e-5, rtol=0)
    assert [checkpoint.read_record(path).step for path in checkpoint.list_checkpoints(folder)] == [50, 40, 30]
    assert not list(folder.glob("*.tmp"))


@pytest.mark.parametrize("name", ["state.json", "config.json"])
def test_a_damaged_record_is_not_the_end(data, halfway, tmp_path, name):
    folder = copy_of(halfway, tmp_path / "run")
    newest = checkpoint.list_checkpoints(folder)[0]
    (newest / name if name == "state.json" else folder / name).write_text("{")
    train(data, folder, *HALFWAY)
    assert resumed_at(folder) == (20 if name == "state.json" else checkpoint.step_of(newest))


def test_other_settings_are_refused_with_the_list_of_differences_unless_asked_for(data, halfway, tmp_path):
    folder = copy_of(halfway, tmp_path / "run")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name[0] != "."}
    changed = ("--optim.lr", "1e-3", "--schedule.kind", "linear")
    refused = train(data, folder, *HALFWAY, *changed, check=False)
    assert refused.returncode == 2
    assert "optim.lr 0.003 → 0.001, schedule.kind 'cosine' → 'linear'" in refused.stderr
    assert {path: path.read_bytes() for path in before} == before
    train(data, folder, *HALFWAY, *changed, "--allow-changes")
    assert (folder / "DONE").exists()


def test_a_setting_that_did_not_exist_when_a_checkpoint_was_saved_had_its_default(halfway, tmp_path):
    record = checkpoint.read_record(checkpoint.list_checkpoints(halfway)[0])
    now = {"settings": json.loads(json.dumps(record.settings)), "shards": record.shards}
    del record.settings["optim"]["max_skips"], record.settings["parts"]["sinks"]
    assert differences(record, now) == []
    now["settings"]["optim"]["max_skips"] = 3
    assert differences(record, now) == ["optim.max_skips 10 → 3"]


def test_other_data_under_the_same_name_are_refused(data, halfway, tmp_path):
    folder = copy_of(halfway, tmp_path / "run")
    moved = shutil.copytree(data, tmp_path / "data")
    record = checkpoint.list_checkpoints(folder)[0] / "state.json"
    content = json.loads(record.read_text())
    content["settings"]["data"]["shards"] = str(moved)
    record.write_text(json.dumps(content))
    (moved / "train_000002.npy").unlink()
    refused = train(moved, folder, *HALFWAY, check=False)
    assert refused.returncode == 2 and "the train shards (now 2,614 tokens, then 3,525)" in refused.stderr


def test_a_checkpoint_of_another_model_is_refused_even_with_changes_allowed(data, halfway, tmp_path):
    folder = copy_of(halfway, tmp_path / "run")
    refused = train(data, folder, *HALFWAY, "--model.n-embd", "64", "--allow-changes", check=False)
    assert refused.returncode == 2 and "is of another model" in refused.stderr and "(257" not in refused.stdout


def test_a_run_branches_off_at_an_older_checkpoint_into_its_own_folder(data, halfway, tmp_path):
    old = checkpoint.list_checkpoints(halfway)[-1]
    flags = (*HALFWAY, "--resume", str(old), "--optim.lr", "1e-3", "--allow-changes")
    back = train(
        data, copy_of(halfway, tmp_path / "run"), *HALFWAY, "--resume", str(tmp_path / "run" / old.name), check=False
    )
    assert back.returncode == 2 and "would go back in a run that has reached" in back.stderr
    train(data, tmp_path / "branch", *flags)
    log = read_log(tmp_path / "branch" / "log.txt")
    assert log.step[0] == 10 and len(log.step) == 40
    nowhere = train(data, tmp_path / "other", *HALFWAY, "--resume", "nowhere", check=False)
    assert nowhere.returncode == 2 and "--resume nowhere names no intact checkpoint" in nowhere.stderr


def test_a_complete_run_is_not_trained_again(data, short):
    before = (short / "log.txt").read_bytes()
    done = train(data, short, *HALFWAY)
    assert "holds this run, complete; to train it again: --log.overwrite" in done.stdout
    assert (short / "log.txt").read_bytes() == before


def test_a_disk_that_is_full_stops_no_training_and_loses_no_checkpoint(data, halfway, straight, tmp_path):
    """Files may grow to 100 KiB: enough for the log, not for weights."""
    folder = copy_of(halfway, tmp_path / "run")
    kept = checkpoint.list_checkpoints(folder)
    words = " ".join(map(str, command(*train_words(data, folder, *HALFWAY))["args"]))
    full = subprocess.run(["bash", "-c", f"ulimit -f 100; exec {words}"], **limits(command()), capture_output=True)
    assert full.returncode == 2, full.stderr
    assert "make room, and give the same command again" in full.stderr
    log = (folder / "log.txt").read_text()
    assert "checkpoint: not saved (File too large" in log and read_log(folder / "log.txt").step[-1] == 49
    assert checkpoint.list_checkpoints(folder) == kept and not list(folder.glob("*.tmp"))
    train(data, folder, *HALFWAY)
    np.testing.assert_allclose(read_log(folder / "log.txt").loss, straight, atol=1e-5, rtol=0)


def limits(start: dict) -> dict:
    return {key: value for key, value in start.items() if key != "args"}


def test_a_folder_in_use_is_refused(data, tmp_path):
    folder = tmp_path / "run"
    words = train_words(data, folder, *SAVING, "--schedule.steps", "100000")
    run = Run(*words)
    wait_for(lambda: steps_in(folder) >= 1)
    refused = train(data, folder, *SAVING, "--schedule.steps", "100000", check=False)
    run.workers[0].kill()
    run.wait()
    assert refused.returncode == 2 and f"{folder} is in use by process {run.workers[0].pid}" in refused.stderr
    assert train(data, folder, *STEPS, "--data.seed", "4", check=False).returncode == 2  # free, but another run
    train(data, folder, *STEPS, "--schedule.steps", "2", "--log.overwrite")


def test_the_newest_are_kept_and_every_mth_for_good(data, tmp_path):
    flags = ("--log.save-every", "2", "--log.keep", "2", "--log.keep-every", "8")
    train(data, tmp_path / "run", *flags)
    assert [checkpoint.step_of(path) for path in checkpoint.list_checkpoints(tmp_path / "run")] == [20, 18, 16, 8]


def test_nothing_in_a_checkpoint_can_run_code(short):
    """safetensors and JSON, which torch.distributed.checkpoint and safetensors alike read back."""
    newest = checkpoint.list_checkpoints(short)[0]
    assert {path.suffix for path in newest.iterdir()} == {".safetensors", ".json"}
    parts = [load_file(path) for path in sorted(newest.glob("*.safetensors"))]
    names = [name for part in parts for name in part]
    assert len(names) == len(set(names)) and {name.split(".")[0] for name in names} == {"model", "optimizer", "random"}
    table = next(part for part in parts if "model.transformer.wte.weight" in part)["model.transformer.wte.weight"]
    exported = load_file(short / "model" / "model.safetensors")["transformer.wte.weight"]
    torch.testing.assert_close(table[:257], exported, rtol=0, atol=0)


def test_a_run_that_has_not_ended_can_be_evaluated_and_sampled_from_its_newest_checkpoint(data, halfway, tmp_path):
    folder = copy_of(halfway, tmp_path / "run")
    assert pretrained_config(folder) == from_pretrained(folder).config
    assert run_python("-m", "gpt2", "generate", folder, "--tokens", "4", "--prompt", "a").stdout.startswith("a")
    train(data, folder, *HALFWAY)
    exported = run_python("-m", "gpt2", "evaluate", folder).stdout
    shutil.rmtree(folder / "model")
    assert run_python("-m", "gpt2", "evaluate", folder).stdout == exported
    for path in checkpoint.list_checkpoints(folder):
        shutil.rmtree(path)
    refused = run_python("-m", "gpt2", "evaluate", folder, check=False)
    assert refused.returncode == 2 and "has saved nothing yet" in refused.stderr
