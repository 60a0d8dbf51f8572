"""A frozen codebook behind one learned linear layer (Zhu et al. 2024, SimVQ, arXiv 2411.02038)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from latentae.devices import to_float64_on_cpu
from latentae.quantizers.codebook import CodebookQuantizer, two_way_losses
from latentae.quantizers.products import precise_product
from latentae.quantizers.quantizer import Weights, check_weights, precise


class SimVQuantizer(CodebookQuantizer):
    """The codes are e W + b with e frozen: each step moves all of them, and none is left behind.

    Losses are those of ``VectorQuantizer``; the codebook term trains W and b. Written out, the table e W + b
    is a plain codebook.

    Args:
        num_codes, code_dim, gradient, init, revive_after: as in ``CodebookQuantizer``. ``init="normal"``
            draws e from N(0, 1/d), and W as linear layers are, as published; ``data`` places e by k-means,
            and W starts as the identity. A code that is revived is the one exception to e being frozen.
        commitment_weight, codebook_weight: as in ``VectorQuantizer``.

    Raises:
        ValueError: as ``CodebookQuantizer``; a weight below zero.
    """

    starts = ("normal", "data")

    def __init__(
        self,
        num_codes: int,
        code_dim: int,
        *,
        commitment_weight: float = 0.25,
        codebook_weight: float = 1.0,
        gradient: str = "straight_through",
        init: str = "data",
        revive_after: int | None = None,
    ) -> None:
        super().__init__(num_codes, code_dim, gradient=gradient, init=init, revive_after=revive_after)
        check_weights(commitment_weight=commitment_weight, codebook_weight=codebook_weight)
        self.commitment_weight = commitment_weight
        self.codebook_weight = codebook_weight
        nn.init.normal_(self.embedding.weight, std=code_dim**-0.5)
        self.embedding.requires_grad_(False)
        self.projection = nn.Linear(code_dim, code_dim)
        if init == "data":
            nn.init.eye_(self.projection.weight)
            nn.init.zeros_(self.projection.bias)

    def table(self, device: torch.device) -> Tensor:
        frozen, weight, bias = self._weight(device), self.projection.weight, self.projection.bias
        if weight.device != device:  # offloaded, and brought here by a call of its module alone
            with torch.autocast(device.type, enabled=False):
                return self.projection(frozen)
        return precise_product(precise(frozen), precise(weight).T) + precise(bias)

    def losses(self, flat: Tensor, codes: Tensor) -> dict[str, Tensor]:
        return two_way_losses(
            flat, codes, codebook_weight=self.codebook_weight, commitment_weight=self.commitment_weight
        )

    def moved_weights(self, shift: Tensor, scale: Tensor) -> Weights | None:
        weight, bias = self.projection.weight, self.projection.bias
        precise, offset = (to_float64_on_cpu(value.detach()) for value in (weight, bias))
        return [(weight, precise * scale), (bias, (offset - shift) * scale)]

    @torch.no_grad()
    def replace(self, mask: Tensor, codes: Tensor) -> None:
        """Puts, where mask [K] is true, what the linear layer turns into codes [K, d]."""
        weight, bias = self.projection.weight, self.projection.bias
        # Without a look at whether it could be solved, which would wait for the device: where it could not,
        # the values are not finite, and those codes stay.
        behind, _ = torch.linalg.solve_ex(precise(weight), precise(codes - bias).T)
        behind = behind.T.to(codes)
        super().replace(mask & behind.isfinite().all(dim=1), behind)
