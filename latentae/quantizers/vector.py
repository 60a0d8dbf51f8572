"""Codebooks trained by gradient: that of VQ-VAE and VQGAN, codes on the unit sphere, and SimVQ."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentae.devices import to_float64_on_cpu
from latentae.quantizers.codebook import CodebookQuantizer
from latentae.quantizers.lookup import precise_product
from latentae.quantizers.quantizer import Quantizer, Weights, precise


class VectorQuantizer(CodebookQuantizer):
    """The quantizer of VQ-VAE and VQGAN (van den Oord et al. 2017, arXiv 1711.00937).

    Its loss is equation 3 of the paper, ‖sg[z] − e‖² + β ‖z − sg[e]‖². Both terms are means over the values
    of the latents.

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


class CosineQuantizer(CodebookQuantizer):
    """Codes on the unit sphere, chosen by direction (Yu et al. 2022, ViT-VQGAN, arXiv 2110.04627; LlamaGen).

    Latents and codes are scaled to unit length, and the code with the smallest angle is chosen. The losses
    are between unit vectors, and the output is codes of unit length. The papers look up in few dimensions
    (LlamaGen: 8), to which the convolution in front of the quantizer projects.

    All codes have the same length, so the nearest one by Euclidean distance is the same for a latent of any
    length: a plain codebook of the unit codes quantizes alike. ``init="uniform"`` scales the codes it draws
    to unit length. K-means does so in each round.
    """

    spherical = True

    def initialise(self) -> None:
        super().initialise()
        weight = self.embedding.weight
        weight.data = F.normalize(weight.data, dim=1)

    def table(self, device: torch.device) -> Tensor:
        return self.prepare(precise(super().table(device)))

    def prepare(self, flat: Tensor) -> Tensor:
        return F.normalize(flat, dim=1)

    def moved_weights(self, shift: Tensor, scale: Tensor) -> Weights | None:
        return None  # directions depend on where the origin is


class SimVQuantizer(CodebookQuantizer):
    """A frozen codebook behind a learned linear layer (Zhu et al. 2024, SimVQ, arXiv 2411.02038).

    The codes are e W + b with e frozen: each step moves all of them, and none is left behind. The codebook
    term of the losses trains W and b. Written out, the table e W + b is a plain codebook. ``init="normal"``
    draws e from N(0, 1/d), and W as linear layers are drawn, as published. ``data`` places
    e by k-means, and W starts as the identity. Reviving a code is the one exception to e being frozen.
    """

    starts = ("normal", "data")

    def initialise(self) -> None:
        super().initialise()
        nn.init.normal_(self.embedding.weight, std=self.code_dim**-0.5)
        self.embedding.requires_grad_(False)
        self.projection = nn.Linear(self.code_dim, self.code_dim)
        if self.init == "data":
            nn.init.eye_(self.projection.weight)
            nn.init.zeros_(self.projection.bias)

    def table(self, device: torch.device) -> Tensor:
        frozen, weight, bias = super().table(device), self.projection.weight, self.projection.bias
        if weight.device != device:  # offloaded: only a call of its module moves it
            with torch.autocast(device.type, enabled=False):
                return self.projection(frozen)
        return precise_product(precise(frozen), precise(weight).T) + precise(bias)

    def moved_weights(self, shift: Tensor, scale: Tensor) -> Weights | None:
        weight, bias = self.projection.weight, self.projection.bias
        precise, offset = (to_float64_on_cpu(value.detach()) for value in (weight, bias))
        return [(weight, precise * scale), (bias, (offset - shift) * scale)]

    @torch.no_grad()
    def replace(self, mask: Tensor, codes: Tensor) -> None:
        """Moves the frozen codes where mask [K] is true, so that the layer maps them to codes [K, d]."""
        weight, bias = self.projection.weight, self.projection.bias
        # A check whether it could be solved would wait for the device. If it could not, the values are not
        # finite, and those codes stay.
        behind, _ = torch.linalg.solve_ex(precise(weight), precise(codes - bias).T)
        behind = behind.T.to(codes)
        super().replace(mask & behind.isfinite().all(dim=1), behind)


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
