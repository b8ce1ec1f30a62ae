"""Weights in 8 bits, for sampling: a quarter of the memory of fp32, and of the time to read them.

Sampling multiplies a few rows at a time, so its speed is that at which weights are read from memory.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gpt2.kernels import FEW_ROWS
from gpt2.model import GPT, Linear
from gpt2.modern.model import Modern


class PackedWeight(Tensor):
    """A bf16 weight (out, in), stored as int8 and one scale per row.

    `F.linear` and `F.embedding` use it as it is. Every other function sees the unpacked weight.
    """

    scales: Tensor  # (out,) bf16

    @staticmethod
    def pack(weight: Tensor) -> "PackedWeight":
        """Round the weight to 127 steps on either side of zero, per row; the largest of a row decides the step."""
        rows = weight.detach().float()
        scales = (rows.abs().amax(dim=1) / 127).clamp(min=1e-12).bfloat16()
        steps = (rows / scales.float()[:, None]).round().clamp(-127, 127)
        packed = steps.to(torch.int8).as_subclass(PackedWeight)
        packed.scales = scales
        return packed

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """What PyTorch calls instead of a function that is given a packed weight."""
        with torch._C.DisableTorchFunctionSubclass():
            if function is F.linear and args[0].device.type == "cpu" and args[0].numel() <= FEW_ROWS * args[0].size(-1):
                return _linear(*args, **(kwargs or {}))
            if function is F.embedding:
                idx, weight = args[:2]
                return weight.as_subclass(Tensor)[idx] * weight.scales[idx, None]
            if function is Tensor.to and args[1] == torch.bfloat16:
                return args[0]
            if function in (Tensor.size, Tensor.shape.__get__, Tensor.device.__get__):  # type: ignore[attr-defined]
                return function(*args, **(kwargs or {}))
            args = tuple(arg.unpack() if isinstance(arg, PackedWeight) else arg for arg in args)
            return function(*args, **(kwargs or {}))

    def unpack(self) -> Tensor:
        """The weight in bf16."""
        return self.as_subclass(Tensor) * self.scales[:, None]


def _linear(x: Tensor, weight: PackedWeight, bias: Tensor | None = None) -> Tensor:
    """`F.linear` of x (…, in) bf16 on a CPU."""
    y = torch._weight_int8pack_mm(x.reshape(-1, x.size(-1)), weight.as_subclass(Tensor), weight.scales)
    y = y.view(*x.shape[:-1], -1)
    return y if bias is None else y + bias


def pack(model: GPT | Modern) -> None:
    """Pack the embeddings and the linear maps of a bf16 model, in place. It can't be trained any more.

    Maps that are changed in use (experts, normalised weights) stay as they are.
    """
    for module in model.modules():
        if type(module) in (Linear, nn.Embedding):
            packed: Any = PackedWeight.pack(module.get_parameter("weight"))
            del module.weight
            module.weight = packed
