"""Programs that process an image in strips, and the walks that count their memory and carry them out."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import SpatialNorm
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from latentae.models.exact_tiling.maps import (
    Normalised,
    Rows,
    Shape,
    Statistics,
    Stored,
    Sum,
    lowest_rows,
)

WholeFunction = Callable[[Tensor, Tensor], Tensor]

# Maps that a call of an attention layer holds at once: input, normalised input, queries, keys, values, output
# before and after the projection, and a copy in another memory order.
_MAPS_OF_ATTENTION = 8

# --- the program


class Step(Protocol):
    """A part of the program."""

    def apply(self, rows: Rows, walk: Walk) -> Rows:
        """Returns the map after this step. Nothing is computed before its rows are read."""


Program = list[Step]


@dataclass(frozen=True)
class Norm:
    """A GroupNorm or SpatialNorm, with the statistics of the whole map."""

    module: nn.Module

    def apply(self, rows: Rows, walk: Walk) -> Rows:
        rows = walk.store(rows) if rows.has_halo else rows
        condition = walk.condition if isinstance(self.module, SpatialNorm) else None
        return Normalised(rows, self.module, walk.statistics(rows), condition)


@dataclass(frozen=True)
class Whole:
    """A function of the whole map and of the walk's condition, such as attention."""

    function: WholeFunction

    def apply(self, rows: Rows, walk: Walk) -> Rows:
        return walk.whole(walk.stored(rows), self.function)


@dataclass(frozen=True)
class Residual:
    """body(x) + shortcut(x)."""

    body: Program
    shortcut: Program = field(default_factory=list)

    def apply(self, rows: Rows, walk: Walk) -> Rows:
        rows = walk.stored(rows)
        walk.waiting.append(walk.run(self.shortcut, rows))
        rows = walk.run(self.body, rows)
        return Sum(rows, walk.waiting.pop())


# --- the walk


class Walk(ABC):
    """Gives the steps of a program maps in memory, their statistics, and functions of whole maps.

    Attributes:
        condition: what a SpatialNorm sees: the input of the decoder.
        waiting: shortcuts of the residual blocks that the walk is in.
    """

    def __init__(self, condition: Tensor) -> None:
        self.condition = condition
        self.waiting: list[Rows] = []

    def run(self, program: Program, rows: Rows) -> Rows:
        """Applies the steps one after the other."""
        for step in program:
            rows = step.apply(rows, self)
        return rows

    def store(self, rows: Rows) -> Stored:
        """Stores a map, and with it every waiting shortcut, so that the maps below them can be freed."""
        joined = [i for i, each in enumerate(self.waiting) if _can_join(each, rows)]
        kept = set(lowest_rows((each for i, each in enumerate(self.waiting) if i not in joined), 0))
        stored, *shortcuts = self.sweep([rows, *(self.waiting[i] for i in joined)], kept)
        for i, shortcut in zip(joined, shortcuts, strict=True):
            self.waiting[i] = shortcut
        return stored

    def stored(self, rows: Rows) -> Stored:
        """Returns a map in memory."""
        return rows if isinstance(rows, Stored) else self.store(rows)

    def is_kept(self, rows: Stored) -> bool:
        """Returns whether a waiting shortcut needs a map."""
        return rows in lowest_rows(self.waiting, 0)

    @abstractmethod
    def sweep(self, maps: Sequence[Rows], kept: set[Stored]) -> list[Stored]:
        """Stores maps of one height, and frees what they are computed from, apart from ``kept``."""

    @abstractmethod
    def statistics(self, rows: Rows) -> Statistics:
        """Returns the statistics of a map."""

    @abstractmethod
    def whole(self, rows: Stored, function: WholeFunction) -> Stored:
        """Applies a function, whose output has the shape of its input, to a map, which is freed."""


def _can_join(shortcut: Rows, rows: Rows) -> bool:
    return not isinstance(shortcut, Stored) and shortcut.height == rows.height


class Plan(Walk):
    """Follows a program without computing anything, and counts the memory that it takes.

    Args:
        value, stored_value: bytes of a value that is computed, and of one in a stored map.

    Attributes:
        maps: the most bytes in stored maps at a time.
        smallest: the most bytes at a time with strips of one row.
        untiled: an estimate of the most values, not bytes, that the model itself holds at a time.
        outputs: the shape of the output.
    """

    def __init__(self, program: Program, inputs: Tensor, value: int, stored_value: int) -> None:
        super().__init__(inputs)
        self.value, self.stored_value = value, stored_value
        self.live: dict[Stored, int] = {}
        self.maps = self.smallest = self.untiled = 0
        outputs = self.run(program, Stored(shape_of(inputs)))
        self.outputs = outputs.shape
        self._count_untiled([outputs])
        self._count([outputs], self._bytes() + outputs.size() * value)

    def sweep(self, maps: Sequence[Rows], kept: set[Stored]) -> list[Stored]:
        before = self._bytes()
        self._count_untiled(maps)
        for stored in lowest_rows(maps, 0):
            if stored not in kept:
                self.live.pop(stored, None)
        results = [Stored(each.shape) for each in maps]
        self.live |= {stored: stored.size() for stored in results}
        # The maps that are read shrink while those that are written grow.
        self._count(maps, max(before, self._bytes()))
        return results

    def statistics(self, rows: Rows) -> Statistics:
        if not isinstance(rows, Stored):
            self._count([rows], self._bytes())
        return Statistics()

    def whole(self, rows: Stored, function: WholeFunction) -> Stored:
        own = _MAPS_OF_ATTENTION * rows.size()
        if not self.is_kept(rows):
            self.live.pop(rows, None)
        self.maps = max(self.maps, self._bytes() + own * self.value)
        self.smallest = max(self.smallest, self.maps)
        self.untiled = max(self.untiled, sum(self.live.values()) + own)
        result = Stored(rows.shape)
        self.live[result] = result.size()
        return result

    def _bytes(self) -> int:
        return sum(self.live.values()) * self.stored_value

    def _count(self, maps: Sequence[Rows], stored: int) -> None:
        self.maps = max(self.maps, stored)
        self.smallest = max(self.smallest, stored + _work(maps, 1) * self.value)

    def _count_untiled(self, maps: Sequence[Rows]) -> None:
        work = sum(each.work(each.height) for each in maps)
        self.untiled = max(self.untiled, sum(self.live.values()) + work)


def shape_of(values: Tensor) -> Shape:
    """Returns the shape of a map [B, C, H, W]."""
    batch, channels, height, width = values.shape
    return batch, channels, height, width


def _work(maps: Sequence[Rows], rows: int) -> int:
    """Returns about how many values are held while ``rows`` rows of the maps are computed and stored."""
    return sum(each.work(rows) + 2 * each.size(rows) for each in maps)


class Execution(Walk):
    """Computes what a program describes.

    Args:
        inputs: of the program, [B, C, H, W].
        memory: bytes for the strips at work. A strip has at least one row.
        value: bytes of a value that is computed.
        dtype, device: of the stored maps; None: as they are computed.
    """

    def __init__(
        self,
        inputs: Tensor,
        memory: int,
        value: int,
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
    ) -> None:
        super().__init__(inputs)
        self.inputs, self.memory, self.value = inputs, memory, value
        self.dtype, self.device = dtype, device

    def outputs(self, program: Program) -> Tensor:
        """Runs the program and returns its output."""
        rows = Stored(shape_of(self.inputs))
        rows.append(self.inputs, with_statistics=False)
        outputs = self.run(program, rows)
        result: Tensor | None = None
        for start, (strip,) in self._strips([outputs], set()):
            if result is None:
                result = strip.new_empty(outputs.shape)
            result[:, :, start : start + strip.shape[2]] = strip
        assert result is not None
        return result

    def sweep(self, maps: Sequence[Rows], kept: set[Stored]) -> list[Stored]:
        results = [Stored(each.shape, self.dtype, self.device) for each in maps]
        for _, strips in self._strips(maps, kept):
            for stored, strip in zip(results, strips, strict=True):
                # A view would keep the rows of the halo in memory.
                is_view = strip.untyped_storage().nbytes() > strip.numel() * strip.element_size()
                stored.append(strip.clone() if is_view else strip)
        return results

    def statistics(self, rows: Rows) -> Statistics:
        if isinstance(rows, Stored) and rows.statistics.count:
            return rows.statistics
        statistics = Statistics()
        for _, (strip,) in self._strips([rows], set(rows.needs(0))):
            statistics.add(strip)
        return statistics

    def whole(self, rows: Stored, function: WholeFunction) -> Stored:
        inputs = rows.read(0, rows.height)
        if not self.is_kept(rows):
            rows.release(rows.height)
        result = Stored(rows.shape, self.dtype, self.device)
        with ChunkedAttention(self.memory):
            result.append(function(inputs, self.condition))
        return result

    def _strips(self, maps: Sequence[Rows], kept: set[Stored]) -> Iterator[tuple[int, list[Tensor]]]:
        """Computes the maps' rows from top to bottom, and frees those of stored maps that nothing needs."""
        height = maps[0].height
        values = self.memory // self.value
        rows = max(1, bisect_right(range(1, height + 1), values, key=lambda rows: _work(maps, rows)))
        for start in range(0, height, rows):
            stop = min(start + rows, height)
            yield start, [each.read(start, stop) for each in maps]
            for stored, row in lowest_rows(maps, stop).items():
                if stored not in kept:
                    stored.release(stored.height if stop == height else row)


class ChunkedAttention(TorchFunctionMode):
    """Computes scaled_dot_product_attention for some queries at a time where its scores are written out.

    The scores of a chunk of queries then stay below ``memory`` bytes. Attention with a mask is left alone.
    """

    def __init__(self, memory: int) -> None:
        super().__init__()
        self.memory = memory

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        is_plain = len(args) == 3 and kwargs.get("attn_mask") is None and not kwargs.get("is_causal")
        if func is not F.scaled_dot_product_attention or not is_plain or not writes_scores(*args):
            return func(*args, **kwargs)
        query, key, value = args
        scores_of_one = 2 * 4 * math.prod(query.shape[:-2]) * key.shape[-2]  # before and after the softmax
        chunks = query.split(max(1, self.memory // scores_of_one), dim=-2)
        return torch.cat([func(chunk, key, value, **kwargs) for chunk in chunks], dim=-2)


def writes_scores(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Returns whether torch's attention needs memory for the scores of all queries with all keys."""
    if query.device.type == "cpu":
        return False  # its kernel goes over the keys in blocks
    if query.device.type != "cuda":
        return True
    from torch.backends import cuda

    case = cuda.SDPAParams(query, key, value, None, 0.0, False, False)
    return not (
        cuda.can_use_flash_attention(case)
        or cuda.can_use_efficient_attention(case)
        or cuda.can_use_cudnn_attention(case)
    )
