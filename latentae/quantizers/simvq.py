"""A frozen codebook behind one learned linear layer (Zhu et al. 2024, SimVQ, arXiv 2411.02038)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from latentae.devices import to_float64_on_cpu
from latentae.quantizers.codebook import CodebookQuantizer
from latentae.quantizers.lookup import precise_product
from latentae.quantizers.quantizer import Weights, precise


class SimVQuantizer(CodebookQuantizer):
    """The codes are e W + b with e frozen: each step moves all of them, and none is left behind.

    The codebook term of the losses trains W and b. Written out, the table e W + b is a plain codebook.
    ``init="normal"`` draws e from N(0, 1/d), and W as linear layers are drawn, as published. ``data`` places
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
