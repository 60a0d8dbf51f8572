"""The base of all quantizers: their output, maps to rows and back, checks, and the hooks of training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any, NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn

from latentae import distributed
from latentae.devices import values_are_readable
from latentae.quantizers.health import CodebookHealth, code_counts, codebook_health
from latentae.quantizers.start import LatentMap, whitening


class FlatOutput(NamedTuple):
    """Quantized latents [N, d], before they become maps.

    Attributes:
        quantized: [N, d], whose gradient reaches the latents.
        indices: [N] int64, or [N, depth] of a composition.
        losses: as in ``QuantizerOutput``.
    """

    quantized: Tensor
    indices: Tensor
    losses: dict[str, Tensor]


@dataclass
class QuantizerOutput:
    """A batch of quantized latents.

    Attributes:
        quantized: [B, d, h, w], in the dtype of the latents; its gradient reaches the encoder.
        indices: [B, h, w] int64, the code of each position; [B, depth, h, w] of a composition.
        losses: name to scalar, already weighted. The training loss contains their sum.
        num_codes: K, the number of codes of each table.
    """

    quantized: Tensor
    indices: Tensor
    losses: dict[str, Tensor]
    num_codes: int

    @property
    def loss(self) -> Tensor:
        """The sum of the losses; 0 if there are none."""
        if not self.losses:
            return torch.zeros((), device=self.quantized.device)
        return torch.stack(list(self.losses.values())).sum()

    @property
    def health(self) -> CodebookHealth:
        """Usage and perplexity of this batch alone. The host waits for the device."""
        return codebook_health(code_counts(self.indices, self.num_codes))

    def __getitem__(self, index: int) -> Any:
        """Indexes the tuple of diffusers' VectorQuantizer: codes, loss, (None, None, flat indices)."""
        return (self.quantized, self.loss, (None, None, self.indices.flatten()))[index]


# Histograms of more codes than this are no longer small beside a batch.
MOST_CODES = 1 << 20

Weights = list[tuple[Tensor, Tensor]]


class Quantizer(nn.Module):
    """Maps each position of continuous latents to a code of a finite table.

    ``forward`` changes nothing but sums that are pending until the step is over. The trainer calls ``start``
    once with the latents of the first batches and ``commit`` after each optimizer step. Both do the same on
    every rank. A subclass defines ``quantize`` and ``look_up``, and ``observe``, ``place`` and ``commit`` if
    it keeps state.

    Latents that are not finite: in training, NaN passes through to ``quantized``, so the step can be refused
    without waiting for the device. In eval mode they are an error.

    Attributes:
        frozen: whether training leaves it unchanged. Then nothing is observed, and the trainer calls neither
            ``start`` nor ``commit``.
        num_codes: K, the number of codes of each table.
        code_dim: d, the length of a code.
        depth: the number of tables, and so of indices per position. None for a plain quantizer, which has one
            table and indices without that axis.
        is_euclidean: whether there is a table [K, d] in which the nearest code is the chosen one, as in
            diffusers' VQModel: ``euclidean_codebook``.
        latents_to_start: how many latents (over all ranks) ``start`` should see; 0 if it needs none.
        whitens: whether ``start`` asks for latents of mean 0 and covariance I.
    """

    depth: int | None = None
    is_euclidean = False
    frozen = False
    latents_to_start = 0
    whitens = False
    _lacks_values = False

    def __init__(self, num_codes: int, code_dim: int) -> None:
        super().__init__()
        check_counts(num_codes=num_codes, code_dim=code_dim)
        if num_codes > MOST_CODES:
            raise ValueError(
                f"there are {num_codes} codes, but at most {MOST_CODES} can be counted: "
                "use grouped quantizers of fewer codes each"
            )
        self.num_codes = num_codes
        self.code_dim = code_dim

    # Buffers that are not saved

    def first_values(self) -> dict[str, Tensor]:
        """Returns the initial values of the buffers that are not saved, by name."""
        return {}

    def register_first_values(self) -> None:
        """Registers the buffers of ``first_values``. A constructor calls it once these can be computed.

        A module built on the meta device has no values. Saved tensors get theirs by loading. These buffers
        get theirs at the end of the first ``load_state_dict``.
        """
        values = self.first_values()
        for name, value in values.items():
            self.register_buffer(name, value, persistent=False)
        self._lacks_values = any(tensor.is_meta for tensor in (*values.values(), *self.parameters()))
        self.register_load_state_dict_post_hook(_fill_buffers)

    def forward(self, latents: Tensor) -> QuantizerOutput:
        """Replaces each position of latents [B, d, h, w] by a code.

        Raises:
            ValueError: another shape, an empty batch, or, in eval mode, values that are not finite.
        """
        self._check_latents(latents)
        batch, _, height, width = latents.shape
        with torch.autocast(latents.device.type, enabled=False):
            flat = _rows(latents)
            if not self.training and values_are_readable(flat):
                _check_finite(flat)
            output = self.quantize(flat)
            if self.training and not self.frozen:
                self.observe(flat.detach(), output.indices)
        quantized = rearrange(output.quantized, "(b h w) d -> b d h w", h=height, w=width)
        return QuantizerOutput(
            quantized=quantized.to(latents.dtype),
            indices=self._as_maps(output.indices, batch, height, width),
            losses=output.losses,
            num_codes=self.num_codes,
        )

    def quantize(self, flat: Tensor) -> FlatOutput:
        """Quantizes latents [N, d], of float32 or float64; changes nothing."""
        raise NotImplementedError

    def look_up(self, indices: Tensor) -> Tensor:
        """Returns codes [N, d] of indices [N], or [N, n] of a composition."""
        raise NotImplementedError

    @torch.no_grad()
    def indices(self, latents: Tensor) -> Tensor:
        """Returns the indices of latents [B, d, h, w], as ``forward`` does, but counts nothing.

        Raises:
            ValueError: another shape, an empty batch, or values that are not finite, also in training mode.
        """
        self._check_latents(latents)
        batch, _, height, width = latents.shape
        with torch.autocast(latents.device.type, enabled=False):
            flat = _rows(latents)
            if values_are_readable(flat):
                _check_finite(flat)
            return self._as_maps(self.quantize(flat).indices, batch, height, width)

    def codes(self, indices: Tensor) -> Tensor:
        """Returns codes [B, d, h, w] of indices [B, h, w], or [B, n, h, w] of a composition.

        Raises:
            ValueError: another shape or dtype, or an index outside [0, num_codes).
        """
        self._check_indices(indices)
        if self.depth is not None:
            indices = indices.permute(0, 2, 3, 1)
        flat = self.look_up(indices.flatten(0, 2))
        return rearrange(flat, "(b h w) d -> b d h w", h=indices.shape[1], w=indices.shape[2])

    def get_codebook_entry(self, indices: Tensor, shape: tuple[int, int, int, int]) -> Tensor:
        """Returns ``codes`` by diffusers' interface: indices of any shape, and (B, h, w, d)."""
        batch, height, width = shape[:3]
        tables = () if self.depth is None else (-1,)
        return self.codes(indices.reshape(batch, *tables, height, width))

    def _as_maps(self, indices: Tensor, batch: int, height: int, width: int) -> Tensor:
        maps = indices.view(batch, height, width, *indices.shape[1:])
        return maps if self.depth is None else maps.permute(0, 3, 1, 2)

    # Training

    def observe(self, flat: Tensor, indices: Tensor, keep: Tensor | None = None) -> None:
        """Records the latents [N, d] and indices of a training batch. They are pending until ``commit``.

        ``keep`` is a boolean scalar on the device; false: the batch does not count.
        """

    @torch.no_grad()
    def start(self, latents: Tensor | Sequence[Tensor], generator: torch.Generator) -> LatentMap | None:
        """Initialises from data. Every rank calls it once before the first step.

        Args:
            latents: [B, d, h, w] of this rank's first batch, or a sequence of several batches.
            generator: a CPU generator in the same state on every rank.

        Returns:
            how the layer before the quantizer must change the latents to suit fixed codes, the same on every
            rank; None: no change.

        Raises:
            ValueError: latents of another shape, none, or values that are not finite.
        """
        batches = [latents] if isinstance(latents, Tensor) else list(latents)
        for batch in batches:
            self._check_latents(batch)
        # Batch by batch, so that N ranks see them in the same order as one rank.
        flat = torch.cat([distributed.all_gather_concat(_rows(batch)) for batch in batches])
        _check_finite(flat)
        change = None
        if self.whitens:
            own = whitening(flat)
            # Sums on a GPU differ in the last bits from run to run, so all ranks take those of the first.
            change = LatentMap(*(distributed.broadcast_from_main(part) for part in own))
            flat = change(flat)
        self.place(flat, generator)
        return change

    def place(self, flat: Tensor, generator: torch.Generator) -> None:
        """Places codes among the latents [N, d] of all ranks, if the quantizer starts from data."""

    def commit(self, step: int, generator: torch.Generator, accepted: Tensor | bool = True) -> None:
        """Updates the state after an optimizer step. Every rank calls it.

        Args:
            step: the optimizer step, counted from 1.
            generator: as in ``start``.
            accepted: whether the step was made, the same on every rank. If not, what was observed is dropped.
                A boolean scalar on the device, or a bool.
        """

    @property
    def upkeep(self) -> dict[str, Tensor]:
        """The buffers a resumed run needs besides the weights, by name. A caller may copy into them."""
        return {}

    # What a table of codes allows

    def euclidean_codebook(self) -> Tensor:
        """Returns the table [K, d], in the dtype of the weights, if the quantizer ``is_euclidean``."""
        raise NotImplementedError

    def moved_weights(self, shift: Tensor, scale: Tensor) -> Weights | None:
        """Returns weights and their float64 values for latents (z − shift) · scale; None: codes cannot move.

        Args:
            shift: [d] float64, on the CPU.
            scale: a float64 scalar, on the CPU.
        """
        return None

    def weights_changed(self) -> None:
        """Restarts the state that follows the weights. Call it after weights were set from outside."""

    def remedies(self) -> list[str]:
        """Returns changes of its arguments that bring unused codes into use, the likeliest first.

        Each is ``name=value``; those of a composition are its members', as ``member.name=value``.
        """
        return []

    # Checks

    def _check_latents(self, latents: Tensor) -> None:
        if latents.ndim != 4 or latents.shape[1] != self.code_dim or not latents.is_floating_point():
            raise ValueError(
                f"the quantizer takes floating-point latents [B, {self.code_dim}, h, w]; got "
                f"{list(latents.shape)} of {str(latents.dtype).removeprefix('torch.')}"
            )
        if latents.numel() == 0:
            raise ValueError(f"the latents {list(latents.shape)} are empty: there is nothing to quantize")

    def _check_indices(self, indices: Tensor) -> None:
        if indices.dtype not in (torch.int32, torch.int64):
            raise ValueError(
                f"indices are {str(indices.dtype).removeprefix('torch.')}, but must be int64 or int32: "
                "convert them with .long()"
            )
        if self.depth is None and indices.ndim != 3:
            raise ValueError(f"indices are [B, h, w]; got {list(indices.shape)}")
        if self.depth is not None and (indices.ndim != 4 or not self._fits_depth(indices.shape[1])):
            raise ValueError(f"indices are [B, {self.depth}, h, w]; got {list(indices.shape)}")
        if not (values_are_readable(indices) and indices.numel()):
            return
        lowest, highest = (int(index) for index in torch.aminmax(indices))
        if lowest < 0 or highest >= self.num_codes:
            raise ValueError(
                f"indices run from {lowest} to {highest}, but the codebook holds {self.num_codes} codes, "
                "numbered from 0"
            )

    def _fits_depth(self, tables: int) -> bool:
        return tables == self.depth


def _fill_buffers(quantizer: Quantizer, _: Any) -> None:
    """Sets the initial values of the buffers of a quantizer that was built on the meta device, once."""
    if not quantizer._lacks_values:
        return
    for name, value in quantizer.first_values().items():
        device = quantizer.get_buffer(name).device
        if device.type == "meta":  # load_state_dict(assign=True) replaced the weights, not the buffers
            device = next((weight.device for weight in quantizer.parameters()), value.device)
        setattr(quantizer, name, value.to(device))
    quantizer._lacks_values = False


def check_counts(**values: int | None) -> None:
    """Raises ValueError for a named number that is not an integer of at least 1; None is allowed."""
    for name, value in values.items():
        if value is not None and not (isinstance(value, Integral) and value >= 1):
            raise ValueError(f"{name} is {value!r}, but must be an integer of at least 1")


def check_init(init: str, starts: Sequence[str]) -> None:
    """Raises ValueError if ``init`` is not one of ``starts``."""
    if init not in starts:
        raise ValueError(f"init is {init!r}, but must be one of {', '.join(starts)}")


def check_weights(**values: float) -> None:
    """Raises ValueError for a named weight that is below zero or not finite."""
    for name, value in values.items():
        if not 0 <= value < math.inf:
            raise ValueError(f"{name} is {value}, but must be a number of 0 or more")


def table_of(embedding: nn.Embedding, device: torch.device) -> Tensor:
    """Returns the weight [K, d] on a device. Offloaded weights are only moved by a call of their module."""
    weight = embedding.weight
    return weight if weight.device == device else embedding(torch.arange(len(weight), device=device))


def precise(values: Tensor) -> Tensor:
    """Casts to float32; float64 values stay."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _rows(latents: Tensor) -> Tensor:
    """[N, d], precise."""
    return precise(rearrange(latents, "b d h w -> (b h w) d"))


def _check_finite(flat: Tensor) -> None:
    finite = flat.isfinite()
    if not bool(finite.all()):
        raise ValueError(
            f"{int((~finite).sum())} of {flat.numel()} values of the latents are NaN or infinite, which no "
            "code stands for: the weights are damaged, the images are not finite, or the encoder overflows "
            "in float16 (use bfloat16 or float32)"
        )
