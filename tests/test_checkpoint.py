"""A checkpoint holds everything, appears whole or not at all, and is read by any number of processes."""

import subprocess
import textwrap
from pathlib import Path

import pytest
from conftest import command, run_python

SCRIPT = """
import sys
from pathlib import Path
import torch
from gpt2.checkpoint import Checkpoints, Training, newest
from gpt2.distributed import start, stop, wrap
from gpt2.model import GPT, GPTConfig
from gpt2.optim import make_optimizer
from gpt2.outliers import Outliers
from gpt2.run import Optim

class Loader:
    position = 0
    def state_dict(self): return {"position": self.position}
    def load_state_dict(self, state): self.position = state["position"]

def training(processes, zero=0, kind="adamw", weights="fp32"):
    torch.manual_seed(1)
    raw = GPT(GPTConfig(block_size=8, vocab_size=64, n_layer=2, n_head=2, n_embd=16))
    raw.to(torch.float32 if weights == "fp32" else torch.bfloat16)
    model = wrap(raw, processes, zero=zero)
    # the keys' biases have gradients of noise alone, which a smaller eps would make as large as the others'
    optimizer = make_optimizer(raw, Optim(kind=kind, lr=1e-3, eps=1e-5), weights, processes.rank, processes.world_size)
    state = Training(raw, optimizer, torch.amp.GradScaler("cpu", enabled=False), Loader(), Outliers(0, 0))
    return model, state

def step(model, state):
    x = torch.arange(16).view(2, 8)
    model(x, x)[1].backward()
    state.optimizer.step()
    state.optimizer.zero_grad()
    state.updates += 1
    state.loader.position += 2

folder = Path(sys.argv[1])
processes = start("cpu")
"""


def run(tmp_path: Path, body: str, *words: str, processes: int = 1):
    # gloo's threads may abort a process while Python shuts down (torch 2.13, under load); that is not what is tested
    inside = (
        "def main():\n"
        + textwrap.indent(body, "    ")
        + "\nmain()\nstop()\nsys.stdout.flush()\n__import__('os')._exit(0)\n"
    )
    (tmp_path / "script.py").write_text(SCRIPT + inside)
    return run_python(tmp_path / "script.py", tmp_path / "run", *words, processes=processes)


def test_every_process_goes_on_with_its_own_random_numbers(tmp_path):
    save = """
model, state = training(processes)
step(model, state)
torch.manual_seed(100 + processes.rank)
torch.rand(7)
checkpoints = Checkpoints(folder, processes, 1, 0)
assert checkpoints.save(1, state, {}) is None and checkpoints.close() is None
sys.stdout.write(f"next {processes.rank} {torch.rand(1).item()}\\n")
"""
    go_on = """
model, state = training(processes)
path, record, skipped = newest(folder)
state.restore(path, record, processes)
sys.stdout.write(f"next {processes.rank} {torch.rand(1).item()}\\n")
"""
    before = run(tmp_path, save, processes=2).stdout.split("\n")
    after = run(tmp_path, go_on, processes=2).stdout.split("\n")
    assert sorted(before) == sorted(after) and len(set(before)) == 3


def test_what_is_saved_is_the_moment_of_saving_though_training_goes_on(tmp_path):
    """Steps are made while the thread writes; the files hold none of them."""
    body = """
model, state = training(processes)
step(model, state)
then = {name: tensor.clone() for name, tensor in state.tensors().items()}
checkpoints = Checkpoints(folder, processes, 1, 0)
write = checkpoints._write
checkpoints._write = lambda *job: (__import__("time").sleep(0.5), write(*job))
checkpoints.save(1, state, {"note": "x"})
step(model, state)
later = {name: tensor.clone() for name, tensor in state.tensors().items()}
for _ in range(5):
    step(model, state)
assert checkpoints.finish(block=False) is None and not list(folder.glob("step_000001"))
assert checkpoints.close() is None
model, fresh = training(processes)
path, record, skipped = newest(folder)
fresh.restore(path, record, processes)
assert (fresh.updates, fresh.loader.position, record["note"]) == (1, 2, "x")
for name, tensor in fresh.tensors().items():
    torch.testing.assert_close(tensor, then[name], rtol=0, atol=0)
    assert tensor.abs().sum() > 0 or "bias" in name, name
step(model, fresh)  # the step after a resume is the step that would have been
for name, tensor in fresh.tensors().items():
    torch.testing.assert_close(tensor, later[name], rtol=0, atol=0)
"""
    run(tmp_path, body)


@pytest.mark.parametrize(("saved", "zero", "read", "then"), [(2, 0, 1, 0), (2, 0, 4, 3), (3, 2, 2, 0)])
def test_tensors_are_the_same_in_any_number_of_processes(tmp_path, saved, zero, read, then):
    """Muon's momentum too, which lies with the owners of the matrices (DDP) or is divided (ZeRO)."""
    save = f"""
model, state = training(processes, {zero}, "muon")
step(model, state); step(model, state)
checkpoints = Checkpoints(folder, processes, 1, 0)
checkpoints.save(2, state, {{}}); checkpoints.close()
"""
    compare = f"""
model, state = training(processes, {then}, "muon")
path, record, skipped = newest(folder)
state.restore(path, record, processes)
_, alone = training(type(processes)(0, 0, 1, processes.device), 0, "muon")
one = wrap(alone.model, type(processes)(0, 0, 1, processes.device))
step(one, alone); step(one, alone)
missing = len(alone.tensors()) - len(state.tensors())
assert missing == (0 if {then} else (processes.world_size - 1) * 8 // processes.world_size)  # a matrix has one owner
for name, tensor in alone.tensors().items():
    if name not in state.tensors():
        continue
    ours = state.tensors()[name]
    ours = ours.full_tensor() if hasattr(ours, "full_tensor") else ours
    torch.testing.assert_close(ours, tensor, rtol=1e-5, atol=1e-7)
assert state.updates == 2 and state.optimizer.state[state.model.transformer.wte.weight]["step"].item() == 2
"""
    run(tmp_path, save, processes=saved)
    run(tmp_path, compare, processes=read)


def test_a_resumed_run_is_the_same_to_the_last_digit(tmp_path):
    """Muon's divided momentum, weights in bf16, and their fp32 masters; whole in every process (DDP), and divided."""
    body = """
number = 0
for kind, precision in (("muon", "fp32"), ("muon", "bf16-master"), ("adamw", "bf16"), ("adamw", "bf16-master")):
    for zero in (0, 1):
        number += 1
        model, state = training(processes, zero, kind, precision)
        step(model, state); step(model, state)
        checkpoints = Checkpoints(folder, processes, 1, 0)
        assert checkpoints.save(number, state, {}) is None and checkpoints.close() is None
        step(model, state)
        model, resumed = training(processes, zero, kind, precision)
        path, record, skipped = newest(folder)
        resumed.restore(path, record, processes)
        step(model, resumed)
        expected, names = state.tensors(), resumed.tensors().keys()
        assert expected.keys() == names
        kept = "momentum" if kind == "muon" else "exp_avg"
        assert processes.sum(sum(f"optimizer.{kept}." in name for name in names))[0] >= 8
        assert ("optimizer.master.transformer.h.0.mlp.c_fc.weight" in names) == (precision == "bf16-master")
        for name, tensor in resumed.tensors().items():
            if isinstance(tensor, torch.distributed.tensor.DTensor):
                tensor, expected[name] = tensor.to_local(), expected[name].to_local()
            assert torch.equal(tensor, expected[name]), (kind, precision, zero, name)
"""
    run(tmp_path, body, processes=2)


def test_a_process_that_is_killed_while_it_saves_leaves_no_checkpoint_that_could_be_taken_for_one(tmp_path):
    body = """
import os, signal
model, state = training(processes)
step(model, state)
checkpoints = Checkpoints(folder, processes, 1, 0)
checkpoints.save(1, state, {}); checkpoints.finish()
checkpoints._seal = lambda *job: os.kill(os.getpid(), signal.SIGKILL)
checkpoints.save(2, state, {})
checkpoints.finish()
"""
    (tmp_path / "script.py").write_text(SCRIPT + body)
    done = subprocess.run(**command(tmp_path / "script.py", tmp_path / "run"), capture_output=True)
    assert done.returncode == -9
    read = """
path, record, skipped = newest(folder)
assert (path.name, record["step"], skipped) == ("step_000001", 1, [])
assert (folder / "step_000002.tmp").exists()
"""
    run(tmp_path, read)


def test_divided_state_is_divided(tmp_path):
    """Each of two processes holds half of the optimiser's state and of the weights between steps."""
    body = """
for zero in (1, 2, 3):
    model, state = training(processes, zero)
    step(model, state)
    held = sum(t.to_local().numel() for t in state.tensors().values())
    whole = sum(t.numel() for t in state.tensors().values())
    assert 0.45 < held / whole < 0.55, (zero, held, whole)
"""
    run(tmp_path, body, processes=2)
