"""Vector quantization with a codebook trained by gradient (van den Oord et al. 2017, arXiv 1711.00937)."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from latentae.quantizers.codebook import CodebookQuantizer
from latentae.quantizers.quantizer import Quantizer


class VectorQuantizer(CodebookQuantizer):
    """The quantizer of VQ-VAE and VQGAN: ‖sg[z] − e‖² + β ‖z − sg[e]‖², equation 3 of the paper.

    Both terms are means over the values of the latents.

    Args:
        num_codes, code_dim, gradient, init, revive_after: as in ``CodebookQuantizer``.
        commitment_weight, codebook_weight: as in ``CodebookQuantizer``.
        legacy_loss_order: put each weight on the other term, so that β stands on the codebook term. The first
            VQGANs and all that kept their default were trained so (``legacy=True`` in taming-transformers and
            diffusers). Use it to continue their training.

    Raises:
        ValueError: as ``CodebookQuantizer``.
    """

    alternatives = ("ema", "simvq", "fsq")

    def __init__(
        self, num_codes: int, code_dim: int, *, legacy_loss_order: bool = False, **options: Any
    ) -> None:
        super().__init__(num_codes, code_dim, **options)
        self.legacy_loss_order = legacy_loss_order

    def losses(self, flat: Tensor, codes: Tensor) -> dict[str, Tensor]:
        if not self.legacy_loss_order:
            return super().losses(flat, codes)
        return {
            "codebook": self.commitment_weight * F.mse_loss(codes, flat.detach()),
            "commitment": self.codebook_weight * F.mse_loss(flat, codes.detach()),
        }


def plain_quantizer(quantizer: Quantizer) -> VectorQuantizer:
    """Returns a plain codebook that gives every latent the same code as ``quantizer``.

    Raises:
        ValueError: there is no such table.
    """
    if not quantizer.is_euclidean:
        raise ValueError(f"the codes of a {type(quantizer).__name__} are not the nearest ones of one table")
    codes = quantizer.euclidean_codebook()
    plain = VectorQuantizer(*codes.shape, init="uniform").to(codes)
    plain.embedding.weight.data = codes.clone()
    return plain.train(quantizer.training)
