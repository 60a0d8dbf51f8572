"""What every quantizer returns."""

from __future__ import annotations

from dataclasses import dataclass

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
