"""What several tests share: text, shards, and the real commands run as a person runs them."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from gpt2.shards import write_shard

ROOT = Path(__file__).resolve().parent.parent
TINY = [
    *("--model.init", "d6", "--model.n-layer", "2", "--model.n-head", "2", "--model.n-embd", "32"),
    *("--model.vocab-size", "257", "--model.block-size", "16", "--data.batch-tokens", "256"),
    *("--optim.lr", "3e-3", "--schedule.steps", "20", "--schedule.warmup", "4"),
    *("--system.precision", "fp32", "--system.compile", "off"),
    *("--system.device", "cpu", "--eval.tokens", "512", "--eval.every", "10", "--eval.sample-every", "0"),
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked `gpu` are skipped where there is no CUDA device."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA GPU"))


def make_shards(folder: Path) -> Path:
    """A folder of byte tokens: a val shard and train shards of odd lengths, so that sequences cross their ends."""
    text = np.random.default_rng(0)
    for name, tokens in (("val_000000", 1500), ("train_000001", 1013), ("train_000002", 911), ("train_000003", 1601)):
        write_shard(folder / f"{name}.npy", np.minimum(text.geometric(0.05, tokens), 256).astype(np.uint16))
    return folder


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Shards of a test's own."""
    (tmp_path / "data").mkdir()
    return make_shards(tmp_path / "data")


def command(*words: str | Path, processes: int = 1, restarts: int = 0) -> dict:
    """How to run a script (or `-m module`) of this repository, under torchrun where `processes` is more than one."""
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        launcher += [f"--max-restarts={restarts}"]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONUNBUFFERED": "1",
        "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}",
    }
    return {"args": [*launcher, *map(str, words)], "cwd": ROOT, "env": environment, "text": True}


def run_python(*words: str | Path, processes: int = 1, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run a script (or `-m module`) of this repository to its end."""
    done = subprocess.run(**command(*words, processes=processes), capture_output=True)
    if check and done.returncode:
        raise AssertionError(f"{words} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}")
    return done


def train_words(shards: Path, folder: Path, *flags: str, preset: str = "demo") -> list[str | Path]:
    """`train_gpt2.py PRESET` on a tiny model, writing into `folder`."""
    return ["train_gpt2.py", preset, *TINY, "--data.shards", shards, "--log.folder", folder, *flags]


def train(shards: Path, folder: Path, *flags: str, preset: str = "demo", processes: int = 1, check: bool = True):
    """That, run to its end."""
    return run_python(*train_words(shards, folder, *flags, preset=preset), processes=processes, check=check)
