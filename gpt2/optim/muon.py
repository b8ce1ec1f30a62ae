"""Muon's update: the gradient of a weight matrix, made orthogonal. The work is divided over the processes.

Built in notebook 14.

Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024). torch.optim.Muon, the tests' reference,
takes neither stacks of matrices nor matrices that hold several linear maps, and computes everything in every process.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn import functional as F

from gpt2.system.devices import choose_precision
from gpt2.system.processes import balance

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # Jordan et al.: the steepest polynomial at 0 that keeps 0 … 1 within 0 … 1.21
STEPS = 5
EPS = 1e-7  # keeps a gradient of zeros zero


@dataclass(frozen=True, eq=False)
class Matrix:
    """A weight that Muon trains: whole in every process, or sharded by FSDP2 along its first dimension."""

    weight: nn.Parameter  # (out, in), or a stack (experts, out, in)
    fused_rows: tuple[int, ...]  # rows of each linear map that it holds: of q, k and v
    owner: int  # the process that orthogonalises it

    def shard_sizes(self, world_size: int) -> list[int]:
        """Numbers in every process's shard: blocks of equally many rows, of which the last ones may be smaller."""
        rows = self.weight.size(0)
        block = -(-rows // world_size)
        return [max(0, min(block, rows - r * block)) * self.weight.shape[1:].numel() for r in range(world_size)]


def assign_owners(weights: Sequence[tuple[nn.Parameter, tuple[int, ...]]], world_size: int) -> list[Matrix]:
    """Give each weight, which comes with its `fused_rows`, an owner, so that all processes have about the same work.

    A Newton–Schulz step of an m × n map with m ≤ n takes m² n + m³ + m² n multiplications.
    """
    costs = []
    for weight, fused_rows in weights:
        sides = [sorted((rows, weight.size(-1))) for rows in fused_rows]
        costs.append(weight.shape[:-2].numel() * sum(m * m * (2 * n + m) for m, n in sides))
    owners = balance(costs, world_size)
    return [Matrix(weight, fused_rows, owners[i]) for i, (weight, fused_rows) in enumerate(weights)]


def orthogonalise(matrices: Tensor) -> Tensor:
    """Matrices (N, rows, columns) = U S Vᵀ → U Vᵀ, with singular values from 0.68 to 1.21, by Newton–Schulz steps.

    The steps need singular values of at most 1. Jordan et al. divide by the Frobenius norm, (Σ S²)^½. In a random
    768 × 768 matrix, a singular value of 1 % of the largest is then so small that five steps lift it to only 0.35.
    This function divides by (Σ S⁴)^¼, the root of the Frobenius norm of X Xᵀ. That bound costs as little, and is three
    times as tight there, so that those singular values reach 0.68.
    """
    a, b, c = COEFFICIENTS
    tall = matrices.size(-2) > matrices.size(-1)
    x = matrices.mT if tall else matrices
    x = x / _norm(x)
    x = x / _norm(x @ x.mT).sqrt()
    for _ in range(STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)  # a x + (b g + c g²) x
    return x.mT if tall else x


def _norm(x: Tensor) -> Tensor:
    return torch.linalg.matrix_norm(x, keepdim=True).clamp(min=EPS)


def factor_dtype(device: torch.device) -> torch.dtype:
    """bf16, as in Jordan et al., where the hardware has instructions for it; fp32 elsewhere, and in fp32 runs on a CPU.

    On a CPU (AMD EPYC) bf16 takes half the time.
    """
    rounded = device.type == "cuda" or torch.get_float32_matmul_precision() != "highest"
    return torch.bfloat16 if rounded and choose_precision(device) == "bf16" else torch.float32


def muon_updates(matrices: list[Matrix], gradients: dict[Matrix, Tensor], rank: int, world_size: int) -> list[Tensor]:
    """Return the update of each weight, or of this process's shard of it, before it is multiplied by the learning rate.

    `gradients`, which may be overwritten, are those of the matrices that this process owns, or its shards of all.
    """
    dtype = factor_dtype(matrices[0].weight.device)
    gradients = {matrix: gradient.to(dtype) for matrix, gradient in gradients.items()}
    if isinstance(matrices[0].weight, DTensor):
        updates = _update_shards(matrices, gradients, rank, world_size)
    else:
        _orthogonalise_maps(gradients)
        updates = gradients if world_size == 1 else _all_gather(matrices, gradients, rank, world_size)
    return [updates[m] for m in matrices]


def _orthogonalise_maps(gradients: dict[Matrix, Tensor]) -> None:
    """Overwrite whole gradients with updates. Maps of one shape are stacked, which halves the time of small ones.

    The update of a map is multiplied by max(1, rows / columns)^½ (Jordan et al.), so that wide and tall maps change
    their outputs alike.
    """
    by_shape: dict[torch.Size, list[Tensor]] = defaultdict(list)
    for matrix, gradient in gradients.items():
        for part in gradient.split(matrix.fused_rows, dim=-2):
            by_shape[part.shape[-2:]].append(part)
    for (rows, columns), parts in by_shape.items():
        stacks = [part.reshape(-1, rows, columns) for part in parts]
        updates = orthogonalise(torch.cat(stacks)) * max(1, rows / columns) ** 0.5
        pieces = updates.split([len(stack) for stack in stacks])
        torch._foreach_copy_(parts, [update.view(part.shape) for part, update in zip(parts, pieces, strict=True)])


def _all_gather(
    matrices: list[Matrix], own_updates: dict[Matrix, Tensor], rank: int, world_size: int
) -> dict[Matrix, Tensor]:
    """The updates of all owners: one all-gather of what each has computed, padded to the same length."""
    owned = [[m for m in matrices if m.owner == r] for r in range(world_size)]
    length = max(sum(m.weight.numel() for m in group) for group in owned)
    own = _concatenate((own_updates[m] for m in owned[rank]), matrices[0].weight.device)
    gathered = own.new_empty(world_size, length)
    dist.all_gather(list(gathered), F.pad(own, (0, length - len(own))))
    updates: dict[Matrix, Tensor] = {}
    for group, flat in zip(owned, gathered, strict=True):
        sizes = [m.weight.numel() for m in group]
        parts = flat[: sum(sizes)].split(sizes)
        updates |= {m: part.view(m.weight.shape) for m, part in zip(group, parts, strict=True)}
    return updates


def _update_shards(
    matrices: list[Matrix], shards: dict[Matrix, Tensor], rank: int, world_size: int
) -> dict[Matrix, Tensor]:
    """The updates of this process's shards, from its shards of the gradients.

    An all-to-all brings all shards of a gradient to the owner of the matrix; a second one returns those of the update.
    """
    by_owner = sorted(matrices, key=lambda m: m.owner)
    owned = [m for m in matrices if m.owner == rank]
    sent = [sum(shards[m].numel() for m in matrices if m.owner == r) for r in range(world_size)]
    sizes = {m: m.shard_sizes(world_size) for m in owned}
    received = [sum(sizes[m][r] for m in owned) for r in range(world_size)]

    def all_to_all(parts: Iterable[Tensor], sent: list[int], received: list[int]) -> Tensor:
        """Send so many numbers of the concatenated parts to each process; return what each has sent to this one."""
        flat = _concatenate(parts, matrices[0].weight.device)
        result = flat.new_empty(sum(received))
        dist.all_to_all_single(result, flat, received, sent)
        return result

    arrived = all_to_all((shards[m] for m in by_owner), sent, received)
    pieces = arrived.split([sizes[m][r] for r in range(world_size) for m in owned])
    whole = {m: torch.cat(pieces[i :: len(owned)]).view(m.weight.shape) for i, m in enumerate(owned)}
    _orthogonalise_maps(whole)
    parts = {m: update.flatten().split(sizes[m]) for m, update in whole.items()}
    returned = all_to_all((parts[m][r] for r in range(world_size) for m in owned), received, sent)
    pieces = returned.split([shards[m].numel() for m in by_owner])
    return {m: piece.view(shards[m].shape) for m, piece in zip(by_owner, pieces, strict=True)}


def _concatenate(tensors: Iterable[Tensor], device: torch.device) -> Tensor:
    """All numbers of the tensors (which may be none) in a row."""
    return torch.cat([torch.empty(0, dtype=factor_dtype(device), device=device), *(t.flatten() for t in tensors)])
