"""Measures how far a model in another precision is from float64."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from latentae.devices import has_float64

CHUNK = 4
"""Images that are computed at a time."""


@dataclass(frozen=True)
class Precision:
    """The distance of a model in some dtype from float64, on the same images and the same latents.

    Attributes:
        latents: largest difference of the raw latents (the posterior's mean; of VQ models before
            quantization); inf where values are not finite.
        images: the same of the images decoded from float64's latents (of VQ models, from the same codes).
        not_finite: share of all these values, in [0, 1], that are NaN or infinite.
    """

    latents: float
    images: float
    not_finite: float

    def __str__(self) -> str:
        if self.not_finite:
            return f"{self.not_finite:.1%} of the values are not finite"
        return f"latents differ from float64's by {self.latents:.1e} at most, images by {self.images:.1e}"


@dataclass(frozen=True)
class Reference:
    """A model's results in float64, to compare other precisions with.

    Attributes:
        images: [B, C, H, W] that were encoded, in float32.
        latents: what the encoder makes of them, a part for every few images.
        decoded: what the decoder reads: the latents, or codes, in float32.
        pixels: what the decoder makes of these.
    """

    images: Tensor
    latents: tuple[Tensor, ...]
    decoded: tuple[Tensor, ...]
    pixels: tuple[Tensor, ...]

    @classmethod
    @torch.no_grad()
    def of(cls, model: Any, images: Tensor) -> Reference:
        """Encodes and decodes images [B, C, H, W] in [−1, 1], on the CPU where the device lacks float64."""
        device = model.device if has_float64(model.device) else torch.device("cpu")
        quantizing = convert(model, torch.float32).to(device)
        exact = convert(quantizing, torch.float64)
        latents, decoded, pixels = [], [], []
        for part in images.to(device).split(CHUNK):
            latents.append(encode(exact, part.double()))
            # Rounded here, so that all precisions decode the same.
            decoded.append(decoder_input(quantizing, latents[-1].float()))
            pixels.append(exact._decode_whole(decoded[-1].double()))
        return cls(images, tuple(latents), tuple(decoded), tuple(pixels))

    @torch.no_grad()
    def compare(self, model: Any, dtype: torch.dtype) -> Precision:
        """Runs a copy of a model in ``dtype`` on the same images and latents."""
        twin = convert(model, dtype)
        latents, pixels = [], []
        for images, encoded, decoded, decoded_to in zip(
            self.images.split(CHUNK), self.latents, self.decoded, self.pixels, strict=True
        ):
            found = encode(twin, images.to(twin.device, dtype))
            latents.append((found.to(encoded) - encoded).flatten())
            found = twin._decode_whole(decoded.to(twin.device, dtype))
            pixels.append((found.to(decoded_to) - decoded_to).flatten())
        differences = (torch.cat(latents), torch.cat(pixels))
        finite = torch.cat(differences).isfinite()
        return Precision(
            latents=_largest(differences[0]),
            images=_largest(differences[1]),
            not_finite=1 - finite.double().mean().item(),
        )


def convert(model: nn.Module, dtype: torch.dtype) -> Any:
    """Returns a copy in eval mode that computes in ``dtype``, for ``encode`` and ``_decode_whole``."""
    twin: Any = copy.deepcopy(model).eval()
    nn.Module.to(twin, dtype)  # ModelMixin's own warns of modules to keep in float32; there are none
    if dtype == torch.float16 and twin.device.type == "cpu":
        _multiply_in_float32(twin)
    return twin


def encode(model: Any, images: Tensor) -> Tensor:
    """Returns raw latents [B, c, h, w]: the posterior's mean, or what a VQ model quantizes."""
    latents: Tensor = model._encode_whole(model._pad(images))
    return latents[:, : model.latents_channels]


def decoder_input(model: Any, latents: Tensor) -> Tensor:
    """Returns what the decoder reads: the latents, or of a VQ model their codes."""
    if not hasattr(model, "quantize"):
        return latents
    codes: Tensor = model.quantize(latents).quantized
    return codes


def _multiply_in_float32(model: nn.Module) -> None:
    """Lets a float16 model's convolutions and linear layers add up in float32 and round their output.

    That is what GPUs do. CPUs without float16 arithmetic need a hundred times as long for their own way.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.float()
            module.register_forward_pre_hook(lambda module, inputs: tuple(part.float() for part in inputs))
            module.register_forward_hook(lambda module, inputs, output: output.half())


def _largest(differences: Tensor) -> float:
    """Returns the largest magnitude; inf if values are not finite."""
    return differences.abs().amax().item() if bool(differences.isfinite().all()) else math.inf
