"""Several quantizers for each position: what residual and grouped quantization share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from latentae.quantizers.quantizer import Quantizer


class ComposedQuantizer(Quantizer):
    """Holds members with tables of equal size; indices are [B, depth, h, w], a table after the other.

    A member may be a composition itself, and then stands for as many tables as it has.

    Args:
        members: quantizers of equal ``num_codes``.
        code_dim: d, the length of what they put out together.

    Raises:
        ValueError: no members, or members whose numbers of codes differ.
    """

    def __init__(self, members: Sequence[Quantizer], code_dim: int) -> None:
        sizes = sorted({member.num_codes for member in members})
        if len(sizes) != 1:
            raise ValueError(
                f"the members have {sizes} codes, but must have the same number each, and be one or more"
            )
        super().__init__(sizes[0], code_dim)
        self.members = nn.ModuleList(members)
        self.depth = sum(member.depth or 1 for member in members)
        self.latents_to_start = max(member.latents_to_start for member in members)
        self.whitens = any(member.whitens for member in members)

    def each(self) -> Iterator[tuple[Quantizer, slice]]:
        """The members, each with the columns of indices [N, depth] that are its own."""
        first = 0
        for member in self.members:
            assert isinstance(member, Quantizer)
            tables = member.depth or 1
            yield member, slice(first, first + tables)
            first += tables

    def commit(self, step: int, generator: torch.Generator, accepted: Tensor | bool = True) -> None:
        for member, _ in self.each():
            member.commit(step, generator, accepted)

    @property
    def upkeep(self) -> dict[str, Tensor]:
        return {
            f"{number}.{name}": buffer
            for number, (member, _) in enumerate(self.each())
            for name, buffer in member.upkeep.items()
        }

    def weights_changed(self) -> None:
        for member, _ in self.each():
            member.weights_changed()


def own_indices(member: Quantizer, indices: Tensor, columns: slice) -> Tensor:
    """Indices as the member knows them, [N] or [N, its depth], of those of the whole composition."""
    own = indices[:, columns]
    return own[:, 0] if member.depth is None else own


def all_indices(parts: Sequence[Tensor]) -> Tensor:
    """Indices [N, depth] of the members' own, [N] or [N, depth]."""
    return torch.cat([part[:, None] if part.ndim == 1 else part for part in parts], dim=1)
