"""Vector quantization with a codebook trained by gradient (van den Oord et al. 2017, arXiv 1711.00937)."""

from __future__ import annotations

from torch import Tensor

from latentae.quantizers.codebook import CodebookQuantizer, two_way_losses
from latentae.quantizers.quantizer import Quantizer, check_weights


class VectorQuantizer(CodebookQuantizer):
    """The quantizer of VQ-VAE and VQGAN: ‖sg[z] − e‖² + β ‖z − sg[e]‖², equation 3 of the paper.

    Both terms are means over the values of the latents.

    Args:
        num_codes, code_dim, gradient, init, revive_after: as in ``CodebookQuantizer``; ``init="uniform"``
            draws codes from U(−1/K, 1/K) as VQModel does.
        commitment_weight: β, what pulls the latents to their codes.
        codebook_weight: weight of the term that pulls the codes to their latents.
        legacy_loss_order: put either weight on the other term, so that β stands on the codebook term. That is
            how the first VQGANs and all that kept their default were trained (``legacy=True`` in
            taming-transformers and diffusers): for continuing those.

    Raises:
        ValueError: as ``CodebookQuantizer``; a weight below zero.
    """

    def __init__(
        self,
        num_codes: int,
        code_dim: int,
        *,
        commitment_weight: float = 0.25,
        codebook_weight: float = 1.0,
        legacy_loss_order: bool = False,
        gradient: str = "straight_through",
        init: str = "data",
        revive_after: int | None = None,
    ) -> None:
        super().__init__(num_codes, code_dim, gradient=gradient, init=init, revive_after=revive_after)
        check_weights(commitment_weight=commitment_weight, codebook_weight=codebook_weight)
        self.commitment_weight = commitment_weight
        self.codebook_weight = codebook_weight
        self.legacy_loss_order = legacy_loss_order

    def losses(self, flat: Tensor, codes: Tensor) -> dict[str, Tensor]:
        codebook, commitment = self.codebook_weight, self.commitment_weight
        if self.legacy_loss_order:
            codebook, commitment = commitment, codebook
        return two_way_losses(flat, codes, codebook_weight=codebook, commitment_weight=commitment)


def plain_quantizer(quantizer: Quantizer) -> VectorQuantizer:
    """A table written out that gives every latent the code which ``quantizer`` gives it.

    Raises:
        ValueError: there is no such table.
    """
    if not quantizer.is_euclidean:
        raise ValueError(f"the codes of a {type(quantizer).__name__} are not the nearest ones of one table")
    codes = quantizer.euclidean_codebook()
    plain = VectorQuantizer(*codes.shape, init="uniform").to(codes)
    plain.embedding.weight.data = codes.clone()
    return plain.train(quantizer.training)
