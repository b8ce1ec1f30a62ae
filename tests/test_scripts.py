"""The scripts for machines that come and go: the loop goes on after a kill, and ends when the run is complete."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT, train_words

from gpt2.logs import read_log


def loop(shards: Path, folder: Path, *flags: str, processes: int = 2) -> subprocess.Popen:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "GPUS": str(processes), "PAUSE": "0.2", "OMP_NUM_THREADS": "1"}
    words = ["bash", "scripts/train.sh", *map(str, train_words(shards, folder, *flags)[1:])]
    return subprocess.Popen(
        words, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def wait_for(condition, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)


def descendants(pid: int) -> list[int]:
    children = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return [each for child in children for each in (child, *descendants(child))]


LONG = ("--schedule.steps", "60", "--data.batch-tokens", "2048", "--system.micro-batch", "1", "--log.save-every", "10")


def test_the_loop_goes_on_after_everything_was_killed_and_ends_on_done(shards, tmp_path):
    folder = tmp_path / "run"
    script = loop(shards, folder, *LONG)
    wait_for(lambda: (folder / "step_000020").exists())
    for pid in descendants(script.pid):
        os.kill(pid, signal.SIGKILL)
    said, _ = script.communicate(timeout=90)
    assert script.returncode == 0, said
    assert (folder / "DONE").exists() and said.count("# command") >= 2
    assert list(read_log(folder / "log.txt").step) == list(range(60))


def test_the_loop_ends_when_it_is_asked_to_or_gets_no_further(shards, tmp_path):
    folder = tmp_path / "run"
    script = loop(shards, folder, *LONG)
    wait_for(lambda: (folder / "log.txt").exists() and "| loss" in (folder / "log.txt").read_text())
    script.send_signal(signal.SIGTERM)
    said, _ = script.communicate(timeout=60)
    assert script.returncode == 1 and "stopped: asked to by SIGTERM" in said and not (folder / "DONE").exists()
    mistaken = loop(shards, tmp_path / "other", "--optim.lr", "-1")
    said, _ = mistaken.communicate(timeout=90)
    assert mistaken.returncode == 1 and said.count("error: --optim.lr -1.0 is out of range") == 3


@pytest.mark.parametrize("script", sorted((ROOT / "scripts").iterdir()), ids=lambda path: path.name)
def test_every_script_parses_and_says_what_it_costs(script):
    subprocess.run(["bash", "-n", script], check=True)
    assert "hours" in script.read_text() or "core-minutes" in script.read_text()


def test_the_array_job_deals_parts(tmp_path):
    """With a stand-in for Python that prints what it is given."""
    words = ["bash", ROOT / "scripts" / "fineweb.sbatch", "--out", "data/x"]
    job = {"SLURM_SUBMIT_DIR": str(ROOT), "SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_COUNT": "8", "PYTHON": "echo"}
    done = subprocess.run(words, env={**os.environ, **job}, capture_output=True, text=True, check=True)
    assert done.stdout == "fineweb.py --part 3 --parts 8 --out data/x\n"
