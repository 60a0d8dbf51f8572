"""One pass over images: everything that is gathered of their latents."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from latentae.latents.inspection.channels import GaussianFit, LatentGaussian
from latentae.latents.inspection.codes import count_codes
from latentae.latents.inspection.encoding import Autoencoder, encoded_latents
from latentae.latents.inspection.histograms import ChannelHistograms, HistogramCounter
from latentae.latents.inspection.spectrum import RadialSpectrum, SpectrumSum
from latentae.models import VQVAE

KEPT = 4
"""How many images are kept, to interpolate between and to traverse from."""


@dataclass(frozen=True, eq=False)
class Measured:
    """What one pass over images gathered.

    Attributes:
        images: how many there were.
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
    """Encodes each image once, into samples of the posterior, and gathers their statistics in float64.

    Memory does not grow with the images, and the size of the batches does not matter but for rounding.

    Args:
        model: in eval mode.
        batches: with ``images`` [B, C, H, W] in [−1, 1], all of one size, and ``indices`` [B].
        seed: of the posterior's noise.

    Raises:
        ValueError: no images, images of several sizes, or latents that are not finite.
    """
    fit, counter = GaussianFit(), HistogramCounter()
    spectra = {name: SpectrumSum() for name in ("images", "images, averaged down", "latents")}
    counts: Tensor | None = None
    kept: list[Tensor] = []
    for batch in batches:
        images = batch["images"]
        (latents,) = encoded_latents(model, [batch], seed=seed)
        fit.add(latents)
        counter.add(latents)
        if min(latents.shape[2:]) >= SpectrumSum.smallest_side:
            height, width = latents.shape[2:]
            small = F.adaptive_avg_pool2d(images.double(), (height, width))
            for total, maps in zip(spectra.values(), (images, small, latents), strict=True):
                total.add(maps)
        if isinstance(model, VQVAE):
            own = count_codes(model, latents)
            counts = own if counts is None else counts + own
        if len(kept) < KEPT:
            kept += list(images[: KEPT - len(kept)])
    return Measured(
        images=fit.images,
        gaussian=fit.result(),
        histograms=counter.result(),
        spectra={name: total.result() for name, total in spectra.items() if total.maps},
        counts=counts,
        kept=torch.stack(kept),
    )
