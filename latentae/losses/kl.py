"""The KL term of a variational autoencoder (Kingma & Welling 2013, arXiv 1312.6114, appendix B)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from latentae.losses.divergences import Divergence, forward_kl
from latentae.losses.free_bits import FreeBits
from latentae.losses.kl_schedule import KLSchedule, constant


class KLRegulariser:
    """weight · divergence / (C·H·W), the mean over a batch: in the units of losses that are means per value.

    Latent diffusion weighs a KL summed over latents against a reconstruction loss summed over the image;
    divided by the number of the image's values, both sides keep that balance. (A mean reconstruction loss
    beside 1e-6 times a summed KL, as several trainers have it, is some 10^5 times stronger.)

    Args:
        weight: in latent diffusion's convention; Stable Diffusion has 1e-6. Beside a likelihood, 1 makes the
            sum the negative ELBO per value.
        schedule: the share of the weight at each step.
        divergence: of the posterior and N(0, I); the ELBO has KL(q ‖ p).
        free_bits: the divergence that costs nothing; None: there is none.
    """

    def __init__(
        self,
        weight: float,
        *,
        schedule: KLSchedule = constant,
        divergence: Divergence = forward_kl,
        free_bits: FreeBits | None = None,
    ) -> None:
        self.weight = weight
        self.schedule = schedule
        self.divergence = divergence
        self.free_bits = free_bits

    def weight_at(self, step: int) -> float:
        """The weight of optimizer step ``step``, counted from 0."""
        return self.weight * self.schedule(step)

    def __call__(self, output: Any, step: int = 0) -> dict[str, Tensor]:
        """``kl``, a scalar, of an output with ``mean``, ``log_variance`` and ``sample`` [B, C, H, W]."""
        divergence = self.divergence(output.mean, output.log_variance)
        if self.free_bits is None:
            nats = divergence.sum(dim=(1, 2, 3)).mean()
        else:
            nats = self.free_bits(divergence)
        return {"kl": self.weight_at(step) * nats / output.sample[0].numel()}
