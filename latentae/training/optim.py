"""Optimizers, and learning rates that are a function of the step alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module

import torch
from torch import nn


def constant(progress: float) -> float:
    """1 throughout."""
    return 1.0


def cosine(progress: float) -> float:
    """½ (1 + cos π·progress): from 1 to 0 (arXiv 1608.03983)."""
    return 0.5 * (1 + math.cos(math.pi * progress))


def one_minus_root(progress: float) -> float:
    """1 − √progress: from 1 to 0, the decay of a warmup-stable-decay schedule (arXiv 2405.18392)."""
    return 1 - math.sqrt(progress)


SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": constant,
    "cosine": cosine,
    "wsd": one_minus_root,
}


class LearningRate:
    """Learning rate of each optimizer step: linear warm-up, then a schedule down to a final share.

    Args:
        peak: the rate after the warm-up.
        schedule: ``constant``, ``cosine``, or ``wsd``: warmup-stable-decay (arXiv 2404.06395).
        warmup_steps: steps of linear rise.
        decay_share: share of the steps after the warm-up, at their end, over which ``wsd`` falls.
        final_scale: the share of ``peak`` at which a falling schedule ends.
        first_step, last_step: the optimizer steps between which the schedule runs.
    """

    def __init__(
        self,
        peak: float,
        *,
        schedule: str = "constant",
        warmup_steps: int = 0,
        decay_share: float = 0.2,
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
        falling = max(0, last_step - first_step - warmup_steps) * (decay_share if schedule == "wsd" else 1.0)
        self.falls_for = max(1.0, falling)

    def at(self, step: int) -> float:
        """The rate of optimizer step ``step``, counted from 0."""
        since = max(0, step - self.first_step)
        if since < self.warmup_steps:
            return self.peak * (since + 1) / self.warmup_steps
        progress = min(1.0, max(0.0, 1 - (self.last_step - self.first_step - since) / self.falls_for))
        return self.peak * (self.final_scale + (1 - self.final_scale) * self.schedule(progress))


def adamw(
    parameters: Iterable[nn.Parameter],
    *,
    learning_rate: float,
    betas: tuple[float, float],
    weight_decay: float,
    epsilon: float,
) -> torch.optim.Optimizer:
    """AdamW over the parameters that take a gradient (arXiv 1711.05101).

    Torch's fused kernel where there is one: faster, and it can skip a step on the device (``found_inf``).
    """
    trainable = _trainable(parameters)
    fused = all(parameter.device.type in ("cpu", "cuda") for parameter in trainable)
    return torch.optim.AdamW(
        trainable, lr=learning_rate, betas=betas, weight_decay=weight_decay, eps=epsilon, fused=fused
    )


def adamw8bit(
    parameters: Iterable[nn.Parameter],
    *,
    learning_rate: float,
    betas: tuple[float, float],
    weight_decay: float,
    epsilon: float,
) -> torch.optim.Optimizer:
    """bitsandbytes' AdamW with 8-bit averages (arXiv 2110.02861), of tensors of 4096 numbers or more.

    Raises:
        ValueError: bitsandbytes is not installed.
    """
    try:
        library = import_module("bitsandbytes")
    except ModuleNotFoundError as error:
        raise ValueError(
            "optimizer.type is adamw8bit, which needs a package that is not installed: "
            "pip install bitsandbytes, or use adamw"
        ) from error
    optimizer: torch.optim.Optimizer = library.optim.AdamW8bit(
        _trainable(parameters), lr=learning_rate, betas=betas, weight_decay=weight_decay, eps=epsilon
    )
    return optimizer


OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {"adamw": adamw, "adamw8bit": adamw8bit}


@contextmanager
def keep_settings(optimizers: Sequence[torch.optim.Optimizer]) -> Iterator[None]:
    """Loads only averages and counts of optimizers in its body; their settings stay what they are.

    A state dict also holds the settings of its own run (betas, epsilon, weight decay, a group's share of the
    learning rate, the kernel), and loading it would put these in the place of what the config says.
    """
    settings = [
        [{name: value for name, value in group.items() if name != "params"} for group in one.param_groups]
        for one in optimizers
    ]
    yield
    for optimizer, groups in zip(optimizers, settings, strict=True):
        for group, own in zip(optimizer.param_groups, groups, strict=True):
            group.update(own)
        # Once more under these settings: they decide on which device the fused kernel finds its counts.
        optimizer.load_state_dict(optimizer.state_dict())


def _trainable(parameters: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    return [parameter for parameter in parameters if parameter.requires_grad]
