"""Muon's updates are orthogonal, equal to those of torch.optim.Muon, and the same on any number of processes."""

from pathlib import Path

import pytest
import torch
from conftest import run_python
from torch import nn
from torch.distributed.tensor import DTensor

from gpt2.config.run import Model, Optim
from gpt2.formats.build import build, make_config
from gpt2.model import GPT, GPTConfig
from gpt2.modern.parts import Parts
from gpt2.optim.muon import assign_owners, factor_dtype, orthogonalise
from gpt2.optim.optimizer import make_optimizer
from gpt2.system.processes import Processes, process_group
from gpt2.training.distributed import wrap

MUON = Optim(kind="muon", lr=0.01, weight_decay=0.1)
SHAPES = [(64, 64), (768, 768), (96, 600), (600, 96), (4, 80, 130), (3, 200, 48)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_singular_values_of_an_update_are_near_one(shape, dtype):
    """Where the gradient has at least 1 % of its largest singular value, and along the gradient's singular vectors."""
    torch.manual_seed(0)
    gradients = torch.randn(shape) * 1e-4
    done = orthogonalise(gradients.to(dtype).view(-1, *shape[-2:])).float()
    for gradient, update in zip(gradients.view(-1, *shape[-2:]), done, strict=True):
        u, s, v = torch.linalg.svd(gradient, full_matrices=False)
        counted = s > 0.01 * s[0]
        values = torch.linalg.svdvals(update)
        assert counted.sum() >= 0.98 * len(s)
        assert values[counted].min() > 0.5 and values.max() < 1.5
        along = (u.T @ update @ v.T).diagonal()[counted]
        assert along.min() > 0.5 and along.max() < 1.5


def test_a_gradient_of_zeros_changes_nothing():
    assert orthogonalise(torch.zeros(2, 3, 4)).abs().max() == 0


@pytest.mark.parametrize(
    ("hardware", "precision", "expected"),
    [("bf16", "high", torch.bfloat16), ("bf16", "highest", torch.float32), ("fp32", "high", torch.float32)],
)
def test_a_cpu_rounds_to_bf16_if_it_multiplies_bf16_and_the_run_is_not_in_fp32(
    monkeypatch, hardware, precision, expected
):
    monkeypatch.setattr("gpt2.optim.muon.choose_precision", lambda device: hardware)
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: precision)
    seen = []
    monkeypatch.setattr("gpt2.optim.muon.orthogonalise", lambda x: (seen.append(x.dtype), x)[1])
    model = nn.ParameterDict({"layer": nn.Parameter(torch.ones(8, 8))})
    model["layer"].grad = torch.randn(8, 8)
    make_optimizer(model, MUON).step()
    assert seen == [expected] and model["layer"].dtype == torch.float32


@pytest.mark.parametrize(("hardware", "expected"), [("bf16", torch.bfloat16), ("fp16", torch.float32)])
def test_a_gpu_rounds_to_bf16_if_it_has_instructions_for_it(monkeypatch, hardware, expected):
    """An RTX 2080 would emulate it."""
    monkeypatch.setattr("gpt2.optim.muon.choose_precision", lambda device: hardware)
    for precision in ("high", "highest"):
        monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda precision=precision: precision)
        assert factor_dtype(torch.device("cuda")) == expected


def weights_of(shapes) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(1)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


def test_an_update_is_torchs_except_for_the_bound_that_gradients_are_divided_by(monkeypatch):
    """Momentum, Nesterov's step, the factor of tall matrices and weight decay are torch's."""
    shapes = [(48, 16), (16, 48), (32, 32)]
    ours, theirs = weights_of(shapes), weights_of(shapes)
    model = nn.ParameterDict({f"layer{i}": p for i, p in enumerate(ours)})
    optimizer = make_optimizer(model, MUON)
    reference = torch.optim.Muon(theirs, lr=0.01, weight_decay=0.1, momentum=0.95, adjust_lr_fn="original")
    inner = "torch.optim._muon._zeropower_via_newtonschulz"
    monkeypatch.setattr(inner, lambda gradient, *settings: orthogonalise(gradient[None])[0])
    for _ in range(5):
        for a, b in zip(ours, theirs, strict=True):
            a.grad = torch.randn_like(a)
            b.grad = a.grad.clone()
        optimizer.step()
        reference.step()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


def test_the_newton_schulz_steps_are_torchs():
    """For a matrix of rank one, both bounds equal its only singular value, so the whole computation is the same."""
    from torch.optim._muon import _zeropower_via_newtonschulz

    gradient = torch.outer(torch.randn(40), torch.randn(24)).bfloat16()
    theirs = _zeropower_via_newtonschulz(gradient, (3.4445, -4.7750, 2.0315), 5, 1e-7)
    torch.testing.assert_close(orthogonalise(gradient[None])[0], theirs, rtol=0.05, atol=2e-3)


@pytest.mark.parametrize(
    ("parts", "rows"),
    [
        (None, {"attn.c_attn": [32, 32, 32], "mlp.c_fc": [128]}),
        (Parts(kv_heads=2, head_size=12, mlp="swiglu"), {"attn.c_attn": [48, 24, 24], "mlp.c_fc": [128, 128]}),
        (Parts(mlp="swiglu", experts=3, mlp_width=40), {"mlp.c_fc": [40, 40], "mlp.router": [3]}),
    ],
    ids=["gpt2", "shared key heads", "experts"],
)
def test_each_linear_map_of_a_fused_matrix_is_made_orthogonal_on_its_own(parts, rows):
    """q, k and v; the gate and the input of a SwiGLU; every expert. The size of their gradients does not matter."""
    config = GPTConfig(8, 64, 1, 4, 32)
    if parts is not None:
        config = make_config(Model("d12", 64, 8, 1, 4, 32), parts)
    model = build(config)
    optimizer = make_optimizer(model, Optim(kind="muon", lr=1.0, weight_decay=0.0))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for p in model.parameters():
        size = torch.logspace(-3, 0, p.size(-2) if p.dim() > 1 else 1)[:, None] if p.dim() > 1 else 1.0
        p.grad = torch.randn_like(p) * size
    optimizer.step()
    for part, sizes in rows.items():
        name = f"transformer.h.0.{part}.weight"
        update = before[name] - dict(model.named_parameters())[name].detach()
        for one in update.split(sizes, dim=-2):
            values = torch.linalg.svdvals(one) / max(1, one.size(-2) / one.size(-1)) ** 0.5
            assert values.quantile(0.1) > 0.5 and values.max() < 1.5, (name, values)


def test_the_work_is_divided_evenly_over_the_processes():
    """For GPT-2's 48 matrices and 8 processes. A step of an m × n map takes m² n + m³ + m² n multiplications."""
    with torch.device("meta"):
        model = GPT(GPTConfig())
    matrices = list(make_optimizer(model, MUON, world_size=8).matrices.values())
    load = [0] * 8
    for m in matrices:
        C = m.weight.size(1)
        load[m.owner] += sum(min(r, C) ** 2 * (2 * max(r, C) + min(r, C)) for r in m.fused_rows)
    assert len(matrices) == 48 and max(load) == min(load)
    assert {m.owner for m in assign_owners([(m.weight, m.fused_rows) for m in matrices], 1)} == {0}


def test_a_step_whose_gradients_overflow_leaves_weights_and_state_unchanged():
    """A GradScaler (fp16) finds the infinite gradient and skips the step."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(8, 64, 2, 2, 16))
    optimizer, scaler = make_optimizer(model, MUON), torch.amp.GradScaler("cpu", init_scale=8.0)
    x = torch.arange(16).view(2, 8)

    def step(spoilt: bool) -> list[torch.Tensor]:
        scaler.scale(model(x, x)).backward()
        if spoilt:
            model.get_submodule("transformer.h.0.mlp.c_fc").weight.grad[0, 0] = float("inf")
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        states = [t for p in model.parameters() for t in optimizer.state[p].values()]
        return [t.detach().clone() for t in (*model.parameters(), *states)]

    first, skipped, third = step(False), step(True), step(False)
    assert all(torch.equal(a, b) for a, b in zip(first, skipped, strict=True)) and scaler.get_scale() == 4.0
    assert not any(torch.equal(a, b) for a, b in zip(first, third, strict=True) if a.dim() >= 2)


PARTS = Parts(kv_heads=1, mlp="swiglu", experts=5, mlp_width=7, experts_per_token=5, balance=0.0)


def train_sharded(processes: Processes, zero: int, layers: int, weights: str = "fp32") -> tuple[nn.Module, dict]:
    """A model after three steps on the same batches, whatever the number of processes; and its optimiser's state."""
    torch.manual_seed(0)
    raw = build(make_config(Model("d12", 64, 8, layers, 3, 27), PARTS))
    raw.to(torch.float32 if weights == "fp32" else torch.bfloat16)
    model = wrap(raw, processes, zero=zero)
    settings = Optim(kind="muon", lr=0.02, weight_decay=0.1, eps=1e-4)  # keys' biases have gradients of noise alone
    optimizer = make_optimizer(raw, settings, weights, rank=processes.rank, world_size=processes.world_size)
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        x = torch.randint(64, (6, 8), generator=generator).chunk(processes.world_size)[processes.rank]
        model(x, x).backward()
        optimizer.step()
        optimizer.zero_grad()
    return raw, {name: optimizer.state[p] for name, p in raw.named_parameters()}


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor, gathered from all processes if it is sharded."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def compare_with_one_process(processes: Processes, zero: int, layers: int) -> None:
    """Weights and momenta are those of a single process, and the momenta are divided over the processes."""
    alone, alone_states = train_sharded(Processes(0, 0, 1, processes.device), 0, layers)
    raw, states = train_sharded(processes, zero, layers)
    for (name, p), q in zip(raw.named_parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(whole(p), q, rtol=1e-4, atol=1e-5, msg=lambda m, name=name: f"{zero} {name} {m}")
    momenta = {name: state["momentum"] for name, state in states.items() if "momentum" in state}
    for name, momentum in momenta.items():
        torch.testing.assert_close(whole(momentum), alone_states[name]["momentum"], rtol=1e-3, atol=1e-6)
    held = sum(m.to_local().numel() if zero else m.numel() for m in momenta.values())
    everything = sum(state["momentum"].numel() for state in alone_states.values() if "momentum" in state)
    assert processes.sum(held) == [everything] and held < 0.75 * everything, (zero, held, everything)


def check_masters(processes: Processes, zero: int) -> None:
    """Every bf16 weight is its fp32 copy, rounded."""
    raw, states = train_sharded(processes, zero, 1, "bf16-master")
    for name, p in raw.named_parameters():
        assert p.dtype == torch.bfloat16 and torch.equal(whole(p), whole(states[name]["master"]).bfloat16()), name


@pytest.mark.parametrize("processes", [2, 3])
def test_several_processes_compute_what_one_computes(processes):
    """Under DDP, ZeRO 1 and ZeRO 3, with matrices whose number and rows the processes do not divide."""
    assert run_python(Path(__file__), processes=processes).stdout.count("good") == processes


if __name__ == "__main__":
    with process_group("cpu") as joined:
        for number_of_layers in (1, 2):
            for stage in (0, 1, 3):
                compare_with_one_process(joined, stage, number_of_layers)
        for stage in (0, 2):
            check_masters(joined, stage)
        print("good", flush=True)
