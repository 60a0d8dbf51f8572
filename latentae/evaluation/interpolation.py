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
from latentae.models.interpolation import slerp_or_lerp

SETTINGS = "halfway to the nearest of the images by cosine, spherical, latents normalised per channel"
"""What iFID depends on beside the images, for a report."""

_HALFWAY = torch.tensor([0.5])
_ROWS = 256  # images whose moments and lengths are computed together


class LatentTable:
    """The latents of all images, to find neighbours in.

    They are compared and interpolated after each channel was normalised by its mean and deviation over all
    images, as a denoiser sees them, whatever scale a model records.

    Args:
        latents: [N, c, ...] unscaled, which are normalised in place: they may fill most of the memory.
    """

    def __init__(self, latents: Tensor) -> None:
        moments = LatentMoments(latents.shape[1])
        for part in latents.split(_ROWS):
            moments.add(part)
        result = moments.result()
        channels = (-1, *[1] * (latents.ndim - 2))
        self.mean = torch.tensor(result.mean).view(channels)
        self.std = torch.tensor([value or 1.0 for value in result.std]).view(channels)
        self.normalised = latents.sub_(self.mean).div_(self.std)
        self._lengths = torch.cat([part.flatten(1).norm(dim=1) for part in latents.split(_ROWS)])

    def neighbours(self, positions: range) -> Tensor:
        """Returns the position of the nearest other image of each, [n], by cosine."""
        rows = self.normalised.flatten(1)
        products = rows[positions.start : positions.stop] @ rows.T
        cosines = products / self._lengths.clamp(min=1e-12)  # times a factor per row, which keeps their order
        own = torch.arange(len(positions))
        cosines[own, own + positions.start] = -float("inf")
        return cosines.argmax(dim=1)

    def interpolated(self, positions: range) -> Tensor:
        """Returns unscaled latents [n, c, ...] halfway between images and their neighbours."""
        own = self.normalised[positions.start : positions.stop]
        other = self.normalised[self.neighbours(positions)]
        halfway = [slerp_or_lerp(a, b, _HALFWAY)[0] for a, b in zip(own, other, strict=True)]
        return torch.stack(halfway).to(own) * self.std + self.mean


def join_latents(shards: Iterable[Mapping[str, Tensor]], count: int) -> LatentTable | None:
    """Returns the table of the latents in the shards of all blocks, which hold ``count`` images.

    None where images have latents of different sizes, or are fewer than two: nothing can be interpolated.
    """
    if count < 2:
        return None
    table, filled = torch.empty(0), 0
    for shard in shards:
        part = shard.get("latents")
        if part is None:
            if "value.psnr" in shard:  # images without latents of one size
                return None
            continue
        if not filled:
            table = torch.empty(count, *part.shape[1:])
        if part.shape[1:] != table.shape[1:]:
            return None
        table[filled : filled + len(part)] = part
        filled += len(part)
    return LatentTable(table)
