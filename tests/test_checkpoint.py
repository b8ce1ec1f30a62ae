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
from gpt2.optim import make_adamw
from gpt2.outliers import Outliers

class Loader:
    position = 0
    def state_dict(self): return {"position": self.position}
    def load_state_dict(self, state): self.position = state["position"]

def training(processes, zero=0):
    torch.manual_seed(1)
    raw = GPT(GPTConfig(block_size=8, vocab_size=64, n_layer=2, n_head=2, n_embd=16))
    model = wrap(raw, processes, zero=zero)
    optimizer = make_adamw(raw, 1e-3, (0.9, 0.95), 1e-8, 0.1)
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


@pytest.mark.parametrize(("saved", "read", "zero"), [(2, 1, 0), (2, 4, 3), (4, 1, 2)])
def test_tensors_are_the_same_in_any_number_of_processes(tmp_path, saved, read, zero):
    save = f"""
model, state = training(processes, {zero})
step(model, state); step(model, state)
checkpoints = Checkpoints(folder, processes, 1, 0)
checkpoints.save(2, state, {{}}); checkpoints.close()
"""
    compare = f"""
model, state = training(processes, {zero})
path, record, skipped = newest(folder)
state.restore(path, record, processes)
_, alone = training(type(processes)(0, 0, 1, processes.device))
one = wrap(alone.model, type(processes)(0, 0, 1, processes.device))
step(one, alone); step(one, alone)
for name, tensor in alone.tensors().items():
    ours = state.tensors()[name]
    ours = ours.full_tensor() if hasattr(ours, "full_tensor") else ours
    torch.testing.assert_close(ours, tensor, rtol=1e-5, atol=1e-7)
assert state.updates == 2 and next(iter(state.optimizer.state.values()))["step"].item() == 2
"""
    run(tmp_path, save, processes=saved)
    run(tmp_path, compare, processes=read)


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
