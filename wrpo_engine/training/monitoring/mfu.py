"""Model FLOPs utilisation (MFU): a step's required operations over the devices' peak in the same time."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

_TERA = 1e12


@dataclass(frozen=True, slots=True)
class DevicePeak:
    """Dense peak of one device in operations per second by its data sheet, without sparsity."""

    pattern: str
    """Regular expression for `torch.cuda.get_device_name()`, case-insensitive; the first match is used."""
    bfloat16: float
    float32: float
    """Without TF32, which PyTorch leaves off for matrix products."""


KNOWN_DEVICES: Sequence[DevicePeak] = (
    DevicePeak(r"GB200", 2500 * _TERA, 80 * _TERA),
    DevicePeak(r"B200", 2250 * _TERA, 75 * _TERA),
    DevicePeak(r"H200 NVL", 835.5 * _TERA, 60 * _TERA),
    DevicePeak(r"GH200|H200", 989.4 * _TERA, 66.9 * _TERA),
    DevicePeak(r"H100 NVL", 835.5 * _TERA, 60 * _TERA),
    DevicePeak(r"H[18]00 PCIe", 756.4 * _TERA, 51.2 * _TERA),
    DevicePeak(r"H[18]00", 989.4 * _TERA, 66.9 * _TERA),
    DevicePeak(r"H20\b", 148 * _TERA, 44 * _TERA),
    DevicePeak(r"A[18]00", 312 * _TERA, 19.5 * _TERA),
    DevicePeak(r"A30\b", 165 * _TERA, 10.3 * _TERA),
    DevicePeak(r"A40\b", 149.7 * _TERA, 37.4 * _TERA),
    DevicePeak(r"A10G", 70 * _TERA, 31.5 * _TERA),
    DevicePeak(r"A10\b", 125 * _TERA, 31.2 * _TERA),
    DevicePeak(r"L40S", 362 * _TERA, 91.6 * _TERA),
    DevicePeak(r"L40\b", 181 * _TERA, 90.5 * _TERA),
    DevicePeak(r"L4\b", 121 * _TERA, 30.3 * _TERA),
    DevicePeak(r"RTX 6000 Ada", 364.2 * _TERA, 91.1 * _TERA),
    DevicePeak(r"RTX A6000", 154.8 * _TERA, 38.7 * _TERA),
    DevicePeak(r"RTX 5090", 209.5 * _TERA, 104.8 * _TERA),
    DevicePeak(r"RTX 4090", 165.2 * _TERA, 82.6 * _TERA),
    DevicePeak(r"RTX 3090", 71 * _TERA, 35.6 * _TERA),
    DevicePeak(r"MI300X", 1307.4 * _TERA, 163.4 * _TERA),
)


def peak_flops(configured: float | None, device_name: str | None, precision: str) -> float | None:
    """Return the operations per second of one device, or None if unknown: a CPU, or a GPU not in the table.

    `configured` (runtime.peak_flops) overrides the table. `precision` is bfloat16 or float32.
    """
    if configured is not None:
        return configured
    if device_name is None:
        return None
    for device in KNOWN_DEVICES:
        if re.search(device.pattern, device_name, re.IGNORECASE):
            return device.bfloat16 if precision == "bfloat16" else device.float32
    return None


def utilisation(operations: float, seconds: float, *, devices: int, peak: float) -> float:
    """Return the fraction of the operations that `devices` with this `peak` (operations/s) could do in `seconds`."""
    return operations / (seconds * devices * peak)
