"""Checkers of notebook 13, and its counters of bytes: of saved tensors, of live tensors, and of the process."""

import math
import time
import weakref

import psutil
import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from checks import Wrong, exercise, expect, expect_equal
from gpt2.system.devices import autocast


@exercise
def recompute_backward(solution) -> None:
    """The backward of a block that kept nothing but its input."""
    torch.manual_seed(0)
    block = nn.Sequential(nn.Linear(6, 12), nn.GELU(), nn.Linear(12, 6))
    below = torch.randn(4, 6, requires_grad=True)
    x, grad = below * 1.0, torch.randn(4, 6)  # x is not a leaf, as between two blocks
    wanted = torch.autograd.grad(block(x), [x, *block.parameters()], grad)
    before = [torch.ones_like(p) for p in block.parameters()]
    for p, one in zip(block.parameters(), before, strict=True):
        p.grad = one.clone()
    try:
        with torch.no_grad():  # as in the backward of a torch.autograd.Function
            found = solution(block, x, grad)
    except RuntimeError as error:
        expect(
            "does not require grad" not in str(error),
            "autograd recorded nothing: in backward, recording is off; compute the block under torch.enable_grad()",
        )
        raise
    expect(
        below.grad is None,
        "the gradient went on into the layers below; detach x, so that backward ends at the input of this block",
    )
    expect(
        found is not None,
        "the result is None; return the .grad of x, and detach x first: only a leaf gets a .grad",
    )
    expect(
        not torch.allclose(found, torch.autograd.grad(block(x).sum(), x)[0]),
        "the gradient of the output, `grad`, is not used: this is the gradient of y.sum()",
    )
    expect_equal(found, wanted[0], "the gradient of x")
    for p, one, own in zip(block.parameters(), before, wanted[1:], strict=True):
        expect(not torch.equal(p.grad, one), "the weights of the block got no gradient; backward has to reach them too")
        expect(
            not torch.allclose(p.grad, own),
            "the .grad of a weight was replaced; with gradient accumulation it must be added to",
        )
        expect_equal(p.grad, one + own, "the .grad of a weight")


def saved(model: nn.Module, x: torch.Tensor, y: torch.Tensor, precision: str = "fp32") -> list[tuple]:
    """(module, shape, bytes) of every tensor that forward keeps for backward on a CPU, the weights left out."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    names, inside = {module: name for name, module in model.named_modules()}, [""]
    found: dict[int, tuple] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            found.setdefault(storage.data_ptr(), (inside[-1], tuple(tensor.shape), storage.nbytes()))
        return tensor

    def enter(module: nn.Module, inputs: tuple) -> None:
        inside.append(names.get(module, ""))

    def leave(module: nn.Module, inputs: tuple, output: object) -> None:
        inside.pop()

    hooks = register_module_forward_pre_hook(enter), register_module_forward_hook(leave)
    with saved_tensors_hooks(pack, lambda tensor: tensor), autocast(torch.device("cpu"), precision):
        loss = model(x, y)
    for hook in hooks:
        hook.remove()
    assert loss.requires_grad  # the graph is alive until here, so no storage was counted for another
    return [*found.values()]


class Live(TorchDispatchMode):
    """Bytes of the tensors that are alive: `now`, `peak`, and in `curve` after every operation, with its name."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.curve: list[tuple[str, int]] = []
        self.storages: weakref.WeakValueDictionary = weakref.WeakValueDictionary()

    def add(self, size: int) -> None:
        """Count a storage that was made, or with a negative size one that died."""
        self.now += size

    def total(self) -> int:
        """`now`, where storages change their size after they are made, as those of FSDP do."""
        time.sleep(0.2)  # until gloo's threads have freed what they sent
        return sum(storage.nbytes() for storage in list(self.storages.values()))

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        out = operation(*args, **(kwargs or {}))
        tensors = [getattr(one, "_local_tensor", one) for one in tree_leaves(out) if isinstance(one, torch.Tensor)]
        for storage in (one.untyped_storage() for one in tensors):
            if storage._cdata not in self.storages:
                self.storages[storage._cdata] = storage
                self.add(storage.nbytes())
                weakref.finalize(storage, self.add, -storage.nbytes())
        self.peak = max(self.peak, self.now)
        self.curve.append((str(operation), self.now))
        return out


class Resident(TorchDispatchMode):
    """`peak`: the largest resident set of this process after any operation, in bytes."""

    peak = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        out = operation(*args, **(kwargs or {}))
        self.peak = max(self.peak, psutil.Process().memory_info().rss)
        return out


class _Largest(TorchDispatchMode):
    """Remembers the number of values of the largest tensor that any operation makes."""

    values = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        out = operation(*args, **(kwargs or {}))
        sizes = [one.untyped_storage().nbytes() // 4 for one in tree_leaves(out) if isinstance(one, torch.Tensor)]
        self.values = max([self.values, *sizes])
        return out


@exercise
def logit_gradients(solution) -> None:
    """The gradients of a chunked cross-entropy."""
    torch.manual_seed(0)
    N, C, V, rows = 50, 4, 64, 8
    x, weight = torch.randn(N, C, requires_grad=True), torch.randn(V, C, requires_grad=True)
    targets = torch.randint(V, (N,))
    logits = x @ weight.T
    wanted = torch.autograd.grad(F.cross_entropy(logits, targets), (x, weight))
    inputs = x.detach().clone(), weight.detach().clone(), targets.clone(), logits.detach().logsumexp(-1)
    with torch.no_grad(), _Largest() as largest:
        found = solution(*(one.clone() for one in inputs), rows)
    expect(found is not None, "the result is None; is there a `return`?")
    expect(len(found) == 2, f"return two gradients, that of x and that of the weight; these are {len(found)}")
    expect(
        largest.values <= rows * V,
        f"a tensor of {largest.values:,} values was made; with {rows} rows at a time, none may have more than "
        f"{rows} · {V} = {rows * V}",
    )
    probabilities = logits.detach().softmax(-1) / N
    by_weight = torch.autograd.grad(F.cross_entropy(x @ weight.T, targets, reduction="sum"), weight)[0]
    expect(
        not torch.allclose(found[0], probabilities @ inputs[1], atol=1e-6),
        "the one-hot of the target is missing: subtract 1 from the probability of every target",
    )
    expect(
        not torch.allclose(found[1], by_weight, atol=1e-4), "this is the gradient of the sum; the loss is a mean over N"
    )
    last = wanted[1] - _of_rows(inputs, slice(0, 48))
    expect(
        not torch.allclose(found[1], last, atol=1e-6),
        "the gradient of the weight is that of the last chunk alone; every chunk adds to it",
    )
    expect(
        not torch.allclose(found[1], _of_rows(inputs, slice(0, 48)), atol=1e-6),
        "the last two positions are missing: the last chunk may be smaller than the others",
    )
    expect(
        not torch.allclose(found[0][:rows], wanted[0][:rows] * N / rows, atol=1e-6),
        "the mean is taken over the rows of a chunk; the loss is a mean over all N positions",
    )
    expect_equal(found[0], wanted[0], "the gradient of x")
    expect_equal(found[1], wanted[1], "the gradient of the weight")


def _of_rows(inputs: tuple, part: slice) -> torch.Tensor:
    """The gradient of the mean loss by the weight, from some of the positions."""
    x, weight, targets, lse = inputs
    gradient = (x @ weight.T - lse[:, None]).exp() - F.one_hot(targets, len(weight))
    return gradient[part].T @ x[part] / len(x)


@exercise
def micro_batch(solution) -> None:
    """The largest micro-batch that fits."""
    found = solution(4, 2, 23, 32)
    expect(found is not None, "the result is None; is there a `return`?")
    case = "for 4 GiB fixed, 2 GiB per sequence, 23 GiB to fill and 32 sequences"
    expect(found != 9, f"{case}, 9 sequences would fit, but 9 does not divide 32; take a power of two that does")
    expect(found != 16, f"{case}, a micro-batch of 16 needs 4 + 32 GiB; this is the first that does not fit")
    expect_equal(found, 8, f"{case} the micro-batch")
    found = solution(4, 2, 20, 32)
    expect(found != 4, "a micro-batch of 8 needs 4 + 16 = 20 GiB, which is all of 20 GiB, and fits")
    expect_equal(found, 8, "where 8 sequences fill all of the 20 GiB, the micro-batch")
    found = solution(0, 1, 100, 12)
    expect(found != 8, "8 does not divide 12 sequences; the largest power of two that does is 4")
    expect(found != 64, "a micro-batch can't be larger than the sequences of a step")
    expect_equal(found, 4, "for 12 sequences, which all fit, the micro-batch")
    try:
        found = solution(10, 1, 10, 8)
    except (ValueError, IndexError, StopIteration) as error:
        raise Wrong(f"where nothing fits, it stopped with {type(error).__name__}; return 0") from None
    expect_equal(found, 0, "where nothing is left for a sequence, the micro-batch")


@exercise
def maps_from(solution) -> None:
    """From which length on the attention maps are the larger part of a layer."""
    found = solution(768, 12, 2)
    expect(found is not None, "the result is None; is there a `return`?")
    case = "for C = 768, H = 12 and 2 bytes"
    rest = 36 * 768 + 16
    expect(
        not math.isclose(found, (64 * 768 + 16) / 24, rel_tol=1e-3),
        f"{case}, this counts the rest in fp32; with 2 bytes per value it is 28 C + 8 C + 16",
    )
    expect(
        not math.isclose(found, (32 * 768 + 16) / 24, rel_tol=2e-3),
        f"{case}, this counts the residual stream in 16 bits; the inputs of the two norms are fp32",
    )
    expect(not math.isclose(found, rest / 2, rel_tol=1e-3), f"{case}, this counts one map; every head has one")
    expect(not math.isclose(found, rest / 12, rel_tol=1e-3), f"{case}, this counts 1 byte per weight; use value_bytes")
    expect_equal(float(found), rest / 24, f"{case} the length", tolerance=1e-3)
    expect_equal(float(solution(320, 5, 4)), (64 * 320 + 16) / 20, "for the model novels in fp32 it", tolerance=1e-3)


@exercise
def live_peak(solution) -> None:
    """The peak of tensors with known lifetimes."""
    found = solution([(4, 0, 2), (2, 1, 3), (8, 3, 3), (1, 0, 3)])
    expect(found is not None, "the result is None; is there a `return`?")
    case = "for the tensors (4, 0, 2), (2, 1, 3), (8, 3, 3), (1, 0, 3)"
    expect(found != 15, f"{case}, 15 is the sum of all; not all are alive at the same time")
    expect(found != 8, f"{case}, 8 is the largest tensor; others are alive beside it")
    second = solution([(5, 0, 1), (7, 1, 2), (3, 2, 4)])
    expect(
        second != 7,
        "for (5, 0, 1), (7, 1, 2), (3, 2, 4) the peak is 12: a tensor is still alive during the operation `last`, "
        "which reads it",
    )
    expect_equal(found, 11, f"{case} the peak")
    expect_equal(second, 12, "for (5, 0, 1), (7, 1, 2), (3, 2, 4) the peak")
    expect_equal(solution([(3, 5, 9)]), 3, "the peak of a single tensor")


@exercise
def best_segment(solution) -> None:
    """The length of the segments of Chen et al."""
    found = solution(12, 16, 1)
    expect(found is not None, "the result is None; is there a `return`?")
    best = {case: _segment(*case) for case in ((12, 16, 1), (48, 16, 1), (48, 3, 2), (36, 4, 1))}
    expect(
        best[12, 16, 1] == found or found != 12,
        "a single segment keeps all of its layers while backward runs through it: nothing is saved",
    )
    for case, wanted in best.items():
        found = solution(*case)
        words = "for {} layers that keep {} each, with inputs of {},".format(*case)
        expect(case[0] % found == 0, f"{words} segments of {found} layers do not divide the layers equally")
        cost = {k: case[0] // k * case[2] + k * case[1] for k in range(1, case[0] + 1) if case[0] % k == 0}
        expect(
            found == wanted,
            f"{words} segments of {found} need {cost[found]}, and segments of {wanted} need {cost[wanted]}; "
            "count an input per segment, and everything within one segment",
        )


def _segment(layers: int, kept: int, stream: int) -> int:
    sizes = [k for k in range(1, layers + 1) if layers % k == 0]
    return min(sizes, key=lambda k: layers // k * stream + k * kept)
