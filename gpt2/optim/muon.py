"""Muon's update: gradients made orthogonal, the work divided over the processes.

Built in notebook 15.

Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024). torch.optim.Muon takes neither stacks
of matrices nor matrices that hold several maps, computes everything in every process, and divides by a looser bound
than the one here; it serves the tests as a reference.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from gpt2.system.processes import balance

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # Jordan et al.: the steepest polynomial at 0 that keeps 0 … 1 within 0 … 1.21
STEPS = 5
EPS = 1e-7  # a gradient of zeros stays one


@dataclass(frozen=True, eq=False)
class Matrix:
    """A weight that Muon trains: whole in every process, or divided by FSDP2 along its first dimension."""

    weight: nn.Parameter  # (out, in), or a stack (experts, out, in)
    maps: tuple[int, ...]  # rows of each of the linear maps that it holds: of q, k and v
    owner: int = 0  # the process that orthogonalises it

    def rows(self, rank: int, world_size: int) -> slice:
        """Which part of the first dimension FSDP2 gives to a process: blocks of equal size, the last ones smaller."""
        size = self.weight.size(0)
        block = -(-size // world_size)
        return slice(min(rank * block, size), min((rank + 1) * block, size))

    def numel(self, rows: slice) -> int:
        """Numbers in these rows of the first dimension."""
        return (rows.stop - rows.start) * self.weight.shape[1:].numel()


def divide(weights: Sequence[tuple[nn.Parameter, tuple[int, ...]]], world_size: int) -> list[Matrix]:
    """Give each weight, of which the rows of its maps are told, an owner, so that all have about the same work."""
    owners = balance([_cost(weight.shape, maps) for weight, maps in weights], world_size)
    return [Matrix(weight, maps, owners[i]) for i, (weight, maps) in enumerate(weights)]


def _cost(shape: torch.Size, maps: tuple[int, ...]) -> int:
    """What a Newton–Schulz step multiplies: for m ≤ n the sides of a map, m² n + m³ + m² n."""
    sides = [sorted((rows, shape[-1])) for rows in maps]
    return shape[:-2].numel() * sum(m * m * (2 * n + m) for m, n in sides)


def orthogonalise(matrices: Tensor) -> Tensor:
    """U Vᵀ of matrices (N, rows, columns) = U S Vᵀ, but for factors from 0.68 to 1.21, by Newton–Schulz steps.

    Jordan et al. divide by the Frobenius norm, so that no singular value exceeds 1; of a random 768 × 768 matrix those
    at 1 % of the largest are then too small for five steps, and end at 0.35. The fourth root of the sum of S⁴ is a
    bound too, as cheap (|X Xᵀ| in the Frobenius norm is its square), and three times as tight there: they reach 0.68.
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
    """bf16 on CUDA, as in Jordan et al.; elsewhere, where matrices are small, fp32."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def updates(matrices: list[Matrix], gradients: dict[Matrix, Tensor], rank: int, world_size: int) -> list[Tensor]:
    """What to subtract from each weight, or from this process's rows of it, but for the learning rate.

    `gradients` are those that this process has: of the matrices it owns, or its rows of all. The update of a map is
    scaled by max(1, rows / columns)^0.5 (Jordan et al.), so that wide and tall ones change outputs alike.
    """
    if not matrices:
        return []
    dtype = factor_dtype(matrices[0].weight.device)
    gradients = {matrix: gradient.to(dtype) for matrix, gradient in gradients.items()}
    if isinstance(matrices[0].weight, DTensor):
        return _exchange(matrices, gradients, rank, world_size)
    mine = _orthogonalise_all([m for m in matrices if m.owner == rank], gradients)
    if world_size > 1:
        return _publish(matrices, mine, dtype, rank, world_size)
    return [mine[m] for m in matrices]


def _orthogonalise_all(matrices: list[Matrix], gradients: dict[Matrix, Tensor]) -> dict[Matrix, Tensor]:
    """The updates of whole matrices: maps of one shape together, which halves the time where they are small."""
    maps = [part for m in matrices for part in gradients[m].split(m.maps, dim=-2)]
    places: dict[torch.Size, list[int]] = {}
    for i, part in enumerate(maps):
        places.setdefault(part.shape[-2:], []).append(i)
    for shape, those in places.items():
        stacks = [maps[i].reshape(-1, *shape) for i in those]
        done = orthogonalise(torch.cat(stacks)) * max(1, shape[0] / shape[1]) ** 0.5
        for i, stack in zip(those, done.split([len(stack) for stack in stacks]), strict=True):
            maps[i] = stack.view(maps[i].shape)
    each = iter(maps)
    return {m: torch.cat([next(each) for _ in m.maps], dim=-2) for m in matrices}


def _publish(
    matrices: list[Matrix], mine: dict[Matrix, Tensor], dtype: torch.dtype, rank: int, world_size: int
) -> list[Tensor]:
    """Every owner's updates, to every process: one message from each."""
    found: dict[Matrix, Tensor] = {}
    messages = []
    for owner in range(world_size):
        theirs = [m for m in matrices if m.owner == owner]
        sizes = [m.weight.numel() for m in theirs]
        flat = matrices[0].weight.new_empty(sum(sizes), dtype=dtype)
        if owner == rank:
            _pack(flat, [mine[m] for m in theirs])
        if theirs:
            messages.append(dist.broadcast(flat, owner, async_op=True))
        found |= {m: part.view(m.weight.shape) for m, part in zip(theirs, flat.split(sizes), strict=True)}
    for message in messages:
        message.wait()
    return [found[m] for m in matrices]


def _exchange(matrices: list[Matrix], rows: dict[Matrix, Tensor], rank: int, world_size: int) -> list[Tensor]:
    """All rows of a gradient to its owner, and the rows of its update back: two messages from each to each."""
    ours = [m for m in matrices if m.owner == rank]
    everyone = range(world_size)
    to_owner = sorted(matrices, key=lambda m: m.owner)
    there = [sum(rows[m].numel() for m in matrices if m.owner == owner) for owner in everyone]
    here = [[m.numel(m.rows(r, world_size)) for m in ours] for r in everyone]
    total = [sum(sizes) for sizes in here]

    def send(parts: list[Tensor], sizes: list[int], received: list[int]) -> Tensor:
        """Part of each size to its process; what each of them sent of the received sizes."""
        like = rows[matrices[0]]
        out, into = like.new_empty(sum(sizes)), like.new_empty(sum(received))
        dist.all_to_all_single(into, _pack(out, parts), received, sizes)
        return into

    arrived = send([rows[m] for m in to_owner], there, total).split([size for sizes in here for size in sizes])
    whole = {m: torch.cat(arrived[i :: len(ours)]).view(m.weight.shape) for i, m in enumerate(ours)}
    done = _orthogonalise_all(ours, whole)
    returned = send([done[m][m.rows(r, world_size)] for r in everyone for m in ours], total, there)
    parts = returned.split([rows[m].numel() for m in to_owner])
    found = {m: part.view(rows[m].shape) for m, part in zip(to_owner, parts, strict=True)}
    return [found[m] for m in matrices]


def _pack(flat: Tensor, parts: list[Tensor]) -> Tensor:
    """`flat` (n,), filled with the parts, one after the other."""
    for place, part in zip(flat.split([part.numel() for part in parts]), parts, strict=True):
        place.copy_(part.reshape(-1))
    return flat
