"""Divergences between a diagonal Gaussian posterior q = N(μ, σ²) and the prior p = N(0, 1), in closed form.

Each maps mean and log-variance [B, c, h, w] to the divergence of every latent, [B, c, h, w] in nats. They are
computed in float32 at least, since e^20 is no float16 number, and with log-variances clamped to [−30, 20].
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

Divergence = Callable[[Tensor, Tensor], Tensor]


def forward_kl(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(q ‖ p) = ½ (μ² + σ² − 1 − log σ²), the one of the ELBO (arXiv 1312.6114, appendix B)."""
    mean, log_variance = _prepare(mean, log_variance)
    return 0.5 * (mean.square() + log_variance.expm1() - log_variance)


def reverse_kl(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(p ‖ q) = ½ ((1 + μ²)/σ² − 1 + log σ²): grows without limit as the posterior gets certain."""
    mean, log_variance = _prepare(mean, log_variance)
    negative = -log_variance
    return 0.5 * (mean.square() * negative.exp() + negative.expm1() + log_variance)


def jeffreys(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(q ‖ p) + KL(p ‖ q), which is symmetric (Jeffreys 1946)."""
    return forward_kl(mean, log_variance) + reverse_kl(mean, log_variance)


def _prepare(mean: Tensor, log_variance: Tensor) -> tuple[Tensor, Tensor]:
    mean, log_variance = (x if x.element_size() >= 4 else x.float() for x in (mean, log_variance))
    return mean, log_variance.clamp(-30, 20)


DIVERGENCES: dict[str, Divergence] = {"forward": forward_kl, "reverse": reverse_kl, "jeffreys": jeffreys}
