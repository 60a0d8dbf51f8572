"""Measures the rate of latents in bits, and the moments of their channels."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from latentae.devices import to_float64, to_float64_on_cpu
from latentae.losses.kl import forward_kl
from latentae.quantizers import code_counts


def kl_bits_per_pixel(mean: Tensor, log_variance: Tensor, height: int, width: int) -> Tensor:
    """Returns KL(q(z|x) ‖ N(0, I)) of each image, in bits per pixel of the image.

    Bits-back coding spends these bits on a latent under the prior (arXiv 1901.04866). A model trained with a
    tiny KL weight has a large value, which shows how far its latents are from the prior.

    Args:
        mean, log_variance: [B, c, h, w] of the posterior.
        height, width: of the images, in pixels.

    Returns:
        [B] float64.
    """
    nats = forward_kl(to_float64(mean), to_float64(log_variance)).sum(dim=(1, 2, 3))
    return nats / (math.log(2) * height * width)


@dataclass(frozen=True)
class CodeRate:
    """The cost of the codes of some images, and the use of their table.

    Attributes:
        bits_per_pixel: tokens · log2 K per pixel, the cost of fixed-length codes.
        entropy_bits_per_pixel: tokens · H per pixel, with H the entropy of the code frequencies in bits.
        codebook_usage: share of the codes that occurred.
        codebook_perplexity: 2^H, in [1, K]. With several tables both are the means over them.
    """

    bits_per_pixel: float
    entropy_bits_per_pixel: float
    codebook_usage: float
    codebook_perplexity: float


class CodeMeter:
    """Counts how often each code occurs; counts are whole numbers, so order does not matter.

    Args:
        num_codes: K, of each table.
        depth: number of tables per position: 1, or the depth of a residual or grouped quantizer.
    """

    def __init__(self, num_codes: int, depth: int = 1) -> None:
        self.counts = torch.zeros(depth, num_codes, dtype=torch.int64)
        self.pixels = 0

    @torch.no_grad()
    def add(self, indices: Tensor, height: int, width: int) -> None:
        """Adds indices [B, h, w] or [B, depth, h, w] of images of ``height`` × ``width`` pixels.

        Raises ValueError where the depth differs, or an index is outside the table.
        """
        depth, num_codes = self.counts.shape
        indices = (indices if indices.ndim == 4 else indices[:, None]).cpu()
        if indices.shape[1] != depth:
            raise ValueError(f"indices are of {indices.shape[1]} tables, but the meter is of {depth}")
        if indices.numel() and not 0 <= int(indices.min()) <= int(indices.max()) < num_codes:
            raise ValueError(f"indices reach outside the {num_codes} codes")
        self.counts += code_counts(indices, num_codes)
        self.pixels += len(indices) * height * width

    def merge(self, other: CodeMeter) -> None:
        """Adds the codes of another one."""
        self.counts = self.counts + other.counts
        self.pixels += other.pixels

    def result(self) -> CodeRate:
        """Returns the rate of all codes so far; raises ValueError where there are none."""
        if not self.pixels:
            raise ValueError("there are no codes to measure")
        tokens = self.counts.sum(dim=1, keepdim=True)
        frequencies = self.counts.double() / tokens
        entropies = -torch.special.xlogy(frequencies, frequencies).sum(dim=1) / math.log(2)
        per_pixel = tokens[:, 0].double() / self.pixels
        return CodeRate(
            bits_per_pixel=(per_pixel * math.log2(self.counts.shape[1])).sum().item(),
            entropy_bits_per_pixel=(per_pixel * entropies).sum().item(),
            codebook_usage=(self.counts > 0).double().mean().item(),
            codebook_perplexity=entropies.exp2().mean().item(),
        )

    def state(self) -> dict[str, Tensor]:
        """Returns the state as tensors; ``from_state`` is the inverse."""
        return {"counts": self.counts, "pixels": torch.tensor(self.pixels)}

    @classmethod
    def from_state(cls, state: dict[str, Tensor]) -> CodeMeter:
        """Rebuilds the object whose ``state`` this is."""
        depth, num_codes = state["counts"].shape
        meter = cls(num_codes, depth)
        meter.counts, meter.pixels = state["counts"], int(state["pixels"])
        return meter


@dataclass(frozen=True)
class ChannelMoments:
    """Per channel, over all images and positions.

    Attributes:
        mean, std: in the latents' own units, unscaled; the deviation is the population's.
        kurtosis: the fourth moment over the squared variance minus 3: 0 for a Gaussian; 0 for a constant.
    """

    mean: list[float]
    std: list[float]
    kurtosis: list[float]


class LatentMoments:
    """The first four moments of each channel, in float64, streamed and mergeable.

    Central moments are updated about the running mean (Pébay 2008, equations 2.1 and following), so that a
    mean far from zero loses no digits.

    Args:
        channels: c, of the latents.
    """

    def __init__(self, channels: int) -> None:
        self.count = 0
        self.mean = torch.zeros(channels, dtype=torch.float64)
        # Σ (x − mean)^k for k = 2, 3, 4.
        self.sums = torch.zeros(3, channels, dtype=torch.float64)

    @torch.no_grad()
    def add(self, latents: Tensor) -> None:
        """Adds latents [B, c, h, w]."""
        if not latents.numel():
            return
        values = to_float64_on_cpu(latents.transpose(0, 1).flatten(1))
        batch = LatentMoments(len(self.mean))
        batch.count = values.shape[1]
        batch.mean = values.mean(dim=1)
        centered = values - batch.mean[:, None]
        batch.sums = torch.stack([centered.pow(power).sum(dim=1) for power in (2, 3, 4)])
        self.merge(batch)

    def merge(self, other: LatentMoments) -> None:
        """Adds the latents of another one."""
        if not other.count:
            return
        n, m = self.count, other.count
        total = n + m
        d = other.mean - self.mean
        a2, a3, a4 = self.sums
        b2, b3, b4 = other.sums
        second = a2 + b2 + d**2 * (n * m / total)
        third = a3 + b3 + d**3 * (n * m * (n - m) / total**2) + 3 * d * (n * b2 - m * a2) / total
        fourth = (
            a4
            + b4
            + d**4 * (n * m * (n * n - n * m + m * m) / total**3)
            + 6 * d**2 * (n * n * b2 + m * m * a2) / total**2
            + 4 * d * (n * b3 - m * a3) / total
        )
        self.mean = self.mean + d * (m / total)
        self.sums = torch.stack([second, third, fourth])
        self.count = total

    def result(self) -> ChannelMoments:
        """Returns the moments of all latents so far; raises ValueError where there are none."""
        if not self.count:
            raise ValueError("there are no latents to measure")
        variance = self.sums[0] / self.count
        fourth = self.sums[2] / self.count
        kurtosis = torch.where(variance > 0, fourth / variance.square().clamp(min=1e-300) - 3, 0.0)
        return ChannelMoments(self.mean.tolist(), variance.sqrt().tolist(), kurtosis.tolist())

    def state(self) -> dict[str, Tensor]:
        """Returns the state as tensors; ``from_state`` is the inverse."""
        return {"count": torch.tensor(self.count), "mean": self.mean, "sums": self.sums}

    @classmethod
    def from_state(cls, state: dict[str, Tensor]) -> LatentMoments:
        """Rebuilds the object whose ``state`` this is."""
        moments = cls(len(state["mean"]))
        moments.count, moments.mean, moments.sums = int(state["count"]), state["mean"], state["sums"]
        return moments
