"""The flow loss on held-out latents: the same noise and times at every measurement, and for every model."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from diffusers import DiTTransformer2DModel
from torch import Tensor

from latentae.probe.batches import LatentBatch
from latentae.probe.flow import (
    NUM_TRAIN_TIMESTEPS,
    independent_loss,
    logit_normal_times,
    noisy_latents,
    velocity,
)
from latentae.probe.randomness import generator

_FEWEST_DRAWS = 256


@dataclass(frozen=True)
class FlowLoss:
    """A denoiser's loss.

    Attributes:
        loss: mean squared error of the velocity, a value of the latents; it rises with what latents hold of
            noise and fine detail, and cannot be compared between latent spaces.
        relative_loss: divided by what is reached without knowing anything but each channel's variance; 1 is
            nothing learned.
    """

    loss: float
    relative_loss: float


class FlowValidation:
    """Measures denoisers on held-out latents, each seen at several times where there are few.

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
        """The loss of a denoiser, in the mode that it is in."""
        device = next(denoiser.parameters()).device
        error, independent = 0.0, 0.0
        for start in range(0, len(self.images), self.batch_size):
            chosen = self.images[start : start + self.batch_size]
            times = self.times[start : start + self.batch_size]
            latents = self.held_out.latents[chosen]
            draws = generator(self.seed, "validation", start)
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
    """[count] times at evenly spaced quantiles of those that are trained on, in random order."""
    quantiles = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    order = torch.randperm(count, generator=generator(seed, "times"))
    return logit_normal_times(torch.special.ndtri(quantiles))[order].float()
