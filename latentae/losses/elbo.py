"""The evidence lower bound, and what else a log says of a KL model without training on it."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from latentae.losses.divergences import forward_kl
from latentae.losses.kl import KLRegulariser

EIGHT_BIT_STEP = 2 / 255
"""Distance of neighbouring values of 8-bit images in [-1, 1]."""


class PosteriorReport:
    """What the log says of the posterior and, under a likelihood, of the ELBO; nothing here has a gradient.

    ELBO = E_q log p(x|z) − KL(q ‖ p), with one sample of z an image, whatever weight, divergence or free bits
    the training has: a lower bound of log p(x), in nats per image. It exists where the reconstruction loss is
    a likelihood. (L2 under a KL weight of λ has the gradients, times λ, of a Gaussian likelihood of the fixed
    variance λ/2 under a KL weight of 1: choose that to have its ELBO.)

    Args:
        regulariser: the KL term that is trained on.
        likelihood: whether the reconstruction loss is a likelihood, in nats per value.
    """

    def __init__(self, regulariser: KLRegulariser, *, likelihood: bool) -> None:
        self.regulariser = regulariser
        self.likelihood = likelihood

    @torch.no_grad()
    def __call__(self, output: Any, terms: dict[str, Tensor], step: int) -> dict[str, Tensor]:
        """Scalars by name, means over the batch. With free bits every rank calls it.

        Args:
            output: with ``mean``, ``log_variance`` [B, c, h, w] and ``sample`` [B, C, H, W].
            terms: the objective's, of which ``reconstruction`` is read.
            step: optimizer steps done so far.

        Returns:
            ``kl_nats``, the unweighted KL(q ‖ p) of an image, and ``kl_nats_per_latent``; ``kl_weight`` of
            this step; with free bits ``kl_free_groups``, how many channels (images: 0 or 1) cost nothing;
            with a likelihood ``elbo_nats`` and ``bits_per_dimension``.
        """
        divergence = forward_kl(output.mean, output.log_variance)
        kl = divergence.sum(dim=(1, 2, 3)).mean()
        weight = self.regulariser.weight_at(step)
        report = {
            "kl_nats": kl,
            "kl_nats_per_latent": divergence.mean(),
            "kl_weight": torch.full_like(kl, weight),
        }
        if self.regulariser.free_bits is not None:
            trained = self.regulariser.divergence(output.mean, output.log_variance)
            report["kl_free_groups"] = self.regulariser.free_bits.count_free(trained)
        if self.likelihood:
            dimensions = output.sample[0].numel()
            elbo = -(dimensions * terms["reconstruction"] + kl)
            report |= {"elbo_nats": elbo, "bits_per_dimension": bits_per_dimension(elbo, dimensions)}
        return report


def bits_per_dimension(elbo: Tensor, dimensions: int, bin_width: float = EIGHT_BIT_STEP) -> Tensor:
    """Bits that 8-bit values take on average: −ELBO / (n log 2) − log₂ Δ.

    A value's probability is its density times the distance Δ to the next value, which is right as long as
    the density changes little over Δ. Where the likelihood's scale comes near to Δ it promises too few bits
    (it can even be negative), since nothing spreads the images' values over their bins.

    Args:
        elbo: in nats per image, of continuous values.
        dimensions: n, the values of an image, C·H·W.
        bin_width: Δ.
    """
    return -elbo / (dimensions * math.log(2)) - math.log2(bin_width)
