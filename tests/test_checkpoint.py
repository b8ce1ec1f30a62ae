"""A checkpoint holds everything, appears whole or not at all, and is read by any number of processes."""

import textwrap
from pathlib import Path

import pytest
from conftest import run_python

SCRIPT = """
import contextlib, sys
from pathlib import Path
import torch
from gpt2.training.saving import Checkpoints, TrainingState
from gpt2.formats.checkpoint import newest_intact
from gpt2.system.processes import process_group
from gpt2.training.distributed import cast_in_use, wrap
from gpt2.model import GPT, GPTConfig
from gpt2.optim.optimizer import make_optimizer
from gpt2.optim.outliers import OutlierDetector
from gpt2.config.run import Optim

class Loader:
    position = 0
    def state_dict(self): return {"position": self.position}
    def load_state_dict(self, state): self.position = state["position"]

def training(processes, zero=0, kind="adamw", weights="fp32"):
    torch.manual_seed(1)
    raw = GPT(GPTConfig(block_size=8, vocab_size=64, n_layer=2, n_head=2, n_embd=16))
    raw.to(torch.float32 if weights == "fp32" else torch.bfloat16)
    if weights == "bf16-cast":
        cast_in_use(raw)
    model = wrap(raw, processes, zero=zero)
    # the keys' biases have gradients of noise alone, which a smaller eps would make as large as the others'
    ranks = {"rank": processes.rank, "world_size": processes.world_size}
    optimizer = make_optimizer(raw, Optim(kind=kind, lr=1e-3, eps=1e-5), weights, **ranks)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    return TrainingState(raw, model, optimizer, scaler, Loader(), OutlierDetector(0, 0))

def save(checkpoints, state, number):
    state.step = number
    return checkpoints.save(state, {"settings": {"note": "x"}, "shards": []})

def restored(state):
    found = newest_intact(folder)
    state.restore(found, processes)
    return found.record

def step(state):
    x = torch.arange(16).view(2, 8)
    state.trained(x, x).backward()
    state.optimizer.step()
    state.optimizer.zero_grad()
    state.updates += 1
    state.loader.position += 2

folder = Path(sys.argv[1])
group = contextlib.ExitStack()
processes = group.enter_context(process_group("cpu"))
"""


def run(tmp_path: Path, body: str, *words: str, processes: int = 1):
    inside = "def main():\n" + textwrap.indent(body, "    ") + "\nmain()\ngroup.close()\n"
    (tmp_path / "script.py").write_text(SCRIPT + inside)
    return run_python(tmp_path / "script.py", tmp_path / "run", *words, processes=processes)


def test_every_process_goes_on_with_its_own_random_numbers(tmp_path):
    save = """
state = training(processes)
step(state)
torch.manual_seed(100 + processes.rank)
torch.rand(7)
checkpoints = Checkpoints(folder, processes, 1, 0)
assert save(checkpoints, state, 1) is None and checkpoints.close() is None
sys.stdout.write(f"next {processes.rank} {torch.rand(1).item()}\\n")
"""
    go_on = """
restored(training(processes))
sys.stdout.write(f"next {processes.rank} {torch.rand(1).item()}\\n")
"""
    before = run(tmp_path, save, processes=2).stdout.split("\n")
    after = run(tmp_path, go_on, processes=2).stdout.split("\n")
    assert sorted(before) == sorted(after) and len(set(before)) == 3


def test_what_is_saved_is_the_moment_of_saving_though_training_goes_on(tmp_path):
    """Steps are made while the thread writes; the files hold none of them."""
    body = """
state = training(processes)
step(state)
then = {name: tensor.clone() for name, tensor in state.tensors().items()}
checkpoints = Checkpoints(folder, processes, 1, 0)
write = checkpoints._write
checkpoints._write = lambda *job: (__import__("time").sleep(0.5), write(*job))
save(checkpoints, state, 1)
step(state)
later = {name: tensor.clone() for name, tensor in state.tensors().items()}
for _ in range(5):
    step(state)
assert checkpoints.finish(block=False) is None and not list(folder.glob("step_000001"))
assert checkpoints.close() is None
fresh = training(processes)
record = restored(fresh)
assert (fresh.step, fresh.updates, fresh.loader.position, record.settings) == (1, 1, 2, {"note": "x"})
for name, tensor in fresh.tensors().items():
    torch.testing.assert_close(tensor, then[name], rtol=0, atol=0)
    assert tensor.abs().sum() > 0 or "bias" in name, name
step(fresh)  # the step after a resume is the step that would have been
for name, tensor in fresh.tensors().items():
    torch.testing.assert_close(tensor, later[name], rtol=0, atol=0)
"""
    run(tmp_path, body)


@pytest.mark.parametrize(("saved", "zero", "read", "then"), [(2, 0, 1, 0), (2, 0, 4, 3), (3, 2, 2, 0)])
def test_tensors_are_the_same_in_any_number_of_processes(tmp_path, saved, zero, read, then):
    """Muon's momentum too, which lies with the owners of the matrices (DDP) or is divided (ZeRO)."""
    write = f"""
state = training(processes, {zero}, "muon")
step(state); step(state)
checkpoints = Checkpoints(folder, processes, 1, 0)
save(checkpoints, state, 2); checkpoints.close()
"""
    compare = f"""
state = training(processes, {then}, "muon")
restored(state)
alone = training(type(processes)(0, 0, 1, processes.device), 0, "muon")
step(alone); step(alone)
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
    run(tmp_path, write, processes=saved)
    run(tmp_path, compare, processes=read)


def test_a_resumed_run_is_the_same_to_the_last_digit(tmp_path):
    """Muon's divided momentum, weights in bf16, and their fp32 masters; whole in every process (DDP), and divided."""
    body = """
number = 0
kinds = [("muon", "fp32"), ("muon", "bf16-master"), ("adamw", "bf16"), ("adamw", "bf16-master"), ("muon", "bf16-cast")]
for kind, precision in kinds:
    for zero in (0, 1) if precision != "bf16-cast" else (0,):
        number += 1
        state = training(processes, zero, kind, precision)
        step(state); step(state)
        checkpoints = Checkpoints(folder, processes, 1, 0)
        assert save(checkpoints, state, number) is None and checkpoints.close() is None
        step(state)
        resumed = training(processes, zero, kind, precision)
        restored(resumed)
        step(resumed)
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
state = training(processes)
step(state)
checkpoints = Checkpoints(folder, processes, 1, 0)
save(checkpoints, state, 1); checkpoints.finish()
import gpt2.training.saving
gpt2.training.saving.complete_checkpoint = lambda *job: os.kill(os.getpid(), signal.SIGKILL)
save(checkpoints, state, 2)
checkpoints.finish()
"""
    (tmp_path / "script.py").write_text(SCRIPT + body)
    assert run_python(tmp_path / "script.py", tmp_path / "run", check=False).returncode == -9
    read = """
found = newest_intact(folder)
assert (found.path.name, found.record.step, found.damaged) == ("step_000001", 1, [])
assert (folder / "step_000002.tmp").exists()
"""
    run(tmp_path, read)


def test_divided_state_is_divided(tmp_path):
    """Each of two processes holds half of the optimiser's state and of the weights between steps."""
    body = """
for zero in (1, 2, 3):
    state = training(processes, zero)
    step(state)
    held = sum(t.to_local().numel() for t in state.tensors().values())
    whole = sum(t.numel() for t in state.tensors().values())
    assert 0.45 < held / whole < 0.55, (zero, held, whole)
"""
    run(tmp_path, body, processes=2)
