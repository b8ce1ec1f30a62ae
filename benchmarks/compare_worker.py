"""One measurement of one trainer, in a process of its own: `python compare_worker.py JOB`, with JOB as JSON.

The last line of the output is the result as JSON. compare.py starts it in a folder that holds the data.
"""

import hashlib
import json
import multiprocessing
import os
import resource
import runpy
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peers import LR, OPTIM, SHARD, Peer, Size, our_step, our_trainer, peer_trainer, step_on, time_steps
from torch import nn

import fineweb
from gpt2.config.run import Schedule
from gpt2.data.loader import TokenLoader
from gpt2.data.shards import open_shard
from gpt2.data.tokenizer import get_encoding
from gpt2.model import GPT, GPTConfig
from gpt2.optim.optimizer import make_optimizer
from gpt2.optim.outliers import OutlierDetector
from gpt2.optim.schedule import learning_rate
from gpt2.system.machine import available_cores
from gpt2.system.processes import process_group
from gpt2.training.saving import TrainingState

CPU = torch.device("cpu")


def train(job: dict[str, Any]) -> dict[str, Any]:
    """Median seconds of a training step, on tokens in the current folder."""
    size, precision, compiled = Size(**job["size"]), job["precision"], job["compiled"]
    if job["side"] == "ours":
        with process_group("cpu"):  # threads and memory as train_gpt2.py sets them
            trainer = our_trainer(size, precision, compiled, Path.cwd(), CPU)
    else:
        trainer = peer_trainer(Peer(job["peer"]), size, precision, compiled, CPU)
    return time_steps(trainer, job["warmup"], job["steps"], CPU)


def loss(job: dict[str, Any]) -> dict[str, Any]:
    """Losses of both trainers, step by step, from the same weights on the same batches in fp32."""
    size, steps = Size(**job["size"]), job["steps"]
    torch.manual_seed(1)
    ours = GPT(GPTConfig(**size.config))
    peer = Peer(job["peer"])
    theirs = peer.make_model(size)
    copy_weights(ours, theirs)
    for module in theirs.modules():
        if isinstance(module, nn.GELU):
            module.approximate = "tanh"  # GPT-2's; nanoGPT has the exact form
    shard = open_shard(SHARD)
    our_batches, their_batches = (
        TokenLoader([shard], size.tokens, size.block_size, micro_batch=size.batch, seed=1) for _ in range(2)
    )
    our_optimizer = make_optimizer(ours, OPTIM)
    their_optimizer = peer.make_optimizer(theirs, CPU)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    state = TrainingState(ours, ours, our_optimizer, scaler, our_batches, OutlierDetector(0, 0))
    curves: list[tuple[float, float]] = []
    for step in range(steps):
        lr = learning_rate(step, LR, Schedule(steps, warmup=steps // 6))
        for group in their_optimizer.param_groups:
            group["lr"] = lr
        our_loss = our_step(state, lr, "fp32")
        [(x, y)] = their_batches.next_step()
        curves.append((our_loss, step_on(theirs, x, y, their_optimizer, "fp32")))
    return {"ours": [a for a, _ in curves], "peer": [b for _, b in curves]}


def copy_weights(ours: nn.Module, theirs: nn.Module) -> None:
    """Our weights into the peer's model: the names agree but for its head, which is the token embedding; no padding."""
    state = ours.state_dict()
    for name, tensor in theirs.state_dict().items():
        source = state["transformer.wte.weight" if name == "lm_head.weight" else name]
        tensor.copy_(source[: len(tensor)])


class Documents:
    """The documents of a jsonl file, one {"text": …} after the other, in the place of a dataset from the network."""

    def __init__(self, path: str):
        self.path = path

    def __iter__(self) -> Iterator[dict[str, str]]:
        with open(self.path, encoding="utf-8") as file:
            yield from map(json.loads, file)


def tokenize(job: dict[str, Any]) -> dict[str, Any]:
    """Seconds from the jsonl file to the shards, imports and the vocabulary's set-up apart; and what was made."""
    get_encoding()
    out = Path(job["out"])
    shutil.rmtree(out, ignore_errors=True)  # of a repeated measurement
    out.mkdir()
    if job["side"] == "ours":
        options = fineweb.Options(source="files", files=(job["file"],), out=out)
        started = time.perf_counter()
        fineweb.make_shards(options, out)
        seconds = time.perf_counter() - started
    else:
        seconds = run_peers_fineweb(Path(job["peer"]), job["file"], out, job["workers"])
    peak = peak_mib()
    shards = sorted(out.rglob("*.npy"), key=lambda path: path.stem[-6:])
    tokens = np.concatenate([np.load(path) for path in shards])
    digest = hashlib.sha256(tokens.data).hexdigest()
    return {"seconds": seconds, "tokens": len(tokens), "sha256": digest, "peak_mib": peak}


def peak_mib() -> float:
    """The most memory that this process and the largest of its children have had resident, added up, in MiB."""
    who = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(resource.getrusage(one).ru_maxrss for one in who) / 1024


def run_peers_fineweb(peer: Path, file: str, out: Path, workers: int | None) -> float:
    """Run build-nanogpt's fineweb.py itself on the local documents; `workers` None leaves it half the cores."""
    import datasets
    import tiktoken

    multiprocessing.set_start_method("fork")  # its script has no guard against being imported by its workers
    datasets.load_dataset = lambda *_, **__: Documents(file)
    tiktoken.get_encoding = lambda _: get_encoding()
    cores = available_cores()
    os.cpu_count = lambda: 2 * workers if workers else cores  # it takes half of them
    script = shutil.copy(peer / "fineweb.py", out)  # it writes beside itself
    started = time.perf_counter()
    runpy.run_path(script, run_name="__main__")
    return time.perf_counter() - started


def main() -> None:
    job = json.loads(sys.argv[1])
    result = {"train": train, "loss": loss, "tokenize": tokenize}[job["work"]](job)
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
