"""Optimizers, and learning rates that are a function of the step alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import nn


def constant(progress: float) -> float:
    """1 throughout."""
    return 1.0


def cosine(progress: float) -> float:
    """½ (1 + cos π·progress): from 1 to 0 (arXiv 1608.03983)."""
    return 0.5 * (1 + math.cos(math.pi * progress))


SCHEDULES: dict[str, Callable[[float], float]] = {"constant": constant, "cosine": cosine}


class LearningRate:
    """Learning rate of each optimizer step: linear warm-up, then a schedule down to a final share.

    Args:
        peak: the rate after the warm-up.
        schedule: ``constant`` or ``cosine``.
        warmup_steps: steps of linear rise.
        final_scale: the share of ``peak`` at which a falling schedule ends.
        first_step, last_step: the optimizer steps between which the schedule runs.
    """

    def __init__(
        self,
        peak: float,
        *,
        schedule: str = "constant",
        warmup_steps: int = 0,
        final_scale: float = 0.0,
        first_step: int = 0,
        last_step: int,
    ) -> None:
        self.peak = peak
        self.schedule = SCHEDULES[schedule]
        self.warmup_steps = warmup_steps
        self.final_scale = final_scale
        self.first_step = first_step
        self.last_step = last_step

    def at(self, step: int) -> float:
        """The rate of optimizer step ``step``, counted from 0."""
        since = max(0, step - self.first_step)
        if since < self.warmup_steps:
            return self.peak * (since + 1) / self.warmup_steps
        length = max(1, self.last_step - self.first_step - self.warmup_steps)
        progress = min(1.0, (since - self.warmup_steps) / length)
        return self.peak * (self.final_scale + (1 - self.final_scale) * self.schedule(progress))


def adamw(
    parameters: Iterable[nn.Parameter],
    *,
    learning_rate: float,
    betas: tuple[float, float],
    weight_decay: float,
    epsilon: float,
) -> torch.optim.Optimizer:
    """AdamW over the parameters that take a gradient (arXiv 1711.05101)."""
    trainable = [parameter for parameter in parameters if parameter.requires_grad]
    fused = all(parameter.device.type == "cuda" for parameter in trainable)
    return torch.optim.AdamW(
        trainable, lr=learning_rate, betas=betas, weight_decay=weight_decay, eps=epsilon, fused=fused
    )


OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {"adamw": adamw}
