"""What the keys of the adversarial loss and its discriminator demand of one another."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from latentae.config.yaml_text import show

if TYPE_CHECKING:
    from latentae.config.schema.run import RunConfig


def adversarial_problems(config: RunConfig) -> Iterator[str]:
    """Contradictions, one line each: field, value, remedy."""
    adversarial, discriminator = config.loss.adversarial, config.discriminator
    if adversarial is not None and adversarial.min_adaptive_weight > adversarial.max_adaptive_weight:
        yield (
            f"`loss.adversarial.min_adaptive_weight` is {adversarial.min_adaptive_weight:g}, more than "
            f"`loss.adversarial.max_adaptive_weight`, {adversarial.max_adaptive_weight:g}; lower the one or "
            "raise the other"
        )
    if discriminator is not None and len(set(discriminator.augment)) < len(discriminator.augment):
        once = list(dict.fromkeys(discriminator.augment))
        yield (
            f"`discriminator.augment` is {show(list(discriminator.augment))}, and may name each change once; "
            f"use {show(once)}"
        )


def adversarial_warnings(config: RunConfig) -> Iterator[str]:
    """What is allowed but probably not meant, one line each: field, value and consequence."""
    adversarial = config.loss.adversarial
    if adversarial is None:
        return
    if adversarial.start_step >= config.max_steps:
        yield (
            f"`loss.adversarial.start_step` is {adversarial.start_step} and `max_steps` {config.max_steps}: "
            "the adversarial loss never starts"
        )
    elif adversarial.start_step + adversarial.ramp_steps > config.max_steps:
        yield (
            f"`loss.adversarial.ramp_steps` is {adversarial.ramp_steps}, from step {adversarial.start_step}, "
            f"and `max_steps` {config.max_steps}: the adversarial loss never has its whole weight"
        )
    if adversarial.min_adaptive_weight > 0 and not adversarial.adaptive:
        yield (
            f"`loss.adversarial.min_adaptive_weight` is {adversarial.min_adaptive_weight:g} and "
            "`loss.adversarial.adaptive` false: there is no adaptive weight to limit"
        )
