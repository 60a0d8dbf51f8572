"""Networks in training, and the update that all of them make together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from latentae.training.optim import LearningRate

Judge = Callable[[dict[str, Tensor], Tensor | None], Tensor]
"""From gradient norms by name, and the loss scale if there is one, whether the update may be made."""


@dataclass
class Learner:
    """A network wrapped for its devices, with its optimizer and learning rate.

    Attributes:
        name: what its numbers are logged under.
        module: the wrapped network.
        optimizer: torch's own, below whatever wraps it.
        learning_rate: the rate of each optimizer step.
        first_step: the optimizer step at which it starts to learn.
        every: it learns at ``first_step`` and every so many steps after it.
    """

    name: str
    module: nn.Module
    optimizer: torch.optim.Optimizer
    learning_rate: LearningRate
    first_step: int = 0
    every: int = 1

    def learns(self, step: int) -> bool:
        """Whether it takes part in optimizer step ``step``, counted from 0."""
        return step >= self.first_step and (step - self.first_step) % self.every == 0


@dataclass
class Update:
    """What an update did.

    Attributes:
        accepted: a boolean scalar on the device, whether weights were changed; the same on every rank.
        numbers: each learner's gradient norm before clipping, and its learning rate.
    """

    accepted: Tensor
    numbers: dict[str, Tensor]


def update(
    learners: Sequence[Learner], step: int, scaler: Any, max_grad_norm: float | None, judge: Judge
) -> Update:
    """One optimizer step of every learner whose turn it is, or of none.

    Args:
        learners: with their gradients accumulated; these are cleared afterwards.
        step: optimizer steps done so far.
        scaler: the gradient scaler of float16 training, or None.
        max_grad_norm: each learner's gradients are scaled down to this norm; None leaves them.
        judge: decides, such as ``Guard.judge``.
    """
    active = [learner for learner in learners if learner.learns(step)]
    numbers: dict[str, Tensor] = {}
    norms: dict[str, Tensor] = {}
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
    accepted = judge(norms, None if scaler is None else _loss_scale(scaler))
    for learner in active:
        _step(learner.optimizer, accepted)
        learner.optimizer.zero_grad(set_to_none=True)
    # Once for all of them: an update in between would unscale the next one's gradients by another scale.
    if scaler is not None and active:
        scaler.update()
    return Update(accepted, norms | numbers)


def _step(optimizer: torch.optim.Optimizer, accepted: Tensor) -> None:
    """A step under a flag: fused kernels on a GPU read it there, others make Python wait for it."""
    if accepted.is_cuda and getattr(optimizer, "_step_supports_amp_scaling", False):
        optimizer.found_inf = 1 - accepted.float()  # type: ignore[attr-defined]
        optimizer.step()
        del optimizer.found_inf  # type: ignore[attr-defined]
    elif accepted:
        optimizer.step()


def _loss_scale(scaler: Any) -> Tensor:
    """The factor on the losses, on the device, where ``get_scale`` would wait for it."""
    scale: Tensor = scaler._scale
    return scale
