"""The nearest code of a codebook, without holding all distances at once, and products as precise as float32.

The nearest code c to a latent x has the largest score (x − μ)·(c − μ) − ½ ‖c − μ‖², where μ is the mean of
the codes. The score differs from −½ ‖x − c‖² by the same amount for all codes. Subtracting μ keeps the
numbers small wherever the data lie, so float32 loses little of them.

torch can be allowed to multiply float32 matrices in TensorFloat-32 (10 bits of mantissa) or bfloat16 (7), and
autocast does so in half precision. Weights learn well with that, but a code chosen by such a product is often
another one: the codes of an image would depend on the machine and its settings. So the products here are
computed in float64 then.
"""

from __future__ import annotations

import os

import numpy as np
import torch
from torch import Tensor
from torch._decomp import register_decomposition

from latentae.devices import is_traced

# Scores held at a time, for each thread: 2^18 float32 values are 1 MiB, half of a usual second-level cache.
_TILE_ELEMENTS = 1 << 18
# An accelerator is slow to start an operation and has no such cache: its tiles are this many times larger.
_ACCELERATOR_TILES = 64
# Fewer latents than this would read the codebook too often.
_LEAST_ROWS = 32


def nearest_code(latents: Tensor, codebook: Tensor) -> Tensor:
    """Returns the index of the code with the smallest Euclidean distance to each latent.

    Scores are computed in float32, or in float64 for float64 inputs and where torch may round products.
    Either of two codes may be returned if their distances differ by less than rounding. Memory grows with N +
    K, never with N × K, and the host never waits for the device. Indices carry no gradient. ``torch.compile``
    sees one opaque operation. An export to ONNX contains ``nearest_code_plain``, which all runtimes can run.

    Args:
        latents: [N, d], any floating dtype. A row with NaN or infinity gets code 0. To report such rows, the
            host would have to wait for the device, so the caller checks for them.
        codebook: [K, d], any floating dtype. A code with NaN or infinity is never the nearest.

    Returns:
        [N] int64, each in [0, K); among codes with equal scores the one with the lowest index.

    Raises:
        ValueError: shapes or devices do not match, the codebook is empty, or a dtype is not floating.
    """
    if latents.ndim != 2 or codebook.ndim != 2 or latents.shape[1] != codebook.shape[1]:
        raise ValueError(
            f"nearest_code compares latents [N, d] with a codebook [K, d]; got {list(latents.shape)} and "
            f"{list(codebook.shape)}"
        )
    if codebook.shape[0] == 0:
        raise ValueError("the codebook holds no codes, so there is no nearest one; give it at least one row")
    for name, values in {"latents are": latents, "codebook is": codebook}.items():
        if not values.is_floating_point():
            raise ValueError(
                f"{name} {values.dtype}, but distances need a floating dtype; convert with .float()"
            )
    if latents.device != codebook.device:
        raise ValueError(
            f"latents are on {latents.device} and the codebook is on {codebook.device}; move one to the other"
        )
    # Of torch's two exporters to ONNX the tracing one knows no decompositions.
    if is_traced() and torch.onnx.is_in_onnx_export():
        return nearest_code_plain(latents, codebook)
    return torch.ops.latentae.nearest_code(latents.detach(), codebook.detach())


def nearest_code_plain(latents: Tensor, codebook: Tensor) -> Tensor:
    """``nearest_code`` for exported models, in operations that every runtime has. It holds N × K scores."""
    dtype = _float32_or_wider(latents, codebook)
    codes = codebook.to(dtype)
    center = codes.mean(dim=0)
    codes = codes - center
    scores = (latents.to(dtype) - center) @ codes.T - codes.square().sum(dim=1) / 2
    return scores.argmax(dim=1)


# Not `custom_op`, whose first call imports the compiler, seconds of it.
torch.library.define("latentae::nearest_code", "(Tensor latents, Tensor codebook) -> Tensor")


def _nearest_code(latents: Tensor, codebook: Tensor) -> Tensor:
    device = latents.device
    dtype = torch.float64 if products_are_reduced(device) else _float32_or_wider(latents, codebook)
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        # Subtract the mean of the codes. Codes that are not finite do not count in it, and score −∞.
        codes = codebook.to(dtype)
        finite = codes.isfinite().all(dim=1)
        codes = torch.where(finite[:, None], codes, 0.0)
        center = codes.sum(dim=0) / finite.sum().clamp(min=1)
        codes = codes - center
        bias = torch.where(finite, codes.square().sum(dim=1) / -2, -torch.inf)
        columns = codes.T.contiguous()
        # Score as many latents at a time as fill a tile.
        elements = _TILE_ELEMENTS * (torch.get_num_threads() if device.type == "cpu" else _ACCELERATOR_TILES)
        nearest = torch.zeros(len(latents), dtype=torch.int64, device=device)
        rows = max(_LEAST_ROWS, elements // len(codebook))
        for part, chosen in zip(latents.split(rows), nearest.split(rows), strict=True):
            chosen.copy_(_best_code(torch.addmm(bias, part.to(dtype) - center, columns)))
        return nearest.masked_fill_(~latents.isfinite().all(dim=1), 0)


def _best_code(scores: Tensor) -> Tensor:
    """Returns the index [n] of the highest score in each row [n, K], the lowest of several."""
    if scores.device.type != "cpu":
        return scores.argmax(dim=1)
    return torch.from_numpy(np.argmax(scores.numpy(), axis=1))  # vectorised: 20 times as fast as torch's


torch.library.impl("latentae::nearest_code", "default", _nearest_code)


@torch.library.register_fake("latentae::nearest_code")
def _(latents: Tensor, codebook: Tensor) -> Tensor:
    return latents.new_empty(latents.shape[0], dtype=torch.int64)


# What torch's ONNX exporter puts in the operator's place, also of a program that `torch.export` made.
register_decomposition(torch.ops.latentae.nearest_code.default)(nearest_code_plain)


def precise_product(left: Tensor, right: Tensor) -> Tensor:
    """Returns ``left @ right`` with an error no larger than that of float32 products, and with its gradient.

    It computes in float64 where torch may round products of float32. A traced or compiled graph contains the
    plain product, which follows the settings of the process that runs it.

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


def _float32_or_wider(latents: Tensor, codebook: Tensor) -> torch.dtype:
    return torch.promote_types(torch.promote_types(latents.dtype, codebook.dtype), torch.float32)
