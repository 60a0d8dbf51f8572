"""Vector quantization with a codebook trained by gradient (van den Oord et al. 2017, arXiv 1711.00937)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from latentae.quantizers.codebook import CodebookQuantizer


class VectorQuantizer(CodebookQuantizer):
    """The quantizer of VQ-VAE and VQGAN: ‖sg[z] − e‖² + β ‖z − sg[e]‖², equation 3 of the paper.

    Both terms are means over the values of the latents. Here β stands on the commitment term, as published;
    some public code has it on the codebook term.

    Args:
        num_codes, code_dim, init, revive_after: as in ``CodebookQuantizer``.
        commitment_weight: β, what pulls the latents to their codes.
        codebook_weight: weight of the term that pulls the codes to their latents.
    """

    def __init__(
        self,
        num_codes: int,
        code_dim: int,
        *,
        commitment_weight: float = 0.25,
        codebook_weight: float = 1.0,
        init: str = "data",
        revive_after: int | None = None,
    ) -> None:
        super().__init__(num_codes, code_dim, init=init, revive_after=revive_after)
        self.commitment_weight = commitment_weight
        self.codebook_weight = codebook_weight

    def losses(self, flat: Tensor, codes: Tensor) -> dict[str, Tensor]:
        return {
            "codebook": self.codebook_weight * F.mse_loss(codes, flat.detach()),
            "commitment": self.commitment_weight * F.mse_loss(flat, codes.detach()),
        }
