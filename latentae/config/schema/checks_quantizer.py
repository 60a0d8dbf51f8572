"""What a quantizer's keys demand of each other and of the model around it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from latentae.config.schema.model import KLVAEConfig
from latentae.config.schema.quantizer import FSQConfig, GroupedQuantizerConfig, ResidualQuantizerConfig
from latentae.config.yaml_text import show

if TYPE_CHECKING:
    from latentae.config.schema.run import RunConfig

_MOST_CODES = 1 << 20  # as latentae.quantizers counts them


def quantizer_problems(config: RunConfig) -> Iterator[str]:
    """Every contradiction, one line each: field, value, remedy."""
    if isinstance(config.model, KLVAEConfig):
        return
    quantizer, path = config.model.quantizer, "model.quantizer"
    if isinstance(quantizer, GroupedQuantizerConfig):
        yield from _shares(quantizer, config.model.latent_channels)
    if isinstance(quantizer, ResidualQuantizerConfig | GroupedQuantizerConfig):
        quantizer, path = quantizer.member, f"{path}.member"
    if isinstance(quantizer, FSQConfig) and math.prod(quantizer.levels) > _MOST_CODES:
        yield (
            f"`{path}.levels` is {show(quantizer.levels)}, which makes {math.prod(quantizer.levels)} codes; "
            f"at most {_MOST_CODES} can be counted: use fewer, or `model.quantizer.type: grouped`"
        )


def _shares(quantizer: GroupedQuantizerConfig, latent_channels: int) -> Iterator[str]:
    """A code that is as long as its group's share of the latents needs equal shares."""
    if getattr(quantizer.member, "code_dim", 0) is None and latent_channels % quantizer.groups:
        yield (
            f"`model.quantizer.groups` is {quantizer.groups}, which does not divide `model.latent_channels` "
            f"({latent_channels}); set `model.quantizer.member.code_dim`, or change one of them"
        )
