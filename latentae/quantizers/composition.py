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
    """Holds members with tables of equal size. Indices are [B, depth, h, w], table by table.

    A member may be a composition itself, and then counts as several tables.

    Args:
        members: quantizers of equal ``num_codes``.
        code_dim: d, the length of their joint output.

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
        """Yields the members, each with its columns of indices [N, depth]."""
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
    """Returns a member's indices, [N] or [N, its depth], from those of the whole composition."""
    own = indices[:, columns]
    return own[:, 0] if member.depth is None else own


def all_indices(parts: Sequence[Tensor]) -> Tensor:
    """Joins the members' indices, [N] or [N, depth] each, to [N, depth]."""
    return torch.cat([part[:, None] if part.ndim == 1 else part for part in parts], dim=1)


class ResidualQuantizer(ComposedQuantizer):
    """The sum of codes q_0 + q_1 + …, where q_i is the code of z − q_0 − … − q_(i−1).

    The gradient passes once from the sum to the latents, whatever the members' own gradient is: a chain of
    members would pass it once per member. The losses are the means over the members.

    With dropout, a training step may use the first n quantizers only (the paper's quantizer dropout, which
    lets one model serve several bit rates). ``start`` and ``commit`` draw n for the next step from their
    generator. It is the same on every rank and for all micro-batches, and part of the upkeep, so a resumed
    run continues with it. ``indices`` are always those of all quantizers. ``codes`` also accepts those of the
    first few.

    Args:
        members: from coarse to fine, of equal code length and number of codes.
        dropout: probability that a step draws n from {1, …, depth}; otherwise n is the depth.
        gradient: ``straight_through`` or ``rotation``.
        scale: member i sees the remainder divided by scale^i. Use it for members whose codes have a fixed
            range, such as 0.5 for LFQ; 1 for those that learn their codes.

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
            # Masked, not skipped: the graph reaches every parameter on every rank, and no shape changes.
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
                # The order and precision of ``quantize``, so that the sums are bit-equal.
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
        """Returns whether member ``number`` takes part in this step, on the device."""
        return self.active > number

    def _draw(self, generator: torch.Generator) -> None:
        """Draws how many members take part in the next step."""
        if self.dropout:
            depth = len(self.members)
            drops = bool(torch.rand((), generator=generator) < self.dropout)
            fewer = int(torch.randint(1, depth + 1, (), generator=generator))
            self.active.fill_(fewer if drops else depth)

    def _mean(self, losses: list[dict[str, Tensor]], dropping: bool) -> dict[str, Tensor]:
        """Returns the mean of each loss over the members that take part."""
        if not dropping:
            return {name: torch.stack([own[name] for own in losses]).mean() for name in losses[0]}
        kept = {
            name: torch.stack([own[name].where(self._keeps(number), 0) for number, own in enumerate(losses)])
            for name in losses[0]
        }
        return {name: values.sum() / self.active for name, values in kept.items()}


class GroupedQuantizer(ComposedQuantizer):
    """Splits the channels into slices, in order, and quantizes each with its own member.

    ``depth`` tables of K codes represent K^depth codes. The losses are the means over the members.

    Args:
        members: quantizers with equal numbers of codes. The lengths of their codes add up to the channels.

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
        """Returns each member's slice of the last axis."""
        return values.split([member.code_dim for member, _ in self.each()], dim=-1)
