"""Which parameter goes to which optimiser, and the optimiser of a run: AdamW, or Muon beside it.

Built in notebook 08.
"""

import re
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim.adamw import adamw

from gpt2.config.run import Optim
from gpt2.modern.model import normalise_rows
from gpt2.optim.muon import assign_owners, muon_updates
from gpt2.system.errors import UserError

Role = Literal["embedding", "head", "matrix", "vector"]


def role_of(name: str, parameter: Tensor) -> Role:
    """The role of a parameter for the optimiser, by its name and dimensions.

    A matrix of a block, or a stack of experts' matrices, may go to Muon; embeddings and the output head do not (Jordan
    et al.). A vector is added or scales, like the experts' stacked biases, and does not decay.
    """
    module = name.removesuffix(".weight").rpartition(".")[2]
    if module in ("wte", "wpe"):
        return "embedding"
    if module == "lm_head":
        return "head"
    return "matrix" if parameter.dim() >= 2 and not name.endswith("bias") else "vector"


def fused_rows(name: str, shapes: dict[str, torch.Size]) -> tuple[int, ...]:
    """Rows of each linear map that a matrix holds: q, k and v, or the gate and the input of a SwiGLU.

    Muon makes each map orthogonal on its own, as if it were a matrix of its own, as in the speedrun. Made orthogonal
    together, q, k and v would be scaled by sqrt(3) and compete: v has the largest gradient, and would leave little to
    q and k. The number of columns of `c_proj` tells how many rows q, or a gate, has.
    """
    rows = shapes[name][-2]
    inside = shapes.get(re.sub(r"c_(attn|fc)\.weight$", "c_proj.weight", name), shapes[name])[-1]
    if name.endswith("c_attn.weight"):
        return inside, (rows - inside) // 2, (rows - inside) // 2
    if name.endswith("c_fc.weight"):
        return (inside,) * (rows // inside)
    return (rows,)


def parameter_groups(model: nn.Module, settings: Optim) -> list[dict[str, Any]]:
    """The trained parameters, grouped by how they are updated; groups with `fused_rows` are Muon's. Raises UserError.

    Without special settings there are two groups: tensors of two or more dimensions, which decay, and biases and
    norms, which do not. `ratio` is a group's learning rate, divided by that of the run.
    """
    rates = {"embedding": settings.embedding_lr, "head": settings.head_lr, "vector": settings.vector_lr}
    special = {role: rate for role, rate in rates.items() if rate is not None}
    if special and settings.lr == 0:
        role, rate = next(iter(special.items()))
        raise UserError(f"--optim.{role}-lr {rate:g} follows --optim.lr in proportion, which is 0; give it more than 0")
    shapes = {name: p.shape for name, p in model.named_parameters()}
    groups: dict[tuple[bool, float, float], dict[str, Any]] = {}
    for name, p in model.named_parameters():
        if not p.requires_grad:
            continue
        role = role_of(name, p)
        rate, decay = special.get(role, settings.lr), 0.0 if role == "vector" else settings.weight_decay
        muon = settings.kind == "muon" and role == "matrix"
        own = (
            {"momentum": settings.momentum, "fused_rows": []}
            if muon
            else {"betas": settings.betas, "eps": settings.eps}
        )
        ratio = rate / settings.lr if role in special else 1.0
        new = {"params": [], "lr": rate, "ratio": ratio, "weight_decay": decay, **own}
        group = groups.setdefault((muon, rate, decay), new)
        group["params"].append(p)
        if muon:
            group["fused_rows"].append(fused_rows(name, shapes))
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

    `weights` is --system.weights: a model in bf16 is trained as it is, or through fp32 copies (bf16-master). With
    `normalised_weights`, every row of every matrix is rescaled after each step. Raises UserError for a special learning
    rate beside --optim.lr 0.
    """
    optimizer = AdamWAndMuon(parameter_groups(model, settings), weights == "bf16-master", rank, world_size)
    if normalised_weights:
        optimizer.register_step_post_hook(lambda *_: normalise_rows(model))
    return optimizer


class AdamWAndMuon(torch.optim.Optimizer):
    """AdamW (Loshchilov and Hutter, arXiv 1711.05101), and Muon (Jordan et al., 2024) for groups with `fused_rows`.

    AdamW is torch's fused one: one kernel for all tensors of a group. The owner of a matrix holds its momentum in Muon;
    if weights are sharded (ZeRO), every process holds that of its shard. `masters` keeps an fp32 copy of every bf16
    weight (or shard). The copy is updated and then rounded into the weight, so that updates smaller than the weight's
    last digit add up (Micikevicius et al., "Mixed Precision Training", arXiv 1710.03740).
    """

    def __init__(self, groups: list[dict[str, Any]], masters: bool = False, rank: int = 0, world_size: int = 1):
        super().__init__(groups, {})
        self.masters, self.rank, self.world_size = masters, rank, world_size
        muon = [group for group in self.param_groups if "fused_rows" in group]
        weights = [pair for group in muon for pair in zip(group["params"], group["fused_rows"], strict=True)]
        self.matrices = {matrix.weight: matrix for matrix in assign_owners(weights, world_size)}

    def describe(self) -> str:
        """How many tensors, with how many parameters, each rule updates, and how many of them decay."""

        def count(groups: list[dict[str, Any]]) -> str:
            sizes = [p.numel() for group in groups for p in group["params"]]
            return f"{len(sizes)} tensors with {sum(sizes):,} parameters"

        by_rule = [[g for g in self.param_groups if ("fused_rows" in g) == muon] for muon in (True, False)]
        rules = [f"{name} for {count(g)}" for name, g in zip(("Muon", "fused AdamW"), by_rule, strict=True) if g]
        decayed = [group for group in self.param_groups if group["weight_decay"]]
        others = [group for group in self.param_groups if not group["weight_decay"]]
        return f"{', '.join(rules)}; decayed: {count(decayed)}; not decayed: {count(others)}"

    def begin(self, updates: int) -> None:
        """Create the state after so many updates, with zeros in its tensors, to be filled from a checkpoint."""
        for p in (p for group in self.param_groups for p in group["params"]):
            state = self._state(p)
            if "step" in state:
                state["step"].fill_(updates)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient. All processes call this together."""
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            weights = [self._state(p).get("master", p) for p in params]
            update = self._muon if "fused_rows" in group else self._adamw
            update(group, params, weights)
            for p, weight in zip(params, weights, strict=True):
                if weight is not p:
                    p.copy_(weight)

    def _state(self, p: nn.Parameter) -> dict[str, Tensor]:
        """The state of p, in the precision in which p is updated; created on first use."""
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
            max_exp_avg_sqs=[],
            state_steps=[state["step"] for state in states],
            fused=True,
            amsgrad=False,
            maximize=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            **{name: group[name] for name in ("lr", "weight_decay", "eps")},
        )

    def _muon(self, group: dict[str, Any], params: list[nn.Parameter], weights: list[Tensor]) -> None:
        matrices = [self.matrices[p] for p in params]
        owned = [matrix for matrix in matrices if "momentum" in self.state[matrix.weight]]
        momenta = [_local(self.state[matrix.weight]["momentum"]) for matrix in owned]
        gradients = [_local(m.weight.grad).to(momentum.dtype) for m, momentum in zip(owned, momenta, strict=True)]
        if owned:  # _foreach: a few kernels for all tensors
            torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
            gradients = list(torch._foreach_lerp(gradients, momenta, group["momentum"]))  # Nesterov: one step ahead
        ahead = dict(zip(owned, gradients, strict=True))
        updates = muon_updates(matrices, ahead, self.rank, self.world_size)
        own_weights = [_local(weight) for weight in weights]
        torch._foreach_mul_(own_weights, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(own_weights, updates, alpha=-group["lr"])


def _local(tensor: Tensor | None) -> Tensor:
    """This process's shard of a sharded tensor, or the tensor itself."""
    assert tensor is not None
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
