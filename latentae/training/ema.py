"""Exponential moving average of a model's weights."""

from __future__ import annotations

import copy
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

Model = TypeVar("Model", bound=nn.Module)


class EMA(Generic[Model]):
    """A copy of a model whose weights follow it slowly.

    θ' ← d θ' + (1 − d) θ with d = min(decay, (1 + n) / (10 + n)) after n updates, so that the random start is
    soon forgotten. Every floating-point value of the state takes part, codebooks too; integers are copied.

    Args:
        model: the model to follow; its present weights are the start.
        decay: in [0, 1); 0 follows at once.
    """

    def __init__(self, model: Model, decay: float) -> None:
        self.model: Model = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay = decay
        self.updates = 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Follows the present weights of ``model``, the unwrapped one, after an optimizer step."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        theirs = model.state_dict()
        averaged: list[Tensor] = []
        followed: list[Tensor] = []
        for name, value in self.model.state_dict().items():
            if value.is_floating_point():
                averaged.append(value)
                followed.append(theirs[name])
            else:
                value.copy_(theirs[name])
        torch._foreach_lerp_(averaged, followed, 1 - decay)

    def state_dict(self) -> dict[str, Tensor | int]:
        """Everything a resume needs: the weights, and the number of updates as ``updates``."""
        return {**self.model.state_dict(), "updates": self.updates}

    def load_state_dict(self, state: dict[str, Tensor | int]) -> None:
        """Takes up a state written by ``state_dict``."""
        weights = dict(state)
        self.updates = int(weights.pop("updates"))
        self.model.load_state_dict(weights)
