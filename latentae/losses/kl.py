"""The KL term of a variational autoencoder (Kingma & Welling 2013, arXiv 1312.6114, appendix B).

From top to bottom: divergences, free bits, schedules of the weight, the term itself, and the ELBO in the log.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from latentae import distributed

Divergence = Callable[[Tensor, Tensor], Tensor]


def forward_kl(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(q ‖ p) = ½ (μ² + σ² − 1 − log σ²), the one of the ELBO (arXiv 1312.6114, appendix B)."""
    mean, log_variance = _prepare(mean, log_variance)
    return 0.5 * (mean.square() + log_variance.expm1() - log_variance)


def reverse_kl(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(p ‖ q) = ½ ((1 + μ²)/σ² − 1 + log σ²). It grows without limit as σ² goes to 0."""
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


@dataclass(frozen=True)
class FreeBits:
    """Σ_j max(λ, E D_j) over groups j of latents, E the mean over the batch of all ranks.

    Free bits (Kingma et al. 2016, arXiv 1606.04934): a group below λ has no gradient, so the posterior may
    keep that much information at no cost. The decision is the same on all ranks, so the mean of their
    gradients equals that of one rank with all their images.

    Attributes:
        nats: λ, of each group and image.
        per: what forms a group: ``channel``, each summed over its h·w positions as in the paper, or
            ``image``, all latents of an image.
    """

    nats: float
    per: Literal["channel", "image"] = "channel"

    def __call__(self, divergence: Tensor) -> Tensor:
        """Returns the cost of a divergence [B, c, h, w], a scalar in nats per image. Every rank calls it."""
        groups = self._groups(divergence)
        return torch.where(self._is_free(groups), self.nats, groups).sum()

    @torch.no_grad()
    def count_free(self, divergence: Tensor) -> Tensor:
        """Returns how many groups of a divergence [B, c, h, w] cost nothing. Every rank calls it."""
        return self._is_free(self._groups(divergence)).sum().to(divergence.dtype)

    def _groups(self, divergence: Tensor) -> Tensor:
        """Mean over this rank's images: [c], or [1] of all latents."""
        channels = divergence.sum(dim=(2, 3)).mean(dim=0)
        return channels if self.per == "channel" else channels.sum(dim=0, keepdim=True)

    def _is_free(self, groups: Tensor) -> Tensor:
        return distributed.all_reduce_mean(groups.detach()) <= self.nats


KLSchedule = Callable[[int], float]


def constant(step: int) -> float:
    """Returns 1 at every step."""
    return 1.0


@dataclass(frozen=True)
class LinearWarmup:
    """Rises linearly from 0 at step 0 to 1 at ``warmup_steps`` and stays 1 (arXiv 1511.06349)."""

    warmup_steps: int

    def __call__(self, step: int) -> float:
        return min(1.0, step / self.warmup_steps)


@dataclass(frozen=True)
class Cyclical:
    """β(t) = min(1, τ/R) with τ = (t mod T/M) / (T/M): Fu et al. 2019, arXiv 1903.10145.

    Attributes:
        cycle_steps: length of a cycle, the paper's T/M.
        cycles: M of them, after which the factor stays 1.
        ratio: R in (0, 1], the share of a cycle in which the factor rises.
    """

    cycle_steps: int
    cycles: int = 4
    ratio: float = 0.5

    def __call__(self, step: int) -> float:
        if step >= self.cycles * self.cycle_steps:
            return 1.0
        return min(1.0, step % self.cycle_steps / (self.ratio * self.cycle_steps))


KL_SCHEDULES: dict[str, Callable[..., KLSchedule]] = {"linear": LinearWarmup, "cyclical": Cyclical}


class KLRegulariser:
    """The KL term, weight · divergence / (C·H·W), a mean over the batch, in units of losses per image value.

    Latent diffusion weighs a KL summed over latents against a reconstruction loss summed over the image;
    divided by the number of the image's values, both sides keep that balance. (A mean reconstruction loss
    beside 1e-6 times a summed KL, as several trainers have it, is some 10^5 times stronger.)

    Args:
        weight: in latent diffusion's convention; Stable Diffusion has 1e-6. Beside a likelihood, 1 makes the
            sum the negative ELBO per value.
        schedule: the share of the weight at each step.
        divergence: of the posterior and N(0, I); the ELBO has KL(q ‖ p).
        free_bits: the divergence that costs nothing; None: all of it counts.
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
        """Returns ``kl``, a scalar, given an output with ``mean``, ``log_variance`` and ``sample``."""
        divergence = self.divergence(output.mean, output.log_variance)
        if self.free_bits is None:
            nats = divergence.sum(dim=(1, 2, 3)).mean()
        else:
            nats = self.free_bits(divergence)
        return {"kl": self.weight_at(step) * nats / output.sample[0].numel()}


EIGHT_BIT_STEP = 2 / 255
"""Distance of neighbouring values of 8-bit images in [-1, 1]."""


class PosteriorReport:
    """Logs the KL divergence of the posterior and, with a likelihood, the ELBO. Nothing here has a gradient.

    ELBO = E_q log p(x|z) − KL(q ‖ p), with one sample of z per image, whatever weight, divergence or free
    bits are used in training. It is a lower bound of log p(x), in nats per image, and exists if the
    reconstruction loss is a likelihood. (L2 with a KL weight of λ has the gradients, times λ, of a Gaussian
    likelihood of the fixed variance λ/2 with a KL weight of 1: choose that to have its ELBO.)

    Args:
        regulariser: the KL term that is trained on.
        likelihood: whether the reconstruction loss is a likelihood, in nats per value.
    """

    def __init__(self, regulariser: KLRegulariser, *, likelihood: bool) -> None:
        self.regulariser = regulariser
        self.likelihood = likelihood

    @torch.no_grad()
    def __call__(self, output: Any, terms: dict[str, Tensor], step: int) -> dict[str, Tensor]:
        """Returns scalars by name, means over the batch. With free bits every rank must call it.

        Args:
            output: with ``mean``, ``log_variance`` [B, c, h, w] and ``sample`` [B, C, H, W].
            terms: the objective's, of which ``reconstruction`` is read.
            step: optimizer steps done so far.

        Returns:
            ``kl_nats``, the unweighted KL(q ‖ p) per image, and ``kl_nats_per_latent``; ``kl_weight`` of
            this step; with free bits ``kl_free_groups``, how many channels (per image: 0 or 1) cost nothing;
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
    """Returns the average number of bits per 8-bit value: −ELBO / (n log 2) − log₂ Δ.

    The probability of a value is taken as its density times the distance Δ to the next value. This holds as
    long as the density changes little over Δ. If the likelihood's scale comes near Δ, the result is too small
    (it can even be negative), since the images' values are not spread over their bins.

    Args:
        elbo: in nats per image, of continuous values.
        dimensions: n, the values of an image, C·H·W.
        bin_width: Δ.
    """
    return -elbo / (dimensions * math.log(2)) - math.log2(bin_width)
