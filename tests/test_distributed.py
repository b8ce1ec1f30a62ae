"""Processes: sums and means, gradients that are synced once a step, and choices that the hardware decides."""

import sys
from pathlib import Path

import pytest
import torch
from conftest import run_python
from torch import nn

from gpt2.model import GPT, GPTConfig
from gpt2.system.devices import (
    autocast,
    can_compile,
    choose_compile,
    choose_device,
    choose_precision,
    set_matmul_precision,
)
from gpt2.system.errors import UserError, run_command
from gpt2.system.processes import Processes, process_group
from gpt2.training.distributed import wrap
from gpt2.training.execution import choose_micro_batch

ONE = Processes(0, 0, 1, torch.device("cpu"))

SCRIPT = """
import contextlib
import torch
from torch.nn.parallel import DistributedDataParallel
from gpt2.training.distributed import accumulating, wrap
from gpt2.system.processes import process_group

group = contextlib.ExitStack()
processes = group.enter_context(process_group("cpu"))
rank, world = processes.rank, processes.world_size
assert processes.sum(rank + 1, torch.tensor(2.0)) == [3.0, 4.0]
assert processes.mean(rank) == [0.5]
assert processes.min(5 - rank) == [4.0]
assert processes.is_first == (rank == 0)

torch.manual_seed(rank)  # different weights: wrapping makes them the first process's
layer = torch.nn.Linear(3, 1)
model = wrap(layer, processes)
syncs = []
model.register_comm_hook(None, lambda _, bucket: (
    syncs.append(1), torch.distributed.all_reduce(bucket.buffer().div_(world), async_op=True).get_future()
)[1].then(lambda f: f.value()[0]))
data = torch.arange(24.0).view(world, 4, 3) / 24
for i, x in enumerate(data[rank]):
    with accumulating(model, last=i == 3):
        (model(x).sum() / 4).backward()
torch.manual_seed(0)
alone = torch.nn.Linear(3, 1)
alone(data.view(-1, 3)).mean().backward()
torch.testing.assert_close(layer.weight.grad, alone.weight.grad)
torch.testing.assert_close(layer.weight, alone.weight)
assert len(syncs) == 1, syncs
group.close()
print("good")
"""


def test_two_processes_reduce_and_sync_gradients_once_a_step(tmp_path: Path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    assert run_python(script, processes=2).stdout.count("good") == 2


def test_one_plain_process_needs_no_group():
    assert ONE.sum(1, torch.tensor(2.5)) == [1.0, 2.5]
    assert ONE.mean(3) == [3.0]
    layer = nn.Linear(2, 2)
    assert wrap(layer, ONE) is layer


def test_precision_follows_the_hardware(monkeypatch):
    cpu = torch.device("cpu")
    for amx, avx512, expected in ((True, True, "bf16"), (False, True, "bf16"), (False, False, "fp32")):
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda there=amx: there)
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda there=avx512: there)
        assert choose_precision(cpu) == expected
    for ampere, expected in ((True, "bf16"), (False, "fp16")):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, a=ampere: a)
        assert choose_precision(torch.device("cuda")) == expected
    assert choose_precision(torch.device("mps")) == "fp32"
    assert choose_precision(cpu, "fp16") == "fp16"
    with autocast(cpu, "bf16"):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
    with autocast(cpu, "fp32"):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


def test_compiling_needs_its_tools_and_a_run_worth_it(monkeypatch, tmp_path):
    cpu = torch.device("cpu")
    monkeypatch.setattr("gpt2.system.devices.can_compile", lambda: True)
    assert choose_compile(cpu, "auto", 1e15) and not choose_compile(cpu, "auto", 1e10)
    monkeypatch.setattr("gpt2.system.devices.can_compile", lambda: False)
    assert not choose_compile(cpu, "auto", 1e15)
    assert choose_compile(cpu, "on", 0) and not choose_compile(cpu, "off", 1e20)


def test_a_gpu_that_torch_cannot_use_is_not_silently_replaced_by_the_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("pathlib.Path.exists", lambda path: str(path) == "/dev/nvidia0")
    monkeypatch.setattr(torch.version, "cuda", None)
    assert choose_device("auto").type != "cuda"  # a build for CPUs
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    with pytest.raises(UserError, match=r"older than CUDA 13\.0; update it, or give --system\.device cpu"):
        choose_device("auto")
    assert choose_device("cpu").type == "cpu"


@pytest.mark.parametrize("compiled", [False, True])
def test_zero_compiles_the_loss_too(monkeypatch, compiled):
    for name in ("init_device_mesh", "fully_shard"):
        monkeypatch.setattr(f"gpt2.training.distributed.{name}", lambda *inputs, **options: None)
    model = GPT(GPTConfig(block_size=8, vocab_size=64, n_layer=1, n_head=1, n_embd=8))
    wrap(model, Processes(0, 0, 2, torch.device("cpu")), compiled, zero=1)
    assert hasattr(model.loss, "_torchdynamo_orig_callable") == compiled


@pytest.mark.parametrize(
    ("gpu", "precision", "kept"),
    [
        (True, "bf16", "highest"),
        (True, "tf32", "high"),
        (True, "fp32", "highest"),
        (False, "bf16", "high"),
        (False, "fp32", "highest"),
    ],
)
def test_fp32_products_are_rounded_in_tf32_runs_only_on_a_gpu(monkeypatch, gpu, precision, kept):
    before = torch.get_float32_matmul_precision()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    try:
        set_matmul_precision(precision)
        assert torch.get_float32_matmul_precision() == kept
    finally:
        torch.set_float32_matmul_precision(before)


def test_the_tools_are_a_compiler_and_pythons_headers(monkeypatch, tmp_path):
    (tmp_path / "Python.h").touch()
    (tmp_path / "g++").touch(mode=0o755)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr("gpt2.system.devices.sysconfig.get_path", lambda name: str(tmp_path))
    assert can_compile()
    (tmp_path / "Python.h").unlink()
    assert not can_compile()
    (tmp_path / "Python.h").touch()
    (tmp_path / "g++").unlink()
    assert not can_compile()


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_freed_memory_is_kept_for_the_next_step(tmp_path):
    """64 MB taken for the second time cost page faults only where the first were given back: 32, if pages have 2 MB."""
    script = tmp_path / "script.py"
    script.write_text(
        "import resource, sys\n"
        "import numpy as np\n"
        "from gpt2.system.machine import keep_freed_memory\n"
        "if sys.argv[1] == 'keep':\n"
        "    keep_freed_memory()\n"
        "np.ones(2**23)\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "np.ones(2**23)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)\n"
    )
    kept, returned = (int(run_python(script, word).stdout) for word in ("keep", "return"))
    assert kept * 4 < returned, (kept, returned)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_more_processes_than_gpus_is_said_by_one_of_them(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    for rank in "01":
        monkeypatch.setenv("LOCAL_RANK", rank)
        monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
        refused = pytest.raises(UserError, match=r"2 processes are more than the 1 GPU.*--nproc_per_node=1")
        with refused, process_group():
            pass


@pytest.mark.parametrize(("asked", "processes", "threads"), [(None, 1, 6), ("3", 1, 3), ("1", 2, 3)])
def test_a_process_takes_its_share_of_the_cores_or_what_the_user_asked_for(monkeypatch, asked, processes, threads):
    """Under torchrun, which sets OMP_NUM_THREADS to 1 itself, the cores are divided over the processes."""
    monkeypatch.setattr("gpt2.system.processes.available_cores", lambda: 6)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if asked:
        monkeypatch.setenv("OMP_NUM_THREADS", asked)
    before = torch.get_num_threads()
    torch.set_num_threads(3)  # what torch does at its start, if asked
    try:
        with process_group("cpu"):
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(("everywhere", "rank", "said"), [(True, "0", 1), (True, "1", 0), (False, "1", 1)])
def test_what_every_process_meets_is_said_once(monkeypatch, capsys, everywhere, rank, said):
    def main() -> None:
        raise UserError("a mistake", everywhere)

    monkeypatch.setenv("LOCAL_RANK", rank)
    with pytest.raises(SystemExit) as stopped:
        run_command(main)
    assert stopped.value.code == 2 and capsys.readouterr().err.count("error: a mistake") == said


def test_the_largest_micro_batch_that_fits_is_chosen():
    assert choose_micro_batch(lambda size: None, 24, 5, ONE) == 4  # 5 would fit, 4 divides
    assert choose_micro_batch(lambda size: None, 24, 1000, ONE) == 8
    with pytest.raises(UserError, match="not even one sequence fits"):
        choose_micro_batch(lambda size: None, 24, 0, ONE)


@pytest.mark.parametrize("planned", [0, 1, 4, 8, 16, 1000])
def test_the_search_on_a_gpu_starts_from_the_plan(monkeypatch, planned):
    tried = []

    def fits(attempt, size, device):
        tried.append(size)
        return size <= 8

    monkeypatch.setattr("gpt2.training.execution._fits", fits)
    gpu = Processes(0, 0, 1, torch.device("cuda", 0))
    assert choose_micro_batch(lambda size: None, 64, planned, gpu) == 8
    assert planned not in (4, 8, 16) or len(tried) <= 3
    monkeypatch.setattr("gpt2.training.execution._fits", lambda *_: False)
    with pytest.raises(UserError, match="not even one sequence fits"):
        choose_micro_batch(lambda size: None, 64, planned, gpu)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_device_that_is_not_there_is_refused():
    with pytest.raises(UserError, match=r"--system\.device cuda is not available on this machine; available: "):
        choose_device("cuda")


@pytest.mark.gpu
def test_the_gpu_finds_its_largest_micro_batch():
    device = torch.device("cuda", 0)
    total = torch.cuda.get_device_properties(device).total_memory
    processes = Processes(0, 0, 1, device)

    def attempt(size: int) -> None:
        torch.empty(size * total // 10, dtype=torch.uint8, device=device)

    assert choose_micro_batch(attempt, 64, 0, processes) == 8
