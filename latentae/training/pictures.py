"""Sample pictures: fixed images in the top row, their reconstructions below."""

from __future__ import annotations

import torch
from torch import Tensor

from latentae.models import KLVAE, Autoencoder
from latentae.models.decoders import downscale, upscale_of
from latentae.report.grids import Picture, label_rows, picture_grid

_NOISE_SEED = 0


@torch.no_grad()
def preview(
    autoencoder: Autoencoder, images: Tensor, *, posterior: bool = False, alpha: bool = False
) -> Picture:
    """Returns one picture: the images in the top row, their reconstructions in the second.

    A model with a trained posterior gets four rows, with their names at the left: the images, the decoded
    mode of the posterior, a decoded sample of it, and decoded samples of the prior N(0, I). The prior is that
    of the KL term, for latents without scale or shift. If the weight of that term is tiny, as in latent
    diffusion, the latents are far from the prior, and the last row shows it. The noise is the same in every
    picture of a run.

    Args:
        autoencoder: in eval mode.
        images: [B, C, H, W] in [−1, 1], on the model's device; ``picture_grid`` says how channels are shown.
            A model that upscales encodes them downscaled.
        posterior: whether the model has a trained posterior.
        alpha: whether images are RGBA, which are shown on a checkerboard.

    Returns:
        [height, width, 3].
    """
    seen = downscale(images, upscale_of(autoencoder))
    mode = autoencoder(seen).sample
    if not posterior:
        return picture_grid(torch.stack([images, mode]), alpha=alpha)
    assert isinstance(autoencoder, KLVAE)
    generator = torch.Generator().manual_seed(_NOISE_SEED)
    shape = (2, len(images), *autoencoder.latents_shape(seen))
    noise, prior = torch.randn(shape, generator=generator).to(images)
    height, width = seen.shape[-2:]
    rows = {
        "input": images,
        "mode": mode,
        "sample": autoencoder(seen, noise=noise).sample,
        "prior": autoencoder.decode(prior, size=(height, width)).sample,
    }
    return label_rows(picture_grid(torch.stack(list(rows.values())), alpha=alpha), list(rows))
