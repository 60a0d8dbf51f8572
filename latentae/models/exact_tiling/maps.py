"""Feature maps whose rows are stored in strips, or computed when they are read.

A map that is computed reads the rows of the map below it that it needs: those at the same place, and a halo
around them for a convolution.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from latentae.devices import has_float64

Shape = tuple[int, int, int, int]
Function = Callable[[Tensor], Tensor]


class Rows(ABC):
    """A feature map [B, C, H, W] whose rows are read, or computed, a few at a time.

    Attributes:
        shape: of the whole map.
        has_halo: whether computing rows needs more rows of a stored map.
    """

    shape: Shape
    has_halo = False

    @property
    def height(self) -> int:
        """Number of rows."""
        return self.shape[2]

    @abstractmethod
    def read(self, start: int, stop: int) -> Tensor:
        """Returns the rows [B, C, stop - start, W]."""

    @abstractmethod
    def needs(self, row: int) -> dict[Stored, int]:
        """Returns the first row of each stored map that computing ``row`` and all rows below it reads."""

    @abstractmethod
    def work(self, rows: int) -> int:
        """Returns about how many values (not bytes) are held at once while ``rows`` rows are computed."""

    def size(self, rows: int | None = None) -> int:
        """Returns the number of values in ``rows`` rows, or in the whole map."""
        batch, channels, height, width = self.shape
        return batch * channels * width * (height if rows is None else rows)


class Stored(Rows):
    """A map in memory, as strips from top to bottom. The upper ones can be released.

    Args:
        shape: of the whole map.
        dtype, device: of the strips in memory; None: as they are computed.
    """

    def __init__(
        self, shape: Shape, dtype: torch.dtype | None = None, device: torch.device | None = None
    ) -> None:
        self.shape = shape
        self.dtype, self.device = dtype, device
        self.like: Tensor | None = None  # of the dtype and on the device of what is computed
        self.strips: list[tuple[int, Tensor]] = []  # first row and values
        self.statistics = Statistics()

    def append(self, strip: Tensor, *, with_statistics: bool = True) -> None:
        """Adds the next rows."""
        start = self.strips[-1][0] + self.strips[-1][1].shape[2] if self.strips else 0
        self.like = strip.new_empty(0)
        strip = strip.to(self.dtype or strip.dtype)
        if with_statistics:
            self.statistics.add(strip)
        self.strips.append((start, strip.to(self.device or strip.device)))

    def release(self, row: int) -> None:
        """Frees the strips that end above ``row``. The last strip stays, because it says where rows start."""
        while len(self.strips) > 1 and self.strips[1][0] <= row:
            del self.strips[0]
        if self.strips and row >= self.height:
            self.strips.clear()

    def read(self, start: int, stop: int) -> Tensor:
        parts = [
            strip[:, :, max(0, start - first) : stop - first]
            for first, strip in self.strips
            if first < stop and first + strip.shape[2] > start
        ]
        rows = parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)
        return rows.to(self.like)

    def needs(self, row: int) -> dict[Stored, int]:
        return {self: row}

    def work(self, rows: int) -> int:
        return self.size(rows)


class CanStore(Protocol):
    """An object that computes a layer's input and keeps it in memory."""

    def store(self, rows: Rows) -> Stored:
        """Computes a map and stores it."""


@dataclass(frozen=True)
class Layer:
    """A layer whose output rows depend on few input rows: rows · up / down of them, and the halo.

    Attributes:
        function: called with some rows of the input. Near the edges of these, its output may differ from what
            it makes of the whole map.
        channels: of the output, from those of the input; None: as many.
        top, bottom: input rows above and below that an output row needs.
        up, down: the output has about up / down times as many rows and columns.
        extra: an output side is (side · up + extra) // down.
    """

    function: Function
    channels: Callable[[int], int] | None = None
    top: int = 0
    bottom: int = 0
    up: int = 1
    down: int = 1
    extra: int = 0

    @property
    def has_halo(self) -> bool:
        """Whether an output row needs more than the input rows at its own place."""
        return self.top > 0 or self.bottom > 0

    def side(self, side: int) -> int:
        """Returns the side of the output."""
        return (side * self.up + self.extra) // self.down

    def inputs(self, start: int, stop: int, height: int) -> tuple[int, int]:
        """Returns the input rows that the output rows need; the first is a multiple of ``down``."""
        first = start * self.down // self.up - self.top
        last = -(-stop * self.down // self.up) + self.bottom
        return max(0, first - first % self.down), min(height, last + -last % self.down)

    def apply(self, rows: Rows, walk: CanStore) -> Rows:
        # One halo at a time: the rows of a second one would be computed twice.
        return Mapped(walk.store(rows) if self.has_halo and rows.has_halo else rows, self)


class Mapped(Rows):
    """The output map of a layer, computed from its input map."""

    def __init__(self, source: Rows, layer: Layer) -> None:
        self.source, self.layer = source, layer
        batch, channels, height, width = source.shape
        channels = channels if layer.channels is None else layer.channels(channels)
        self.shape = (batch, channels, layer.side(height), layer.side(width))
        self.has_halo = source.has_halo or layer.has_halo

    def read(self, start: int, stop: int) -> Tensor:
        first, last = self.layer.inputs(start, stop, self.source.height)
        outputs = self.layer.function(self.source.read(first, last))
        offset = first * self.layer.up // self.layer.down
        return outputs.narrow(2, start - offset, stop - start)

    def needs(self, row: int) -> dict[Stored, int]:
        return self.source.needs(self.layer.inputs(row, row, self.source.height)[0])

    def work(self, rows: int) -> int:
        layer, source = self.layer, self.source
        inputs = -(-rows * layer.down // layer.up) + layer.top + layer.bottom
        outputs = -(-inputs * layer.up // layer.down)
        enlarged = max(source.size(inputs), source.shape[0] * source.shape[1] * self.shape[3] * outputs)
        own = enlarged + self.size(outputs)
        # A convolution may reorder its input and its output.
        return max(source.work(inputs), own * (2 if layer.has_halo else 1))


class Normalised(Rows):
    """A map after a group normalisation with the statistics of the whole map.

    Args:
        source: the map.
        norm: a GroupNorm, or a SpatialNorm, which also sees ``condition``.
        statistics: of the map.
        condition: [B, c, h, w], of which the map's size is a multiple.
    """

    def __init__(
        self, source: Rows, norm: nn.Module, statistics: Statistics, condition: Tensor | None
    ) -> None:
        self.shape = source.shape
        self.source, self.norm, self.statistics, self.condition = source, norm, statistics, condition

    def read(self, start: int, stop: int) -> Tensor:
        arguments = [self.source.read(start, stop)]
        if self.condition is not None:
            arguments.append(self._condition(start, stop))
        with _GivenStatistics(self.statistics) as mode:
            normalised: Tensor = self.norm(*arguments)
        if not mode.was_used:
            raise RuntimeError(f"{type(self.norm).__name__} did not call torch's group_norm")
        return normalised

    def _condition(self, start: int, stop: int) -> Tensor:
        """Returns the condition's nearest neighbours of the rows."""
        assert self.condition is not None
        device = self.condition.device
        height, width = self.shape[2:]
        rows = torch.arange(start, stop, device=device) * self.condition.shape[2] // height
        columns = torch.arange(width, device=device) * self.condition.shape[3] // width
        return self.condition[:, :, rows][..., columns]

    def needs(self, row: int) -> dict[Stored, int]:
        return self.source.needs(row)

    def work(self, rows: int) -> int:
        conditions = 0 if self.condition is None else 4  # two projections and their intermediate results
        return max(self.source.work(rows), (2 + conditions) * self.size(rows))


class Sum(Rows):
    """The sum of two maps."""

    def __init__(self, first: Rows, second: Rows) -> None:
        self.shape = first.shape
        self.first, self.second = first, second
        self.has_halo = first.has_halo or second.has_halo

    def read(self, start: int, stop: int) -> Tensor:
        return self.first.read(start, stop) + self.second.read(start, stop)

    def needs(self, row: int) -> dict[Stored, int]:
        return lowest_rows((self.first, self.second), row)

    def work(self, rows: int) -> int:
        return self.first.work(rows) + self.second.work(rows)


def lowest_rows(maps: Iterable[Rows], row: int) -> dict[Stored, int]:
    """Returns the first row of each stored map that any of the maps needs for ``row`` and what follows."""
    lowest: dict[Stored, int] = {}
    for each in maps:
        for stored, first in each.needs(row).items():
            lowest[stored] = min(first, lowest.get(stored, first))
    return lowest


# --- statistics of whole maps


class Statistics:
    """Mean and sum of squared deviations of each channel, merged over strips (Chan et al. 1979)."""

    def __init__(self) -> None:
        self.count = 0
        self.mean = self.squares = torch.zeros(())

    def add(self, strip: Tensor) -> None:
        """Adds the values of a strip [B, C, rows, W], whose own statistics are computed in two passes."""
        values = strip.flatten(2)
        values = values if values.dtype == torch.float64 else values.float()
        mean = values.mean(dim=-1, keepdim=True)
        squares = (values - mean).square_().sum(dim=-1)
        dtype = torch.float64 if has_float64(strip.device) else torch.float32
        mean, squares = mean[..., 0].to(dtype), squares.to(dtype)
        if self.count == 0:
            self.count, self.mean, self.squares = values.shape[-1], mean, squares
            return
        before, self.count = self.count, self.count + values.shape[-1]
        difference = mean - self.mean
        self.mean = self.mean + difference * (values.shape[-1] / self.count)
        self.squares = self.squares + squares + difference**2 * (before * values.shape[-1] / self.count)

    def of_groups(self, groups: int) -> tuple[Tensor, Tensor]:
        """Returns mean and variance of groups of channels, [B, groups, 1] each."""
        means, squares = (part.unflatten(1, (groups, -1)) for part in (self.mean, self.squares))
        mean = means.mean(dim=-1, keepdim=True)
        between = (means - mean).square().mean(dim=-1, keepdim=True)
        return mean, squares.mean(dim=-1, keepdim=True) / self.count + between


class _GivenStatistics(TorchFunctionMode):
    """Lets group_norm use given statistics. The module is called as usual, so that its hooks run."""

    def __init__(self, statistics: Statistics) -> None:
        super().__init__()
        self.statistics, self.was_used = statistics, False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.group_norm:
            self.was_used = True
            return self._normalise(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _normalise(
        self,
        inputs: Tensor,
        groups: int,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        eps: float = 1e-5,
    ) -> Tensor:
        # autocast decides about the dtype of the result
        dtype = torch.group_norm(inputs[:, :, :1, :1], groups, weight, bias, eps).dtype
        mean, variance = self.statistics.of_groups(groups)
        scale = (variance + eps).rsqrt().expand(-1, -1, inputs.shape[1] // groups).flatten(1)
        scale = scale if weight is None else scale * weight.to(scale)
        shift = -mean.expand(-1, -1, inputs.shape[1] // groups).flatten(1) * scale
        shift = shift if bias is None else shift + bias.to(scale)
        computing = torch.float64 if inputs.dtype == torch.float64 else torch.float32
        scale, shift = (part.to(inputs.device, computing)[..., None, None] for part in (scale, shift))
        return torch.addcmul(shift, inputs, scale).to(dtype)
