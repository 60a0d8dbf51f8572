"""Images with transparency: the formula that composites them, and what losses compare.

Images are RGBA with straight (unassociated) alpha, as PNG, WebP and most TIFF files store it: [B, 4, H, W] in
[-1, 1], where alpha = -1 is transparent and alpha = 1 is opaque; colours are not multiplied by alpha. With
premultiplied (associated) alpha, they would be those of the composite over black; `latentae.data` divides
them by alpha when it reads such a file.

The composite over a background B is Porter and Duff's "over" (1984, doi:10.1145/800031.808606) with an opaque
background, C = α F + (1 − α) B with α in [0, 1]. The weights α and 1 − α sum to 1, so the formula holds for
colours in [-1, 1] as they are.
"""

from __future__ import annotations

import torch
from torch import Tensor

BLACK, WHITE = -1.0, 1.0


def opacity(images: Tensor) -> Tensor:
    """Returns α in [0, 1], [B, 1, H, W], of images [B, 4, H, W] in [-1, 1]."""
    if images.ndim != 4 or images.shape[1] != 4:
        raise ValueError(f"images have shape {list(images.shape)}: give RGBA images [B, 4, H, W]")
    return (images[:, 3:] + 1) / 2


def composite(images: Tensor, background: Tensor | float) -> Tensor:
    """Returns the composites over one colour, [B, 3, H, W].

    Args:
        images: [B, 4, H, W] in [-1, 1] with straight alpha. Values outside are used as they are, since
            clamping would remove their gradient.
        background: a colour for each image, [B, 3] in [-1, 1], or a grey for all.
    """
    alpha = opacity(images)
    if isinstance(background, Tensor):
        background = background.to(images)[:, :, None, None]
    return alpha * images[:, :3] + (1 - alpha) * background


def composites(images: Tensor, colours: Tensor) -> Tensor:
    """Returns each image over its own colour, black and white, next to each other: [3 · B, 3, H, W].

    Args:
        images: as ``composite`` takes them.
        colours: one for each image, [B, 3] in [-1, 1].
    """
    backgrounds = (colours, BLACK, WHITE)
    # An image's composites follow each other, so that their places do not depend on the number of ranks.
    return torch.stack([composite(images, background) for background in backgrounds], dim=1).flatten(0, 1)


def weigh_by_alpha(reconstruction: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
    """Returns both with their colours multiplied by the images' α; their alpha stays as it is.

    The difference of two colours is then α (F̂ − F): a colour counts as much as it is visible in the image,
    and not at all where the image is transparent. A loss over the four channels adds alpha's own error. The
    weight is the image's α and not the reconstruction's, so that colours learn where alpha is still wrong.

    Args:
        reconstruction, images: [B, 4, H, W] in [-1, 1] with straight alpha.
    """
    alpha = opacity(images)
    weights = torch.cat([alpha.expand(-1, 3, -1, -1), torch.ones_like(alpha)], dim=1)
    return reconstruction * weights, images * weights
