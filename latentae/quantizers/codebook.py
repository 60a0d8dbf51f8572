"""A table of codes: look-up, data-dependent start, upkeep between steps, and its health in numbers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn

from latentae import distributed
from latentae.quantizers.lookup import nearest_code
from latentae.quantizers.result import QuantizerOutput

_STARTS = ("uniform", "data")
_KMEANS_ROUNDS = 8


@dataclass
class CodebookHealth:
    """How much of a codebook is in use.

    Attributes:
        usage: share of the codes that occurred at least once, in [0, 1].
        perplexity: exp of the entropy of the code frequencies, in [1, num_codes].
    """

    usage: float
    perplexity: float


def codebook_health(counts: Tensor) -> CodebookHealth:
    """Usage and perplexity from how often each code occurred.

    Args:
        counts: [K], occurrences of each code; already summed over ranks where there are several.
    """
    counts = counts.double()
    frequencies = counts / counts.sum().clamp(min=1)
    entropy = -torch.special.xlogy(frequencies, frequencies).sum()
    return CodebookHealth(usage=(counts > 0).double().mean().item(), perplexity=entropy.exp().item())


class CodebookQuantizer(nn.Module):
    """What quantizers with a Euclidean codebook share; a member defines ``losses``.

    Nothing about the codebook changes inside ``forward``: the trainer calls ``start`` once with the latents
    of the first batch and ``commit`` after each optimizer step, and both do the same on every rank.

    Args:
        num_codes: K, the number of codes.
        code_dim: d, the length of a code.
        init: ``uniform`` draws codes from U(−1/K, 1/K) as VQModel does; ``data`` leaves them to ``start``.
        revive_after: every this many steps, codes unused since the last time move to latents of the current
            batch; None leaves unused codes where they are.

    Raises:
        ValueError: a number below one, or an unknown ``init``.
    """

    recent_counts: Tensor
    pending_counts: Tensor

    def __init__(
        self, num_codes: int, code_dim: int, *, init: str = "data", revive_after: int | None = None
    ) -> None:
        super().__init__()
        for name, value in {
            "num_codes": num_codes,
            "code_dim": code_dim,
            "revive_after": revive_after,
        }.items():
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}, but must be at least 1")
        if init not in _STARTS:
            raise ValueError(f"init is {init!r}, but must be one of {', '.join(_STARTS)}")
        self.num_codes = num_codes
        self.code_dim = code_dim
        self.init = init
        self.revive_after = revive_after
        self.embedding = nn.Embedding(num_codes, code_dim)
        nn.init.uniform_(self.embedding.weight, -1 / num_codes, 1 / num_codes)
        # The upkeep is state of the run, not of the model: it goes into checkpoints, never into exports.
        self.register_buffer("recent_counts", torch.zeros(num_codes), persistent=False)
        self.register_buffer("pending_counts", torch.zeros(num_codes), persistent=False)
        self.recent_latents: Tensor | None = None

    @property
    def upkeep(self) -> dict[str, Tensor]:
        """The buffers that a resumed run needs besides the weights, by name; a caller may copy into them."""
        return {"recent_counts": self.recent_counts}

    def losses(self, flat: Tensor, codes: Tensor) -> dict[str, Tensor]:
        """Weighted losses of latents [N, d] and the codes [N, d] they were given."""
        raise TypeError(f"{type(self).__name__} must define its losses")

    def observe(self, flat: Tensor, indices: Tensor) -> None:
        """Sees the latents [N, d] and indices [N] of every training batch."""
        self.pending_counts += torch.bincount(indices, minlength=self.num_codes).to(self.pending_counts)
        self.recent_latents = flat

    def forward(self, latents: Tensor) -> QuantizerOutput:
        """Replaces each position of latents [B, d, h, w] by its nearest code; the gradient passes through."""
        if latents.ndim != 4 or latents.shape[1] != self.code_dim:
            raise ValueError(
                f"the quantizer takes latents [B, {self.code_dim}, h, w]; got {list(latents.shape)}"
            )
        with torch.autocast(latents.device.type, enabled=False):
            weight = self._table(latents.device)
            flat = rearrange(latents, "b d h w -> (b h w) d").to(weight.dtype)
            indices = nearest_code(flat, weight)
            codes = self.embedding(indices)
            losses = self.losses(flat, codes)
            if self.training:
                self.observe(flat.detach(), indices)
            # In this order the difference is exactly zero, and the value exactly the code.
            quantized = codes.detach() + (flat - flat.detach())
        batch, _, height, width = latents.shape
        return QuantizerOutput(
            quantized=rearrange(quantized, "(b h w) d -> b d h w", h=height, w=width).to(latents.dtype),
            indices=indices.view(batch, height, width),
            losses=losses,
        )

    def codes(self, indices: Tensor) -> Tensor:
        """Codes [B, d, h, w] at indices [B, h, w].

        Raises:
            ValueError: an index outside [0, num_codes).
        """
        if indices.numel() and not (int(indices.min()) >= 0 and int(indices.max()) < self.num_codes):
            raise ValueError(
                f"indices run from {int(indices.min())} to {int(indices.max())}, but the codebook holds "
                f"{self.num_codes} codes, numbered from 0"
            )
        return rearrange(self.embedding(indices), "b h w d -> b d h w")

    def _table(self, device: torch.device) -> Tensor:
        """The codes [K, d]; where weights are offloaded, only a call of their module brings them here."""
        weight: Tensor = self.embedding.weight
        return weight if weight.device == device else self.embedding(torch.arange(len(weight), device=device))

    def get_codebook_entry(self, indices: Tensor, shape: tuple[int, int, int, int]) -> Tensor:
        """``codes`` as diffusers' pipelines ask for them: indices of any shape, and (B, h, w, d)."""
        return self.codes(indices.reshape(shape[:3]))

    @torch.no_grad()
    def start(self, latents: Tensor, generator: torch.Generator) -> None:
        """Called once before the first step; with ``init="data"``, places the codes among latents.

        Args:
            latents: [B, d, h, w] of this rank's first batch; k-means runs over those of all ranks.
            generator: a CPU generator in the same state on every rank.
        """
        if self.init != "data":
            return
        flat = rearrange(latents, "b d h w -> (b h w) d").to(self.embedding.weight)
        flat = distributed.all_gather_concat(flat)
        # Latents that repeat when there are fewer than codes are told apart by the noise.
        picks = torch.randperm(len(flat), generator=generator).repeat(-(-self.num_codes // len(flat)))
        noise = torch.randn(self.num_codes, self.code_dim, generator=generator).to(flat)
        codes = flat[picks[: self.num_codes].to(flat.device)] + 1e-3 * flat.std(dim=0) * noise
        for _ in range(_KMEANS_ROUNDS):
            indices = nearest_code(flat, codes)
            counts = torch.bincount(indices, minlength=self.num_codes).to(flat)[:, None]
            sums = torch.zeros_like(codes).index_add_(0, indices, flat)
            codes = torch.where(counts > 0, sums / counts.clamp(min=1), codes)
        self.replace(torch.ones(self.num_codes, dtype=torch.bool, device=flat.device), codes)

    @torch.no_grad()
    def commit(self, step: int, generator: torch.Generator, accepted: Tensor | bool = True) -> None:
        """Upkeep after an optimizer step.

        Args:
            step: the optimizer step, counted from 1.
            generator: as in ``start``.
            accepted: whether the step was made, on every rank alike; what was seen in one that was not is
                forgotten. A boolean scalar on the device, or a bool.
        """
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
        """Takes in how often each code [K] occurred in the step, on all ranks together."""
        self.recent_counts += counts * accepted

    def replace(self, mask: Tensor, codes: Tensor) -> None:
        """Puts codes [K, d] where mask [K] is true."""
        self.embedding.weight.copy_(torch.where(mask[:, None], codes, self.embedding.weight))

    def _draw_latents(self, generator: torch.Generator) -> Tensor:
        """K latents of the global batch: each rank fills in the rows it holds, and a sum joins them."""
        assert self.recent_latents is not None
        local = self.recent_latents
        total = len(local) * distributed.world_size()
        picks = torch.randint(total, (self.num_codes,), generator=generator).to(local.device)
        picks = picks - len(local) * distributed.rank()
        held = (picks >= 0) & (picks < len(local))
        rows = local[picks.clamp(0, len(local) - 1)] * held[:, None]
        return distributed.all_reduce_sum(rows)
