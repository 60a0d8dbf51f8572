"""The KL term of a variational autoencoder (Kingma & Welling 2013, arXiv 1312.6114, appendix B)."""

from __future__ import annotations

from typing import Any

from torch import Tensor


class KLRegulariser:
    """weight · KL / (C·H·W), the mean over a batch: in the units of losses that are means per value.

    Latent diffusion weighs a KL summed over latents against a reconstruction loss summed over the image;
    divided by the number of the image's values, both sides keep that balance. (A mean reconstruction loss
    beside 1e-6 times a summed KL, as several trainers have it, is some 10^5 times stronger.)

    Args:
        weight: in latent diffusion's convention; Stable Diffusion has 1e-6.
    """

    def __init__(self, weight: float) -> None:
        self.weight = weight

    def __call__(self, output: Any, step: int = 0) -> dict[str, Tensor]:
        """``kl``, a scalar, of an output with ``mean``, ``log_variance`` and ``sample`` [B, C, H, W]."""
        values = output.sample[0].numel()
        divergence = kl_to_standard_normal(output.mean, output.log_variance).mean()
        return {"kl": self.weight * divergence / values}


def kl_to_standard_normal(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(μ, σ²) ‖ N(0, I)) = ½ Σ (μ² + σ² − 1 − log σ²), in nats.

    Args:
        mean, log_variance: [B, c, h, w]; computed in float32 at least.

    Returns:
        [B], summed over each image's latents.
    """
    mean, log_variance = (x if x.element_size() >= 4 else x.float() for x in (mean, log_variance))
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(dim=(1, 2, 3))
