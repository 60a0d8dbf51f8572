"""Sample grids: fixed images in the top row, what the autoencoder makes of them below."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from latentae.evaluation.pictures import picture_grid
from latentae.models import KLVAE, VQVAE

_NOISE_SEED = 0
_MARGIN = 6


@torch.no_grad()
def preview(autoencoder: KLVAE | VQVAE, images: Tensor, *, posterior: bool = False) -> NDArray[np.uint8]:
    """One picture: the images in the top row, their reconstructions in the second.

    Of a model with a trained posterior there are four rows, with their names at the left: the images, the
    posterior's mode decoded, a sample of it decoded, and samples of the prior N(0, I) decoded. The prior is
    that of the KL term, of latents without scale or shift. Where its weight is tiny, as in latent diffusion,
    latents lie elsewhere, and the last row shows how far from the prior they are. The noise is the same in
    every picture of a run.

    Args:
        autoencoder: in eval mode.
        images: [B, C, H, W] in [−1, 1], on the model's device; ``picture_grid`` says how channels are shown.
        posterior: whether the model has a trained posterior.

    Returns:
        [height, width, 3].
    """
    mode = autoencoder(images).sample
    if not posterior:
        return picture_grid(torch.stack([images, mode]))
    assert isinstance(autoencoder, KLVAE)
    generator = torch.Generator().manual_seed(_NOISE_SEED)
    shape = (2, len(images), *autoencoder.latents_shape(images))
    noise, prior = torch.randn(shape, generator=generator).to(images)
    height, width = images.shape[-2:]
    rows = {
        "input": images,
        "mode": mode,
        "sample": autoencoder(images, noise=noise).sample,
        "prior": autoencoder.decode(prior, size=(height, width)).sample,
    }
    return _labelled(picture_grid(torch.stack(list(rows.values()))), list(rows))


def _labelled(grid: NDArray[np.uint8], labels: list[str]) -> NDArray[np.uint8]:
    """A grid with a name at the left of each row."""
    row_height = len(grid) // len(labels)
    font = ImageFont.load_default(size=max(10, min(24, row_height // 6)))
    boxes = [font.getbbox(label) for label in labels]
    width = round(max(right for _, _, right, _ in boxes)) + 2 * _MARGIN
    column = Image.new("RGB", (width, len(grid)), "white")
    draw = ImageDraw.Draw(column)
    for row, label in enumerate(labels):
        draw.text((_MARGIN, (row + 0.5) * row_height), label, fill="black", font=font, anchor="lm")
    return np.concatenate([np.asarray(column), grid], axis=1)
