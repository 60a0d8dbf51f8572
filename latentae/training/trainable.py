"""The autoencoder together with what is learned of its loss: one module to wrap, save and optimize."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


class TrainableAutoencoder(nn.Module):
    """An autoencoder that carries its loss's learned parameters, such as a likelihood's log-variance.

    Gradients are averaged over ranks, clipped and saved for the modules that are wrapped, and a loss is not.
    Here its parameters are those of a module that is. The ``forward`` is the autoencoder's.

    Args:
        autoencoder: the bare model.
        objective: the loss; its parameters that take a gradient are the learned ones, shared and not copied.
        learning_rate_scale: their learning rate, as a multiple of the autoencoder's.
    """

    def __init__(
        self, autoencoder: nn.Module, objective: nn.Module, *, learning_rate_scale: float = 1.0
    ) -> None:
        super().__init__()
        self.autoencoder = autoencoder
        self.learned = nn.ParameterDict(
            {
                name.replace(".", "_"): parameter
                for name, parameter in objective.named_parameters()
                if parameter.requires_grad
            }
        )
        self.learning_rate_scale = learning_rate_scale

    def forward(self, *arguments: Any, **options: Any) -> Any:
        """What the autoencoder gives."""
        return self.autoencoder(*arguments, **options)

    def set_apart(self, optimizer: torch.optim.Optimizer) -> None:
        """Moves the learned parameters to a group of their own: another rate, and no decay towards 0.

        Args:
            optimizer: a new one, over this module's parameters.
        """
        learned = list(self.learned.values())
        known = {id(parameter) for parameter in learned}
        for group in optimizer.param_groups:
            group["params"] = [parameter for parameter in group["params"] if id(parameter) not in known]
        optimizer.add_param_group(
            {"params": learned, "weight_decay": 0.0, "lr_scale": self.learning_rate_scale}
        )
