"""What compiled networks demand: images and latents of few sizes, each of which is compiled for itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from latentae.config.schema.run import RunConfig


def compile_problems(config: RunConfig) -> Iterator[str]:
    """Sizes that change from step to step, one line each: field, value, remedy."""
    if not config.compile:
        return
    sizes = len(set(config.data.training_sizes))
    if sizes > 1:
        yield (
            f"`compile` is true, and `data.resolutions` has {sizes} sizes, each of which would be compiled "
            "for minutes; set `compile: false` or `data.resolutions: null`"
        )
    equivariance = config.loss.equivariance
    if equivariance is not None and equivariance.min_scale < 1:
        yield (
            f"`compile` is true, and with `loss.equivariance.min_scale: {equivariance.min_scale}` sizes "
            "change from step to step, each of which would be compiled for minutes; set `compile: false` or "
            "`loss.equivariance.min_scale: 1`"
        )
