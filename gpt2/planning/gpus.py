"""What known GPUs can do at best, as data: the peaks against which MFU is named and a run is planned.

Built in notebook 18.
"""

import re
import statistics
import time
from dataclasses import dataclass

import torch

from gpt2.system.devices import synchronize


@dataclass(frozen=True)
class Hardware:
    """One GPU. Rates are dense (data sheets print the double, with sparsity, beside them), in FLOP/s, products of that
    precision summed in fp32; None where the GPU doesn't have it. `bandwidth` is of its memory, in bytes/s."""

    name_contains: str
    """Words of `torch.cuda.get_device_name()` by which it is known."""
    bf16: float | None
    fp16: float | None
    tf32: float | None
    fp32: float
    memory_gib: float
    bandwidth: float
    source: str

    def peak(self, precision: str) -> float | None:
        """FLOP/s in `bf16`, `fp16`, `tf32` or `fp32`."""
        return {"bf16": self.bf16, "fp16": self.fp16, "tf32": self.tf32, "fp32": self.fp32}[precision]


def _gpu(
    words: str, half: float, tf32: float | None, fp32: float, gib: float, gb_per_s: float, source: str
) -> Hardware:
    """A row of the table in the units of data sheets: TFLOP/s and GB/s. No tf32: older than Ampere, so no bf16."""
    bf16 = None if tf32 is None else half * 1e12
    return Hardware(
        words, bf16, half * 1e12, tf32 and tf32 * 1e12, fp32 * 1e12, gib, gb_per_s * 1e9, f"NVIDIA, {source}"
    )


HARDWARE: dict[str, Hardware] = {
    # data centre             words         16-bit tf32   fp32  GiB  GB/s
    "b200": _gpu("B200", 2250, 1100, 75, 180, 7700, "HGX B200 data sheet"),
    "gb200": _gpu("GB200", 2500, 1250, 80, 186, 8000, "GB200 NVL72 data sheet"),
    "h200": _gpu("H200", 989, 494, 67, 141, 4800, "H200 data sheet, SXM"),
    "h200-nvl": _gpu("H200 NVL", 835, 418, 60, 141, 4800, "H200 data sheet, NVL"),
    "gh200": _gpu("GH200", 989, 494, 67, 96, 4000, "GH200 data sheet"),
    "h100": _gpu("H100", 989, 494, 67, 80, 3350, "H100 data sheet, SXM"),
    "h100-pcie": _gpu("H100 PCIe", 756, 378, 51, 80, 2000, "H100 data sheet, PCIe"),
    "h100-nvl": _gpu("H100 NVL", 835, 418, 60, 94, 3900, "H100 data sheet, NVL"),
    "a100": _gpu("A100", 312, 156, 19.5, 80, 2039, "A100 data sheet, 80GB SXM"),
    "a100-40gb": _gpu("A100-SXM4-40GB", 312, 156, 19.5, 40, 1555, "A100 data sheet, 40GB SXM"),
    "a40": _gpu("A40", 149.7, 74.8, 37.4, 48, 696, "A40 data sheet"),
    "a30": _gpu("A30", 165, 82, 10.3, 24, 933, "A30 data sheet"),
    "a10": _gpu("A10", 125, 62.5, 31.2, 24, 600, "A10 data sheet"),
    "a10g": _gpu("A10G", 70, 35, 35, 24, 600, "A10G data sheet"),
    "l40s": _gpu("L40S", 362, 183, 91.6, 48, 864, "L40S data sheet"),
    "l4": _gpu("L4", 121, 60, 30.3, 24, 300, "L4 data sheet"),
    "v100": _gpu("V100", 125, None, 15.7, 16, 900, "V100 data sheet, SXM2"),
    "t4": _gpu("T4", 65, None, 8.1, 16, 320, "T4 data sheet"),
    "p100": _gpu("P100", 21.2, None, 10.6, 16, 732, "P100 data sheet, SXM2"),
    # desktop
    "rtx-5090": _gpu("RTX 5090", 209.5, 104.8, 104.8, 32, 1792, "RTX Blackwell white paper"),
    "rtx-4090": _gpu("RTX 4090", 165.2, 82.6, 82.6, 24, 1008, "Ada white paper"),
    "rtx-3090": _gpu("RTX 3090", 71, 35.6, 35.6, 24, 936, "Ampere GA102 white paper"),
    "rtx-3090-ti": _gpu("RTX 3090 Ti", 80, 40, 40, 24, 1008, "Ampere GA102 white paper"),
    "rtx-3080": _gpu("RTX 3080", 59.5, 29.8, 29.8, 10, 760, "Ampere GA102 white paper"),
    "rtx-2080-ti": _gpu("RTX 2080 Ti", 53.8, None, 13.4, 11, 616, "Turing white paper"),
    "rtx-a6000": _gpu("RTX A6000", 154.8, 77.4, 38.7, 48, 768, "Ampere GA102 white paper"),
    "rtx-6000-ada": _gpu("RTX 6000 Ada", 364.2, 182.1, 91.1, 48, 960, "Ada white paper, professional"),
}


def find_hardware(device_name: str) -> Hardware | None:
    """The GPU that `torch.cuda.get_device_name()` names, or None.

    The longest fitting words win (`NVIDIA H100 PCIe` is not the SXM model). A laptop's chip, a slice of a GPU (MIG)
    and a variant that is not in the table (`RTX 4090 D`, `RTX 3080 Ti`) are other hardware than their namesake.
    """
    if re.search(r"\b(Laptop|Max-Q|MIG|Mobile|SUPER|Ti SUPER|D)\b", device_name):
        return None
    fitting = [h for h in HARDWARE.values() if re.search(rf"\b{re.escape(h.name_contains)}\b", device_name)]
    best = max(fitting, key=lambda h: len(h.name_contains), default=None)
    other_chip = best and device_name.endswith(" Ti") and not best.name_contains.endswith(" Ti")
    return None if other_chip else best


def peak_flops(device: torch.device, precision: str) -> tuple[float, str]:
    """FLOP/s of this device at best in `bf16`, `fp16`, `tf32` or `fp32`, and where the number is from.

    A known GPU's is its data sheet's; another device's is measured, in less than a second, in every process at once
    (so that each knows its share of the cores).
    """
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        known = find_hardware(name)
        if known and (peak := known.peak(precision)):
            return peak, f"{name}, {precision}, {peak / 1e12:g} TFLOP/s ({known.source})"
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)
    rough = matmul_rate(device, dtype, size=256, repeats=3)
    size = next((n for n in (2048, 1024, 512) if 8 * 2 * n**3 / rough < 0.8), 256)  # 3 products to warm up, and 5
    peak = matmul_rate(device, dtype, size=size, repeats=5)
    return peak, f"{precision}, {peak / 1e12:.3g} TFLOP/s (measured, {size}³ matrix product)"


def matmul_rate(device: torch.device, dtype: torch.dtype, size: int = 4096, repeats: int = 20) -> float:
    """FLOP/s of a square matrix product: the peak against which MFU is named. The median of `repeats`."""
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    seconds = []
    for _ in range(repeats + 3):
        synchronize(device)
        started = time.perf_counter()
        a @ b
        synchronize(device)
        seconds.append(time.perf_counter() - started)
    return 2 * size**3 / statistics.median(seconds[3:])
