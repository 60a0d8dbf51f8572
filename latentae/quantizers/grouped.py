"""Grouped (product) quantization: each slice of the channels has a table of its own (Jégou et al. 2011)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from latentae.quantizers.composition import ComposedQuantizer, all_indices, own_indices
from latentae.quantizers.quantizer import Quantizer, Weights
from latentae.quantizers.result import FlatOutput


class GroupedQuantizer(ComposedQuantizer):
    """The channels are cut into as many slices as there are members, in order, each quantized by its own.

    ``depth`` tables of K codes stand for K^depth codes. Losses are the members', averaged.

    Args:
        members: of equal number of codes; the latents have as many channels as their codes together.

    Raises:
        ValueError: no members, or members whose numbers of codes differ.
    """

    def __init__(self, members: Sequence[Quantizer]) -> None:
        super().__init__(members, sum(member.code_dim for member in members))

    def quantize(self, flat: Tensor) -> FlatOutput:
        slices = self._slices(flat)
        parts = [member.quantize(part) for (member, _), part in zip(self.each(), slices, strict=True)]
        losses = [part.losses for part in parts]
        return FlatOutput(
            torch.cat([part.quantized for part in parts], dim=1),
            all_indices([part.indices for part in parts]),
            {name: torch.stack([own[name] for own in losses]).mean() for name in losses[0]},
        )

    def look_up(self, indices: Tensor) -> Tensor:
        codes = [member.look_up(own_indices(member, indices, columns)) for member, columns in self.each()]
        return torch.cat(codes, dim=1)

    def observe(self, flat: Tensor, indices: Tensor, keep: Tensor | None = None) -> None:
        for (member, columns), part in zip(self.each(), self._slices(flat), strict=True):
            member.observe(part, own_indices(member, indices, columns), keep)

    def place(self, flat: Tensor, generator: torch.Generator) -> None:
        for (member, _), part in zip(self.each(), self._slices(flat), strict=True):
            member.place(part, generator)

    def moved_weights(self, shift: Tensor, scale: Tensor) -> Weights | None:
        moved: Weights = []
        for (member, _), part in zip(self.each(), self._slices(shift), strict=True):
            own = member.moved_weights(part, scale)
            if own is None:
                return None
            moved += own
        return moved

    def _slices(self, values: Tensor) -> tuple[Tensor, ...]:
        """Each member's share of the last axis."""
        return values.split([member.code_dim for member, _ in self.each()], dim=-1)
