"""The autoencoder together with what is learned of its loss: one module to wrap, save and optimize."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from latentae.models.latent import AutoencoderOutput
from latentae.quantizers import Quantizer


@dataclass
class TrainableOutput(AutoencoderOutput):
    """What the autoencoder gives, and what further losses need.

    Attributes:
        low_passed: [B, C, H', W'] what the low-passed latents are decoded to.
        projected: [B, d, h, w] the latents in the feature space that they are aligned with.
    """

    low_passed: Tensor | None = None
    projected: Tensor | None = None


class TrainableAutoencoder(nn.Module):
    """An autoencoder that carries its loss's learned parameters, such as a likelihood's log-variance.

    Gradients are averaged over ranks, clipped and saved for the modules that are wrapped, and a loss is not.
    Here its parameters are those of a module that is, and so is all that a step decodes: the wrapped module's
    forward is called once.

    Args:
        autoencoder: the bare model.
        objective: the loss; its parameters that take a gradient are the learned ones, shared and not copied.
        learning_rate_scale: their learning rate, as a multiple of the autoencoder's.
        projection: from latents to the features they are aligned with; learns as the autoencoder does.
    """

    def __init__(
        self,
        autoencoder: nn.Module,
        objective: nn.Module,
        *,
        learning_rate_scale: float = 1.0,
        projection: nn.Module | None = None,
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
        self.projection = projection

    def forward(
        self, *arguments: Any, low_pass: Callable[[Tensor], Tensor] | None = None, **options: Any
    ) -> Any:
        """What the autoencoder gives; a ``TrainableOutput`` where more is asked for.

        Args:
            low_pass: makes latents smaller, which are then decoded, too. A codebook does not count them.
        """
        output = self.autoencoder(*arguments, **options)
        if low_pass is None and self.projection is None:
            return output
        latents = output.latents
        return TrainableOutput(
            **output,
            low_passed=None if low_pass is None else self._decode_uncounted(low_pass(latents)),
            projected=None if self.projection is None else self.projection(latents),
        )

    def _decode_uncounted(self, latents: Tensor) -> Tensor:
        quantizer = getattr(self.autoencoder, "quantize", None)
        if not isinstance(quantizer, Quantizer):
            return self.autoencoder.decode(latents).sample  # type: ignore[operator]
        frozen, quantizer.frozen = quantizer.frozen, True
        try:
            return self.autoencoder.decode(latents).sample  # type: ignore[operator]
        finally:
            quantizer.frozen = frozen

    def set_apart(self, optimizer: torch.optim.Optimizer) -> None:
        """Moves the learned parameters to a group of their own: another rate, and no decay towards 0.

        Args:
            optimizer: a new one, over this module's parameters.
        """
        learned = list(self.learned.values())
        if not learned:
            return
        known = {id(parameter) for parameter in learned}
        for group in optimizer.param_groups:
            group["params"] = [parameter for parameter in group["params"] if id(parameter) not in known]
        optimizer.add_param_group(
            {"params": learned, "weight_decay": 0.0, "lr_scale": self.learning_rate_scale}
        )
