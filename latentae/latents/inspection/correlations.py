"""How much the channels of latents say the same."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from latentae.latents.inspection.channels import LatentGaussian, fit_gaussian
from latentae.report import figures
from latentae.report.grids import Figure

ABOUT = (
    "Pearson's correlation of each pair of channels over all images and positions: 0 where the channels are "
    "uncorrelated, as a KL term with some weight makes them; +1 or -1 where one channel repeats another."
)


@dataclass(frozen=True, eq=False)
class ChannelCorrelations:
    """Pearson's correlations of the channels, over images and positions.

    Attributes:
        matrix: [c, c] in [−1, 1]; 0 where a channel does not vary, and no correlation is defined.
        constant: those channels.
        positions: how many values of each channel they are of.
    """

    matrix: Tensor
    constant: list[int]
    positions: int

    @classmethod
    def of(cls, gaussian: LatentGaussian) -> ChannelCorrelations:
        """Those that a fitted Gaussian has."""
        return cls(gaussian.correlation, gaussian.constant, gaussian.positions)

    @property
    def largest(self) -> float:
        """The largest absolute value off the diagonal; 0 of a single channel."""
        return (self.matrix - torch.eye(len(self.matrix), dtype=torch.float64)).abs().max().item()

    def figure(self) -> Figure:
        """The matrix in colours, with its numbers where there is room for them."""
        return figures.matrix("Correlations of the latent channels", self.matrix.numpy(), self.constant)

    def numbers(self) -> dict[str, Any]:
        """For JSON."""
        return {"matrix": self.matrix.tolist(), "constant": self.constant, "positions": self.positions}


def channel_correlations(latents: Tensor | Iterable[Tensor]) -> ChannelCorrelations:
    """Correlations of the channels of latents [B, c, h, w], or of batches of them, in float64.

    Raises:
        ValueError: no latents, or batches with different numbers of channels.
    """
    return ChannelCorrelations.of(fit_gaussian(latents))
