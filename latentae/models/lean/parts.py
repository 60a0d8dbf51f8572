"""What all lean blocks use: a batch in parts, and whether layers may be computed from their weights."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

# On a CPU what is not much larger than its caches, on a GPU as much as keeps it busy.
_VALUES_AT_ONCE = {"cpu": 2**20, "other": 2**27}


def split_batch(inputs: Tensor) -> list[slice]:
    """Slices of a batch [B, ...] of about as many values as are best computed with at once.

    So what is computed again is never in memory for a whole batch of large images.
    """
    values = _VALUES_AT_ONCE["cpu" if inputs.device.type == "cpu" else "other"]
    size = max(1, values * len(inputs) // max(1, inputs.numel()))
    return [slice(start, start + size) for start in range(0, len(inputs), size)]


def plus(total: Tensor | None, more: Tensor | None) -> Tensor | None:
    """The sum, in the place of ``total`` where that is there already."""
    if total is None or more is None:
        return more if total is None else total
    return total.add_(more)


def is_plain(layers: Iterable[nn.Module], *kinds: type[nn.Module]) -> bool:
    """Whether each layer does what its weights say, so that a block may read them and not call the layer.

    An adapter such as LoRA takes the layer's place or changes its class. A hook, of torch, accelerate or
    diffusers, may move the weights or change what goes in and out.

    Args:
        layers: of a block.
        kinds: the classes that they may have, not counting subclasses.
    """
    return all(
        type(layer) in kinds
        and not layer._forward_pre_hooks
        and not layer._forward_hooks
        and "forward" not in vars(layer)  # where accelerate and diffusers put theirs
        for layer in layers
    )
