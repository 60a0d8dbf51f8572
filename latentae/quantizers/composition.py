"""Several quantizers per position: residual (Zeghidour et al. 2021, arXiv 2107.03312) and grouped.

Grouped quantization is product quantization: each slice of the channels has its own table (Jégou et al.
2011).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from latentae.quantizers.gradient import GRADIENTS, check_gradient
from latentae.quantizers.quantizer import FlatOutput, Quantizer, Weights, precise


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

    def remedies(self) -> list[str]:
        member, _ = next(self.each())
        return [f"member.{remedy}" for remedy in member.remedies()]


def own_indices(member: Quantizer, indices: Tensor, columns: slice) -> Tensor:
    """Indices as the member knows them, [N] or [N, its depth], of those of the whole composition."""
    own = indices[:, columns]
    return own[:, 0] if member.depth is None else own


def all_indices(parts: Sequence[Tensor]) -> Tensor:
    """Indices [N, depth] of the members' own, [N] or [N, depth]."""
    return torch.cat([part[:, None] if part.ndim == 1 else part for part in parts], dim=1)


class ResidualQuantizer(ComposedQuantizer):
    """The sum of codes q_0 + q_1 + …, where q_i is the code of z − q_0 − … − q_(i−1).

    One gradient passes from the sum to the latents, whatever the members' own: chained, each would pass it
    once more. Losses are the members', averaged.

    With dropout, in training, a step may do with the first n quantizers (the paper's quantizer dropout, by
    which one model serves several bit rates). n is drawn in ``start`` and ``commit`` for the step that
    follows, from the generator given there: the same on every rank and for all micro-batches, and part of the
    upkeep, so that a resumed run goes on with it. ``indices`` are those of all quantizers in any case, and
    ``codes`` takes the first few as well.

    Args:
        members: from coarse to fine, of equal code length and number of codes.
        dropout: probability that a step draws n from {1, …, depth}; otherwise n is the depth.
        gradient: ``straight_through`` or ``rotation``.
        scale: member i sees what is left divided by scale^i. For members whose codes have a fixed range, such
            as 0.5 for LFQ; 1 for those that learn theirs.

    Raises:
        ValueError: no members, members of different sizes, a member that is a composition, a dropout outside
            [0, 1], or a scale that is not positive.
    """

    active: Tensor

    def __init__(
        self,
        members: Sequence[Quantizer],
        *,
        dropout: float = 0.0,
        gradient: str = "straight_through",
        scale: float = 1.0,
    ) -> None:
        check_gradient(gradient)
        lengths = sorted({member.code_dim for member in members})
        if len(lengths) != 1:
            raise ValueError(
                f"the members have codes of length {lengths}, but must have one length, and be one or more"
            )
        if any(member.depth is not None for member in members):
            raise ValueError(
                "a member of a residual quantizer is a composition: group residual quantizers instead"
            )
        if not 0 <= dropout <= 1:
            raise ValueError(f"dropout is {dropout}, but must lie in [0, 1]")
        if not scale > 0:
            raise ValueError(f"scale is {scale}, but must be positive")
        super().__init__(members, lengths[0])
        self.dropout = dropout
        self.gradient = gradient
        self.scale = scale
        self.register_first_values()

    def first_values(self) -> dict[str, Tensor]:
        return {"active": torch.tensor(len(self.members))}

    def quantize(self, flat: Tensor) -> FlatOutput:
        dropping = self.training and self.dropout > 0
        left, total = flat, torch.zeros_like(flat)
        indices, losses = [], []
        for number, (member, _) in enumerate(self.each()):
            part = member.quantize(left / self.scale**number)
            codes = part.quantized.detach() * self.scale**number
            left = left - codes
            # Masked, not skipped: every rank's graph reaches every parameter, and no shape or branch changes.
            total = total + (codes.where(self._keeps(number), 0) if dropping else codes)
            indices.append(part.indices)
            losses.append(part.losses)
        return FlatOutput(
            GRADIENTS[self.gradient](flat, total), all_indices(indices), self._mean(losses, dropping)
        )

    def look_up(self, indices: Tensor) -> Tensor:
        total, dtype = torch.zeros((), device=indices.device), torch.float32
        for number, (member, columns) in enumerate(self.each()):
            if number < indices.shape[1]:
                codes = member.look_up(own_indices(member, indices, columns))
                dtype = codes.dtype
                # In the order and precision of ``quantize``: the sums are the same to the last bit.
                total = total + precise(codes) * self.scale**number
        return total.to(dtype)

    def observe(self, flat: Tensor, indices: Tensor, keep: Tensor | None = None) -> None:
        for number, (member, columns) in enumerate(self.each()):
            own = own_indices(member, indices, columns)
            kept = self._keeps(number) if self.dropout else None
            both = kept if keep is None else keep if kept is None else kept & keep
            member.observe(flat / self.scale**number, own, both)
            flat = flat - member.look_up(own).to(flat) * self.scale**number

    def place(self, flat: Tensor, generator: torch.Generator) -> None:
        for number, (member, _) in enumerate(self.each()):
            member.place(flat / self.scale**number, generator)
            flat = flat - member.quantize(flat / self.scale**number).quantized * self.scale**number
        self._draw(generator)

    def commit(self, step: int, generator: torch.Generator, accepted: Tensor | bool = True) -> None:
        super().commit(step, generator, accepted)
        self._draw(generator)

    @property
    def upkeep(self) -> dict[str, Tensor]:
        return {**super().upkeep, "active": self.active}

    def moved_weights(self, shift: Tensor, scale: Tensor) -> Weights | None:
        moved: Weights = []
        for number, (member, _) in enumerate(self.each()):
            own = member.moved_weights(shift if number == 0 else torch.zeros_like(shift), scale)
            if own is None:
                return None
            moved += own
        return moved

    def _fits_depth(self, tables: int) -> bool:
        return 1 <= tables <= len(self.members)

    def _keeps(self, number: int) -> Tensor:
        """Whether member ``number`` takes part in this step, on the device."""
        return self.active > number

    def _draw(self, generator: torch.Generator) -> None:
        """Draws how many members take part in the next step."""
        if self.dropout:
            depth = len(self.members)
            drops = bool(torch.rand((), generator=generator) < self.dropout)
            fewer = int(torch.randint(1, depth + 1, (), generator=generator))
            self.active.fill_(fewer if drops else depth)

    def _mean(self, losses: list[dict[str, Tensor]], dropping: bool) -> dict[str, Tensor]:
        """The mean of each loss over the members that take part."""
        if not dropping:
            return {name: torch.stack([own[name] for own in losses]).mean() for name in losses[0]}
        kept = {
            name: torch.stack([own[name].where(self._keeps(number), 0) for number, own in enumerate(losses)])
            for name in losses[0]
        }
        return {name: values.sum() / self.active for name, values in kept.items()}


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
