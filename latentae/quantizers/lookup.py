"""Nearest code of a codebook, without holding all distances at once."""

from __future__ import annotations

import functools
import importlib.util
import warnings
from collections.abc import Callable

import torch
from torch import Tensor
from torch._decomp import register_decomposition

from latentae.devices import has_float64
from latentae.quantizers.lookup_chunked import nearest_code_chunked
from latentae.tracing import is_traced

Lookup = Callable[[Tensor, Tensor], Tensor]


def nearest_code(latents: Tensor, codebook: Tensor) -> Tensor:
    """Index of the code with the smallest Euclidean distance to each latent.

    Right for every row: scores are taken in float32, whatever autocast and the matmul precision allow, with
    a bound on their rounding, and rows whose best two lie within it are decided in float64. Besides the
    result this takes memory in proportion to N + K, never N × K. On CUDA it runs as a fused kernel where
    Triton works. Indices carry no gradient; under ``torch.compile`` the look-up is one opaque operation. In
    an export to ONNX it is ``nearest_code_plain``, which all runtimes can run.

    Args:
        latents: [N, d], any floating dtype. A row that holds NaN or infinity gets code 0; to look for such
            rows would make the host wait for the device, so it is left to the caller.
        codebook: [K, d], any floating dtype. A code that holds NaN or infinity is never the nearest.

    Returns:
        [N] int64, each in [0, K); among equally near codes the one with the lowest index.

    Raises:
        ValueError: shapes or devices that do not fit each other, no code, or a dtype that is not floating.
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
    """``nearest_code`` in a few operations that every runtime has, for exported models.

    It holds N × K scores, x̃·c̃ − ½ ‖c̃‖² with the mean of the codes taken from both, in float32 or float64.
    So it can choose the other one of two codes whose distances differ by less than rounding does.
    """
    dtype = torch.promote_types(torch.promote_types(latents.dtype, codebook.dtype), torch.float32)
    codes = codebook.to(dtype)
    center = codes.mean(dim=0)
    codes = codes - center
    scores = (latents.to(dtype) - center) @ codes.T - codes.square().sum(dim=1) / 2
    return scores.argmax(dim=1)


# Not `custom_op`, whose first call imports the compiler, seconds of it.
torch.library.define("latentae::nearest_code", "(Tensor latents, Tensor codebook) -> Tensor")


def _nearest_code(latents: Tensor, codebook: Tensor) -> Tensor:
    count, device = len(latents), latents.device
    if count == 0 or len(codebook) == 1 or latents.shape[1] == 0:
        return torch.zeros(count, dtype=torch.int64, device=device)
    dtype = torch.promote_types(latents.dtype, codebook.dtype)
    latents, codebook = latents.to(dtype), codebook.to(dtype)
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        if not has_float64(device):
            return nearest_code_chunked(latents.cpu(), codebook.cpu()).to(device)
        fused = _fused_lookup() if device.type == "cuda" else None
        return (fused or nearest_code_chunked)(latents, codebook)


torch.library.impl("latentae::nearest_code", "default", _nearest_code)


@torch.library.register_fake("latentae::nearest_code")
def _(latents: Tensor, codebook: Tensor) -> Tensor:
    return latents.new_empty(latents.shape[0], dtype=torch.int64)


# What torch's ONNX exporter puts in the operator's place, also of a program that `torch.export` made.
register_decomposition(torch.ops.latentae.nearest_code.default)(nearest_code_plain)


@functools.cache
def _fused_lookup() -> Lookup | None:
    """The look-up in Triton, or None, with a warning, where its kernels cannot be built."""
    if importlib.util.find_spec("triton") is None:  # as on Windows
        return None
    from latentae.quantizers.lookup_triton import nearest_code_triton

    try:
        nearest_code_triton(torch.zeros(1, 1, device="cuda"), torch.zeros(2, 1, device="cuda"))
    except Exception as error:  # what Triton raises without a compiler, say, differs from release to release
        warnings.warn(
            f"nearest_code runs without its fused kernel, which Triton cannot build: {error}", stacklevel=2
        )
        return None
    return nearest_code_triton
