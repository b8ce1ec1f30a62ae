"""ONNX, the format of onnxruntime and many other runtimes: tokens (batch, length) int64 → logits (batch, length, V).

Both axes may have any size, up to the model's block size. `torch.onnx` exports the graph, with all parts of
`gpt2.modern`. A mixture of experts computes every expert for every token, because ONNX has no grouped product.
"""

import contextlib
import copy
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gpt2.model import GPT
from gpt2.modern.experts import ExpertLinear, Experts, activate, unit_rows
from gpt2.modern.model import Modern
from gpt2.system.errors import UserError
from gpt2.system.files import write_atomically

MOST_BYTES = 2**31 - 2**24  # a file in protobuf's format has less than 2 GiB; the rest is for the graph


def write_model(model: GPT | Modern, path: str | Path) -> None:
    """Write the graph and the weights of `model`, in fp32, to `path`, whole or not at all.

    Raises UserError for a model that one file can't hold or that can't be exported, and where a package is missing.
    Raises OSError, e.g. on a full disk.
    """
    size = sum(4 * p.numel() for p in model.parameters())
    if size > MOST_BYTES:
        raise UserError(
            f"an ONNX file holds 2 GiB, and these weights take {size / 2**30:.1f} GiB in fp32; give a smaller model"
        )
    if model.config.block_size == 1:
        raise UserError("a model of block_size 1 can't be exported, since lengths vary from 1 on; give a longer one")
    _require_packages()
    write_atomically(path, _export(model).model_proto.SerializeToString())


def _require_packages() -> None:
    """Raise UserError where what torch.onnx translates with is missing."""
    try:
        import onnxscript  # noqa: F401  it imports onnx
    except ImportError:
        raise UserError(
            "ONNX files need the packages onnx and onnxscript, which are not installed; "
            "run: pip install onnx onnxscript onnxruntime"
        ) from None


def _export(model: GPT | Modern) -> Any:
    """The program of torch.onnx, with both axes dynamic.

    The example is as long as the model permits: a layer whose window is longer than the example would lose it.
    """
    model = copy.deepcopy(model).float().eval()
    for block in model.transformer.h:
        if isinstance(block.mlp, Experts):
            block.mlp = _AllExperts(block.mlp)
    dynamic = torch.export.Dim.DYNAMIC
    example = torch.zeros(2, model.config.block_size, dtype=torch.int64)
    operators = {torch.ops.gpt2.cos_and_sin.default: lambda angles: (angles.cos(), angles.sin())}
    with torch.no_grad(), _quiet():
        program = torch.export.export(model, (example,), dynamic_shapes=({0: dynamic, 1: dynamic},))
        program = program.run_decompositions(operators)
        exported: Any = torch.onnx.export(program, (), input_names=["tokens"], output_names=["logits"], verbose=False)
    for value in (*exported.model.graph.inputs, *exported.model.graph.outputs):
        value.shape[0], value.shape[1] = "batch", "length"
    return exported


class _AllExperts(nn.Module):
    """A mixture of experts with operators that ONNX has: every expert for every token, with weight 0 if not chosen."""

    def __init__(self, experts: Experts):
        super().__init__()
        self.experts = experts

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T, C) → (B, T, C), and a load-balancing loss of 0, since nothing is trained."""
        scores = self.experts.route(x)  # (B, T, E)
        logits, chosen = scores.topk(self.experts.k, dim=-1)  # (B, T, k)
        weights = torch.zeros_like(scores).scatter(-1, chosen, logits.softmax(-1))
        outputs = [weights[..., e : e + 1] * self.expert(x, e) for e in range(self.experts.experts)]
        return torch.stack(outputs).sum(0), x.new_zeros(())

    def expert(self, x: Tensor, e: int) -> Tensor:
        """(B, T, C) → (B, T, C), by one expert."""
        h = activate(self.experts.kind, self.linear(x, self.experts.c_fc, e))
        return self.linear(h, self.experts.c_proj, e)

    def linear(self, x: Tensor, layer: ExpertLinear, e: int) -> Tensor:
        """(…, in) → (…, out)."""
        weight = unit_rows(layer.weight[e]) if layer.normalised else layer.weight[e]
        return F.linear(x, weight, None if layer.bias is None else layer.bias[e])


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's notes to its own developers, e.g. that torchvision is not installed."""
    level = logging.getLogger("torch.onnx").level
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.getLogger("torch.onnx").setLevel(level)
