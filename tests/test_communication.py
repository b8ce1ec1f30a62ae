"""What a process sends per optimiser step under DDP, ZeRO 1, 2 and 3, and Muon, beside `bytes_sent` of `gpt2 plan`.

Up to 512 processes are one real one: PyTorch's fake process group accepts every collective and sends nothing. DDP's
backward does not run in it, and is counted in two real processes.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from conftest import run_python
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode

from gpt2.config.run import Optim
from gpt2.formats.build import build
from gpt2.model import GPTConfig
from gpt2.modern.model import ModernConfig
from gpt2.modern.parts import Parts
from gpt2.optim.optimizer import make_optimizer
from gpt2.planning.memory import Setup, bytes_sent
from gpt2.system.processes import Processes, process_group
from gpt2.training.distributed import accumulating, clip_gradients, wrap

CPU = torch.device("cpu")
MICRO_STEPS = 3
CONFIGS = {
    "even": GPTConfig(block_size=8, vocab_size=64, n_layer=2, n_head=2, n_embd=32),  # rows divide by 8
    "odd": GPTConfig(block_size=7, vocab_size=64, n_layer=2, n_head=2, n_embd=132),  # by neither 8 nor 512
    "experts": ModernConfig(
        8, 64, 2, 2, 36, Parts(kv_heads=1, mlp="swiglu", experts=5, mlp_width=16, sinks=True, tied=False)
    ),
}
# operation → the bytes that a process of n sends in a ring, given the operation's arguments
SENT: dict[str, Callable] = {
    "c10d::broadcast_": lambda n, tensors, *_: sum(tensor.nbytes for tensor in tensors),
    "c10d::allreduce_": lambda n, tensors, *_: 2 * (n - 1) / n * sum(tensor.nbytes for tensor in tensors),
    "_c10d_functional::all_reduce": lambda n, tensor, *_: 2 * (n - 1) / n * tensor.nbytes,
    "c10d::allgather_": lambda n, outputs, inputs, *_: (n - 1) * sum(tensor.nbytes for tensor in inputs),
    "c10d::_allgather_base_": lambda n, output, own, *_: (n - 1) * own.nbytes,
    "c10d::_reduce_scatter_base_": lambda n, own, everything, *_: (n - 1) * own.nbytes,
    # all parts but the one for this process itself
    "c10d::alltoall_base_": lambda n, output, parts, group, received, sent, *_: (
        parts.nbytes - sent[dist.get_rank()] * parts.itemsize
    ),
}
LOCAL = ("_c10d_functional::wait_tensor", "_c10d_functional::_wrap_tensor_autograd")


class Sent(TorchDispatchMode):
    """The bytes that this process sends, by collective, and how often it calls each."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        if DTensor in types:
            return NotImplemented  # it calls operations on its shard, and collectives
        name = operation.name()
        if "c10d" in operation.namespace and name not in LOCAL:
            self.bytes[name] += SENT[name](dist.get_world_size(), *args)
            self.calls[name] += 1
        return operation(*args, **(kwargs or {}))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Models so small are slower on two threads than on one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def count_step(config: GPTConfig, processes: Processes, zero: int, optim: Optim) -> Sent:
    """What a process sends in the third optimiser step. DDP sends the order of its buckets in the second one.

    In a fake process group, stage 0 is without DDP.
    """
    model = build(config)
    trained = model if zero == 0 and dist.get_backend() == "fake" else wrap(model, processes, zero=zero)
    optimizer = make_optimizer(model, optim, rank=processes.rank, world_size=processes.world_size)
    x = torch.randint(config.vocab_size, (1, config.block_size))
    for _ in range(3):
        with Sent() as sent:
            for i in range(MICRO_STEPS):
                with accumulating(trained, i == MICRO_STEPS - 1, zero):
                    (trained(x, x) / MICRO_STEPS).backward()
            clip_gradients(trained, optim.clip)
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return sent


def count_fake_step(config: GPTConfig, world_size: int, zero: int, optim: Optim, rank: int = 0) -> Sent:
    """`count_step` as process `rank` of a fake process group."""
    dist.init_process_group("fake", rank=rank, world_size=world_size, store=FakeStore())
    try:
        return count_step(config, Processes(rank, 0, world_size, CPU), zero, optim)
    finally:
        dist.destroy_process_group()


def norm_bytes(config: GPTConfig, setup: Setup) -> float:
    """What clipping sends with sharded gradients: one all-reduce of the norms, 4 bytes per tensor."""
    with torch.device("meta"):
        tensors = len(list(build(config).parameters()))
    return 2 * (setup.gpus - 1) / setup.gpus * 4 * tensors if setup.zero else 0


@pytest.mark.parametrize("zero", [1, 2, 3])
@pytest.mark.parametrize("world_size", [8, 512])
@pytest.mark.parametrize("name", CONFIGS)
def test_zero_sends_what_is_planned(name, world_size, zero):
    config = CONFIGS[name]
    setup = Setup(gpus=world_size, zero=zero, micro_steps=MICRO_STEPS, precision="fp32")
    sent = count_fake_step(config, world_size, zero, Optim())
    print(f"{name}, {world_size} processes, ZeRO {zero}: planned {bytes_sent(config, setup):,.0f}, {dict(sent.bytes)}")
    assert sent.bytes.total() == pytest.approx(bytes_sent(config, setup) + norm_bytes(config, setup), rel=1e-9)
    groups = config.n_layer + 1  # the blocks, and what is outside them
    gathered = (groups, groups, (groups + config.n_layer) * MICRO_STEPS)[zero - 1]
    reduced = (groups, groups * MICRO_STEPS, groups * MICRO_STEPS)[zero - 1]
    assert sent.calls == {
        "c10d::_allgather_base_": gathered,
        "c10d::_reduce_scatter_base_": reduced,
        "_c10d_functional::all_reduce": 1,
    }


@pytest.mark.parametrize("zero", [0, 1])
@pytest.mark.parametrize("world_size", [8, 512])
@pytest.mark.parametrize(("name", "precision"), [("even", "bf16"), ("odd", "fp32"), ("experts", "fp32")])
def test_muon_sends_what_is_planned(name, precision, world_size, zero, monkeypatch):
    """The planned bytes are those of the busiest process, which is one of the first: they own the largest matrices."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    monkeypatch.setattr("gpt2.optim.muon.factor_dtype", lambda device: dtype)
    config, operation = CONFIGS[name], "c10d::alltoall_base_" if zero else "c10d::allgather_"
    setup = Setup(gpus=world_size, zero=zero, micro_steps=MICRO_STEPS, precision=precision, muon=True)
    counts = [count_fake_step(config, world_size, zero, Optim(kind="muon"), rank) for rank in range(4)]
    sent = max(count.bytes[operation] for count in counts)
    planned = bytes_sent(config, setup) - bytes_sent(config, replace(setup, muon=False))
    print(f"Muon, {name}, {world_size} processes, ZeRO {zero}, {precision}: planned {planned:,.0f}, {sent:,}")
    assert sent == planned
    assert all(count.calls[operation] == (2 if zero else 1) for count in counts)


def measure_ddp() -> None:
    """Run by two processes: for every optimiser, the bytes that the first one sends in a step, by collective."""
    with process_group("cpu") as processes:
        counts = [count_step(CONFIGS["odd"], processes, 0, Optim(kind=kind)) for kind in ("adamw", "muon")]
    if processes.is_first:
        print(json.dumps([(count.bytes, count.calls) for count in counts]))


def test_ddp_sends_what_is_planned():
    """The gradients of all micro-steps are summed up in each process, and averaged once."""
    done = run_python("tests/test_communication.py", processes=2)
    counts = json.loads(done.stdout.splitlines()[-1])
    for (sent, calls), muon in zip(counts, (False, True), strict=True):
        setup = Setup(gpus=2, micro_steps=MICRO_STEPS, precision="fp32", muon=muon)
        planned = bytes_sent(CONFIGS["odd"], setup)
        print(f"DDP, Muon {muon}: planned {planned:,.0f}, {sent}")
        assert sum(sent.values()) == pytest.approx(planned, rel=1e-9)
        assert calls.get("c10d::allgather_", 0) == muon


if __name__ == "__main__":
    measure_ddp()
