"""How a model is wrapped for training: recomputation, torch.compile, DistributedDataParallel, FSDP2.

Every function works in one process and in many. Built in notebooks 07, 09, 13 and 14.
"""

import contextlib
import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from gpt2.formats.build import build_empty
from gpt2.kernels import no_autocast
from gpt2.model import GPT, Linear
from gpt2.modern.experts import ExpertLinear
from gpt2.modern.model import Modern
from gpt2.system.errors import UserError
from gpt2.system.processes import Processes

Method = Callable[..., Any]
# By default Inductor orders the loops of kernels after it fuses them. Then it does not fuse the cast of a gradient to
# bf16 into the backward of LayerNorm, and every layer reads and writes its gradients twice more. It concerns GPUs only.
COMPILE: dict[str, Any] = {"dynamic": False, "options": {"loop_ordering_after_fusion": False}}


def cast_in_use(model: nn.Module) -> None:
    """Store the linear maps of a bf16 model in fp32, to be cast in use. Autocast has no effect in it any more.

    As in modded-nanogpt's tenth record: activations are bf16 throughout, and the sums of small updates are not rounded.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear | ExpertLinear):
            module.float()
    _change_methods(model, ("forward", "hidden", "logits", "loss"), _without_autocast)


def multiply_in_fp8(model: nn.Module, device: torch.device) -> None:
    """Let the linear maps of the blocks round both factors of every product to FP8, and scale them by their largest.

    Inputs and weights have 4 bits of exponent, gradients 5 (Micikevicius et al., arXiv 2209.05433; torchao). Weights,
    sums and the output head are as before. A CPU rounds in the same way and multiplies in fp32. Raises UserError
    without torchao, on a device without FP8 products, and for a model that has no such linear maps.
    """
    if device.type == "mps" or (device.type == "cuda" and torch.cuda.get_device_capability() < (8, 9)):
        raise UserError("this device has no FP8 products, which came with H100 and RTX 4090; leave --system.fp8 out")
    try:
        from torchao.float8 import Float8LinearConfig, convert_to_float8_training
    except ImportError:
        raise UserError("--system.fp8 needs torchao; pip install -e '.[fp8]'") from None

    def fits(module: nn.Module, name: str) -> bool:  # a router is never rounded; FP8 products come in blocks of 16
        if type(module) is not Linear or "router" in name:
            return False
        return module.in_features % 16 == module.out_features % 16 == 0

    count = 0
    for block in _blocks(model):
        count += sum(fits(module, name) for name, module in block.named_modules())
        convert_to_float8_training(
            block, config=Float8LinearConfig(emulate=device.type == "cpu"), module_filter_fn=fits
        )
    if not count:
        raise UserError("--system.fp8: no linear map in the blocks of this model can be computed in FP8; leave it out")


def recompute(model: nn.Module, what: str) -> None:
    """Compute some activations again in backward instead of keeping them (Chen et al., arXiv 1604.06174).

    gelu: the result of every MLP's activation function, as llm.c does. mlp: all within every MLP. block: within every
    block. Experts have no gelu: see `check_recompute`.
    """
    for block in _blocks(model) if what != "none" else ():
        part = block if what == "block" else block.get_submodule("mlp")
        _change_methods(part, ("second_half" if what == "gelu" else "forward",), _recomputed)


def _change_methods(module: nn.Module, names: tuple[str, ...], change: Callable[[Method], Method]) -> None:
    """Replace methods of one module, by giving it another class."""
    kind: Any = type(module)
    module.__class__ = _subclass(kind, names, change)


@functools.cache
def _subclass(kind: Any, names: tuple[str, ...], change: Callable[[Method], Method]) -> Any:
    """All layers share this class, so that they share one compiled graph."""
    return type(kind.__name__, (kind,), {name: change(getattr(kind, name)) for name in names})


def _without_autocast(method: Method) -> Method:
    def call(self: nn.Module, x: Tensor, *inputs: Any, **options: Any) -> Any:
        with no_autocast(x.device):
            return method(self, x, *inputs, **options)

    return call


def _recomputed(method: Method) -> Method:
    def call(self: nn.Module, *inputs: Any) -> Any:
        return checkpoint(method, self, *inputs, use_reentrant=False, preserve_rng_state=False)

    return call


def wrap(model: nn.Module, processes: Processes, compiled: bool = False, zero: int = 0) -> nn.Module:
    """The model as it is trained: compiled, and divided over the processes by ZeRO stage `zero`.

    0: nothing is divided. Every process holds everything, and gradients are averaged (DistributedDataParallel).
    1: the optimiser's state, and the weights that it updates. Weights are gathered, and gradients averaged, once per
    step. 2: gradients too; they are averaged after every micro-step. 3: weights too; they are gathered block by block.
    Stages: Rajbhandari et al., "ZeRO" (arXiv 1910.02054). 1 to 3 are FSDP2, which shows the optimiser only this
    process's part of every parameter. Weights travel in fp32, so every stage computes the same numbers.
    """
    if zero == 0 or processes.world_size == 1:
        if compiled:
            model = torch.compile(model, **COMPILE)  # type: ignore[assignment]
        if processes.world_size == 1:
            return model
        devices = [processes.local_rank] if processes.device.type == "cuda" else None
        return DistributedDataParallel(model, device_ids=devices, gradient_as_bucket_view=True)
    mesh = init_device_mesh(processes.device.type, (processes.world_size,))
    for block in _blocks(model):
        if compiled:  # one block at a time, and the loss: weights are gathered between them
            block.compile(**COMPILE)
        fully_shard(block, mesh=mesh, reshard_after_forward=zero == 3)
    if compiled:
        _change_methods(model, ("loss",), functools.partial(torch.compile, **COMPILE))
    fully_shard(model, mesh=mesh, reshard_after_forward=False)
    return model


def _blocks(model: nn.Module) -> list[nn.Module]:
    return list(model.get_submodule("transformer.h").children())


def accumulating(model: nn.Module, last: bool, zero: int = 0) -> contextlib.AbstractContextManager[None]:
    """The context of forward *and* backward of a micro-step. Gradients are averaged over processes after the `last`.

    DDP reads the switch in forward too. If it is set between forward and backward, gradients of other ranks are lost.
    ZeRO 2 and 3 average after every micro-step, because no process has room for whole gradients.
    """
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(last or zero >= 2)
        model.set_reshard_after_backward(last or zero == 3)
    if last or not isinstance(model, DistributedDataParallel):
        return contextlib.nullcontext()
    return model.no_sync()


def clip_gradients(model: nn.Module, largest: float) -> Tensor:
    """Scale all gradients so that their global norm, over all processes, is at most `largest` (0: do not scale).

    Returns the norm before clipping, the same in every process.
    """
    norm = nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
    if largest:
        nn.utils.clip_grads_with_norm_(model.parameters(), largest, norm)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def full_model(model: GPT | Modern) -> GPT | Modern:
    """`model` itself, or a copy with whole weights if they are divided over the processes.

    All processes call this together. Each gets a copy of 4 bytes per parameter, with which it can evaluate on its own.
    """
    if not isinstance(model, FSDPModule):
        return model
    weights = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
    copy = build_empty(model.config)
    copy.load_state_dict(weights, assign=True)
    return copy.requires_grad_(False)
