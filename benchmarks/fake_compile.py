"""A model's forward, loss and backward, compiled for a GPU that is not there: the kernels, and the bytes they move."""

import copy
import importlib.util
import re
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from fake_cuda import fake_attention, patterns_on_cpu
from fake_training import CUDA, FakeTraining, forward_backward
from torch import Tensor, nn
from torch._dynamo.utils import counters

from gpt2.config.run import Run
from gpt2.training.distributed import COMPILE


@dataclass(frozen=True)
class Kernel:
    """A kernel that triton compiles, with the number of its launches in one forward and backward."""

    name: str
    launches: int
    gigabytes: float  # per launch, read and written
    source: str

    def compile(self, folder: Path) -> "Resources":
        """Compile it for the card, in the first of the block sizes that inductor would try."""
        import triton
        from triton.compiler import ASTSource

        path = folder / f"{self.name}.py"
        path.write_text(self.source)
        specification: Any = importlib.util.spec_from_file_location(self.name, path)
        module = importlib.util.module_from_spec(specification)
        specification.loader.exec_module(module)
        tuner = getattr(module, self.name)
        chosen, meta = tuner.configs[0], tuner.triton_meta
        constants = {**meta.get("constants", {}), **chosen.kwargs}
        source = ASTSource(
            fn=tuner.fn,
            signature=meta["signature"],
            constexprs={(tuner.fn.arg_names.index(name),): value for name, value in constants.items()},
            attrs=meta["configs"][0],
        )
        options = {"num_warps": chosen.num_warps, "num_stages": chosen.num_stages}
        target = triton.runtime.driver.active.get_current_target()
        binary = triton.compile(source, target=target, options=options)
        cubin = path.with_suffix(".cubin")
        cubin.write_bytes(binary.asm["cubin"])
        tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
        usage = subprocess.run([tool, "--dump-resource-usage", cubin], capture_output=True, text=True).stdout
        registers = [int(number) for number in re.findall(r"REG:(\d+)", usage)]
        return Resources(max(registers, default=0), binary.metadata.shared, "ld.global.b16" in binary.asm["ptx"])


@dataclass(frozen=True)
class Resources:
    """What a compiled kernel takes, and whether it reads 2 bytes at a time."""

    registers: int  # per thread
    shared: int  # bytes per block
    narrow_loads: bool


@dataclass
class Lowered:
    """The forward and backward of one micro-batch, as compiled."""

    kernels: list[Kernel] = field(default_factory=list)
    library_calls: int = 0  # matrix products and attention: kernels of cuBLAS and cuDNN
    saved_gigabytes: float = 0.0  # what forward keeps for backward, without weights
    graphs: int = 0
    graph_breaks: int = 0
    recompilations: int | None = None  # graphs compiled after the first step; not counted for a peer
    optimizer_launches: int | None = None  # per step, clipping included; not counted for a peer
    seconds: float = 0.0  # until the first step is compiled
    code: str = ""

    @property
    def launches(self) -> int:
        """Launches of all kernels."""
        return sum(kernel.launches for kernel in self.kernels) + self.library_calls

    @property
    def gigabytes(self) -> float:
        """GB that the kernels of triton read and write."""
        return sum(kernel.launches * kernel.gigabytes for kernel in self.kernels)


def lower(model: nn.Module, micro_batch: int, precision: str, run: Run | None = None) -> Lowered:
    """Compile the forward, loss and backward of a model on one GPU. `fake_cuda.install` comes first.

    The model is called as model(tokens, tokens), and returns the loss or (logits, loss). With a run, the rest of its
    training follows: the optimiser, an evaluation, samples and a second step.
    """
    from torch._inductor import compile_fx, config
    from torch._subclasses.fake_tensor import FakeTensorMode

    started, result = time.perf_counter(), Lowered()
    # bytes are written into the code; one process compiles; no cache knows of this device
    settings = {"profile_bandwidth": True, "compile_threads": 1, "force_disable_caches": True}
    settings |= COMPILE["options"] if run else {}  # a peer is compiled with PyTorch's defaults

    def backend(graph: Any, inputs: Any) -> Any:
        inner_compile = _run_on_shapes if result.graphs else _recorder(result)
        return compile_fx.compile_fx(graph, inputs, inner_compile=inner_compile)

    counters.clear()
    with config.patch(settings), fake_attention(), patterns_on_cpu(), FakeTensorMode(allow_non_fake_inputs=True):
        _move_weights(model)
        length: Any = model.config.block_size  # type: ignore[union-attr]
        tokens = torch.empty(micro_batch, length, dtype=torch.long, device=CUDA)
        trained: Any = torch.compile(model, dynamic=False, backend=backend)
        forward_backward(trained, tokens, precision)
        result.graphs, result.graph_breaks = _graphs(), sum(counters["graph_break"].values())
        result.seconds = time.perf_counter() - started
        if run is not None:
            training = FakeTraining(run, model, trained, tokens, precision)
            result.optimizer_launches = training.update()
            training.evaluate()
            training.optimizer.zero_grad(set_to_none=True)
            forward_backward(trained, tokens, precision)
            result.recompilations = _graphs() - result.graphs
    return result


def _move_weights(model: nn.Module) -> None:
    """Replace the model's weights by tensors without data on the GPU. A weight of two modules remains one."""
    moved: dict[nn.Parameter, nn.Parameter] = {}
    for module in model.modules():
        for name, p in module.named_parameters(recurse=False):
            if p not in moved:
                moved[p] = nn.Parameter(torch.empty_like(p, device=CUDA))
            setattr(module, name, moved[p])


def _graphs() -> int:
    """Graphs that torch.compile has captured since the counters were cleared."""
    return counters["stats"]["unique_graphs"]


class _Written(Exception):
    """The code of a graph is written; it is not to be loaded."""


def _recorder(result: Lowered) -> Callable[..., Any]:
    """An inner compiler that writes the code, records it, and hands the graph back to be run on shapes."""
    from torch._inductor import compile_fx
    from torch._inductor.graph import GraphLowering

    def compile_inner(graph: Any, inputs: Any, **options: Any) -> Any:
        code = ""

        def stop(lowering: Any) -> None:
            nonlocal code
            code = lowering.codegen()[0].value
            raise _Written

        original = GraphLowering._compile_to_module
        GraphLowering._compile_to_module = stop  # type: ignore[method-assign,assignment]
        try:
            compile_fx.compile_fx_inner(copy.deepcopy(graph), inputs, **options)
        except Exception as error:
            if not code:
                raise
            del error
        finally:
            GraphLowering._compile_to_module = original  # type: ignore[method-assign]
        result.kernels += kernels_of(code)
        result.library_calls += len(
            re.findall(r"extern_kernels\.\w+\(|torch\.ops\.aten\._\w*attention\w*\.default\(", code)
        )
        result.code += code
        if not options.get("is_backward"):
            result.saved_gigabytes += _output_bytes(graph) / 1e9
        return _run_on_shapes(graph, inputs)

    return compile_inner


def _run_on_shapes(graph: Any, inputs: Any, **options: Any) -> Any:
    """An inner compiler that compiles nothing: the graph's operations run one by one."""
    from functorch.compile import make_boxed_func

    return make_boxed_func(graph.forward)


def _output_bytes(graph: Any) -> int:
    """Bytes of what a forward graph hands to its backward; weights and tokens, its inputs, do not count."""
    outputs = next(node for node in graph.graph.nodes if node.op == "output").args[0]
    values = {n: n.meta["val"] for n in outputs if hasattr(n, "meta") and n.op != "placeholder" and "val" in n.meta}
    return sum(v.numel() * v.element_size() for v in values.values() if isinstance(v, Tensor))


def kernels_of(code: str) -> list[Kernel]:
    """The kernels in the code that inductor wrote."""
    kernels = []
    for name, source in re.findall(r"async_compile\.triton\('(\w+)', '''(.*?)'''", code, re.S):
        moved = re.search(r"'kernel_num_gb': ([\d.e-]+)", source)
        launches = len(re.findall(rf"\b{name}\.run\(", code))
        kernels.append(Kernel(name, launches, float(moved[1]) if moved else 0.0, source))
    return kernels
