"""One pass over images: encodes them, and gathers everything that the figures need."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from latentae.latents.inspection.channels import ChannelHistograms, LatentGaussian, gather_channels
from latentae.latents.inspection.codes import count_codes
from latentae.latents.inspection.decoding import Autoencoder
from latentae.latents.inspection.spectrum import (
    SMALLEST_SIDE,
    MapPower,
    RadialSpectrum,
    average_power,
    map_power,
)
from latentae.latents.measurement import noise_generators
from latentae.models import VQVAE

KEPT = 4
"""The number of images that are kept, to interpolate between and to traverse from."""

_SPECTRA = ("images", "images, averaged down", "latents")


@torch.no_grad()
def encoded_latents(
    model: Autoencoder, batches: Iterable[Any], *, seed: int = 0, sample: bool = True
) -> Iterator[Tensor]:
    """Yields the raw latents [B, c, h, w] of each batch, as ``encode`` gives them and ``decode`` takes them.

    Args:
        model: in eval mode.
        batches: with ``images`` [B, C, H, W] in [−1, 1] and ``indices`` [B].
        seed: of the posterior's noise, which is a function of (seed, index of the image).
        sample: True: samples of the posterior, which denoisers learn from; False: its mode. VQ models have
            one value for both, the continuous latent before quantization.

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


@dataclass(frozen=True, eq=False)
class Measured:
    """Statistics of the latents of some images.

    Attributes:
        images: the number of images.
        gaussian, histograms: of the raw latents.
        spectra: of the images, of the images averaged down to the latents' size, and of the latents, by name;
            empty where the latents are too small for a spectrum.
        counts: how often each code occurred, of VQ models.
        kept: [n, C, H, W] the first images, n ≤ 4.
    """

    images: int
    gaussian: LatentGaussian
    histograms: ChannelHistograms
    spectra: dict[str, RadialSpectrum]
    counts: Tensor | None
    kept: Tensor


@torch.no_grad()
def measure(model: Autoencoder, batches: Iterable[Any], *, seed: int = 0) -> Measured:
    """Encodes each image once, to samples of the posterior, and measures these in float64.

    All latents are kept in memory. The size of the batches changes the result by rounding only.

    Args:
        model: in eval mode.
        batches: with ``images`` [B, C, H, W] in [−1, 1], all of one size, and ``indices`` [B].
        seed: of the posterior's noise.

    Raises:
        ValueError: no images, images of several sizes, or latents that are not finite or need more than 2 GB.
    """
    gathered: list[Tensor] = []
    kept: list[Tensor] = []
    powers: dict[str, list[MapPower]] = {name: [] for name in _SPECTRA}
    for batch in batches:
        images = batch["images"]
        (latents,) = encoded_latents(model, [batch], seed=seed)
        gathered.append(latents.cpu())
        kept += list(images[: KEPT - len(kept)])
        # The power spectra, image by image: images themselves are not kept
        if min(latents.shape[2:]) >= SMALLEST_SIDE:
            height, width = latents.shape[2:]
            small = F.adaptive_avg_pool2d(images.double(), (height, width))
            for own, maps in zip(powers.values(), (images, small, latents), strict=True):
                own.append(map_power(maps))
    values, count = gather_channels(gathered)
    return Measured(
        images=count,
        gaussian=LatentGaussian.of(values, count),
        histograms=ChannelHistograms.of(values),
        spectra={name: average_power(parts) for name, parts in powers.items() if parts},
        counts=count_codes(model, gathered) if isinstance(model, VQVAE) else None,
        kept=torch.stack(kept),
    )
