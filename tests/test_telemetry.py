"""What a run tells beside its log is right: loss, speed and MFU over all processes, norms, peaks, trackers."""

import os
import re
import subprocess

import numpy as np
import pytest
import torch
from conftest import ROOT, make_shards, run_python, train

from gpt2.logs import trackers
from gpt2.logs.reader import read_log
from gpt2.logs.trackers import TensorBoard, check_trackers, open_trackers
from gpt2.logs.writer import RunLog, StepMetrics
from gpt2.model import GPT, GPTConfig
from gpt2.planning import gpus
from gpt2.planning.flops import flops_per_token
from gpt2.planning.gpus import HARDWARE, find_hardware, peak_flops
from gpt2.system.errors import UserError
from gpt2.system.processes import Processes, process_group
from gpt2.training import telemetry
from gpt2.training.distributed import wrap
from gpt2.training.telemetry import LayerNorms, describe_machine, gpu_state

SMALL = GPTConfig(block_size=16, vocab_size=257, n_layer=2, n_head=2, n_embd=32)
ONE = Processes(0, 0, 1, torch.device("cpu"))


def curves(folder):
    """What TensorBoard shows of a run: {name: (steps, values)}."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    shown = EventAccumulator(str(folder))
    shown.Reload()
    return {
        name: tuple(np.array([(p.step, p.value) for p in shown.Scalars(name)]).T) for name in shown.Tags()["scalars"]
    }


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs of three steps: one process with the batch of 16 sequences in one piece; two with 4 pieces of 2 each."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "data").mkdir()
    shards = make_shards(folder / "data")
    flags = ("--schedule.steps", "3", "--eval.every", "0", "--log.tensorboard")
    train(shards, folder / "one", *flags, "--system.micro-batch", "16")
    train(shards, folder / "two", *flags, "--system.micro-batch", "2", processes=2)
    return folder


def test_the_logged_loss_is_of_the_whole_batch(runs):
    """Of every micro-step and process: the same number whatever the batch is cut into."""
    one, two = (read_log(runs / name / "log.txt") for name in ("one", "two"))
    np.testing.assert_allclose(two.loss, one.loss, atol=5e-6, rtol=0)


def test_speed_and_mfu_are_over_all_processes_and_against_the_named_peak(runs):
    pytest.importorskip("tensorboard")
    log, shown = read_log(runs / "two" / "log.txt"), curves(runs / "two" / "tensorboard")
    np.testing.assert_allclose(log.tok_per_sec * log.dt / 1e3, 256, rtol=2e-3)
    np.testing.assert_allclose(shown["train/tok_per_sec"][1], log.tok_per_sec, rtol=1e-4)
    named = re.search(r"fp32, ([\d.e+-]+) TFLOP/s \(measured", log.header["MFU"])
    peak_of_two = 2 * float(named[1]) * 1e12
    np.testing.assert_allclose(shown["train/mfu"][1], flops_per_token(SMALL) * log.tok_per_sec / peak_of_two, rtol=1e-2)
    np.testing.assert_allclose(shown["train/tokens"][1], [256, 512, 768])
    np.testing.assert_allclose(shown["train/loss"][1], log.loss, atol=1e-5)


def test_tensorboard_shows_a_resumed_run_as_one_curve(tmp_path):
    pytest.importorskip("tensorboard")
    for first, killed_at in ((0, 14), (10, 20)):
        log = RunLog(tmp_path / "log.txt", True, 20, first, [TensorBoard(tmp_path, first)])
        for step in range(first, killed_at):
            if step == 10 and not first:
                log.validation(step, 3.0, 1.0)  # before the checkpoint of step 10: not measured again
            log.step(step, StepMetrics(5 - step / 10, 1e-3, 1.0, 0.5, 100, epoch=0.0))
        if first:  # the other one is killed
            log.close()
    steps, loss = curves(tmp_path)["train/loss"]
    assert (np.diff(steps) >= 0).all() and set(steps) == set(range(20)) and len(steps) <= 21
    np.testing.assert_allclose(loss, 5 - steps / 10, atol=1e-6)
    assert curves(tmp_path)["val/loss"][0].tolist() == [10]


def test_a_missing_tracker_is_refused_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
    check_trackers(False, False)
    for name in ("tensorboard", "wandb"):
        with pytest.raises(UserError, match=f"--log.{name} needs .* pip install {name}$"):
            check_trackers(**{"tensorboard": False, "wandb": False, name: True})


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """Weights & Biases without network or account, writing nowhere but into the test's folder."""
    wandb = pytest.importorskip("wandb")
    for name in ("CONFIG", "CACHE", "DATA"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    return wandb


def test_a_resumed_run_is_the_same_run_at_weights_and_biases(tmp_path, offline):
    folder = tmp_path / "run"
    folder.mkdir()
    ids = []
    for first in (0, 10, 0):
        (tracker,), notes = open_trackers(folder, False, True, {"optim": {"lr": 1e-3}}, first)
        ids.append(tracker.run.id)
        tracker.log(first, {"train/loss": 3.0})
        tracker.close()
        assert not notes
    assert ids[0] == ids[1] != ids[2]
    assert len(list(folder.glob(f"wandb/offline-run-*{ids[0]}/run-{ids[0]}.wandb"))) >= 1


def test_weights_and_biases_out_of_reach_is_refused_at_the_start_and_noted_at_night(tmp_path, offline, monkeypatch):
    def init(**settings):
        raise offline.Error("network\nunreachable")

    monkeypatch.setattr(offline, "init", init)
    with pytest.raises(UserError, match=r"network unreachable.*WANDB_MODE=offline"):
        open_trackers(tmp_path, False, True, {})
    trackers, notes = open_trackers(tmp_path, False, True, {}, first=250)
    assert trackers == [] and "network unreachable" in notes["wandb"]


def test_norms_are_those_of_whole_layers():
    torch.manual_seed(0)
    model = GPT(SMALL)
    x = torch.randint(257, (2, 16))
    model(x, x).backward()
    measured = LayerNorms(model)
    with torch.no_grad():
        for p in model.parameters():
            p.sub_(p.grad, alpha=0.1)
    norms = measured.after_step()
    assert list(norms) == ["wte", "wpe", "h.0", "h.1", "ln_f"]
    for name, (gradient, weight, step) in norms.items():
        assert step == pytest.approx(0.1 * gradient, rel=1e-3)
        mine = [p for key, p in model.named_parameters() if key.startswith(f"transformer.{name}.")]
        with torch.no_grad():
            for p in mine:
                p.add_(p.grad, alpha=0.1)
        assert gradient == pytest.approx(torch.cat([p.grad.flatten() for p in mine]).norm().item(), rel=1e-5)
        assert weight == pytest.approx(torch.cat([p.detach().flatten() for p in mine]).norm().item(), rel=1e-5)
    whole = torch.nn.utils.get_total_norm([p.grad for p in model.parameters()]).item()
    assert np.linalg.norm([gradient for gradient, *_ in norms.values()]) == pytest.approx(whole, rel=1e-5)
    model.zero_grad()
    assert {gradient for gradient, *_ in LayerNorms(model).after_step().values()} == {0.0}


def compare_norms_of_divided_layers() -> None:
    """What each of the processes does that `test_norms_are_of_whole_layers_…` starts."""
    norms = []
    with process_group("cpu") as processes:
        for zero in (0, 2, 3):
            torch.manual_seed(0)
            model = GPT(SMALL)
            trained = wrap(model, processes, zero=zero)
            x = torch.randint(257, (2, 16), generator=torch.Generator().manual_seed(processes.rank))
            trained(x, x).backward()
            measured = LayerNorms(model)
            with torch.no_grad():
                for p in model.parameters():
                    p.mul_(0.9)
            norms.append(measured.after_step())
    for divided in norms[1:]:
        assert list(divided) == list(norms[0])
        for name, pair in divided.items():
            assert min(pair) > 0
            torch.testing.assert_close(torch.tensor(pair), torch.tensor(norms[0][name]), rtol=1e-5, atol=1e-7)
    print(f"equal {len(norms)}")


def test_norms_are_of_whole_layers_where_each_process_has_a_part():
    assert run_python(__file__, processes=2).stdout.count("equal 3") == 2


@pytest.mark.parametrize(
    ("name", "precision", "peak"),
    [
        ("NVIDIA A100-SXM4-40GB", "bf16", 312e12),
        ("NVIDIA A100 80GB PCIe", "tf32", 156e12),
        ("NVIDIA A100-SXM4-80GB", "fp32", 19.5e12),
        ("NVIDIA H100 80GB HBM3", "bf16", 989e12),
        ("NVIDIA H100 PCIe", "bf16", 756e12),
        ("NVIDIA H200", "bf16", 989e12),
        ("NVIDIA B200", "bf16", 2250e12),
        ("Tesla V100-SXM2-16GB", "fp16", 125e12),
        ("Tesla T4", "fp16", 65e12),
        ("NVIDIA GeForce RTX 3090", "bf16", 71e12),
        ("NVIDIA GeForce RTX 4090", "bf16", 165.2e12),
        ("NVIDIA A10", "bf16", 125e12),
        ("NVIDIA A10G", "bf16", 70e12),
        ("NVIDIA L4", "bf16", 121e12),
        ("NVIDIA L40S", "bf16", 362e12),
    ],
)
def test_a_known_gpu_has_the_peak_of_its_data_sheet(monkeypatch, name, precision, peak):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    found, source = peak_flops(torch.device("cuda", 0), precision)
    assert found == peak and name in source and precision in source


@pytest.mark.parametrize(
    "name",
    [
        *("NVIDIA GeForce RTX 4090 Laptop GPU", "NVIDIA H100 80GB HBM3 MIG 1g.10gb", "NVIDIA GeForce RTX 4090 D"),
        *("NVIDIA GeForce RTX 3080 Ti", "NVIDIA T400 4GB", "NVIDIA GeForce RTX 2080", "Quadro RTX 6000"),
    ],
)
def test_a_namesake_of_a_known_gpu_is_not_taken_for_it(name):
    assert find_hardware(name) is None


def test_the_table_of_hardware_is_plausible():
    """Memory is read faster than 100 and slower than 10,000 GB/s; shorter numbers are multiplied faster."""
    for key, gpu in HARDWARE.items():
        assert 100 < gpu.bandwidth < 10_000 and 8 <= gpu.memory_gib <= 192, key
        assert gpu.peak("fp16") >= (gpu.peak("tf32") or gpu.peak("fp32")) >= gpu.peak("fp32") > 1e12, key
        assert gpu.peak("bf16") == (gpu.tf32 and gpu.peak("fp16")), key


@pytest.mark.parametrize("rate", [1e9, 2e10, 2e11, 1e13])
def test_measuring_another_device_takes_under_a_second(monkeypatch, rate):
    spent = []

    def matmul_rate(device, dtype, size=4096, repeats=20):
        spent.append((repeats + 3) * 2 * size**3 / rate)
        return rate

    monkeypatch.setattr(gpus, "matmul_rate", matmul_rate)
    assert peak_flops(torch.device("cpu"), "bf16")[0] == rate and sum(spent) < 1


def test_another_device_is_measured():
    peak, source = peak_flops(torch.device("cpu"), "fp32")
    assert 1e8 < peak < 1e14 and re.search(r"^fp32, .*measured, (2048|1024|512|256)³ matrix product", source)


def test_a_gpu_with_an_unknown_precision_is_measured(monkeypatch):
    """bf16 on a V100, which its data sheet doesn't have."""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla V100-SXM2-16GB")
    monkeypatch.setattr(gpus, "matmul_rate", lambda device, dtype, **sizes: 1e12)
    assert peak_flops(torch.device("cuda", 0), "bf16") == (1e12, "bf16, 1 TFLOP/s (measured, 2048³ matrix product)")


def test_the_header_names_software_hardware_and_commit(monkeypatch, tmp_path):
    found = describe_machine(ONE)
    assert torch.__version__ in found["software"] and "1 process" in found["hardware"] and "driver" not in found
    commit = ["git", "-C", str(ROOT), "rev-parse", "--short=12", "HEAD"]
    try:
        expected = subprocess.run(commit, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        expected = ""
    assert (expected in found["code"]) if expected else ("code" not in found)
    assert telemetry._commit(tmp_path) == "" and telemetry._commit(ROOT / "gpt2") == ""
    monkeypatch.setitem(os.environ, "PATH", "")
    assert "code" not in describe_machine(ONE)


def test_changed_files_are_marked(tmp_path):
    def git(*words):
        identity = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
        subprocess.run(["git", "-C", str(tmp_path), *identity, *words], check=True, capture_output=True)

    try:
        git("init")
    except OSError:
        pytest.skip("no git")
    (tmp_path / "file").write_text("1")
    git("add", "file")
    git("commit", "-m", "one")
    assert re.fullmatch(r"commit [0-9a-f]{12}", telemetry._commit(tmp_path))
    (tmp_path / "file").write_text("2")
    assert re.fullmatch(r"commit [0-9a-f]{12}\+changes", telemetry._commit(tmp_path))


def test_there_is_nothing_to_say_of_a_gpu_that_is_not_there():
    assert gpu_state(torch.device("cpu")) == {}


@pytest.mark.gpu
def test_a_gpu_tells_at_least_its_memory():
    state = gpu_state(torch.device("cuda", 0))
    assert 0 < state["memory GiB"] < 1000 and set(state) <= {"utilisation %", "temperature C", "memory GiB"}


if __name__ == "__main__":
    compare_norms_of_divided_layers()
