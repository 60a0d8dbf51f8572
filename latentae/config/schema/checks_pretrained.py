"""What starting from a pretrained model demands."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from latentae.config.schema.run import RunConfig


def pretrained_problems(config: RunConfig) -> Iterator[str]:
    """Contradictions, one line each: field, value, remedy."""
    if config.freeze_encoder and config.model.pretrained is None:
        yield (
            "`freeze_encoder` is true, and `model.pretrained` is null: the encoder would stay as random as "
            "it starts; name a trained model there, or use freeze_encoder=false"
        )
