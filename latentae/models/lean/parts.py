"""A batch taken in parts, so that what is computed again is never there of a whole batch of large images."""

from __future__ import annotations

from torch import Tensor

# On a CPU what is not much larger than its caches, on a GPU as much as keeps it busy.
_VALUES_AT_ONCE = {"cpu": 2**20, "other": 2**27}


def split_batch(inputs: Tensor) -> list[slice]:
    """Slices of a batch [B, ...] of about as many values as are best computed with at once."""
    values = _VALUES_AT_ONCE["cpu" if inputs.device.type == "cpu" else "other"]
    size = max(1, values * len(inputs) // max(1, inputs.numel()))
    return [slice(start, start + size) for start in range(0, len(inputs), size)]


def plus(total: Tensor | None, more: Tensor | None) -> Tensor | None:
    """The sum, in the place of ``total`` where that is there already."""
    if total is None or more is None:
        return more if total is None else total
    return total.add_(more)
