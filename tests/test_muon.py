"""Muon: updates of orthogonal matrices, the same however the work is divided, and torch's own where there is one."""

from pathlib import Path

import pytest
import torch
from conftest import run_python
from torch import nn

from gpt2.config.run import Model, Optim
from gpt2.formats.build import build, make_config
from gpt2.model import GPT, GPTConfig
from gpt2.modern.parts import Parts
from gpt2.optim.muon import divide, orthogonalise
from gpt2.optim.optimizer import make_optimizer

MUON = Optim(kind="muon", lr=0.01, weight_decay=0.1)
SHAPES = [(64, 64), (768, 768), (96, 600), (600, 96), (4, 80, 130), (3, 200, 48)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_singular_value_of_an_update_is_near_one(shape, dtype):
    """Those above 1 % of the gradient's largest, in their own directions."""
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


def weights_of(shapes) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(1)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


def test_it_is_torchs_muon_but_for_the_bound_that_it_divides_by(monkeypatch):
    """Momentum, Nesterov's step, the scale of tall and wide matrices and weight decay are torch's."""
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


def test_the_iteration_is_torchs():
    """Of a matrix of rank one both bounds are its only singular value: the whole computation is the same."""
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
    ids=["gpt2", "groups of heads", "experts"],
)
def test_each_map_that_a_matrix_holds_is_made_orthogonal_on_its_own(parts, rows):
    """q, k and v; gate and input of a SwiGLU; every expert: whatever the size of their gradients."""
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


def test_the_work_is_divided_evenly():
    """GPT-2's 48 matrices over 8 processes, by the products of m × n: of m² n for X Xᵀ, m³ for its square, m² n."""
    with torch.device("meta"):
        model = GPT(GPTConfig())
    matrices = list(make_optimizer(model, MUON, world_size=8).matrices.values())
    load = [0] * 8
    for m in matrices:
        load[m.owner] += sum(min(r, C) ** 2 * (2 * max(r, C) + min(r, C)) for r in m.maps for C in m.weight.shape[1:])
    assert len(matrices) == 48 and max(load) == min(load)
    assert {m.owner for m in divide([(m.weight, m.maps) for m in matrices], 1)} == {0}


def test_a_step_that_overflowed_leaves_weights_and_state_alone():
    """A GradScaler (fp16) finds an infinite gradient and skips the step."""
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


DIVIDED = """
import torch
from gpt2.system.processes import Processes, start, stop
from gpt2.training.distributed import wrap
from gpt2.formats.build import build, make_config
from gpt2.optim.optimizer import make_optimizer
from gpt2.modern.parts import Parts
from gpt2.config.run import Model, Optim

PARTS = Parts(kv_heads=1, mlp="swiglu", experts=5, mlp_width=7, experts_per_token=5, balance=0.0)
MUON = Optim(kind="muon", lr=0.02, weight_decay=0.1, eps=1e-4)  # biases of keys have gradients of noise alone

def train(processes, zero, layers, weights="fp32"):
    torch.manual_seed(0)
    raw = build(make_config(Model("d12", 64, 8, layers, 3, 27), PARTS))
    raw.to(torch.float32 if weights == "fp32" else torch.bfloat16)
    model = wrap(raw, processes, zero=zero)
    optimizer = make_optimizer(raw, MUON, weights, rank=processes.rank, world_size=processes.world_size)
    numbers = torch.Generator().manual_seed(1)
    for _ in range(3):
        x = torch.randint(64, (6, 8), generator=numbers)
        mine = x.chunk(processes.world_size)[processes.rank]
        model(mine, mine).backward()
        optimizer.step()
        optimizer.zero_grad()
    states = {n: optimizer.state[p] for n, p in raw.named_parameters()}
    return raw, {n: state["momentum"] for n, state in states.items() if "momentum" in state}, states

def whole(tensor):
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor

def main():
    processes = start("cpu")
    world = processes.world_size
    for layers in (1, 2):
        for zero in (0, 1, 3):
            alone, theirs, _ = train(Processes(0, 0, 1, processes.device), 0, layers)
            raw, momenta, _ = train(processes, zero, layers)
            for (name, p), q in zip(raw.named_parameters(), alone.parameters(), strict=True):
                torch.testing.assert_close(whole(p), q, rtol=1e-4, atol=1e-5, msg=lambda m: f"{zero} {name} {m}")
            for name, momentum in momenta.items():
                torch.testing.assert_close(whole(momentum), theirs[name], rtol=1e-3, atol=1e-6)
            held = sum(m.to_local().numel() if zero else m.numel() for m in momenta.values())
            everything = sum(m.numel() for m in theirs.values())
            assert processes.sum(held) == [everything] and held < 0.75 * everything, (zero, held, everything)
    for zero in (0, 2):
        raw, _, states = train(processes, zero, 1, "bf16-master")
        for name, p in raw.named_parameters():
            assert p.dtype == torch.bfloat16 and torch.equal(whole(p), whole(states[name]["master"]).bfloat16()), name
    print("good")

main()
stop()
__import__("os")._exit(0)
"""


@pytest.mark.parametrize("processes", [2, 3])
def test_divided_work_gives_what_one_process_computes(tmp_path: Path, processes):
    """Whatever is divided (DDP, ZeRO 1 and 3), with matrices whose number and rows the processes don't divide."""
    script = tmp_path / "script.py"
    script.write_text(DIVIDED.replace('print("good")', 'print("good", flush=True)'))
    assert run_python(script, processes=processes).stdout.count("good") == processes
