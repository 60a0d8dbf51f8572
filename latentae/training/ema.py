"""Exponential moving average of a model's weights."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

Model = TypeVar("Model", bound=nn.Module)


class EMA(Generic[Model]):
    """A copy of a model with the moving average of its weights.

    θ' ← d θ' + (1 − d) θ with d = min(decay, (1 + n) / (10 + n)) after n updates. Until the decay is reached,
    this averages over about the last ninth of the run, so the random start is soon forgotten. Every
    floating-point value of the state is averaged, codebooks too. Integers are copied.

    Args:
        model: the model to average, on its device. The average starts at its present weights.
        decay: in [0, 1); 0 copies the weights.
        frozen: names of modules that do not learn. Their values are copied: an average of equal numbers is
            that number, but of -0.0 it is 0.0, and frozen weights stay the same to the bit.
    """

    def __init__(self, model: Model, decay: float, frozen: Sequence[str] = ()) -> None:
        self.model: Model = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay = decay
        self.frozen = tuple(f"{name}." for name in frozen)
        device = next((value.device for value in self.model.state_dict().values()), None)
        self.updates = torch.zeros((), dtype=torch.int64, device=device)

    @torch.no_grad()
    def update(self, model: nn.Module, accepted: Tensor | bool = True) -> None:
        """Takes the present weights of ``model``, the unwrapped one, into the average.

        Args:
            accepted: whether the optimizer step was made. If not, nothing changes, provided that the model's
                values are finite. A boolean scalar on the device, which is not waited for, or a bool.
        """
        accepted = torch.as_tensor(accepted, device=self.updates.device)
        # 1 − d, calculated without the difference: in float32, 1 − 0.9999 is off by 2e-4 of itself.
        share = torch.where(accepted, (9 / (10 + self.updates)).clamp(min=1 - self.decay), 0.0)
        self.updates += accepted
        theirs = model.state_dict()
        averaged: list[Tensor] = []
        followed: list[Tensor] = []
        for name, value in self.model.state_dict().items():
            if value.is_floating_point() and not name.startswith(self.frozen):
                averaged.append(value)
                followed.append(theirs[name])
            else:
                value.copy_(torch.where(accepted, theirs[name], value))
        shares = {value.dtype: share.to(value.dtype) for value in averaged}
        torch._foreach_lerp_(averaged, followed, [shares[value.dtype] for value in averaged])

    def state_dict(self) -> dict[str, Tensor]:
        """Returns everything a resume needs: the weights, and the number of updates as ``updates``."""
        return {**self.model.state_dict(), "updates": self.updates}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Loads a state that ``state_dict`` returned."""
        weights = dict(state)
        self.updates.fill_(weights.pop("updates"))
        self.model.load_state_dict(weights)
