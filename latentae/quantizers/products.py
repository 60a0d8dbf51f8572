"""Matrix products that codes are chosen by: as precise as float32 is, whatever torch may round products to.

torch can be allowed to multiply float32 matrices in TensorFloat-32 (10 bits of mantissa) or bfloat16 (7), and
autocast does so in half precision. Weights learn well with that. But a code chosen by such a product is often
another one, so that the codes of an image would depend on the machine and its settings.
"""

from __future__ import annotations

import os

import torch
from torch import Tensor


def precise_product(left: Tensor, right: Tensor) -> Tensor:
    """``left @ right``, with an error no larger than that of float32 products, and with its gradient.

    In float64 where torch may round products of float32. A traced or compiled graph holds the plain product:
    there the settings of whoever runs it count.

    Args:
        left: [N, d] float32 or float64.
        right: [d, K] likewise.

    Returns:
        [N, K] of the dtype of ``left``.
    """
    with torch.autocast(left.device.type, enabled=False):
        if torch.compiler.is_compiling() or not products_are_reduced(left.device):
            return left @ right
        return (left.double() @ right.double()).to(left.dtype)


def products_are_reduced(device: torch.device) -> bool:
    """Whether torch may multiply float32 matrices in bfloat16 or TensorFloat-32, as a user can allow."""
    if device.type == "mps":  # always in float32; there is no float64 either
        return False
    if device.type == "cuda" and os.environ.get("NVIDIA_TF32_OVERRIDE") == "1":  # wins over torch's settings
        return True
    backend = torch.backends.cuda if device.type == "cuda" else torch.backends.mkldnn
    matmul = getattr(backend, "matmul", None)
    precision = getattr(matmul, "fp32_precision", None)  # since torch 2.9, which warns of the older one
    return (precision or torch.get_float32_matmul_precision()) not in ("none", "ieee", "highest")
