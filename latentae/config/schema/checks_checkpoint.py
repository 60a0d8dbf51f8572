"""What keeping the best checkpoint demands of when there are checkpoints and measurements."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from latentae.config.schema.run import RunConfig


def checkpoint_problems(config: RunConfig) -> Iterator[str]:
    """A best checkpoint that could never be, one line each: field, value, remedy."""
    if config.best_metric is None:
        return
    validate, save = config.validate_every, config.checkpoint_every
    if validate is None:
        yield (
            f"`best_metric` is {config.best_metric}, and `validate_every` null: nothing measures it; set "
            f"`validate_every: {save}`, as `checkpoint_every`"
        )
    elif validate % save and save % validate:
        yield (
            f"`best_metric` is {config.best_metric}, and of `validate_every: {validate}` and "
            f"`checkpoint_every: {save}` neither is a multiple of the other: few checkpoints would be "
            f"measured; set `validate_every: {save}`"
        )
