"""Matrix products of low-precision operands whose result has the dtype of the accumulators, where the device has them.

A product of bf16 matrices is accumulated in fp32 and then rounded to bf16, unless the kernel is asked for fp32
(`out_dtype`). CUDA has such kernels. Elsewhere the rounded product is cast.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

_SIZE = 16
"""Of the trial's matrices."""


def product(left_XY: Tensor, right_YZ: Tensor, out_XZ: Tensor) -> Tensor:
    """Write left @ right to `out_XZ`, in its dtype, and return it."""
    if left_XY.dtype == out_XZ.dtype:
        torch.mm(left_XY, right_YZ, out=out_XZ)
    elif keeps_accumulators(left_XY.device, left_XY.dtype, out_XZ.dtype):
        torch.ops.aten.mm.dtype_out(left_XY, right_YZ, out_XZ.dtype, out=out_XZ)
    else:
        out_XZ.copy_(left_XY @ right_YZ)
    return out_XZ


def add_product(total_XZ: Tensor, left_XY: Tensor, right_YZ: Tensor) -> Tensor:
    """Add left @ right to `total_XZ`, in its dtype, and return it."""
    if left_XY.dtype == total_XZ.dtype:
        total_XZ.addmm_(left_XY, right_YZ)
    elif keeps_accumulators(left_XY.device, left_XY.dtype, total_XZ.dtype):
        torch.ops.aten.addmm.dtype_out(total_XZ, left_XY, right_YZ, total_XZ.dtype, out=total_XZ)
    else:
        total_XZ += left_XY @ right_YZ
    return total_XZ


@cache
def keeps_accumulators(device: torch.device, low: torch.dtype, wide: torch.dtype) -> bool:
    """Return whether the device multiplies and adds `low` matrices with `wide` results; tried once per process.

    Versions of PyTorch differ in what they accept, so both operations run once on small matrices.
    """
    left, right = (
        torch.linspace(start, start + 1, _SIZE**2, dtype=torch.float64).view(_SIZE, _SIZE).to(device, low)
        for start in (0.25, -0.5)
    )
    exact = left.to(wide) @ right.to(wide)
    total = torch.ones_like(exact)
    try:
        made = torch.ops.aten.mm.dtype_out(left, right, wide, out=torch.empty_like(exact))
        torch.ops.aten.addmm.dtype_out(total, left, right, wide, out=total)
    except (NotImplementedError, RuntimeError):
        return False
    # TF32 rounds the operands of the comparison to 11 bits, a rounded result would have 8.
    return all(
        torch.allclose(ours, theirs, rtol=2**-10, atol=2**-8) for ours, theirs in ((made, exact), (total, exact + 1))
    )
