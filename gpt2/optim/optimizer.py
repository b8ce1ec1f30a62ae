"""Which parameter goes to which optimiser, and the optimiser of a run: AdamW, or Muon beside it.

Built in notebooks 08 (AdamW) and 15 (Muon).
"""

import re
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim.adamw import adamw

from gpt2.config.run import Optim
from gpt2.modern.model import normalise_rows
from gpt2.optim.muon import Matrix, divide, updates
from gpt2.system.errors import UserError

Role = Literal["embedding", "head", "matrix", "vector"]


def role_of(name: str, parameter: Tensor) -> Role:
    """What a parameter is to the optimiser, by its name and dimensions: the one place that says so.

    A matrix of a block, or a stack of experts' matrices, may go to Muon. The tables and the head do not (Jordan et
    al.). A vector is what adds or scales, the experts' stacked biases among them; it does not decay.
    """
    if re.search(r"\b(wte|wpe)\.weight$", name):
        return "embedding"
    if re.search(r"\blm_head\.weight$", name):
        return "head"
    return "matrix" if parameter.dim() >= 2 and not name.endswith("bias") else "vector"


def fused_rows(name: str, shapes: dict[str, torch.Size]) -> tuple[int, ...]:
    """Rows of each of the linear maps that a matrix holds: Muon makes each orthogonal on its own.

    The speedrun's q, k and v are matrices of their own, whose updates are then of equal size; joined in `c_attn` they
    would be scaled by sqrt(3), and compete: v, with the largest gradient, would leave little to q and k. The same holds
    for the gate and the input of a SwiGLU. The width that `c_proj` reads tells how many rows q, or a gate, has.
    """
    rows = shapes[name][-2]
    inside = shapes.get(re.sub(r"c_(attn|fc)\.weight$", "c_proj.weight", name), shapes[name])[-1]
    if name.endswith("c_attn.weight"):
        return inside, (rows - inside) // 2, (rows - inside) // 2
    if name.endswith("c_fc.weight"):
        return (inside,) * (rows // inside)
    return (rows,)


def parameter_groups(model: nn.Module, settings: Optim) -> list[dict[str, Any]]:
    """The trained parameters, together where they are treated alike; without special settings, two groups: tensors of
    two or more dimensions (matrices, embeddings), which decay, and biases and norms, which don't.

    A group's learning rate is always `ratio` times that of the run. Those with `maps` are Muon's. Raises UserError.
    """
    rates = {"embedding": settings.embedding_lr, "head": settings.head_lr, "vector": settings.vector_lr}
    special = {role: rate for role, rate in rates.items() if rate is not None}
    if special and settings.lr == 0:
        role, rate = next(iter(special.items()))
        raise UserError(f"--optim.{role}-lr {rate:g} follows --optim.lr in proportion, which is 0; give it more than 0")
    shapes = {name: p.shape for name, p in model.named_parameters()}
    groups: dict[tuple, dict[str, Any]] = {}
    for name, p in model.named_parameters():
        if not p.requires_grad:
            continue
        role = role_of(name, p)
        rate, decay = special.get(role, settings.lr), 0.0 if role == "vector" else settings.weight_decay
        muon = settings.kind == "muon" and role == "matrix"
        if (muon, rate, decay) not in groups:
            ratio = rate / settings.lr if role in special else 1.0
            own = {"momentum": settings.momentum, "maps": []} if muon else {}
            own = own or {"betas": settings.betas, "eps": settings.eps}
            groups[muon, rate, decay] = {"params": [], "lr": rate, "ratio": ratio, "weight_decay": decay, **own}
        groups[muon, rate, decay]["params"].append(p)
        if muon:
            groups[muon, rate, decay]["maps"].append(fused_rows(name, shapes))
    return list(groups.values())


def make_optimizer(
    model: nn.Module,
    settings: Optim,
    weights: str = "fp32",
    normalised_weights: bool = False,
    rank: int = 0,
    world_size: int = 1,
) -> "AdamWAndMuon":
    """The optimiser of a run, in process `rank` of `world_size`. The model is on its device, and wrapped already.

    `weights` is --system.weights: a model in bf16 is trained as it is, or (bf16-master) through copies in fp32. With
    `normalised_weights`, every row of every matrix is rescaled after each step. Raises UserError for learning rates
    that can't be.
    """
    optimizer = AdamWAndMuon(parameter_groups(model, settings), weights == "bf16-master", rank, world_size)
    if normalised_weights:
        optimizer.register_step_post_hook(lambda *_: normalise_rows(model))
    return optimizer


class AdamWAndMuon(torch.optim.Optimizer):
    """AdamW (Loshchilov and Hutter, arXiv 1711.05101), and Muon (Jordan et al., 2024) for groups with `maps`.

    AdamW is torch's in its fused form: one kernel for all tensors of a group. Muon's momentum of a matrix lies with
    its owner, or where weights are divided (ZeRO) with them. `masters` keeps an fp32 copy of every bf16 weight (or of
    this process's part of it): the copy is updated and then rounded into the weight, so that updates smaller than
    the weight's last digit add up (Micikevicius et al., "Mixed Precision Training", arXiv 1710.03740).
    """

    def __init__(self, groups: list[dict[str, Any]], masters: bool = False, rank: int = 0, world_size: int = 1):
        super().__init__(groups, {})
        self.masters, self.rank, self.world_size = masters, rank, world_size
        muon = [group for group in self.param_groups if "maps" in group]
        weights = [pair for group in muon for pair in zip(group["params"], group["maps"], strict=True)]
        self.matrices = {matrix.weight: matrix for matrix in divide(weights, world_size)}

    def is_exclusive(self, p: nn.Parameter, key: str) -> bool:
        """Whether this process is the only one that has the state `key` of p (the others have it, or parts of it)."""
        return key == "momentum" and not isinstance(p, DTensor)

    def begin(self, updates: int) -> None:
        """The state after `updates` updates, with zeros in its tensors, to be filled from a checkpoint."""
        for p in (p for group in self.param_groups for p in group["params"]):
            state = self._state(p)
            if "step" in state:
                state["step"].fill_(updates)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient. All processes call this together."""
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            weights = [self._state(p).get("master", p) for p in params]
            if "maps" in group:
                self._muon(group, params, weights)
            else:
                self._adamw(group, params, weights)
            for p, weight in zip(params, weights, strict=True):
                if weight is not p:
                    p.copy_(weight)

    def _state(self, p: nn.Parameter) -> dict[str, Tensor]:
        """What is remembered of p, in the precision in which it is updated; made when first asked for."""
        state = self.state[p]
        if state:
            return state
        weight = p.detach()
        if self.masters and p.dtype != torch.float32:
            weight = state["master"] = weight.float()
        matrix = self.matrices.get(p)
        if matrix is None:
            state["step"] = torch.zeros((), device=p.device)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(weight), torch.zeros_like(weight)
        elif isinstance(p, DTensor) or matrix.owner == self.rank:
            state["momentum"] = torch.zeros_like(weight)
        return state

    def _adamw(self, group: dict[str, Any], params: list[nn.Parameter], weights: list[Tensor]) -> None:
        states = [self.state[p] for p in params]
        adamw(
            weights,
            [p.grad.to(weight.dtype) for p, weight in zip(params, weights, strict=True)],  # type: ignore[union-attr]
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            fused=True,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )

    def _muon(self, group: dict[str, Any], params: list[nn.Parameter], weights: list[Tensor]) -> None:
        matrices = [self.matrices[p] for p in params]
        gradients: dict[Matrix, Tensor] = {}
        for matrix, weight in zip(matrices, weights, strict=True):
            if "momentum" in self.state[matrix.weight]:
                gradient = _local(matrix.weight.grad).to(weight.dtype)
                momentum = _local(self.state[matrix.weight]["momentum"])
                momentum.lerp_(gradient, 1 - group["momentum"])
                gradients[matrix] = gradient.lerp(momentum, group["momentum"])  # Nesterov's: one step ahead
        found = updates(matrices, gradients, self.rank, self.world_size)
        for weight, update in zip(weights, found, strict=True):
            own = _local(weight)
            own.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-group["lr"])


def _local(tensor: Tensor | None) -> Tensor:
    """This process's part of a divided tensor, or a tensor itself."""
    assert tensor is not None
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
