"""Rectified flow: what a denoiser is trained to predict, at which times, and what the loss compares with.

Liu, Gong and Liu 2022 (arXiv 2209.03003) and Esser et al. 2024 (arXiv 2403.03206), in diffusers' direction:
at time t = 0 there are the data x, at t = 1 the noise ε, and x_t = (1 − t) x + t ε.
"""

from __future__ import annotations

import torch
from torch import Tensor

NUM_TRAIN_TIMESTEPS = 1000
"""What diffusers' schedulers multiply the time by before a denoiser sees it."""


def logit_normal_times(normal: Tensor) -> Tensor:
    """Times in (0, 1): the logistic function of standard normal numbers, of any shape.

    Esser et al. 2024, section 3.1, with m = 0 and s = 1: most in the middle, where the prediction is hardest.
    """
    return torch.sigmoid(normal)


def noisy_latents(latents: Tensor, noise: Tensor, times: Tensor) -> Tensor:
    """x_t = (1 − t) x + t ε of latents and noise [B, c, h, w], and times [B]."""
    t = times[:, None, None, None]
    return (1 - t) * latents + t * noise


def velocity(latents: Tensor, noise: Tensor) -> Tensor:
    """dx_t / dt = ε − x [B, c, h, w], which is what the denoiser predicts."""
    return noise - latents


def independent_loss(variance: Tensor, times: Tensor) -> Tensor:
    """The least mean squared error [B] of the velocity, were every value of the latents on its own.

    Of a normal variable x with variance s², Var(ε − x | x_t) = s² / ((1 − t)² s² + t²); averaged over the
    channels. A denoiser's loss divided by this says how much it knows of what latents have to do with each
    other: 1 is nothing. Unlike the loss itself it does not change with the latents' scale.

    Args:
        variance: [c] of each channel of the latents.
        times: [B] in (0, 1].
    """
    t = times[:, None]
    return (variance / ((1 - t).square() * variance + t.square())).mean(dim=1)
