"""Rectified flow: the path from data to noise, the prediction target, and the loss on held-out latents.

Liu, Gong and Liu 2022 (arXiv 2209.03003) and Esser et al. 2024 (arXiv 2403.03206), in diffusers' direction:
at time t = 0 there are the data x, at t = 1 the noise ε, and x_t = (1 − t) x + t ε.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from diffusers import DiTTransformer2DModel
from torch import Tensor

from latentae.data.seeding import HELD_OUT_NOISE, HELD_OUT_TIMES, torch_generator

NUM_TRAIN_TIMESTEPS = 1000
"""The factor by which diffusers' schedulers multiply the time for the denoiser."""


@dataclass(frozen=True)
class LatentBatch:
    """A batch of latents with their labels.

    Attributes:
        latents: [B, c, h, w] float32 on the CPU.
        labels: [B] int64, 0 where the data has none.
    """

    latents: Tensor
    labels: Tensor


def logit_normal_times(normal: Tensor) -> Tensor:
    """Returns times in (0, 1): the logistic function of standard normal numbers, of any shape.

    Esser et al. 2024, section 3.1, with m = 0 and s = 1: most in the middle, where the prediction is hardest.
    """
    return torch.sigmoid(normal)


def noisy_latents(latents: Tensor, noise: Tensor, times: Tensor) -> Tensor:
    """Returns x_t = (1 − t) x + t ε, for latents and noise [B, c, h, w] and times [B]."""
    t = times[:, None, None, None]
    return (1 - t) * latents + t * noise


def velocity(latents: Tensor, noise: Tensor) -> Tensor:
    """Returns dx_t / dt = ε − x [B, c, h, w], the target of the denoiser."""
    return noise - latents


def independent_loss(variance: Tensor, times: Tensor) -> Tensor:
    """Returns the smallest mean squared error [B] of the velocity if all latent values were independent.

    For a normal variable x with variance s², Var(ε − x | x_t) = s² / ((1 − t)² s² + t²), averaged over the
    channels. A denoiser's loss divided by this shows how much it has learned of the dependencies between
    latents; 1 is nothing. Unlike the loss itself, the ratio does not change with the latents' scale.

    Args:
        variance: [c] of each channel of the latents.
        times: [B] in (0, 1].
    """
    t = times[:, None]
    return (variance / ((1 - t).square() * variance + t.square())).mean(dim=1)


_FEWEST_DRAWS = 256


@dataclass(frozen=True)
class FlowLoss:
    """A denoiser's loss.

    Attributes:
        loss: mean squared error of the velocity, per value of the latents. It grows with the noise and fine
            detail in the latents, and cannot be compared between latent spaces.
        relative_loss: the loss divided by ``independent_loss``; 1 means that nothing was learned.
    """

    loss: float
    relative_loss: float


class FlowValidation:
    """Measures denoisers on held-out latents, each at several times where there are few.

    Noise and times are the same at every measurement, and for every model.

    Args:
        held_out: the latents.
        variance: [c] of the training latents' channels.
        seed: of noise and times.
        batch_size: latents at a time.

    Raises:
        ValueError: no latents.
    """

    def __init__(self, held_out: LatentBatch, variance: Tensor, seed: int, batch_size: int = 64) -> None:
        count = len(held_out.latents)
        if not count:
            raise ValueError("there are no held-out images to measure the denoiser on")
        self.held_out = held_out
        self.variance = variance
        self.seed = seed
        self.batch_size = batch_size
        draws = count * -(-_FEWEST_DRAWS // count)
        self.images = torch.arange(draws) % count
        self.times = spread_times(draws, seed)

    @torch.no_grad()
    def __call__(self, denoiser: DiTTransformer2DModel) -> FlowLoss:
        """Measures the loss of a denoiser in its present mode (train or eval)."""
        device = next(denoiser.parameters()).device
        error, independent = 0.0, 0.0
        for start in range(0, len(self.images), self.batch_size):
            chosen = self.images[start : start + self.batch_size]
            times = self.times[start : start + self.batch_size]
            latents = self.held_out.latents[chosen]
            draws = torch_generator(self.seed, HELD_OUT_NOISE, start)
            noise = torch.randn(latents.shape, generator=draws)
            predicted = denoiser(
                noisy_latents(latents, noise, times).to(device),
                timestep=(times * NUM_TRAIN_TIMESTEPS).to(device),
                class_labels=self.held_out.labels[chosen].to(device),
            ).sample
            squares = (predicted.cpu() - velocity(latents, noise)).square().double()
            error += squares.mean(dim=(1, 2, 3)).sum().item()
            independent += independent_loss(self.variance, times).double().sum().item()
        return FlowLoss(error / len(self.images), error / independent)


def spread_times(count: int, seed: int) -> Tensor:
    """Returns [count] times at evenly spaced quantiles of the training's times, in random order."""
    quantiles = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    order = torch.randperm(count, generator=torch_generator(seed, HELD_OUT_TIMES))
    return logit_normal_times(torch.special.ndtri(quantiles))[order].float()
