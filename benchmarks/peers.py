"""This trainer and its peers behind one interface: a function that makes one training step.

A peer is a clone of nanoGPT or build-nanogpt somewhere on this machine. Its classes and functions are taken from its
own files and run unchanged; its scripts, which train on import, are not run.
"""

import ast
import inspect
import math
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gpt2.config.run import Optim
from gpt2.data.loader import TokenLoader
from gpt2.data.shards import open_shard, write_shard
from gpt2.model import GPT, GPTConfig
from gpt2.optim.optimizer import make_optimizer
from gpt2.optim.outliers import OutlierDetector
from gpt2.system.devices import autocast, synchronize
from gpt2.training.distributed import clip_gradients
from gpt2.training.execution import Execution
from gpt2.training.saving import TrainingState
from train_gpt2 import forward_backward, update

LR, BETAS, EPS, WEIGHT_DECAY, CLIP = 1e-3, (0.9, 0.95), 1e-8, 0.1, 1.0
OPTIM = Optim(lr=LR, betas=BETAS, eps=EPS, weight_decay=WEIGHT_DECAY)
SHARD = "edu_fineweb10B/edufineweb_train_000000.npy"  # where build-nanogpt's loader looks, below the current folder
RAW = "train.bin"  # what nanoGPT's loader reads: uint16 without a header


@dataclass(frozen=True)
class Size:
    """The size of a model and its batch: `batch` sequences of `block_size` tokens per step."""

    n_layer: int
    n_head: int
    n_embd: int
    vocab_size: int
    block_size: int
    batch: int

    @property
    def tokens(self) -> int:
        """Tokens in one step."""
        return self.batch * self.block_size

    @property
    def config(self) -> dict[str, int]:
        """The arguments of GPTConfig, in this project and in both peers."""
        return {name: value for name, value in asdict(self).items() if name != "batch"}


@dataclass
class Trainer:
    """`step()` makes one training step and returns its loss; `waits` are the seconds spent on fetching each batch."""

    model: nn.Module  # before compilation
    step: Callable[[], float]
    waits: list[float] = field(default_factory=list)


def write_tokens(folder: Path, tokens: np.ndarray) -> None:
    """Write the same tokens (N,) where our loader and the loader of each peer find them."""
    (folder / SHARD).parent.mkdir(exist_ok=True)
    write_shard(folder / SHARD, tokens)
    tokens.astype(np.uint16).tofile(folder / RAW)


def our_trainer(
    size: Size,
    precision: str,
    compiled: bool,
    folder: Path,
    device: torch.device,
    make_optimizer: Callable[..., torch.optim.Optimizer] = make_optimizer,
) -> Trainer:
    """Our model, loader and optimiser on the tokens in `folder`, stepping as train_gpt2.py does."""
    torch.manual_seed(1)
    raw = GPT(GPTConfig(**size.config)).to(device)
    model = torch.compile(raw, dynamic=False) if compiled else raw
    optimizer = make_optimizer(raw, OPTIM)
    scaler = torch.amp.GradScaler(device.type, enabled=False)
    shard = open_shard(folder / SHARD)
    loader = TokenLoader([shard], size.tokens, size.block_size, micro_batch=size.batch, seed=1, device=device)
    trainer = Trainer(raw, lambda: 0.0)
    loader.next_step = timed(loader.next_step, trainer.waits)  # type: ignore[method-assign]
    state = TrainingState(raw, model, optimizer, scaler, loader, OutlierDetector(0, 0))
    trainer.step = lambda: our_step(state, LR, precision)
    return trainer


def our_step(state: TrainingState, lr: float, precision: str) -> float:
    """One step as train_gpt2.py makes it, which reads loss and norm before it changes weights. Returns the loss."""
    execution = Execution(precision, compiled=state.trained is not state.model, micro_batch=state.loader.micro_batch)
    loss = forward_backward(state, execution, zero=0)
    norm = float(clip_gradients(state.trained, CLIP))
    update(state, lr, skip=state.outliers.check(float(loss), norm) is not None)
    return float(loss)


def peer_trainer(peer: "Peer", size: Size, precision: str, compiled: bool, device: torch.device) -> Trainer:
    """The peer's model, optimiser and loader on the tokens in the current folder, stepping as its own loop does."""
    torch.manual_seed(1)
    peer.set_matmul_precision()
    raw = peer.make_model(size).to(device)
    model = torch.compile(raw) if compiled else raw
    optimizer = peer.make_optimizer(raw, device)
    trainer = Trainer(raw, lambda: 0.0)
    next_batch = timed(peer.make_loader(size, device), trainer.waits)

    def step() -> float:
        x, y = next_batch()
        return step_on(model, x.to(device), y.to(device), optimizer, precision)

    trainer.step = step
    return trainer


def step_on(model: nn.Module, x: Tensor, y: Tensor, optimizer: torch.optim.Optimizer, precision: str) -> float:
    """One step of a model that returns (logits, loss) on a batch (B, T); its loss in nats per token."""
    with autocast(x.device, precision):
        _, loss = model(x, y)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), CLIP)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss.item()


def timed(function: Callable[[], Any], seconds: list[float]) -> Callable[[], Any]:
    """The function, appending to `seconds` how long each call took."""

    def measured() -> Any:
        started = time.perf_counter()
        result = function()
        seconds.append(time.perf_counter() - started)
        return result

    return measured


def time_steps(trainer: Trainer, warmup: int, steps: int, device: torch.device) -> dict[str, float]:
    """Median seconds per step, and the share of all steps' time that was spent on batches; warm-up does not count."""
    for _ in range(warmup):
        trainer.step()
    trainer.waits.clear()
    seconds: list[float] = []
    for _ in range(steps):
        synchronize(device)
        loss = timed(lambda: (trainer.step(), synchronize(device))[0], seconds)()
    if not math.isfinite(loss):
        raise ArithmeticError(f"the loss became {loss}")
    return {"seconds": statistics.median(seconds), "waiting": sum(trainer.waits) / sum(seconds)}


class Peer:
    """A clone of nanoGPT (model.py, train.py) or build-nanogpt (train_gpt2.py, fineweb.py)."""

    def __init__(self, path: str | Path):
        """FileNotFoundError where `path` is neither."""
        self.path = Path(path).resolve()
        self.is_nanogpt = (self.path / "model.py").is_file()
        self.name = "nanoGPT" if self.is_nanogpt else "build-nanogpt"
        self.model_file = self.path / ("model.py" if self.is_nanogpt else "train_gpt2.py")
        if not self.model_file.is_file():
            raise FileNotFoundError(f"{path} is no clone of nanoGPT or build-nanogpt: it has no {self.model_file.name}")

    def set_matmul_precision(self) -> None:
        """What the peer's script sets at its top: build-nanogpt allows reduced-precision fp32 products."""
        torch.set_float32_matmul_precision("highest" if self.is_nanogpt else "high")
        if self.is_nanogpt and torch.cuda.is_available():
            torch.backends.cuda.matmul.allow_tf32 = True

    def make_model(self, size: Size) -> nn.Module:
        """The peer's GPT of this size, with biases and without dropout, which are its defaults."""
        module = definitions(self.model_file, master_process=False)
        return module.GPT(module.GPTConfig(**size.config))

    def make_optimizer(self, model: nn.Module, device: torch.device) -> torch.optim.Optimizer:
        """What the peer's configure_optimizers makes; where it takes no betas, it has (0.9, 0.95) inside."""
        known = inspect.signature(model.configure_optimizers).parameters  # type: ignore[arg-type]
        wanted = {"weight_decay": WEIGHT_DECAY, "learning_rate": LR, "betas": BETAS, "device_type": device.type}
        return model.configure_optimizers(**{k: v for k, v in wanted.items() if k in known})  # type: ignore[operator]

    def make_loader(self, size: Size, device: torch.device) -> Callable[[], tuple[Tensor, Tensor]]:
        """The peer's own way to a batch (B, T), reading what `write_tokens` put into the current folder."""
        if not self.is_nanogpt:
            module = definitions(self.model_file, master_process=False)
            return module.DataLoaderLite(size.batch, size.block_size, 0, 1, "train").next_batch
        about = {"data_dir": os.getcwd(), "device": str(device), "device_type": device.type}
        about |= {"block_size": size.block_size, "batch_size": size.batch}
        module = definitions(self.path / "train.py", **about)
        return lambda: module.get_batch("train")


def definitions(path: Path, **names: Any) -> ModuleType:
    """A module of the classes and functions at the top level of a script, whose other statements are not run.

    Imports of anything but the standard library, numpy and torch are left out. `names` stand for the globals that
    the script would have set by then.
    """
    known = {"torch", "numpy", *sys.stdlib_module_names}

    def wanted(node: ast.stmt) -> bool:
        if isinstance(node, ast.ImportFrom):
            return (node.module or "").split(".")[0] in known
        if isinstance(node, ast.Import):
            return all(alias.name.split(".")[0] in known for alias in node.names)
        return isinstance(node, ast.ClassDef | ast.FunctionDef)

    tree = ast.parse(path.read_text())
    tree.body = [node for node in tree.body if wanted(node)]
    module = ModuleType(f"peer_{path.stem}")
    sys.modules[module.__name__] = module  # dataclasses look their module up
    vars(module).update(names)
    exec(compile(tree, str(path), "exec"), vars(module))
    return module
