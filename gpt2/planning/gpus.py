"""The peak speeds of known GPUs, as data: MFU is relative to them, and runs are planned with them.

Built in notebook 17.
"""

import re
import statistics
import time
from dataclasses import dataclass

import torch

from gpt2.system.devices import synchronize


@dataclass(frozen=True)
class Hardware:
    """One GPU, in the units of NVIDIA's data sheets: TFLOP/s, GiB, and GB/s of its memory.

    Rates are those of dense products summed in fp32. Data sheets also print the rate with sparsity, which is double.
    """

    name_contains: str
    """Words of `torch.cuda.get_device_name()` that identify it."""
    half: float
    """Both 16-bit formats."""
    tf32: float | None
    """None on GPUs older than Ampere, which have no bf16 either."""
    fp32: float
    memory_gib: float
    bandwidth: float
    source: str

    def peak(self, precision: str) -> float | None:
        """FLOP/s in `bf16`, `fp16`, `tf32` or `fp32`; None if the GPU does not have this precision."""
        bf16 = self.half if self.tf32 else None
        rate = {"bf16": bf16, "fp16": self.half, "tf32": self.tf32, "fp32": self.fp32}[precision]
        return rate and rate * 1e12


HARDWARE: dict[str, Hardware] = {
    # data centre: words, half, tf32, fp32, GiB, GB/s
    "b200": Hardware("B200", 2250, 1100, 75, 180, 7700, "HGX B200 data sheet"),
    "gb200": Hardware("GB200", 2500, 1250, 80, 186, 8000, "GB200 NVL72 data sheet"),
    "h200": Hardware("H200", 989, 494, 67, 141, 4800, "H200 data sheet, SXM"),
    "h200-nvl": Hardware("H200 NVL", 835, 418, 60, 141, 4800, "H200 data sheet, NVL"),
    "gh200": Hardware("GH200", 989, 494, 67, 96, 4000, "GH200 data sheet"),
    "h100": Hardware("H100", 989, 494, 67, 80, 3350, "H100 data sheet, SXM"),
    "h100-pcie": Hardware("H100 PCIe", 756, 378, 51, 80, 2000, "H100 data sheet, PCIe"),
    "h100-nvl": Hardware("H100 NVL", 835, 418, 60, 94, 3900, "H100 data sheet, NVL"),
    "a100": Hardware("A100", 312, 156, 19.5, 80, 2039, "A100 data sheet, 80GB SXM"),
    "a100-40gb": Hardware("A100-SXM4-40GB", 312, 156, 19.5, 40, 1555, "A100 data sheet, 40GB SXM"),
    "a40": Hardware("A40", 149.7, 74.8, 37.4, 48, 696, "A40 data sheet"),
    "a30": Hardware("A30", 165, 82, 10.3, 24, 933, "A30 data sheet"),
    "a10": Hardware("A10", 125, 62.5, 31.2, 24, 600, "A10 data sheet"),
    "a10g": Hardware("A10G", 70, 35, 35, 24, 600, "A10G data sheet"),
    "l40s": Hardware("L40S", 362, 183, 91.6, 48, 864, "L40S data sheet"),
    "l4": Hardware("L4", 121, 60, 30.3, 24, 300, "L4 data sheet"),
    "v100": Hardware("V100", 125, None, 15.7, 16, 900, "V100 data sheet, SXM2"),
    "t4": Hardware("T4", 65, None, 8.1, 16, 320, "T4 data sheet"),
    "p100": Hardware("P100", 21.2, None, 10.6, 16, 732, "P100 data sheet, SXM2"),
    # desktop
    "rtx-5090": Hardware("RTX 5090", 209.5, 104.8, 104.8, 32, 1792, "RTX Blackwell white paper"),
    "rtx-4090": Hardware("RTX 4090", 165.2, 82.6, 82.6, 24, 1008, "Ada white paper"),
    "rtx-3090": Hardware("RTX 3090", 71, 35.6, 35.6, 24, 936, "Ampere GA102 white paper"),
    "rtx-3090-ti": Hardware("RTX 3090 Ti", 80, 40, 40, 24, 1008, "Ampere GA102 white paper"),
    "rtx-3080": Hardware("RTX 3080", 59.5, 29.8, 29.8, 10, 760, "Ampere GA102 white paper"),
    "rtx-2080-ti": Hardware("RTX 2080 Ti", 53.8, None, 13.4, 11, 616, "Turing white paper"),
    "rtx-a6000": Hardware("RTX A6000", 154.8, 77.4, 38.7, 48, 768, "Ampere GA102 white paper"),
    "rtx-6000-ada": Hardware("RTX 6000 Ada", 364.2, 182.1, 91.1, 48, 960, "Ada white paper, professional"),
}


def find_hardware(device_name: str) -> Hardware | None:
    """The GPU that `torch.cuda.get_device_name()` names, or None if the table does not have it.

    The longest match wins: `NVIDIA H100 PCIe` is not the SXM model. A laptop's chip, a slice of a GPU (MIG) and a
    variant that is not in the table (`RTX 4090 D`, `RTX 3080 Ti`) match no row.
    """
    if re.search(r"\b(Laptop|Max-Q|MIG|Mobile|SUPER|D)\b", device_name):
        return None
    matches = [h for h in HARDWARE.values() if re.search(rf"\b{re.escape(h.name_contains)}\b(?! Ti)", device_name)]
    return max(matches, key=lambda h: len(h.name_contains), default=None)


def peak_flops(device: torch.device, precision: str) -> tuple[float, str]:
    """The peak FLOP/s of a device in `bf16`, `fp16`, `tf32` or `fp32`, and the source of this number.

    For a known GPU this is the data sheet. Any other device is measured, in less than a second, by every process at
    the same time, so that each measures its share of the cores.
    """
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        known = find_hardware(name)
        if known and (peak := known.peak(precision)):
            return peak, f"{name}, {precision}, {peak / 1e12:g} TFLOP/s (NVIDIA, {known.source})"
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)
    rough = matmul_rate(device, dtype, size=256, repeats=3)
    size = next((n for n in (2048, 1024, 512) if 8 * 2 * n**3 / rough < 0.8), 256)  # 3 products to warm up, and 5
    peak = matmul_rate(device, dtype, size=size, repeats=5)
    return peak, f"{precision}, {peak / 1e12:.3g} TFLOP/s (measured, {size}³ matrix product)"


def matmul_rate(device: torch.device, dtype: torch.dtype, size: int = 4096, repeats: int = 20) -> float:
    """FLOP/s of a square matrix product: the median of `repeats`, after three that do not count."""
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    seconds = []
    for _ in range(repeats + 3):
        synchronize(device)
        started = time.perf_counter()
        a @ b
        synchronize(device)
        seconds.append(time.perf_counter() - started)
    return 2 * size**3 / statistics.median(seconds[3:])
