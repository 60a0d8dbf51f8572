"""The base of quantizers with a table of codes: nearest-code look-up, losses, start from data, upkeep."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentae import distributed
from latentae.devices import to_device, to_float64_on_cpu
from latentae.quantizers.gradient import GRADIENTS, check_gradient
from latentae.quantizers.lookup import nearest_code
from latentae.quantizers.quantizer import (
    FlatOutput,
    Quantizer,
    Weights,
    check_counts,
    check_init,
    check_weights,
    table_of,
)
from latentae.quantizers.start import k_means

_LATENTS_PER_CODE = 4
_REVIVE_AFTER = 20  # the quickstart's; with it ema, cosine and simvq reached all of 1,024 codes
_FEW_DIMENSIONS = 32  # ViT-VQGAN and LlamaGen: far more codes are in use with 8 to 32 than with 256


class CodebookQuantizer(Quantizer):
    """Chooses the nearest code of a table. The base of ``vector``, ``ema``, ``cosine`` and ``simvq``.

    A subclass defines ``table`` if its codes are not the weight itself, ``prepare`` if it compares something
    other than the latents, ``choose`` if it does not take the nearest code, and ``initialise`` if its weights
    start elsewhere.

    Args:
        num_codes: K, the number of codes.
        code_dim: d, the length of a code.
        commitment_weight: β, weight of the term that pulls latents to their codes.
        codebook_weight: weight of the term that pulls codes to their latents.
        gradient: how it passes from codes to latents: ``straight_through``, or ``rotation`` (arXiv
            2410.06424).
        init: where codes start, one of ``starts``: ``data`` leaves them to ``start``, which runs k-means;
            ``uniform`` draws them from U(−1/K, 1/K), as VQModel does.
        revive_after: every this many steps, codes that were not used since the last time move to latents of
            the current batch. None leaves unused codes where they are.

    Raises:
        ValueError: a number below one, an unknown ``init`` or ``gradient``, a weight below zero.
    """

    recent_counts: Tensor
    pending_counts: Tensor
    starts: tuple[str, ...] = ("uniform", "data")
    is_euclidean = True
    spherical = False  # whether codes and prepared latents have unit length
    alternatives: tuple[str, ...] = ("fsq",)  # types that leave fewer codes unused

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
        super().__init__(num_codes, code_dim)
        check_counts(revive_after=revive_after)
        check_gradient(gradient)
        check_init(init, self.starts)
        check_weights(commitment_weight=commitment_weight, codebook_weight=codebook_weight)
        self.commitment_weight = commitment_weight
        self.codebook_weight = codebook_weight
        self.gradient = gradient
        self.init = init
        self.revive_after = revive_after
        self.latents_to_start = _LATENTS_PER_CODE * num_codes if init == "data" else 0
        self.embedding = nn.Embedding(num_codes, code_dim)
        self.initialise()
        # The upkeep is state of the run, not of the model: it is in checkpoints, never in exports.
        self.register_first_values()
        self.recent_latents: Tensor | None = None

    def initialise(self) -> None:
        """Draws the weights a quantizer has before ``start`` or training."""
        nn.init.uniform_(self.embedding.weight, -1 / self.num_codes, 1 / self.num_codes)

    def first_values(self) -> dict[str, Tensor]:
        return {
            "recent_counts": torch.zeros(self.num_codes),
            "pending_counts": torch.zeros(self.num_codes),
        }

    def losses(self, flat: Tensor, codes: Tensor) -> dict[str, Tensor]:
        """Returns the weighted losses of prepared latents [N, d] and the codes [N, d] they were given.

        They pull codes to their latents, and latents to codes (arXiv 1711.00937, equation 3).
        """
        return {
            "codebook": self.codebook_weight * F.mse_loss(codes, flat.detach()),
            "commitment": self.commitment_weight * F.mse_loss(flat, codes.detach()),
        }

    def table(self, device: torch.device) -> Tensor:
        """Returns the codes [K, d], with their gradient."""
        return table_of(self.embedding, device)

    def prepare(self, flat: Tensor) -> Tensor:
        """Maps latents [N, d] to what is compared with the codes."""
        return flat

    def choose(self, prepared: Tensor, table: Tensor) -> Tensor:
        """Returns the indices [N] of the codes [K, d] that prepared latents [N, d] get."""
        return nearest_code(prepared, table)

    def quantize(self, flat: Tensor) -> FlatOutput:
        prepared = self.prepare(flat)
        table = self.table(flat.device).to(flat.dtype)
        indices = self.choose(prepared, table)
        codes = F.embedding(indices, table)
        losses = self.losses(prepared, codes)
        return FlatOutput(GRADIENTS[self.gradient](prepared, codes), indices, losses)

    def look_up(self, indices: Tensor) -> Tensor:
        return F.embedding(indices, self.table(indices.device)).to(self.embedding.weight.dtype)

    def euclidean_codebook(self) -> Tensor:
        weight = self.embedding.weight
        with torch.no_grad():
            return self.table(weight.device).to(weight.dtype)

    def moved_weights(self, shift: Tensor, scale: Tensor) -> Weights | None:
        weight = self.embedding.weight
        return [(weight, (to_float64_on_cpu(weight.detach()) - shift) * scale)]

    @property
    def upkeep(self) -> dict[str, Tensor]:
        return {"recent_counts": self.recent_counts}

    def observe(self, flat: Tensor, indices: Tensor, keep: Tensor | None = None) -> None:
        seen = self.pending_counts.new_ones(len(indices))
        self.pending_counts.index_add_(0, indices, seen if keep is None else seen * keep)
        if self.revive_after is not None:
            self.recent_latents = self.prepare(flat)

    @torch.no_grad()
    def place(self, flat: Tensor, generator: torch.Generator) -> None:
        if self.init != "data":
            return
        codes = k_means(self.prepare(flat), self.num_codes, generator, spherical=self.spherical)
        every = torch.ones(self.num_codes, dtype=torch.bool, device=codes.device)
        # Sums on a GPU differ in the last bits from run to run, so all ranks take those of the first.
        self.replace(every, distributed.broadcast_from_main(codes))

    @torch.no_grad()
    def commit(self, step: int, generator: torch.Generator, accepted: Tensor | bool = True) -> None:
        self._commit_counts(distributed.all_reduce_sum(self.pending_counts), accepted)
        self.pending_counts.zero_()
        if (
            self.revive_after is not None
            and step % self.revive_after == 0
            and self.recent_latents is not None
        ):
            self.replace((self.recent_counts == 0) & accepted, self._draw_latents(generator))
            self.recent_counts.mul_(1 - torch.as_tensor(accepted, dtype=torch.float32))
        self.recent_latents = None

    def _commit_counts(self, counts: Tensor, accepted: Tensor | bool) -> None:
        """Adds how often each code [K] occurred in the step, on all ranks together."""
        self.recent_counts += counts * accepted

    @torch.no_grad()
    def replace(self, mask: Tensor, codes: Tensor) -> None:
        """Puts codes [K, d] where mask [K] is true."""
        self.embedding.weight.copy_(torch.where(mask[:, None], codes, self.embedding.weight))

    def _draw_latents(self, generator: torch.Generator) -> Tensor:
        """Draws K latents of the global batch: each rank fills in the rows it holds, and a sum joins them.

        One is drawn from each of K parts of the batch, in random order. So none is drawn twice if there are
        at least K, and the cost of a draw does not grow with the ranks.
        """
        assert self.recent_latents is not None
        local = self.recent_latents
        total = len(local) * distributed.world_size()
        parts = torch.randperm(self.num_codes, generator=generator)
        first, end = (part * total // self.num_codes for part in (parts, parts + 1))
        places = torch.rand(self.num_codes, generator=generator, dtype=torch.float64)
        drawn = first + (places * (end - first)).long()
        picks = to_device(drawn, local.device) - len(local) * distributed.rank()
        held = (picks >= 0) & (picks < len(local))
        rows = local[picks.clamp(0, len(local) - 1)] * held[:, None]
        return distributed.all_reduce_sum(rows)

    def remedies(self) -> list[str]:
        found = []
        if self.init != "data":
            found.append("init=data")
        if self.revive_after is None or self.revive_after > _REVIVE_AFTER:
            found.append(f"revive_after={_REVIVE_AFTER}")
        if self.gradient != "rotation":
            found.append("gradient=rotation")
        if self.code_dim > _FEW_DIMENSIONS:
            found.append("code_dim=8")
        return [*found, *(f"type={name}" for name in self.alternatives)]
