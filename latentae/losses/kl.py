"""The KL term of a variational autoencoder (Kingma & Welling 2013, arXiv 1312.6114, appendix B)."""

from __future__ import annotations

from torch import Tensor


def kl_to_standard_normal(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(μ, σ²) ‖ N(0, I)) = ½ Σ (μ² + σ² − 1 − log σ²), in nats.

    Args:
        mean, log_variance: [B, c, h, w]; computed in float32 at least.

    Returns:
        [B], summed over each image's latents.
    """
    mean, log_variance = (x if x.element_size() >= 4 else x.float() for x in (mean, log_variance))
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(dim=(1, 2, 3))
