"""A CUDA device in name only, so that a CPU build of PyTorch compiles for a GPU that is not there.

PyTorch looks for a device when it is imported, so this module is imported before it, in a process that does nothing
else. After `install(card)`, FakeTensors on the device "cuda" have shapes and no data, and torch.compile writes the code
that it would write for that card. Nothing is executed.
"""

import ctypes
import hashlib
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from gpt2.system.errors import UserError, run_command

SOURCE = Path(__file__).with_name("fake_cuda.cpp")
# compute capability, multiprocessors, shared memory per block and per multiprocessor in KiB, level-2 cache in MiB
CARDS = {
    "h200": (90, 132, 227, 228, 50),
    "h100": (90, 132, 227, 228, 50),
    "a100": (80, 108, 163, 164, 40),
    "rtx-3090": (86, 82, 99, 100, 6),
    "rtx-4090": (89, 128, 99, 100, 72),
}


def load() -> None:
    """Register the device with PyTorch's libraries. Raises UserError where it cannot be compiled."""
    root = Path(str(importlib.util.find_spec("torch").origin)).parent  # type: ignore[union-attr]
    for library in (root / "lib/libc10.so", root / "lib/libtorch_cpu.so", _library(root)):
        ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)


def _library(root: Path) -> Path:
    """The compiled `fake_cuda.cpp`, kept between calls. `root` is PyTorch's folder."""
    key = hashlib.sha256(SOURCE.read_bytes() + importlib.metadata.version("torch").encode()).hexdigest()[:16]
    path = Path(tempfile.gettempdir()) / f"gpt2-fake-cuda-{key}.so"
    if path.exists():
        return path
    compiler, partial = shutil.which("g++"), path.with_suffix(f".{os.getpid()}")
    if compiler is None:
        raise UserError("there is no g++ to compile fake_cuda.cpp with; install one")
    includes = [f"-I{root}/include", f"-I{root}/include/torch/csrc/api/include"]
    libraries = [f"-L{root}/lib", "-lc10", "-ltorch_cpu"]
    command = [
        compiler,
        "-O1",
        "-std=c++20",
        "-shared",
        "-fPIC",
        *includes,
        str(SOURCE),
        "-o",
        str(partial),
        *libraries,
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"g++ does not compile fake_cuda.cpp with this torch: {done.stderr.strip()[-300:]}")
    partial.replace(path)
    return path


run_command(load)

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from gpt2.planning.gpus import HARDWARE  # noqa: E402


def install(card: str) -> SimpleNamespace:
    """Answer for this card from now on; return its properties. Raises UserError if it is unknown, or without triton."""
    if card not in CARDS:
        raise UserError(f"unknown card {card!r}; known: {', '.join(CARDS)}")
    if importlib.util.find_spec("triton") is None:
        raise UserError("there is no triton to compile with; pip install triton (it exists for Linux)")
    properties = _properties(card)
    _patch_torch_cuda(properties)
    _patch_triton(properties)
    return properties


def _properties(card: str) -> SimpleNamespace:
    """What `torch.cuda.get_device_properties` returns on such a card, as far as the compiler asks."""
    capability, multiprocessors, per_block, per_multiprocessor, cache = CARDS[card]
    return SimpleNamespace(
        name=f"NVIDIA {HARDWARE[card].name_contains}",
        major=capability // 10,
        minor=capability % 10,
        total_memory=int(HARDWARE[card].memory_gib * 2**30),
        multi_processor_count=multiprocessors,
        regs_per_multiprocessor=65536,
        max_threads_per_multi_processor=2048 if capability in (80, 90) else 1536,
        max_threads_per_block=1024,
        warp_size=32,
        L2_cache_size=cache * 2**20,
        shared_memory_per_block=48 * 2**10,
        shared_memory_per_block_optin=per_block * 2**10,
        shared_memory_per_multiprocessor=per_multiprocessor * 2**10,
        is_integrated=False,
        gcnArchName="",
        uuid="",
    )


class _Device:
    """`torch.cuda.device`: there is no other device to change to."""

    def __init__(self, index: Any):
        pass

    def __enter__(self) -> None:
        pass

    def __exit__(self, *error: object) -> None:
        pass


def _patch_torch_cuda(properties: SimpleNamespace) -> None:
    """Let torch.cuda, and the interface to it that torch.compile uses, answer for this device."""
    from torch._dynamo import device_interface

    answers: dict[str, Any] = {
        "is_available": lambda: True,
        "_is_compiled": lambda: True,
        "is_initialized": lambda: True,
        "_lazy_init": lambda: None,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "set_device": lambda device: None,
        "_exchange_device": lambda device: 0,
        "_maybe_exchange_device": lambda device: 0,
        "synchronize": lambda device=None: None,
        "get_device_properties": lambda device=None: properties,
        "get_device_capability": lambda device=None: (properties.major, properties.minor),
        "get_device_name": lambda device=None: properties.name,
        "is_bf16_supported": lambda including_emulation=True: True,
        "is_tf32_supported": lambda: True,
        "memory_allocated": lambda device=None: 0,
        "max_memory_allocated": lambda device=None: 0,
        "mem_get_info": lambda device=None: (properties.total_memory, properties.total_memory),
        "get_rng_state": lambda device="cuda": torch.get_rng_state(),
        "set_rng_state": lambda state, device="cuda": None,
        "device": _Device,
    }
    for name, answer in answers.items():
        setattr(torch.cuda, name, answer)
    torch.version.cuda = "13.0"
    torch._C._cuda_getCurrentRawStream = lambda device: 0
    interface: Any = device_interface.CudaInterface
    for name in ("current_device", "device_count", "set_device", "synchronize", "get_device_properties"):
        setattr(interface, name, staticmethod(answers[name]))
    for name in ("memory_allocated", "is_bf16_supported"):
        setattr(interface, name, staticmethod(answers[name]))
    interface.get_raw_stream = staticmethod(lambda device: 0)
    interface.exchange_device = interface.maybe_exchange_device = staticmethod(lambda device: 0)
    interface.device = _Device
    for name in ("cuda", "cuda:0"):
        device_interface.register_interface_for_device(name, interface)
    # constant folding computes one-element tensors for real: they are made on the CPU
    library = torch.library.Library("aten", "IMPL")
    library.impl("empty.memory_format", _empty, "CUDA")
    library.impl("empty_strided", _empty_strided, "CUDA")
    properties.library = library  # as long as this object lives


def _empty(size: Any, dtype: Any = None, layout: Any = None, device: Any = None, **_: Any) -> Tensor:
    return torch.empty(size, dtype=dtype, device="cpu")


def _empty_strided(size: Any, stride: Any, dtype: Any = None, layout: Any = None, **_: Any) -> Tensor:
    return torch.empty_strided(size, stride, dtype=dtype, device="cpu")


def _patch_triton(properties: SimpleNamespace) -> None:
    """Let triton compile for this card."""
    import triton
    from torch._inductor.runtime import triton_helpers
    from triton.backends.compiler import GPUTarget

    numbers = {
        "max_shared_mem": properties.shared_memory_per_block_optin,
        "max_num_regs": properties.regs_per_multiprocessor,
        "multiprocessor_count": properties.multi_processor_count,
        "warpSize": properties.warp_size,
    }
    driver = SimpleNamespace(
        get_current_target=lambda: GPUTarget("cuda", 10 * properties.major + properties.minor, 32),
        get_current_device=lambda: 0,
        get_current_stream=lambda device=0: 0,
        set_current_device=lambda device: None,
        get_device_interface=lambda: torch.cuda,
        get_active_torch_device=lambda: torch.device("cuda", 0),
        get_device_capability=lambda device=0: (properties.major, properties.minor),
        is_active=lambda: True,
        utils=SimpleNamespace(get_device_properties=lambda device: numbers),
    )
    triton.runtime.driver.set_active(driver)
    triton_helpers.set_driver_to_gpu = lambda: None  # the code of every kernel calls this


class patched:
    """Replace attributes for the length of a `with`."""

    def __init__(self, *changes: tuple[Any, str, Any]):
        self.changes = changes

    def __enter__(self) -> None:
        self.before = [getattr(owner, name) for owner, name, _ in self.changes]
        for owner, name, value in self.changes:
            setattr(owner, name, value)

    def __exit__(self, *error: object) -> None:
        for (owner, name, _), value in zip(self.changes, self.before, strict=True):
            setattr(owner, name, value)


def fake_attention() -> patched:
    """Name attention's kernel: PyTorch would ask the card which ones it has. On Hopper it is cuDNN's."""
    functional = torch.nn.functional

    def attention(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
    ) -> Tensor:
        if attn_mask is not None:
            raise UserError("attention with a mask cannot be lowered; it runs with FlexAttention on a GPU")
        if torch.cuda.get_device_capability() >= (9, 0):
            return torch.ops.aten._scaled_dot_product_cudnn_attention(q, k, v, None, True, dropout_p, is_causal)[0]
        return torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, dropout_p, is_causal)[0]

    return patched((functional, "scaled_dot_product_attention", attention))


def patterns_on_cpu() -> patched:
    """Inductor traces its patterns once on real tensors, which exist only on the CPU."""
    from torch._inductor.fx_passes import joint_graph, post_grad

    def on_cpu(lazy_init: Callable[..., Any]) -> Callable[..., Any]:
        def call(*inputs: Any, **options: Any) -> Any:
            with patched((torch.cuda, "is_available", lambda: False)):
                inputs = tuple(torch.device("cpu") if isinstance(x, torch.device) else x for x in inputs)
                return lazy_init(*inputs, **options)

        return call

    return patched(*((module, "lazy_init", on_cpu(module.lazy_init)) for module in (joint_graph, post_grad)))
