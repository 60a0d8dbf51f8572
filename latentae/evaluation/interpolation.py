"""iFID (arXiv 2603.05630): images that are decoded between the latents of two images.

The paper interpolates each latent with its nearest neighbour, decodes, and takes the FID of that to the
images. It rises where the space between latents decodes badly. A denoiser meets that space, and rFID does not
see it. The settings follow the paper's code: neighbours by cosine, spherical interpolation, halfway. Two
things differ, so that any images will do and nothing depends on chance. Neighbours are looked for among
the evaluated images themselves (the code searches ImageNet's training set), and the nearest one is taken (the
code draws one of the ten nearest). So compare iFID between models on the same images only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from latentae.evaluation.rate import LatentMoments

SETTINGS = "halfway to the nearest of the images by cosine, spherical, latents normalised per channel"
"""What iFID depends on beside the images, for a report."""

_HALFWAY = 0.5


class LatentTable:
    """The latents of all images, to find neighbours in.

    They are compared and interpolated after each channel was normalised by its mean and deviation over all
    images, as a denoiser sees them, whatever scale a model records.

    Args:
        latents: [N, c, ...] unscaled.
    """

    def __init__(self, latents: Tensor) -> None:
        moments = LatentMoments(latents.shape[1])
        moments.add(latents)
        result = moments.result()
        channels = (-1, *[1] * (latents.ndim - 2))
        self.mean = torch.tensor(result.mean).view(channels)
        self.std = torch.tensor([value or 1.0 for value in result.std]).view(channels)
        self.normalised = (latents - self.mean) / self.std
        self._directions = torch.nn.functional.normalize(self.normalised.flatten(1), dim=1)

    def neighbours(self, positions: range) -> Tensor:
        """Returns the position of the nearest other image of each, [n], by cosine."""
        cosines = self._directions[positions.start : positions.stop] @ self._directions.T
        own = torch.arange(len(positions))
        cosines[own, own + positions.start] = -float("inf")
        return cosines.argmax(dim=1)

    def interpolated(self, positions: range) -> Tensor:
        """Returns unscaled latents [n, c, ...] halfway between images and their neighbours."""
        own = self.normalised[positions.start : positions.stop]
        other = self.normalised[self.neighbours(positions)]
        return slerp(own, other, _HALFWAY) * self.std + self.mean


def slerp(first: Tensor, second: Tensor, share: float) -> Tensor:
    """Spherical interpolation (Shoemake 1985) of each of two [n, ...]: the angle turns evenly.

    sin((1 − t) θ) / sin θ · first + sin(t θ) / sin θ · second. Parallel vectors are interpolated linearly.
    """
    x, y = first.flatten(1).double(), second.flatten(1).double()
    cosine = torch.nn.functional.cosine_similarity(x, y, dim=1).clamp(-1, 1)
    angle = cosine.acos()[:, None]
    sine = angle.sin()
    parallel = sine < 1e-6
    safe = torch.where(parallel, torch.ones_like(sine), sine)
    weights = [
        torch.where(parallel, torch.full_like(sine, part), (part * angle).sin() / safe)
        for part in (1 - share, share)
    ]
    return (weights[0] * x + weights[1] * y).to(first.dtype).view_as(first)


def join_latents(shards: Iterable[Mapping[str, Tensor]]) -> LatentTable | None:
    """Returns the table of the latents in the shards of all blocks.

    None where images have latents of different sizes, or are fewer than two: nothing can be interpolated.
    """
    parts = []
    for shard in shards:
        if "latents" in shard:
            parts.append(shard["latents"])
        elif "value.psnr" in shard:  # images without latents of one size
            return None
    if len({part.shape[1:] for part in parts}) != 1 or sum(map(len, parts)) < 2:
        return None
    return LatentTable(torch.cat(parts))
