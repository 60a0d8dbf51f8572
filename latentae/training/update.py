"""The update: each network's gradients are clipped and its optimizer makes a step, or none of them does."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any

import torch
from torch import Tensor, nn

Accept = Callable[[dict[str, Tensor], Tensor | None], Tensor]
"""Decides whether an update is made, from gradient norms by name and the loss scale, if there is one."""


@dataclass
class Learner:
    """A wrapped network with its optimizer and learning rate.

    Attributes:
        name: what its numbers are logged under.
        module: the wrapped network.
        optimizer: torch's own, without accelerate's wrapper.
        learning_rate: the rate of each optimizer step.
        learns: returns whether the network learns in an optimizer step, counted from 0.
    """

    name: str
    module: nn.Module
    optimizer: torch.optim.Optimizer
    learning_rate: LearningRate
    learns: Callable[[int], bool] = lambda step: True

    @property
    def first_step(self) -> int:
        """The optimizer step at which it starts to learn."""
        return self.learning_rate.first_step


@dataclass
class Update:
    """The result of an update.

    Attributes:
        accepted: a boolean scalar on the device, whether weights were changed; the same on every rank.
        numbers: each network's gradient norm before clipping, and its learning rate.
    """

    accepted: Tensor
    numbers: dict[str, Tensor]


def update(
    learners: Sequence[Learner], step: int, scaler: Any, max_grad_norm: float | None, accept: Accept
) -> Update:
    """Makes one optimizer step of every network that learns in this step, or of none.

    Args:
        learners: with their accumulated gradients, which are cleared afterwards.
        step: optimizer steps done so far.
        scaler: the gradient scaler of float16 training, or None.
        max_grad_norm: each network's gradients are scaled down to this norm; None leaves them.
        accept: decides whether the update is made, such as ``Guard.accept``.
    """
    active = [learner for learner in learners if learner.learns(step)]
    numbers: dict[str, Tensor] = {}
    norms: dict[str, Tensor] = {}
    # Unscale and clip the gradients, and set the learning rates.
    for learner in active:
        if scaler is not None:
            scaler.unscale_(learner.optimizer)
        limit = float("inf") if max_grad_norm is None else max_grad_norm
        norm = nn.utils.clip_grad_norm_(learner.module.parameters(), limit).detach()
        rate = learner.learning_rate.at(step)
        for group in learner.optimizer.param_groups:
            group["lr"] = rate * group.get("lr_scale", 1.0)
        norms[f"{learner.name}_gradient_norm"] = norm
        numbers[f"{learner.name}_learning_rate"] = torch.full_like(norm, rate)
    # Decide for all networks at once, from all their norms, and step.
    accepted = accept(norms, None if scaler is None else _loss_scale(scaler))
    for learner in active:
        _step(learner.optimizer, accepted)
        learner.optimizer.zero_grad(set_to_none=True)
    # Update the scale once: in between, the next network's gradients would be unscaled by another scale.
    if scaler is not None and active:
        scaler.update()
    return Update(accepted, norms | numbers)


def _step(optimizer: torch.optim.Optimizer, accepted: Tensor) -> None:
    """Makes a step if it is accepted. Fused kernels on a GPU read the flag there; others wait for it."""
    if accepted.is_cuda and getattr(optimizer, "_step_supports_amp_scaling", False):
        optimizer.found_inf = 1 - accepted.float()  # type: ignore[attr-defined]
        optimizer.step()
        del optimizer.found_inf  # type: ignore[attr-defined]
    elif accepted:
        optimizer.step()


def _loss_scale(scaler: Any) -> Tensor:
    """Returns the factor on the losses, on the device. ``get_scale`` would wait for it."""
    scale: Tensor = scaler._scale
    return scale


# Learning rates


# From the progress through the fall, in [0, 1], to the share of the rate.
SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda progress: 1.0,
    "cosine": lambda progress: 0.5 * (1 + math.cos(math.pi * progress)),  # arXiv 1608.03983
    "wsd": lambda progress: 1 - math.sqrt(progress),  # warmup-stable-decay: arXiv 2404.06395, 2405.18392
}


@dataclass(frozen=True)
class LearningRate:
    """A learning rate that is a function of the step alone: linear warm-up, then a schedule.

    Attributes:
        peak: the rate after the warm-up.
        last_step: the optimizer step at which the schedule ends.
        first_step: the step at which it begins.
        schedule: one of ``SCHEDULES``.
        warmup_steps: steps of linear rise.
        decay_share: share of the steps after the warm-up, at their end, over which ``wsd`` falls.
        final_scale: the share of ``peak`` at which a falling schedule ends.
    """

    peak: float
    _: KW_ONLY
    last_step: int
    first_step: int = 0
    schedule: str = "constant"
    warmup_steps: int = 0
    decay_share: float = 0.2
    final_scale: float = 0.0

    def at(self, step: int) -> float:
        """Returns the rate of optimizer step ``step``, counted from 0."""
        since, steps = max(0, step - self.first_step), self.last_step - self.first_step
        if since < self.warmup_steps:
            return self.peak * (since + 1) / self.warmup_steps
        falling = max(0, steps - self.warmup_steps) * (self.decay_share if self.schedule == "wsd" else 1.0)
        progress = min(1.0, max(0.0, 1 - (steps - since) / max(1.0, falling)))
        return self.peak * (self.final_scale + (1 - self.final_scale) * SCHEDULES[self.schedule](progress))
