"""Runs a model over images and measures its latents, on as many ranks as there are."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from latentae.data.seeding import POSTERIOR
from latentae.latents.statistics import LatentStatistics, merge_over_ranks
from latentae.models import KLVAE, VQVAE

# The standard error is itself an estimate, and of a few images a bad one.
_FEWEST_IMAGES = 256


@torch.no_grad()
def measure_latents(
    model: KLVAE | VQVAE,
    batches: Iterable[Any],
    *,
    seed: int = 0,
    relative_error: float | None = 1e-3,
    scaled: bool = False,
) -> LatentStatistics:
    """Statistics of the latents of the images of all ranks; every rank must call it, and all get the same.

    Latents are samples of the posterior, which is what denoisers are trained on; VQ models have one value
    there, the continuous one before quantization. The noise is a function of (seed, index of the image), so
    that neither ranks nor the size of batches matter.

    Args:
        model: on the device and in the dtype to measure with.
        batches: this rank's batches, with ``images`` [B, C, H, W] in [−1, 1] and ``indices`` [B]; ranks may
            have different numbers of them, or none. In random order, where ``relative_error`` may stop early.
        seed: of the posterior's noise.
        relative_error: stop at the first batch, the same on every rank, after which there are 256 images and
            the standard error of the global standard deviation, relative to it, is below this; None: never
            stop early. See ``LatentStatistics`` for the estimator.
        scaled: measure what ``to_latents`` gives instead of raw latents.

    Raises:
        ValueError: no images; or latents that are not finite.
    """
    total: LatentStatistics | None = None
    tolerance = 0.0 if relative_error is None else relative_error
    own = iter(batches)
    while True:
        batch = next(own, None)
        latest = merge_over_ranks(None if batch is None else _of_batch(model, batch, seed, scaled))
        if latest is None:
            break
        total = latest if total is None else total.merge(latest)
        if not bool(total.mean.isfinite().all()):
            raise ValueError(
                f"latents of {model.dtype} are not finite: the model's weights are broken, or too large for "
                "this dtype; measure in float32"
            )
        if total.images >= _FEWEST_IMAGES and total.global_std_error < tolerance:
            break
    if total is None:
        raise ValueError("there are no images to measure the latents of")
    return total


def noise_generators(seed: int, indices: Tensor) -> list[torch.Generator]:
    """One CPU generator an image, for its posterior's sample: a function of (seed, index).

    diffusers takes a list of generators wherever it takes one.
    """
    # torch's generator on the CPU reads the lower 32 bits of its seed only, so they have to hold all of it.
    keys = [np.random.SeedSequence(seed, spawn_key=(POSTERIOR, int(index))) for index in indices]
    return [torch.Generator().manual_seed(int(key.generate_state(1)[0])) for key in keys]


def _of_batch(model: KLVAE | VQVAE, batch: Any, seed: int, scaled: bool) -> LatentStatistics | None:
    if not len(batch["images"]):
        return None
    images = batch["images"].to(model.device, model.dtype)
    generators: Any = noise_generators(seed, batch["indices"])
    if scaled:
        return LatentStatistics.of(model.to_latents(images, generators))
    return LatentStatistics.of(model.encode(images).latent_dist.sample(generators))
