"""Networks in training, and the update that all of them make together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from latentae.training.optim import LearningRate


@dataclass
class Learner:
    """A network wrapped for its devices, with its optimizer and learning rate.

    Attributes:
        name: what its numbers are logged under.
        module: the wrapped network.
        optimizer: torch's own, below whatever wraps it.
        learning_rate: the rate of each optimizer step.
        first_step: the optimizer step at which it starts to learn.
    """

    name: str
    module: nn.Module
    optimizer: torch.optim.Optimizer
    learning_rate: LearningRate
    first_step: int = 0


def update(
    learners: Sequence[Learner], step: int, scaler: Any, max_grad_norm: float | None
) -> dict[str, Tensor]:
    """One optimizer step of every learner that has begun.

    Args:
        learners: with their gradients accumulated; these are cleared afterwards.
        step: optimizer steps done so far.
        scaler: the gradient scaler of float16 training, or None.
        max_grad_norm: each learner's gradients are scaled down to this norm; None leaves them.

    Returns:
        each learner's gradient norm before clipping, and its learning rate.
    """
    active = [learner for learner in learners if step >= learner.first_step]
    numbers: dict[str, Tensor] = {}
    for learner in active:
        if scaler is not None:
            scaler.unscale_(learner.optimizer)
        limit = float("inf") if max_grad_norm is None else max_grad_norm
        norm = nn.utils.clip_grad_norm_(learner.module.parameters(), limit)
        rate = learner.learning_rate.at(step)
        for group in learner.optimizer.param_groups:
            group["lr"] = rate
        numbers |= {
            f"{learner.name}_gradient_norm": norm.detach(),
            f"{learner.name}_learning_rate": torch.full_like(norm, rate),
        }
    for learner in active:
        if scaler is None:
            learner.optimizer.step()
        else:
            scaler.step(learner.optimizer)
        learner.optimizer.zero_grad(set_to_none=True)
    # Once for all of them: an update in between would unscale the next one's gradients by another scale.
    if scaler is not None and active:
        scaler.update()
    return numbers
