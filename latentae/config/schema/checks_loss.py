"""What the terms of the loss demand of each other and of the run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from latentae.config.schema.kl import LinearScheduleConfig
from latentae.config.schema.reconstruction import LikelihoodConfig

if TYPE_CHECKING:
    from latentae.config.schema.run import RunConfig


def loss_problems(config: RunConfig) -> Iterator[str]:
    """Contradictions, one line each: field, value, remedy."""
    reconstruction = config.loss.reconstruction
    scaled = isinstance(reconstruction, LikelihoodConfig) and reconstruction.scale_perceptual
    if scaled and config.loss.perceptual is None:
        yield (
            "`loss.reconstruction.scale_perceptual` is true, and `loss.perceptual` is null; give it its keys "
            "(`type: lpips`) or use loss.reconstruction.scale_perceptual=false"
        )


def loss_warnings(config: RunConfig) -> Iterator[str]:
    """What is allowed but probably not meant, one line each: field, value and consequence."""
    schedule = None if config.loss.kl is None else config.loss.kl.schedule
    if schedule is None:
        return
    if isinstance(schedule, LinearScheduleConfig):
        if schedule.warmup_steps >= config.max_steps:
            yield (
                f"`loss.kl.schedule.warmup_steps` is {schedule.warmup_steps} and `max_steps` "
                f"{config.max_steps}: the divergence never has all of `loss.kl.weight`"
            )
    elif schedule.cycle_steps * schedule.cycles > config.max_steps:
        yield (
            f"`loss.kl.schedule` has {schedule.cycles} cycles of {schedule.cycle_steps} steps and "
            f"`max_steps` is {config.max_steps}: the run ends within a cycle"
        )
