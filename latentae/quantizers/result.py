"""What every quantizer returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from latentae.quantizers.health import CodebookHealth, code_counts, codebook_health


class FlatOutput(NamedTuple):
    """Latents [N, d] quantized, before they are laid out as maps.

    Attributes:
        quantized: [N, d], whose gradient reaches the latents.
        indices: [N] int64, or [N, depth] of a composition.
        losses: as in ``QuantizerOutput``.
    """

    quantized: Tensor
    indices: Tensor
    losses: dict[str, Tensor]


@dataclass
class QuantizerOutput:
    """A batch of quantized latents.

    Attributes:
        quantized: [B, d, h, w], in the dtype of the latents; its gradient reaches the encoder.
        indices: [B, h, w] int64, which code stands at each position; [B, depth, h, w] of a composition.
        losses: name to scalar, already weighted; their sum is what the quantizer adds to the training loss.
        num_codes: K, how many codes each table has.
    """

    quantized: Tensor
    indices: Tensor
    losses: dict[str, Tensor]
    num_codes: int

    @property
    def loss(self) -> Tensor:
        """The sum of the losses; 0 where there are none."""
        if not self.losses:
            return torch.zeros((), device=self.quantized.device)
        return torch.stack(list(self.losses.values())).sum()

    @property
    def health(self) -> CodebookHealth:
        """Usage and perplexity of this batch alone; waits for the device."""
        return codebook_health(code_counts(self.indices, self.num_codes))

    def __getitem__(self, index: int) -> Any:
        """The tuple that diffusers' VectorQuantizer returns: codes, loss, (None, None, flat indices)."""
        return (self.quantized, self.loss, (None, None, self.indices.flatten()))[index]
