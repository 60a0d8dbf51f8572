"""Images to latents and latents to images, batch by batch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from latentae.latents.measurement import noise_generators
from latentae.models import KLVAE, VQVAE
from latentae.models.tiny import TinyAutoencoder

Autoencoder = KLVAE | VQVAE | TinyAutoencoder


@torch.no_grad()
def encoded_latents(
    model: Autoencoder, batches: Iterable[Any], *, seed: int = 0, sample: bool = True
) -> Iterator[Tensor]:
    """Raw latents [B, c, h, w] of each batch, as ``encode`` gives them and ``decode`` takes them.

    Args:
        model: in eval mode.
        batches: with ``images`` [B, C, H, W] in [−1, 1] and ``indices`` [B].
        seed: of the posterior's noise, which is a function of (seed, index of the image).
        sample: samples of the posterior, which is what denoisers learn from; False: its mode. VQ models have
            one value there, the continuous one before quantization.

    Raises:
        ValueError: latents that are not finite.
    """
    for batch in batches:
        posterior = model.encode(batch["images"].to(model.device, model.dtype)).latent_dist
        generators: Any = noise_generators(seed, batch["indices"])
        latents = posterior.sample(generators) if sample else posterior.mode()
        if not bool(latents.isfinite().all()):
            raise ValueError(
                f"latents of {model.dtype} are not finite: the model's weights are broken, or too large for "
                "this dtype; use float32"
            )
        yield latents


@torch.no_grad()
def decoded(
    model: Autoencoder,
    latents: Tensor,
    *,
    size: tuple[int, int] | None = None,
    batch_size: int = 16,
    scaled: bool = False,
) -> Tensor:
    """Decodes latents [B, c, h, w] to images [B, C, H, W] in float32 on the CPU; VQ models quantize first.

    Args:
        size: (H, W) to crop the images to.
        batch_size: latents at a time.
        scaled: the latents are a denoiser's, as ``to_latents`` gives them, and not raw.

    Raises:
        ValueError: the decoder gives values that are not finite.
    """
    parts = latents.to(model.device, model.dtype).split(batch_size)
    if scaled:
        images = torch.cat([model.from_latents(part, size=size).float().cpu() for part in parts])
    else:
        images = torch.cat([model.decode(part, size=size).sample.float().cpu() for part in parts])
    check_pixels(images, model)
    return images


def check_pixels(images: Tensor, model: Autoencoder) -> None:
    """Raises ValueError for decoded images that hold NaN or infinite values."""
    finite = images.isfinite()
    if not bool(finite.all()):
        raise ValueError(
            f"{int((~finite).sum())} of {images.numel()} values that the decoder gives are not finite in "
            f"{model.dtype}: its weights are damaged, its training diverged, or they overflow in this dtype"
        )


def normal_noise(count: int, shape: tuple[int, ...], seed: int) -> Tensor:
    """[count, *shape] standard normal values in float64; row i is a function of (seed, i)."""
    generators = noise_generators(seed, torch.arange(count))
    rows = [torch.randn(shape, generator=generator, dtype=torch.float64) for generator in generators]
    return torch.stack(rows) if rows else torch.zeros(0, *shape, dtype=torch.float64)


def as_batches(maps: Tensor | Iterable[Tensor]) -> Iterable[Tensor]:
    """Batches of maps [B, c, h, w]; one tensor is one batch."""
    return [maps] if isinstance(maps, Tensor) else maps


def constant_channels(mean: Tensor, std: Tensor) -> list[int]:
    """The channels whose standard deviation is nothing but rounding: of their mean, or of other channels."""
    return (std <= 1e-6 * torch.maximum(mean.abs(), std.max())).nonzero().flatten().tolist()
