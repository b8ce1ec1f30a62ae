"""The code that torch.compile writes for a GPU, and what it costs, without that GPU.

    python benchmarks/lowering.py gpt2-124m                                    an H200, the preset's layers
    python benchmarks/lowering.py speedrun --card h100 --layers 2 --micro-batch 64 --kernels
    python benchmarks/lowering.py --peer ../build-nanogpt        the model of a clone, in the size of gpt2-124m

The model's forward, loss and backward are compiled on tensors that have shapes and no data (`fake_cuda.py`). The table
counts the kernels, their launches, and the bytes that they read and write. It also counts the launches of the
optimiser, and the graphs that are compiled again after the first step, by an evaluation, samples or a second step. The
program needs g++ and triton, and takes about three seconds per layer. Nothing runs. The predicted times are those of
one GPU, without what the host does: matrix products, attention and the optimiser take what `gpt2 plan` says, and all
other kernels take the time that the bytes counted need. The plan's own speed, from bytes per layer that were recorded
earlier, stands beside the prediction.
"""

from fake_cuda import fake_attention, install, patched, patterns_on_cpu  # isort: skip: before torch

import contextlib
import copy
import importlib.util
import json
import logging
import math
import os
import re
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any

import torch
import tyro
from annotated_types import Ge
from peers import Peer, Size
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.nn.utils import clip_grad
from torch.utils._python_dispatch import TorchDispatchMode

from gpt2.config.checks import resolve
from gpt2.config.presets import PRESETS
from gpt2.config.run import Run
from gpt2.evaluation.validation import ending_losses, evaluating
from gpt2.formats.build import build_empty, make_config
from gpt2.generate import generate
from gpt2.model import GPTConfig
from gpt2.optim.optimizer import make_optimizer
from gpt2.planning.flops import flops_per_token
from gpt2.planning.gpus import HARDWARE
from gpt2.planning.memory import Setup
from gpt2.planning.step import memory_rate, step_time
from gpt2.system.devices import autocast, choose_precision
from gpt2.system.errors import UserError, run_command
from gpt2.system.processes import Processes
from gpt2.system.ranges import check_ranges
from gpt2.training.distributed import COMPILE, cast_in_use, clip_gradients, recompute
from gpt2.training.evaluation import Evaluation
from gpt2.training.execution import Execution

CUDA = torch.device("cuda")


@dataclass(frozen=True)
class Options:
    """Compile a preset for a GPU that is not there, and count what its step would do."""

    preset: Annotated[str, tyro.conf.Positional] = "gpt2-124m"
    peer: Path | None = None
    """A clone of build-nanogpt or nanoGPT: lower its model instead, in the preset's size and as its script runs it."""
    card: str = "h200"
    """h200, h100, a100, rtx-3090 or rtx-4090."""
    layers: Annotated[int | None, Ge(1)] = None
    """Layers to compile [the preset's]."""
    micro_batch: Annotated[int, Ge(1)] = 64
    """Sequences at a time."""
    kernels: bool = False
    """Compile every kernel too, for its registers and shared memory, and list the ones that move the most bytes."""
    json: bool = False
    """Print one JSON object instead of a table."""
    folder: Path | None = None
    """Where to write the code of both graphs [nowhere]."""


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


def forward_backward(trained: Any, tokens: Tensor, precision: str) -> None:
    """One micro-step through the compiled model."""
    with autocast(CUDA, precision):
        result = trained(tokens, tokens)
    loss = result[1] if isinstance(result, tuple) else result
    loss.backward()


def _graphs() -> int:
    """Graphs that torch.compile has captured since the counters were cleared."""
    return counters["stats"]["unique_graphs"]


def make_model(run: Run, config: GPTConfig) -> nn.Module:
    """The model of a run before it is wrapped, without memory for its weights."""
    model: nn.Module = build_empty(config)
    model.to(torch.float32 if run.system.weights == "fp32" else torch.bfloat16)
    if run.system.weights == "bf16-cast":
        cast_in_use(model)
    recompute(model, run.system.recompute)
    return model


def make_peer_model(path: Path, config: GPTConfig) -> nn.Module:
    """The model of a clone in this size, its vocabulary padded as by its script. UserError for another folder."""
    size = Size(config.n_layer, config.n_head, config.n_embd, config.padded_vocab_size, config.block_size, batch=1)
    try:
        peer = Peer(path)
    except FileNotFoundError as error:
        raise UserError(f"--peer {error}") from None
    peer.set_matmul_precision()
    with torch.device("meta"), contextlib.redirect_stdout(sys.stderr):  # nanoGPT prints its size
        return peer.make_model(size)


class FakeTraining:
    """The parts of a training run, on one GPU, whose tensors have no data."""

    def __init__(self, run: Run, model: Any, trained: nn.Module, tokens: Tensor, precision: str):
        self.run, self.model, self.tokens, self.precision = run, model, tokens, precision
        weights, normalised = run.system.weights, run.parts.normalised_weights
        self.optimizer = make_optimizer(model, run.optim, weights=weights, normalised_weights=normalised)
        # what `Evaluation.loss` reads of an Evaluation
        self.evaluation: Any = SimpleNamespace(
            processes=Processes(0, 0, 1, CUDA),
            execution=Execution(precision, True, len(tokens)),
            state=SimpleNamespace(model=model, trained=trained),
        )

    def update(self) -> int:
        """Clip the gradients and let the optimiser make its update, twice; return the launches of the second time.

        The first update creates the optimiser's state.
        """
        # PyTorch calls its foreach functions for plain tensors only, and takes fake ones for a subclass
        with patched((clip_grad, "_has_foreach_support", lambda tensors, device: True)):
            for _ in range(2):
                with LaunchCounter() as counter:
                    clip_gradients(self.model, self.run.optim.clip)
                    self.optimizer.step()
        return counter.launches

    def evaluate(self) -> None:
        """What `Evaluation` does between two steps: validation loss, HellaSwag, samples."""
        Evaluation.loss(self.evaluation, self.model, self.tokens, self.tokens)
        ending = 4
        lengths = sorted({min(length, self.model.config.block_size) for length in (32, 64, 96)})
        contexts = [self.tokens[0, : length + 1 - ending] for length in lengths]
        with evaluating(self.model, CUDA, self.precision), FixedMasks(ending):
            ending_losses(self.model, contexts, [self.tokens[0, :ending]] * len(lengths))
        for _ in generate(self.model, self.tokens[:4, :8], 3, top_k=50):
            pass


class LaunchCounter(TorchDispatchMode):
    """Counts the operations that run on the GPU: neither views nor empty tensors. A call for many tensors is one."""

    launches = 0

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        view = operation.is_view or "empty" in operation.name() or operation is torch.ops.aten._unsafe_view.default
        self.launches += operation.namespace == "aten" and not view
        return operation(*args, **(kwargs or {}))


class FixedMasks(TorchDispatchMode):
    """A mask without data does not tell how many elements it selects. Here every mask selects `selected`."""

    def __init__(self, selected: int):
        super().__init__()
        self.selected = selected

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if operation is torch.ops.aten.index.Tensor and args[1][0].dtype == torch.bool:
            x, (mask,) = args
            return x.new_empty(self.selected, *x.shape[mask.dim() :])
        return operation(*args, **(kwargs or {}))


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


def report(options: Options, run: Run, config: GPTConfig, lowered: Lowered) -> dict[str, Any]:
    """All figures, by name."""
    figures: dict[str, Any] = {
        "model": options.preset if options.peer is None else str(options.peer),
        "card": options.card,
        "layers": config.n_layer,
        "micro_batch": options.micro_batch,
        "graphs": lowered.graphs,
        "graph_breaks": lowered.graph_breaks,
        "recompilations": lowered.recompilations,
        "kernels": len(lowered.kernels),
        "launches": lowered.launches,
        "library_calls": lowered.library_calls,
        "optimizer_launches": lowered.optimizer_launches,
        "gigabytes": round(lowered.gigabytes, 2),
        "saved_gigabytes": round(lowered.saved_gigabytes, 2),
    }
    if options.kernels:
        with tempfile.TemporaryDirectory() as folder:
            resources = {kernel.name: kernel.compile(Path(folder)) for kernel in lowered.kernels}
        figures["registers"] = max(used.registers for used in resources.values())
        figures["shared_bytes"] = max(used.shared for used in resources.values())
        figures["narrow_loads"] = [name for name, used in resources.items() if used.narrow_loads]
    figures["cosines"] = [kernel.name for kernel in lowered.kernels if re.search(r"\.(cos|sin)\(", kernel.source)]
    figures |= predict(options, run, config, lowered.gigabytes)
    figures["compiled_in_s"] = round(lowered.seconds, 1)
    return {name: value for name, value in figures.items() if value is not None}


def predict(options: Options, run: Run, config: GPTConfig, gigabytes: float) -> dict[str, Any]:
    """Milliseconds of a step of one micro-batch, tokens per second, and the fraction of peak (PaLM count of FLOPs)."""
    setup = Setup(
        micro_batch=options.micro_batch,
        recompute=run.system.recompute,
        compiled=True,
        weights=run.system.weights,
        muon=run.optim.kind == "muon",
    )
    card, tokens = HARDWARE[options.card], options.micro_batch * config.block_size
    planned = step_time(config, setup, card, tokens)
    seconds = {
        "products": planned.products,
        "attention": planned.attention,
        "other_kernels": gigabytes * 1e9 / memory_rate(card),
        "optimizer": planned.optimizer,
    }
    speed = tokens / sum(seconds.values())
    return {
        "predicted_ms": {name: round(value * 1e3, 2) for name, value in seconds.items()},
        "predicted_tokens_per_second": round(speed),
        "fraction_of_peak": round(speed * flops_per_token(config) / (card.peak("bf16") or math.nan), 3),
        "planned_tokens_per_second": None if options.peer else round(tokens / planned.total),
    }


def main(options: Options) -> None:
    """Lower a model and print the figures. Raises UserError for an unknown preset or card, and for no clone."""
    if options.preset not in PRESETS:
        raise UserError(f"unknown preset {options.preset!r}; known: {', '.join(PRESETS)}")
    check_ranges(options)
    install(options.card)
    logging.getLogger("torch._inductor").setLevel(logging.ERROR)  # it warns that code is written and not loaded
    warnings.simplefilter("ignore")
    run = resolve(PRESETS[options.preset][1])
    config = make_config(run.model, run.parts)
    config = replace(config, n_layer=options.layers or config.n_layer)
    if options.peer is None:
        precision = choose_precision(CUDA, run.system.precision, run.system.weights)
        lowered = lower(make_model(run, config), options.micro_batch, precision, run)
    else:
        lowered = lower(make_peer_model(options.peer, config), options.micro_batch, "bf16")
    show(options, report(options, run, config, lowered), lowered)


def show(options: Options, figures: dict[str, Any], lowered: Lowered) -> None:
    """Print the figures, and write the code where it is asked for."""
    if options.folder is not None:
        options.folder.mkdir(parents=True, exist_ok=True)
        (options.folder / f"{options.preset if options.peer is None else 'peer'}.py").write_text(lowered.code)
    if options.json:
        print(json.dumps(figures))
        return
    for name, value in figures.items():
        print(f"{name.replace('_', ' '):28} {value}")
    if options.kernels:
        print("GB of one forward and backward, and launches, by kernel:")
        for kernel in sorted(lowered.kernels, key=lambda k: -k.launches * k.gigabytes)[:12]:
            print(f"{kernel.launches * kernel.gigabytes:8.2f} {kernel.launches:4d}  {kernel.name[:90]}")


if __name__ == "__main__":
    run_command(lambda: main(tyro.cli(Options, description=__doc__)))
    sys.stdout.flush()
    os._exit(0)  # PyTorch would synchronise the device at exit
