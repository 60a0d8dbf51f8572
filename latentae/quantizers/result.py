"""What every quantizer returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass
class QuantizerOutput:
    """A batch of quantized latents.

    Attributes:
        quantized: [B, d, h, w], in the dtype of the latents; its gradient reaches the encoder.
        indices: [B, h, w] int64, which code stands at each position.
        losses: name to scalar, already weighted; their sum is what the quantizer adds to the training loss.
    """

    quantized: Tensor
    indices: Tensor
    losses: dict[str, Tensor]

    def __getitem__(self, index: int) -> Any:
        """The tuple that diffusers' VectorQuantizer returns: codes, loss, (None, None, flat indices)."""
        loss = torch.stack(list(self.losses.values())).sum()
        return (self.quantized, loss, (None, None, self.indices.flatten()))[index]
