"""Sample pictures: crops above their reconstructions during a run, whole images beside theirs at its end."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from latentae.models import KLVAE, Autoencoder
from latentae.models.decoders import downscale, reconstruct, upscale_of
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
    seen = downscale(images, upscale_of(autoencoder), alpha=alpha)
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


@torch.no_grad()
def whole_preview(autoencoder: Autoencoder, images: Sequence[Tensor], *, alpha: bool = False) -> Picture:
    """Returns one picture with a row per image: the image at the left, its reconstruction at the right.

    Args:
        autoencoder: in eval mode.
        images: one or more [C, H, W] in [−1, 1], on the model's device, of any sizes.
        alpha: whether images are RGBA, which are shown on a checkerboard.

    Returns:
        [height, width, 3]; narrower rows end in white.
    """
    rows = []
    for image in images:
        sample = reconstruct(autoencoder, image[None], alpha=alpha).sample
        rows.append(picture_grid(torch.stack([image, sample[0]])[None], alpha=alpha))
    width = max(row.shape[1] for row in rows)
    white = [np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0)), constant_values=255) for row in rows]
    return np.concatenate(white)
